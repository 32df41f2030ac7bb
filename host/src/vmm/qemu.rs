//! QEMU: the machine type `microvm` for guests of x86_64 and `virt` for guests of aarch64, on any host. A separate process,
//! `vhost-device-vsock`, serves the agent's vsock, so that the host needs neither a kernel module nor privileges.

use super::jails::{Site, mount};
use super::nic::{NIC_FD, Nic};
use super::{
    Accel, Capabilities, DriverOptions, KernelChoice, Unavailable, VmChild, VmConfig, Vmm, VmmError,
    find_program, qmp, share,
};
use crate::agent::{Connector, Handshake};
use crate::jail::{self, Access, Descriptor, HostNetwork, Inside, JailSpec, SyscallFilter};
use crate::nested::Nested;
use crate::process::Process;
use crate::store::layout::{AGENT_SOCK, helper};
use crate::store::sandbox::Role;
use magikvm_proto::guest_image::Arch;
use std::io::Read;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Any number above 2, because VMs do not see each other.
const GUEST_CID: u32 = 3;
/// Time for vhost-device-vsock until it listens.
const HELPER_WAIT: Duration = Duration::from_secs(10);
/// Kernel parameters of every guest, each with its reason: only errors are printed, because each character costs an exit; a panic restarts at
/// once; the processor's random numbers are trusted, because the host makes them; there would be 512 legacy terminals, which nothing uses and
/// which take a fifth of the instructions of a boot.
const CMDLINE: &str = "quiet panic=-1 random.trust_cpu=on pty.legacy_count=0 rdinit=/init";

/// The settings of QEMU that depend on the guest's architecture.
struct Machine {
    /// Kernel parameters: the console, the way to restart, and no probing for a bus that is not there.
    cmdline: &'static str,
    /// The machine types with KVM and with TCG.
    types: [&'static str; 2],
    /// Arguments in addition to the common ones.
    arguments: &'static [&'static str],
    /// The Debian package with the program.
    package: &'static str,
}

/// With `reboot=t` a restart is a triple fault, on which both drivers end. With `pit=off` the guest hangs when it calibrates its clock.
const MICROVM: Machine = Machine {
    cmdline: "console=ttyS0 reboot=t pci=off",
    types: ["microvm,pit=on,pic=on,rtc=on"; 2],
    arguments: &[],
    package: "qemu-system-x86",
};

/// `its=off` leaves out the translator of message-signaled interrupts, which only PCI devices send. By default `virt` makes virtio-mmio devices
/// of the time before virtio 1.0, which vsock does not support.
const VIRT: Machine = Machine {
    cmdline: "console=ttyAMA0",
    types: ["virt,gic-version=host,its=off", "virt,gic-version=3,its=off"],
    arguments: &["-global", "virtio-mmio.force-legacy=false"],
    package: "qemu-system-arm",
};

fn machine(guest: Arch) -> &'static Machine {
    match guest {
        Arch::X86_64 => &MICROVM,
        Arch::Aarch64 => &VIRT,
    }
}

#[derive(Debug)]
pub struct Qemu {
    options: DriverOptions,
    qemu: Option<PathBuf>,
    vhost: Option<PathBuf>,
}

impl Qemu {
    /// Finds the programs: `MAGIKVM_QEMU` and `MAGIKVM_VHOST_DEVICE_VSOCK`, else the installed helper, `PATH` and cargo's directory.
    pub fn from_environment(options: DriverOptions) -> Self {
        let named = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
        let cargo_bin = || {
            let home = std::env::var_os("HOME")?;
            let path = Path::new(&home).join(".cargo/bin/vhost-device-vsock");
            path.is_file().then_some(path)
        };
        Self {
            qemu: named("MAGIKVM_QEMU").or_else(|| find_program(&format!("qemu-system-{}", options.guest))),
            vhost: named("MAGIKVM_VHOST_DEVICE_VSOCK")
                .or_else(|| helper("vhost-device-vsock"))
                .or_else(|| find_program("vhost-device-vsock"))
                .or_else(cargo_bin),
            options,
        }
    }

