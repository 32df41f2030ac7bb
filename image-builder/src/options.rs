//! The guest kernel's options: our fragment, which of its lines must survive, and which of its options a guest requires.
//!
//! Must not know: how a kernel is compiled, where a configuration came from.

use magikvm_proto::guest_image::{Arch, FEATURE_SCRATCH};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// Our options on top of `make tinyconfig`, one commented file for each architecture.
pub fn fragment(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => include_str!("../kernel/x86_64.config"),
        Arch::Aarch64 => include_str!("../kernel/aarch64.config"),
    }
}

/// The options that a `.config` sets: name without `CONFIG_` to value. Options that are not set are not included.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options(BTreeMap<String, String>);

/// Parses a line of a `.config`; `None` as value means "is not set".
fn option_of(line: &str) -> Option<(&str, Option<&str>)> {
    if let Some(name) = line.strip_prefix("# CONFIG_").and_then(|rest| rest.strip_suffix(" is not set")) {
        return Some((name, None));
    }
    let (name, value) = line.strip_prefix("CONFIG_")?.split_once('=')?;
    Some((name, Some(value)))
}

impl Options {
    /// Reads a `.config`. Like Kconfig, it ignores lines that set nothing.
    pub fn parse(config: &str) -> Self {
        let set = |line: &str| {
            let (name, value) = option_of(line.trim_end())?;
            Some((name.to_owned(), value?.to_owned()))
        };
        Self(config.lines().filter_map(set).collect())
    }

    /// The value of an option, by its name without `CONFIG_`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn state(&self, name: &str) -> State {
        match self.get(name) {
            Some("y") => State::BuiltIn,
            Some("m") => State::Module,
            _ => State::Absent,
        }
    }
}

/// An option of the fragment that the final configuration does not have as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lost {
    pub wanted: String,
    /// The value in the configuration.
    pub found: Option<String>,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.found {
            Some(value) => write!(f, "{} (it is {value})", self.wanted),
            None => write!(f, "{} (it is not set)", self.wanted),
        }
    }
}

/// The lines of the fragment that are missing from this configuration.
pub fn lost(fragment: &str, config: &Options) -> Vec<Lost> {
    let lines = fragment.lines().filter_map(|line| Some((line, option_of(line)?)));
    lines
        .filter(|(_, (name, wanted))| config.get(name) != *wanted)
        .map(|(line, (name, _))| Lost { wanted: line.to_owned(), found: config.get(name).map(str::to_owned) })
        .collect()
}

/// Whether a guest requires a feature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// No pod runs without it: such a kernel is refused.
    Required,
    /// Some pods need it; the manifest's feature list tells the host.
    Optional,
}

/// Something that a guest kernel supports, and the options for it.
#[derive(Debug, Clone, Copy)]
pub struct Feature {
    /// Its name in a guest image's manifest.
    pub name: &'static str,
    /// Whether a guest requires it.
    pub need: Need,
    /// All of these must be built in; names without `CONFIG_`.
    pub options: &'static [&'static str],
    pub why: &'static str,
}

