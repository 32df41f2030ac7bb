//! Handlers against real servers on the loopback interface.

use super::wire::Limit;
use super::*;
use magikvm_proto::lifecycle::Scheme;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);

fn limit(timeout: Duration) -> Limit {
    Limit::new(timeout, Arc::new(Bell::new().unwrap()))
}

fn attempt(handler: &Handler, timeout: Duration) -> Outcome {
    contact(handler, Purpose::Probe, &LOOPBACK, &limit(timeout)).unwrap()
}

fn failure(handler: &Handler, timeout: Duration) -> String {
    match attempt(handler, timeout) {
        Outcome::Failure(message) => message,
        other => panic!("{other:?}"),
    }
}

fn http(port: u16, path: &str) -> Handler {
    Handler::HttpGet { scheme: Scheme::Http, host: None, port, path: path.to_owned(), headers: Vec::new() }
}

/// A server that serves connections one after the other, with the number of each, until the test ends.
fn serve(mut each: impl FnMut(usize, TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            each(number, stream.unwrap());
        }
    });
    address
}

/// Waits until the other side sends something or ends.
fn hear(stream: &mut TcpStream) -> usize {
    stream.read(&mut [0; 4096]).unwrap_or(0)
}

/// The head of a request.
fn request(stream: &mut TcpStream) -> String {
    let mut text = Vec::new();
    let mut byte = [0];
    while !text.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
        text.push(byte[0]);
    }
    String::from_utf8(text).unwrap()
}

/// A server that answers every request with this.
fn answering(answer: impl Into<String>) -> u16 {
    let answer = answer.into();
    let address = serve(move |_, mut stream| {
        request(&mut stream);
        stream.write_all(answer.as_bytes()).ok();
    });
    address.port()
}

