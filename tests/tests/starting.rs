//! Pods that are being started: what other verbs say meanwhile, what becomes of a start that somebody ends, and starts that limits or
//! panics of the host's part cut short.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::command::Running;
use magikvm_tests::processes::{is_alive, of_directory};
use magikvm_tests::wait::until;
use magikvm_tests::{Host, Pod};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::time::Duration;

/// The points of a start at which there is no pod yet for others.
const POINTS: [&str; 4] = ["reserve", "record", "prepare", "start"];

/// A run that waits at a point of its start.
struct Held<'a> {
    run: Running,
    host: &'a Host,
}

impl<'a> Held<'a> {
    fn at(host: &'a Host, point: &str, manner: &str) -> Self {
        let hold = host.file("hold");
        fs::write(&hold, "").unwrap();
        fs::remove_file(host.file("hold.reached")).ok();
        let run = host.run_fake(&Pod::simple("pod"), manner).arg("-d");
        let run = run.env("MAGIKVM_FAULT", format!("{point}=hold")).env("MAGIKVM_HOLD", &hold).spawn();
        until(&format!("the start is at {point}"), || host.file("hold.reached").exists());
        Self { run, host }
    }

    fn go_on(self) -> Running {
        fs::remove_file(self.host.file("hold")).unwrap();
        self.run
    }
}

#[test]
fn while_a_pod_starts_every_verb_says_so() {
    let host = Host::fake();
    let before = host.holdings();
    for point in POINTS {
        let held = Held::at(&host, point, "run");
        assert_eq!(host.phase("pod"), "Pending", "{point}");
        for verb in [
            &["exec", "pod", "--", "true"][..],
            &["attach", "pod"],
            &["kill", "pod"],
            &["logs", "pod"],
            &["stats", "pod"],
            &["port-forward", "pod", ":80"],
            &["pause", "pod"],
            &["resume", "pod"],
        ] {
            let output = host.cmd(verb).run();
            assert_eq!(
                output.code,
                if verb[0] == "exec" { output.code } else { 1 },
                "{point}: {}",
                output.transcript()
            );
            output.complains("pod default/pod is being started");
        }
        host.cmd(["rm", "pod"]).fails(1);
        held.go_on().wait().expect_code(0);
        host.cmd(["exec", "pod", "--", "true"]).run();
        host.cmd(["rm", "-f", "pod"]).ok();
        host.assert_as_before(&before);
    }
}

/// Whether a monitor serves a client on its socket, each of which has a thread.
fn has_client(host: &Host) -> bool {
    let processes = of_directory(&host.root());
    let monitor = processes.iter().find(|process| process.command.contains("__monitor")).expect("a monitor");
    let threads = fs::read_dir(format!("/proc/{}/task", monitor.pid)).into_iter().flatten();
    threads
        .filter_map(Result::ok)
        .any(|thread| fs::read_to_string(thread.path().join("comm")).is_ok_and(|name| name == "client\n"))
}

#[test]
fn a_run_says_that_its_pod_was_removed_or_stopped() {
    let host = Host::fake();
    let before = host.holdings();
    for point in POINTS {
        for verb in [&["rm", "-f", "pod"][..], &["stop", "pod"]] {
            let held = Held::at(&host, point, "run");
            let ending = host.cmd(verb).spawn();
            // The request waits at the monitor's socket until the start goes on.
            until("the request is at the monitor", || has_client(&host));
            let run = held.go_on().wait();
            run.expect_code(1).complains("stopped or removed while it was being started");
            ending.wait().expect_code(0);
            host.assert_as_before(&before);
        }
    }
}

#[test]
fn a_run_whose_pod_is_removed_at_any_moment_ends_with_words() {
    let host = Host::fake();
    let before = host.holdings();
    for round in 0..24 {
        let run = host.run_fake(&Pod::simple("pod"), "run").arg("-d").spawn();
        // Each round is a little later than the one before.
        let mut seen = 0;
        until("the pod is there", || {
            seen += usize::from(host.pod_dir("pod").exists());
            seen > round
        });
        host.cmd(["rm", "-f", "pod"]).ok();
        let run = run.wait();
        assert!(
            run.code == 0 || (run.code == 1 && run.stderr.contains("removed while it was being started")),
            "round {round}: {}",
            run.transcript()
        );
        host.assert_as_before(&before);
    }
}

