//! Pods that are paused and resumed, by requests or by signals of other processes, with the fake guest: their reports, the verbs that work on
//! them, their ends, and their guests' clocks.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::processes::{is_alive, is_stopped};
use magikvm_tests::wait::until;
use magikvm_tests::{Host, Pod, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::time::{Duration, Instant};

/// Time limit for a command on a paused pod.
const AT_ONCE: Duration = Duration::from_secs(5);

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process is there");
}

/// The output of `events` without the times.
fn events(host: &Host, pod: &str) -> Vec<String> {
    let shown = host.cmd(["events", pod]).ok().stdout;
    shown.lines().map(|line| line.split_once("  ").expect("a time and an event").1.to_owned()).collect()
}

fn count(host: &Host, pod: &str, event: &str) -> usize {
    events(host, pod).iter().filter(|shown| *shown == event).count()
}

#[test]
fn a_paused_pod_stands_still_and_says_so() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("still"), "run");
    let guest = host.process("still", "fake");
    for round in 1..=3 {
        host.cmd(["pause", "still"]).ok();
        assert!(is_stopped(guest), "when `pause` returns, the guest stands");
        assert_eq!(host.phase("still"), "Paused");
        host.cmd(["pause", "still"]).ok();
        host.cmd(["resume", "still"]).ok();
        assert!(!is_stopped(guest), "when `resume` returns, it runs");
        assert_eq!(host.phase("still"), "Running");
        host.cmd(["resume", "still"]).ok();
        host.cmd(["exec", "still", "--", "x"]).ok().prints("x");
        until("the guest was told the time", || {
            count(&host, "still", "clock: the pod's clock was right") == round
        });
        assert_eq!((count(&host, "still", "paused"), count(&host, "still", "resumed")), (round, round));
    }
    host.cmd(["stop", "still"]).ok();
    assert_eq!(host.cmd(["wait", "still"]).ok().stdout, "143\n");
    host.cmd(["rm", "still"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn kubernetes_is_told_in_its_words() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("still"), "run");
    let ready = |pod: &Value| {
        let conditions = pod["status"]["conditions"].as_array().unwrap().clone();
        conditions.into_iter().find(|condition| condition["type"] == "Ready").expect("it has that condition")
    };
    let running = host.inspect("still").unwrap();
    assert_eq!(
        (ready(&running)["status"].clone(), running["status"]["reason"].clone()),
        ("True".into(), Value::Null)
    );
    host.cmd(["pause", "still"]).ok();
    let paused = host.inspect("still").unwrap();
    assert_eq!(
        (paused["status"]["phase"].as_str(), paused["status"]["reason"].as_str()),
        (Some("Running"), Some("Paused"))
    );
    assert!(
        paused["status"]["message"].as_str().unwrap().ends_with("`magikvm resume default/still` resumes it")
    );
    assert_eq!(
        (ready(&paused)["status"].as_str(), ready(&paused)["reason"].as_str()),
        (Some("False"), Some("Paused"))
    );
    assert_eq!(paused["status"]["containerStatuses"][0]["ready"], false);
    assert!(paused["status"]["containerStatuses"][0]["state"]["running"].is_object());
    host.cmd(["resume", "still"]).ok();
    assert_eq!(host.inspect("still").unwrap(), running);
}

#[test]
fn what_needs_the_guest_fails_at_once_and_what_does_not_works() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("still"), "run");
    until("the logs are there", || host.cmd(["logs", "still"]).ok().stdout == "hello from web\n");
    let waiter = host.cmd(["wait", "still"]).spawn();
    host.cmd(["pause", "still"]).ok();
    let verbs: [&[&str]; 4] =
        [&["exec", "still", "--", "x"], &["attach", "still"], &["stats", "still"], &["kill", "still"]];
    for verb in verbs {
        let failed = host.cmd(verb).fails(1);
        assert!(failed.took < AT_ONCE, "{verb:?}: {:?}", failed.took);
        failed
            .complains("Error: pod default/still is paused")
            .complains("Hint: Resume it with `magikvm resume default/still`.");
    }
    host.cmd(["logs", "still"]).ok().prints("hello from web");
    host.cmd(["ps", "-o", "json"]).ok().prints("\"Paused\"");
    host.cmd(["rm", "still"]).fails(1).complains("pod default/still is running");
    host.run_fake(&Pod::simple("still"), "run").fails(125).complains("is running");
    host.cmd(["resume", "still"]).ok();
    host.cmd(["kill", "-s", "USR1", "still"]).ok();
    assert_eq!(waiter.wait().expect_code(0).stdout, "138\n");
}

