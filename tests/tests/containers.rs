//! Pods in namespaces of the host: what the host sees of them, how they end, and what a hostile container finds. The conformance list covers what
//! they do as any pod does.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::host::program;
use magikvm_tests::processes::is_alive;
use magikvm_tests::virtual_machine::{Driver, NETWORK, VmHost};
use magikvm_tests::wait::{until, wait_for};
use magikvm_tests::{Cmd, Pod};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::time::Duration;

fn host() -> VmHost {
    VmHost::with(Driver::Containers)
}

/// The first id of a pod's users, and of all pods.
const FIRST_ID: u32 = 0x7100_0000;

/// A line of `/proc/PID/status`.
fn status(pid: i32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{key}: {text}")).trim().to_owned()
}

/// Processes of the host with this word in their command lines.
fn processes_of(word: &str) -> Vec<i32> {
    let all = fs::read_dir("/proc").unwrap().flatten();
    let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_of = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == word.as_bytes())
    };
    pids.filter(is_of).collect()
}

fn sleeper(name: &str, seconds: &str) -> Pod {
    Pod::new(name).container("web", &["sleep", seconds])
}

#[test]
fn the_users_of_a_pod_are_none_of_the_hosts() {
    let host = host();
    let before = host.holdings();
    host.start(
        &sleeper("one", "43211").script("other", "exec sleep 43212").with("securityContext/runAsUser", 7),
    );
    host.start(&sleeper("two", "43213"));
    let user = |seconds: &str| -> u32 {
        let [pid] = processes_of(seconds)[..] else { panic!("one process sleeps {seconds} s") };
        status(pid, "Uid").split_whitespace().next().unwrap().parse().unwrap()
    };
    let one = user("43211");
    assert!(one >= FIRST_ID && one.is_multiple_of(1 << 16), "{one}");
    assert_eq!(user("43212"), one + 7);
    let two = user("43213");
    assert!(two >= FIRST_ID && two != one, "{one} {two}");
    assert_eq!(host.sh("one", "web", "id -u"), "0\n");
    // What the pod's root owns is its own in the image, too.
    assert_eq!(
        host.sh("one", "web", "stat -c %u:%g /bin/busybox /root /dev/null"),
        "0:0\n0:0\n65534:65534\n"
    );
    for pod in ["one", "two"] {
        host.cmd(["rm", "-f", pod]).ok();
    }
    host.assert_as_before(&before);
}

