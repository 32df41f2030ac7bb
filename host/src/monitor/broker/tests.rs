use super::*;
use crate::agent::{AgentConnection, AgentError};
use magikvm_proto::wire::Request;
use std::io::{BufRead, BufReader};
use std::sync::mpsc::{Receiver, channel};

/// A broker, and the guest's ends of the connections that it makes.
struct Site {
    broker: Connector,
    guest: Receiver<UnixStream>,
    _dir: tempfile::TempDir,
}

const MINUTE: Duration = Duration::from_secs(60);

fn site(handshake: Handshake) -> Site {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (tell, guest) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            tell.send(stream).unwrap();
        }
    });
    let path = dir.path().join("connect.sock");
    let mut broker =
        Broker::new(UnixListener::bind(&path).unwrap(), Connector { socket, handshake }, Arc::default())
            .unwrap();
    std::thread::spawn(move || broker.run());
    let broker = Connector { socket: path, handshake: Handshake::Broker(Destination::Agent) };
    Site { broker, guest, _dir: dir }
}

impl Site {
    fn borrow(&self) -> Result<AgentConnection, AgentError> {
        self.broker.connect(MINUTE)
    }

    fn guest(&self) -> UnixStream {
        self.guest.recv_timeout(MINUTE).unwrap()
    }
}

/// The guest's answer to the request that it reads.
fn serve(guest: &UnixStream) {
    let mut line = String::new();
    BufReader::new(guest).read_line(&mut line).unwrap();
    assert_eq!(line, "{\"action\":\"ping\"}\n");
    (&*guest).write_all(b"{\"status\":\"ok\"}\n").unwrap();
}

fn ping(connection: &mut AgentConnection, guest: &UnixStream) {
    std::thread::scope(|scope| {
        scope.spawn(|| serve(guest));
        let Done {} = connection.request(&Request::Ping).unwrap();
    });
}

#[test]
fn the_end_of_a_client_that_leaves_bytes_unread_is_an_end_and_no_error() {
    let site = site(Handshake::Direct);
    let mut connection = site.borrow().unwrap();
    let mut guest = site.guest();
    ping(&mut connection, &guest);
    guest.write_all(&[7; 100_000]).unwrap();
    drop(connection);
    // Without the broker's own descriptor this would be a reset.
    assert_eq!(guest.read(&mut [0; 10]).unwrap(), 0);
    // What a guest says meanwhile is taken, so that no device waits.
    guest.write_all(&vec![7; 2 << 20]).unwrap();
}

#[test]
fn there_are_sessions_up_to_the_limit_and_an_ended_one_makes_room() {
    let site = site(Handshake::Direct);
    let lent: Vec<_> = (0..MAX_SESSIONS).map(|_| (site.borrow().unwrap(), site.guest())).collect();
    let Err(AgentError::Refused(refusal)) = site.borrow() else { panic!("beyond the limit") };
    assert_eq!(refusal.code, RefusalCode::Busy);
    assert!(refusal.message.contains(&MAX_SESSIONS.to_string()), "{refusal}");
    // Forwarded connections have a limit of their own.
    let forward = Connector { handshake: Handshake::Broker(Destination::Forward), ..site.broker.clone() };
    assert!(!matches!(forward.connect(MINUTE), Err(AgentError::Refused(r)) if r.code == RefusalCode::Busy));
    for (client, mut guest) in lent {
        drop(client);
        assert_eq!(guest.read(&mut [0]).unwrap(), 0);
    }
    // The broker is told that the guest has closed them.
    let again = (0..MAX_SESSIONS).map(|_| {
        let begun = Instant::now();
        loop {
            match site.borrow() {
                Err(AgentError::Refused(_)) if begun.elapsed() < MINUTE => std::thread::yield_now(),
                borrowed => return (borrowed.unwrap(), site.guest()),
            }
        }
    });
    assert_eq!(again.collect::<Vec<_>>().len(), MAX_SESSIONS);
}

#[test]
fn a_client_that_leaves_before_the_vmm_has_answered_closes_nothing() {
    let site = site(Handshake::Port(1024));
    let client = UnixStream::connect(&site.broker.socket).unwrap();
    (&client).write_all(b"{\"verb\":\"connect\",\"to\":\"agent\"}\n").unwrap();
    let mut guest = site.guest();
    let mut asked = String::new();
    BufReader::new(&guest).read_line(&mut asked).unwrap();
    assert_eq!(asked, "CONNECT 1024\n");
    drop(client);
    // Another client is served meanwhile, by which time the broker has seen the first one's end.
    let broker = site.broker.clone();
    let mut other = std::thread::scope(|scope| {
        let other = scope.spawn(move || broker.connect(MINUTE).unwrap());
        let theirs = site.guest();
        BufReader::new(&theirs).read_line(&mut String::new()).unwrap();
        (&theirs).write_all(b"OK 5\n").unwrap();
        (other.join().unwrap(), theirs)
    });
    ping(&mut other.0, &other.1);
    guest.set_nonblocking(true).unwrap();
    assert!(is_nothing(&guest.read(&mut [0]).unwrap_err()), "it is still open");
    guest.set_nonblocking(false).unwrap();
    guest.write_all(b"OK 6\n").unwrap();
    assert_eq!(guest.read(&mut [0]).unwrap(), 0);
}

#[test]
fn what_is_not_a_request_is_refused() {
    let site = site(Handshake::Direct);
    for junk in [b"{\"verb\":\"connect\",\"to\":\"moon\"}\n".to_vec(), vec![b'x'; MAX_LOAN_REQUEST]] {
        let mut client = UnixStream::connect(&site.broker.socket).unwrap();
        client.write_all(&junk).unwrap();
        let mut answer = String::new();
        BufReader::new(&client).read_line(&mut answer).unwrap();
        assert!(answer.contains("invalid request"), "{answer}");
    }
}
