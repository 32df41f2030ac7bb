//! How many instructions a guest executes from its kernel's first to "vminit: listening", under our kernel and under Debian's cloud kernel. QEMU's
//! software emulation counts them. All clocks of the guest are derived from that count (`-icount`), random numbers come from a seed, so the same
//! files give the same number on any host, however busy. The spread of some runs is printed all the same.
//!
//! Both kernels have the machine, the parameters and the vminit of the qemu driver, and one processor. Debian's has as modules what ours has built
//! in: an init before vminit loads those that a pod cannot do without. It is counted with these, and with the one module without which there is
//! no "listening" at all.

use super::{Result, var};
use magikvm::vmm::Accel;
use magikvm::vmm::qemu::kernel_parameters;
use magikvm_proto::guest_image::Arch;
use magikvm_tests::figures::row;
use magikvm_tests::floor::archive;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const RUNS: usize = 3;
const MARK: &str = "vminit: listening";
const PLUGIN: &str = include_str!("count_instructions.c");
const LOADER: &str = include_str!("load_modules.c");
/// Modules for a pod's disk, file systems, agent and memory.
const POD_MODULES: [&str; 6] =
    ["virtio_mmio", "virtio_blk", "virtio_balloon", "erofs", "overlay", "vmw_vsock_virtio_transport"];
const LEAST_MODULES: [&str; 1] = ["vsock"];
/// Nanoseconds that an instruction takes of the guest's time, as a power of two: what waits for time is then counted as on a processor with 125
/// million instructions a second, which is little.
const SHIFT: &str = "shift=3,sleep=off";
/// Long enough for a busy host.
const LIMIT_SECS: &str = "300";

