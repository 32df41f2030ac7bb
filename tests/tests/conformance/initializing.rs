//! What can be done with a pod while its init containers work, and what neither its containers nor its clients can keep a probe from.

use crate::row::{Difference, Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::virtual_machine::Driver;
use magikvm_tests::wait::{until, wait_for};
use magikvm_tests::{Cmd, Pod, Running};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::Duration;

/// Sleeps, and ends at once when it is asked to.
const WAITS: &str = "trap 'exit 0' TERM; while :; do sleep 0.05; done";

pub(crate) static GROUP: Group = Group {
    name: "initializing",
    title: "While containers start, and what cannot disturb probes",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "init_containers_can_be_reached",
            "While an init container works, `logs`, `logs -f`, `exec`, `attach`, `kill` and `stats` reach it and the sidecar before it, and a main container is not running yet.",
            init_containers_can_be_reached,
        )
        .of("`logs -c`, `exec -c` (Debug Init Containers: Accessing logs from init containers)"),
        Row::code(
            "the_log_of_the_run_before",
            "The log of the run before is that of exactly one run; without one, `logs --previous` says so.",
            the_log_of_the_run_before,
        )
        .of("`logs --previous` (Debug Running Pods: Examining pod logs)"),
        Row::code(
            "the_id_of_each_run",
            "Each run of a container has an ID of its own, in its state, in the state before and in the status.",
            the_id_of_each_run,
        )
        .of("`status.containerStatuses[].containerID`, `lastState` (Pod Lifecycle: Container states)"),
        Row::code(
            "nothing_starves_a_probe",
            "Probes go on with their period while the container's disk is full, while clients have taken all sessions, and while a client of an exec is stopped.",
            nothing_starves_a_probe,
        )
        .of("`livenessProbe`, `readinessProbe` (Pod Lifecycle: Container probes)")
        .within(Duration::from_secs(300))
        .differs(&[Difference {
            drivers: &[Driver::ContainersUser],
            why: "an ordinary user can mount no disk, so that a limit of ephemeral-storage is refused",
            says: "resources.limits.ephemeral-storage cannot be enforced",
        }]),
        Row::code(
            "probes_leave_nothing",
            "What a probe leaves in the background, and a probe that exceeds its timeout, leave no process and no zombie, even if PID 1 of the container reaps nothing.",
            probes_leave_nothing,
        )
        .of("`exec` (Configure Liveness, Readiness and Startup Probes: Define a liveness command)")
        .differs(&[Difference {
            drivers: &[Driver::Containers],
            why: "with cgroup v1, which cannot end a group at once, PID 1 of the container has to reap what a probe leaves",
            says: "nothing of that is left",
        }]),
    ],
};

fn init_containers_can_be_reached(subject: &Subject) {
    let state = || json!([{ "name": "state", "mountPath": "/state" }]);
    let pod = Pod::new("begins")
        .volume("state", json!({ "emptyDir": {} }))
        .init_script("sidecar", &format!("echo sidecar is up; {WAITS}"), Some("Always"))
        .init_script(
            "setup",
            "trap 'echo usr1' USR1; echo works; until test -e /state/go; do sleep 0.05; done; echo done",
            None,
        )
        .with_init("volumeMounts", state())
        .script("web", &format!("echo web; {WAITS}"));
    let run = subject.run(&pod).arg("-d").limit(subject.seconds(120)).spawn();
    until("the init container works", || {
        let logs = subject.cmd(["logs", "begins", "-c", "setup"]).run();
        logs.stdout.contains("works")
    });
    until("the sidecar has printed", || subject.logs("begins", "sidecar") == "sidecar is up\n");
    assert_eq!(subject.sh("begins", "setup", "echo in setup"), "in setup\n");
    assert_eq!(subject.sh("begins", "sidecar", "echo in the sidecar"), "in the sidecar\n");
    let refused = subject.cmd(["exec", "begins", "-c", "web", "--", "true"]).fails(1);
    refused.complains("container \"web\" is not running");
    assert!(subject.cmd(["stats", "begins"]).ok().stdout.contains("setup"));
    let mut follows = subject.cmd(["logs", "-f", "begins", "-c", "setup"]).spawn();
    follows.wait_for_stdout("works");
    let mut attached = subject.cmd(["attach", "--no-stdin", "begins", "-c", "setup"]).spawn();
    // It is attached when it hears what is printed from now on.
    until("a signal arrives", || {
        subject.cmd(["kill", "-s", "USR1", "begins", "-c", "setup"]).ok();
        attached.stdout().contains("usr1")
    });
    subject.sh("begins", "setup", "touch /state/go");
    follows.wait_for_stdout("done");
    attached.wait_for_stdout("done");
    attached.wait().expect_code(0);
    run.wait().expect_code(0);
    until("web has printed", || subject.logs("begins", "web") == "web\n");
    let grace = subject.seconds(20).as_secs().to_string();
    subject.cmd(["stop", "--grace", &grace, "begins"]).limit(subject.seconds(40)).ok();
    follows.wait().expect_code(0);
}

