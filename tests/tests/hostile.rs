//! Guests that lie, flood, hang or send garbage: each harms only its own pod, within bounds of time and space, and leaves nothing.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::leaks::Holdings;
use magikvm_tests::processes::memory_kib;
use magikvm_tests::wait::wait_for;
use magikvm_tests::{Host, Output, Pod};
use nix::sys::signal::Signal;
use std::path::Path;
use std::time::{Duration, Instant};

/// Largest peak resident size of a monitor in KiB, whatever its guest does. Most of it are pages of the debug build.
const MONITOR_KIB: u64 = 64 << 10;
/// Largest size of a pod's files in bytes: the console's two halves, the events, and little else.
const POD_BYTES: u64 = 8 << 20;

/// A failing run, with its stage and a part of its message.
struct Case {
    manner: &'static str,
    stage: &'static str,
    message: &'static str,
}

const QUICK: [Case; 8] = [
    Case {
        manner: "panic",
        stage: "boot",
        message: "the sandbox ended before its agent answered: the guest's kernel panicked: no init",
    },
    Case { manner: "garbage", stage: "agent", message: "sent something that is not an answer" },
    Case { manner: "endless-line", stage: "agent", message: "a line is longer than 65536 bytes" },
    Case {
        manner: "generation",
        stage: "agent",
        message: "the pod's supervisor speaks generation 99 of the wire",
    },
    Case {
        manner: "unknown-container",
        stage: "agent",
        message: "it reports a container nobody that the pod does not have",
    },
    Case {
        manner: "container-fails",
        stage: "container",
        message: "container side could not be started: no such",
    },
    Case {
        manner: "container-fails-at-length",
        stage: "container",
        message: "container side could not be started: no such",
    },
    Case {
        manner: "vanish",
        stage: "agent",
        message: "the sandbox ended before all containers ran: fake exited with 7",
    },
];

fn two(name: &str) -> Pod {
    Pod::simple(name).container("side", &["app"])
}

/// Runs a pod whose start fails, and checks the message and that nothing is left.
fn check_failure(host: &Host, before: &Holdings, case: &Case) -> Output {
    let output =
        host.run_fake(&two(case.manner), case.manner).arg("-d").limit(Duration::from_secs(100)).run();
    let text = output.transcript();
    assert!(matches!(output.code, 1 | 3 | 70), "{}: {text}", case.manner);
    assert!(output.stderr.contains(&format!("(stage: {})", case.stage)), "{}: {text}", case.manner);
    assert!(output.stderr.contains(case.message), "{}: {text}", case.manner);
    let driving = output.stderr.chars().find(|c| c.is_control() && *c != '\n' && *c != '\t');
    assert_eq!(driving, None, "{}: the terminal is not the guest's: {text:?}", case.manner);
    assert!(output.stderr.len() < 32 << 10, "{}: {} bytes", case.manner, output.stderr.len());
    assert_eq!(output.stdout, "");
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "");
    host.assert_as_before(before);
    output
}

#[test]
fn a_start_that_cannot_succeed_fails_at_once_with_its_stage() {
    let host = Host::fake();
    let before = host.holdings();
    for case in &QUICK {
        let output = check_failure(&host, &before, case);
        assert!(output.took < Duration::from_secs(20), "{}: {:?}", case.manner, output.took);
    }
    let panicked = host.run_fake(&two("panic"), "panic").run().expect_code(125);
    magikvm_tests::snapshots::assert_golden("failed-boot", &panicked.transcript());
    let failed = host.run_fake(&two("fails"), "container-fails").arg("-d").run();
    magikvm_tests::snapshots::assert_golden("failed-container", &without_created(&failed.transcript()));
}

/// The other container may have been created before this one failed, or not.
fn without_created(text: &str) -> String {
    text.lines().filter(|line| !line.ends_with(": created")).map(|line| format!("{line}\n")).collect()
}

/// The event of a silent guest, which the failure tells too.
const BOOTED_AGAIN: &str = "  the pod's sandbox is started again: its agent did not answer within 30 s";