const fn required(name: &'static str, options: &'static [&'static str], why: &'static str) -> Feature {
    Feature { name, need: Need::Required, options, why }
}

const fn optional(name: &'static str, options: &'static [&'static str], why: &'static str) -> Feature {
    Feature { name, need: Need::Optional, options, why }
}

/// The features that are checked in every kernel. A test compares the tables with the fragments.
const FEATURES: &[Feature] = &[
    required(
        "initramfs",
        &["BLK_DEV_INITRD", "BINFMT_ELF"],
        "the guest's root is the initramfs, its /init an ELF program",
    ),
    required(
        "programs",
        &[
            "MULTIUSER",
            "FUTEX",
            "EPOLL",
            "EVENTFD",
            "TIMERFD",
            "SIGNALFD",
            "POSIX_TIMERS",
            "FILE_LOCKING",
            "SHMEM",
        ],
        "vminit and ordinary programs use these system calls",
    ),
    required("terminals", &["UNIX98_PTYS"], "containers and exec with a terminal"),
    required(
        "kernel-file-systems",
        &["PROC_FS", "SYSFS", "DEVTMPFS", "TMPFS"],
        "vminit and every container mount them",
    ),
    required(
        "namespaces",
        &["NAMESPACES", "UTS_NS", "IPC_NS", "PID_NS", "NET_NS"],
        "containers are made of them",
    ),
    required(
        "ipc",
        &["SYSVIPC", "POSIX_MQUEUE"],
        "the containers of a pod share them, and /dev/mqueue is mounted",
    ),
    required(
        "cgroups",
        &["CGROUPS", "MEMCG", "CGROUP_SCHED", "FAIR_GROUP_SCHED", "CFS_BANDWIDTH", "CGROUP_PIDS"],
        "the limits of containers are cgroup v2 limits",
    ),
    required(
        "cgroup-devices",
        &["BPF_SYSCALL", "CGROUP_BPF"],
        "the device rules of containers are BPF programs",
    ),
    required("seccomp", &["SECCOMP", "SECCOMP_FILTER"], "containers run under a system call filter"),
    required("virtio-mmio", &["VIRTIO_MMIO"], "the devices of both drivers"),
    required("virtio-blk", &["BLOCK", "BLK_DEV", "VIRTIO_BLK"], "the disk with the pod and its images"),
    required("gpt", &["EFI_PARTITION"], "that disk has a GUID partition table"),
    required("erofs", &["EROFS_FS", "EROFS_FS_XATTR"], "the pod's own file system and those of its images"),
    required("overlay", &["OVERLAY_FS"], "the writable layer of a container"),
    required("vsock", &["NET", "VSOCKETS", "VIRTIO_VSOCKETS"], "the host talks with vminit over it"),
    required("inet", &["INET", "UNIX"], "the containers of a pod talk over localhost"),
    optional("smp", &["SMP"], "more than one processor"),
    optional("virtio-net", &["NETDEVICES", "VIRTIO_NET"], "pods with a network"),
    optional("virtio-fs", &["FUSE_FS", "VIRTIO_FS"], "hostPath volumes"),
    optional("virtio-console", &["VIRTIO_CONSOLE"], "consoles without a serial port"),
    optional("virtio-balloon", &["VIRTIO_BALLOON"], "memory given back to the host"),
    optional("virtio-rng", &["HW_RANDOM", "HW_RANDOM_VIRTIO"], "random numbers right after the start"),
    optional("ipv6", &["IPV6"], "IPv6 in pods"),
    optional("veth", &["VETH"], "network interfaces in pairs"),
    optional("tun", &["TUN"], "containers that make their own tunnels"),
    optional(FEATURE_SCRATCH, &["EXT4_FS"], "roots of containers and volumes on the scratch disk"),
    optional("erofs-zip", &["EROFS_FS_ZIP"], "compressed image file systems"),
    optional("tmpfs-xattr", &["TMPFS_XATTR"], "extended attributes in the writable layer"),
    optional("user-namespaces", &["USER_NS"], "user namespaces made inside containers"),
    optional("time-namespaces", &["TIME_NS"], "time namespaces made inside containers"),
    optional("cpusets", &["CPUSETS"], "containers bound to processors"),
    optional("io-uring", &["IO_URING"], "programs that use io_uring"),
    optional("scripts", &["BINFMT_SCRIPT"], "programs that start with #!"),
    optional("initramfs-gzip", &["RD_GZIP"], "an initramfs compressed with gzip"),
    optional("initramfs-zstd", &["RD_ZSTD"], "an initramfs compressed with zstd"),
];

/// Features of the x86_64 VM.
const FEATURES_X86_64: &[Feature] = &[
    required("pvh", &["64BIT", "PVH"], "QEMU enters an ELF kernel by it"),
    required(
        "console",
        &["PRINTK", "TTY", "SERIAL_8250", "SERIAL_8250_CONSOLE"],
        "a guest that fails is explained by its serial console",
    ),
    required(
        "virtio-mmio-cmdline",
        &["VIRTIO_MMIO_CMDLINE_DEVICES"],
        "libkrun on x86 announces its devices on the kernel's command line",
    ),
    optional("kvm-guest", &["PARAVIRT", "KVM_GUEST"], "a clock that costs no exits under KVM"),
    optional("clock", &["RTC_CLASS", "RTC_DRV_CMOS", "RTC_HCTOSYS"], "the right time from the start"),
    optional("virtio-pci", &["PCI", "VIRTIO_PCI"], "machines with a PCI bus"),
];

/// Features of the aarch64 VM.
const FEATURES_AARCH64: &[Feature] = &[
    required("device-tree", &["64BIT", "OF"], "both drivers describe the VM by one"),
    required("psci", &["ARM_PSCI_FW"], "the guest ends its VM by it"),
    required("gic", &["ARM_GIC", "ARM_GIC_V3"], "the interrupts of both drivers"),
    required("timer", &["ARM_ARCH_TIMER"], "the only timer of these machines"),
    required(
        "4k-pages",
        &["ARM64_4K_PAGES"],
        "programs of many images are linked for pages of this size only",
    ),
    required(
        "console",
        &["PRINTK", "TTY", "SERIAL_AMBA_PL011", "SERIAL_AMBA_PL011_CONSOLE"],
        "a guest that fails is explained by its serial console",
    ),
    optional("kvm-guest", &["PARAVIRT"], "knowledge of time that the host took"),
    optional("clock", &["RTC_CLASS", "RTC_DRV_PL031", "RTC_HCTOSYS"], "the right time from the start"),
    optional("sve", &["ARM64_SVE"], "programs that use scalable vectors"),
];

/// The features that are checked on an architecture.
pub fn features(arch: Arch) -> impl Iterator<Item = &'static Feature> + Clone {
    let machine = match arch {
        Arch::X86_64 => FEATURES_X86_64,
        Arch::Aarch64 => FEATURES_AARCH64,
    };
    machine.iter().chain(FEATURES)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    BuiltIn,
    Module,
    Absent,
}

/// An option that a guest requires and a kernel lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// The option, without `CONFIG_`.
    pub option: &'static str,
    pub why: &'static str,
    is_module: bool,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let module =
            if self.is_module { ", and here it is a module, which the guest could not load" } else { "" };
        write!(f, "CONFIG_{}=y: {}{module}", self.option, self.why)
    }
}

