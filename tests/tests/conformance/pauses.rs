//! Paused pods, and their guests' clocks afterwards.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::processes::{is_alive, is_stopped};
use magikvm_tests::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub(crate) static GROUP: Group = Group {
    name: "pauses",
    title: "Pauses, and the guest's clock",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "after_a_standstill",
            "A VM whose processes were stopped for half a minute is shown as Paused; it continues without losing a line, and its clock is right.",
            after_a_standstill_the_guest_goes_on_and_knows_the_time,
        )
        .of("`ps`, `events`")
        .within(Duration::from_secs(150)),
        Row::code(
            "pause_and_resume",
            "A paused pod does not run, gets no requests, can be stopped in order, and ends with its monitor.",
            pause_and_resume,
        )
        .of("`pause`, `resume`")
        .within(Duration::from_secs(150)),
        Row::code(
            "a_clock_may_jump",
            "A container that may set the clock sets only its own pod's, and no deadline depends on it; a pause corrects it.",
            a_guests_clock_may_jump,
        )
        .of("`securityContext.capabilities`, `stop`"),
    ],
};

/// Longer than any deadline of a stream.
const LONG: Duration = Duration::from_secs(33);
/// The first day of 2040.
const FAR: i64 = 2_208_988_800;
/// Prints numbers, one after the other.
const COUNTER: &str = "i=0; while :; do i=$((i+1)); echo $i; done";

fn now() -> i64 {
    i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap()
}

/// The guest's time in comparison with the host's.
fn off_by(subject: &Subject, pod: &str, container: &str) -> i64 {
    let before = now();
    let guest: i64 = subject.sh(pod, container, "date +%s").trim().parse().unwrap();
    // The duration of the exec itself does not count.
    if guest < before { guest - before } else { (guest - now()).max(0) }
}

fn clocks(subject: &Subject, pod: &str) -> Vec<String> {
    let shown = subject.cmd(["events", pod]).ok().stdout;
    shown.lines().filter_map(|line| Some(line.split_once("  clock: ")?.1.to_owned())).collect()
}

fn vm(subject: &Subject, pod: &str) -> Vec<i32> {
    subject.driver().processes().iter().map(|name| subject.process(pod, name)).collect()
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process is there");
}

fn lines(subject: &Subject, pod: &str) -> Vec<u64> {
    let printed = subject.cmd(["logs", pod, "-c", "counter"]).ok().stdout;
    // The last line may be incomplete.
    printed.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')?.parse().ok()).collect()
}

/// How near the guest's clock is to the host's, in seconds. The time in a request ages on its way, in the lab for some seconds.
fn near() -> i64 {
    if magikvm_lab::is_inside() { 6 } else { 1 }
}

/// Signals of other processes, such as a debugger.
fn after_a_standstill_the_guest_goes_on_and_knows_the_time(subject: &Subject) {
    subject.start(&Pod::simple("still").script("counter", COUNTER));
    assert!(off_by(subject, "still", "web").abs() <= 1);
    let at_start = clocks(subject, "still").len();
    let vm = vm(subject, "still");
    vm.iter().for_each(|&pid| signal(pid, Signal::SIGSTOP));
    subject.wait_for_phase("still", "Paused");
    let begun = Instant::now();
    subject
        .cmd(["exec", "still", "-c", "web", "--", "true"])
        .fails(1)
        .complains("pod default/still is paused");
    let printed = lines(subject, "still").len();
    // This is not a wait for an event: the test is that nothing happens in this time.
    std::thread::sleep(LONG.saturating_sub(begun.elapsed()));
    assert_eq!(subject.phase("still"), "Paused");
    assert_eq!(lines(subject, "still").len(), printed);
    vm.iter().rev().for_each(|&pid| signal(pid, Signal::SIGCONT));
    subject.wait_for_phase("still", "Running");
    until("it was told the time", || clocks(subject, "still").len() > at_start);
    let off = off_by(subject, "still", "web");
    assert!(off.abs() <= near(), "the guest's clock is {off} s ahead: {:?}", clocks(subject, "still"));
    until("it goes on", || lines(subject, "still").len() > printed + 100);
    let all = lines(subject, "still");
    assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1), "no line is lost");
    subject.cmd(["stop", "--grace", "1", "still"]).ok();
    subject.cmd(["rm", "still"]).ok();
    subject.assert_as_new();
}