pub(super) fn compare() -> Result<()> {
    let work = tempfile::tempdir()?;
    let lab = var("MAGIKVM_LAB_DIR")?;
    let guest = var("MAGIKVM_TEST_GUEST")?;
    let counter = Counter::new(work.path())?;
    println!("guest instructions from the kernel's first to vminit's \"listening\", {RUNS} runs each:");
    let initramfs = guest.join("initramfs");
    let ours = counter.count("our kernel", &guest.join("vmlinux"), &initramfs, "/init")?;
    let debian = lab.join("vmlinux");
    let with =
        |modules: &[&str], name: &str| with_modules(&initramfs, modules, &lab, &work.path().join(name));
    let pods = with(&POD_MODULES, "pod")?;
    let theirs = counter.count("Debian's cloud kernel, modules for a pod", &debian, &pods, "/load")?;
    let least = with(&LEAST_MODULES, "least")?;
    let bare = counter.count("Debian's cloud kernel, vsock module only", &debian, &least, "/load")?;
    row("our instructions over Debian's", format!("{:.3}x", ratio(ours, theirs)), "0.4x");
    row("the same over Debian's without the other modules", format!("{:.3}x", ratio(ours, bare)), "0.4x");
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
fn ratio(one: u64, other: u64) -> f64 {
    one as f64 / other as f64
}

fn compile(source: &str, to: &Path, options: &[&str]) -> Result<()> {
    let file = to.with_extension("c");
    fs::write(&file, source)?;
    let status = Command::new("cc")
        .args(["-O2", "-Wall", "-Werror"])
        .args(options)
        .arg("-o")
        .arg(to)
        .arg(&file)
        .status()?;
    if status.success() { Ok(()) } else { Err(format!("cc did not compile {}", file.display()).into()) }
}

/// Appends to an initramfs a second one, whose init loads modules and then execs the first one's init.
fn with_modules(initramfs: &Path, modules: &[&str], lab: &Path, tree: &Path) -> Result<PathBuf> {
    let dir = tree.join("modules");
    fs::create_dir_all(&dir)?;
    for (number, module) in files_of(modules, lab)?.iter().enumerate() {
        fs::copy(module, dir.join(format!("{number:02}.ko")))?;
    }
    let loader = tree.with_extension("loader");
    compile(LOADER, &loader, &["-static", "-s"])?;
    fs::copy(&loader, tree.join("load"))?;
    let second = tree.with_extension("second");
    archive(tree, "true", &second)?;
    let both = tree.with_extension("initramfs");
    fs::write(&both, [fs::read(initramfs)?, fs::read(second)?].concat())?;
    Ok(both)
}

/// The files of modules and of what they need, in the order of loading.
fn files_of(modules: &[&str], lab: &Path) -> Result<Vec<PathBuf>> {
    let tree = lab.join("modules");
    let release =
        fs::read_dir(tree.join("lib/modules"))?.next().ok_or("the lab has no modules")??.file_name();
    let mut files = Vec::new();
    for module in modules {
        let mut path = std::env::var_os("PATH").unwrap_or_default();
        path.push(":/usr/sbin:/sbin");
        let said = Command::new("modprobe")
            .env("PATH", path)
            .args([OsStr::new("--dirname"), tree.as_os_str(), OsStr::new("--set-version"), &release])
            .args(["--show-depends", module])
            .output()?;
        if !said.status.success() {
            return Err(format!("modprobe {module}: {}", String::from_utf8_lossy(&said.stderr)).into());
        }
        for line in String::from_utf8(said.stdout)?.lines() {
            if let Some(file) = line.strip_prefix("insmod ").map(|file| PathBuf::from(file.trim()))
                && !files.contains(&file)
            {
                files.push(file);
            }
        }
    }
    Ok(files)
}

/// QEMU with the plugin that counts.
struct Counter {
    plugin: PathBuf,
}

impl Counter {
    fn new(work: &Path) -> Result<Self> {
        let plugin = work.join("count_instructions.so");
        compile(PLUGIN, &plugin, &["-shared", "-fPIC", "-fvisibility=hidden"])?;
        Ok(Self { plugin })
    }

    /// The median of some runs, which is printed with their spread.
    fn count(&self, what: &str, kernel: &Path, initramfs: &Path, init: &str) -> Result<u64> {
        let mut counts = (0..RUNS).map(|_| self.once(kernel, initramfs, init)).collect::<Result<Vec<_>>>()?;
        counts.sort_unstable();
        let (least, middle, most) = (counts[0], counts[RUNS / 2], counts[RUNS - 1]);
        println!("{what}: {:.2} million (spread {} instructions)", ratio(middle, 1_000_000), most - least);
        Ok(middle)
    }

    fn once(&self, kernel: &Path, initramfs: &Path, init: &str) -> Result<u64> {
        // The driver's parameters without the host's clock. The last parameter for init counts.
        let cmdline = format!("{} rdinit={init}", kernel_parameters(Arch::X86_64, Accel::Kvm));
        let mut plugin = self.plugin.clone().into_os_string();
        plugin.push(format!(",mark={MARK}"));
        let output = Command::new("timeout")
            .args([LIMIT_SECS, "qemu-system-x86_64"])
            .env("LD_PRELOAD", &self.plugin)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args([
                "-M",
                "microvm,pit=on,pic=on,rtc=on",
                "-accel",
                "tcg",
                "-cpu",
                "max",
                "-m",
                "232M",
                "-smp",
                "1",
            ])
            .args(["-icount", SHIFT, "-seed", "1", "-rtc", "base=2026-01-01T00:00:00,clock=vm"])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", &cmdline])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
            .args(["-device", "virtio-rng-device"])
            .args(["-device", "virtio-balloon-device,free-page-reporting=on"])
            .arg("-plugin")
            .arg(plugin)
            .stdin(Stdio::null())
            .output()?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let counted = printed.lines().find_map(|line| line.strip_prefix("counted: "));
        let Some(number) = counted.and_then(|line| line.split_ascii_whitespace().nth(3)?.parse().ok()) else {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(format!("{}: no count: {printed} {said}", kernel.display()).into());
        };
        Ok(number)
    }
}
