//! Clients that are stopped (SIGSTOP, Ctrl-Z, a pager that waits) while their container prints without end.

use crate::ports::{connect, exchange};
use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::memory::kib_line;
use magikvm_tests::processes::{data_kib, is_stopped};
use magikvm_tests::wait::{until, wait_for};
use magikvm_tests::{Cmd, Pod, Running};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const POD: &str = "prints";
const ECHO: u16 = 7;

/// Seconds for which a client is stopped, unless `MAGIKVM_TEST_STOPPED_SECONDS` is set. The output fills all buffers in a fraction of this,
/// for which the test waits in addition.
const STOPPED_SECONDS: u64 = 10;
/// Memory by which a process or the guest may grow in that time.
const GROWTH_KIB: u64 = 4 << 10;
const LIMIT: Duration = Duration::from_secs(600);

const WEB: &str = "trap 'exit 0' TERM; echo up; nc -ll -p 7 -e cat & while :; do wait; done";
/// Numbered lines of eight thousand bytes, without end.
const LOUD: &str = "trap 'exit 0' TERM; line=$(head -c 8000 /dev/zero | tr '\\0' x); i=0; \
    while :; do i=$((i+1)); echo \"$i $line\"; done";
/// Several times the number of lines that fit into all buffers.
const MANY_LINES: u64 = 500;

pub(crate) static GROUP: Group = Group {
    name: "stopped",
    title: "Clients that are stopped",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "an_exec",
            "When the client of an exec that prints without end is stopped, the command waits; exec, logs, ports and stop of its pod work as before, and no memory fills.",
            an_exec,
        )
        .of("`exec`"),
        Row::code(
            "an_attach",
            "When a client that is attached is stopped, it misses output, and is told how much; nothing else waits for it, and no memory fills.",
            an_attach,
        )
        .of("`attach`"),
        Row::code(
            "logs_that_are_followed",
            "When a client that follows logs is stopped, nothing waits for it, and no memory fills.",
            logs_that_are_followed,
        )
        .of("`logs -f`"),
    ],
};

fn an_exec(subject: &Subject) {
    start(subject, false);
    let client = stopped(subject, subject.cmd(["exec", POD, "-c", "web", "--", "yes"]), |subject| {
        // Three samples, each of which takes longer than a tick.
        let mut ticks = Vec::new();
        until("the command in the pod waits", || {
            ticks.push(processor_time(subject));
            matches!(ticks.as_slice(), [.., a, b, c] if !a.is_empty() && a == b && b == c)
        });
    });
    end(subject, client);
}

fn an_attach(subject: &Subject) {
    start(subject, true);
    let attach = subject.cmd(["attach", POD, "-c", "loud", "--no-stdin"]);
    let mut client = stopped(subject, attach, many_lines);
    client.wait_for_stderr("bytes of output were lost here");
    end(subject, client);
}

fn logs_that_are_followed(subject: &Subject) {
    start(subject, true);
    let client = stopped(subject, subject.cmd(["logs", POD, "-c", "loud", "-f"]), many_lines);
    end(subject, client);
}

fn start(subject: &Subject, loud: bool) {
    let pod = Pod::new(POD).script("web", WEB).set("spec/terminationGracePeriodSeconds", 2);
    let pod = if loud { pod.script("loud", LOUD) } else { pod };
    subject.run(&pod).args(["-d", "-p", "127.0.0.1::7"]).ok();
    until("the server listens", || subject.sh(POD, "web", "netstat -ltn").contains(":7 "));
}

/// The pod's service for other clients, who need not wait for a stopped one.
fn others(subject: &Subject) {
    assert_eq!(subject.sh(POD, "web", "echo alive"), "alive\n");
    assert_eq!(subject.sh(POD, "web", "head -c 1000000 /dev/zero").len(), 1_000_000);
    assert_eq!(subject.cmd(["logs", POD, "-c", "web"]).ok().stdout, "up\n");
    let question = vec![5; 300_000];
    assert!(exchange(&connect(subject, POD, ECHO), question.clone()) == question);
}

/// The processor time of the command `yes`.
fn processor_time(subject: &Subject) -> String {
    let script = "for process in /proc/[0-9]*; do
        [ \"$(cat $process/comm 2>/dev/null)\" = yes ] && cut -d ' ' -f 14,15 $process/stat; done; true";
    subject.sh(POD, "web", script)
}

/// The number of the line that was printed last.
fn last_line(subject: &Subject) -> u64 {
    let last = subject.cmd(["logs", POD, "-c", "loud", "--tail", "2"]).ok().stdout;
    last.lines().next().and_then(|line| line.split(' ').next()?.parse().ok()).unwrap_or(0)
}

fn many_lines(subject: &Subject) {
    let first = last_line(subject);
    wait_for("lines", Duration::from_secs(120), || (last_line(subject) > first + MANY_LINES).then_some(()));
}

/// Stops a client until after `full` reports that all buffers to it are full, and continues it. Fails the test if other clients have to wait or
/// memory grows.
fn stopped(subject: &Subject, client: Cmd, full: impl Fn(&Subject)) -> Running {
    let client = client.limit(LIMIT).spawn();
    until("the client shows something", || client.printed() > 100_000);
    // The first use of a feature allocates memory, which does not count.
    for _ in 0..3 {
        others(subject);
    }
    let before = usage(subject, &client);
    client.signal(Signal::SIGSTOP);
    until("the client is stopped", || is_stopped(client.pid()));
    let begun = Instant::now();
    let printed = client.printed();
    full(subject);
    let seconds = std::env::var("MAGIKVM_TEST_STOPPED_SECONDS").ok().and_then(|text| text.parse().ok());
    while begun.elapsed() < Duration::from_secs(seconds.unwrap_or(STOPPED_SECONDS)) {
        others(subject);
    }
    for ((what, before), (_, after)) in before.into_iter().zip(usage(subject, &client)) {
        println!("{what}: {before} KiB, then {after} KiB");
        assert!(after < before + GROWTH_KIB, "{what} had {before} KiB and has {after} KiB");
    }
    assert_eq!(client.printed(), printed, "it stands");
    client.signal(Signal::SIGCONT);
    until("it goes on", || client.printed() > printed + (1 << 20));
    client
}

/// Stops the client once more, and then its pod.
fn end(subject: &Subject, client: Running) {
    client.signal(Signal::SIGSTOP);
    until("the client is stopped again", || is_stopped(client.pid()));
    let stop = subject.cmd(["stop", POD]).ok();
    assert!(stop.took < subject.seconds(35), "{:?}", stop.took);
    client.signal(Signal::SIGCONT);
    // The client ends by itself, with the exit code of the ended process.
    client.wait();
}

/// Memory of all processes between the container and a client, in KiB. What a VMM holds of its guest counts as the guest's.
fn usage(subject: &Subject, client: &Running) -> Vec<(&'static str, u64)> {
    let mut all = vec![("the client", data_kib(client.pid()))];
    for name in ["monitor"].into_iter().chain(subject.driver().processes().iter().copied()) {
        all.push((name, data_kib(subject.process(POD, name))));
    }
    // Without a VM that would be the memory of the host.
    if !subject.driver().has_vm() {
        return all;
    }
    let [total, available] = ["MemTotal", "MemAvailable"].map(|field| {
        kib_line(&subject.sh(POD, "web", &format!("grep {field}: /proc/meminfo"))).expect("a number") / 1024
    });
    all.push(("the guest", total - available));
    all
}
