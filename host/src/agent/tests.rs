//! Calls to peers that do not follow the rules.

use super::*;
use magikvm_proto::wire::{Done, RefusalCode};
use std::os::unix::net::UnixListener;
use std::thread;

/// Runs `peer` on the first connection and returns the result of a ping within 300 ms.
fn ping(peer: impl FnOnce(UnixStream) + Send + 'static) -> Result<Done, AgentError> {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let served = thread::spawn(move || peer(listener.accept().unwrap().0));
    let mut connection =
        Connector { socket, handshake: Handshake::Direct }.connect(Duration::from_secs(1)).unwrap();
    let result = connection.request_within(&Request::Ping, Duration::from_millis(300));
    drop(connection);
    served.join().unwrap();
    result
}

/// Waits until the other side has closed the connection.
fn drain(mut stream: UnixStream) {
    let mut rest = Vec::new();
    assert!(stream.read_to_end(&mut rest).is_ok() || !rest.is_empty());
}

#[test]
fn an_answer_is_an_answer() {
    let result = ping(|mut stream| {
        stream.write_all(b"{\"status\":\"ok\"}\n").unwrap();
        drain(stream);
    });
    assert_eq!(result.unwrap(), Done {});
}

#[test]
fn silence_ends_at_the_deadline() {
    assert!(matches!(ping(drain), Err(AgentError::Timeout(_))));
}

#[test]
fn a_byte_now_and_then_does_not_move_the_deadline() {
    let begun = Instant::now();
    let result = ping(|mut stream| {
        while stream.write_all(b" ").is_ok() {
            thread::sleep(Duration::from_millis(20));
        }
    });
    assert!(matches!(result, Err(AgentError::Timeout(_))), "{result:?}");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

#[test]
fn a_line_without_end_is_cut_off() {
    let result = ping(|mut stream| while stream.write_all(&[b'x'; 4096]).is_ok() {});
    assert!(matches!(result, Err(AgentError::Nonsense(CodecError::LineTooLong))), "{result:?}");
}

#[test]
fn garbage_and_hanging_up_are_told_apart() {
    let garbage = ping(|mut stream| {
        stream.write_all(b"\x00\xff}{\n").unwrap();
        drain(stream);
    });
    assert!(matches!(garbage, Err(AgentError::Nonsense(_))), "{garbage:?}");
    assert!(matches!(ping(drop), Err(AgentError::Closed)));
}

#[test]
fn a_refusal_with_an_endless_message_is_cut() {
    let result = ping(|mut stream| {
        let text = "é".repeat(20_000);
        let line = format!("{{\"status\":\"error\",\"code\":\"new_one\",\"message\":\"{text}\"}}\n");
        stream.write_all(line.as_bytes()).unwrap();
        drain(stream);
    });
    let Err(AgentError::Refused(refusal)) = result else { panic!("{result:?}") };
    assert_eq!(refusal.code, RefusalCode::Unknown);
    assert!(refusal.message.len() <= magikvm_proto::limits::MAX_MESSAGE_LEN);
}

#[test]
fn a_port_is_asked_for_and_what_follows_the_answer_is_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    // Longer than the address of a socket may be.
    let deep = dir.path().join("d".repeat(120));
    std::fs::create_dir(&deep).unwrap();
    let listener = os::bind_unix(&deep.join("agent.sock")).unwrap();
    let served = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut asked = [0u8; 13];
        stream.read_exact(&mut asked).unwrap();
        assert_eq!(&asked, b"CONNECT 1024\n");
        stream.write_all(b"OK 1073741824\n{\"status\":\"ok\"}\n").unwrap();
        drain(stream);
    });
    let connector = Connector { socket: deep.join("agent.sock"), handshake: Handshake::Port(1024) };
    let mut connection = connector.connect(Duration::from_secs(5)).unwrap();
    assert_eq!(connection.request::<Done>(&Request::Ping).unwrap(), Done {});
    drop(connection);
    served.join().unwrap();
}

#[test]
fn another_generation_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let served = thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        stream
            .write_all(b"{\"status\":\"ok\",\"generation\":9999,\"version\":\"9\",\"capabilities\":[]}\n")
            .unwrap();
        drain(stream);
    });
    let connector = Connector { socket, handshake: Handshake::Direct };
    let result = connector.connect_when_up(Instant::now() + Duration::from_secs(5), &|| true);
    assert!(matches!(result, Err(AgentError::Generation { found: 9999, .. })));
    served.join().unwrap();
}

/// Runs `peer`, which is given what to call when it may continue late, and returns the result of a ping within 300 ms.
fn ping_with_extensions(
    peer: impl FnOnce(UnixStream) + Send + 'static,
    excuses: usize,
) -> Result<Done, AgentError> {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let served = thread::spawn(move || peer(theirs));
    let timed = Timed::new(ours.try_clone().unwrap());
    let mut connection = AgentConnection { reader: BufReader::new(timed), writer: GuestStream::own(ours) };
    let mut left = excuses;
    connection.extend_deadlines(DeadlineExtension::new(move || {
        let excused = left > 0;
        left = left.saturating_sub(1);
        excused
    }));
    let result = connection.request_within(&Request::Ping, Duration::from_millis(300));
    drop(connection);
    served.join().unwrap();
    result
}

#[test]
fn a_paused_peer_gets_its_time_once_more_and_no_longer() {
    let late = |mut stream: UnixStream| {
        stream.write_all(b"{\"sta").unwrap();
        thread::sleep(Duration::from_millis(700));
        // The host may have given up by now.
        stream.write_all(b"tus\":\"ok\"}\n").ok();
        drain(stream);
    };
    assert_eq!(ping_with_extensions(late, 5).unwrap(), Done {});
    let begun = Instant::now();
    assert!(matches!(ping_with_extensions(drain, 2), Err(AgentError::Timeout(_))));
    assert!((Duration::from_millis(900)..Duration::from_secs(10)).contains(&begun.elapsed()));
}
