//! Pods of an ordinary user with an account, subordinate ids and a delegated control group of version 2, which only a disposable host has.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_lab::{Room, inside};
use magikvm_tests::rootless::{Owners, whole_life};
use magikvm_tests::user::{Ordinary, SUBORDINATE};
use magikvm_tests::virtual_machine::{Driver, VmHost};
use magikvm_tests::wait::until;
use magikvm_tests::{Pod, escape};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::time::Duration;

const NAME: &str = "ordinary";
const UID: u32 = 4321;
const ROOM: Room = Room { limit: Duration::from_secs(600), memory_mib: 3072 };

/// Grants subordinate ids to this name in both tables.
fn grant(name: &str) {
    for table in ["/etc/subuid", "/etc/subgid"] {
        fs::write(table, format!("{name}:{}:{}\n", SUBORDINATE.0, SUBORDINATE.1)).unwrap();
    }
}

fn user() -> Ordinary {
    let device = "/dev/kvm";
    fs::set_permissions(device, Permissions::from_mode(0o666)).unwrap();
    Ordinary::with_account(Driver::Krun, NAME, UID)
}

#[test]
fn a_user_with_all_rights_runs_a_pod_from_import_to_removal() {
    inside!(ROOM, || {
        let mut user = user();
        grant(NAME);
        let group = user.delegate(NAME);
        whole_life(&user, Owners::Subordinate);
        // Nothing is left in the delegated group but what the test made.
        let left: Vec<_> = fs::read_dir(&group)
            .unwrap()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.file_name())
            .collect();
        assert_eq!(left, ["shell"]);
        let doctor: Value = serde_json::from_str(&user.cmd(["doctor", "-o", "json"]).run().stdout).unwrap();
        for check in doctor["checks"].as_array().unwrap() {
            let name = check["name"].as_str().unwrap();
            if name.starts_with("jail: ") || ["subordinate ids", "user namespaces", "cgroups"].contains(&name)
            {
                assert_eq!(check["state"], "ok", "{check}");
            }
        }
    });
}

/// Pods in namespaces, on a host with control groups of version 2.
fn user_of_namespaces() -> Ordinary {
    Ordinary::with_account(Driver::ContainersV2, NAME, UID)
}

#[test]
fn a_user_with_all_rights_runs_a_pod_in_namespaces_from_import_to_removal() {
    inside!(ROOM, || {
        let mut user = user_of_namespaces();
        grant(NAME);
        let group = user.delegate(NAME);
        whole_life(&user, Owners::Subordinate);
        // Limits hold in the delegated group, and the end that they bring is told.
        let before = user.holdings();
        let pod = Pod::new("limited")
            .set("spec/shareProcessNamespace", true)
            .script("web", "tail /dev/zero")
            .with("resources", json!({ "limits": { "memory": "32Mi", "cpu": "500m" } }));
        user.run(&pod).fails(137);
        let shown: Value =
            serde_json::from_str(&user.cmd(["inspect", "-o", "json", "limited"]).ok().stdout).unwrap();
        let ended = &shown["status"]["containerStatuses"][0]["state"]["terminated"];
        assert_eq!(ended["reason"], "OOMKilled", "{shown}");
        user.cmd(["rm", "limited"]).ok();
        user.assert_as_before(&before);
        // A group with processes of its own can hold no limits.
        let full = user.delegate("full");
        user.start_in(Some(full.clone()));
        let limited = Pod::simple("limited").with("resources", json!({ "limits": { "memory": "32Mi" } }));
        user.run(&limited)
            .arg("-d")
            .fails(1)
            .complains("resources.limits.memory cannot be enforced: ")
            .complains(&format!("{} has processes", full.display()));
        user.start_in(Some(group.join("shell")));
        user.assert_as_before(&before);
        assert!(!group.join("magikvm").exists());
    });
}

/// A pod with a hostPath volume, run to its end, and what it was said to lack.
#[track_caller]
fn lacks(user: &Ordinary, path: Option<&str>) -> (Value, String) {
    let shared = user.file("shared");
    if !shared.exists() {
        user.make("shared", UID, None);
    }
    let pod = Pod::new("once")
        .script("web", "stat -c %u:%g /host")
        .volume("host", json!({ "hostPath": { "path": shared.to_str().unwrap() } }))
        .mount("host", "/host", json!({}));
    let run = user.run(&pod);
    let run = if let Some(path) = path { run.env("PATH", path) } else { run };
    assert_eq!(run.limit(Duration::from_secs(90)).ok().stdout, "web | 0:0\n");
    let (layers, events) = (user.layers("once"), user.cmd(["events", "once"]).ok().stdout);
    user.cmd(["rm", "once"]).ok();
    (layers["krun"].clone(), events)
}

