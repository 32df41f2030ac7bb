//! Real VMs: how containers and pods end, and what is left then.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::Pod;
use magikvm_tests::processes::is_alive;
use magikvm_tests::virtual_machine::VmHost;
use magikvm_tests::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

fn statuses(host: &VmHost, pod: &str) -> Vec<Value> {
    let pod = host.inspect(pod).expect("the pod is there");
    pod["status"]["containerStatuses"].as_array().expect("it has containers").clone()
}

#[test]
fn exit_codes_and_signals() {
    let host = VmHost::new();
    let before = host.holdings();
    let pod = Pod::new("codes")
        .script("zero", "echo fine")
        .script("seven", "echo wrong >&2; exit 7")
        .script("killed", "exec sleep 1000")
        .script("last", "exit 9");
    let mut running = host.run(&pod).spawn();
    running.wait_for_stderr("seven  | wrong");
    until("the others have ended", || {
        statuses(&host, "codes").iter().filter(|status| !status["state"]["terminated"].is_null()).count() == 3
    });
    assert_eq!(host.phase("codes"), "Running");
    host.cmd(["kill", "-s", "USR1", "codes", "-c", "killed"]).ok();
    // Process 1 without a handler has no USR1.
    host.cmd(["kill", "-s", "KILL", "codes", "-c", "killed"]).ok();
    let output = running.wait().expect_code(7);
    assert_eq!((output.stdout.as_str(), output.stderr.as_str()), ("zero   | fine\n", "seven  | wrong\n"));
    let ends: Vec<String> = statuses(&host, "codes")
        .iter()
        .map(|status| &status["state"]["terminated"])
        .map(|end| format!("{} {} {}", end["exitCode"], end["signal"], end["reason"]))
        .collect();
    assert_eq!(ends, ["0 null \"Completed\"", "7 null \"Error\"", "137 9 \"Error\"", "9 null \"Error\""]);
    assert_eq!(
        (host.phase("codes"), host.cmd(["wait", "codes"]).ok().stdout),
        ("Failed".to_owned(), "7\n".to_owned())
    );
    host.cmd(["rm", "codes"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_container_without_memory_is_killed_and_said_to_be() {
    let host = VmHost::new();
    let pod = Pod::new("hungry")
        .container("eater", &["tail", "/dev/zero"])
        .with("resources/limits/memory", "32Mi")
        .container("other", &["sleep", "1000"]);
    host.start(&pod);
    until("it is killed", || statuses(&host, "hungry")[0]["state"]["terminated"]["reason"] == "OOMKilled");
    let statuses = statuses(&host, "hungry");
    assert_eq!(statuses[0]["state"]["terminated"]["exitCode"], 137);
    assert_eq!(statuses[1]["ready"], true);
    host.cmd(["events", "hungry"]).ok().prints("eater: killed: out of memory");
    assert_eq!(host.sh("hungry", "other", "echo alive"), "alive\n");
}

#[test]
fn restart_policies() {
    let host = VmHost::new();
    let both = |name: &str, policy: &str| {
        let pod = Pod::new(name)
            .set("spec/restartPolicy", policy)
            .script("ok", "echo ran")
            .script("bad", "echo ran; exit 3");
        pod.container("stays", &["sleep", "1000"])
    };
    host.start(&both("always", "Always"));
    host.start(&both("onfailure", "OnFailure"));
    let restarts = |pod: &str| -> Vec<u64> {
        statuses(&host, pod).iter().map(|status| status["restartCount"].as_u64().unwrap()).collect()
    };
    until("both were started again", || restarts("always")[..2].iter().all(|&count| count >= 1));
    until("the failed one was started again", || restarts("onfailure")[1] >= 1);
    until("it waits for its next start", || {
        statuses(&host, "always")[1]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    });
    let crashed = &statuses(&host, "always")[1];
    assert_eq!(crashed["lastState"]["terminated"]["exitCode"], 3, "{crashed}");
    let finished = &statuses(&host, "onfailure")[0];
    assert_eq!(
        (finished["restartCount"].as_u64(), finished["state"]["terminated"]["reason"].as_str()),
        (Some(0), Some("Completed"))
    );
    until("its time has come", || restarts("always")[1] >= 2);
    assert_eq!(restarts("always")[2], 0);
    let runs = host.cmd(["logs", "always", "-c", "bad"]).ok().stdout;
    assert!(runs.lines().count() >= 3 && runs.lines().all(|line| line == "ran"), "{runs}");
    host.cmd(["events", "always"]).ok().prints("bad: started again (1)").prints("starts again in 10 s");
    // A pod whose containers would be started again can be stopped.
    host.cmd(["stop", "--grace", "0", "always", "onfailure"]).ok();
    assert!(host.cmd(["ps"]).ok().stdout.matches("Failed").count() == 2);
}

#[test]
fn a_program_that_is_not_there_fails_the_whole_run() {
    let host = VmHost::new();
    let before = host.holdings();
    let pod = Pod::simple("missing").container("side", &["/no/such/program"]);
    let output = host.run(&pod).arg("-d").fails(1);
    let output = output.complains("container side could not be started").complains("(stage: container)");
    assert!(output.stderr.contains("/no/such/program"), "{}", output.stderr);
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "");
    host.assert_as_before(&before);
    let absent = Pod::simple("absent").container_of("side", "not/there:1", &["x"]);
    let absent = absent.with("imagePullPolicy", "Never");
    host.run(&absent).fails(1).complains("container side: the image not/there:1 is not here");
    host.assert_as_before(&before);
}

const POLITE: &str = "trap 'echo bye; exit 5' TERM; echo up; while :; do sleep 0.05; done";
const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 0.05; done";

fn wait_for_all_up(host: &VmHost, pod: &str, count: usize) {
    until("all containers are up", || host.cmd(["logs", pod]).ok().stdout.matches("up\n").count() == count);
}

#[test]
fn stop_asks_waits_and_kills_in_reverse_order() {
    let host = VmHost::new();
    let before = host.holdings();
    host.start(&Pod::new("polite").script("first", POLITE).script("second", POLITE).script("third", POLITE));
    wait_for_all_up(&host, "polite", 3);
    let begun = Instant::now();
    host.cmd(["stop", "--grace", "20", "polite"]).ok();
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    assert_eq!(
        host.cmd(["logs", "polite"]).ok().stdout.matches("bye\n").count(),
        3,
        "the last words are kept"
    );
    let events = host.cmd(["events", "polite"]).ok().stdout;
    let ends: Vec<&str> =
        events.lines().filter_map(|line| line.split_once("  ")?.1.strip_suffix(": exited with 5")).collect();
    assert_eq!(ends, ["third", "second", "first"], "{events}");
    assert_eq!(host.cmd(["wait", "polite"]).ok().stdout, "5\n");

    host.start(&Pod::new("stubborn").script("first", STUBBORN).script("second", POLITE));
    wait_for_all_up(&host, "stubborn", 2);
    let begun = Instant::now();
    host.cmd(["stop", "--grace", "2", "stubborn"]).ok();
    assert!(
        (Duration::from_secs(2)..Duration::from_secs(10)).contains(&begun.elapsed()),
        "{:?}",
        begun.elapsed()
    );
    let ends: Vec<Value> = statuses(&host, "stubborn")
        .iter()
        .map(|status| status["state"]["terminated"]["exitCode"].clone())
        .collect();
    assert_eq!(ends, [137, 5]);
    assert!(host.inspect("stubborn").unwrap()["status"]["message"].is_null(), "nothing was broken");

    // A second wish with less patience counts.
    host.start(&Pod::new("hasty").script("first", STUBBORN));
    wait_for_all_up(&host, "hasty", 1);
    let begun = Instant::now();
    let patient = host.cmd(["stop", "--grace", "200", "hasty"]).spawn();
    until("the pod is being stopped", || host.cmd(["events", "hasty"]).ok().stdout.contains("stopping"));
    host.cmd(["stop", "--grace", "0", "hasty"]).ok();
    patient.wait().expect_code(0);
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    host.cmd(["rm", "polite", "stubborn", "hasty"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn an_interrupted_foreground_run_stops_its_containers() {
    let host = VmHost::new();
    let before = host.holdings();
    let mut running = host.run(&Pod::new("fore").script("web", POLITE)).arg("--rm").spawn();
    running.wait_for_stdout("web | up");
    running.signal(Signal::SIGINT);
    running.wait().expect_code(5).prints("web | bye");
    host.assert_as_before(&before);
    // In the middle of the boot.
    let running = host.run(&Pod::simple("fore")).spawn();
    host.process("fore", "qemu");
    running.signal(Signal::SIGINT);
    running.wait().expect_code(1).complains("cancelled");
    host.assert_as_before(&before);
}

#[test]
fn whatever_is_killed_everything_can_be_removed() {
    let host = VmHost::new();
    let before = host.holdings();
    let kill9 = |name: &str| kill(Pid::from_raw(host.process("victim", name)), Signal::SIGKILL).unwrap();

    let mut running = host.run(&Pod::new("victim").script("web", STUBBORN)).spawn();
    running.wait_for_stdout("web | up");
    running.signal(Signal::SIGKILL);
    running.wait();
    assert_eq!(
        (host.phase("victim"), host.sh("victim", "web", "echo alive")),
        ("Running".to_owned(), "alive\n".to_owned())
    );

    let machine = [host.process("victim", "qemu"), host.process("victim", "vhost-device-vsock")];
    kill9("monitor");
    host.wait_for_phase("victim", "Lost");
    until("the machine has gone with the monitor", || !machine.iter().any(|&pid| is_alive(pid)));
    host.cmd(["logs", "victim"]).ok().prints("up");
    host.cmd(["rm", "victim"]).ok();
    host.assert_as_before(&before);

    for (name, how) in [
        ("qemu", "qemu was killed by SIGKILL"),
        ("vhost-device-vsock", "vhost-device-vsock was killed by SIGKILL"),
    ] {
        host.start(&Pod::simple("victim"));
        kill9(name);
        host.wait_for_phase("victim", "Failed");
        let why = host.inspect("victim").unwrap()["status"]["message"].clone();
        assert!(why.as_str().unwrap().contains(how), "{why}");
        host.cmd(["rm", "victim"]).ok();
        host.assert_as_before(&before);
    }
}

#[test]
fn a_guest_that_does_not_boot_says_why() {
    let host = VmHost::new();
    let before = host.holdings();
    let good = std::path::PathBuf::from(
        std::env::var("MAGIKVM_TEST_GUEST").or_else(|_| std::env::var("MAGIKVM_GUEST")).unwrap(),
    );
    let bad = host.file("guest");
    fs::create_dir(&bad).unwrap();
    let parts = ["manifest.json", "vmlinux", "initramfs"];
    for part in parts {
        fs::copy(good.join(part), bad.join(part)).unwrap();
    }
    let run = || {
        host.run(&Pod::simple("bad")).arg("-d").arg("--guest").arg(&bad).limit(Duration::from_secs(90)).run()
    };
    let whole = fs::read(bad.join("vmlinux")).unwrap();

    fs::write(bad.join("vmlinux"), &whole[..whole.len() / 2]).unwrap();
    let output = run()
        .expect_code(3)
        .complains("its part vmlinux is missing or damaged")
        .complains("Hint: make one: magikvm-image build");
    assert_eq!(output.stdout, "");
    host.assert_as_before(&before);

    // The right size, and no kernel: the VMM says so.
    fs::write(bad.join("vmlinux"), vec![0; whole.len()]).unwrap();
    let output = run().expect_code(70).complains("(stage: boot)").complains("The VM's console, last lines:");
    assert!(output.stderr.contains("kernel"), "{}", output.stderr);
    host.assert_as_before(&before);

    // A kernel without an init: its own last words are shown.
    fs::write(bad.join("vmlinux"), &whole).unwrap();
    let initramfs = fs::metadata(bad.join("initramfs")).unwrap().len();
    fs::write(bad.join("initramfs"), vec![0x55; usize::try_from(initramfs).unwrap()]).unwrap();
    let output = run().expect_code(70).complains("(stage: boot)").complains("Kernel panic");
    assert!(output.took < Duration::from_secs(60), "{:?}", output.took);
    host.assert_as_before(&before);
}

/// Without being asked to, no pod runs without hardware virtualization; where there is some, it is used.
#[test]
fn a_class_is_never_swapped_for_a_weaker_one() {
    let host = VmHost::new();
    let found: Value =
        serde_json::from_str(&host.cmd(["doctor", "-o", "json"]).run().expect_code(0).stdout).unwrap();
    assert_eq!(found["emulation"], true, "{found}");
    let strict = host.cmd(["doctor", "--hardware"]).run();
    assert_eq!(strict.code == 0, found["hardware"] == true, "{}", strict.transcript());
    let run = host.run(&Pod::new("strict").script("web", "echo ran")).args(["--accel", "kvm", "--rm"]).run();
    if found["hardware"] == true {
        run.expect_code(0).prints("ran");
    } else {
        run.expect_code(3).complains("this machine cannot run the pod").complains("--accel tcg");
    }
}