fn the_log_of_the_run_before(subject: &Subject) {
    let state = || json!([{ "name": "state", "mountPath": "/state" }]);
    let script = format!(
        "n=$(cat /state/n || echo 0); echo $((n + 1)) > /state/n; echo run $n; test $n = 2 || exit 1; {WAITS}"
    );
    let pod = Pod::new("again")
        .set("spec/restartPolicy", "OnFailure")
        .volume("state", json!({ "emptyDir": {} }))
        .script("web", &script)
        .with("volumeMounts", state())
        .script("calm", WAITS);
    subject.start(&pod);
    // The second restart comes ten seconds after the end.
    wait_for("it has restarted twice", Duration::from_secs(60), || {
        (subject.statuses("again")[0]["restartCount"] == 2).then_some(())
    });
    until("it has printed", || subject.logs("again", "web").ends_with("run 2\n"));
    let previous = |name: &str| subject.cmd(["logs", "--previous", "again", "-c", name]);
    assert_eq!(previous("web").ok().stdout, "run 1\n");
    previous("calm")
        .fails(1)
        .complains("previous terminated container \"calm\" in pod default/again not found");
    subject.cmd(["stop", "--grace", "0", "again"]).ok();
    assert_eq!(previous("web").ok().stdout, "run 1\n");
}

fn the_id_of_each_run(subject: &Subject) {
    let state = || json!([{ "name": "state", "mountPath": "/state" }]);
    let pod = Pod::new("numbered")
        .set("spec/restartPolicy", "OnFailure")
        .volume("state", json!({ "emptyDir": {} }))
        .script("web", "test -e /state/once && exit 0; touch /state/once; exit 3")
        .with("volumeMounts", state());
    subject.run(&pod).ok();
    let status = &subject.statuses("numbered")[0];
    let uid = subject.inspect("numbered").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let id = |run: u32| json!(format!("magikvm://{uid}/web/{run}"));
    assert_eq!((&status["restartCount"], &status["containerID"]), (&json!(1), &id(1)), "{status}");
    let last = &status["lastState"]["terminated"];
    assert_eq!(
        (&last["containerID"], &last["exitCode"], &last["reason"]),
        (&id(0), &json!(3), &json!("Error"))
    );
    let state = &status["state"]["terminated"];
    assert_eq!((&state["containerID"], &state["reason"]), (&id(1), &json!("Completed")), "{status}");
    let all = [&last["startedAt"], &last["finishedAt"], &state["startedAt"], &state["finishedAt"]];
    assert!(all.iter().all(|time| time.is_string()), "{status}");
}

/// How often the probe of a container has run.
fn count(subject: &Subject, pod: &str) -> u64 {
    // The first probe makes it.
    let text = subject.sh(pod, "web", "cat /count/n 2>/dev/null | wc -c");
    text.trim().parse().unwrap()
}

fn is_ready(subject: &Subject, pod: &str) -> bool {
    subject.statuses(pod)[0]["ready"] == Value::Bool(true)
}