#[test]
fn each_right_that_is_missing_is_said_with_what_mends_it() {
    inside!(ROOM, || {
        let mut user = user();
        let top = user.delegate(NAME);
        let before = user.holdings();

        // Subordinate ids without the programs that map them, and with ids that are granted to somebody else.
        grant(NAME);
        let (layers, events) = lacks(&user, Some("/usr/sbin:/sbin"));
        let why = layers["fewerIds"].as_str().unwrap_or_else(|| panic!("{layers}"));
        assert!(why.starts_with("cannot run newuidmap: ") && why.contains("`magikvm doctor`"), "{why}");
        assert!(events.contains(why), "{events}");
        let doctor = user.cmd(["doctor"]).env("PATH", "/usr/sbin:/sbin").run().stdout;
        assert!(doctor.contains("newuidmap is not in PATH") && doctor.contains("uidmap"), "{doctor}");
        fs::write("/etc/subgid", format!("another:{}:{}\n", SUBORDINATE.0, SUBORDINATE.1)).unwrap();
        let (layers, _) = lacks(&user, None);
        let why = layers["fewerIds"].as_str().unwrap_or_else(|| panic!("{layers}"));
        assert!(why.starts_with("/etc/subgid has no ids of this user; "), "{why}");
        assert_eq!(layers.get("missing"), None, "{layers}");

        // A control group that has processes of its own, and none at all.
        grant(NAME);
        let full = user.delegate("full");
        user.start_in(Some(full.clone()));
        let (layers, events) = lacks(&user, None);
        let why = only_missing(&layers, "cgroup");
        assert!(
            why.contains(&format!("{} has processes", full.display())) && why.contains("`mkdir "),
            "{why}"
        );
        assert!(events.contains("jail: krun runs without cgroup"), "{events}");
        user.start_in(None);
        let (layers, _) = lacks(&user, None);
        let why = only_missing(&layers, "cgroup");
        assert!(why.contains("`systemd-run --user --scope -p Delegate=yes`"), "{why}");
        let strict = user.run(&Pod::simple("strict")).args(["-d", "--require-jail"]).fails(3);
        strict.complains("--require-jail: the host does not provide the layer `cgroup`").complains(&why);
        let doctor = user.cmd(["doctor"]).run().stdout;
        assert!(doctor.contains("no cgroup is delegated to ordinary"), "{doctor}");
        user.start_in(Some(top.join("shell")));
        user.run(&Pod::new("strict").script("web", "echo jailed"))
            .arg("--require-jail")
            .ok()
            .prints("jailed");
        user.cmd(["rm", "strict"]).ok();
        user.assert_as_before(&before);
        assert!(!Path::new(&top).join("magikvm").exists());
    });
}

/// The reason why a process lacks this layer, which must be the only one that it lacks.
#[track_caller]
fn only_missing(layers: &Value, layer: &str) -> String {
    let missing = layers["missing"].as_array().unwrap_or_else(|| panic!("{layers}"));
    assert_eq!(missing.iter().map(|one| &one["layer"]).collect::<Vec<_>>(), [layer], "{layers}");
    missing[0]["why"].as_str().unwrap().to_owned()
}

