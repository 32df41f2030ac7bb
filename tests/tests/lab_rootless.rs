//! Pods of an ordinary user with an account, subordinate ids and a delegated control group of version 2, which only a disposable host has.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_lab::{Room, inside};
use magikvm_tests::command::{Cmd, Running};
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
        a_host_without_user_namespaces_says_so(&host);
    });
}

fn a_host_without_user_namespaces_says_so(host: &VmHost) {
    const SETTING: &str = "/proc/sys/user/max_user_namespaces";
    let before = host.holdings();
    let most = fs::read_to_string(SETTING).unwrap();
    fs::write(SETTING, "0").unwrap();
    let refused = host.run(&Pod::simple("forbidden")).arg("-d").fails(3);
    refused
        .complains("the host forbids user namespaces (/proc/sys/user/max_user_namespaces is 0)")
        .complains("`sysctl -w user.max_user_namespaces=15000`");
    host.assert_as_before(&before);
    let user = user_of_namespaces();
    user.run(&Pod::simple("forbidden"))
        .arg("-d")
        .fails(3)
        .complains("the host forbids ordinary users to make user namespaces");
    assert!(!user.pod_dir("forbidden").exists());
    let pod = Pod::simple("hosts").set("spec/hostUsers", true);
    host.start(&pod);
    host.cmd(["rm", "-f", "hosts"]).ok();
    fs::write(SETTING, most).unwrap();
    host.assert_as_before(&before);
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
        huge_pages_are_those_of_the_manifest(&host);
    });
}

/// Of the eight that the host has.
fn huge_pages_are_those_of_the_manifest(host: &VmHost) {
    let before = host.holdings();
    let of = |name: &str, size: &str| {
        escape::prisoner(name)
            .with("resources", json!({ "limits": { "memory": "64Mi", "hugepages-2Mi": size } }))
    };
    let pod = of("pages", "6Mi").container_of("none", escape::IMAGE, &["sleep", "43391"]);
    host.start(&pod);
    let limit = "cat /sys/fs/cgroup/hugetlb.2MB.max /sys/fs/cgroup/hugetlb.2MB.rsvd.max; /escape pages";
    assert_eq!(host.sh("pages", "web", limit), "6291456\n6291456\n3\n");
    assert_eq!(host.sh("pages", "none", limit), "0\n0\n0\n");
    host.cmd(["rm", "-f", "pages"]).ok();
    host.run(&of("more", "18Mi"))
        .arg("-d")
        .fails(1)
        .complains("resources.limits.hugepages-2Mi: the host has 8 huge pages of 2Mi, and the pod needs 9");
    host.assert_as_before(&before);
}

/// A program in the namespaces of a systemd that is their first process, as on a host that it has booted.
struct Booted {
    systemd: Running,
    /// Of the first process, seen from outside.
    pid: i32,
}