#[test]
fn only_a_running_pod_can_be_paused_or_resumed() {
    let host = Host::fake();
    let starting = host.run_fake(&Pod::simple("early"), "never-ready").arg("-d").spawn();
    host.process("early", "fake");
    host.start_fake(&Pod::simple("ended"), "exit=0");
    host.wait_for_phase("ended", "Succeeded");
    host.start_fake(&Pod::simple("lost"), "run");
    signal(host.process("lost", "monitor"), Signal::SIGKILL);
    host.wait_for_phase("lost", "Lost");
    for verb in ["pause", "resume"] {
        host.cmd([verb, "early"])
            .fails(1)
            .complains("pod default/early is being started")
            .complains("Hint: ");
        host.cmd([verb, "ended"]).fails(1).complains("pod default/ended is not running");
        host.cmd([verb, "lost"]).fails(1).complains("pod default/lost is lost");
        // Each pod has its own result, and a failure does not affect the others.
        let several = host.cmd([verb, "nobody", "ended"]).fails(1);
        several.complains("there is no pod default/nobody").complains("pod default/ended is not running");
    }
    starting.signal(Signal::SIGINT);
    starting.wait().expect_code(130);
}

#[test]
fn a_pod_that_is_being_stopped_cannot_be_paused() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("immortal"), "immortal");
    let stop = host.cmd(["stop", "--grace", "1", "immortal"]).spawn();
    let pause = || host.cmd(["pause", "immortal"]).run();
    wait_for("the pod is being stopped", Duration::from_secs(20), || {
        // A pause that came before the stop is undone by it.
        let output = pause();
        (output.code == 1).then(|| {
            output
                .complains("pod default/immortal could not be paused")
                .complains("Caused by: it is being stopped")
        })
    });
    stop.wait().expect_code(0);
    assert_eq!(host.phase("immortal"), "Failed");
}

#[test]
fn signals_of_another_process_are_seen() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("still"), "run");
    let guest = host.process("still", "fake");
    signal(guest, Signal::SIGSTOP);
    host.wait_for_phase("still", "Paused");
    host.cmd(["exec", "still", "--", "x"]).fails(1).complains("is paused");
    host.cmd(["pause", "still"]).ok();
    signal(guest, Signal::SIGCONT);
    host.wait_for_phase("still", "Running");
    host.cmd(["exec", "still", "--", "x"]).ok();
    // `resume` undoes such a stop too.
    signal(guest, Signal::SIGSTOP);
    host.wait_for_phase("still", "Paused");
    host.cmd(["resume", "still"]).ok();
    assert!(!is_stopped(guest));
    until("the guest was told the time", || count(&host, "still", "clock: the pod's clock was right") == 2);
    host.cmd(["stop", "still"]).ok();
}

#[test]
fn a_paused_pod_is_stopped_as_gently_as_any() {
    let host = Host::fake();
    let before = host.holdings();
    for force in [false, true] {
        host.start_fake(&Pod::simple("still"), "run");
        let guest = host.process("still", "fake");
        host.cmd(["pause", "still"]).ok();
        let begun = Instant::now();
        if force {
            host.cmd(["rm", "-f", "still"]).ok();
        } else {
            host.cmd(["stop", "still"]).ok();
            let pod = host.inspect("still").unwrap();
            let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
            assert_eq!((ended["exitCode"].as_i64(), &pod["status"]["reason"]), (Some(143), &Value::Null));
            host.cmd(["rm", "still"]).ok();
        }
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        assert!(!is_alive(guest));
        host.assert_as_before(&before);
    }
}