    fn programs(&self) -> Result<(&Path, &Path), Unavailable> {
        Ok((self.program()?, self.vsock()?))
    }

    fn program(&self) -> Result<&Path, Unavailable> {
        if !cfg!(target_os = "linux") {
            return Err(Unavailable {
                reason: "the QEMU driver is for Linux: it shares the guest's memory by memfd, and looks for sockets in /proc".to_owned(),
                remedy: "Leave out `--vmm qemu` and `--accel tcg`.".to_owned(),
            });
        }
        self.qemu.as_deref().ok_or_else(|| Unavailable {
            reason: format!("qemu-system-{} is not in PATH", self.options.guest),
            remedy: format!("Install it with `apt-get install {}`.", machine(self.options.guest).package),
        })
    }

    /// The program that serves the guest's vsock.
    pub fn vsock(&self) -> Result<&Path, Unavailable> {
        let remedy = "Install it with magikvm by `ci/install.sh`, or alone by `cargo install vhost-device-vsock --version 0.3.0 --locked`.";
        let not = |reason: String| Unavailable { reason, remedy: remedy.to_owned() };
        let program =
            self.vhost.as_deref().ok_or_else(|| not("vhost-device-vsock is not in PATH".to_owned()))?;
        // A bare name is searched in PATH when the program is started.
        let is_path = program.components().count() > 1;
        match nix::unistd::access(program, nix::unistd::AccessFlags::X_OK) {
            Err(errno) if is_path => Err(not(format!("{} cannot be executed: {errno}", program.display()))),
            Err(_) | Ok(()) => Ok(program),
        }
    }

    /// The version that QEMU prints.
    pub fn version(&self) -> Result<String, Unavailable> {
        let qemu = self.program()?;
        let said = Command::new(qemu).arg("--version").stdin(Stdio::null()).output().map_err(|error| {
            Unavailable {
                reason: format!("{} cannot be executed: {error}", qemu.display()),
                remedy: format!(
                    "Install it again with `apt-get install --reinstall {}`.",
                    machine(self.options.guest).package
                ),
            }
        })?;
        Ok(String::from_utf8_lossy(&said.stdout).lines().next().unwrap_or_default().to_owned())
    }
}

impl Vmm for Qemu {
    fn probe(&self, accel: Accel) -> Result<Capabilities, Unavailable> {
        self.programs()?;
        if accel == Accel::Kvm {
            super::probe::hardware(&self.options.places.verdicts)?;
        }
        if self.options.kernel == KernelChoice::Libkrunfw {
            return Err(Unavailable {
                reason: "the kernel of libkrunfw runs under libkrun only".to_owned(),
                remedy: "Leave out `--kernel libkrunfw`, or run with `--vmm krun`.".to_owned(),
            });
        }
        Ok(Capabilities { version: self.version()? })
    }

