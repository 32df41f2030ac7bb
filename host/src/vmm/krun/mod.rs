//! libkrun, compiled into this program. `krun_start_enter` takes over its process and leaves it by `_exit`, so that each VM is a separate
//! process: this program with a hidden verb. It reads its configuration from standard input, prints the guest's console on standard output,
//! and writes errors to a descriptor for reports.
//!
//! Owns: how that process is started and configured. Must not know: pods and images.

mod api;
#[cfg(has_krun)]
mod firmware;
mod vm;

pub use vm::{VMM_VERB, main};

use super::jails::Site;
use super::nic::{NIC_FD, Nic};
use super::report;
use super::share;
use super::{
    Accel, Capabilities, DriverOptions, KernelChoice, Unavailable, VmChild, VmConfig, Vmm, VmmError,
};
use crate::agent::{Connector, Handshake};
use crate::jail::{self, Access, Descriptor, HostNetwork, Inside, SyscallFilter};
use crate::nested::Nested;
use crate::os;
use crate::process;
use crate::store::atomic::FileError;
use crate::store::layout::AGENT_SOCK;
use crate::store::sandbox::Role;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Whether this program can run VMs with libkrun.
pub const IS_COMPILED_IN: bool = cfg!(has_krun);

/// Kernel parameters, each with its reason: the console shows only errors, because each character costs an exit; an orderly restart goes
/// through the keyboard controller, so that a triple fault is always a crash; a panic restarts at once; the processor's random numbers are
/// trusted, because the host makes them; there is no PCI bus to probe; page faults are not reported to the guest (libkrun's default). The
/// next four save many exits of a boot: there would be 512 legacy terminals, which nothing uses; the keyboard controller has neither
/// keyboard nor mouse, and probing for them takes time; there is one serial port.
const CMDLINE: &str = "quiet reboot=k panic=-1 random.trust_cpu=on pci=off no-kvmapf pty.legacy_count=0 i8042.noaux \
                       i8042.nokbd 8250.nr_uarts=1 rdinit=/init";
/// On ARM a restart is a firmware call, and there is neither a keyboard controller nor PCI configuration by ports.
const CMDLINE_ARM: &str = "quiet panic=-1 random.trust_cpu=on pty.legacy_count=0 rdinit=/init";

/// The settings of a VM's process.
#[derive(Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Settings {
    memory_mib: u32,
    vcpus: u8,
    kernel: PathBuf,
    initramfs: PathBuf,
    cmdline: String,
    console: Console,
    /// Name of the disk's descriptor in the working directory.
    disk: String,
    agent_port: u32,
    forward_port: u32,
    /// Name of the scratch disk in the working directory.
    scratch: Option<String>,
    /// Names of the disks that outlive the VM.
    lasting: Vec<String>,
    /// The directory that is shared with the guest.
    shared: Option<PathBuf>,
    network: Network,
    nested: Nested,
}

/// The VM's connection to a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Network {
    None,
    /// A device whose frames go through this descriptor.
    Stream {
        mac: [u8; 6],
        fd: i32,
    },
    /// Sockets of the host.
    Tsi,
}

/// Makes libkrunfw's kernel forward its sockets to the host.
const TSI_PARAMETER: &str = " tsi_hijack";

/// The console of the guest's kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
enum Console {
    /// A serial port, which shows the kernel's first and last messages.
    Serial,
    /// A virtio console, for kernels without a driver for serial ports.
    Virtio,
}

impl Console {
    /// The console of guest images' kernels. On ARM, libkrun's device tree calls its serial port `arm,pl011` and not `arm,primecell`, and Linux
    /// has no driver for that.
    const OF_GUEST_IMAGES: Self = if cfg!(target_arch = "aarch64") { Self::Virtio } else { Self::Serial };
}

#[derive(Debug)]
pub struct Krun {
    options: DriverOptions,
}

impl Krun {
    pub fn new(options: DriverOptions) -> Self {
        Self { options }
    }

    #[cfg(has_krun)]
    fn firmware(&self) -> Result<PathBuf, VmmError> {
        firmware::kernel(&self.options.places.kernels).map_err(|error| VmmError::Firmware(Box::new(error)))
    }

    #[cfg(not(has_krun))]
    fn firmware(&self) -> Result<PathBuf, VmmError> {
        Ok(self.options.places.kernels.clone())
    }

