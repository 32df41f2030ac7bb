//! Many clients of one pod at a time, and clients that die.

use crate::ports::{connect, exchange};
use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::virtual_machine::Driver;
use magikvm_tests::wait::{until, wait_for};
use magikvm_tests::{Cmd, Pod, Running};
use nix::sys::signal::Signal;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::process::Stdio;
use std::time::{Duration, Instant};

const POD: &str = "crowd";
/// Sessions that a pod may have, as SPECIFICATION.md says.
const SESSIONS: usize = 64;
const ECHO: u16 = 7;
const COUNT: u16 = 9;
const ENDLESS: u16 = 19;

const LIMIT: Duration = Duration::from_secs(600);
/// Clients that are killed; the states that they are killed in take turns. In the lab a client takes more than a second.
const fn killed(driver: Driver) -> usize {
    match driver {
        Driver::Qemu | Driver::Containers | Driver::ContainersV2 | Driver::ContainersUser => 200,
        Driver::Krun => 40,
    }
}

/// The states, in one of which each of them is.
const STATES: usize = 10;
/// Writes of one byte each, unless `MAGIKVM_TEST_SMALL_WRITES` is set. The lab takes five minutes for a million, which ci/lab.sh sets.
const SMALL_WRITES: usize = 250_000;

pub(crate) static GROUP: Group = Group {
    name: "sessions",
    title: "Clients of one pod",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "sixty_four_at_once",
            "Sixty-four commands run at the same time; the next one is refused with exit code 1; stats, kill, logs and port-forward work, and stop sends TERM and waits for the grace period.",
            sixty_four_at_once,
        )
        .of("`exec`, `stop`, `stats`, `kill`")
        .within(Duration::from_secs(300)),
        Row::code(
            "clients_that_are_killed",
            "Clients that are killed at any moment, 200 of them (40 in the lab), leave no connection, no process and no session behind.",
            clients_that_are_killed,
        )
        .of("`exec`, `attach`, `logs -f`, `port-forward`")
        .within(Duration::from_secs(600)),
        Row::code(
            "many_small_writes",
            "Writes of one byte each arrive, a quarter of a million of them, by the input of an exec and by a forwarded port.",
            many_small_writes,
        )
        .of("`exec -i`, `run --publish`")
        .within(Duration::from_secs(300)),
    ],
};

fn script(terminates: &str) -> String {
    format!(
        "trap 'echo usr1' USR1; trap '{terminates}' TERM; nc -ll -p 7 -e cat & nc -ll -p 9 -e sha256sum & nc -ll -p 19 -e yes & \
         echo up; while :; do wait; sleep 0.05; done"
    )
}

fn start(subject: &Subject, terminates: &str) {
    let pod = Pod::new(POD)
        .script("web", &script(terminates))
        .script(
            "loud",
            "trap 'exit 0' TERM; line=$(head -c 4000 /dev/zero | tr '\\0' x); while :; do echo $line; sleep 0.01; done",
        )
        .annotated("magikvm.dev/memory-mib", "512")
        .set("spec/terminationGracePeriodSeconds", 60);
    let ports = [ECHO, COUNT, ENDLESS].map(|port| ["-p".to_owned(), format!("127.0.0.1::{port}")]);
    subject.run(&pod).arg("-d").args(ports.as_flattened()).ok();
    for port in [ECHO, COUNT, ENDLESS] {
        until("the server listens", || subject.sh(POD, "web", "netstat -ltn").contains(&format!(":{port} ")));
    }
}

fn exec(subject: &Subject, options: &[&str], script: &str) -> Cmd {
    subject.cmd(["exec", POD, "-c", "web"]).args(options).args(["--", "sh", "-c", script]).limit(LIMIT)
}

/// As many commands as may run at a time, all of which have begun.
fn fill(subject: &Subject) -> Vec<Running> {
    let mut all: Vec<Running> =
        (0..SESSIONS).map(|_| exec(subject, &[], "echo begun; exec sleep 4321").spawn()).collect();
    all.iter_mut().for_each(|client| client.wait_for_stdout("begun"));
    all
}