/// All starts that end by a deadline run at once, so that they cost one minute and not three.
#[test]
fn a_start_that_never_ends_is_given_up() {
    let cases = [
        Case {
            manner: "silent",
            stage: "boot",
            message: "the pod's agent did not answer within 60 s of its start, in two starts",
        },
        Case { manner: "never-ready", stage: "agent", message: "there was no progress for 60 s" },
        Case { manner: "flood-events", stage: "agent", message: "there was no progress for 60 s" },
    ];
    std::thread::scope(|scope| {
        for case in &cases {
            scope.spawn(move || {
                let host = Host::fake();
                let before = host.holdings();
                let output = check_failure(&host, &before, case);
                assert!(output.took < Duration::from_secs(90), "{}: {:?}", case.manner, output.took);
                let boots_again = output.stderr.matches(BOOTED_AGAIN).count();
                assert_eq!(boots_again, usize::from(case.manner == "silent"), "{}", output.transcript());
            });
        }
    });
}

#[test]
fn a_start_is_given_as_long_as_its_user_says() {
    let host = Host::fake();
    let before = host.holdings();
    let run = |timeout: &str| {
        let run = host.run_fake(&two("never-ready"), "never-ready").arg("-d");
        run.args(["--ready-timeout", timeout]).limit(Duration::from_secs(30)).run()
    };
    let output = run("1500ms").expect_code(1);
    let output = output.complains("not all containers ran: there was no progress for 1.5 s");
    let output = output.complains("`magikvm run --ready-timeout 5m`");
    assert!(output.took >= Duration::from_millis(1500), "{:?}", output.took);
    run("soon").expect_code(2).complains("\"soon\" is not a duration (30, 30s, 2m, 1h)");
    run("0s").expect_code(2).complains("\"0s\" is not between 1s and 24h");
    host.assert_as_before(&before);
}

fn bytes_below(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok);
    entries
        .map(|entry| {
            entry
                .metadata()
                .map_or(0, |found| if found.is_dir() { bytes_below(&entry.path()) } else { found.len() })
        })
        .sum()
}

