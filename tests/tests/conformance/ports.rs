//! Connections to ports of a pod, through ports of the host.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::memory::kib_line;
use magikvm_tests::processes::memory_kib;
use magikvm_tests::wait::{until, wait_for};
use nix::sys::signal::Signal;
use serde_json::json;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::LazyLock;
use std::time::Duration;

const POD: &str = "serves";

/// Ports of the pod, with the answer to each connection.
const ECHO: u16 = 7;
const DIGEST: u16 = 9;
const ENDLESS: u16 = 19;
const DEAF: u16 = 20;
const NOBODY: u16 = 21;

/// As many connections may wait for the echo as its program has letters `l`.
static SERVERS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "nc -{} -p 7 -e cat & nc -ll -p 9 -e md5sum & nc -ll -p 19 -e yes & nc -ll -p 20 -e sleep 1000 & wait",
        "l".repeat(128)
    )
});

/// Largest resident size of a monitor, whichever client does not read. Most of it are pages of the debug build.
const MONITOR_KIB: u64 = 64 << 10;

pub(crate) static GROUP: Group = Group {
    name: "ports",
    title: "Ports of the pod",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::code(
            "an_answer_after_the_end",
            "A client that has closed its half of a connection gets the answer to everything it has sent, whether a byte or megabytes.",
            an_answer_after_the_end,
        )
        .of("`run --publish`"),
        Row::code(
            "five_hundred_at_once",
            "Five hundred connections are open at the same time, and each gets an answer.",
            five_hundred_at_once,
        )
        .of("`run --publish`"),
        Row::code(
            "who_does_not_read",
            "A client or a server that does not read stops only its own connection, and fills no memory.",
            who_does_not_read,
        )
        .of("`run --publish`"),
        Row::code(
            "nothing_listens",
            "A connection to a port on which nothing listens is reset at once.",
            nothing_listens,
        )
        .of("`run --publish`, `port-forward`"),
        Row::code(
            "port_forward",
            "A port that is forwarded later reaches the pod until the command ends.",
            port_forward,
        )
        .of("`port-forward`"),
    ],
};

pub(crate) static OWN: Group = Group {
    name: "published",
    title: "Published ports of the host",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "before_it_runs",
            "A client that connects while the pod starts waits, and gets an answer; when the pod has ended the port is free.",
            before_it_runs,
        )
        .of("`spec.containers[].ports[].hostPort`"),
        Row::code(
            "while_it_restarts",
            "While a container is down its port refuses connections; after a restart it accepts them again.",
            while_it_restarts,
        )
        .of("`spec.containers[].ports[].hostPort`, `spec.restartPolicy`"),
        Row::code(
            "while_it_is_paused",
            "A connection to a paused pod waits, and continues without losing a byte.",
            while_it_is_paused,
        )
        .of("`pause`, `resume`"),
    ],
};

fn start(subject: &Subject) {
    let pod = Pod::new(POD).script("web", &SERVERS).annotated("magikvm.dev/memory-mib", "384");
    let ports =
        [ECHO, DIGEST, ENDLESS, DEAF, NOBODY].map(|port| ["-p".to_owned(), format!("127.0.0.1::{port}")]);
    subject.run(&pod).arg("-d").args(ports.as_flattened()).ok();
    for port in [ECHO, DIGEST, ENDLESS, DEAF] {
        until("the server listens", || subject.sh(POD, "web", "netstat -ltn").contains(&format!(":{port} ")));
    }
}

/// A connection to the host port that leads to this port of the pod.
pub(crate) fn connect(subject: &Subject, pod: &str, port: u16) -> TcpStream {
    let shown = subject.inspect(pod).unwrap();
    let ports = shown["metadata"]["annotations"]["magikvm.dev/ports"].as_str().unwrap().to_owned();
    let suffix = format!("->{port}/tcp");
    let address = ports.split(',').find_map(|port| port.strip_suffix(&suffix)).unwrap();
    to_address(subject, address)
}

fn to_address(subject: &Subject, address: &str) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(subject.seconds(60))).unwrap();
    stream.set_write_timeout(Some(subject.seconds(60))).unwrap();
    stream
}

