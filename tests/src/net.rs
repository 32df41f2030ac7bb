//! Networks for tests: namespaces with an address each and a virtual link between them, real servers in one and a separate resolver in the
//! other. Nothing exists outside of them, and all of it goes with the value.

use crate::host::Host;
use crate::virtual_machine::VmHost;
use crate::wait::wait_for;
use crate::{Cmd, Pod};
use nix::sched::{CloneFlags, setns};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Address of the namespace that runs pods.
pub const HERE_4: &str = "192.0.2.2";
/// The same by IPv6.
pub const HERE_6: &str = "2001:db8::2";
/// Addresses of the namespace at the other end of the link, which has all servers.
pub const THERE: [&str; 6] =
    ["192.0.2.1", "203.0.113.5", "203.0.113.6", "169.254.169.254", "2001:db8::1", "2001:db8:1::5"];
/// Port of the server for large transfers.
pub const BULK_PORT: u16 = 8090;
const CHUNK: usize = 1 << 16;
const NSENTER: &str = "nsenter";

/// A network namespace, and a mount namespace with a private `/etc/resolv.conf`.
#[derive(Debug)]
pub struct Namespace {
    /// Keeps the namespace alive until its standard input is closed.
    holder: Child,
    _dir: tempfile::TempDir,
    dir: PathBuf,
}

