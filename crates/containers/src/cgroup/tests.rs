//! Tests against the real control groups of the host, in any arrangement. They need root.

use super::*;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// The groups of a test pod, removed with the test.
struct Pod(Tree);

impl Pod {
    fn new(test: &str) -> Self {
        let tree = Tree::new(
            Hierarchies::detect().unwrap(),
            &format!("/magikvm-test-{}-{test}", std::process::id()),
        );
        tree.make().unwrap();
        Self(tree)
    }

    fn name() -> ContainerName {
        "web".parse().unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let pod = self.0.group(&[]);
        pod.kill();
        pod.wait_empty(Instant::now() + Duration::from_secs(10));
        pod.remove();
    }
}

/// A shell in the group that reports when its child runs.
fn forker(group: &Cgroup) -> Child {
    let dirs: Vec<String> = match group {
        Cgroup::Unified(group) => vec![group.0.display().to_string()],
        Cgroup::Legacy(group) => group.0.iter().map(|(_, dir)| dir.display().to_string()).collect(),
    };
    let enter: String = dirs.iter().map(|dir| format!("echo 0 > {dir}/cgroup.procs; ")).collect();
    let mut child = Command::new("sh")
        .args(["-c", &format!("{enter} sleep 1000 & echo begun; wait")])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    child
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn everything_in_a_group_and_below_it_is_killed_and_waited_for() {
    let pod = Pod::new("kill");
    let (container, exec) = (pod.0.container(&Pod::name()), pod.0.exec(&Pod::name(), 7));
    container.make_for_container(soon()).unwrap();
    match &exec {
        Cgroup::Unified(group) => std::fs::create_dir(&group.0).unwrap(),
        Cgroup::Legacy(group) => group.make().unwrap(),
    }
    let mut children = [forker(&container), forker(&exec)];
    assert!(!container.wait_empty(Instant::now()), "four processes are in it");
    exec.kill();
    assert!(exec.wait_empty(soon()));
    assert!(children[0].try_wait().unwrap().is_none(), "the container's own process lives");
    container.kill();
    assert!(container.wait_empty(soon()));
    for child in &mut children {
        child.wait().unwrap();
    }
    container.remove();
    assert!(!container.exists() && container.usage().is_none());
}

#[test]
fn an_earlier_run_goes_when_a_container_is_made_anew() {
    let pod = Pod::new("anew");
    let container = pod.0.container(&Pod::name());
    container.make_for_container(soon()).unwrap();
    let mut child = forker(&container);
    container.make_for_container(soon()).unwrap();
    child.wait().unwrap();
    assert!(container.wait_empty(Instant::now()));
    assert_eq!(container.oom_kills(), 0);
}

#[test]
fn a_container_that_has_no_process_left_to_give_keeps_no_exec_out() {
    let pod = Pod::new("full");
    let (container, exec) = (pod.0.container(&Pod::name()), pod.0.exec(&Pod::name(), 8));
    container.make_for_container(soon()).unwrap();
    let limit = match &container {
        Cgroup::Unified(group) => Some(group.0.join("pids.max")),
        Cgroup::Legacy(group) => {
            let pids = group.0.iter().find(|(names, _)| names.iter().any(|name| name == "pids"));
            pids.map(|(_, dir)| dir.join("pids.max"))
        }
    };
    let mut full = forker(&container);
    std::fs::write(limit.expect("the pids controller"), "2").unwrap();
    let entry = exec.make_for_exec().unwrap();
    let file = entry.procs.iter().map(|file| format!("/proc/self/fd/{}", file.as_raw_fd()));
    // A child that was forked outside enters by the open files, which it has inherited.
    let enter: String = file.map(|file| format!("echo 0 > {file}; ")).collect();
    entry.procs.iter().for_each(|file| {
        nix::fcntl::fcntl(file, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    });
    let mut child = Command::new("sh")
        .args(["-c", &format!("{enter} echo begun; read line")])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert!(!exec.wait_empty(Instant::now()), "it is in the group");
    container.kill();
    for child in [&mut child, &mut full] {
        child.wait().unwrap();
    }
}

#[test]
fn use_is_counted() {
    let pod = Pod::new("usage");
    let container = pod.0.container(&Pod::name());
    assert_eq!(container.usage(), None);
    container.make_for_container(soon()).unwrap();
    let mut child = forker(&container);
    let usage = container.usage().unwrap();
    assert_eq!(usage.pids, 2, "{usage:?}");
    assert!(usage.cpu_usec > 0 && usage.memory_peak_bytes >= usage.memory_bytes, "{usage:?}");
    assert_eq!(usage.memory_limit_bytes, None);
    container.kill();
    child.wait().unwrap();
}

#[test]
fn values_are_found_by_their_whole_key() {
    let text = "low 0\noom_kill_x 9\noom_kill 3\n";
    assert_eq!(flat_value(text, "oom_kill"), Some(3));
    assert_eq!(flat_value(text, "oom"), None);
    assert_eq!(flat_value("populated 1\nfrozen 0\n", "populated"), Some(1));
}

#[test]
fn a_pod_has_the_limits_of_its_plan() {
    let pod = Pod::new("limits");
    pod.0.limit(&PodLimits::default()).unwrap();
    pod.0
        .limit(&PodLimits { cpu_millis: Some(1500), memory_bytes: Some(64 << 20), ..PodLimits::default() })
        .unwrap();
    let group = pod.0.group(&[]);
    let read = |controller: &str, unified: &str, legacy: &str| {
        let file = match &group {
            Cgroup::Unified(group) => group.0.join(unified),
            Cgroup::Legacy(group) => {
                let has = |names: &[String]| names.iter().any(|name| name == controller);
                group.0.iter().find(|(names, _)| has(names)).unwrap().1.join(legacy)
            }
        };
        std::fs::read_to_string(file).unwrap().trim().to_owned()
    };
    assert_eq!(read("memory", "memory.max", "memory.limit_in_bytes"), (64 << 20).to_string());
    let quota = read("cpu", "cpu.max", "cpu.cfs_quota_us");
    assert_eq!(quota.split(' ').next(), Some("150000"), "{quota}");
    // Less than the kernel takes.
    pod.0.limit(&PodLimits { cpu_millis: Some(1), ..PodLimits::default() }).unwrap();
    assert!(read("cpu", "cpu.max", "cpu.cfs_quota_us").starts_with("1000"));
}
