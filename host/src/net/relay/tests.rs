use super::*;
use crate::agent::Handshake;
use crate::store::layout::FORWARD_SOCK;
use magikvm_proto::codec::write_message;
use magikvm_proto::wire::{Done, RefusalCode, Reply};
use std::io::BufRead;
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::sync::mpsc::{Receiver, channel};

/// A relay and a guest whose ports are sockets of the host.
struct Site {
    relay: Relay,
    address: SocketAddr,
    news: Receiver<News>,
    _dir: tempfile::TempDir,
}

/// A guest that runs this on each connection.
fn guest(serve: impl Fn(UnixStream) + Send + Sync + Clone + 'static) -> (Connector, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join(FORWARD_SOCK);
    let listener = UnixListener::bind(&socket).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    (Connector { socket, handshake: Handshake::Direct }, dir)
}

fn site(port: u16, serve: impl Fn(UnixStream) + Send + Sync + Clone + 'static) -> Site {
    let (connector, dir) = guest(serve);
    let door = Door::bind("127.0.0.1:0".parse().unwrap(), port).unwrap();
    let (address, (tell, news)) = (door.address, channel());
    let relay = Relay::start(vec![door], connector, move |new| drop(tell.send(new))).unwrap();
    Site { relay, address, news, _dir: dir }
}

/// The behaviour of a correct guest.
fn honest(stream: UnixStream) {
    peer::serve(stream, |port| TcpStream::connect(("127.0.0.1", port))).unwrap();
}

/// A server of the pod that runs this on each connection.
fn server(serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        }
    });
    port
}

fn echo(stream: TcpStream) {
    let mut from = stream.try_clone().unwrap();
    let mut to = stream;
    io::copy(&mut from, &mut to).ok();
}

fn client(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    stream
}

fn rest(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).map(|_| bytes)
}

fn failure(site: &Site) -> ForwardError {
    loop {
        match site.news.recv_timeout(Duration::from_secs(30)).unwrap() {
            News::Failed { error, .. } => return error,
            News::Accepted { address } => assert_eq!(address, site.address),
        }
    }
}

#[test]
fn an_answer_comes_after_the_question_has_ended() {
    let port = server(|mut stream| {
        let question = rest(&mut stream).unwrap();
        stream.write_all(&question).unwrap();
        stream.write_all(b", you say").unwrap();
    });
    let site = site(port, honest);
    let mut stream = client(site.address);
    stream.write_all(b"why").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream).unwrap(), b"why, you say");
}

#[test]
fn a_server_may_speak_first_and_stop_first() {
    let (told, hears) = channel();
    let port = server(move |mut stream| {
        stream.write_all(b"welcome").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        told.send(rest(&mut stream).unwrap()).unwrap();
    });
    let site = site(port, honest);
    let mut stream = client(site.address);
    assert_eq!(rest(&mut stream).unwrap(), b"welcome");
    stream.write_all(&[7; 300_000]).unwrap();
    drop(stream);
    assert!(hears.recv_timeout(Duration::from_secs(30)).unwrap() == vec![7; 300_000]);
}

#[test]
fn five_hundred_at_once() {
    let site = site(server(echo), honest);
    let mut streams: Vec<TcpStream> = (0..500).map(|_| client(site.address)).collect();
    for (number, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("this is {number}").as_bytes()).unwrap();
    }
    for stream in &mut streams {
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for (number, stream) in streams.iter_mut().enumerate() {
        assert_eq!(rest(stream).unwrap(), format!("this is {number}").as_bytes());
    }
}

#[test]
fn who_does_not_read_stops_his_own_connection_only() {
    let (told, hears) = channel();
    let endless = server(move |mut stream| {
        let mut sent = 0u64;
        stream.set_write_timeout(Some(Duration::from_millis(700))).unwrap();
        while let Ok(count) = stream.write(&[1; 65536]) {
            sent += u64::try_from(count).unwrap();
        }
        told.send(sent).unwrap();
    });
    let slow_site = site(endless, honest);
    let slow = client(slow_site.address);
    let sent = hears.recv_timeout(Duration::from_secs(60)).unwrap();
    // Two TCP connections' buffers, and a window of the link.
    assert!(sent < 32 << 20, "{sent} bytes were taken for a client that reads none");
    let echo_site = site(server(echo), honest);
    let mut fast = client(echo_site.address);
    fast.write_all(&[2; 50_000]).unwrap();
    fast.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut fast).unwrap().len(), 50_000);
    drop(slow);
}

/// With the same guest and relay: a client that does not read, and another one that echoes megabytes meanwhile.
#[test]
fn a_slow_reader_does_not_slow_its_neighbour() {
    let port = server(echo);
    let site = site(port, honest);
    let slow = client(site.address);
    let mut to_slow = slow.try_clone().unwrap();
    to_slow.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    while to_slow.write(&[3; 65536]).is_ok() {}
    let mut fast = client(site.address);
    let mut reader = fast.try_clone().unwrap();
    let copied = std::thread::spawn(move || rest(&mut reader).unwrap().len());
    for _ in 0..64 {
        fast.write_all(&[4; 65536]).unwrap();
    }
    fast.shutdown(Shutdown::Write).unwrap();
    assert_eq!(copied.join().unwrap(), 64 * 65536);
}

