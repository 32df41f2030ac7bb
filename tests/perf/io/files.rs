//! Volumes: many small files and one long stream, on a hostPath, on an emptyDir, and on a directory that a QEMU set up by hand shares by
//! Debian's virtiofsd, with the same kernel and busybox. `ci/bench.sh io` calls it. Never a test, because hosts are noisy.

use magikvm_tests::bench::{Bench, Result};
use magikvm_tests::figures::{median, time_until};
use magikvm_tests::floor;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::json;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Like the working tree of a large repository.
const MOST_FILES: usize = 20_000;
/// Open files that a server needs in addition to those of the guest.
const SPARE_FILES: usize = 2000;
const FILES_PER_DIRECTORY: usize = 100;
/// Memory of the guest: less than the stream, so that the stream does not fit into the guest's page cache.
const MEMORY_MIB: u64 = 768;
const ROUNDS: usize = 3;
const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";
/// Time for the peer's server to listen.
const SERVER_WAIT: Duration = Duration::from_secs(10);

/// The steps in the directory `/data` and their names. Each step prints its number when it is done.
const STEPS: [(&str, &str); 5] = [
    ("small files unpacked", "mkdir /data/out && tar -xf /in/files.tar -C /data/out && sync"),
    ("small files read", "find /data/out -type f | xargs cat >/dev/null"),
    ("small files removed", "rm -rf /data/out && sync"),
    ("1 GiB written", "dd if=/dev/zero of=/data/stream bs=1M count=1024 conv=fsync 2>/dev/null"),
    ("1 GiB read", "dd if=/data/stream of=/dev/null bs=1M 2>/dev/null"),
];

/// The steps as a shell script.
fn script() -> String {
    let mut script = "echo step-begin\n".to_owned();
    for (number, (_, command)) in STEPS.iter().enumerate() {
        script.push_str(&format!("{{ {command}; }} && echo step-{number}\n"));
    }
    script
}

fn main() -> Result<()> {
    let work = tempfile::tempdir()?;
    let bench = &Bench::new(work.path())?;
    let input = bench.work.join("in");
    fs::create_dir_all(&input)?;
    // A server has a file open for each that the guest knows.
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard), hard)?;
    let files = MOST_FILES.min(usize::try_from(hard)?.saturating_sub(SPARE_FILES));
    println!("{files} small files (at most {hard} may be open)");
    archive(&input.join("files.tar"), files)?;
    let shared = bench.work.join("shared");
    let peer = Peer::new(bench)?;
    let mut times: [Vec<[Duration; STEPS.len()]>; 3] = Default::default();
    for round in 0..ROUNDS {
        println!("round {} of {ROUNDS}", round + 1);
        fresh(&shared)?;
        times[0].push(peer.run(bench, &input, &shared)?);
        fresh(&shared)?;
        times[1].push(pod(bench, &input, &json!({ "name": "data", "hostPath": { "path": shared } }))?);
        times[2].push(pod(bench, &input, &json!({ "name": "data", "emptyDir": {} }))?);
    }
    for (step, (what, _)) in STEPS.iter().enumerate() {
        let seconds =
            |of: usize| median(&mut times[of].iter().map(|all| all[step].as_secs_f64()).collect::<Vec<_>>());
        let over = |of: usize| {
            let pairs = times[of].iter().zip(&times[0]);
            median(
                &mut pairs
                    .map(|(ours, peer)| ours[step].as_secs_f64() / peer[step].as_secs_f64())
                    .collect::<Vec<_>>(),
            )
        };
        println!(
            "{what}: QEMU and virtiofsd by hand {:.2} s; hostPath {:.2} s, {:.2}x; emptyDir {:.2} s, {:.2}x (medians of {ROUNDS})",
            seconds(0),
            seconds(1),
            over(1),
            seconds(2),
            over(2)
        );
    }
    Ok(())
}

fn fresh(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    fs::create_dir(dir)?;
    Ok(())
}

/// Files of a hundred bytes to eight KiB.
fn archive(path: &Path, files: usize) -> Result<()> {
    let mut archive = tar::Builder::new(File::create(path)?);
    for number in 0..files {
        let bytes = vec![b'x'; 100 + number * 7919 % 8000];
        let mut header = tar::Header::new_ustar();
        header.set_size(u64::try_from(bytes.len())?);
        header.set_mode(0o644);
        let name = format!("{}/file-{number}.rs", number / FILES_PER_DIRECTORY);
        archive.append_data(&mut header, name, bytes.as_slice())?;
    }
    archive.finish()?;
    Ok(())
}