fn rest(mut stream: TcpStream) -> io::Result<String> {
    let mut text = String::new();
    stream.read_to_string(&mut text).map(|_| text)
}

fn ask(mut stream: TcpStream, question: &[u8]) -> io::Result<String> {
    stream.write_all(question)?;
    stream.shutdown(Shutdown::Write)?;
    rest(stream)
}

/// The answer of a server that arrives during a request of any size.
pub(crate) fn exchange(mut stream: &TcpStream, question: Vec<u8>) -> Vec<u8> {
    let mut asked = stream.try_clone().unwrap();
    let asking = std::thread::spawn(move || {
        asked.write_all(&question).unwrap();
        asked.shutdown(Shutdown::Write).unwrap();
    });
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    asking.join().unwrap();
    answer
}

fn an_answer_after_the_end(subject: &Subject) {
    let stream = connect(subject, POD, DIGEST);
    assert_eq!(ask(stream, b"x").unwrap(), "9dd4e461268c8034f5c8564e155c67a6  -\n");
    let stream = connect(subject, POD, DIGEST);
    // Digest of four million zeros.
    assert_eq!(ask(stream, &[0; 4_000_000]).unwrap(), "90b741f98410e3bb408d92fa49f9c436  -\n");
}

fn five_hundred_at_once(subject: &Subject) {
    let address = connect(subject, POD, ECHO).peer_addr().unwrap().to_string();
    let mut streams: Vec<TcpStream> = (0..500).map(|_| to_address(subject, &address)).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.set_read_timeout(Some(subject.seconds(120))).unwrap();
        stream.write_all(format!("{number:03}").as_bytes()).unwrap();
    }
    // All are answered before any has ended.
    for (number, stream) in streams.iter_mut().enumerate() {
        let mut answer = [0; 3];
        stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer.as_slice(), format!("{number:03}").as_bytes());
    }
    for stream in &streams {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for stream in streams {
        assert_eq!(rest(stream).unwrap(), "");
    }
}

fn guest_available(subject: &Subject) -> u64 {
    kib_line(&subject.sh(POD, "web", "grep MemAvailable: /proc/meminfo")).unwrap()
}

fn who_does_not_read(subject: &Subject) {
    let before = guest_available(subject);
    let endless: Vec<TcpStream> = (0..8).map(|_| connect(subject, POD, ENDLESS)).collect();
    let mut deaf = connect(subject, POD, DEAF);
    deaf.set_write_timeout(Some(subject.seconds(1))).unwrap();
    let mut taken = 0;
    let full = loop {
        match deaf.write(&[0; 65536]) {
            Ok(count) => taken += count,
            Err(error) => break error,
        }
        assert!(taken < 32 << 20, "{taken} bytes were taken for a server that reads none");
    };
    assert_eq!(full.kind(), ErrorKind::WouldBlock);
    let mut through = connect(subject, POD, ECHO);
    let mut reader = through.try_clone().unwrap();
    let copied = std::thread::spawn(move || io::copy(&mut reader, &mut io::sink()).unwrap());
    for _ in 0..32 {
        through.write_all(&[5; 65536]).unwrap();
    }
    through.shutdown(Shutdown::Write).unwrap();
    assert_eq!(copied.join().unwrap(), 32 * 65536);
    let monitor = memory_kib(subject.process(POD, "monitor"), "VmRSS");
    assert!(monitor < MONITOR_KIB, "the monitor has {monitor} KiB");
    // Without a VM it is the memory of the host, of which others take some.
    if subject.driver().has_vm() {
        let now = guest_available(subject);
        assert!(now + (96 << 20) > before, "the guest had {before} bytes and has {now}");
    }
    // The connections are intact: one that begins to read gets the data.
    let mut first = [0; 4];
    for mut stream in endless {
        stream.read_exact(&mut first).unwrap();
        assert_eq!(&first, b"y\ny\n");
    }
}

