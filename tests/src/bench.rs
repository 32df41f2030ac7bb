//! Shared code of the benchmarks of whole pods: how magikvm is called, and a QEMU set up by hand for comparison.

use crate::net::Namespace;
use magikvm::vmm::qemu::kernel_parameters;
use magikvm::vmm::{Accel, VmmKind};
use magikvm_proto::guest_image::Arch;
use serde_json::Value;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Any error ends the benchmark.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The image of the containers.
pub const IMAGE: &str = "demo/busybox:1";

/// A magikvm with a private state directory, configured by the environment that `ci/bench.sh` sets.
#[derive(Debug)]
pub struct Bench {
    magikvm: PathBuf,
    pub root: PathBuf,
    guest: PathBuf,
    /// For files of the benchmark.
    pub work: PathBuf,
    /// `--accel`.
    pub accel: String,
    vmm: VmmKind,
    /// The program and the arguments that start magikvm in another network namespace.
    entry: Vec<String>,
}

/// A path that `ci/bench.sh` sets in the environment.
pub fn var(name: &str) -> Result<PathBuf> {
    std::env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is not set; run ci/bench.sh").into())
}

impl Bench {
    /// In a directory, with QEMU and [`IMAGE`].
    pub fn new(work: &Path) -> Result<Self> {
        Self::of_driver(work, VmmKind::Qemu)
    }

    /// The same with this driver.
    pub fn of_driver(work: &Path, vmm: VmmKind) -> Result<Self> {
        let bench = Self::of_guest(work, vmm, var("MAGIKVM_TEST_GUEST")?)?;
        println!("accelerator: {}", bench.accel);
        Ok(bench)
    }

    /// For pods that have no VM: there is no guest image.
    pub fn without_vm(work: &Path) -> Result<Self> {
        Self::of_guest(work, VmmKind::Qemu, work.join("no-guest"))
    }

    fn of_guest(work: &Path, vmm: VmmKind, guest: PathBuf) -> Result<Self> {
        let bench = Self {
            magikvm: var("MAGIKVM_BIN")?,
            root: work.join("root"),
            guest,
            work: work.to_owned(),
            accel: std::env::var("MAGIKVM_ACCEL").unwrap_or_else(|_| "kvm".to_owned()),
            vmm,
            entry: Vec::new(),
        };
        let layout = var("MAGIKVM_DEMO_IMAGE")?;
        bench.run(&["image", "import", &format!("oci:{}:1", layout.display()), "--name", IMAGE])?;
        Ok(bench)
    }

    /// From now on magikvm runs in this namespace.
    pub fn enter(&mut self, namespace: &Namespace) {
        self.entry = namespace.entry().to_vec();
    }

    /// magikvm with these arguments.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.entry.split_first() {
            Some((program, arguments)) => {
                let mut command = Command::new(program);
                command.args(arguments).arg(&self.magikvm);
                command
            }
            None => Command::new(&self.magikvm),
        };
        command
            .arg("--root")
            .arg(&self.root)
            .args(args)
            .env("MAGIKVM_VMM", format!("{:?}", self.vmm).to_lowercase())
            .env("MAGIKVM_ACCEL", &self.accel)
            .env("MAGIKVM_GUEST", &self.guest);
        command
    }

    /// Runs a command to its end. If it fails, the error is its output.
    pub fn run(&self, args: &[&str]) -> Result<()> {
        self.output(args).map(drop)
    }

    /// The same; returns the standard output.
    pub fn output(&self, args: &[&str]) -> Result<String> {
        let output = self.command(args).stdin(Stdio::null()).output()?;
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout)?);
        }
        Err(format!("magikvm {args:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
    }

    /// Writes the manifest of a pod with one container `c` that runs a script. `change` may add to it.
    pub fn manifest(&self, name: &str, script: &str, change: impl FnOnce(&mut Value)) -> Result<PathBuf> {
        let path = self.work.join(format!("{name}.yaml"));
        let mut pod = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": { "name": name },
            "spec": { "restartPolicy": "Never", "containers": [
                { "name": "c", "image": IMAGE, "command": ["/bin/sh", "-c", script] }
            ] }
        });
        change(&mut pod);
        fs::write(&path, pod.to_string())?;
        Ok(path)
    }

    /// A QEMU like magikvm's with the same kernel, but without disk and agent. `initramfs` is in `dir`, and the console is its output.
    pub fn bare_qemu(&self, dir: &Path, memory_mib: u64) -> Command {
        let mut command = Command::new("qemu-system-x86_64");
        let (cpu, accel) = if self.accel == "tcg" { ("max", Accel::Tcg) } else { ("host", Accel::Kvm) };
        command
            .current_dir(dir)
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-M", "microvm,pit=on,pic=on,rtc=on", "-accel", &self.accel, "-cpu", cpu])
            .args(["-m", &format!("{memory_mib}M"), "-smp", "2"])
            .arg("-kernel")
            .arg(self.guest.join("vmlinux"))
            .args(["-initrd", "initramfs", "-append", &kernel_parameters(Arch::X86_64, accel)])
            .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
        command
    }
}