impl Namespace {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("magikvm-net-").tempdir().expect("a temporary directory");
        let resolv = dir.path().join("resolv.conf");
        fs::write(&resolv, "").unwrap();
        // Without duplicate address detection, which takes a second.
        let script = "mount --make-rprivate / && mount --bind \"$0\" /etc/resolv.conf
            for dir in /proc/sys/net/ipv6/conf/all /proc/sys/net/ipv6/conf/default; do echo 0 >$dir/accept_dad; done
            ip link set lo up && echo ready && exec cat";
        let mut holder = Command::new("unshare")
            .args(["--net", "--mount", "sh", "-c", script])
            .arg(&resolv)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("run unshare (the tests of networks are for root)");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "cannot make a network namespace");
        let path = dir.path().to_owned();
        Self { holder, _dir: dir, dir: path }
    }

    fn pid(&self) -> u32 {
        self.holder.id()
    }

    #[track_caller]
    pub fn run(&self, words: &str) {
        self.enter(Cmd::new(NSENTER)).args(words.split_ascii_whitespace()).ok();
    }

    /// Completes a command of `nsenter`, which runs the command in its arguments.
    pub fn enter(&self, nsenter: Cmd) -> Cmd {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let [_, arguments @ ..] = self.entry();
        nsenter.args(arguments).env("PATH", path)
    }

    /// The program and the arguments that start another program in it.
    pub fn entry(&self) -> [String; 3] {
        let namespace = |kind: &str, file: &str| format!("--{kind}=/proc/{}/ns/{file}", self.pid());
        [NSENTER.to_owned(), namespace("net", "net"), namespace("mount", "mnt")]
    }

    /// `magikvm` in it.
    pub fn cmd<A: AsRef<OsStr>>(&self, host: &Host, args: impl IntoIterator<Item = A>) -> Cmd {
        self.enter(host.other(NSENTER)).args(host.words()).args(args)
    }

    /// Starts a pod in it.
    #[track_caller]
    pub fn start(&self, host: &VmHost, pod: &Pod) {
        self.cmd(host, ["run", "-d", "--class", host.driver().class()]).arg(host.manifest(pod)).ok();
    }

    /// Replaces the content of its `/etc/resolv.conf`.
    pub fn set_resolv(&self, text: &str) {
        fs::write(self.dir.join("resolv.conf"), text).unwrap();
    }

    /// Calls `body` on a thread in this namespace, in which its sockets stay.
    fn inside<T: Send + 'static>(&self, body: impl FnOnce() -> T + Send + 'static) -> T {
        let namespace = File::open(format!("/proc/{}/ns/net", self.pid())).unwrap();
        let thread = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter a network namespace");
            body()
        });
        thread.join().unwrap()
    }

    /// The answer to a UDP packet. The pod's server may not listen yet, so that the packet is repeated until an answer arrives.
    pub fn udp_answer(&self, to: &str, said: &'static str) -> Option<String> {
        const TRIES: usize = 40;
        let to: SocketAddr = to.parse().unwrap();
        self.inside(move || {
            let here: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
            let socket = UdpSocket::bind(here).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            let mut answer = [0; 2048];
            (0..TRIES).find_map(|_| {
                socket.send_to(said.as_bytes(), to).unwrap();
                let (length, _) = socket.recv_from(&mut answer).ok()?;
                Some(String::from_utf8_lossy(&answer[..length]).into_owned())
            })
        })
    }

    /// What a TCP server says to a client that says nothing. The pod's server may not listen yet, so that the client tries again until it hears
    /// something.
    pub fn tcp_answer(&self, to: &str) -> Option<String> {
        const TRIES: usize = 40;
        let to: SocketAddr = to.parse().unwrap();
        self.inside(move || {
            (0..TRIES).find_map(|_| {
                let mut answer = [0; 2048];
                let heard = TcpStream::connect(to).and_then(|mut stream| {
                    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                    stream.read(&mut answer)
                });
                match heard {
                    Ok(length) if length > 0 => Some(String::from_utf8_lossy(&answer[..length]).into_owned()),
                    // Nobody listens yet.
                    Ok(_) | Err(_) => {
                        std::thread::sleep(Duration::from_millis(250));
                        None
                    }
                }
            })
        })
    }

    /// Sends a UDP packet.
    pub fn send_udp(&self, to: &str, said: &'static str) {
        let to: SocketAddr = to.parse().unwrap();
        self.inside(move || UdpSocket::bind("0.0.0.0:0").unwrap().send_to(said.as_bytes(), to).unwrap());
    }

    /// The UDP sockets of IPv4 in it: their own addresses, and their peers', which are 0 for sockets that hear everybody.
    pub fn udp_sockets(&self) -> Vec<(SocketAddr, SocketAddr)> {
        let table = fs::read_to_string(format!("/proc/{}/net/udp", self.pid())).unwrap();
        let address = |text: &str| {
            let (ip, port) = text.split_once(':').unwrap();
            let ip = u32::from_str_radix(ip, 16).unwrap().to_ne_bytes();
            SocketAddr::new(IpAddr::from(ip), u16::from_str_radix(port, 16).unwrap())
        };
        let socket = |line: &str| {
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            (address(words[1]), address(words[2]))
        };
        table.lines().skip(1).map(socket).collect()
    }

    /// A server of TCP and UDP. It sends its address to each TCP client and closes the connection. At port [`BULK_PORT`] it goes on: it answers a
    /// line `send N` with that number of bytes, and a line `take N` and that number of bytes with the count received. It returns a UDP packet
    /// after its address. (With the network passt: the passt of March 2023 in Debian 12 does not forward the other side's end of a connection to the guest once the guest
    /// has ended its side, so that the server always ends first.)
    pub fn serve(&self, address: &str) {
        let address: SocketAddr = address.parse().unwrap();
        let (tcp, udp) =
            self.inside(move || (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap()));
        std::thread::spawn(move || {
            for stream in tcp.incoming().map_while(Result::ok) {
                std::thread::spawn(move || converse(stream, address.port() == BULK_PORT));
            }
        });
        std::thread::spawn(move || {
            let mut data = [0; 2048];
            while let Ok((length, from)) = udp.recv_from(&mut data) {
                let answer = [address.to_string().as_bytes(), b" ", &data[..length]].concat();
                udp.send_to(&answer, from).ok();
            }
        });
    }

    /// A DNS server (dnsmasq) at port 53 of an address that knows only these names.
    #[track_caller]
    pub fn serve_names(&self, address: &str, names: &[(&str, &str)]) -> NameServer {
        let mut dnsmasq = Command::new(NSENTER);
        dnsmasq.arg(format!("--net=/proc/{}/ns/net", self.pid())).args([
            "dnsmasq",
            "--keep-in-foreground",
            "--conf-file=/dev/null",
            "--no-hosts",
            "--no-resolv",
            "--bind-interfaces",
            "--pid-file=",
            "--user=root",
            "--log-facility=/dev/null",
        ]);
        dnsmasq.arg(format!("--listen-address={address}"));
        for (name, means) in names {
            let option = if means.parse::<IpAddr>().is_ok() { "host-record" } else { "cname" };
            dnsmasq.arg(format!("--{option}={name},{means}"));
        }
        let child = dnsmasq.stdin(Stdio::null()).spawn().expect("run dnsmasq (Debian package dnsmasq-base)");
        let pid = self.pid();
        wait_for("dnsmasq listens", Duration::from_secs(10), || {
            let sockets = fs::read_to_string(format!("/proc/{pid}/net/udp")).unwrap();
            sockets.lines().any(|line| line.contains(":0035 ")).then_some(())
        });
        NameServer(child)
    }
}