/// A process that stops the VM again whenever it continues cannot extend the grace period.
#[test]
fn a_pod_that_is_kept_stopped_ends_by_its_deadline() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("held"), "immortal");
    let guest = host.process("held", "fake");
    let begun = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while is_alive(guest) {
                kill(Pid::from_raw(guest), Signal::SIGSTOP).ok();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        host.cmd(["stop", "--grace", "0", "held"]).ok();
    });
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(host.phase("held"), "Failed");
    assert_eq!(
        host.inspect("held").unwrap()["status"]["message"],
        "the pod did not end in time and was killed"
    );
    host.cmd(["rm", "held"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn an_interrupted_foreground_run_of_a_paused_pod_stops_it() {
    let host = Host::fake();
    let before = host.holdings();
    let mut running = host.run_fake(&Pod::simple("still"), "run").arg("--rm").spawn();
    running.wait_for_stdout("hello from web");
    host.cmd(["pause", "still"]).ok();
    running.signal(Signal::SIGINT);
    running.wait().expect_code(143).complains("Stopping pod default/still");
    host.assert_as_before(&before);
}

#[test]
fn a_paused_vm_dies_with_its_monitor() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("still"), "run");
    let guest = host.process("still", "fake");
    let waiter = host.cmd(["wait", "still"]).spawn();
    host.cmd(["pause", "still"]).ok();
    signal(host.process("still", "monitor"), Signal::SIGKILL);
    host.wait_for_phase("still", "Lost");
    until("the VM has gone with its monitor", || !is_alive(guest));
    waiter.wait().expect_code(1).complains("is lost");
    for verb in ["pause", "resume", "stats"] {
        host.cmd([verb, "still"]).fails(1).complains("is lost");
    }
    host.cmd(["rm", "still"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_paused_vm_that_is_killed_has_failed() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("still"), "run");
    host.cmd(["pause", "still"]).ok();
    signal(host.process("still", "fake"), Signal::SIGKILL);
    host.wait_for_phase("still", "Failed");
    let why = host.inspect("still").unwrap()["status"]["message"].clone();
    assert!(why.as_str().unwrap().contains("fake was killed by SIGKILL"), "{why}");
    host.cmd(["rm", "still"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn many_requests_at_once_are_all_answered() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("contested"), "run");
    for _ in 0..3 {
        let requests: Vec<_> = (0..8)
            .map(|n| host.cmd([if n % 2 == 0 { "pause" } else { "resume" }, "contested"]).spawn())
            .collect();
        for request in requests {
            let output = request.wait();
            if output.code != 0 {
                output.expect_code(1).complains("Caused by: another request came after this one");
            }
        }
    }
    host.cmd(["resume", "contested"]).ok();
    host.cmd(["exec", "contested", "--", "x"]).ok();
    assert_eq!(host.phase("contested"), "Running");
    host.cmd(["rm", "-f", "contested"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_start_that_somebody_has_stopped_fails_in_its_time() {
    let host = Host::fake();
    let before = host.holdings();
    let running =
        host.run_fake(&Pod::simple("early"), "silent").arg("-d").limit(Duration::from_secs(100)).spawn();
    signal(host.process("early", "fake"), Signal::SIGSTOP);
    assert_eq!(host.phase("early"), "Pending");
    let output = running.wait().expect_code(70);
    let output = output
        .complains(
            "the pod's agent did not answer within 60 s of its start; its processes were stopped by a signal",
        )
        .complains("(stage: boot)");
    assert!(output.took < Duration::from_secs(75), "{:?}", output.took);
    host.assert_as_before(&before);
}

/// A message must be complete within 30 s of its beginning, unless the VM is paused meanwhile.
#[test]
fn a_pause_in_the_middle_of_a_message_breaks_nothing() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("still"), "slow-frame");
    host.cmd(["pause", "still"]).ok();
    assert_eq!(host.cmd(["logs", "still"]).ok().stdout, "", "it is in the middle");
    // This is not a wait for an event: the test is that nothing happens in this time.
    std::thread::sleep(Duration::from_secs(33));
    assert_eq!(host.phase("still"), "Paused");
    host.cmd(["resume", "still"]).ok();
    until("the rest has come", || {
        host.cmd(["logs", "still"]).ok().stdout == "one half, other\nhello from web\n"
    });
    assert_eq!(host.phase("still"), "Running");
}

#[test]
fn a_clock_that_is_off_is_set_and_that_is_written_down() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("late"), "late-clock");
    let set = "clock: the pod's clock was 30.0 s behind and has been set";
    assert_eq!(count(&host, "late", set), 1, "it was told the time before the pod was said to run");
    host.cmd(["pause", "late"]).ok();
    host.cmd(["resume", "late"]).ok();
    until("and again", || count(&host, "late", "clock: the pod's clock was right") == 1);
    host.cmd(["events", "--json", "late"])
        .ok()
        .prints(r#""host":"clock","after":"start","offset_ms":-30012}"#);
}

/// Whatever a guest does with the time, its pod lives on and an event reports it.
#[test]
fn guests_that_make_nothing_of_the_time() {
    for (manner, at_start, said) in [
        ("lying-clock", 1, "clock: the pod's clock was 9223372036854775.8 s behind and has been set"),
        (
            "garbage-clock",
            1,
            "clock: the pod did not get the time: the pod's agent sent something that is not an answer",
        ),
        (
            "no-clock",
            0,
            "clock: the pod did not get the time: the pod's supervisor is too old to be told the time",
        ),
        ("deaf", 1, "clock: the pod did not get the time: the pod's agent did not answer within 5 s"),
    ] {
        let host = Host::fake();
        let before = host.holdings();
        host.start_fake(&Pod::simple("odd"), manner);
        let told = || events(&host, "odd").iter().filter(|event| event.starts_with(said)).count();
        assert_eq!(told(), at_start, "{manner}: it was told the time before the pod was said to run");
        host.cmd(["pause", "odd"]).ok();
        host.cmd(["resume", "odd"]).ok();
        until("and again", || told() == at_start + 1);
        assert_eq!(host.phase("odd"), "Running", "{manner}");
        let shown = host.cmd(["events", "odd"]).ok().stdout;
        assert!(!shown.contains('\x1b'), "{manner}: the terminal is not the guest's: {shown:?}");
        host.cmd(["rm", "-f", "odd"]).ok();
        host.assert_as_before(&before);
    }
}
