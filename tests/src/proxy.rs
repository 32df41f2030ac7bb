//! A proxy in front of a registry that records requests and answers as badly as a test wants. HTTP/1.1, one request for each connection.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time for the registry behind the proxy.
const UPSTREAM: Duration = Duration::from_secs(60);
/// Lines of a head, and bytes of a line.
const MAX_HEAD: (usize, u64) = (200, 64 << 10);

/// A loopback port without a listener.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    listener.local_addr().expect("its address").port()
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD` and others.
    pub method: String,
    pub path: String,
    /// Names in lower case, in their order.
    pub headers: Vec<(String, String)>,
}

impl Request {
    /// The value of a header; its name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// Whether it is a GET of a blob.
    pub fn is_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/sha256:")
    }

    /// Whether it is a GET or HEAD of a manifest or index.
    pub fn is_manifest(&self) -> bool {
        self.path.contains("/manifests/")
    }
}

/// The treatment of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    Forward,
    /// The registry's answer to a request for another path.
    Instead(String),
    /// The registry's answer, with the connection closed after this number of bytes of its body.
    CutAfter(u64),
    /// The registry's answer, stalled after this number of bytes of its body; the connection stays open.
    StallAfter(u64),
    /// No answer; the connection stays open.
    Stall,
    /// The registry's answer with its last byte changed.
    Damaged,
    /// The registry's answer with another `Content-Length`.
    Length(u64),
    /// A custom answer.
    Answer {
        status: u16,
        /// Beside `Content-Length`.
        headers: Vec<(String, String)>,
        body: Vec<u8>,
    },
}

impl Action {
    pub fn redirect(location: impl Into<String>) -> Self {
        let headers = vec![("Location".to_owned(), location.into())];
        Self::Answer { status: 307, headers, body: Vec::new() }
    }

    /// An answer without headers and body.
    pub fn status(status: u16) -> Self {
        Self::Answer { status, headers: Vec::new(), body: Vec::new() }
    }
}

struct Shared {
    upstream: SocketAddr,
    rule: Box<dyn Fn(&Request) -> Action + Send + Sync>,
    requests: Mutex<Vec<Request>>,
    connections: Mutex<Vec<TcpStream>>,
    is_over: AtomicBool,
}

/// A running proxy, which ends with the value.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: Option<JoinHandle<()>>,
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Proxy {
    /// A proxy in front of the server at a loopback port.
    pub fn start(upstream_port: u16, rule: impl Fn(&Request) -> Action + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("its address");
        let shared = Arc::new(Shared {
            upstream: SocketAddr::from((Ipv4Addr::LOCALHOST, upstream_port)),
            rule: Box::new(rule),
            requests: Mutex::default(),
            connections: Mutex::default(),
            is_over: AtomicBool::new(false),
        });
        let of_thread = Arc::clone(&shared);
        let accepting = Some(std::thread::spawn(move || accept(&listener, &of_thread)));
        Self { address, shared, accepting }
    }

    /// One that only records.
    pub fn recording(upstream_port: u16) -> Self {
        Self::start(upstream_port, |_| Action::Forward)
    }

    /// Where it listens; the first part of the images' names.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The whole name of an image of the registry behind it.
    pub fn name(&self, name: &str) -> String {
        format!("{}/{name}", self.host())
    }

    /// The requests so far, in order. A request is recorded before anything of its answer is sent.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.requests.lock().unwrap().clone()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.shared.requests.lock().unwrap().clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts; if that fails there is nothing to wake.
        drop(TcpStream::connect(self.address));
        if let Some(accepting) = self.accepting.take() {
            // A panic of it was printed already.
            accepting.join().ok();
        }
        for connection in self.shared.connections.lock().unwrap().iter() {
            // The other end may have closed it.
            connection.shutdown(Shutdown::Both).ok();
        }
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.is_over.load(Ordering::SeqCst) {
            return;
        }
        let Ok(client) = client else { continue };
        if let Ok(copy) = client.try_clone() {
            shared.connections.lock().unwrap().push(copy);
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            // Many tests are about an end that hangs up.
            serve(&client, &shared).ok();
            client.shutdown(Shutdown::Both).ok();
        });
    }
}

fn serve(client: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut reader = BufReader::new(client);
    let head = read_head(&mut reader)?;
    let mut words = head.first.split(' ').map(str::to_owned);
    let (Some(method), Some(path)) = (words.next(), words.next()) else { return Ok(()) };
    let mut body = Vec::new();
    if let Some(length) = head.length() {
        reader.by_ref().take(length).read_to_end(&mut body)?;
    }
    let mut request = Request { method, path, headers: head.headers };
    shared.requests.lock().unwrap().push(request.clone());
    let limit = match (shared.rule)(&request) {
        Action::Stall => return wait_for_hang_up(&mut reader),
        Action::Answer { status, headers, body } => return answer(client, status, &headers, &body),
        Action::Instead(path) => {
            request.path = path;
            Limit::None
        }
        Action::Forward => Limit::None,
        Action::CutAfter(bytes) => Limit::Cut(bytes),
        Action::StallAfter(bytes) => Limit::Stall(bytes),
        Action::Length(bytes) => Limit::Length(bytes),
        Action::Damaged => Limit::Damaged,
    };
    forward(client, shared.upstream, &request, &body, limit)?;
    if matches!(limit, Limit::Stall(_)) {
        wait_for_hang_up(&mut reader)?;
    }
    Ok(())
}

/// A change of the registry's answer.
#[derive(Debug, Clone, Copy)]
enum Limit {
    None,
    Cut(u64),
    Stall(u64),
    Length(u64),
    Damaged,
}

fn forward(
    mut client: &TcpStream,
    upstream: SocketAddr,
    request: &Request,
    body: &[u8],
    limit: Limit,
) -> io::Result<()> {
    let mut server = TcpStream::connect(upstream)?;
    server.set_read_timeout(Some(UPSTREAM))?;
    let mut head = format!("{} {} HTTP/1.1\r\n", request.method, request.path);
    for (name, value) in request.headers.iter().filter(|(name, _)| name != "connection") {
        head += &format!("{name}: {value}\r\n");
    }
    head += "connection: close\r\n\r\n";
    server.write_all(head.as_bytes())?;
    server.write_all(body)?;

    let mut reader = BufReader::new(server);
    let head = read_head(&mut reader)?;
    let mut text = format!("{}\r\n", head.first);
    for (name, value) in head.headers.iter().filter(|(name, _)| name != "connection") {
        let lie = match limit {
            Limit::Length(bytes) if name == "content-length" => Some(bytes.to_string()),
            _ => None,
        };
        text += &format!("{name}: {}\r\n", lie.as_ref().unwrap_or(value));
    }
    text += "connection: close\r\n\r\n";
    client.write_all(text.as_bytes())?;
    let most = match limit {
        Limit::Cut(bytes) | Limit::Stall(bytes) => bytes,
        Limit::None | Limit::Length(_) | Limit::Damaged => u64::MAX,
    };
    if matches!(limit, Limit::Damaged) {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes)?;
        if let Some(last) = bytes.last_mut() {
            *last ^= 1;
        }
        client.write_all(&bytes)?;
    } else {
        io::copy(&mut reader.take(most), &mut client)?;
    }
    client.flush()
}

fn answer(mut client: &TcpStream, status: u16, headers: &[(String, String)], body: &[u8]) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} Because\r\n");
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    text += &format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    client.write_all(text.as_bytes())?;
    client.write_all(body)
}

/// Until the client, or the end of the proxy, closes the connection.
fn wait_for_hang_up(reader: &mut impl Read) -> io::Result<()> {
    io::copy(reader, &mut io::sink()).map(|_| ())
}

struct Head {
    first: String,
    headers: Vec<(String, String)>,
}

impl Head {
    fn length(&self) -> Option<u64> {
        self.headers.iter().find(|(name, _)| name == "content-length")?.1.parse().ok()
    }
}

fn read_head(reader: &mut impl BufRead) -> io::Result<Head> {
    let mut reader = reader.take(MAX_HEAD.1);
    let mut line = || {
        let mut line = String::new();
        reader.read_line(&mut line).map(|_| line.trim_end().to_owned())
    };
    let first = line()?;
    let mut headers = Vec::new();
    while headers.len() < MAX_HEAD.0 {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(Head { first, headers })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn ask(address: &str, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nX-Test: 1\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        // A cut connection may end with an error, but the bytes before it count.
        stream.read_to_end(&mut answer).ok();
        String::from_utf8(answer).unwrap()
    }

    fn server() -> Proxy {
        let body = b"0123456789".to_vec();
        Proxy::start(1, move |_| Action::Answer { status: 200, headers: Vec::new(), body: body.clone() })
    }

    #[test]
    fn answers_are_forwarded_cut_or_made_up_and_requests_recorded() {
        let server = server();
        let times = AtomicUsize::new(0);
        let proxy = Proxy::start(server.address.port(), move |request| match request.path.as_str() {
            "/cut" => match times.fetch_add(1, Ordering::SeqCst) {
                0 => Action::CutAfter(4),
                _ => Action::Forward,
            },
            "/lie" => Action::Length(5),
            "/gone" => Action::redirect("http://127.0.0.1:1/there"),
            "/other" => Action::Instead("/forwarded".to_owned()),
            _ => Action::Forward,
        });
        let bodies = ["/plain", "/cut", "/cut", "/other"].map(|path| {
            let answer = ask(&proxy.host(), path);
            assert!(answer.contains("content-length: 10\r\n"), "{answer}");
            answer.split_once("\r\n\r\n").unwrap().1.to_owned()
        });
        assert_eq!(bodies, ["0123456789", "0123", "0123456789", "0123456789"]);
        assert!(ask(&proxy.host(), "/lie").contains("content-length: 5\r\n"));
        assert!(ask(&proxy.host(), "/gone").contains("Location: http://127.0.0.1:1/there\r\n"));
        let seen = proxy.requests();
        assert_eq!(seen.len(), 6);
        assert_eq!(seen[0].header("x-test"), Some("1"));
        assert!(server.requests().iter().any(|request| request.path == "/forwarded"));
    }

    #[test]
    fn a_stall_lasts_until_the_proxy_goes() {
        let server = server();
        let proxy = Proxy::start(server.address.port(), |_| Action::StallAfter(3));
        let host = proxy.host();
        let asking = std::thread::spawn(move || ask(&host, "/"));
        crate::wait::until("the request", || !server.requests().is_empty());
        assert!(!asking.is_finished());
        drop(proxy);
        let answer = asking.join().unwrap();
        assert!(answer.is_empty() || answer.contains("200"), "{answer}");
    }
}