impl Default for Namespace {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.holder.kill().is_ok() {
            self.holder.wait().ok();
        }
    }
}

#[derive(Debug)]
pub struct NameServer(Child);

impl Drop for NameServer {
    fn drop(&mut self) {
        if self.0.kill().is_ok() {
            self.0.wait().ok();
        }
    }
}

/// The first line is the request. If there is none, the server has closed the connection already.
fn converse(mut stream: TcpStream, is_patient: bool) {
    let own = stream.local_addr().map(|address| address.to_string()).unwrap_or_default();
    if stream.write_all(format!("{own}\n").as_bytes()).is_err() || !is_patient {
        return;
    }
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    if reader.by_ref().take(100).read_line(&mut line).is_err() {
        return;
    }
    let mut data = vec![b'x'; CHUNK];
    match line.trim().split_once(' ').and_then(|(verb, count)| Some((verb, count.parse::<usize>().ok()?))) {
        Some(("send", mut left)) => {
            while left > 0 && (&stream).write_all(&data[..left.min(CHUNK)]).is_ok() {
                left = left.saturating_sub(CHUNK);
            }
        }
        Some(("take", wanted)) => {
            let mut taken = 0;
            while taken < wanted {
                match reader.read(&mut data) {
                    Ok(length) if length > 0 => taken += length,
                    _ => break,
                }
            }
            (&stream).write_all(format!("{taken} bytes\n").as_bytes()).ok();
        }
        _ => {}
    }
}

/// Two namespaces and a link.
#[derive(Debug)]
pub struct Wire {
    /// The namespace that runs pods. Its default routes lead to the other one.
    pub here: Namespace,
    pub there: Namespace,
}

impl Wire {
    /// Both namespaces, with a server at port 8080 of each address.
    pub fn new() -> Self {
        let (here, there) = (Namespace::new(), Namespace::new());
        let peer = there.pid();
        here.run(&format!("ip link add name wire type veth peer name wire netns {peer}"));
        for side in [&here, &there] {
            side.run("ip link set wire up mtu 1500");
        }
        here.run(&format!("ip address add {HERE_4}/24 dev wire"));
        here.run(&format!("ip -6 address add {HERE_6}/64 dev wire nodad"));
        for address in THERE {
            let (family, bits) = match (address, address.contains(':')) {
                ("192.0.2.1", _) => ("-4", 24),
                ("2001:db8::1", _) => ("-6", 64),
                (_, true) => ("-6", 128),
                (_, false) => ("-4", 32),
            };
            there.run(&format!("ip {family} address add {address}/{bits} dev wire"));
        }
        here.run("ip route add default via 192.0.2.1");
        here.run("ip -6 route add default via 2001:db8::1");
        for address in THERE {
            there.serve(&at(address, 8080));
            there.serve(&at(address, BULK_PORT));
        }
        for address in ["127.0.0.1", HERE_4, HERE_6] {
            here.serve(&at(address, 8080));
        }
        Self { here, there }
    }
}

impl Default for Wire {
    fn default() -> Self {
        Self::new()
    }
}

/// An address and a port.
pub fn at(address: &str, port: u16) -> String {
    SocketAddr::new(address.parse().unwrap(), port).to_string()
}
