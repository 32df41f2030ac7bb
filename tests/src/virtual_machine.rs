//! Needs of the tests with real VMs in addition to a [`Host`]: a guest image, the VMM's programs, a container image with busybox, and one of
//! the slots for VMs.

use crate::Cmd;
use crate::host::{FIRST_BOOT_WAIT, Host, IMAGE, NO_SECOND_BOOT};
use crate::layout::{Tar, goarch};
use crate::manifest::Pod;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::Command;

const ADVICE: &str = "run the tests with ci/test.sh, which makes one and sets MAGIKVM_TEST_GUEST";

pub const VCPUS: &str = "magikvm.dev/vcpus";

pub const NETWORK: &str = "magikvm.dev/network";

/// The program that runs the pods' VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// QEMU, by software emulation, so that its tests run anywhere.
    Qemu,
    /// libkrun, which needs KVM: its tests run in the lab.
    Krun,
    /// No VM: namespaces of the host.
    Containers,
    /// The same on a host with control groups of version 2 only, which the lab is.
    ContainersV2,
    /// The same there, by an ordinary user with subordinate ids and a delegated control group.
    ContainersUser,
}

impl Driver {
    pub const ALL: [Self; 5] =
        [Self::Qemu, Self::Krun, Self::Containers, Self::ContainersV2, Self::ContainersUser];

    /// As `--vmm` names it, or the runtime class without `pod-`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Krun => "krun",
            Self::Containers => "containers",
            Self::ContainersV2 => "containers_v2",
            Self::ContainersUser => "containers_user",
        }
    }

    /// What names its VMM and accelerator.
    const fn variables(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Qemu => &[("MAGIKVM_VMM", "qemu"), ("MAGIKVM_ACCEL", "tcg")],
            Self::Krun => &[("MAGIKVM_VMM", "krun"), ("MAGIKVM_ACCEL", "kvm")],
            Self::Containers | Self::ContainersV2 | Self::ContainersUser => &[],
        }
    }

    /// The runtime class of its pods.
    pub const fn class(self) -> &'static str {
        match self {
            Self::Qemu | Self::Krun => "pod-microvm-containers",
            Self::Containers | Self::ContainersV2 | Self::ContainersUser => "pod-containers",
        }
    }

    /// Whether its pods have a VM.
    pub const fn has_vm(self) -> bool {
        match self {
            Self::Qemu | Self::Krun => true,
            Self::Containers | Self::ContainersV2 | Self::ContainersUser => false,
        }
    }

    /// Names of a VM's processes in the state of a pod. The first one is the VM itself.
    pub const fn processes(self) -> &'static [&'static str] {
        match self {
            Self::Qemu => &["qemu", "vhost-device-vsock"],
            Self::Krun => &["krun"],
            Self::Containers | Self::ContainersV2 | Self::ContainersUser => &["sandbox", "supervisor"],
        }
    }
}

/// A host whose pods run in real VMs. At most two of them exist at one time on the system.
#[derive(Debug)]
pub struct VmHost {
    host: Host,
    driver: Driver,
    _turn: magikvm_lab::Turn,
}

impl std::ops::Deref for VmHost {
    type Target = Host;

    fn deref(&self) -> &Host {
        &self.host
    }
}

impl std::ops::DerefMut for VmHost {
    fn deref_mut(&mut self) -> &mut Host {
        &mut self.host
    }
}

/// Path of the guest image under test.
pub fn guest_image() -> String {
    let named = std::env::var("MAGIKVM_TEST_GUEST").or_else(|_| std::env::var("MAGIKVM_GUEST"));
    named.unwrap_or_else(|_| panic!("there is no guest image: {ADVICE}"))
}

/// The guest image of aarch64 that `ci/test.sh` has made.
fn for_aarch64(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| {
        panic!("{variable} is not set: run the tests with ci/test.sh, which makes what it names")
    })
}

/// A program in `PATH`.
pub fn in_path(program: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("{program} is not in PATH: run the tests with ci/test.sh, which installs it")
    })
}