/// With the users of the host, everything else that isolates a pod is there.
#[test]
fn a_pod_with_the_users_of_the_host_has_no_power_over_it() {
    let host = host();
    let before = host.holdings();
    host.start(
        &Pod::new("hosts")
            .set("spec/hostUsers", true)
            .script("web", "mkdir /mnt; exec sleep 43281")
            .script("other", "exec sleep 43282")
            .with("securityContext/runAsUser", 70_000),
    );
    let of = |seconds: &str| {
        let [pid] = processes_of(seconds)[..] else { panic!("one process sleeps {seconds} s") };
        pid
    };
    assert_eq!(status(of("43281"), "Uid"), "0\t0\t0\t0");
    assert_eq!(status(of("43282"), "Uid").split('\t').next(), Some("70000"));
    // containerd's default capabilities, whatever the user is.
    assert_eq!(status(of("43281"), "CapBnd"), "00000000a80425fb");
    assert_eq!(status(of("43281"), "Seccomp"), "2");
    let supervisor = host.process("hosts", "supervisor");
    let kept = u64::from_str_radix(&status(supervisor, "CapBnd"), 16).unwrap();
    // CAP_SYS_MODULE, CAP_SYS_RAWIO, CAP_SYS_BOOT, CAP_SYS_TIME, CAP_MAC_ADMIN.
    for number in [16, 17, 22, 25, 33] {
        assert_eq!(kept & 1 << number, 0, "capability {number} of {kept:x}");
    }
    for (script, says) in [
        ("mknod /tmp/mem c 1 1 && cat /tmp/mem", "Operation not permitted"),
        ("mknod /tmp/disk b 8 0 && cat /tmp/disk", "Operation not permitted"),
        ("echo 1 > /proc/sys/kernel/panic", "Read-only file system"),
        ("mount -t tmpfs none /mnt", "ermission denied"),
        ("mount -o remount,rw /proc/sys", "ermission denied"),
        (
            "echo 1 > /sys/fs/cgroup/pids/pids.max || echo 1 > /sys/fs/cgroup/pids.max",
            "Read-only file system",
        ),
        ("hostname other", "ot permitted"),
        ("reboot -f", "ot permitted"),
        ("insmod /bin/busybox", "ot permitted"),
        ("dmesg", "ot permitted"),
        ("ls /proc/1/root/etc/magikvm /proc/2", "No such file"),
    ] {
        let output = host.cmd(["exec", "hosts", "-c", "web", "--", "sh", "-c", script]).run();
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(output.code != 0 && said.contains(says), "{script}: {said}");
    }
    // A container can have the supervisor's program executed as an interpreter, and then open its file (CVE-2019-5736).
    let program = fs::File::open(format!("/proc/{supervisor}/exe")).unwrap();
    let seals = SealFlag::from_bits_truncate(fcntl(&program, FcntlArg::F_GET_SEALS).unwrap());
    assert!(seals.contains(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL), "{seals:?}");
    host.cmd(["rm", "-f", "hosts"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_container_has_the_usual_rights_and_nothing_of_the_host_open() {
    let host = host();
    let before = host.holdings();
    host.start(&sleeper("plain", "43221"));
    let [pid] = processes_of("43221")[..] else { panic!("one process") };
    // The default capabilities of containerd, and no more.
    assert_eq!(status(pid, "CapEff"), "00000000a80425fb");
    assert_eq!(status(pid, "Seccomp"), "2");
    // Neither has the process that makes containers anything of the supervisor but its own connection.
    let spawner = children(host.process("plain", "supervisor"))
        .into_iter()
        .find(|pid| command(*pid) == "spawner")
        .expect("the spawner");
    let open: Vec<String> = fs::read_dir(format!("/proc/{spawner}/fd"))
        .unwrap()
        .map(|entry| fs::read_link(entry.unwrap().path()).unwrap().display().to_string())
        .filter(|target| target != "/dev/null")
        .collect();
    assert_eq!(open.len(), 1, "{open:?}");
    assert!(open[0].starts_with("socket:"), "{open:?}");
    host.cmd(["rm", "-f", "plain"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_volume_of_the_host_has_the_same_owners_inside() {
    let host = host();
    let before = host.holdings();
    let dir = host.file("shared");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    let pod = Pod::new("shares")
        .volume("shared", json!({ "hostPath": { "path": dir } }))
        .script("root", "echo root > /shared/root; stat -c %u /shared/root")
        .mount("shared", "/shared", json!({}))
        .script("user", "echo user > /shared/user; stat -c %u /shared/user")
        .with("securityContext/runAsUser", 1234)
        .mount("shared", "/shared", json!({}));
    host.run(&pod).ok().prints("root | 0\n").prints("user | 1234\n");
    let owner = |name: &str| fs::metadata(dir.join(name)).unwrap().uid();
    assert_eq!((owner("root"), owner("user")), (0, 1234));
    host.cmd(["rm", "shares"]).ok();
    fs::remove_dir_all(&dir).unwrap();
    host.assert_as_before(&before);
}

#[test]
fn the_end_of_each_process_is_that_of_the_pod() {
    let host = host();
    let before = host.holdings();
    let pod = || sleeper("victim", "43231").annotated(NETWORK, "nat");
    let run = || {
        let manifest = host.manifest(&pod().set("spec/runtimeClassName", "pod-containers"));
        host.cmd(["run", "-d"]).arg(manifest).ok();
    };
    for (process, reason) in
        [("sandbox", "SandboxKilled"), ("net-filter", "NetworkFailed"), ("nat", "NetworkFailed")]
    {
        run();
        kill(Pid::from_raw(host.process("victim", process)), Signal::SIGKILL).unwrap();
        host.wait_for_phase("victim", "Failed");
        let status = host.inspect("victim").unwrap()["status"].clone();
        assert_eq!(status["reason"], reason, "{status}");
        until("its container has ended", || processes_of("43231").is_empty());
        host.cmd(["rm", "victim"]).ok();
        host.assert_as_before(&before);
    }
    // The pod's first process, and the one that makes its containers.
    for name in ["magikvm-contai", "spawner"] {
        run();
        let sandbox = host.process("victim", "sandbox");
        let first = children(sandbox)[0];
        let victim = match name {
            "spawner" => children(first).into_iter().find(|pid| command(*pid) == "spawner").unwrap(),
            _ => first,
        };
        kill(Pid::from_raw(victim), Signal::SIGKILL).unwrap();
        host.wait_for_phase("victim", "Failed");
        let status = host.inspect("victim").unwrap()["status"].clone();
        assert_eq!(status["reason"], "SandboxKilled", "{name}: {status}");
        if name == "spawner" {
            let message = status["message"].as_str().unwrap_or_default();
            assert!(message.contains("(spawner) was killed by SIGKILL"), "{status}");
        }
        let events = host.cmd(["events", "victim"]).ok().stdout;
        assert!(events.contains("SandboxKilled"), "{events}");
        host.cmd(["exec", "victim", "--", "true"]).fails(1).complains("victim");
        until("its container has ended", || processes_of("43231").is_empty());
        host.cmd(["rm", "victim"]).ok();
        host.assert_as_before(&before);
    }
    // Nobody is left to clean up.
    run();
    let (monitor, sandbox) = (host.process("victim", "monitor"), host.process("victim", "sandbox"));
    kill(Pid::from_raw(monitor), Signal::SIGKILL).unwrap();
    until("everything ends with the monitor", || !is_alive(sandbox) && processes_of("43231").is_empty());
    assert_eq!(host.phase("victim"), "Lost");
    host.cmd(["rm", "victim"]).ok();
    host.assert_as_before(&before);
}

fn children(pid: i32) -> Vec<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    text.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn command(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned()
}

#[test]
fn an_exec_that_cannot_be_says_why_and_where() {
    let host = host();
    let before = host.holdings();
    host.start(&sleeper("ids", "43271"));
    let exec = |user: &str| host.cmd(["exec", "--user", user, "ids", "--", "id"]).fails(1);
    exec("70000")
        .complains("cannot run id in container web of pod default/ids")
        .complains("--user 70000: user 70000 does not exist in the pod, whose users are 0 to 65535");
    exec("0:70000").complains("group 70000 does not exist in the pod, whose groups are 0 to 65535");
    host.cmd(["exec", "--user", "65535:65535", "ids", "--", "id", "-u"]).ok().prints("65535");
    host.cmd(["rm", "-f", "ids"]).ok();

    host.start(&Pod::new("crashes").set("spec/restartPolicy", "Always").script("web", "sleep 1; exit 3"));
    until("it waits for its restart", || {
        let status = &host.inspect("crashes").unwrap()["status"]["containerStatuses"][0];
        status["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    host.cmd(["exec", "crashes", "--", "true"])
        .fails(1)
        .complains("cannot run true in container web of pod default/crashes")
        .complains("container \"web\" is not running: it waits for its restart (CrashLoopBackOff: ")
        .complains("`magikvm logs default/crashes -c web`");
    host.cmd(["rm", "-f", "crashes"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_failure_at_any_step_leaves_nothing() {
    let host = host();
    let before = host.holdings();
    let pod = || {
        sleeper("doomed", "43241").volume("disk", json!({ "emptyDir": {} })).mount("disk", "/disk", json!({}))
    };
    for point in ["reserve", "record", "prepare", "start", "ready"] {
        let run = || host.run(&pod()).arg("-d");
        run().env("MAGIKVM_FAULT", point).fails(70).complains(&format!("fault injected at {point}"));
        host.assert_as_before(&before);
        run()
            .env("MAGIKVM_FAULT", format!("{point}=kill"))
            .fails(70)
            .complains("monitor ended before the pod ran");
        until("its container has ended", || processes_of("43241").is_empty());
        host.cmd(["rm", "-f", "doomed"]).ok();
        host.assert_as_before(&before);
    }
}

#[test]
fn a_paused_pod_does_nothing_and_can_be_stopped() {
    let host = host();
    let before = host.holdings();
    host.start(&Pod::new("still").script("web", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"));
    let lines = || host.cmd(["logs", "still"]).ok().stdout.lines().count();
    until("it counts", || lines() > 20);
    host.cmd(["pause", "still"]).ok();
    assert_eq!(host.phase("still"), "Paused");
    let frozen = lines();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(lines(), frozen);
    host.cmd(["resume", "still"]).ok();
    until("it goes on", || lines() > frozen + 20);
    host.cmd(["pause", "still"]).ok();
    host.cmd(["stop", "--grace", "1", "still"]).ok();
    host.cmd(["rm", "still"]).ok();
    host.start(&sleeper("still", "43251"));
    host.cmd(["pause", "still"]).ok();
    host.cmd(["rm", "-f", "still"]).ok();
    host.assert_as_before(&before);

    // Nobody who could continue it is left.
    host.start(&sleeper("still", "43252"));
    host.cmd(["pause", "still"]).ok();
    kill(Pid::from_raw(host.process("still", "sandbox")), Signal::SIGKILL).unwrap();
    host.wait_for_phase("still", "Failed");
    host.cmd(["rm", "still"]).ok();
    host.start(&sleeper("still", "43253"));
    host.cmd(["pause", "still"]).ok();
    kill(Pid::from_raw(host.process("still", "monitor")), Signal::SIGKILL).unwrap();
    host.wait_for_phase("still", "Lost");
    host.cmd(["rm", "-f", "still"]).ok();
    assert!(processes_of("43253").is_empty());
    host.assert_as_before(&before);
}

#[test]
fn a_class_is_changed_only_on_request() {
    let host = host();
    let manifest = host.manifest(&Pod::new("asked").container("web", &["true"]).annotated(NETWORK, "none"));
    host.cmd(["run", "--class", "pod-containers"]).arg(&manifest).ok();
    let shown = host.inspect("asked").unwrap();
    assert_eq!(shown["spec"]["runtimeClassName"], "pod-containers", "{shown}");
    host.cmd(["rm", "asked"]).ok();
    host.cmd(["run", "--class", "pod-nothing"])
        .arg(&manifest)
        .fails(2)
        .complains("there are pod-microvm-containers");
    let privileged = Pod::new("asked").container("web", &["true"]).with("securityContext/privileged", true);
    let manifest = host.manifest(&privileged);
    host.cmd(["run", "-d", "--class", "pod-containers"])
        .arg(&manifest)
        .fails(1)
        .complains("spec.containers[0].securityContext.privileged: is possible only in a VM");
}

#[test]
fn pods_that_cannot_start_leave_nothing_however_their_supervisor_is_met() {
    let host = host();
    let before = host.holdings();
    // Its containers are being killed when its sandbox is.
    let run = |name: usize| {
        for _ in 0..25 {
            let pod = sleeper(&format!("missing-{name}"), "43241").container("side", &["/no/such/program"]);
            host.run(&pod).arg("-d").fails(1).complains("container side could not be started");
        }
    };
    std::thread::scope(|scope| {
        for name in 0..4 {
            let run = &run;
            scope.spawn(move || run(name));
        }
    });
    host.assert_as_before(&before);
}

#[test]
fn fifty_pods_at_once_leave_nothing() {
    let host = host();
    let before = host.holdings();
    let runs: Vec<_> = (0..50)
        .map(|n| {
            host.run(&Pod::new(&format!("pod{n}")).script("web", "echo $HOSTNAME"))
                .limit(Duration::from_secs(120))
                .spawn()
        })
        .collect();
    for (n, run) in runs.into_iter().enumerate() {
        run.wait().expect_code(0).prints(&format!("pod{n}\n"));
    }
    let names: Vec<String> = (0..50).map(|n| format!("pod{n}")).collect();
    host.cmd(["rm"]).args(&names).limit(Duration::from_secs(60)).ok();
    host.assert_as_before(&before);
}

/// Everything that a container may try without a special program, as its root with all capabilities that the default has.
#[test]
fn a_hostile_container_changes_nothing_outside() {
    let host = host();
    let before = host.holdings();
    let tries = [
        // Limits and devices of its own groups.
        (
            "echo 1 > /sys/fs/cgroup/memory/memory.limit_in_bytes || echo 1 > /sys/fs/cgroup/memory.max",
            "Read-only file system",
        ),
        (
            "mount -o remount,rw /sys/fs/cgroup/memory || mount -o remount,rw /sys/fs/cgroup",
            "ermission denied",
        ),
        ("mount -t cgroup -o memory none /mnt || mount -t cgroup2 none /mnt", "ermission denied"),
        // Devices.
        ("mknod /tmp/disk b 8 0", "Operation not permitted"),
        ("mknod /tmp/mem c 1 1", "Operation not permitted"),
        // The kernel's parameters and knobs.
        ("echo 1 > /proc/sys/kernel/panic", "Read-only file system"),
        // Some kernels have none.
        ("echo c > /proc/sysrq-trigger", ""),
        ("echo x > /sys/kernel/uevent_helper", "ead-only file system"),
        ("cat /proc/kcore", ""),
        // Namespaces of others.
        ("unshare -U true", "ot permitted"),
        ("mount --bind / /mnt", "ermission denied"),
        ("nsenter -t 1 -m true", "ot permitted"),
        ("umount /proc/sys", "ot permitted"),
    ];
    host.start(&Pod::new("evil").script("web", "mkdir /mnt; exec sleep 43261"));
    for (script, says) in tries {
        let output = host.cmd(["exec", "evil", "--", "sh", "-c", script]).run();
        assert_ne!(output.code, 0, "{script}: {}", output.stdout);
        let said = format!("{}{}", output.stdout, output.stderr);
        assert!(said.contains(says), "{script}: {said}");
    }
    // Nothing of the supervisor is open, visible or reachable.
    let open = host.sh("evil", "web", "ls -l /proc/1/fd | tail -n +2 | awk '{print $NF}' | sort -u");
    let plain = |line: &str| line.starts_with("pipe:") || line == "/dev/null";
    assert!(open.lines().all(plain), "{open}");
    assert_eq!(host.sh("evil", "web", "ls -d /proc/[0-9]* | head -n 1"), "/proc/1\n");
    assert_eq!(host.sh("evil", "web", "cat /proc/1/comm"), "sleep\n");
    // Its supervisor has pairs of sockets in the pod's network namespace, to which nobody can connect.
    let named = host.sh("evil", "web", "awk 'NR > 1 && NF > 7' /proc/net/unix");
    assert_eq!(named, "", "no socket can be connected to");
    host.cmd(["rm", "-f", "evil"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_fork_bomb_stays_within_its_limit() {
    let host = host();
    let before = host.holdings();
    host.start(
        &Pod::new("bomb")
            .script("web", "bomb() { bomb | bomb & }; bomb; sleep 100000")
            .script("calm", "exec sleep 43271"),
    );
    wait_for("it has as many processes as it may", Duration::from_secs(60), || {
        let stats = host.cmd(["stats", "bomb"]).ok().stdout;
        let line = stats.lines().find(|line| line.starts_with("web"))?.to_owned();
        let pids: u64 = line.split_whitespace().last()?.parse().ok()?;
        (pids > 4000).then_some(())
    });
    assert_eq!(host.sh("bomb", "calm", "echo fine"), "fine\n");
    host.cmd(["rm", "-f", "bomb"]).limit(Duration::from_secs(60)).ok();
    host.assert_as_before(&before);
}

#[test]
fn doctor_finds_what_the_class_needs_and_leaves_nothing() {
    let host = host();
    let before = host.holdings();
    // No VM can run: the guest image is missing.
    let doctor = || host.cmd(["doctor", "--guest", "/nowhere"]);
    let found = doctor().run().expect_code(0);
    for check in [
        "[ OK ] pod-containers: user: root",
        "[ OK ] pod-containers: program: ",
        "[ OK ] pod-containers: cgroups: ",
        "[ OK ] pod-containers: user namespaces: ",
        "[ OK ] pod-containers: images: ",
        "[ OK ] pod-containers: owners: ",
        "[ OK ] pod-containers: overlays: ",
        "[WARN] guest image: ",
        "Pods run on this host only without a VM (--class pod-containers).",
        "they share the kernel of this host",
    ] {
        assert!(found.stdout.contains(check), "{check}: {}", found.stdout);
    }
    assert!(!found.stdout.contains("[FAIL]"), "{}", found.stdout);
    let json: serde_json::Value =
        serde_json::from_str(&doctor().args(["-o", "json"]).run().expect_code(0).stdout).unwrap();
    assert_eq!((&json["containers"], &json["emulation"]), (&json!(true), &json!(false)), "{json}");
    doctor().arg("--hardware").fails(3);
    host.assert_as_before(&before);
}

#[test]
fn a_host_without_a_vm_names_the_class_without_one() {
    let host = host();
    let plain = host.manifest(&Pod::new("plain").container("web", &["true"]).annotated(NETWORK, "none"));
    let run = |manifest: &std::path::Path| {
        host.cmd(["run", "-d", "--vmm", "qemu", "--accel", "tcg"])
            .arg(manifest)
            .env("MAGIKVM_QEMU", "/nowhere/qemu")
    };
    run(&plain).fails(3).complains("--class pod-containers").complains("it shares the kernel of this host");
    assert!(host.inspect("plain").is_none(), "nothing was chosen silently");
    // Not where that class could not run it either.
    let output = run(&plain).env("MAGIKVM_CONTAINERS", "/nowhere/program").fails(3);
    assert!(!output.stderr.contains("pod-containers"), "{}", output.transcript());
}

#[test]
fn what_is_said_of_a_vm_is_refused_and_what_the_environment_says_is_not() {
    let host = host();
    let before = host.holdings();
    let pod = || Pod::new("small").container("web", &["true"]).annotated(NETWORK, "none");
    let manifest = host.manifest(&pod());
    let run = || host.cmd(["run", "--class", "pod-containers"]).arg(&manifest);
    for (option, value) in [("accel", "tcg"), ("vmm", "qemu"), ("guest", "/nowhere"), ("kernel", "guest")] {
        run()
            .args([format!("--{option}"), value.to_owned()])
            .fails(2)
            .complains(&format!(
                "--{option} is for VMs, and pod default/small of the class pod-containers has none"
            ))
            .complains(&format!("Hint: Omit `--{option}`"));
    }
    // Even what contradicts itself.
    let output =
        run().env("MAGIKVM_ACCEL", "tcg").env("MAGIKVM_VMM", "krun").env("MAGIKVM_GUEST", "/nowhere");
    let output = output.env("MAGIKVM_QUIET", "").ok();
    assert!(!output.stderr.contains("tcg"), "{}", output.transcript());
    host.cmd(["rm", "small"]).ok();
    let annotated = host.manifest(&pod().annotated("magikvm.dev/vcpus", "2"));
    host.cmd(["run", "-d", "--class", "pod-containers"])
        .arg(&annotated)
        .fails(1)
        .complains("metadata.annotations.magikvm.dev/vcpus: \"2\" is possible only in a VM");
    host.assert_as_before(&before);
}

#[test]
fn no_vm_bounds_the_limits_of_a_container() {
    let host = host();
    let before = host.holdings();
    let large = Pod::new("large")
        .container("web", &["sleep", "43281"])
        .with("resources", json!({ "limits": { "memory": "5Gi", "cpu": "9" } }));
    host.start(&large);
    let limit =
        "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    assert_eq!(host.sh("large", "web", limit).trim(), (5_u64 << 30).to_string());
    host.cmd(["rm", "-f", "large"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_container_that_is_killed_for_memory_is_a_warning_without_a_word_of_a_vm() {
    let host = host();
    let before = host.holdings();
    let greedy = Pod::new("greedy")
        .set("spec/restartPolicy", "Never")
        .script("web", "tail /dev/zero")
        .with("resources", json!({ "limits": { "memory": "32Mi" } }));
    let output = host.run(&greedy).run();
    assert_eq!(output.code, 137, "{}", output.transcript());
    assert!(
        output.stderr.contains("was killed: out of memory (its limit is 32Mi)"),
        "{}",
        output.transcript()
    );
    let events = host.cmd(["get", "events", "greedy", "-o", "json"]).ok().stdout;
    let events: serde_json::Value = serde_json::from_str(&events).unwrap();
    let all = events["items"].as_array().cloned().unwrap_or_default();
    let killed =
        all.iter().find(|event| event["reason"] == "ContainerExited").expect("the end of the container");
    assert_eq!(
        (&killed["type"], &killed["message"]),
        (&json!("Warning"), &json!("web: killed: out of memory"))
    );
    let mut said = String::new();
    for verb in [&["describe", "pod", "greedy"][..], &["events", "greedy"], &["ps"], &["inspect", "greedy"]] {
        said.push_str(&host.cmd(verb).ok().stdout);
    }
    for word in ["VM", "guest", "Guest"] {
        let told =
            said.lines().filter(|line| line.split(|c: char| !c.is_alphabetic()).any(|one| one == word));
        assert_eq!(told.collect::<Vec<_>>(), Vec::<&str>::new(), "{said}");
    }
    assert!(said.contains("SANDBOX") && said.contains("namespaces userns"), "{said}");
    host.cmd(["rm", "greedy"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn what_a_container_may_use_is_that_of_the_host() {
    let host = host();
    let before = host.holdings();
    let pod = sleeper("tells", "43291").with(
        "env",
        json!([{ "name": "CPUS", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu" } } }]),
    );
    host.start(&pod);
    let shown = host.cmd(["describe", "pod", "tells"]).ok().stdout;
    assert!(shown.contains("what the host has (limits.cpu)"), "{shown}");
    let processors = std::thread::available_parallelism().unwrap();
    assert_eq!(host.sh("tells", "web", "echo $CPUS"), format!("{processors}\n"));
    let stats = host.cmd(["stats", "tells"]).ok().stdout;
    assert!(stats.lines().any(|line| line.starts_with("Host: ")) && !stats.contains("VM"), "{stats}");
    host.cmd(["rm", "-f", "tells"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_volume_whose_owners_cannot_be_mapped_is_named() {
    let host = host();
    let before = host.holdings();
    for (path, place, kind) in
        [("/proc", "/proc", "proc"), ("/sys/kernel", "/sys/kernel", "sysfs"), ("/", "/", "")]
    {
        let pod = sleeper("shares", "43301")
            .volume("of-host", json!({ "hostPath": { "path": path } }))
            .mount("of-host", "/host", json!({}));
        let output = host.run(&pod).arg("-d").fails(1).complains("volume of-host cannot be provided: at ");
        if !kind.is_empty() {
            let says = format!("at {place} is a file system of the type {kind}");
            assert!(output.stderr.contains(&says), "{}", output.transcript());
        }
        assert!(
            output.stderr.contains("Hint: Let the hostPath of volume of-host name"),
            "{}",
            output.transcript()
        );
        host.assert_as_before(&before);
    }
}

#[test]
fn the_namespaces_of_a_pod_can_be_entered_by_their_paths() {
    let host = host();
    let before = host.holdings();
    host.start(&sleeper("spaces", "43311"));
    let annotation = |pod: &serde_json::Value| {
        let text = pod["metadata"]["annotations"]["magikvm.dev/namespaces"].as_str()?.to_owned();
        Some(serde_json::from_str::<serde_json::Value>(&text).unwrap())
    };
    let paths = annotation(&host.inspect("spaces").unwrap()).expect("the namespaces");
    let supervisor = host.process("spaces", "supervisor");
    for (key, file) in [
        ("network", "net"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("pid", "pid"),
        ("user", "user"),
        ("mount", "mnt"),
    ] {
        let path = paths[key].as_str().unwrap();
        assert_eq!(path, format!("/proc/{supervisor}/ns/{file}"));
        assert_ne!(fs::read_link(path).unwrap(), fs::read_link(format!("/proc/self/ns/{file}")).unwrap());
    }
    // The container has this network and this host name, too.
    let inside = host.sh("spaces", "web", "readlink /proc/self/ns/net");
    assert_eq!(fs::read_link(paths["network"].as_str().unwrap()).unwrap().to_str(), Some(inside.trim()));
    let enter = |option: &str, key: &str, program: &[&str]| {
        let path = paths[key].as_str().unwrap();
        host.other("nsenter").arg(format!("--{option}={path}")).args(program).ok().stdout
    };
    assert_eq!(enter("net", "network", &["readlink", "/proc/self/ns/net"]), inside);
    assert_eq!(enter("uts", "uts", &["hostname"]), "spaces\n");
    let described = host.cmd(["describe", "pod", "spaces"]).ok().stdout;
    assert!(!described.contains("/ns/net"), "{described}");
    host.cmd(["stop", "--grace", "1", "spaces"]).ok();
    assert_eq!(annotation(&host.inspect("spaces").unwrap()), None, "they are gone");
    host.cmd(["rm", "spaces"]).ok();
    host.assert_as_before(&before);
}

/// docs/library.md is about this program.
#[test]
fn a_program_that_uses_the_library_runs_a_pod() {
    let host = host();
    let before = host.holdings();
    let pod = sleeper("by-library", "43321")
        .set("spec/runtimeClassName", "pod-containers")
        .annotated(NETWORK, "none");
    let manifest = host.manifest(&pod);
    let output = host
        .other(env!("CARGO_BIN_EXE_library"))
        .env("MAGIKVM_CONTAINERS", program().with_file_name("magikvm-containers").to_str().unwrap())
        .arg(host.root())
        .arg(&manifest)
        .ok();
    let network = output.stdout.strip_prefix("network /proc/").unwrap_or_else(|| panic!("{}", output.stdout));
    assert!(network.trim_end().ends_with("/ns/net"), "{network}");
    assert_eq!(processes_of("43321"), [0; 0]);
    host.assert_as_before(&before);
}

/// Runs a pod in the background with mounts of its monitor's own, which this script has changed before.
fn run_after(host: &VmHost, script: &str, pod: &Pod) -> Cmd {
    let script = format!("{script} && exec \"$@\"");
    host.other("unshare")
        .args(["--mount", "sh", "-c", script.as_str(), "sh"])
        .arg(program())
        .args(["run", "-d"])
        .arg(host.manifest(&pod.clone().set("spec/runtimeClassName", "pod-containers")))
}

/// As on a host whose kernel lacks controllers: their hierarchies are not there for the pod's monitor.
#[test]
fn a_limit_that_the_host_cannot_keep_is_refused_or_accepted_as_that() {
    let host = host();
    let before = host.holdings();
    let limited = |name: &str| {
        sleeper(name, "43331").with("resources", json!({ "limits": { "cpu": "500m", "memory": "64Mi" } }))
    };
    let without_cpu = |pod: &Pod| run_after(&host, "umount /sys/fs/cgroup/cpu /sys/fs/cgroup/pids", pod);
    let why = "there is no cpu controller in the control groups of the host";
    without_cpu(&limited("strict"))
        .fails(1)
        .complains(&format!("container web: resources.limits.cpu cannot be enforced: {why}"))
        .complains(
            "Hint: Run the pod in a VM, or accept that nothing enforces the limit with the annotation",
        );
    host.assert_as_before(&before);
    let loose = limited("loose").annotated("magikvm.dev/limits", "best-effort").annotated(NETWORK, "none");
    let said = without_cpu(&loose).env("MAGIKVM_QUIET", "").ok().stderr;
    assert!(said.contains(&format!("container web: resources.limits.cpu is not enforced: {why}")), "{said}");
    assert!(said.contains("nothing limits how many processes the pod has: there is no pids"), "{said}");
    // The other limit holds.
    let file = "/sys/fs/cgroup/memory/memory.limit_in_bytes";
    assert_eq!(host.sh("loose", "web", &format!("cat {file}")), "67108864\n");
    host.cmd(["rm", "-f", "loose"]).ok();
    host.assert_as_before(&before);
}

/// As in a container whose control groups are read-only.
#[test]
fn without_a_control_group_root_has_pods_without_limits() {
    let host = host();
    let before = host.holdings();
    let read_only = "for dir in /sys/fs/cgroup/*; do mount -o remount,bind,ro $dir; done";
    let closed = |pod: &Pod| run_after(&host, read_only, pod);
    let limited = sleeper("limited", "43391").with("resources", json!({ "limits": { "memory": "64Mi" } }));
    let why = " cannot be written to";
    closed(&limited)
        .fails(1)
        .complains("resources.limits.memory cannot be enforced: /sys/fs/cgroup/")
        .complains(why);
    closed(&sleeper("hosts", "43391").set("spec/hostUsers", true))
        .fails(1)
        .complains("spec.hostUsers: true is not possible without a control group: /sys/fs/cgroup/");
    host.assert_as_before(&before);
    let free = sleeper("free", "43391").annotated(NETWORK, "none");
    let said = closed(&free).env("MAGIKVM_QUIET", "").ok().stderr;
    assert!(said.contains("nothing limits how many processes the pod has: /sys/fs/cgroup/"), "{said}");
    assert_eq!(host.sh("free", "web", "id -u"), "0\n");
    for (script, says) in
        [("mknod /tmp/mem c 1 1", "Operation not permitted"), ("cat /dev/mem", "No such file")]
    {
        let output = host.cmd(["exec", "free", "--", "sh", "-c", script]).run();
        assert!(output.stderr.contains(says), "{}", output.transcript());
    }
    host.cmd(["rm", "-f", "free"]).ok();
    host.assert_as_before(&before);
}