    fn spawn(&self, config: &VmConfig, dir: &Path) -> Result<VmChild, VmmError> {
        let (qemu, vhost) = self.programs().map_err(|unavailable| VmmError::Helper {
            program: "qemu".to_owned(),
            detail: unavailable.reason,
        })?;
        // The socket between QEMU and vhost-device-vsock. Its name is unique in /proc/net/unix.
        let vhost_sock = format!("vhost-{}.sock", config.id);
        // Must happen before the VM's directory is given to the VM's user.
        let listener = config.shared.as_ref().map(|_| share::listen(dir)).transpose()?;
        let site = Site::new(config, &config.kernel, dir)?;
        let mut helper = start(
            Role::VsockDevice,
            "vhost-device-vsock",
            Stdio::null(),
            &vhost_jail(vhost, &vhost_sock, &site)?,
        )?;
        await_listening(&mut helper, &vhost_sock)?;
        let server = match (&config.shared, &listener) {
            (Some(shared), Some(listener)) => Some(share::serve(shared, listener, config, &site)?),
            _ => None,
        };
        let mut spec = qemu_jail(qemu, self.options.guest, config, &vhost_sock, &site)?;
        let failed = |source| VmmError::Start { program: qemu.to_owned(), source };
        let monitor = site.disk_dir().map(qmp::channel).transpose().map_err(failed)?;
        if let Some((_, theirs)) = &monitor {
            spec.descriptors.push(Descriptor { here: theirs.as_raw_fd(), there: qmp::QMP_FD });
        }
        for (socket, number) in config.nic.iter().flat_map(Nic::inherits) {
            spec.descriptors.push(Descriptor { here: socket.as_raw_fd(), there: number });
        }
        if matches!(config.nic, Some(Nic::User { .. })) {
            spec.network = HostNetwork::Kept;
        }
        let mut vm = start(Role::Vmm, "qemu", Stdio::piped(), &spec)?;
        // QEMU has its own descriptor now. Its end is seen only when this one is closed.
        let disk = monitor.map(|(watch, _)| watch);
        let (console, diagnostics) = vm.take_output()?;
        let connector = Connector {
            socket: dir.join(AGENT_SOCK),
            handshake: Handshake::Port(magikvm_proto::path::AGENT_PORT),
        };
        let processes = [vm, helper].into_iter().chain(server).collect();
        Ok(VmChild { processes, connector, console, diagnostics, reports: None, disk })
    }
}

/// The existing directories in which QEMU looks for firmware.
const FIRMWARE: [&str; 6] = [
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/share/qemu-efi-aarch64",
    "/usr/share/AAVMF",
    "/usr/share/ipxe",
    "/usr/local/share/qemu",
];

fn start(role: Role, name: &str, output: Stdio, spec: &JailSpec) -> Result<Process, VmmError> {
    let mut command =
        jail::command().map_err(|source| VmmError::Start { program: PathBuf::from(name), source })?;
    command.stdin(Stdio::null()).stdout(output).stderr(Stdio::piped());
    Ok(jail::spawn_jailed(role, name, &mut command, spec, &[])?)
}

/// A program for a jail, by its resolved path.
fn within(program: &Path, arguments: Vec<String>) -> Result<Inside, VmmError> {
    let found =
        if program.components().count() > 1 { None } else { find_program(&program.to_string_lossy()) };
    let path = std::fs::canonicalize(found.as_deref().unwrap_or(program))
        .map_err(|source| VmmError::Start { program: program.to_owned(), source })?;
    Ok(Inside::Program { path, arguments })
}

/// Runs in the VM's directory with relative names, because a socket's path may have at most 107 bytes.
fn vhost_jail(program: &Path, socket: &str, site: &Site<'_>) -> Result<JailSpec, VmmError> {
    let vm = format!("guest-cid={GUEST_CID},socket={socket},uds-path={AGENT_SOCK}");
    let inside = within(program, vec!["--vm".to_owned(), vm])?;
    Ok(site.jail(inside, SyscallFilter::Vsock, Access::ReadWrite))
}

/// QEMU changes nothing in the VM's directory.
fn qemu_jail(
    program: &Path,
    guest: Arch,
    config: &VmConfig,
    vhost_sock: &str,
    site: &Site<'_>,
) -> Result<JailSpec, VmmError> {
    let inside = within(program, qemu_arguments(guest, config, vhost_sock))?;
    let mut spec = site.jail(inside, SyscallFilter::Qemu, Access::ReadOnly);
    spec.mounts.extend(site.files());
    site.hold(&mut spec);
    let firmware = FIRMWARE.into_iter().map(Path::new).filter(|path| path.exists());
    spec.mounts.extend(firmware.map(|path| mount(path, Access::ReadOnly)));
    spec.devices = vec!["/dev/null".into(), "/dev/urandom".into()];
    if config.accel == Accel::Kvm {
        spec.devices.push("/dev/kvm".into());
    }
    Ok(spec)
}

