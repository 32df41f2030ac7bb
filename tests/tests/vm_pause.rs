//! Real VMs that are paused, and the time that their guests know after it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::layout::Tar;
use magikvm_tests::processes::{is_alive, is_stopped};
use magikvm_tests::virtual_machine::VmHost;
use magikvm_tests::virtual_machine::busybox;
use magikvm_tests::wait::until;
use magikvm_tests::{Cmd, Pod};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longer than any deadline of a stream.
const LONG: Duration = Duration::from_secs(33);
/// The first day of 2040.
const FAR: i64 = 2_208_988_800;
/// Prints numbers, one after the other.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i; done";

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// The guest's time, beside ours.
fn off_by(host: &VmHost, pod: &str, container: &str) -> i64 {
    let before = now();
    let guest: i64 = host.sh(pod, container, "date +%s").trim().parse().unwrap();
    // Whatever the exec itself takes is no difference.
    if guest < before { guest - before } else { (guest - now()).max(0) }
}

fn clocks(host: &VmHost, pod: &str) -> Vec<String> {
    let shown = host.cmd(["events", pod]).ok().stdout;
    shown.lines().filter_map(|line| Some(line.split_once("  clock: ")?.1.to_owned())).collect()
}

fn machine(host: &VmHost, pod: &str) -> [i32; 2] {
    ["qemu", "vhost-device-vsock"].map(|name| host.process(pod, name))
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process is there");
}

fn lines(host: &VmHost, pod: &str) -> Vec<u64> {
    let printed = host.cmd(["logs", pod, "-c", "counter"]).ok().stdout;
    // The last line may be half of one.
    printed.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect()
}

/// A stranger's signals, as those of a debugger or of a machine that is put to sleep.
#[test]
fn after_a_standstill_the_guest_goes_on_and_knows_the_time() {
    let host = VmHost::new();
    let before = host.holdings();
    host.start(&Pod::simple("still").script("counter", COUNTER));
    assert!(off_by(&host, "still", "web").abs() <= 1);
    let at_start = clocks(&host, "still").len();
    let machine = machine(&host, "still");
    machine.into_iter().for_each(|pid| signal(pid, Signal::SIGSTOP));
    host.wait_for_phase("still", "Paused");
    let begun = Instant::now();
    host.cmd(["exec", "still", "-c", "web", "--", "true"]).fails(1).complains("pod default/still is paused");
    let printed = lines(&host, "still").len();
    // Not to wait for something: that nothing happens for so long is the test.
    std::thread::sleep(LONG.saturating_sub(begun.elapsed()));
    assert_eq!(host.phase("still"), "Paused");
    assert_eq!(lines(&host, "still").len(), printed);
    machine.into_iter().rev().for_each(|pid| signal(pid, Signal::SIGCONT));
    host.wait_for_phase("still", "Running");
    until("it was told the time", || clocks(&host, "still").len() > at_start);
    let off = off_by(&host, "still", "web");
    assert!(off.abs() <= 1, "the guest's clock is {off} s ahead: {:?}", clocks(&host, "still"));
    until("it goes on", || lines(&host, "still").len() > printed + 100);
    let all = lines(&host, "still");
    assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1), "no line is lost");
    host.cmd(["stop", "--grace", "1", "still"]).ok();
    host.cmd(["rm", "still"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn pause_and_resume() {
    let host = VmHost::new();
    let before = host.holdings();
    host.start(&Pod::simple("still").script("counter", COUNTER));
    let mut session = host
        .cmd(["exec", "still", "-c", "web", "--", "sh", "-c"])
        .arg("echo before; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo after; exit 7")
        .spawn();
    session.wait_for_stdout("before");
    let machine = machine(&host, "still");
    for _ in 0..3 {
        host.cmd(["pause", "still"]).ok();
        assert!(machine.into_iter().all(is_stopped), "when `pause` returns, all of the machine stands");
        assert_eq!(host.phase("still"), "Paused");
        host.cmd(["stats", "still"]).fails(1).complains("Hint: let it go on: magikvm resume default/still");
        host.cmd(["resume", "still"]).ok();
        assert!(!machine.into_iter().any(is_stopped));
        host.cmd(["stats", "still"]).ok();
    }
    host.sh("still", "web", "touch /tmp/go");
    assert_eq!(session.wait().expect_code(7).stdout, "before\nafter\n");

    host.cmd(["pause", "still"]).ok();
    host.cmd(["stop", "--grace", "1", "still"]).ok();
    let pod = host.inspect("still").unwrap();
    assert!(pod["status"]["reason"].is_null(), "a paused pod ends in order: {}", pod["status"]);
    let all = lines(&host, "still");
    assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1) && all.first() == Some(&1), "no line is lost");
    host.cmd(["rm", "still"]).ok();
    host.assert_as_before(&before);

    host.start(&Pod::simple("still"));
    let machine = self::machine(&host, "still");
    host.cmd(["pause", "still"]).ok();
    signal(host.process("still", "monitor"), Signal::SIGKILL);
    host.wait_for_phase("still", "Lost");
    until("the machine has gone with the monitor", || !machine.into_iter().any(is_alive));
    host.cmd(["rm", "still"]).ok();
    host.assert_as_before(&before);
}