fn pause_and_resume(subject: &Subject) {
    subject.start(&Pod::simple("still").script("counter", COUNTER));
    let mut session = subject
        .cmd(["exec", "still", "-c", "web", "--", "sh", "-c"])
        .arg("echo before; while ! [ -e /tmp/go ]; do sleep 0.05; done; echo after; exit 7")
        .spawn();
    session.wait_for_stdout("before");
    let vm = vm(subject, "still");
    for _ in 0..3 {
        subject.cmd(["pause", "still"]).ok();
        assert!(vm.iter().copied().all(is_stopped), "when `pause` returns, the whole VM is paused");
        assert_eq!(subject.phase("still"), "Paused");
        subject
            .cmd(["stats", "still"])
            .fails(1)
            .complains("Hint: Resume it with `magikvm resume default/still`.");
        subject.cmd(["resume", "still"]).ok();
        assert!(!vm.iter().copied().any(is_stopped));
        subject.cmd(["stats", "still"]).ok();
    }
    subject.sh("still", "web", "touch /tmp/go");
    assert_eq!(session.wait().expect_code(7).stdout, "before\nafter\n");

    subject.cmd(["pause", "still"]).ok();
    subject.cmd(["stop", "--grace", "1", "still"]).ok();
    let pod = subject.inspect("still").unwrap();
    assert!(pod["status"]["reason"].is_null(), "a paused pod ends in order: {}", pod["status"]);
    let all = lines(subject, "still");
    assert!(all.windows(2).all(|pair| pair[1] == pair[0] + 1) && all.first() == Some(&1), "no line is lost");
    subject.cmd(["rm", "still"]).ok();
    subject.assert_as_new();

    subject.start(&Pod::simple("still"));
    let vm = self::vm(subject, "still");
    subject.cmd(["pause", "still"]).ok();
    signal(subject.process("still", "monitor"), Signal::SIGKILL);
    subject.wait_for_phase("still", "Lost");
    until("the VM has ended with its monitor", || !vm.iter().copied().any(is_alive));
    subject.cmd(["rm", "still"]).ok();
    subject.assert_as_new();
}

/// A container that may set the clock sets only that of its pod, and no deadline depends on it. A pause corrects the clock.
fn a_guests_clock_may_jump(subject: &Subject) {
    let sets = |pod: Pod| pod.with("securityContext/capabilities/add", serde_json::json!(["SYS_TIME"]));
    let jumps = "trap '' TERM; echo up; while :; do date -s @0; date -s @4000000000; done";
    subject.start(&sets(Pod::simple("jumpy").script("setter", "exec sleep 1000")));
    subject
        .cmd(["exec", "jumpy", "-c", "web", "--", "date", "-s", "@0"])
        .ok()
        .complains("Operation not permitted");
    subject.sh("jumpy", "setter", &format!("date -s @{FAR}"));
    let years = off_by(subject, "jumpy", "web");
    assert!((now() + years - FAR).abs() < 60, "the other container sees it too: {years} s");
    // The host's records use the host's clock.
    subject.cmd(["kill", "-s", "KILL", "jumpy", "-c", "setter"]).ok();
    until("its end was seen", || {
        subject.cmd(["events", "jumpy"]).ok().stdout.contains("setter: killed by signal 9")
    });
    let shown = subject.cmd(["events", "jumpy"]).ok().stdout;
    assert!(!shown.contains("2040-"), "{shown}");
    let ended = || {
        let status = subject.inspect("jumpy").unwrap()["status"].clone();
        status["containerStatuses"][1]["state"]["terminated"].clone()
    };
    until("its end is in the status", || ended()["finishedAt"].is_string());
    let ended = ended();
    assert!(!ended["finishedAt"].as_str().unwrap().starts_with("2040"), "{ended}");
    let begun = Instant::now();
    subject.cmd(["exec", "jumpy", "-c", "web", "--timeout", "1", "--", "sleep", "100"]).fails(124);
    assert!(begun.elapsed() < Duration::from_secs(60), "{:?}", begun.elapsed());

    subject.cmd(["pause", "jumpy"]).ok();
    subject.cmd(["resume", "jumpy"]).ok();
    until("the guest says that it was ahead", || {
        clocks(subject, "jumpy").last().is_some_and(|last| last.ends_with(" s ahead and has been set"))
    });
    let off = off_by(subject, "jumpy", "web");
    assert!(off.abs() <= near(), "the guest's clock is {off} s ahead: {:?}", clocks(subject, "jumpy"));
    subject.cmd(["rm", "-f", "jumpy"]).ok();
    subject.assert_as_new();

    subject.start(&sets(Pod::new("jumpy").script("setter", jumps)));
    until("it jumps", || subject.cmd(["logs", "jumpy"]).ok().stdout.contains("UTC 2096"));
    let begun = Instant::now();
    subject.cmd(["stop", "--grace", "3", "jumpy"]).ok();
    let took = begun.elapsed();
    assert!((Duration::from_secs(3)..subject.seconds(30)).contains(&took), "{took:?}");
    let status = subject.inspect("jumpy").unwrap()["status"].clone();
    assert_eq!(status["containerStatuses"][0]["state"]["terminated"]["signal"], 9, "{status}");
    assert!(status["reason"].is_null(), "the guest ended by itself: {status}");
    subject.cmd(["rm", "jumpy"]).ok();
    subject.assert_as_new();
}