/// The times of the steps as they are printed.
fn times(mut child: Child) -> Result<[Duration; STEPS.len()]> {
    let mut out = child.stdout.take().ok_or("no pipe")?;
    let mut seen = Vec::new();
    let mut next = |mark: &str| -> Result<Instant> {
        // Lines that are read together were printed together.
        if !String::from_utf8_lossy(&seen).contains(mark)
            && time_until(mark, &mut out, Instant::now(), &mut seen)?.is_none()
        {
            return Err(format!("no {mark}: {}", String::from_utf8_lossy(&seen)).into());
        }
        Ok(Instant::now())
    };
    let mut last = next("step-begin")?;
    let mut times = [Duration::ZERO; STEPS.len()];
    for (number, time) in times.iter_mut().enumerate() {
        let now = next(&format!("step-{number}"))?;
        *time = now - last;
        last = now;
    }
    std::io::copy(&mut out, &mut std::io::sink())?;
    child.wait()?;
    Ok(times)
}

fn pod(bench: &Bench, input: &Path, volume: &serde_json::Value) -> Result<[Duration; STEPS.len()]> {
    let manifest = bench.manifest("files", &script(), |pod| {
        pod["metadata"]["annotations"] = json!({ "magikvm.dev/memory-mib": MEMORY_MIB.to_string(), "magikvm.dev/vcpus": "2" });
        pod["spec"]["volumes"] = json!([volume, { "name": "in", "hostPath": { "path": input } }]);
        pod["spec"]["containers"][0]["volumeMounts"] =
            json!([{ "name": "data", "mountPath": "/data" }, { "name": "in", "mountPath": "/in", "readOnly": true }]);
    })?;
    let mut run = bench.command(&["run", "--rm", "--no-prefix"]);
    let child =
        run.arg(&manifest).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
    times(child)
}

struct Peer {
    dir: PathBuf,
}

impl Peer {
    fn new(bench: &Bench) -> Result<Self> {
        let (dir, tree) = (bench.work.join("peer"), bench.work.join("peer-tree"));
        for sub in ["bin", "dev", "proc", "data", "in", "tmp"] {
            fs::create_dir_all(tree.join(sub))?;
        }
        fs::create_dir_all(&dir)?;
        fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
        let init = format!(
            "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\nmount -t devtmpfs dev /dev\nmount -t proc proc /proc\n\
             mount -t virtiofs data /data\nmount -t virtiofs in /in\n{}\nreboot -f\n",
            script()
        );
        let path = tree.join("init");
        fs::write(&path, init)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        floor::archive(
            &tree,
            "{ [ -e dev/console ] || mknod dev/console c 5 1; }",
            &dir.join(floor::INITRAMFS),
        )?;
        Ok(Self { dir })
    }

    fn run(&self, bench: &Bench, input: &Path, shared: &Path) -> Result<[Duration; STEPS.len()]> {
        let mut qemu = bench.bare_qemu(&self.dir, MEMORY_MIB);
        // Devices of vhost-user are those of virtio 1.
        qemu.args(["-machine", "memory-backend=mem", "-global", "virtio-mmio.force-legacy=false"])
            .args(["-object", &format!("memory-backend-memfd,id=mem,share=on,size={MEMORY_MIB}M")]);
        let mut servers = Vec::new();
        for (tag, dir) in [("data", shared), ("in", input)] {
            let socket = self.dir.join(format!("{tag}.sock"));
            servers.push(Server::new(&socket, dir)?);
            qemu.args(["-chardev", &format!("socket,id={tag},path={}", socket.display())])
                .args(["-device", &format!("vhost-user-fs-device,chardev={tag},tag={tag}")]);
        }
        let child = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        times(child)
    }
}

/// A virtiofsd of Debian's QEMU. It ends with its QEMU.
struct Server(Child);

impl Server {
    fn new(socket: &Path, dir: &Path) -> Result<Self> {
        if socket.exists() {
            fs::remove_file(socket)?;
        }
        let mut child = Command::new(VIRTIOFSD)
            .arg(format!("--socket-path={}", socket.display()))
            .args([
                "-f",
                "--rlimit-nofile=0",
                "-o",
                &format!("source={},sandbox=chroot,cache=auto", dir.display()),
            ])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let end = Instant::now() + SERVER_WAIT;
        while !socket.exists() {
            if Instant::now() > end || child.try_wait()?.is_some() {
                let mut said = String::new();
                child.kill()?;
                child.stderr.take().ok_or("no pipe")?.read_to_string(&mut said)?;
                return Err(format!("{VIRTIOFSD} does not listen: {said}").into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The server usually has ended with QEMU, and an error would hide the original one.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}