fn exec(subject: &Subject, script: &str) -> Cmd {
    subject.cmd(["exec", "steady", "-c", "web", "--", "sh", "-c", script]).limit(Duration::from_secs(240))
}

fn nothing_starves_a_probe(subject: &Subject) {
    const SESSIONS: usize = 60;
    let probe = |script: &str| json!({ "exec": { "command": ["sh", "-c", script] }, "periodSeconds": 1, "timeoutSeconds": 120, "failureThreshold": 1 });
    let pod = Pod::new("steady")
        .volume("count", json!({ "emptyDir": { "medium": "Memory" } }))
        .script("web", &format!("echo yes > /ok; {WAITS}"))
        .with("volumeMounts", json!([{ "name": "count", "mountPath": "/count" }]))
        .with("resources/limits/ephemeral-storage", "16Mi")
        .with("readinessProbe", probe("cat /ok && echo -n x >> /count/n"))
        .with("livenessProbe", probe("until [ -e /ok ]; do sleep 0.1; done; cat /ok"))
        .annotated("magikvm.dev/memory-mib", "512");
    subject.start(&pod);
    until("it is ready", || is_ready(subject, "steady"));
    // The disk.
    exec(subject, "head -c 100000000 /dev/zero > /full; test $(wc -c < /full) -gt 1000000").ok();
    // A client that is stopped, whose program prints without end.
    let mut stopped = exec(subject, "echo begun; yes").spawn();
    stopped.wait_for_stdout("begun");
    stopped.signal(Signal::SIGSTOP);
    // Nearly all sessions that a pod may have.
    let mut all: Vec<Running> =
        (0..SESSIONS).map(|_| exec(subject, "echo begun; exec sleep 4321").spawn()).collect();
    all.iter_mut().for_each(|client| client.wait_for_stdout("begun"));
    let before = count(subject, "steady");
    until("the probes go on", || count(subject, "steady") >= before + 3);
    let status = &subject.statuses("steady")[0];
    assert_eq!((&status["restartCount"], &status["ready"]), (&json!(0), &json!(true)), "{status}");
    for client in all.into_iter().chain([stopped]) {
        client.signal(Signal::SIGKILL);
        client.wait();
    }
    subject.cmd(["stop", "--grace", "0", "steady"]).ok();
}

fn probes_leave_nothing(subject: &Subject) {
    let leaves = "echo -n x >> /count/n; sleep 4321 & exit 0";
    let hangs = "echo -n x >> /count/n; sleep 4322 & sleep 4323";
    let pod = Pod::new("tidy")
        .volume("count", json!({ "emptyDir": {} }))
        .container("web", &["sleep", "100000"])
        .with("volumeMounts", json!([{ "name": "count", "mountPath": "/count" }]))
        .with("readinessProbe", json!({ "exec": { "command": ["sh", "-c", leaves] }, "periodSeconds": 1, "timeoutSeconds": 10 }))
        .with("livenessProbe", json!({ "exec": { "command": ["sh", "-c", hangs] }, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1000 }));
    subject.start(&pod);
    until("both have run some times", || count(subject, "tidy") >= 8);
    // Those of the probes that run at this moment come and go; what stays would be there each time.
    let left = |subject: &Subject| -> Vec<String> {
        let ps = subject.sh("tidy", "web", "ps -o pid,stat,args");
        let of_probe = |line: &&str| line.contains("432") || line.contains(" Z ") || line.contains("Z  ");
        ps.lines()
            .filter(of_probe)
            .filter_map(|line| line.split_whitespace().next())
            .map(str::to_owned)
            .collect()
    };
    let first = left(subject);
    until("nothing of that is left", || left(subject).iter().all(|pid| !first.contains(pid)));
    let pids: u64 = subject.sh("tidy", "web", "ls /proc | grep -c '^[0-9]'").trim().parse().unwrap();
    assert!(pids < 12, "{pids} processes");
    subject.cmd(["stop", "--grace", "0", "tidy"]).ok();
}