    fn settings(&self, config: &VmConfig) -> Result<Settings, VmmError> {
        let (kernel, console) = match self.options.kernel {
            KernelChoice::GuestImage => (config.kernel.clone(), Console::OF_GUEST_IMAGES),
            KernelChoice::Libkrunfw => (self.firmware()?, Console::Virtio),
        };
        let device = match console {
            Console::Serial => "ttyS0",
            Console::Virtio => "hvc0",
        };
        let rest = if cfg!(target_arch = "aarch64") { CMDLINE_ARM } else { CMDLINE };
        let too_large = || VmmError::Helper {
            program: "libkrun".to_owned(),
            detail: format!("{} MiB and {} processors are more than it has", config.memory_mib, config.vcpus),
        };
        let network = match &config.nic {
            None => Network::None,
            Some(Nic::Stream { mac, .. }) => Network::Stream { mac: mac.0, fd: NIC_FD },
            Some(Nic::Tsi) => Network::Tsi,
            Some(Nic::User { .. }) => {
                let detail = "it has no user network".to_owned();
                return Err(VmmError::Helper { program: "libkrun".to_owned(), detail });
            }
        };
        let tsi = if network == Network::Tsi { TSI_PARAMETER } else { "" };
        Ok(Settings {
            network,
            memory_mib: u32::try_from(config.memory_mib).map_err(|_| too_large())?,
            vcpus: u8::try_from(config.vcpus).map_err(|_| too_large())?,
            kernel,
            initramfs: config.initramfs.clone(),
            cmdline: format!("console={device} {rest}{tsi}{}", super::more_parameters()),
            console,
            disk: config.disk.clone(),
            agent_port: magikvm_proto::path::AGENT_PORT,
            forward_port: magikvm_proto::path::FORWARD_PORT,
            scratch: config.scratch.clone(),
            lasting: config.lasting.clone(),
            shared: None,
            nested: config.nested,
        })
    }
}

impl Vmm for Krun {
    fn probe(&self, accel: Accel) -> Result<Capabilities, Unavailable> {
        let version = api::version()?;
        if accel == Accel::Tcg {
            return Err(Unavailable {
                reason: "libkrun has no software emulation".to_owned(),
                remedy: "Leave out `--accel tcg`, or let QEMU emulate with `--vmm qemu --accel tcg`."
                    .to_owned(),
            });
        }
        super::probe::hardware(&self.options.places.verdicts)?;
        #[cfg(has_krun)]
        if self.options.kernel == KernelChoice::Libkrunfw {
            firmware::probe()?;
        }
        Ok(Capabilities { version })
    }

    fn spawn(&self, config: &VmConfig, dir: &Path) -> Result<VmChild, VmmError> {
        let socket = dir.join(AGENT_SOCK);
        os::check_unix(&socket).map_err(FileError::at("reach the agent by", &socket))?;
        let mut settings = self.settings(config)?;
        let site = Site::new(config, &settings.kernel, dir)?;
        let mut spec = site.jail(Inside::Verb(VMM_VERB.to_owned()), SyscallFilter::Krun, Access::ReadWrite);
        spec.mounts.extend(site.files());
        site.hold(&mut spec);
        spec.devices = vec!["/dev/kvm".into()];
        if let Some(shared) = &config.shared {
            spec.filter = SyscallFilter::KrunSharing;
            settings.shared = Some(share::add(&mut spec, shared, config));
        }
        let settings = serde_json::to_vec(&settings)
            .map_err(|error| VmmError::Helper { program: "libkrun".to_owned(), detail: error.to_string() })?;
        let start = |source| VmmError::Start { program: VMM_VERB.into(), source };
        let (reports, theirs) = report::channel().map_err(start)?;
        for (socket, number) in config.nic.iter().flat_map(Nic::inherits) {
            spec.descriptors.push(Descriptor { here: socket.as_raw_fd(), there: number });
        }
        if matches!(config.nic, Some(Nic::Tsi)) {
            spec.network = HostNetwork::Kept;
        }
        let mut command = jail::command().map_err(start)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut vm =
            jail::spawn_jailed(Role::Vmm, "krun", &mut command, &spec, &[(&theirs, report::REPORT_FD)])?;
        drop(theirs);
        let (console, diagnostics) = vm.take_output()?;
        process::tell(&mut vm, &settings).map_err(start)?;
        let connector = Connector { socket, handshake: Handshake::Direct };
        Ok(VmChild {
            processes: vec![vm],
            connector,
            console,
            diagnostics,
            reports: Some(reports),
            disk: None,
        })
    }
}

pub fn version() -> Result<String, Unavailable> {
    api::version()
}

/// Checks that `--kernel libkrunfw` has a kernel.
pub fn probe_libkrunfw() -> Result<(), Unavailable> {
    version()?;
    #[cfg(has_krun)]
    firmware::probe()?;
    Ok(())
}