/// A container that may set the clock sets its own pod's only, and no deadline depends on it. A pause sets it right.
#[test]
fn a_guests_clock_may_jump() {
    let host = VmHost::new();
    let before = host.holdings();
    let sets = |pod: Pod| pod.with("securityContext/capabilities/add", serde_json::json!(["SYS_TIME"]));
    let jumps = "trap '' TERM; echo up; while :; do date -s @0; date -s @4000000000; done";
    host.start(&sets(Pod::simple("jumpy").script("setter", "exec sleep 1000")));
    host.cmd(["exec", "jumpy", "-c", "web", "--", "date", "-s", "@0"])
        .ok()
        .complains("Operation not permitted");
    host.sh("jumpy", "setter", &format!("date -s @{FAR}"));
    let years = off_by(&host, "jumpy", "web");
    assert!((now() + years - FAR).abs() < 60, "the other container sees it too: {years} s");
    // What the host writes down is by its own clock.
    host.cmd(["kill", "-s", "KILL", "jumpy", "-c", "setter"]).ok();
    until("its end was seen", || {
        host.cmd(["events", "jumpy"]).ok().stdout.contains("setter: killed by signal 9")
    });
    let shown = host.cmd(["events", "jumpy"]).ok().stdout;
    assert!(!shown.contains("2040-"), "{shown}");
    let ended = &host.inspect("jumpy").unwrap()["status"]["containerStatuses"][1]["state"]["terminated"];
    assert!(!ended["finishedAt"].as_str().unwrap().starts_with("2040"), "{ended}");
    let begun = Instant::now();
    host.cmd(["exec", "jumpy", "-c", "web", "--timeout", "1", "--", "sleep", "100"]).fails(124);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());

    host.cmd(["pause", "jumpy"]).ok();
    host.cmd(["resume", "jumpy"]).ok();
    until("the guest says that it was ahead", || {
        clocks(&host, "jumpy").last().is_some_and(|last| last.ends_with(" s ahead; set") && last.len() > 25)
    });
    let off = off_by(&host, "jumpy", "web");
    assert!(off.abs() <= 1, "the guest's clock is {off} s ahead: {:?}", clocks(&host, "jumpy"));
    host.cmd(["rm", "-f", "jumpy"]).ok();
    host.assert_as_before(&before);

    host.start(&sets(Pod::new("jumpy").script("setter", jumps)));
    until("it jumps", || host.cmd(["logs", "jumpy"]).ok().stdout.contains("UTC 2096"));
    let begun = Instant::now();
    host.cmd(["stop", "--grace", "3", "jumpy"]).ok();
    let took = begun.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(15)).contains(&took), "{took:?}");
    let status = host.inspect("jumpy").unwrap()["status"].clone();
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["signal"], 9, "{status}");
    assert!(status["reason"].is_null(), "the guest ended by itself: {status}");
    host.cmd(["rm", "jumpy"]).ok();
    host.assert_as_before(&before);
}

/// This program, the libraries that it needs, and what is in a state root, as files of an image.
fn with_magikvm(mut layer: Tar, root: &Path) -> Tar {
    let program = magikvm_tests::host::program();
    let listed = Cmd::new("ldd").env("PATH", "/usr/bin:/bin").arg(program).ok().stdout;
    let libraries = listed.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    let mut dirs = std::collections::BTreeSet::new();
    for library in libraries {
        let name = library.to_str().unwrap().trim_start_matches('/').to_owned();
        let above: Vec<&Path> = Path::new(&name).ancestors().skip(1).collect();
        for dir in above.into_iter().rev().filter(|dir| !dir.as_os_str().is_empty()) {
            if dirs.insert(dir.to_owned()) {
                layer = layer.dir(&format!("{}/", dir.display()), 0o755);
            }
        }
        layer = layer.file(&name, 0o755, &fs::read(&library).unwrap());
    }
    layer = layer.file("bin/magikvm", 0o755, &fs::read(program).unwrap());
    tree(layer, "state", root)
}

fn tree(mut layer: Tar, name: &str, path: &Path) -> Tar {
    layer = layer.dir(&format!("{name}/"), 0o700);
    for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
        let below = format!("{name}/{}", entry.file_name().to_str().unwrap());
        layer = if entry.path().is_dir() {
            tree(layer, &below, &entry.path())
        } else {
            layer.file(&below, 0o600, &fs::read(entry.path()).unwrap())
        };
    }
    layer
}

/// The host of this test is a container whose clock may be set without harm to anybody: magikvm runs in it, with the fake guest.
#[test]
fn when_the_hosts_clock_is_set_guests_are_told() {
    let host = VmHost::new();
    let inner = Pod::simple("inner").text();
    let layer = with_magikvm(busybox(), &host.root()).file("inner.json", 0o644, inner.as_bytes());
    host.import("test/magikvm:1", layer, &serde_json::json!({ "Env": ["PATH=/bin", "MAGIKVM_ROOT=/state"] }));
    let outer = Pod::new("outer")
        .container_of("host", "test/magikvm:1", &["sleep", "1000"])
        .with("securityContext/capabilities/add", serde_json::json!(["SYS_TIME"]))
        .with("resources/limits/memory", "256Mi");
    host.start(&outer);
    let script = "magikvm run --vmm fake -d /inner.json && magikvm events inner | grep -c clock
        date -s @4000000000 && until magikvm events inner | grep clock; do sleep 0.1; done
        magikvm events --json inner; magikvm rm -f inner";
    let run = host.cmd(["exec", "outer", "--", "sh", "-c", script]).limit(Duration::from_secs(120));
    run.ok()
        .prints("default/inner\n0\n")
        .prints("2096-10-02T")
        .prints(r#""host":"clock","after":"host_clock","offset_ms":0}"#);
}
