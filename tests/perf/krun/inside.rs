//! The measurements in the lab: times of one fresh boot, and the memory of idle pods.

use super::{Result, var};
use magikvm::jail::Requirement;
use magikvm::store::layout::{Layout, Surroundings};
use magikvm::store::record::Found;
use magikvm::store::sandbox::ProcessRef;
use magikvm::vmm::{self, Accel, DriverOptions, JailOptions, KernelChoice, Places, VmConfig, VmmKind};
use magikvm_proto::guest_image::Arch;
use magikvm_tests::figures::time_until;
use magikvm_tests::floor;
use magikvm_tests::memory::{kib_line, pss};
use serde_json::json;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// First arguments of this program in the lab.
pub(super) const FIRST_BYTE: &str = "first-byte";
pub(super) const IDLE: &str = "idle";
/// The subjects of the measurements.
pub(super) const OURS: &str = "ours";
pub(super) const FLOOR: &str = "floor";

/// The text that container and floor print, which stops the clock.
const MARK: &str = "first-byte-here";
const IMAGE: &str = "demo/busybox:1";
/// Size of the VM for a pod of one container without limits (SPECIFICATION.md), and so of the floor's.
const VM_MIB: u64 = 232;
/// The number of processors in the lab. With more, one would wait for another to run.
const MACHINE_VCPUS: u32 = 1;
/// Guests report free memory every two seconds. After this time without a change the memory is stable.
const SETTLED_AFTER: Duration = Duration::from_secs(7);
const SETTLING: Duration = Duration::from_secs(90);
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Changes below this size are ignored.
const NOTHING_BYTES: u64 = 256 << 10;

struct Room {
    magikvm: PathBuf,
    guest: PathBuf,
    work: tempfile::TempDir,
}

impl Room {
    fn new() -> Result<Self> {
        let room = Self {
            magikvm: var("MAGIKVM_BIN")?,
            guest: var("MAGIKVM_TEST_GUEST")?,
            work: tempfile::tempdir()?,
        };
        let demo = format!("oci:{}:1", var("MAGIKVM_DEMO_IMAGE")?.display());
        room.run(&["image", "import", &demo, "--name", IMAGE])?;
        Ok(room)
    }

    fn root(&self) -> PathBuf {
        self.work.path().join("root")
    }

    fn layout(&self) -> Result<Layout> {
        Ok(Layout::new(&Surroundings::of_process(Some(self.root())))?)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.magikvm);
        command
            .arg("--root")
            .arg(self.root())
            .args(args)
            .env("MAGIKVM_VMM", "krun")
            .env("MAGIKVM_GUEST", &self.guest)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, args: &[&str]) -> Result<()> {
        let output = self.command(args).output()?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("magikvm {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    fn manifest(&self, name: &str, script: &str) -> Result<String> {
        let path = self.work.path().join(format!("{name}.yaml"));
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {
                "name": name, "annotations": { "magikvm.dev/vcpus": MACHINE_VCPUS.to_string() }
            },
            "spec": { "restartPolicy": "Never", "containers": [
                { "name": "c", "image": IMAGE, "command": ["/bin/sh", "-c", script] }
            ] }
        });
        fs::write(&path, pod.to_string())?;
        Ok(path.display().to_string())
    }
}

/// The time of one pod or one floor. The steps before are the same for both.
pub(super) fn first_byte(whose: &str) -> Result<()> {
    let room = Room::new()?;
    let floor = floor::make(room.work.path(), &room.layout()?, IMAGE, MARK)?;
    let manifest = room.manifest("first", &format!("echo {MARK}"))?;
    // The verdict on /dev/kvm is stored until the next boot, so that only the first pod of a boot waits for it. `run` reports whether a pod can
    // run.
    drop(room.command(&["doctor"]).output()?);
    // Copies the files from the host's disk into the lab's memory.
    for file in [&room.magikvm, &room.guest.join("vmlinux"), &room.guest.join("initramfs")] {
        fs::read(file)?;
    }
    let took = match whose {
        OURS => ours(&room, &manifest)?,
        FLOOR => bare(&room, &floor)?,
        other => return Err(format!("whose is {other:?}?").into()),
    };
    println!("{}", json!({ "us": u64::try_from(took.as_micros())? }));
    Ok(())
}

fn ours(room: &Room, manifest: &str) -> Result<Duration> {
    let mut command = room.command(&["run", "--no-prefix", manifest]);
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut out = child.stdout.take().ok_or("no pipe")?;
    let mut seen = Vec::new();
    let Some(took) = time_until(MARK, &mut out, begun, &mut seen)? else {
        let output = child.wait_with_output()?;
        let (printed, said) = (String::from_utf8_lossy(&seen), String::from_utf8_lossy(&output.stderr));
        return Err(format!("magikvm run ended without {MARK}: {printed} {said}").into());
    };
    std::io::copy(&mut out, &mut std::io::sink())?;
    child.wait()?;
    Ok(took)
}

