//! Figures of `port-forward`, each beside a bare socat on the same vsock: the throughput of a large answer, and the number of consecutive
//! connections in a second. `ci/bench.sh io` calls it. Never a test, because hosts are noisy.
//!
//! The peer is a VM of the same driver and kernel, whose init starts the same web server and `socat VSOCK-LISTEN:…,fork TCP:…`. On the host,
//! two threads copy between a TCP connection and the VMM's socket, which is the minimum. An option stops socat from waiting half a second after
//! the end of one direction, because vsock devices do not report the other end.

use magikvm::agent::{Connector, Handshake};
use magikvm::jail::{JAIL_VERB, Requirement};
use magikvm::store::layout::{Layout, Surroundings};
use magikvm::vmm::{
    self, Accel, DriverOptions, JailOptions, KernelChoice, Places, VmChild, VmConfig, VmmKind,
};
use magikvm_proto::guest_image::Arch;
use magikvm_proto::path::FORWARD_PORT;
use magikvm_tests::bench::{Bench, IMAGE, Result, var};
use magikvm_tests::figures::{median, row, time_until, warn_if_busy};
use magikvm_tests::floor;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const PAIRS: usize = 5;
/// Bytes of the large answer.
const LARGE: usize = 64 << 20;
/// Connections one after the other.
const CONNECTIONS: u32 = 200;
const MARK: &str = "serving";
const MEMORY_MIB: u64 = 384;
const VCPUS: u32 = 2;
/// The web server of both, with the busybox at this path.
fn server(busybox: &str) -> String {
    format!(
        "mkdir -p /www && echo small >/www/small && dd if=/dev/zero of=/www/large bs=1048576 count={} 2>/dev/null && {busybox}httpd -p 80 -h /www",
        LARGE >> 20
    )
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // The driver starts this program again for a VM's processes.
    match args.first().map(String::as_str) {
        Some(JAIL_VERB) => {
            std::process::exit(magikvm::jail::enter().map_or_else(|code| code, |_| vmm::krun::main()))
        }
        Some(vmm::krun::VMM_VERB) => std::process::exit(vmm::krun::main()),
        _ => {}
    }
    warn_if_busy()?;
    let (kind, accel) = match std::env::var("MAGIKVM_ACCEL").as_deref() {
        Ok("tcg") => (VmmKind::Qemu, Accel::Tcg),
        _ => (VmmKind::Krun, Accel::Kvm),
    };
    let work = tempfile::tempdir()?;
    let ours = Ours::start(work.path(), kind)?;
    let bare = Bare::start(work.path(), kind, accel)?;
    let addresses = [ours.address.as_str(), bare.address.as_str()];
    for address in addresses {
        download(address)?;
    }
    println!("{kind:?}, {PAIRS} pairs, port-forward beside a bare socat on the same vsock:");
    let compare = |what: &str, unit: &str, aim: &str, measure: fn(&str) -> Result<f64>| -> Result<()> {
        let (mut found, mut ratios) = ([Vec::new(), Vec::new()], Vec::new());
        for pair in 0..PAIRS {
            let mut order = [0, 1];
            if pair % 2 == 1 {
                order.reverse();
            }
            for whose in order {
                found[whose].push(measure(addresses[whose])?);
            }
            ratios.push(found[0][pair] / found[1][pair]);
        }
        let [mut mine, mut its] = found;
        let figures = format!("{:.1} {unit}, socat {:.1} {unit}", median(&mut mine), median(&mut its));
        row(what, format!("{figures}, median of pairs {:.2}x", median(&mut ratios)), aim);
        Ok(())
    };
    compare("a large answer", "MB/s", "0.9x", download)?;
    compare("connections one after the other", "per second", "0.9x", rate)?;
    Ok(())
}

fn get(address: &str, path: &str) -> Result<usize> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(format!("GET /{path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut buffer = vec![0; 256 << 10];
    let mut all = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(all),
            count => all += count,
        }
    }
}

/// Megabytes in a second.
#[allow(clippy::cast_precision_loss, reason = "a figure")]
fn download(address: &str) -> Result<f64> {
    let begun = Instant::now();
    let bytes = get(address, "large")?;
    if bytes < LARGE {
        return Err(format!("{bytes} bytes came from {address}").into());
    }
    Ok(bytes as f64 / 1e6 / begun.elapsed().as_secs_f64())
}

/// Connections in a second.
fn rate(address: &str) -> Result<f64> {
    let begun = Instant::now();
    for _ in 0..CONNECTIONS {
        if get(address, "small")? == 0 {
            return Err(format!("nothing came from {address}").into());
        }
    }
    Ok(f64::from(CONNECTIONS) / begun.elapsed().as_secs_f64())
}

/// A pod that serves, and a `port-forward` to it.
struct Ours {
    bench: Bench,
    forward: Child,
    address: String,
}

