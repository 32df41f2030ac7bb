//! Lives of pods, with the fake guest: codes, names, concurrency, signals, and the deaths of the processes involved.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::processes::is_alive;
use magikvm_tests::wait::until;
use magikvm_tests::{Host, Pod, Running};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::time::Duration;

fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the process is there");
}

#[test]
fn a_foreground_run_shows_the_logs_and_exits_with_the_pods_code() {
    let host = Host::fake();
    for code in [0, 3, 255] {
        let pod = Pod::new(&format!("exits-{code}")).container("web", &["app"]).container("side", &["app"]);
        let output = host.run_fake(&pod, &format!("exit={code}")).run().expect_code(code);
        let mut lines: Vec<&str> = output.stdout.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["side | hello from side", "web  | hello from web"]);
        assert_eq!(output.stderr, "");
        assert_eq!(host.phase(pod.name()), if code == 0 { "Succeeded" } else { "Failed" });
        assert_eq!(host.cmd(["wait", pod.name()]).ok().stdout, format!("{code}\n"));
    }
    let bare = host.run_fake(&Pod::simple("bare"), "exit=0").arg("--no-prefix").ok();
    assert_eq!(bare.stdout, "hello from web\n");
}

#[test]
fn a_manifest_may_come_from_standard_input() {
    let host = Host::fake();
    let output = host.cmd(["run", "--vmm", "fake", "-d", "-"]).input(Pod::simple("piped").text()).ok();
    assert_eq!(output.stdout, "default/piped\n");
    assert_eq!(host.phase("piped"), "Running");
}

#[test]
fn namespaces_keep_names_apart() {
    let host = Host::fake();
    let other = Pod::simple("web").set("metadata/namespace", "shop");
    host.start_fake(&Pod::simple("web"), "run");
    assert_eq!(host.run_fake(&other, "run").arg("-d").ok().stdout, "shop/web\n");
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "default/web\nshop/web\n");
    host.cmd(["rm", "-f", "shop/web"]).ok();
    assert_eq!(host.phase("web"), "Running");
}

#[test]
fn a_pod_removed_at_its_end_leaves_nothing() {
    let host = Host::fake();
    let before = host.holdings();
    for round in 0..5 {
        host.run_fake(&Pod::simple("brief"), "exit=4").arg("--rm").fails(4);
        assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "", "round {round}: gone before `run` returns");
    }
    host.run_fake(&Pod::simple("brief"), "exit=0").args(["--rm", "-d"]).ok();
    until("the pod is gone", || host.cmd(["ps", "-q"]).ok().stdout.is_empty());
    host.run_fake(&Pod::simple("brief"), "run").args(["--rm", "-d"]).ok();
    host.cmd(["stop", "brief"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_name_that_is_taken_stays_with_its_pod() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("one"), "run");
    let before = host.holdings();
    let uid = host.inspect("one").unwrap()["metadata"]["uid"].clone();
    let second = host.run_fake(&Pod::simple("one"), "run").arg("-d").fails(1);
    let second = second
        .complains("a pod named default/one is running")
        .complains("Hint: Replace it with `--replace`, remove it first with `magikvm rm -f default/one`");
    assert_eq!(second.stdout, "");
    host.assert_as_before(&before);
    assert_eq!(host.inspect("one").unwrap()["metadata"]["uid"], uid);
    host.cmd(["exec", "one", "--", "x"]).ok();
    host.cmd(["stop", "one"]).ok();
    host.run_fake(&Pod::simple("one"), "run").fails(125).complains("is there (ended)");
}

fn run_at_once(host: &Host, names: &[String]) -> Vec<magikvm_tests::Output> {
    let running: Vec<Running> = names
        .iter()
        .map(|name| host.cmd(["run", "--vmm", "fake", "-d", "-"]).input(Pod::simple(name).text()).spawn())
        .collect();
    running.into_iter().map(Running::wait).collect()
}

