//! Figures of the first pod, printed beside a floor measured in the same run: the same QEMU, kernel and stitched disk with a busybox init that
//! mounts the image, puts an overlay on it and execs. `ci/bench.sh` calls it. Never a test: machines are noisy.

use magikvm::store::layout::{Layout, Surroundings};
use magikvm::store::record::Found;
use magikvm::vmm::Accel;
use magikvm::vmm::qemu::kernel_parameters;
use magikvm_proto::guest_image::Arch;
use magikvm_proto::wire::{Done, Request, Stats};
use magikvm_tests::figures::{median, mib, show, time_until};
use magikvm_tests::floor;
use magikvm_tests::memory::pss;
use std::error::Error;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What container and floor print, and what the clock stops at.
const MARK: &str = "first-byte";
const PAIRS: usize = 9;
const PINGS: usize = 400;
const EXECS: usize = 15;

struct Bench {
    magikvm: PathBuf,
    root: PathBuf,
    guest: PathBuf,
    work: PathBuf,
    accel: String,
    kernel_parameters: String,
}

fn var(name: &str) -> Result<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is not set; run ci/bench.sh").into())
}

fn main() -> Result<()> {
    let work = tempfile::tempdir()?;
    let accel = std::env::var("MAGIKVM_ACCEL").unwrap_or_else(|_| "kvm".to_owned());
    let bench = Bench {
        magikvm: var("MAGIKVM_BIN")?,
        root: work.path().join("root"),
        guest: var("MAGIKVM_TEST_GUEST")?,
        work: work.path().to_owned(),
        kernel_parameters: kernel_parameters(
            Arch::X86_64,
            if accel == "tcg" { Accel::Tcg } else { Accel::Kvm },
        ),
        accel,
    };
    let layout = var("MAGIKVM_DEMO_IMAGE")?;
    bench.run(&["image", "import", &format!("oci:{}:1", layout.display()), "--name", "demo/busybox:1"])?;
    let layout = Layout::new(&Surroundings::of_process(Some(bench.root.clone())))?;
    floor::make(work.path(), &layout, "demo/busybox:1", MARK)?;
    println!("accelerator: {}", bench.accel);
    first_byte(&bench)?;
    idle_pod(&bench)?;
    Ok(())
}

fn first_byte(bench: &Bench) -> Result<()> {
    let manifest = bench.manifest("first", &format!("echo {MARK}"))?;
    let (mut ours, mut floor, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    // The first pair warms the page cache and is not counted.
    for pair in 0..=PAIRS {
        let mut run = bench.command(&["run", "--rm", "--no-prefix"]);
        run.arg(&manifest);
        let mine = until_mark(&mut run)?;
        let bare = until_mark(&mut bench.floor_command())?;
        if pair > 0 {
            ratios.push(mine.as_secs_f64() / bare.as_secs_f64());
            ours.push(mine);
            floor.push(bare);
        }
    }
    show("magikvm run to first output byte", &mut ours);
    show("floor to first output byte", &mut floor);
    println!("first output byte over the floor: median of pairs {:.2}x (aim 1.25x)", median(&mut ratios));
    Ok(())
}

/// From the start of a program to the mark on its standard output; then its end is waited for.
fn until_mark(command: &mut Command) -> Result<Duration> {
    let begun = Instant::now();
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut out = child.stdout.take().ok_or("no pipe")?;
    let mut seen = Vec::new();
    let Some(took) = time_until(MARK, &mut out, begun, &mut seen)? else {
        let mut said = String::new();
        child.stderr.take().ok_or("no pipe")?.read_to_string(&mut said)?;
        let printed = String::from_utf8_lossy(&seen);
        return Err(format!("{command:?} ended without {MARK}: {printed} {said}").into());
    };
    std::io::copy(&mut out, &mut std::io::sink())?;
    child.wait()?;
    Ok(took)
}

fn idle_pod(bench: &Bench) -> Result<()> {
    let manifest = bench.manifest("idle", "exec sleep 1000000")?;
    bench.run(&["run", "-d", &manifest.display().to_string()])?;
    let measured = measure_idle(bench);
    bench.run(&["rm", "-f", "idle"])?;
    measured
}

fn measure_idle(bench: &Bench) -> Result<()> {
    let layout = Layout::new(&Surroundings::of_process(Some(bench.root.clone())))?;
    let found = Found::read(layout.pod(&"idle".parse()?))?.ok_or("the pod is gone")?;
    let state = found.state.ok_or("the pod has no state")?;
    let agent = state.agent.ok_or("the pod has no agent")?;
    let mut connection = agent.connect(Duration::from_secs(10))?;
    let mut pings = Vec::with_capacity(PINGS);
    for _ in 0..PINGS {
        let begun = Instant::now();
        let Done {} = connection.request(&Request::Ping)?;
        pings.push(begun.elapsed());
    }
    let ping = show("agent ping", &mut pings);
    println!("agent ping p50: {ping:.3} ms (aim 0.3 ms)");
    let mut execs = Vec::with_capacity(EXECS);
    for _ in 0..EXECS {
        let begun = Instant::now();
        bench.run(&["exec", "idle", "--", "/bin/true"])?;
        execs.push(begun.elapsed());
    }
    show("magikvm exec /bin/true", &mut execs);
    let monitor = state.processes.iter().find(|process| process.name == "monitor").ok_or("no monitor")?;
    println!("monitor's proportional set size: {:.1} MiB (aim 4 MiB)", mib(pss(monitor.pid)?));
    let stats: Stats = connection.request(&Request::Stats)?;
    println!(
        "guest memory used by vminit, idle pod: {:.1} MiB (aim 10 MiB)",
        mib(stats.guest.init_pss_bytes)
    );
    Ok(())
}

impl Bench {
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.magikvm);
        command
            .arg("--root")
            .arg(&self.root)
            .args(args)
            .env("MAGIKVM_VMM", "qemu")
            .env("MAGIKVM_ACCEL", &self.accel)
            .env("MAGIKVM_GUEST", &self.guest);
        command
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let output = self.command(args).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("magikvm {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    fn manifest(&self, name: &str, script: &str) -> Result<PathBuf> {
        let path = self.work.join(format!("{name}.yaml"));
        let pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "restartPolicy": "Never", "containers": [
                { "name": "c", "image": "demo/busybox:1", "command": ["/bin/sh", "-c", script] }
            ] }
        });
        fs::write(&path, pod.to_string())?;
        Ok(path)
    }

    fn floor_command(&self) -> Command {
        let dir: &Path = &self.work.join("floor");
        let mut command = Command::new("qemu-system-x86_64");
        let cpu = if self.accel == "tcg" { "max" } else { "host" };
        command
            .current_dir(dir)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args([
                "-M",
                "microvm,pit=on,pic=on,rtc=on",
                "-accel",
                &self.accel,
                "-cpu",
                cpu,
                "-m",
                "232M",
                "-smp",
                "2",
            ])
            .arg("-kernel")
            .arg(self.guest.join("vmlinux"))
            .args(["-initrd", "initramfs", "-append", &self.kernel_parameters])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            .args(["-drive", "if=none,id=disk,file=disk.vmdk,format=vmdk,readonly=on"])
            .args(["-device", "virtio-blk-device,drive=disk"]);
        command
    }
}