/// Waits until the helper listens. The socket's file exists before that, and QEMU connects only once.
fn await_listening(helper: &mut Process, socket: &str) -> Result<(), VmmError> {
    let deadline = Instant::now() + HELPER_WAIT;
    let failed = |detail: String| VmmError::Helper { program: "vhost-device-vsock".to_owned(), detail };
    loop {
        if listens(helper.reference.pid, socket) {
            return Ok(());
        }
        if let Ok(Some(status)) = helper.child.try_wait() {
            helper.set_reaped();
            let mut said = String::new();
            if let Some(stderr) = helper.child.stderr.take()
                && let Err(error) = stderr.take(4096).read_to_string(&mut said)
            {
                said = error.to_string();
            }
            return Err(failed(format!("it ended with {status}: {}", said.trim())));
        }
        if Instant::now() > deadline {
            return Err(failed(format!("it did not listen within {} s", HELPER_WAIT.as_secs())));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a process listens on the socket of this unique name. `net/unix` of its network namespace shows that (flag `__SO_ACCEPTCON`)
/// without a connection, because vhost-user accepts only one.
fn listens(pid: i32, socket: &str) -> bool {
    let Ok(table) = std::fs::read_to_string(format!("/proc/{pid}/net/unix")) else { return false };
    table.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        fields.nth(3) == Some("00010000") && fields.nth(3) == Some(socket)
    })
}

/// The kernel's parameters. Under software emulation the time stamp counter of an x86_64 guest is the host's. The guest would calibrate it
/// against an emulated timer, which fails on a busy host, and then no timer of the guest ever ticks. Therefore the parameters give its
/// frequency. On aarch64 the counter has a register for that.
pub fn kernel_parameters(guest: Arch, accel: Accel) -> String {
    let cmdline = format!("{} {CMDLINE}{}", machine(guest).cmdline, super::more_parameters());
    match (guest, accel) {
        (Arch::X86_64, Accel::Tcg) => match super::tsc::khz() {
            Some(khz) => format!("{cmdline} tsc_early_khz={khz} tsc=reliable"),
            None => cmdline,
        },
        _ => cmdline,
    }
}

fn qemu_arguments(guest: Arch, config: &VmConfig, vhost_sock: &str) -> Vec<String> {
    let Machine { types: [on_kvm, on_tcg], arguments, .. } = machine(guest);
    let (accel, processor, machine) = match config.accel {
        Accel::Kvm => ("kvm", "host", on_kvm),
        Accel::Tcg => ("tcg", "max", on_tcg),
    };
    let cpu = format!("{processor}{}", masked(guest, config.nested));
    let cmdline = kernel_parameters(guest, config.accel);
    let mut command = Arguments::default();
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
        .args(["-name", config.name.as_str()])
        .args(["-M", &format!("{machine},memory-backend=mem"), "-accel", accel, "-cpu", &cpu])
        .args(arguments.iter().copied())
        .args(["-object", &format!("memory-backend-memfd,id=mem,share=on,size={}M", config.memory_mib)])
        .args(["-m", &format!("{}M", config.memory_mib), "-smp", &config.vcpus.to_string()])
        .arg("-kernel")
        .arg(&config.kernel.to_string_lossy())
        .arg("-initrd")
        .arg(&config.initramfs.to_string_lossy())
        .args(["-append", &cmdline])
        .args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"])
        .args(disks(guest, config).iter().map(String::as_str))
        .args(["-chardev", &format!("socket,id=vsock,path={vhost_sock}")])
        .args(["-device", "vhost-user-vsock-device,chardev=vsock"])
        .args(["-device", "virtio-rng-device"])
        // The balloon returns memory that the guest frees to the host.
        .args(["-device", "virtio-balloon-device,free-page-reporting=on"])
        // QEMU's seccomp filter: no new programs, no privileges, no changes of resource limits.
        .args(["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    if let Some(nic) = &config.nic {
        command.args(nic_arguments(nic).iter().map(String::as_str));
    }
    command.0
}

/// Features that the guest's processor does not have. Machines of ARM have no nested virtualization unless they are asked for it.
fn masked(guest: Arch, nested: Nested) -> &'static str {
    match (guest, nested) {
        (Arch::X86_64, Nested::Masked) => ",vmx=off,svm=off",
        (Arch::X86_64, Nested::Exposed) | (Arch::Aarch64, _) => "",
    }
}

/// A command line that is being built.
#[derive(Default)]
struct Arguments(Vec<String>);

impl Arguments {
    fn arg(&mut self, argument: &str) -> &mut Self {
        self.0.push(argument.to_owned());
        self
    }

    fn args<'a>(&mut self, arguments: impl IntoIterator<Item = &'a str>) -> &mut Self {
        self.0.extend(arguments.into_iter().map(str::to_owned));
        self
    }
}

