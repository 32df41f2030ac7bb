//! Init containers, sidecars, probes and hooks with the fake guest, which is the real supervisor over containers that are threads.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::wait::until;
use magikvm_tests::{Host, Pod};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

fn pod(name: &str) -> Pod {
    Pod::new(name).container("web", &["app"])
}

fn init(pod: Pod, name: &str) -> Pod {
    pod.init_script(name, "x", None)
}

fn sidecar(pod: Pod, name: &str) -> Pod {
    pod.init_script(name, "x", Some("Always"))
}

fn condition(pod: &Value, kind: &str) -> Value {
    let all = pod["status"]["conditions"].as_array().unwrap();
    all.iter().find(|one| one["type"] == kind).unwrap().clone()
}

#[test]
fn init_containers_end_before_the_others_begin() {
    let host = Host::fake();
    let pod = init(init(pod("ordered"), "first"), "second");
    host.start_fake(&pod, "run");
    let shown = host.inspect("ordered").unwrap();
    let states = shown["status"]["initContainerStatuses"].as_array().unwrap();
    assert_eq!(states.len(), 2);
    for state in states {
        assert_eq!(state["state"]["terminated"]["reason"], "Completed");
        assert_eq!(state["ready"], true);
    }
    let ended = |index: usize| states[index]["state"]["terminated"]["finishedAt"].as_str().unwrap();
    assert!(ended(0) <= ended(1));
    host.cmd(["wait", "--for=condition=Ready", "--timeout=30s", "ordered"]).ok();
    for kind in ["PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"] {
        let condition = condition(&host.inspect("ordered").unwrap(), kind);
        assert_eq!(condition["status"], "True", "{kind}");
        assert!(condition["lastTransitionTime"].is_string(), "{kind}");
    }
    let listed = host.cmd(["ps"]).ok().stdout;
    assert!(listed.contains("1/1"), "init containers are not counted: {listed}");
    host.cmd(["exec", "ordered", "--", "x"]).ok();
    host.cmd(["stop", "ordered"]).ok();
    assert_eq!(condition(&host.inspect("ordered").unwrap(), "Ready")["status"], "False");
}

#[test]
fn a_failed_init_container_fails_the_run_with_its_code_and_its_log() {
    let host = Host::fake();
    let before = host.holdings();
    let output = host.run_fake(&init(pod("failed"), "bad"), "run").arg("-d").fails(1);
    let output = output.complains("init container bad failed with exit code 3");
    let output = output.complains("hello from bad");
    output.complains("Container web: not started.");
    host.assert_as_before(&before);
}

#[test]
fn an_init_container_that_fails_is_tried_again_by_policy() {
    let host = Host::fake();
    let pod = init(pod("again"), "bad").set("spec/restartPolicy", "Always");
    let running = host.run_fake(&pod, "run").spawn();
    until("it waits for its next run", || host.cmd(["ps"]).ok().stdout.contains("Init:CrashLoopBackOff"));
    let shown = host.inspect("again").unwrap();
    assert_eq!(shown["status"]["phase"], "Pending");
    assert_eq!(shown["status"]["containerStatuses"][0]["state"]["waiting"]["reason"], "PodInitializing");
    assert_eq!(condition(&shown, "Initialized")["message"], "containers with incomplete status: [bad]");
    running.signal(Signal::SIGINT);
    running.wait().expect_code(130);
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "");
}

#[test]
fn an_interrupted_init_container_is_stopped_and_nothing_is_left() {
    let host = Host::fake();
    let before = host.holdings();
    let running = host.run_fake(&init(pod("slow"), "slow"), "run").spawn();
    until("it works", || host.cmd(["ps"]).ok().stdout.contains("Init:0/1"));
    running.signal(Signal::SIGINT);
    running.wait().expect_code(130).complains("cancelled");
    host.assert_as_before(&before);
}

#[test]
fn sidecars_do_not_keep_the_pod_alive_and_their_codes_do_not_count() {
    let host = Host::fake();
    let pod = sidecar(sidecar(pod("helped"), "proxy"), "shipper");
    let output = host.run_fake(&pod, "exit=0").ok();
    assert_eq!(output.stderr, "");
    assert_eq!(host.phase("helped"), "Succeeded");
    let shown = host.inspect("helped").unwrap();
    let ended = |index: usize| &shown["status"]["initContainerStatuses"][index]["state"]["terminated"];
    assert_eq!((&ended(0)["exitCode"], &ended(1)["exitCode"]), (&json!(143), &json!(143)));
    let events = host.cmd(["events", "helped"]).ok().stdout;
    let at = |text: &str| events.find(text).unwrap_or_else(|| panic!("{text}: {events}"));
    assert!(at("web: exited with 0") < at("shipper: killed by signal 15"));
    assert!(at("shipper: killed by signal 15") < at("proxy: killed by signal 15"));
    host.start_fake(&sidecar(Pod::new("pair").container("web", &["app"]), "proxy"), "run");
    host.cmd(["wait", "--for=condition=Ready", "--timeout=30s", "pair"]).ok();
    let listed = host.cmd(["ps"]).ok().stdout;
    assert!(listed.contains("2/2"), "sidecars are counted: {listed}");
}

