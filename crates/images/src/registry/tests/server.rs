//! A server on the standard library: one thread and one request for each connection, and a closure that writes the answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use tokio::net::TcpSocket;

#[derive(Debug, Clone, Default)]
pub(in crate::registry) struct Seen {
    pub(super) method: String,
    pub(super) target: String,
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The start of the requested range.
    pub(super) fn range(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }

    fn read(stream: &TcpStream) -> io::Result<Self> {
        let mut reader = BufReader::new(stream);
        let mut line = || -> io::Result<String> {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            Ok(line.trim_end().to_owned())
        };
        let first = line()?;
        let mut words = first.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut headers = Vec::new();
        loop {
            let line = line()?;
            let Some((key, value)) = line.split_once(':') else { break };
            headers.push((key.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let mut seen = Self { method, target, headers, body: String::new() };
        let length = seen.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        reader.take(length).read_to_string(&mut seen.body)?;
        Ok(seen)
    }
}

/// Ends with the value.
pub(in crate::registry) struct Server {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(in crate::registry) fn start(
        handler: impl Fn(&Seen, &mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (seen, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (all, ended, handler) = (Arc::clone(&seen), Arc::clone(&stop), Arc::new(handler));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    break;
                }
                let (all, handler) = (Arc::clone(&all), Arc::clone(&handler));
                let Ok(mut stream) = stream else { continue };
                std::thread::spawn(move || {
                    let seen = match Seen::read(&stream) {
                        // An unused connection.
                        Ok(seen) if seen.method.is_empty() => return,
                        Ok(seen) => {
                            all.lock().unwrap().push(seen.clone());
                            seen
                        }
                        // Not HTTP.
                        Err(_) => Seen::default(),
                    };
                    // Some tests close the connection in the middle.
                    drop(handler(&seen, &mut stream));
                });
            }
        });
        Self { address, seen, stop, thread: Some(thread) }
    }

    pub(in crate::registry) fn host(&self) -> String {
        self.address.to_string()
    }

    pub(super) fn port(&self) -> u16 {
        self.address.port()
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(in crate::registry) fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

/// An address where nobody listens, and the socket that keeps it reserved.
pub(super) fn nobody() -> (TcpSocket, String) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address.to_string())
}

/// The head of an answer; every connection serves one request.
pub(super) fn head(stream: &mut TcpStream, status: u16, headers: &[(&str, &str)]) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} Text\r\nConnection: close\r\n");
    for (key, value) in headers {
        text.push_str(&format!("{key}: {value}\r\n"));
    }
    stream.write_all(format!("{text}\r\n").as_bytes())
}

pub(in crate::registry) fn reply(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<()> {
    let length = body.len().to_string();
    head(stream, status, &[headers, &[("Content-Length", &length)]].concat())?;
    stream.write_all(body)
}

/// One piece of a body without a length.
pub(super) fn piece(stream: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
    stream.write_all(bytes)?;
    stream.write_all(b"\r\n")
}

/// Sends nothing more until the client has left.
pub(super) fn hang(stream: &mut TcpStream) -> io::Result<()> {
    io::copy(stream, &mut io::sink()).map(drop)
}

/// The blob, or the requested part.
pub(super) fn blob(stream: &mut TcpStream, seen: &Seen, content: &[u8]) -> io::Result<()> {
    match seen.range() {
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", content.len() - 1, content.len());
            reply(stream, 206, &[("Content-Range", &range)], &content[start..])
        }
        None => reply(stream, 200, &[], content),
    }
}