/// The floor by the same driver, so with the same libkrun, kernel parameters and devices.
fn bare(room: &Room, dir: &Path) -> Result<Duration> {
    let layout = room.layout()?;
    let places = Places::of(&layout);
    let options = DriverOptions { guest: Arch::X86_64, kernel: KernelChoice::GuestImage, places };
    let driver = vmm::driver(VmmKind::Krun, options);
    let config = VmConfig {
        nic: None,
        held: None,
        lasting: Vec::new(),
        nested: magikvm::nested::Nested::Masked,
        name: "floor".to_owned(),
        id: "floor".to_owned(),
        memory_mib: VM_MIB,
        vcpus: MACHINE_VCPUS,
        kernel: room.guest.join("vmlinux"),
        initramfs: dir.join(floor::INITRAMFS),
        disk: vmm::disk::DESCRIPTOR.to_owned(),
        accel: Accel::Kvm,
        scratch: None,
        shared: None,
        jail: JailOptions { requirement: Requirement::Warn, cgroup: Err("the floor has none".to_owned()) },
    };
    let begun = Instant::now();
    let mut vm = driver.spawn(&config, dir)?;
    let mut seen = Vec::new();
    let Some(took) = time_until(MARK, &mut vm.console, begun, &mut seen)? else {
        let mut said = String::new();
        vm.diagnostics.read_to_string(&mut said)?;
        return Err(
            format!("the floor ended without {MARK}: {} {said}", String::from_utf8_lossy(&seen)).into()
        );
    };
    // Waits for the end, because two VMs at once would be slower.
    std::io::copy(&mut vm.console, &mut std::io::sink())?;
    Ok(took)
}

/// The memory of one pod on the host, in bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    /// The VMM's process without its guest's memory.
    vmm: u64,
    /// The resident part of the guest's memory.
    guest: u64,
    monitor: u64,
}

/// The memory with this number of pods.
struct Sample {
    available: u64,
    pods: Vec<Taken>,
}

impl Sample {
    fn sum(&self, part: impl Fn(&Taken) -> u64) -> u64 {
        self.pods.iter().map(part).sum()
    }

    /// The mean of all pods.
    fn mean(&self, part: impl Fn(&Taken) -> u64) -> u64 {
        self.sum(part) / u64::try_from(self.pods.len()).unwrap_or(1).max(1)
    }
}

/// Memory of idle pods. The marginal figures leave the first pod out.
pub(super) fn idle(pods: u64) -> Result<()> {
    let room = Room::new()?;
    let mut samples = Vec::new();
    for number in 1..=pods {
        let manifest = room.manifest(&format!("idle-{number}"), "exec sleep 1000000")?;
        room.run(&["run", "-d", &manifest])?;
        samples.push(settled(&room, number)?);
    }
    let (Some(first), Some(last)) = (samples.first(), samples.last()) else { return Err("no pods".into()) };
    let more = pods.checked_sub(1).filter(|&more| more > 0).ok_or("it takes two pods")?;
    let all = |sample: &Sample| sample.sum(|pod| pod.vmm + pod.guest + pod.monitor);
    let found = json!({
        "vm_bytes": VM_MIB << 20,
        "vmm_bytes": last.mean(|pod| pod.vmm),
        "vmm_alone_bytes": first.mean(|pod| pod.vmm),
        "guest_bytes": last.mean(|pod| pod.guest),
        "monitor_bytes": last.mean(|pod| pod.monitor),
        "marginal_available_bytes": first.available.saturating_sub(last.available) / more,
        "marginal_pss_bytes": all(last).saturating_sub(all(first)) / more,
    });
    println!("{found}");
    Ok(())
}

/// Waits until guests have returned their free memory.
fn settled(room: &Room, pods: u64) -> Result<Sample> {
    let begun = Instant::now();
    let mut best = sample(room, pods)?;
    let mut since = Instant::now();
    while since.elapsed() < SETTLED_AFTER {
        if begun.elapsed() > SETTLING {
            return Err(format!("{pods} idle pods have not settled within {} s", SETTLING.as_secs()).into());
        }
        std::thread::sleep(LOOK_EVERY);
        let now = sample(room, pods)?;
        if now.sum(|pod| pod.guest).abs_diff(best.sum(|pod| pod.guest)) > NOTHING_BYTES {
            since = Instant::now();
            best = now;
        }
    }
    sample(room, pods)
}

fn sample(room: &Room, pods: u64) -> Result<Sample> {
    let layout = room.layout()?;
    let pods = (1..=pods)
        .map(|number| {
            let found =
                Found::read(layout.pod(&format!("idle-{number}").parse()?))?.ok_or("the pod is gone")?;
            let processes = found.state.ok_or("the pod has no state")?.processes;
            let pid = |name: &str| {
                let process = processes.iter().find(|process: &&ProcessRef| process.name == name);
                process.map(|process| process.pid).ok_or(format!("the pod has no process {name}"))
            };
            let (vmm, guest) = split(pid("krun")?)?;
            Ok(Taken { vmm, guest, monitor: pss(pid("monitor")?)? })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Sample { available: available()?, pods })
}

fn available() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:")).ok_or("no MemAvailable")?;
    kib_line(line)
}

/// PSS of a VMM's process, split into its private memory and the guest's memory. The latter is one anonymous writable mapping of exactly the
/// VM's size: the guest's memory below the gap for devices.
fn split(pid: i32) -> Result<(u64, u64)> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps"))?;
    let (mut own, mut guest) = (0, Vec::new());
    let mut is_guest = false;
    for line in smaps.lines() {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        if let [range, access, _, _, inode, path @ ..] = fields.as_slice()
            && let Some((from, to)) = range.split_once('-')
        {
            let size = u64::from_str_radix(to, 16)? - u64::from_str_radix(from, 16)?;
            is_guest = size == VM_MIB << 20 && access.starts_with("rw") && *inode == "0" && path.is_empty();
        } else if line.starts_with("Pss:") {
            if is_guest {
                guest.push(kib_line(line)?);
            } else {
                own += kib_line(line)?;
            }
        }
    }
    match guest[..] {
        [guest] => Ok((own, guest)),
        _ => Err(format!("{} mappings of process {pid} look like its guest's memory", guest.len()).into()),
    }
}