/// The names of this kernel's features; or every required option that it lacks.
pub fn features_of(config: &Options, arch: Arch) -> Result<BTreeSet<String>, Vec<Missing>> {
    let features = features(arch);
    let missing: Vec<Missing> = features
        .clone()
        .filter(|feature| feature.need == Need::Required)
        .flat_map(|feature| feature.options.iter().map(move |&option| (option, feature.why)))
        .filter_map(|(option, why)| match config.state(option) {
            State::BuiltIn => None,
            state => Some(Missing { option, why, is_module: state == State::Module }),
        })
        .collect();
    if !missing.is_empty() {
        return Err(missing);
    }
    let has =
        |feature: &&Feature| feature.options.iter().all(|option| config.state(option) == State::BuiltIn);
    Ok(features.filter(has).map(|feature| feature.name.to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAGMENT: &str = include_str!("../kernel/x86_64.config");

    #[test]
    fn the_fragments_say_every_option_once_and_nothing_unreadable() {
        for fragment in Arch::ALL.map(fragment) {
            let mut names = BTreeSet::new();
            for line in fragment.lines().filter(|line| !line.is_empty()) {
                match option_of(line) {
                    Some((name, _)) => assert!(names.insert(name), "{name} is there twice"),
                    None => {
                        assert!(line.starts_with("# ") && !line.starts_with("# CONFIG_"), "what is {line:?}?")
                    }
                }
            }
        }
    }

    #[test]
    fn every_option_of_the_feature_tables_is_set_by_the_fragments() {
        for arch in Arch::ALL {
            let fragment = Options::parse(fragment(arch));
            let names: BTreeSet<_> = features(arch).map(|feature| feature.name).collect();
            assert_eq!(names.len(), features(arch).count(), "a feature's name is there twice");
            for feature in features(arch) {
                for option in feature.options {
                    assert_eq!(fragment.get(option), Some("y"), "{option} of {}, {arch}", feature.name);
                }
            }
            let all = features_of(&fragment, arch).unwrap();
            assert_eq!(all.len(), names.len());
        }
    }

    /// An option that was added to only one fragment is most often forgotten in the other.
    #[test]
    fn the_fragments_differ_only_in_what_is_about_the_vm() {
        const X86_64: &[&str] = &[
            "HYPERVISOR_GUEST",
            "KVM_GUEST",
            "PVH",
            "ACPI",
            "PCI",
            "PCI_MSI",
            "RTC_DRV_CMOS",
            "X86_X2APIC",
            "SERIAL_8250",
            "SERIAL_8250_CONSOLE",
            "EARLY_PRINTK",
            "VIRTIO_MMIO_CMDLINE_DEVICES",
            "VIRTIO_PCI",
        ];
        let [x86, arm] = Arch::ALL.map(|arch| Options::parse(fragment(arch)));
        let lacks: Vec<&String> = x86.0.keys().filter(|&name| !arm.0.contains_key(name)).collect();
        let mut expected = X86_64.to_vec();
        expected.sort_unstable();
        assert_eq!(lacks, expected);
        let other = arm.0.keys().filter(|&name| !x86.0.contains_key(name));
        let strange: Vec<&String> = other
            .filter(|name| {
                !name.contains("ARM") && !name.contains("ERRATUM") && !name.contains("PL0") && *name != "OF"
            })
            .collect();
        assert!(strange.is_empty(), "{strange:?}");
    }

    #[test]
    fn a_line_that_did_not_survive_is_named_with_what_came_instead() {
        let fragment =
            "# A comment.\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_N=8\nCONFIG_S=\"x=y\"\n# CONFIG_OFF is not set\n";
        let good = Options::parse("CONFIG_A=y\nCONFIG_B=y\nCONFIG_N=8\nCONFIG_S=\"x=y\"\nCONFIG_OTHER=y\n");
        assert_eq!(lost(fragment, &good), []);
        let bad = Options::parse(
            "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_N=64\nCONFIG_S=\"x=y\"\nCONFIG_OFF=y\n",
        );
        let texts: Vec<String> = lost(fragment, &bad).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            ["CONFIG_B=y (it is not set)", "CONFIG_N=8 (it is 64)", "# CONFIG_OFF is not set (it is y)"]
        );
    }

    #[test]
    fn a_kernel_without_required_options_is_told_all_of_them_and_why() {
        let arm = Options::parse(fragment(Arch::Aarch64));
        let missing: Vec<&str> =
            features_of(&arm, Arch::X86_64).unwrap_err().iter().map(|missing| missing.option).collect();
        assert!(missing.contains(&"PVH") && missing.contains(&"SERIAL_8250"), "{missing:?}");
        let poor = FRAGMENT
            .replace("CONFIG_VSOCKETS=y", "# CONFIG_VSOCKETS is not set")
            .replace("CONFIG_EROFS_FS=y", "CONFIG_EROFS_FS=m")
            .replace("CONFIG_EXT4_FS=y", "");
        let missing = features_of(&Options::parse(&poor), Arch::X86_64).unwrap_err();
        let texts: Vec<String> = missing.iter().map(ToString::to_string).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].starts_with("CONFIG_EROFS_FS=y: ") && texts[0].contains("module"), "{texts:?}");
        assert!(texts[1].starts_with("CONFIG_VSOCKETS=y: ") && texts[1].contains("host talks"), "{texts:?}");
    }

    #[test]
    fn a_kernel_without_an_optional_feature_is_taken_and_does_not_list_it() {
        let poor = FRAGMENT.replace("CONFIG_VIRTIO_FS=y", "CONFIG_VIRTIO_FS=m");
        let features = features_of(&Options::parse(&poor), Arch::X86_64).unwrap();
        assert!(!features.contains("virtio-fs") && features.contains("ext4"));
    }
}