impl Ours {
    fn start(work: &Path, kind: VmmKind) -> Result<Self> {
        let bench = Bench::of_driver(work, kind)?;
        let script = format!("{} && echo {MARK} && sleep 100000", server(""));
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": { "name": "web", "annotations": {
                "magikvm.dev/memory-mib": MEMORY_MIB.to_string(), "magikvm.dev/vcpus": VCPUS.to_string(),
            } },
            "spec": { "terminationGracePeriodSeconds": 0, "containers": [
                { "name": "web", "image": IMAGE, "command": ["sh", "-c", script] },
            ] },
        });
        let manifest = work.join("web.json");
        fs::write(&manifest, pod.to_string())?;
        bench.run(&["run", "-d", &manifest.to_string_lossy()])?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !bench.command(&["logs", "web"]).output()?.stdout.starts_with(MARK.as_bytes()) {
            if Instant::now() > deadline {
                return Err("the pod does not serve".into());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let mut forward = bench
            .command(&["port-forward", "--address", "127.0.0.1", "web", ":80"])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(forward.stdout.take().ok_or("no pipe")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        let address = line.strip_prefix("Forwarding from ").and_then(|rest| rest.split_once(' '));
        let address = address.ok_or("port-forward did not say where")?.0.to_owned();
        // `port-forward` prints a line for each connection.
        std::thread::spawn(move || io::copy(&mut lines, &mut io::sink()));
        Ok(Self { bench, forward, address })
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.forward.kill().and_then(|()| self.forward.wait()).ok();
        self.bench.command(&["rm", "-f", "web"]).output().ok();
    }
}

/// A VM whose init serves by socat, and copying threads before it.
struct Bare {
    address: String,
    _vm: VmChild,
}

impl Bare {
    fn start(work: &Path, kind: VmmKind, accel: Accel) -> Result<Self> {
        let dir = work.join("bare");
        fs::create_dir_all(&dir)?;
        initramfs(work, &dir.join(floor::INITRAMFS))?;
        // The init mounts no disk, but a VM needs one.
        let part = dir.join("empty");
        fs::write(&part, vec![0u8; 8192])?;
        vmm::disk::compose(&dir, &[vmm::disk::Part { path: part, size: 8192 }])?;
        let layout = Layout::new(&Surroundings { root: Some(work.join("root")), ..Surroundings::default() })?;
        let places = Places::of(&layout);
        let options = DriverOptions { guest: Arch::X86_64, kernel: KernelChoice::GuestImage, places };
        let config = VmConfig {
            name: "bare".to_owned(),
            id: "bare".to_owned(),
            memory_mib: MEMORY_MIB,
            vcpus: VCPUS,
            kernel: var("MAGIKVM_TEST_GUEST")?.join("vmlinux"),
            initramfs: dir.join(floor::INITRAMFS),
            disk: vmm::disk::DESCRIPTOR.to_owned(),
            accel,
            scratch: None,
            shared: None,
            nic: None,
            held: None,
            lasting: Vec::new(),
            nested: magikvm::nested::Nested::Masked,
            jail: JailOptions {
                requirement: Requirement::Warn,
                cgroup: Err("a measurement has none".to_owned()),
            },
        };
        let mut vm = vmm::driver(kind, options).spawn(&config, &dir)?;
        let mut seen = Vec::new();
        if time_until(MARK, &mut vm.console, Instant::now(), &mut seen)?.is_none() {
            return Err(format!("the bare VM ended: {}", String::from_utf8_lossy(&seen)).into());
        }
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?.to_string();
        let guest = vm.connector.forwards();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(io::Result::ok) {
                let guest = guest.clone();
                std::thread::spawn(move || copy(&client, &guest).ok());
            }
        });
        Ok(Self { address, _vm: vm })
    }
}

fn initramfs(work: &Path, to: &Path) -> Result<()> {
    let tree = work.join("bare-tree");
    for sub in ["bin", "dev", "proc"] {
        fs::create_dir_all(tree.join(sub))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
    fs::copy("/usr/bin/socat", tree.join("bin/socat"))?;
    let needed = Command::new("ldd").arg("/usr/bin/socat").output()?.stdout;
    for library in String::from_utf8(needed)?.split_ascii_whitespace().filter(|word| word.starts_with('/')) {
        let place = tree.join(library.trim_start_matches('/'));
        fs::create_dir_all(place.parent().ok_or("no directory")?)?;
        fs::copy(library, place)?;
    }
    let init = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\nexport PATH=/bin\n\
         mount -t devtmpfs dev /dev\nmount -t proc proc /proc\nmkdir /www\nmount -t tmpfs www /www\n\
         ip link set lo up\n{}\n\
         socat -t 0 VSOCK-LISTEN:{FORWARD_PORT},reuseaddr,fork,backlog=128 TCP:127.0.0.1:80,nodelay &\n\
         sleep 2\necho {MARK}\nwait\nreboot -f\n",
        server("busybox ")
    );
    fs::write(tree.join("init"), init)?;
    fs::set_permissions(tree.join("init"), fs::Permissions::from_mode(0o755))?;
    floor::archive(&tree, "{ [ -e dev/console ] || mknod dev/console c 5 1; }", to)
}

/// Does what a socat with the VMM's handshake would do.
fn copy(client: &TcpStream, guest: &Connector) -> io::Result<()> {
    let stream = UnixStream::connect(&guest.socket)?;
    let mut to = stream.try_clone()?;
    let mut from = BufReader::with_capacity(64 << 10, stream);
    client.set_nodelay(true)?;
    if let Handshake::Port(port) = guest.handshake {
        to.write_all(format!("CONNECT {port}\n").as_bytes())?;
        from.read_line(&mut String::new())?;
    }
    let (mut asks, mut hears) = (client.try_clone()?, client.try_clone()?);
    let up = std::thread::spawn(move || {
        io::copy(&mut asks, &mut to).ok();
    });
    io::copy(&mut from, &mut hears).ok();
    client.shutdown(Shutdown::Both).ok();
    up.join().ok();
    Ok(())
}