/// A flood fills its cap and does not affect another pod.
fn flood(manner: &str, filled: impl Fn(&Path) -> bool) {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("good"), "run");
    host.start_fake(&Pod::simple("flood"), manner);
    let monitor = host.process("flood", "monitor");
    wait_for("the flood to fill what it may", Duration::from_secs(120), || {
        filled(&host.pod_dir("flood")).then_some(())
    });
    for _ in 0..5 {
        let begun = Instant::now();
        host.cmd(["stats", "good"]).ok();
        host.cmd(["exec", "good", "--", "x"]).ok().prints("x");
        assert!(begun.elapsed() < Duration::from_secs(20), "the other pod answers in {:?}", begun.elapsed());
        assert_eq!(host.phase("flood"), "Running");
    }
    let (memory, files) = (memory_kib(monitor, "VmHWM"), bytes_below(&host.pod_dir("flood")));
    assert!(memory < MONITOR_KIB, "{manner}: the monitor took {memory} KiB");
    assert!(files < POD_BYTES, "{manner}: {files} bytes on disk");
    let stop = host.cmd(["stop", "--grace", "1", "flood"]).ok();
    assert!(stop.took < Duration::from_secs(15), "a flood puts no deadline off: {:?}", stop.took);
    host.cmd(["rm", "flood"]).ok();
    host.cmd(["rm", "-f", "good"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_flooded_console_harms_nobody() {
    flood("flood-console", |dir| dir.join("log/console.1").exists());
}

#[test]
fn flooded_events_harm_nobody() {
    // From then on events are left out.
    let full = |dir: &Path| {
        std::fs::read_to_string(dir.join("events.jsonl"))
            .is_ok_and(|text| text.contains("\"host\":\"omitted\""))
    };
    flood("flood-restarts", full);
}

#[test]
fn a_frame_that_claims_to_be_huge_breaks_its_pod() {
    let host = Host::fake();
    let before = host.holdings();
    let claim = "a frame of kind 0 with the number 16381";
    // The frame may arrive before the pod runs, which fails the start, or later, which ends the pod.
    let run = host.run_fake(&Pod::simple("huge"), "huge-frame").arg("-d").run();
    if run.code == 0 {
        host.wait_for_phase("huge", "Failed");
        let pod = host.inspect("huge").unwrap();
        let why = pod["status"]["message"].as_str().unwrap();
        assert!(why.contains(claim), "{why}");
        host.cmd(["rm", "huge"]).ok();
    } else {
        run.expect_code(1).complains(claim).complains("(stage: agent)");
    }
    host.assert_as_before(&before);
}

/// A connection to a port of the pod: all received bytes, or the error.
fn ask(address: &str) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(b"anybody there?")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}

/// If a guest misuses the port for forwarded connections, each connection is reset, and the pod and its port stay usable.
#[test]
fn forwarded_connections_that_are_none_are_reset() {
    let host = Host::fake();
    let before = host.holdings();
    for (manner, says) in [
        ("forward-garbage", "the pod sent something that is not an answer"),
        ("forward-silent", "the pod did not answer in time"),
        ("forward-flood", "the pod violated the protocol of forwarded connections"),
    ] {
        let run = host.run_fake(&Pod::simple(manner), manner).args(["-d", "--publish", "127.0.0.1::80"]).ok();
        let published = run.stderr.strip_prefix("Published ").and_then(|text| text.split_once("->"));
        let address = published.unwrap_or_else(|| panic!("{}", run.stderr)).0.to_owned();
        let mut forward = host.cmd(["port-forward", manner, ":80"]).spawn();
        forward.wait_for_stdout("-> 80\n");
        let shown = forward.stdout();
        let local = shown.lines().find_map(|line| line.strip_prefix("Forwarding from ")).unwrap();
        let local = local.split_once(' ').unwrap().0;
        std::thread::scope(|scope| {
            for address in [&address, local] {
                scope.spawn(move || {
                    let broken = ask(address).map(|bytes| bytes.len());
                    assert!(broken.is_err(), "{manner}: {broken:?}");
                });
            }
        });
        forward.wait_for_stderr(says);
        forward.signal(Signal::SIGINT);
        let forwarded = forward.wait().expect_code(0);
        assert!(!forwarded.stderr.contains('\x1b'), "{:?}", forwarded.stderr);
        assert_eq!(host.phase(manner), "Running");
        let memory = memory_kib(host.process(manner, "monitor"), "VmHWM");
        assert!(memory < MONITOR_KIB, "{manner}: the monitor took {memory} KiB");
        host.cmd(["rm", "-f", manner]).ok();
    }
    host.assert_as_before(&before);
}

#[test]
fn a_guest_that_does_not_end_is_ended() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("immortal"), "immortal");
    let begun = Instant::now();
    host.cmd(["stop", "--grace", "1", "immortal"]).ok();
    let took = begun.elapsed();
    assert!((Duration::from_secs(8)..Duration::from_secs(35)).contains(&took), "{took:?}");
    let pod = host.inspect("immortal").unwrap();
    assert_eq!(pod["status"]["message"], "the pod did not end in time and was killed");
    assert_eq!(host.phase("immortal"), "Failed");
    host.cmd(["rm", "immortal"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn the_second_interrupt_shortens_the_grace() {
    let host = Host::fake();
    let before = host.holdings();
    let pod = Pod::simple("stubborn").set("spec/terminationGracePeriodSeconds", 300);
    let mut running = host.run_fake(&pod, "immortal").spawn();
    running.wait_for_stdout("hello from web");
    running.signal(Signal::SIGINT);
    running.wait_for_stderr("Stopping pod");
    running.signal(Signal::SIGINT);
    running.wait().expect_code(125).complains("was killed");
    host.cmd(["rm", "stubborn"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_hanging_guest_hangs_no_command() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("frozen"), "deaf");
    let begun = Instant::now();
    host.cmd(["stats", "frozen"]).fails(70).complains("did not answer within 30 s");
    assert!(begun.elapsed() < Duration::from_secs(39));
    host.cmd(["ps"]).ok();
    host.cmd(["logs", "frozen"]).ok();
    host.cmd(["events", "frozen"])
        .ok()
        .prints("clock: the pod did not get the time: the pod's agent did not answer");
    host.cmd(["rm", "-f", "frozen"]).limit(Duration::from_secs(60)).ok();
}
