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
const POINTS: [&str; 5] = ["reserve", "record", "prepare", "start", "reboot"];

/// How a guest has to behave so that its start comes to this point.
fn manner(point: &str) -> &'static str {
    if point == "reboot" { "silent-once" } else { "run" }
}

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
        let held = Held::at(&host, point, manner(point));
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
            let held = Held::at(&host, point, manner(point));
            let ending = host.cmd(verb).spawn();
            // The request waits at the monitor's socket until the start goes on.
            until("the request is at the monitor", || has_client(&host));
            let run = held.go_on().wait();
            run.expect_code(1).complains("removed while it was being started");
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
        let held = Held::at(&host, point, manner(point));
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
        let run = host.run_fake(&Pod::simple("pod"), manner(point));
        let run = run.env("MAGIKVM_FAULT", format!("{point}=panic"));
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

/// The size of the released program: the one under test has its symbols and more.
fn stripped(host: &Host) -> std::path::PathBuf {
    let path = host.file("stripped");
    host.other("strip").args(["--strip-all", "-o"]).arg(&path).arg(magikvm_tests::host::program()).ok();
    path
}

/// Runs a verb under a limit of the shell. It does its work, or ends with an error. Returns the error; `None`: there was no room for the program
/// itself, which the system's loader says.
fn verb_under(host: &Host, program: &std::path::Path, limit: &str, words: &[&str]) -> Option<String> {
    let script = format!("{limit}; exec \"$0\" \"$@\"");
    let output = host.other("/bin/bash").args(["-c", &script]).arg(program).args(words).run();
    let told = format!("{limit}, {words:?}: {}", output.transcript());
    assert!(!output.stderr.contains("panicked"), "{told}");
    match output.code {
        0 => Some(String::new()),
        127 | 134 | 139 => None,
        _ => {
            assert!(output.stderr.starts_with("Error: "), "{told}");
            Some(output.stderr)
        }
    }
}

#[test]
fn a_program_of_the_released_size_says_which_limit_is_too_low() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("web"), "run");
    let before = host.holdings();
    let program = stripped(&host);
    let manifest = host.manifest(&Pod::simple("other")).to_string_lossy().into_owned();
    let verbs: [&[&str]; 7] = [
        &["run", "--vmm", "fake", "-d", &manifest],
        &["ps"],
        &["inspect", "web"],
        &["logs", "web"],
        &["exec", "web", "--", "x"],
        &["events", "web"],
        &["image", "ls"],
    ];
    // From what the loader refuses to more than a verb takes, in steps of less than a thread's stack.
    let worked = |verb: &[&str]| {
        let mut loads = 0;
        for space in (16_000..250_000).step_by(3000) {
            match verb_under(&host, &program, &format!("ulimit -v {space}"), verb) {
                Some(error) if error.is_empty() => return loads,
                Some(error) => {
                    assert!(error.contains("Hint: Lift the limit of address space with"), "{space}: {error}");
                    loads += 1;
                }
                None => assert_eq!(loads, 0, "{space}: it was loaded with less"),
            }
        }
        loads
    };
    for verb in verbs {
        // It was refused at first, and some of them then worked.
        let refusals = worked(verb);
        assert!(refusals > 5, "{verb:?}: {refusals} refusals");
        host.assert_as_before(&before);
    }
    for verb in &verbs[1..] {
        for files in [4, 6, 10, 20, 100] {
            verb_under(&host, &program, &format!("ulimit -n {files}"), verb);
        }
    }
    host.assert_as_before(&before);
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

#[test]
fn a_foreground_run_shows_the_output_of_init_containers_as_it_comes() {
    let host = Host::fake();
    let before = host.holdings();
    let pod = Pod::simple("pod").init_script("setup", "", None).init_script("slow", "", None);
    let mut run = host.run_fake(&pod, "run").env("MAGIKVM_QUIET", "").spawn();
    run.wait_for_stdout("setup | hello from setup");
    run.wait_for_stdout("slow  | hello from slow");
    host.wait_for_phase("pod", "Init:1/2");
    run.signal(Signal::SIGINT);
    run.wait_for_stderr("Cancelling the start of pod default/pod; interrupt again to kill it.");
    run.wait().expect_code(130).complains("the run was cancelled before the pod was up");
    host.assert_as_before(&before);
    // What follows comes after it, and nothing comes twice.
    let pod = Pod::simple("pod").init_script("setup", "", None);
    let run = host.run_fake(&pod, "exit=0").args(["--rm", "--no-prefix"]).ok();
    assert_eq!(run.stdout, "hello from setup\nhello from web\n");
    let failed = host.run_fake(&Pod::simple("pod").init_script("bad", "", None), "run").fails(125);
    // The report of the failure has its last lines in any case.
    failed.complains("hello from bad").complains("init container bad failed with exit code 3");
    host.assert_as_before(&before);
}

#[test]
fn the_start_of_a_pod_is_when_it_was_accepted() {
    let host = Host::fake();
    let held = Held::at(&host, "reserve", "run");
    let now = || {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        since.as_secs()
    };
    let accepted = now();
    until("the next second has begun", || now() > accepted + 1);
    held.go_on().wait().expect_code(0);
    let pod = host.inspect("pod").unwrap();
    let (made, started) = (&pod["metadata"]["creationTimestamp"], &pod["status"]["startTime"]);
    let running = &pod["status"]["containerStatuses"][0]["state"]["running"]["startedAt"];
    assert!(made == started && started.as_str() < running.as_str(), "{made} {started} {running}");
}

#[test]
fn a_monitor_that_is_killed_says_how_far_the_start_was() {
    for (name, stage) in [("slow", "container"), ("", "boot")] {
        let host = Host::fake();
        let before = host.holdings();
        let pod =
            if name.is_empty() { Pod::simple("pod") } else { Pod::simple("pod").init_script(name, "", None) };
        let run = host.run_fake(&pod, if name.is_empty() { "silent" } else { "run" }).arg("-d").spawn();
        let monitor = host.process("pod", "monitor");
        until("it has come so far", || name.is_empty() || host.phase("pod") == "Init:0/1");
        until("the init container runs", || {
            name.is_empty() || host.cmd(["logs", "pod"]).run().stdout.contains("hello from slow")
        });
        kill(Pid::from_raw(monitor), Signal::SIGKILL).unwrap();
        run.wait()
            .expect_code(70)
            .complains(&format!("the pod's monitor ended before the pod ran (stage: {stage})"));
        host.cmd(["rm", "-f", "pod"]).ok();
        host.assert_as_before(&before);
    }
}

#[test]
fn ps_shows_that_a_pod_is_being_stopped() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("pod"), "immortal");
    let stop = host.cmd(["stop", "--grace", "60", "pod"]).spawn();
    host.wait_for_phase("pod", "Terminating");
    assert_eq!(host.inspect("pod").unwrap()["status"]["phase"], "Running");
    host.cmd(["rm", "-f", "pod"]).ok();
    stop.wait();
}