fn sixty_four_at_once(subject: &Subject) {
    let needed = subject.seconds(2);
    start(subject, &format!("sleep {}; echo bye; exit 5", needed.as_secs()));
    let all = fill(subject);
    for _ in 0..3 {
        let refused = exec(subject, &[], "true").fails(1).complains("the pod already has 64 sessions");
        assert!(refused.took < subject.seconds(10), "{:?}", refused.took);
    }
    assert!(subject.cmd(["stats", POD]).ok().stdout.contains("web"));
    subject.cmd(["kill", POD, "-c", "web", "-s", "USR1"]).ok();
    until("the signal has arrived", || subject.logs(POD, "web").contains("usr1"));
    let mut follows = subject.cmd(["logs", POD, "-c", "web", "-f"]).spawn();
    follows.wait_for_stdout("up");
    let mut forwards = subject.cmd(["port-forward", POD, ":7"]).limit(LIMIT).spawn();
    let port = forwarded(&mut forwards);
    assert!(exchange(&to(port), vec![5; 1000]) == vec![5; 1000]);
    forwards.signal(Signal::SIGTERM);
    forwards.wait();
    let begun = Instant::now();
    subject.cmd(["stop", POD]).limit(LIMIT).ok();
    assert!((needed..subject.seconds(40)).contains(&begun.elapsed()), "{:?}", begun.elapsed());
    assert!(subject.logs(POD, "web").ends_with("bye\n"), "it has had TERM, and its time");
    assert!(subject.inspect(POD).unwrap()["status"]["message"].is_null(), "nothing was broken");
    for client in all {
        assert_ne!(client.wait().code, 0);
    }
    follows.wait();
    subject.cmd(["rm", POD]).ok();
    subject.assert_as_new();
}

/// The local port of a command that forwards one.
fn forwarded(forwards: &mut Running) -> u16 {
    forwards.wait_for_stdout(" -> ");
    let text = forwards.stdout();
    let address = text.lines().find_map(|line| line.strip_prefix("Forwarding from 127.0.0.1:")).unwrap();
    address.split(' ').next().unwrap().parse().unwrap()
}

fn to(port: u16) -> TcpStream {
    TcpStream::connect(("127.0.0.1", port)).unwrap()
}

/// Open files of the processes that a client's connection passes through.
fn open_files(subject: &Subject) -> usize {
    let vm = subject.driver().processes().iter().copied();
    let count = |name: &str| {
        let dir = format!("/proc/{}/fd", subject.process(POD, name));
        std::fs::read_dir(dir).map_or(0, Iterator::count)
    };
    ["monitor"].into_iter().chain(vm).map(count).sum()
}

/// A client that is about to be in one of the states that clients can be in, and what it prints when it is.
fn client(subject: &Subject, state: usize) -> (Running, Option<&'static str>) {
    let (cmd, text) = match state {
        // Before it has connected, or while it does.
        0 | 1 => (exec(subject, &[], "exec sleep 4321"), None),
        // Before any output.
        2 => (exec(subject, &["-t"], "echo begun; exec sleep 4321"), Some("begun")),
        // While output is on its way.
        3 | 4 => (exec(subject, &[], "exec yes"), Some("y\ny\n")),
        // While the process takes no input.
        5 => {
            let script = "echo begun; exec sleep 4321";
            (exec(subject, &["-i"], script).input(vec![b'x'; 1 << 20]), Some("begun"))
        }
        // While bytes go both ways.
        6 => (exec(subject, &["-i"], "cat; exec sleep 4321").input(vec![b'x'; 8 << 20]), Some("xxxx")),
        7 => (subject.cmd(["attach", POD, "-c", "loud", "--no-stdin"]), Some("xxxx")),
        8 => (subject.cmd(["logs", POD, "-c", "loud", "-f"]), Some("xxxx")),
        _ => (subject.cmd(["port-forward", POD, &format!(":{ENDLESS}")]), Some(" -> ")),
    };
    (cmd.limit(LIMIT).spawn(), text)
}