fn nothing_listens(subject: &Subject) {
    let error = rest(connect(subject, POD, NOBODY)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let mut forward = subject.cmd(["port-forward", "--address", "127.0.0.1", POD, ":21"]).spawn();
    forward.wait_for_stdout("-> 21\n");
    let address = forwarded(&forward.stdout());
    assert_eq!(rest(to_address(subject, &address)).unwrap_err().kind(), ErrorKind::ConnectionReset);
    forward.wait_for_stderr("nothing in the pod listens on port 21\n");
    forward.signal(Signal::SIGINT);
    forward.wait().expect_code(0);
}

fn forwarded(printed: &str) -> String {
    let line = printed.lines().find_map(|line| line.strip_prefix("Forwarding from ")).unwrap();
    line.split_once(" -> ").unwrap().0.to_owned()
}

fn port_forward(subject: &Subject) {
    let mut forward = subject.cmd(["port-forward", POD, ":7"]).spawn();
    forward.wait_for_stdout("-> 7\n");
    let address = forwarded(&forward.stdout());
    for word in ["one", "two", "three"] {
        assert_eq!(ask(to_address(subject, &address), word.as_bytes()).unwrap(), word);
    }
    forward.signal(Signal::SIGINT);
    forward.wait().expect_code(0);
    assert!(TcpStream::connect(&address).is_err());
}

/// A port that is free at this moment.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn published(name: &str, script: &str, port: u16, host_port: u16) -> Pod {
    let ports = json!([{ "containerPort": port, "hostPort": host_port, "hostIP": "127.0.0.1" }]);
    Pod::new(name).script("web", script).with("ports", ports)
}

fn before_it_runs(subject: &Subject) {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    // Nothing listens yet when the container's process begins. Waiting connections are accepted when the pod runs.
    let pod = published("early", "nc -ll -p 7 -e cat", 7, port);
    let running = subject.run(&pod).arg("-d").spawn();
    let early = wait_for("the port", Duration::from_secs(20), || TcpStream::connect(&address).ok());
    early.set_read_timeout(Some(subject.seconds(60))).unwrap();
    assert_eq!(subject.phase("early"), "Pending");
    running.wait().expect_code(0);
    // The server may not listen yet when the pod runs. Then this connection is reset, but a later one is not.
    if let Ok(answer) = ask(early, b"early") {
        assert_eq!(answer, "early");
    }
    until("it is answered", || {
        ask(to_address(subject, &address), b"hello").is_ok_and(|answer| answer == "hello")
    });
    subject.cmd(["stop", "early"]).ok();
    TcpListener::bind(&address).unwrap();
    subject.cmd(["rm", "early"]).ok();
    subject.assert_as_new();
}

fn while_it_restarts(subject: &Subject) {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    // Serves one connection and then ends until it is restarted.
    let pod = published("again", "nc -l -p 7 -e cat", 7, port).set("spec/restartPolicy", "Always");
    subject.start(&pod);
    for _ in 0..2 {
        until("it is answered", || {
            ask(to_address(subject, &address), b"hello").is_ok_and(|answer| answer == "hello")
        });
    }
    // The answer may come before the event of the restart.
    until("the restart is seen", || subject.statuses("again")[0]["restartCount"] != 0);
}

fn while_it_is_paused(subject: &Subject) {
    let port = free_port();
    let address = format!("127.0.0.1:{port}");
    subject.start(&published("rests", "nc -ll -p 7 -e cat", 7, port));
    until("it is answered", || {
        ask(to_address(subject, &address), b"hello").is_ok_and(|answer| answer == "hello")
    });
    let mut stream = to_address(subject, &address);
    stream.write_all(b"before").unwrap();
    let mut answer = [0; 6];
    stream.read_exact(&mut answer).unwrap();
    subject.cmd(["pause", "rests"]).ok();
    stream.write_all(b"during").unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    assert_eq!(stream.read(&mut answer).unwrap_err().kind(), ErrorKind::WouldBlock);
    subject.cmd(["resume", "rests"]).ok();
    stream.set_read_timeout(Some(subject.seconds(60))).unwrap();
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"during");
    assert_eq!(ask(stream, b"after").unwrap(), "after");
}