#[test]
fn a_start_whose_directory_vanishes_leaves_nothing() {
    let host = Host::fake();
    let before = host.holdings();
    for point in ["prepare", "start"] {
        let held = Held::at(&host, point, "run");
        host.remove(&host.pod_dir("pod"));
        let run = held.go_on().wait();
        assert!([1, 3].contains(&run.code), "{}", run.transcript());
        host.assert_as_before(&before);
    }
}

#[test]
fn a_monitor_that_panics_leaves_nothing_of_its_pod() {
    let host = Host::fake();
    let before = host.holdings();
    for point in POINTS.into_iter().chain(["ready"]) {
        let run = host.run_fake(&Pod::simple("pod"), "run").env("MAGIKVM_FAULT", format!("{point}=panic"));
        run.arg("-d").fails(70).complains("panicked: fault injected").complains("Reason: MonitorFailed");
        host.assert_as_before(&before);
    }
}

#[test]
fn a_guest_that_waits_to_be_heard_still_hears_a_signal() {
    let host = Host::fake();
    let held = Held::at(&host, "start", "exit=0");
    let guest =
        of_directory(&host.root()).into_iter().find(|process| process.command.contains("__fake-guest"));
    let guest = guest.expect("the guest").pid;
    until("the guest has ended", || {
        kill(Pid::from_raw(guest), Signal::SIGTERM).ok();
        !is_alive(guest)
    });
    held.go_on().wait();
    host.cmd(["rm", "-f", "pod"]).run();
}

/// Runs a pod under a limit of the shell; it either runs or fails with these words, and leaves nothing.
fn run_under(host: &Host, limit: &str, words: &str) -> bool {
    let before = host.holdings();
    let manifest = host.manifest(&Pod::simple("pod"));
    let script = format!("{limit}; exec \"$0\" run --vmm fake -d \"$1\"");
    let shell = host.other("/bin/bash").args(["-c", &script]).arg(magikvm_tests::host::program());
    let output = shell.arg(manifest).env("MAGIKVM_FAKE", "run").limit(Duration::from_secs(20)).run();
    let runs = output.code == 0;
    if runs {
        host.cmd(["rm", "-f", "pod"]).ok();
    } else if ![127, 139].contains(&output.code) {
        // The system's loader ends in these ways where there is no room for the program itself.
        assert_eq!(output.code, 3, "{limit}: {}", output.transcript());
        assert!(output.stderr.contains(words), "{limit}: {}", output.transcript());
    }
    host.assert_as_before(&before);
    runs
}

#[test]
fn limits_that_are_too_low_are_said_and_leave_nothing() {
    let host = Host::fake();
    for files in [10, 20, 50, 100] {
        assert!(!run_under(&host, &format!("ulimit -n {files}"), "`ulimit -n 1024`"));
    }
    assert!(run_under(&host, "ulimit -S -n 20", ""), "a soft limit is raised");
    for space in [20_000, 100_000, 500_000] {
        assert!(!run_under(&host, &format!("ulimit -v {space}"), "`ulimit -v unlimited`"));
    }
}

/// Without the check before the start, the limit is met at every thread and process of the start in turn.
#[test]
fn a_limit_of_processes_is_an_error_wherever_it_is_met() {
    const USER: u32 = 61_235;
    let host = Host::fake();
    let manifest = host.manifest(&Pod::simple("pod"));
    let mut ran = false;
    for tasks in 3..=48 {
        for check in ["limits", "none"] {
            host.as_user(USER, ["ps"]).ok();
            let before = host.holdings();
            let script = format!(
                "exec setpriv --reuid={USER} --regid={USER} --clear-groups prlimit --nproc={tasks} \"$0\" run --vmm fake -d \"$1\""
            );
            let shell = host.other("/bin/bash").args(["-c", &script]).arg(host.file("magikvm"));
            let run = shell.arg(&manifest).env("MAGIKVM_FAKE", "run").env("MAGIKVM_FAULT", check);
            let output = run.limit(Duration::from_secs(30)).run();
            if output.code == 0 {
                ran = true;
                host.as_user(USER, ["rm", "-f", "pod"]).ok();
            } else {
                assert_ne!(output.code, 101, "{tasks}: {}", output.transcript());
                assert!(!output.stderr.contains("AgentSilent"), "{tasks}: {}", output.transcript());
                if check == "none" && tasks <= 32 {
                    output.expect_code(3).complains("`ulimit -u`");
                }
            }
            host.assert_as_before(&before);
        }
    }
    assert!(ran, "the largest of these limits is enough");
}