/// Connections through a client that forwards a port. One of them reads, so that more is on its way.
fn connections(forwards: &mut Running) -> Vec<TcpStream> {
    let port = forwarded(forwards);
    let mut streams: Vec<TcpStream> = (0..3).map(|_| to(port)).collect();
    streams[0].read_exact(&mut [0; 100_000]).unwrap();
    streams
}

/// Kills a client in each state. A client that is met before it does anything is met later in each batch.
fn kill_one_of_each(subject: &Subject, batch: usize) {
    let mut clients: Vec<_> = (0..STATES)
        .map(|position| {
            let state = (position + batch) % STATES;
            let signal = if (batch + state).is_multiple_of(2) { Signal::SIGKILL } else { Signal::SIGTERM };
            (client(subject, state), signal)
        })
        .collect();
    clients.sort_by_key(|((_, text), _)| text.is_some());
    for ((mut client, text), signal) in clients {
        let mut streams = Vec::new();
        if let Some(text) = text {
            client.wait_for_stdout(text);
            if text == " -> " {
                streams = connections(&mut client);
            }
        }
        client.signal(signal);
        client.wait();
        drop(streams);
    }
}

fn clients_that_are_killed(subject: &Subject) {
    start(subject, "exit 5");
    // The first use of each feature opens files that stay.
    for client in fill(subject) {
        client.signal(Signal::SIGTERM);
        client.wait();
    }
    let files = wait_for("files to be closed", Duration::from_secs(60), || {
        let [first, second] = [(); 2].map(|()| {
            subject.sh(POD, "web", "true");
            open_files(subject)
        });
        (first == second).then_some(first)
    });
    for batch in 0..killed(subject.driver()) / STATES {
        kill_one_of_each(subject, batch);
    }
    until("the commands have ended", || {
        let left = subject.sh(POD, "web", "ps -o args");
        !left.contains("4321") && !left.lines().any(|line| line == "cat" || line == "yes")
    });
    let allowed = files + 4;
    wait_for("all connections to be closed", Duration::from_secs(60), || {
        (open_files(subject) <= allowed).then_some(())
    });
    // All sessions can be had again.
    for client in fill(subject) {
        client.signal(Signal::SIGKILL);
        client.wait();
    }
    let question = vec![5; 100_000];
    assert!(exchange(&connect(subject, POD, ECHO), question.clone()) == question);
    subject.cmd(["stop", POD]).ok();
    assert!(subject.inspect(POD).unwrap()["status"]["message"].is_null(), "nothing was broken");
    subject.cmd(["rm", POD]).ok();
    subject.assert_as_new();
}

/// Letters that tell whether any is missing or in a wrong place.
fn letters(count: usize) -> Vec<u8> {
    (0..count).map(|n| b'a' + u8::try_from(n % 26).unwrap()).collect()
}

fn one_by_one(mut to: impl Write, bytes: &[u8]) {
    for byte in bytes.chunks(1) {
        to.write_all(byte).unwrap();
    }
}

fn many_small_writes(subject: &Subject) {
    start(subject, "exit 5");
    let wanted = std::env::var("MAGIKVM_TEST_SMALL_WRITES").ok().and_then(|text| text.parse().ok());
    let bytes = letters(wanted.unwrap_or(SMALL_WRITES));
    let sum = |what: &str| what.split(' ').next().unwrap_or_default().trim().to_owned();
    let right = sum(&exec(subject, &["-i"], "sha256sum").input(bytes.clone()).ok().stdout);
    assert_eq!(right.len(), 64);
    let begun = Instant::now();
    let mut command = exec(subject, &["-i"], "sha256sum").into_command();
    let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    one_by_one(client.stdin.take().unwrap(), &bytes);
    let output = client.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(sum(&String::from_utf8_lossy(&output.stdout)), right, "by exec");
    println!("{} bytes one by one to an exec took {:?}", bytes.len(), begun.elapsed());
    let begun = Instant::now();
    let mut stream = connect(subject, POD, COUNT);
    stream.set_nodelay(true).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    one_by_one(&stream, &bytes);
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(sum(&answer), right, "by a port");
    println!("{} bytes one by one to a port took {:?}", bytes.len(), begun.elapsed());
    subject.cmd(["rm", "-f", POD]).ok();
    subject.assert_as_new();
}