#[test]
fn a_reset_of_either_side_is_a_reset_for_the_other() {
    let port = server(|stream| Client(stream).reset());
    let there = site(port, honest);
    let error = rest(&mut client(there.address)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let (told, hears) = channel();
    let port = server(move |mut stream| told.send(rest(&mut stream).unwrap_err().kind()).unwrap());
    let here = site(port, honest);
    let mut stream = client(here.address);
    stream.write_all(b"x").unwrap();
    Client(stream).reset();
    assert_eq!(hears.recv_timeout(Duration::from_secs(30)).unwrap(), ErrorKind::ConnectionReset);
}

#[test]
fn where_nothing_listens_the_connection_is_reset_and_told_of() {
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let site = site(nobody, honest);
    assert_eq!(rest(&mut client(site.address)).unwrap_err().kind(), ErrorKind::ConnectionReset);
    let ForwardError::Refused(refusal) = failure(&site) else { panic!("another error") };
    assert_eq!(refusal.code, RefusalCode::NotFound);
}

#[test]
fn a_guest_that_answers_nonsense_has_no_connection() {
    let says = |bytes: &'static [u8]| {
        let site = site(80, move |mut stream: UnixStream| {
            stream.write_all(bytes).ok();
            io::copy(&mut stream, &mut io::sink()).ok();
        });
        assert_eq!(rest(&mut client(site.address)).unwrap_err().kind(), ErrorKind::ConnectionReset);
        failure(&site)
    };
    assert!(matches!(says(b"\x00\xff nonsense\n"), ForwardError::Nonsense));
    assert!(matches!(says(b"{\"status\":\"ok\"}\n\x09\0\0\0"), ForwardError::Violation(_)));
    assert!(matches!(says(&[b'x'; 64 << 10]), ForwardError::Nonsense));
    let gone = site(80, drop);
    assert_eq!(rest(&mut client(gone.address)).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(matches!(failure(&gone), ForwardError::Closed | ForwardError::Unreachable(_)));
}

#[test]
fn a_guest_that_goes_away_in_the_middle_cuts_the_connection() {
    let site = site(80, |mut stream: UnixStream| {
        let mut line = String::new();
        io::BufReader::new(&stream).read_line(&mut line).unwrap();
        assert_eq!(line, "{\"action\":\"forward\",\"port\":80}\n");
        write_message(&mut stream, &Reply::Ok(Done {})).unwrap();
        stream.write_all(&[0, 0, 0, 3, b'a', b'b', b'c']).unwrap();
    });
    assert_eq!(rest(&mut client(site.address)).unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert!(matches!(failure(&site), ForwardError::Cut));
}

#[test]
fn a_socket_without_room_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join(FORWARD_SOCK);
    let listener = UnixListener::bind(&socket).unwrap();
    nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
    let port = server(echo);
    let door = Door::bind("127.0.0.1:0".parse().unwrap(), port).unwrap();
    let address = door.address;
    let guest = Connector { socket, handshake: Handshake::Direct };
    let relay = Relay::start(vec![door], guest, |_| {}).unwrap();
    let mut streams: Vec<TcpStream> = (0..40).map(|_| client(address)).collect();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || honest(stream));
        }
    });
    for stream in &mut streams {
        stream.write_all(b"hello").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    }
    for stream in &mut streams {
        assert_eq!(rest(stream).unwrap(), b"hello");
    }
    drop(relay);
}

#[test]
fn the_handshake_of_vhost_device_vsock_is_spoken() {
    let port = server(echo);
    let (mut connector, dir) = guest(|mut stream: UnixStream| {
        let mut line = [0; 13];
        stream.read_exact(&mut line).unwrap();
        assert_eq!(&line, b"CONNECT 1025\n");
        stream.write_all(b"OK 1025\n").unwrap();
        honest(stream);
    });
    connector.handshake = Handshake::Port(1024);
    let connector = Connector { socket: dir.path().join(FORWARD_SOCK), ..connector.forwards() };
    let door = Door::bind("127.0.0.1:0".parse().unwrap(), port).unwrap();
    let address = door.address;
    let _relay = Relay::start(vec![door], connector, |_| {}).unwrap();
    let mut stream = client(address);
    stream.write_all(b"through").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream).unwrap(), b"through");
}

#[test]
fn what_a_guest_has_said_before_its_end_is_handed_on() {
    let site = site(80, |mut stream: UnixStream| {
        io::BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        write_message(&mut stream, &Reply::Ok(Done {})).unwrap();
        stream.write_all(&[0, 0, 0, 3, b'e', b'n', b'd', 1, 0, 0, 0]).unwrap();
    });
    let mut stream = client(site.address);
    let mut first = [0];
    stream.read_exact(&mut first).unwrap();
    site.relay.drain();
    let mut seen = Vec::new();
    while let Ok(1) = stream.read(&mut first) {
        seen.push(first[0]);
    }
    assert_eq!(seen, b"nd");
}

#[test]
fn what_ends_with_the_relay_is_reset_and_its_port_is_free() {
    let site = site(server(echo), honest);
    let mut stream = client(site.address);
    stream.write_all(b"x").unwrap();
    let mut byte = [0];
    stream.read_exact(&mut byte).unwrap();
    drop(site.relay);
    assert_eq!(rest(&mut stream).unwrap_err().kind(), ErrorKind::ConnectionReset);
    Door::bind(site.address, 80).unwrap();
}