#[test]
fn of_sixteen_runs_of_one_name_one_wins() {
    let host = Host::fake();
    let before = host.holdings();
    let names = vec!["same".to_owned(); 16];
    let outputs = run_at_once(&host, &names);
    let codes: Vec<i32> = outputs.iter().map(|output| output.code).collect();
    assert_eq!(codes.iter().filter(|&&code| code == 0).count(), 1, "{codes:?}");
    for output in outputs.iter().filter(|output| output.code != 0) {
        assert!(
            output.code == 1 && output.stderr.contains("a pod named default/same is"),
            "{}",
            output.transcript()
        );
    }
    assert_eq!(host.phase("same"), "Running");
    host.cmd(["rm", "-f", "same"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn sixteen_runs_of_sixteen_names_all_win() {
    let host = Host::fake();
    let before = host.holdings();
    let names: Vec<String> = (0..16).map(|n| format!("pod-{n:02}")).collect();
    for output in run_at_once(&host, &names) {
        output.expect_code(0);
    }
    let listed = host.cmd(["ps"]).ok().stdout;
    assert_eq!(listed.matches("Running").count(), 16, "{listed}");
    host.cmd(["stop"]).args(&names).ok();
    assert_eq!(host.cmd(["wait"]).args(&names).ok().stdout, "143\n".repeat(16));
    host.cmd(["rm"]).args(&names).ok();
    host.assert_as_before(&before);
}

#[test]
fn runs_and_removals_at_once_leave_nothing() {
    let host = Host::fake();
    let before = host.holdings();
    for _ in 0..3 {
        let run = host.run_fake(&Pod::simple("contested"), "run").arg("-d").spawn();
        let removals: Vec<Running> = (0..4).map(|_| host.cmd(["rm", "-f", "contested"]).spawn()).collect();
        // In any order, none of them may hang or leave anything that the last removal does not remove.
        run.wait();
        removals.into_iter().for_each(|removal| drop(removal.wait()));
        host.cmd(["rm", "-f", "contested"]).run();
        host.assert_as_before(&before);
    }
}

#[test]
fn without_its_command_line_a_pod_goes_on() {
    let host = Host::fake();
    let before = host.holdings();
    let mut running = host.run_fake(&Pod::simple("orphan"), "run").spawn();
    running.wait_for_stdout("hello from web");
    running.signal(Signal::SIGKILL);
    assert_eq!(running.wait().code, 137);
    assert_eq!(host.phase("orphan"), "Running");
    host.cmd(["exec", "orphan", "--", "x"]).ok();
    host.cmd(["stop", "orphan"]).ok();
    assert_eq!(host.phase("orphan"), "Failed");
    host.cmd(["rm", "orphan"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn without_its_monitor_a_pod_is_lost_and_can_be_removed() {
    let host = Host::fake();
    let before = host.holdings();
    let mut running = host.run_fake(&Pod::simple("lost"), "run").spawn();
    running.wait_for_stdout("hello from web");
    let guest = host.process("lost", "fake");
    kill9(host.process("lost", "monitor"));
    running
        .wait()
        .expect_code(125)
        .complains("was killed; the pod is lost")
        .complains("Hint: ")
        .complains("magikvm rm default/lost");
    assert_eq!(host.phase("lost"), "Lost");
    let pod = host.inspect("lost").unwrap();
    assert_eq!(
        (pod["status"]["phase"].as_str(), pod["status"]["reason"].as_str()),
        (Some("Unknown"), Some("Lost"))
    );
    let ended = &pod["status"]["containerStatuses"][0];
    assert_eq!(ended["state"]["terminated"]["reason"], "ContainerStatusUnknown", "{ended}");
    assert_eq!((&ended["ready"], &ended["started"]), (&false.into(), &false.into()), "{ended}");
    until("the VM has gone with its monitor", || !is_alive(guest));
    for verb in ["stop", "wait", "stats", "kill"] {
        host.cmd([verb, "lost"]).fails(1).complains("is lost");
    }
    host.cmd(["logs", "lost"]).ok().prints("hello from web");
    host.cmd(["events", "-f", "lost"]).ok().prints("started");
    host.run_fake(&Pod::simple("lost"), "run").fails(125).complains("is there (Lost)");
    host.cmd(["rm", "lost"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_lost_pods_processes_are_killed_by_its_removal() {
    use std::io::Write;
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("lost"), "run");
    kill9(host.process("lost", "monitor"));
    host.wait_for_phase("lost", "Lost");
    // A process of the pod that survived the end of its monitor.
    let survivor = host.other("sleep").arg("1000").spawn();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", survivor.pid())).unwrap();
    let started: u64 =
        stat.rsplit_once(')').unwrap().1.split_ascii_whitespace().nth(19).unwrap().parse().unwrap();
    let step = serde_json::json!({ "undo": "kill_process", "pid": survivor.pid(), "start_time": started, "name": "survivor" });
    let mut journal =
        std::fs::OpenOptions::new().append(true).open(host.pod_dir("lost").join("undo.jsonl")).unwrap();
    writeln!(journal, "{}", serde_json::json!({ "n": 99, "scope": "run", "step": step })).unwrap();
    host.cmd(["rm", "lost"]).ok();
    assert_eq!(survivor.wait().code, 137);
    host.assert_as_before(&before);
}

#[test]
fn without_its_vm_a_pod_has_failed() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("dead"), "run");
    kill9(host.process("dead", "fake"));
    host.wait_for_phase("dead", "Failed");
    let pod = host.inspect("dead").unwrap();
    let why = pod["status"]["message"].as_str().unwrap();
    assert!(why.contains("the sandbox ended while the pod ran: fake was killed by SIGKILL"), "{why}");
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(
        (ended["reason"].as_str(), ended["exitCode"].as_i64()),
        (Some("ContainerStatusUnknown"), Some(137))
    );
    let event = "the pod's sandbox has ended: VmmKilled: the sandbox ended while the pod ran: fake was killed by SIGKILL";
    host.cmd(["events", "dead"]).ok().prints(event);
    host.cmd(["rm", "dead"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_foreground_run_whose_vm_dies_says_so() {
    let host = Host::fake();
    let mut running = host.run_fake(&Pod::simple("dead"), "run").spawn();
    running.wait_for_stdout("hello from web");
    kill9(host.process("dead", "fake"));
    running.wait().expect_code(125).complains("pod default/dead did not end properly").complains("SIGKILL");
}

#[test]
fn signals_to_the_monitor_stop_its_pod() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let host = Host::fake();
        host.start_fake(&Pod::simple("polite"), "run");
        kill(Pid::from_raw(host.process("polite", "monitor")), Signal::SIGHUP).unwrap();
        assert_eq!(host.phase("polite"), "Running");
        kill(Pid::from_raw(host.process("polite", "monitor")), signal).unwrap();
        assert_eq!(host.cmd(["wait", "polite"]).ok().stdout, "143\n");
        assert!(host.inspect("polite").unwrap()["status"]["reason"].is_null());
    }
}

#[test]
fn an_interrupted_foreground_run_stops_its_pod() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let host = Host::fake();
        let before = host.holdings();
        let mut running = host.run_fake(&Pod::simple("short"), "run").arg("--rm").spawn();
        running.wait_for_stdout("hello from web");
        running.signal(signal);
        running.wait().expect_code(143).complains("Stopping pod default/short; interrupt again to kill it.");
        host.assert_as_before(&before);
    }
}

#[test]
fn an_interrupted_start_leaves_nothing() {
    let cases = [
        ("never-ready", "-d", Signal::SIGINT, 130),
        ("silent", "--rm", Signal::SIGINT, 130),
        ("never-ready", "--rm", Signal::SIGTERM, 143),
        ("never-ready", "-d", Signal::SIGHUP, 129),
    ];
    for (manner, options, signal, code) in cases {
        let host = Host::fake();
        let before = host.holdings();
        let running = host.run_fake(&Pod::simple("early"), manner).arg(options).spawn();
        host.process("early", "fake");
        assert_eq!(host.phase("early"), "Pending");
        running.signal(signal);
        let output = running.wait().expect_code(code).complains("cancelled");
        assert!(output.took < Duration::from_secs(20));
        host.assert_as_before(&before);
    }
}

#[test]
fn a_start_can_be_stopped_and_removed_from_elsewhere() {
    let host = Host::fake();
    let before = host.holdings();
    let running = host.run_fake(&Pod::simple("early"), "never-ready").arg("-d").spawn();
    host.process("early", "fake");
    host.cmd(["rm", "early"]).fails(1).complains("pod default/early is being started");
    host.cmd(["rm", "-f", "early"]).ok();
    assert_ne!(running.wait().code, 0);
    host.assert_as_before(&before);
}

#[test]
fn a_killed_start_of_the_command_line_goes_on() {
    let host = Host::fake();
    let before = host.holdings();
    let running = host.run_fake(&Pod::simple("early"), "never-ready").arg("-d").spawn();
    host.process("early", "fake");
    running.signal(Signal::SIGKILL);
    running.wait();
    assert_eq!(host.phase("early"), "Pending");
    host.cmd(["rm", "-f", "early"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_signal_to_a_container_ends_it() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("target"), "run");
    host.cmd(["kill", "-s", "USR1", "target"]).ok();
    assert_eq!(host.cmd(["wait", "target"]).ok().stdout, "138\n");
    assert_eq!(
        host.inspect("target").unwrap()["status"]["containerStatuses"][0]["state"]["terminated"]["signal"],
        10
    );
}

#[test]
fn followers_end_with_the_pod() {
    let host = Host::fake();
    for end in ["stop", "monitor", "rm"] {
        host.start_fake(&Pod::simple("followed"), "run");
        let mut logs = host.cmd(["logs", "-f", "followed"]).spawn();
        let mut events = host.cmd(["events", "-f", "followed"]).spawn();
        let waiter = host.cmd(["wait", "followed"]).spawn();
        logs.wait_for_stdout("hello from web\n");
        events.wait_for_stdout("all containers started");
        match end {
            "stop" => drop(host.cmd(["stop", "followed"]).ok()),
            "rm" => drop(host.cmd(["rm", "-f", "followed"]).ok()),
            _ => kill9(host.process("followed", "monitor")),
        }
        assert_eq!(logs.wait().expect_code(0).stdout, "hello from web\n");
        let events = events.wait().expect_code(0);
        if end == "stop" {
            events.prints("web: killed by signal 15");
            assert_eq!(waiter.wait().expect_code(0).stdout, "143\n");
        } else if end == "monitor" {
            waiter.wait().expect_code(1).complains("is lost");
        } else {
            waiter.wait();
        }
        host.cmd(["rm", "-f", "followed"]).run();
    }
}

#[test]
fn damaged_records_are_shown_and_can_be_removed() {
    let host = Host::fake();
    let before = host.holdings();
    host.start_fake(&Pod::simple("good"), "run");
    for (pod, file, bytes) in [
        ("a", "state.json", "{"),
        ("b", "pod.json", "nonsense"),
        ("c", "state.json", ""),
        ("d", "undo.jsonl", "{\"n\":"),
    ] {
        host.start_fake(&Pod::simple(pod), "exit=0");
        host.wait_for_phase(pod, "Succeeded");
        host.wait_for_monitor_end(pod);
        std::fs::write(host.pod_dir(pod).join(file), bytes).unwrap();
    }
    let listed = host.cmd(["ps"]).ok().stdout;
    assert_eq!(listed.lines().count(), 6, "{listed}");
    assert_eq!((host.phase("good"), host.phase("a")), ("Running".to_owned(), "Damaged".to_owned()));
    host.cmd(["rm", "a", "b", "c", "d"]).ok();
    host.cmd(["rm", "-f", "good"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn state_is_private_and_shaped_as_promised() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::fake();
    host.start_fake(&Pod::simple("private"), "run");
    let dir = host.pod_dir("private");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&dir), 0o700);
    for file in
        ["lock", "pod.json", "state.json", "undo.jsonl", "control.sock", "events.jsonl", "log/web.log"]
    {
        assert_eq!(mode(&dir.join(file)), 0o600, "{file}");
    }
    let list: Value = serde_json::from_str(&host.cmd(["ps", "-o", "json"]).ok().stdout).unwrap();
    assert_eq!((list["kind"].as_str(), list["items"].as_array().unwrap().len()), (Some("PodList"), 1));
    let pod = host.inspect("private").unwrap();
    assert_eq!(list["items"][0], pod);
    assert_eq!(pod["spec"]["containers"][0]["command"], serde_json::json!(["sleep", "1000"]));
    host.cmd(["stop", "private"]).ok();
    assert!(!dir.join("vm").exists(), "sockets and disk of an ended pod are gone");
}