impl Booted {
    /// With its bus and nothing else: units of the same names take the place of Debian's.
    fn new() -> Self {
        let units = Path::new("/run/systemd/system");
        fs::create_dir_all(units).unwrap();
        for (name, text) in [
            (
                "dbus.socket",
                "[Unit]\nDefaultDependencies=no\n[Socket]\nListenStream=/run/dbus/system_bus_socket\n",
            ),
            (
                "dbus.service",
                "[Unit]\nDefaultDependencies=no\nRequires=dbus.socket\n[Service]\nType=notify\nNotifyAccess=main\n\
                 ExecStart=/usr/bin/dbus-daemon --system --address=systemd: --nofork --nopidfile --systemd-activation\n",
            ),
        ] {
            fs::write(units.join(name), text).unwrap();
        }
        // Only systemd itself is in the group that it manages, or it could have no groups with limits.
        let script = "set -e; mkdir -p /sys/fs/cgroup/host/shell; \
             echo '+cpu +memory +pids' > /sys/fs/cgroup/cgroup.subtree_control; \
             exec unshare --mount --pid --fork --kill-child --mount-proc sh -ec \
             'echo 0 > /sys/fs/cgroup/host/cgroup.procs; exec unshare --cgroup sh -ec \"\
              umount /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; \
              exec env container=other /lib/systemd/systemd --system --unit=dbus.service\"'";
        let systemd = Cmd::new("/bin/sh").args(["-c", script]).spawn();
        let child = || {
            let of =
                |pid: i32| fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
            of(systemd.pid()).trim().parse::<i32>().ok()
        };
        until("systemd is the first process of its namespace", || {
            child().is_some_and(|pid| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == "systemd\n")
            })
        });
        let booted = Self { pid: child().unwrap(), systemd };
        until("the bus answers", || {
            let names = booted.enter(Cmd::new("/bin/sh"), "/usr/bin/busctl").args(["--system", "list"]).run();
            names.stdout.contains("org.freedesktop.systemd1")
        });
        booted
    }

    /// Completes the command `sh`, which then runs a program there, in a group of its own as an administrator's commands are.
    fn enter(&self, sh: Cmd, program: &str) -> Cmd {
        let pid = self.pid.to_string();
        let script = "echo 0 > /sys/fs/cgroup/host/shell/cgroup.procs; exec nsenter -t \"$@\"";
        sh.args(["-ec", script, "sh", &pid, "--mount", "--pid", "--cgroup", program])
    }
}

/// systemd makes the control group of a pod of root where it manages the groups, as the first process of the host does.
#[test]
fn a_pod_of_root_has_a_scope_of_systemd() {
    inside!(ROOM, || {
        let host = VmHost::with(Driver::ContainersV2);
        let booted = Booted::new();
        let magikvm = |args: &[&str]| {
            booted.enter(host.other("/bin/sh"), magikvm_tests::host::program().to_str().unwrap()).args(args)
        };
        let pod = Pod::new("limited")
            .set("spec/runtimeClassName", "pod-containers")
            .annotated("magikvm.dev/network", "none")
            .script("web", "exec sleep 43401")
            .with("resources", json!({ "limits": { "memory": "64Mi" } }));
        let manifest = host.manifest(&pod);
        magikvm(&["run", "-d", "--wait-ready", manifest.to_str().unwrap()]).ok();
        let supervisor = magikvm(&["inspect", "-o", "json", "limited"]).ok().stdout;
        assert!(supervisor.contains("\"Running\""), "{supervisor}");
        let slice = Path::new("/sys/fs/cgroup/host/machine.slice");
        let scopes = || -> Vec<_> {
            let all = fs::read_dir(slice).into_iter().flatten().flatten().map(|entry| entry.path());
            all.filter(|path| path.extension().is_some_and(|ending| ending == "scope")).collect()
        };
        let found = scopes();
        let [scope] = &found[..] else { panic!("{found:?}") };
        let name = scope.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("magikvm-default_limited."), "{name}");
        let inside = fs::read_dir(scope.join("magikvm")).unwrap().flatten();
        let limits: Vec<_> =
            inside.filter_map(|one| fs::read_to_string(one.path().join("pod/web/memory.max")).ok()).collect();
        assert_eq!(limits, ["67108864\n"]);
        assert!(!Path::new("/sys/fs/cgroup/host/magikvm").exists(), "a group beside those of systemd");
        // The end of the monitor is the end of the pod, and what it leaves goes with the pod.
        let units = ["--no-legend", "list-units", "magikvm-*"];
        let listed = || booted.enter(Cmd::new("/bin/sh"), "/usr/bin/systemctl").args(units).ok().stdout;
        assert!(listed().contains(name), "{}", listed());
        magikvm(&["rm", "-f", "limited"]).ok();
        until("systemd has removed the scope", || scopes().is_empty());
        assert_eq!(listed(), "");
        drop(booted.systemd);
    });
}