#[test]
fn a_status_from_200_to_399_is_success() {
    for status in ["200 OK", "204 No Content", "302 Found", "399 Odd"] {
        let port = answering(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n"));
        assert_eq!(attempt(&http(port, "/"), PATIENCE), Outcome::Success, "{status}");
    }
    for status in ["400", "404", "500", "503", "101"] {
        let port = answering(format!("HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n"));
        let expected = format!("HTTP probe failed with statuscode: {status}");
        assert_eq!(failure(&http(port, "/"), PATIENCE), expected);
        // A hook only has to be heard.
        let hook = contact(&http(port, "/"), Purpose::Hook, &LOOPBACK, &limit(PATIENCE));
        assert_eq!(hook, Some(Outcome::Success));
    }
    let old = answering("HTTP/1.0 200 OK\r\n\r\nhello");
    assert_eq!(attempt(&http(old, "/"), PATIENCE), Outcome::Success);
}

#[test]
fn a_request_is_what_the_kubelet_sends() {
    let (tell, told) = mpsc::channel();
    let address = serve(move |_, mut stream| {
        tell.send(request(&mut stream)).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let port = address.port();
    assert_eq!(attempt(&http(port, "ready?a=b c"), PATIENCE), Outcome::Success);
    assert_eq!(
        told.recv().unwrap(),
        format!(
            "GET /ready?a=b%20c HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUser-Agent: kube-probe/magikvm\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        )
    );
    let headers = [
        ("host", "shop.example"),
        ("X-A", "1"),
        ("X-A", "2"),
        ("User-Agent", "me"),
        ("Accept", ""),
        ("Content-Length", "5"),
    ];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let handler = Handler::HttpGet {
        scheme: Scheme::Http,
        host: Some("localhost".to_owned()),
        port,
        path: "/".to_owned(),
        headers,
    };
    assert_eq!(attempt(&handler, PATIENCE), Outcome::Success);
    assert_eq!(
        told.recv().unwrap(),
        "GET / HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\nX-A: 1\r\nX-A: 2\r\nUser-Agent: me\r\n\r\n"
    );
    contact(&http(port, "/"), Purpose::Hook, &LOOPBACK, &limit(PATIENCE)).unwrap();
    assert!(told.recv().unwrap().contains("User-Agent: kube-lifecycle/magikvm\r\n"));
}

#[test]
fn redirects_are_followed_on_the_same_host_only() {
    let (tell, told) = mpsc::channel();
    let address = serve(move |number, mut stream| {
        let port = stream.local_addr().unwrap().port();
        let text = request(&mut stream);
        tell.send(text.lines().take(2).collect::<Vec<_>>().join(" ")).unwrap();
        let location = match number {
            0 => "/second".to_owned(),
            1 => format!("http://127.0.0.1:{port}/third"),
            _ => "https://www.shop.example/".to_owned(),
        };
        write!(stream, "HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n").unwrap();
    });
    let port = address.port();
    let headers = vec![("Host".to_owned(), "shop.example".to_owned())];
    let handler = Handler::HttpGet { scheme: Scheme::Http, host: None, port, path: "/".to_owned(), headers };
    // The last one leads elsewhere, which ends it well.
    assert_eq!(attempt(&handler, PATIENCE), Outcome::Success);
    let seen: Vec<String> = told.try_iter().collect();
    assert_eq!(
        seen,
        [
            "GET / HTTP/1.1 Host: shop.example".to_owned(),
            "GET /second HTTP/1.1 Host: shop.example".to_owned(),
            format!("GET /third HTTP/1.1 Host: 127.0.0.1:{port}"),
        ]
    );
    let port = answering("HTTP/1.1 301 Moved\r\nLocation: /again\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(
        failure(&http(port, "/"), PATIENCE),
        format!("Get \"http://127.0.0.1:{port}/again\": stopped after 10 redirects")
    );
}

#[test]
fn what_is_no_answer_is_named() {
    let closing = serve(|_, stream| drop(stream)).port();
    let found = failure(&http(closing, "/"), PATIENCE);
    assert!(found.starts_with(&format!("Get \"http://127.0.0.1:{closing}/\": ")), "{found}");
    assert!(found.ends_with("EOF") || found.ends_with("connection reset by peer"), "{found}");
    let other = answering("220 mail.example ESMTP\r\n");
    assert_eq!(
        failure(&http(other, "/x"), PATIENCE),
        format!(
            "Get \"http://127.0.0.1:{other}/x\": net/http: HTTP/1.x transport connection broken: malformed HTTP response \"220 mail.example ESMTP\""
        )
    );
    // A port that was free a moment ago.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_eq!(
        failure(&http(nobody, "/"), PATIENCE),
        format!(
            "Get \"http://127.0.0.1:{nobody}/\": dial tcp 127.0.0.1:{nobody}: connect: connection refused"
        )
    );
    let tcp = Handler::TcpSocket { host: None, port: nobody };
    assert_eq!(failure(&tcp, PATIENCE), format!("dial tcp 127.0.0.1:{nobody}: connect: connection refused"));
    let six = Handler::TcpSocket { host: Some("::1".to_owned()), port: nobody };
    assert!(failure(&six, PATIENCE).starts_with(&format!("dial tcp [::1]:{nobody}: connect: ")));
    let name = Handler::TcpSocket { host: Some("shop.example".to_owned()), port: 80 };
    assert_eq!(failure(&name, PATIENCE), "dial tcp: lookup shop.example: no names are resolved");
}

#[test]
fn nothing_that_a_server_does_takes_longer_than_the_timeout_or_more_memory_than_the_limit() {
    let timeout = Duration::from_millis(300);
    let silent = serve(|_, mut stream| {
        request(&mut stream);
        // Until the probe gives up.
        hear(&mut stream);
    });
    let slow = serve(|_, mut stream| {
        request(&mut stream);
        for byte in b"HTTP/1.1 200 OK\r\nA: ".iter().chain(std::iter::repeat(&b'x')) {
            let pause = stream.set_read_timeout(Some(Duration::from_millis(20)));
            if pause.is_err()
                || stream.read(&mut [0]).is_ok_and(|count| count == 0)
                || stream.write(&[*byte]).is_err()
            {
                return;
            }
        }
    });
    for port in [silent.port(), slow.port()] {
        let begun = Instant::now();
        assert_eq!(
            failure(&http(port, "/"), timeout),
            format!(
                "Get \"http://127.0.0.1:{port}/\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
            )
        );
        assert!((timeout..PATIENCE).contains(&begun.elapsed()));
    }
    let endless = |head: &'static str, piece: &'static str| {
        serve(move |_, mut stream| {
            request(&mut stream);
            let mut sent = stream.write_all(head.as_bytes());
            while sent.is_ok() {
                sent = stream.write_all(piece.as_bytes());
            }
        })
        .port()
    };
    let headers = endless("HTTP/1.1 200 OK\r\n", "A: bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\r\n");
    assert_eq!(
        failure(&http(headers, "/"), PATIENCE),
        format!(
            "Get \"http://127.0.0.1:{headers}/\": net/http: server response headers exceeded 65536 bytes; aborted"
        )
    );
    let body =
        endless("HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n", "bbbbbbbbbbbbbbbbbbbbbbbbbbbb");
    assert_eq!(attempt(&http(body, "/"), PATIENCE), Outcome::Success);
    let chunks = endless("HTTP/1.1 503 X\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nb\r\n");
    assert_eq!(failure(&http(chunks, "/"), PATIENCE), "HTTP probe failed with statuscode: 503");
    // One that reads nothing and whose window is full.
    let deaf = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = deaf.local_addr().unwrap().port();
    let headers = (0..64).map(|number| (format!("X-{number}"), "x".repeat(4096))).collect();
    let large = Handler::HttpGet { scheme: Scheme::Http, host: None, port, path: "/".to_owned(), headers };
    assert!(failure(&large, timeout).contains("context deadline exceeded"));
}

#[test]
fn both_address_families_are_asked() {
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let text = request(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
        text
    });
    let handler = Handler::HttpGet {
        scheme: Scheme::Http,
        host: Some("::1".to_owned()),
        port,
        path: "/".to_owned(),
        headers: Vec::new(),
    };
    assert_eq!(attempt(&handler, PATIENCE), Outcome::Success);
    assert!(server.join().unwrap().contains(&format!("\r\nHost: [::1]:{port}\r\n")));
    // Without a host, what listens on one of both loopback addresses is found.
    let listener = TcpListener::bind("[::1]:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(attempt(&Handler::TcpSocket { host: None, port }, PATIENCE), Outcome::Success);
}

/// A TLS server with a certificate that nobody signed, for another name.
#[cfg(feature = "https")]
fn tls_server() -> u16 {
    let made = rcgen::generate_simple_self_signed(["other.example".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let config = Arc::new(config);
    serve(move |_, stream| {
        let connection = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
        let mut tls = rustls::StreamOwned::new(connection, stream);
        let mut request = [0; 4096];
        if tls.read(&mut request).is_ok_and(|count| count > 0) {
            // The connection ends without a word of TLS, as with many servers.
            tls.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").ok();
        }
    })
    .port()
}

#[cfg(feature = "https")]
#[test]
fn https_is_spoken_without_verification() {
    let https = |port| Handler::HttpGet {
        scheme: Scheme::Https,
        host: None,
        port,
        path: "/".to_owned(),
        headers: Vec::new(),
    };
    let port = tls_server();
    assert_eq!(attempt(&https(port), PATIENCE), Outcome::Success);
    // The wrong scheme, in both directions.
    assert!(
        failure(&http(port, "/"), PATIENCE).contains("malformed HTTP response"),
        "TLS answers with an alert"
    );
    let plain = serve(|_, mut stream| {
        // What is no request has no end that it could wait for.
        hear(&mut stream);
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").ok();
    })
    .port();
    assert_eq!(
        failure(&https(plain), PATIENCE),
        format!("Get \"https://127.0.0.1:{plain}/\": tls: first record does not look like a TLS handshake")
    );
    // A hook tries again without TLS.
    let hook = contact(&https(plain), Purpose::Hook, &LOOPBACK, &limit(PATIENCE));
    assert_eq!(hook, Some(Outcome::Success));
    // A redirect may change the scheme.
    let to_tls = answering(format!("HTTP/1.1 301 Moved\r\nLocation: https://127.0.0.1:{port}/\r\n\r\n"));
    assert_eq!(attempt(&http(to_tls, "/"), PATIENCE), Outcome::Success);
    let silent =
        serve(|_, mut stream| while stream.read(&mut [0; 512]).is_ok_and(|count| count > 0) {}).port();
    let found = failure(&https(silent), Duration::from_millis(300));
    assert!(found.contains("context deadline exceeded"), "{found}");
}

#[test]
fn an_attempt_ends_when_it_is_cancelled() {
    let silent =
        serve(|_, mut stream| while stream.read(&mut [0; 512]).is_ok_and(|count| count > 0) {}).port();
    let handlers = [
        http(silent, "/"),
        Handler::HttpGet {
            scheme: Scheme::Https,
            host: None,
            port: silent,
            path: "/".to_owned(),
            headers: Vec::new(),
        },
        Handler::Grpc { port: silent, service: String::new() },
        Handler::Sleep { seconds: 1000 },
    ];
    for handler in handlers {
        let bell = Arc::new(Bell::new().unwrap());
        let limit = Limit::new(Duration::from_secs(3600), Arc::clone(&bell));
        let running = Running(Some(bell));
        let working = std::thread::spawn(move || contact(&handler, Purpose::Probe, &LOOPBACK, &limit));
        drop(running);
        assert_eq!(working.join().unwrap(), None);
    }
}

#[test]
fn a_hook_sleeps_as_long_as_it_may() {
    let sleep = |seconds, timeout| attempt(&Handler::Sleep { seconds }, timeout);
    assert_eq!(sleep(0, PATIENCE), Outcome::Success);
    let begun = Instant::now();
    assert_eq!(sleep(1, PATIENCE), Outcome::Success);
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(
        sleep(1000, Duration::from_millis(50)),
        Outcome::Failure("it did not end within 50ms".to_owned())
    );
}

#[test]
fn the_pod_is_asked_at_its_first_address() {
    assert_eq!(addresses(None), LOOPBACK);
    let pod: Vec<IpAddr> = vec!["10.0.2.15".parse().unwrap()];
    assert_eq!(Where::of(None, &pod), Where { name: "10.0.2.15".to_owned(), addresses: pod.clone() });
    let of = |host: &str| Where::of(Some(host), &pod).addresses;
    assert_eq!(of("localhost"), LOOPBACK);
    assert_eq!(of("192.0.2.1"), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(Where::of(Some("fe80::1"), &pod).with_port(80), "[fe80::1]:80");
}

/// A server of the health service, made by others.
struct Health {
    runtime: tokio::runtime::Runtime,
    reporter: tonic_health::server::HealthReporter,
    port: u16,
}

impl Health {
    fn start() -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (reporter, service) = tonic_health::server::health_reporter();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let incoming = tonic::transport::server::TcpIncoming::from(listener);
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self { runtime, reporter, port }
    }

    fn set(&self, service: &str, status: tonic_health::ServingStatus) {
        self.runtime.block_on(self.reporter.set_service_status(service, status));
    }

    fn probe(&self, service: &str) -> Handler {
        Handler::Grpc { port: self.port, service: service.to_owned() }
    }
}

#[test]
fn a_server_of_the_health_service_is_asked_for_its_health() {
    use tonic_health::ServingStatus::{NotServing, Serving, Unknown};
    let server = Health::start();
    assert_eq!(attempt(&server.probe(""), PATIENCE), Outcome::Success);
    let long = "shop.".repeat(60);
    for (service, status) in [("shop", Serving), ("bar", NotServing), ("odd", Unknown), (&long, Serving)] {
        server.set(service, status);
    }
    for service in ["shop", &long] {
        assert_eq!(attempt(&server.probe(service), PATIENCE), Outcome::Success);
    }
    assert_eq!(failure(&server.probe("bar"), PATIENCE), "service unhealthy (responded with \"NOT_SERVING\")");
    assert_eq!(failure(&server.probe("odd"), PATIENCE), "service unhealthy (responded with \"UNKNOWN\")");
    assert_eq!(
        failure(&server.probe("gone"), PATIENCE),
        "error: health rpc probe failed: rpc error: code = NotFound desc = service not registered"
    );
    server.set("bar", Serving);
    assert_eq!(attempt(&server.probe("bar"), PATIENCE), Outcome::Success);
    // Many in a row: each is a connection of its own.
    for _ in 0..50 {
        assert_eq!(attempt(&server.probe("shop"), PATIENCE), Outcome::Success);
    }
}

#[test]
fn what_is_no_server_of_the_health_service_is_named() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    listener.set_nonblocking(true).unwrap();
    runtime.spawn(async move {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let incoming = tonic::transport::server::TcpIncoming::from(listener);
        let nothing = tonic::service::Routes::default();
        tonic::transport::Server::builder().add_routes(nothing).serve_with_incoming(incoming).await.unwrap();
    });
    let grpc = |port| Handler::Grpc { port, service: "shop".to_owned() };
    let found = failure(&grpc(port), PATIENCE);
    assert!(
        found.starts_with(
            "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): "
        ),
        "{found}"
    );
    let web = answering("HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
    assert_eq!(
        failure(&grpc(web), PATIENCE),
        "error: health rpc probe failed: rpc error: code = Unavailable desc = the server does not speak HTTP/2 without TLS"
    );
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    assert_eq!(
        failure(&grpc(nobody), PATIENCE),
        format!(
            "error: failed to connect service at \"127.0.0.1:{nobody}\": dial tcp 127.0.0.1:{nobody}: connect: connection refused"
        )
    );
    let silent =
        serve(|_, mut stream| while stream.read(&mut [0; 512]).is_ok_and(|count| count > 0) {}).port();
    assert_eq!(
        failure(&grpc(silent), Duration::from_millis(200)),
        "timeout: health rpc did not complete within 200ms"
    );
    let closing = serve(|_, stream| drop(stream)).port();
    let found = failure(&grpc(closing), PATIENCE);
    assert!(
        found.starts_with("error: health rpc probe failed: rpc error: code = Unavailable desc = "),
        "{found}"
    );
}