fn exec(args: &[&str]) -> Value {
    json!({ "exec": { "command": args }, "periodSeconds": 1 })
}

#[test]
fn probes_decide_what_is_ready_and_what_is_started_again() {
    let host = Host::fake();
    let unready = pod("unready").with("readinessProbe", exec(&["exit", "1"]));
    host.start_fake(&unready, "run");
    until("a failure is told", || {
        host.cmd(["events", "unready"]).ok().stdout.contains("web: Unhealthy: Readiness probe failed: ")
    });
    assert!(host.cmd(["ps"]).ok().stdout.contains("0/1"));
    let message = condition(&host.inspect("unready").unwrap(), "Ready")["message"].clone();
    assert_eq!(message, "containers with unready status: [web]");
    let ill = pod("ill")
        .set("spec/restartPolicy", "OnFailure")
        .with("livenessProbe", exec(&["exit", "1"]))
        .with("livenessProbe/failureThreshold", 1);
    host.start_fake(&ill, "run");
    until("it was started again", || {
        host.inspect("ill").unwrap()["status"]["containerStatuses"][0]["restartCount"] == 1
    });
    let events = host.cmd(["events", "ill"]).ok().stdout;
    assert!(
        events.contains("web: Killing: Container web failed liveness probe, will be restarted"),
        "{events}"
    );
}

#[test]
fn a_detached_run_can_wait_until_the_pod_is_ready() {
    let host = Host::fake();
    let slow = pod("slowly")
        .with("readinessProbe", exec(&["true"]))
        .with("readinessProbe/initialDelaySeconds", 2)
        .with("readinessProbe/successThreshold", 2);
    host.run_fake(&slow, "run").args(["-d", "--wait-ready"]).ok();
    assert_eq!(condition(&host.inspect("slowly").unwrap(), "Ready")["status"], "True");
    host.start_fake(&pod("never").with("readinessProbe", exec(&["exit", "1"])), "run");
    host.cmd(["wait", "--for=condition=Ready=false", "--timeout=30s", "never"]).ok();
}

#[test]
fn hooks_surround_a_container() {
    let host = Host::fake();
    let hooked = pod("hooked")
        .with("lifecycle/postStart/exec/command", json!(["exit", "1"]))
        .set("spec/restartPolicy", "Always");
    host.start_fake(&hooked, "run");
    until("the failed hook has ended it", || {
        let events = host.cmd(["events", "hooked"]).ok().stdout;
        events.contains("web: FailedPostStartHook: ") && events.contains("web: Killing: FailedPostStartHook")
    });
    let polite = pod("polite").with("lifecycle/preStop/exec/command", json!(["exit", "1"]));
    host.start_fake(&polite, "run");
    host.cmd(["stop", "polite"]).ok();
    let events = host.cmd(["events", "polite"]).ok().stdout;
    assert!(events.contains("web: FailedPreStopHook: "), "{events}");
    assert!(events.contains("web: Killing: Stopping container web"), "{events}");
}

#[test]
fn a_pod_at_its_deadline_fails() {
    let host = Host::fake();
    let pod = pod("brief").set("spec/activeDeadlineSeconds", 5);
    host.run_fake(&pod, "run").fails(143);
    let shown = host.inspect("brief").unwrap();
    assert_eq!(shown["status"]["phase"], "Failed");
    assert_eq!(shown["status"]["reason"], "DeadlineExceeded");
    host.run_fake(&init(pod_named("early"), "slow"), "run")
        .arg("-d")
        .fails(1)
        .complains("activeDeadlineSeconds");
}

fn pod_named(name: &str) -> Pod {
    pod(name).set("spec/activeDeadlineSeconds", 1)
}

#[test]
fn the_end_of_a_log_is_the_message_of_a_failure_without_one() {
    let host = Host::fake();
    let pod = pod("told").with("terminationMessagePolicy", "FallbackToLogsOnError");
    host.run_fake(&pod, "exit=3").fails(3);
    let shown = host.inspect("told").unwrap();
    let ended = &shown["status"]["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(ended["message"], "hello from web\n");
}

#[test]
fn waiting_says_what_did_not_come() {
    let host = Host::fake();
    host.start_fake(&pod("waited"), "run");
    host.cmd(["wait", "--for=jsonpath={.status.phase}=Running", "waited"])
        .ok()
        .prints("pod/default/waited condition met");
    host.cmd(["wait", "--for=delete", "--timeout=1s", "waited"])
        .fails(1)
        .complains("timed out waiting for pod default/waited");
    host.cmd(["stop", "waited"]).ok();
    host.cmd(["wait", "--for=condition=Ready", "waited"]).fails(1).complains("has ended");
    host.cmd(["rm", "waited"]).ok();
    host.cmd(["wait", "--for=delete", "waited"]).ok();
}