/// The composite disk, which the guest's kernel must find first, and the devices of volumes. Kernels of ARM find the devices of QEMU's machine in
/// the reverse order.
fn disks(guest: Arch, config: &VmConfig) -> Vec<String> {
    let drive = format!("if=none,id=disk,file={},format=vmdk,readonly=on", config.disk);
    let composite = ["-drive", &drive, "-device", "virtio-blk-device,drive=disk"].map(str::to_owned).to_vec();
    match guest {
        Arch::X86_64 => [composite, volumes(guest, config)].concat(),
        Arch::Aarch64 => [volumes(guest, config), composite].concat(),
    }
}

/// The writable disks, whose flushes and discards reach their files, and the shared directory. QEMU stops the VM if the host has no room for a write, and
/// tells its monitor.
fn volumes(guest: Arch, config: &VmConfig) -> Vec<String> {
    let mut arguments = Vec::new();
    // Kernels of ARM find the devices in the reverse order, and expect the scratch disk before the others.
    let mut disks: Vec<&String> = config.scratch.iter().chain(&config.lasting).collect();
    if guest == Arch::Aarch64 {
        disks.reverse();
    }
    for name in &disks {
        let drive = format!("if=none,id={name},file={name},format=raw,cache=writeback,discard=unmap");
        arguments.extend(["-drive".to_owned(), drive]);
        arguments.extend(["-device".to_owned(), format!("virtio-blk-device,drive={name}")]);
    }
    if !disks.is_empty() {
        arguments.extend(["-chardev".to_owned(), format!("socket,id=monitor,fd={}", qmp::QMP_FD)]);
        arguments.extend(["-mon", "chardev=monitor,mode=control"].map(str::to_owned));
    }
    if config.shared.is_some() {
        let device = format!("vhost-user-fs-device,chardev=share,tag={}", magikvm_proto::path::SHARED_TAG);
        arguments.extend(["-chardev".to_owned(), format!("socket,id=share,path={}", share::SOCKET)]);
        arguments.extend(["-device".to_owned(), device]);
    }
    arguments
}

/// The backend of the network device, and the device.
fn nic_arguments(nic: &Nic) -> Vec<String> {
    let (network, device) = match nic {
        Nic::Stream { mac, mtu, .. } => (
            format!("stream,id=net,server=off,addr.type=fd,addr.str={NIC_FD}"),
            format!("virtio-net-device,netdev=net,mac={mac},host_mtu={mtu}"),
        ),
        Nic::User { mac, network_6 } => {
            (format!("user,id=net,ipv6-net={network_6}"), format!("virtio-net-device,netdev=net,mac={mac}"))
        }
        // Only libkrun has TSI, and the network's settings refuse it earlier.
        Nic::Tsi => return Vec::new(),
    };
    vec!["-netdev".to_owned(), network, "-device".to_owned(), device]
}