/// systemd's manager for the user makes the control group of a pod: the user needs to delegate nothing.
#[test]
fn a_user_of_systemd_has_limits_in_a_scope() {
    inside!(ROOM, || {
        let mut user = user_of_namespaces();
        grant(NAME);
        let group = user.delegate(NAME);
        // What systemd as the host's first process does when a user logs in.
        fs::write(group.join("cgroup.subtree_control"), "+cpu +memory +pids").unwrap();
        fs::create_dir_all("/run/systemd/system").unwrap();
        let runtime = Path::new("/run/user").join(UID.to_string());
        let of_manager = group.join("manager");
        for dir in [&runtime, &of_manager] {
            fs::create_dir_all(dir).unwrap();
            fs::set_permissions(dir, Permissions::from_mode(0o700)).unwrap();
        }
        for path in [
            runtime.clone(),
            of_manager.clone(),
            of_manager.join("cgroup.procs"),
            of_manager.join("cgroup.subtree_control"),
            of_manager.join("cgroup.threads"),
        ] {
            chown(path, Some(UID), Some(UID)).unwrap();
        }
        user.set_env("XDG_RUNTIME_DIR", runtime.to_str().unwrap());
        user.start_in(Some(of_manager));
        let manager = user.other_program("/lib/systemd/systemd").arg("--user").spawn();
        until("the manager listens", || {
            runtime.join("systemd/private").exists() && runtime.join("bus").exists()
        });
        user.start_in(Some(group.join("shell")));
        // The bus itself starts when it is first asked for something.
        user.other_program("/usr/bin/busctl").args(["--user", "list"]).ok();

        let before = user.holdings();
        let limits = json!({ "limits": { "memory": "64Mi", "cpu": "500m" } });
        let pod = Pod::new("limited")
            .set("spec/shareProcessNamespace", true)
            .script("web", "exec sleep 43371")
            .with("resources", limits);
        let said = user.run(&pod).arg("-d").env("MAGIKVM_QUIET", "").ok().stderr;
        assert!(said.contains("unless you run `loginctl enable-linger`"), "{said}");
        let supervisor = user.process("limited", "supervisor");
        let own = fs::read_to_string(format!("/proc/{supervisor}/cgroup")).unwrap();
        let path = own.trim().strip_prefix("0::/").unwrap();
        let (above, below) = path.split_once(".scope/").expect("a scope");
        assert!(above.contains("/magikvm-default_limited."), "{path}");
        assert!(below.ends_with("/_supervisor"), "{path}");
        let scope = Path::new("/sys/fs/cgroup").join(format!("{above}.scope"));
        let limit =
            fs::read_to_string(scope.join(below).with_file_name("pod").join("web").join("memory.max"));
        assert_eq!(limit.unwrap(), "67108864\n");
        user.cmd(["rm", "-f", "limited"]).ok();
        until("systemd has removed the scope", || !scope.exists());
        user.assert_as_before(&before);
        // A pod whose limit is exceeded.
        let greedy = Pod::new("greedy")
            .script("web", "tail /dev/zero")
            .with("resources", json!({ "limits": { "memory": "32Mi" } }));
        user.run(&greedy).fails(137);
        user.cmd(["rm", "greedy"]).ok();
        user.assert_as_before(&before);
        // Without the manager the user is told what would help.
        kill(Pid::from_raw(manager.pid()), Signal::SIGTERM).unwrap();
        drop(manager.wait());
        fs::remove_dir_all(&runtime).unwrap();
    });
}

/// Of root, on a kernel that lacks the file system of the images' files: they are unpacked, and the pod sees the same.
#[test]
fn a_kernel_without_erofs_runs_pods_from_directories() {
    inside!(ROOM, || {
        let host = VmHost::with(Driver::ContainersV2);
        // No module is loaded any more.
        fs::write("/proc/sys/kernel/modprobe", "/bin/false").unwrap();
        let known = fs::read_to_string("/proc/filesystems").unwrap();
        assert!(!known.contains("erofs"), "{known}");
        let before = host.holdings();
        let pod = Pod::new("plain")
            .script("web", "stat -c %u:%g /bin/busybox /root; echo more > /root/more; exec sleep 43381");
        host.start(&pod);
        assert_eq!(host.cmd(["logs", "plain"]).ok().stdout, "0:0\n0:0\n");
        assert_eq!(host.sh("plain", "web", "cat /root/more; grep erofs /proc/mounts || true"), "more\n");
        host.cmd(["rm", "-f", "plain"]).ok();
        host.assert_as_before(&before);
        let doctor: Value = serde_json::from_str(&host.cmd(["doctor", "-o", "json"]).run().stdout).unwrap();
        let check = |name: &str| {
            let all = doctor["checks"].as_array().unwrap();
            all.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("{name}")).clone()
        };
        assert_eq!(check("pod-containers: images")["state"], "warn", "{doctor}");
        assert_eq!(check("pod-containers: owners")["state"], "ok", "{doctor}");
    });
}

/// Of root, with control groups of version 2, and with huge pages that the host has for others.
#[test]
fn no_way_out_of_namespaces_is_open() {
    inside!(ROOM, || {
        fs::write("/proc/sys/vm/nr_hugepages", "8").unwrap();
        let host = VmHost::with(Driver::ContainersV2);
        escape::import(&host);
        escape::none_is_open(&host);
        assert_eq!(fs::read_to_string("/proc/sys/vm/nr_hugepages").unwrap(), "8\n", "there were none");
    });
}