/// The layer of an image with the host's busybox under all of its names.
pub fn busybox() -> Tar {
    busybox_layer(&in_path("busybox"))
}

/// The names are those of the host's busybox, which need not be able to run the program.
fn busybox_layer(program: &Path) -> Tar {
    let listed = Command::new(in_path("busybox")).arg("--list").output().expect("run busybox");
    let mut layer = Tar::default();
    for (dir, mode) in [("bin/", 0o755), ("etc/", 0o755), ("root/", 0o700), ("tmp/", 0o1777)] {
        layer = layer.dir(dir, mode);
    }
    layer = layer.file("bin/busybox", 0o755, &std::fs::read(program).unwrap());
    layer = layer.file(
        "etc/passwd",
        0o644,
        b"root:x:0:0:root:/root:/bin/sh\nguest:x:405:100:guest:/tmp:/bin/sh\n",
    );
    layer = layer.file("etc/group", 0o644, b"root:x:0:\nusers:x:100:\n");
    let listed = String::from_utf8(listed.stdout).unwrap();
    listed
        .lines()
        .filter(|name| *name != "busybox")
        .fold(layer, |layer, name| layer.link(&format!("bin/{name}"), "busybox"))
}

impl VmHost {
    /// With QEMU. Waits for its turn.
    pub fn new() -> Self {
        Self::with(Driver::Qemu)
    }

    /// With this driver. Waits for its turn.
    pub fn with(driver: Driver) -> Self {
        Self::of(driver, &guest_image(), goarch(), busybox())
    }

    /// A host whose pods run in VMs of aarch64. Waits for its turn.
    pub fn aarch64() -> Self {
        let busybox = busybox_layer(Path::new(&for_aarch64("MAGIKVM_TEST_BUSYBOX_AARCH64")));
        Self::of(Driver::Qemu, &for_aarch64("MAGIKVM_TEST_GUEST_AARCH64"), "arm64", busybox)
    }

    fn of(driver: Driver, guest: &str, architecture: &str, layer: Tar) -> Self {
        let turn = magikvm_lab::turn().unwrap_or_else(|error| panic!("{error}"));
        let mut host = Host::bare();
        host.set_env("MAGIKVM_GUEST", guest);
        for (name, value) in driver.variables() {
            host.set_env(name, *value);
        }
        if magikvm_lab::is_inside() {
            // Guests that stand still there are counted, and a second boot would hide them.
            host.set_env(FIRST_BOOT_WAIT, NO_SECOND_BOOT);
        }
        if driver == Driver::Qemu {
            host.set_env("MAGIKVM_VHOST_DEVICE_VSOCK", in_path("vhost-device-vsock").to_string_lossy());
        }
        let config = json!({ "Env": ["PATH=/bin", "FROM=image"], "Cmd": ["sh"] });
        host.import_for(architecture, IMAGE, layer, &config);
        Self { host, driver, _turn: turn }
    }

    pub fn driver(&self) -> Driver {
        self.driver
    }

    /// `magikvm run` of a pod, in the foreground. The pod has no network unless it requests one, because tests must not use the host's network.
    pub fn run(&self, pod: &Pod) -> Cmd {
        let mut pod = pod.clone().annotated(NETWORK, "none");
        if !self.driver.has_vm() {
            pod = pod.without_size().set("spec/runtimeClassName", self.driver.class());
        }
        self.cmd(["run"]).arg(self.manifest(&pod))
    }

    /// Starts a pod in the background.
    #[track_caller]
    pub fn start(&self, pod: &Pod) {
        self.run(pod).arg("-d").ok();
    }

    /// Runs a shell script in a container of a running pod and returns what it printed.
    #[track_caller]
    pub fn sh(&self, pod: &str, container: &str, script: &str) -> String {
        self.cmd(["exec", pod, "-c", container, "--", "sh", "-c", script]).ok().stdout
    }
}

impl Default for VmHost {
    fn default() -> Self {
        Self::new()
    }
}
