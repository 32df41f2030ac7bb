//! Checks of the drivers, the guest image, and the network of pods.

use super::check::Check;
use super::host::{Host, Package};
use super::report::GuestFor;
use crate::net::host::HostNetwork;
use crate::net::passt::PasstError;
use crate::runtime::microvm::GuestError;
use crate::store::text::chain;
use crate::vmm::Unavailable;
use magikvm_proto::guest_image::GuestManifest;
use std::path::{Path, PathBuf};

const QEMU_FOR: &str = "--vmm qemu, and software emulation (--accel tcg)";
const PASST: Package = Package {
    name: "passt",
    debian: Some("passt"),
    fedora: Some("passt"),
    arch: Some("passt"),
    source: "https://passt.top",
};
const LIBKRUNFW: Package = Package {
    name: "libkrunfw",
    debian: None,
    fedora: Some("libkrunfw"),
    arch: Some("libkrunfw"),
    source: "https://github.com/containers/libkrunfw",
};

pub(super) fn libkrun(version: Result<String, Unavailable>) -> Check {
    let name = "libkrun";
    version.map_or_else(
        |why| Check::unavailable(name, "--vmm krun, which runs pods in hardware VMs", why),
        |version| Check::ok(name, version),
    )
}

pub(super) fn qemu(version: Result<String, Unavailable>) -> Check {
    let name = "QEMU";
    version.map_or_else(|why| Check::unavailable(name, QEMU_FOR, why), |version| Check::ok(name, version))
}

/// The connection between host and guest with QEMU.
pub(super) fn vsock(host: &Host, program: Result<PathBuf, Unavailable>) -> Check {
    let name = "QEMU's vsock";
    let kernels = if host.exists("/dev/vhost-vsock") {
        "/dev/vhost-vsock exists, but this version does not use it"
    } else {
        "/dev/vhost-vsock does not exist and is not needed"
    };
    match program {
        Ok(program) => Check::ok(name, format!("{} ({kernels})", program.display())),
        Err(why) => Check::unavailable(name, QEMU_FOR, why),
    }
}

/// Kernel and init of the VMs.
pub(super) fn guest_image(
    dir: &Path,
    image: &Result<GuestManifest, GuestError>,
    guest_for: GuestFor,
) -> Check {
    let name = "guest image";
    match image {
        Ok(image) => {
            let GuestManifest { kernel_version, arch, generation, .. } = image;
            let note = match guest_for {
                GuestFor::ThisProcessor => "",
                GuestFor::AnotherProcessor => ": not this host's architecture, for --accel tcg only",
            };
            let dir = dir.display();
            Check::ok(name, format!("{dir} (kernel {kernel_version}, generation {generation}, {arch}{note})"))
        }
        Err(error) => Check::missing(
            name,
            "every pod with a VM, which boots from it",
            format!("{} cannot be used: {}", dir.display(), chain(error)),
            "build one with `magikvm-image build`, or select one with `--guest DIR` or MAGIKVM_GUEST",
        )
        .required(),
    }
}

pub(super) fn libkrunfw(host: &Host, there: Result<(), Unavailable>) -> Check {
    let name = "libkrunfw";
    match there {
        Ok(()) => Check::ok(name, "the library can be loaded"),
        Err(why) => Check::missing(name, "--kernel libkrunfw only", why.reason, host.install(&LIBKRUNFW)),
    }
}

/// The default network of pods. `group` is one that its NAT runs as.
pub(super) fn network(network: &HostNetwork, group: u32) -> Check {
    let name = "network";
    let families = match (network.has_4(), network.has_6()) {
        (true, true) => "IPv4 and IPv6",
        (true, false) => "IPv4 (no default route for IPv6)",
        (false, true) => "IPv6 (no default route for IPv4)",
        (false, false) => {
            let found = "this host has no default route".to_owned();
            return Check::missing(
                name,
                "pods with a network",
                found,
                "connect this host to a network".to_owned(),
            );
        }
    };
    let ping = match &network.ping_groups {
        Some(groups) if !groups.contains(&group) => {
            "; no ping (`sysctl -w net.ipv4.ping_group_range='0 2147483647'` permits it)"
        }
        _ => ", and ping",
    };
    Check::ok(name, format!("the default network of pods (nat): {families}{ping}"))
}

/// Another carrier of the network of pods. `version` returns the version that the program prints, if it can be used.
pub(super) fn passt(host: &Host, version: impl FnOnce(&Path) -> Result<String, PasstError>) -> Check {
    let (name, need) = ("passt", "pods with the network passt only");
    let Some(path) = host.find("passt") else {
        return Check::missing(name, need, "it is not in PATH", host.install(&PASST));
    };
    match version(&path) {
        Ok(version) => {
            Check::ok(name, format!("{} ({version}), for pods with the network passt", path.display()))
        }
        Err(error) => Check::missing(name, need, chain(&error), host.install(&PASST)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::super::host::tests::Fake;
    use super::*;

    fn missing<T>(reason: &str) -> Result<T, Unavailable> {
        Err(Unavailable { reason: reason.to_owned(), remedy: "mend it".to_owned() })
    }

    #[test]
    fn what_a_driver_says_of_itself_is_told() {
        assert_eq!(libkrun(Ok("libkrun 1".to_owned())), Check::ok("libkrun", "libkrun 1"));
        for check in [libkrun(missing("no")), qemu(missing("no")), vsock(&Fake::new(&[]).host, missing("no"))]
        {
            assert_eq!((check.state, check.found.as_str()), (State::Warn, "no"));
            assert_eq!(check.remedy.as_deref(), Some("mend it"));
        }
    }

    #[test]
    fn the_kernels_own_vsock_does_not_stand_in_for_the_program() {
        let fake = Fake::new(&[("/dev/vhost-vsock", "")]);
        assert_eq!(vsock(&fake.host, missing("no")).state, State::Warn);
        let check = vsock(&fake.host, Ok("/bin/v".into()));
        assert!(check.is_ok() && check.found.starts_with("/bin/v (/dev/vhost-vsock exists"), "{check:?}");
        assert!(
            vsock(&Fake::new(&[]).host, Ok("/bin/v".into()))
                .found
                .contains("/dev/vhost-vsock does not exist")
        );
    }

    #[test]
    fn no_pod_runs_without_a_guest_image() {
        let dir = tempfile::tempdir().unwrap();
        let check = guest_image(
            dir.path(),
            &crate::runtime::microvm::check_guest(dir.path()),
            GuestFor::ThisProcessor,
        );
        assert_eq!(check.state, State::Fail);
        assert!(check.found.contains("it has no manifest.json: No such file"), "{check:?}");
        assert!(check.remedy.unwrap().contains("magikvm-image build"));
    }

    #[test]
    fn the_network_of_pods_has_the_families_of_the_host() {
        let address = std::net::IpAddr::from([192, 0, 2, 2]);
        let here = HostNetwork {
            addresses: [address].into(),
            routes_4: true,
            ping_groups: Some(0..=1000),
            ..HostNetwork::default()
        };
        let check = network(&here, 1000);
        assert!(
            check.is_ok() && check.found.ends_with("IPv4 (no default route for IPv6), and ping"),
            "{check:?}"
        );
        let check = network(&here, 1001);
        assert!(check.is_ok() && check.found.contains("no ping (`sysctl"), "{check:?}");
        let alone = network(&HostNetwork::default(), 0);
        assert!(!alone.is_ok() && alone.found.contains("no default route"), "{alone:?}");
    }

    #[test]
    fn what_few_pods_need_is_optional() {
        let fake = Fake::of_user(&[("/etc/os-release", "ID=fedora\n")]);
        let good = |_: &Path| Ok("2025".to_owned());
        let old = |path: &Path| Err(PasstError::TooOld { path: path.to_owned(), option: "--fd" });
        let there = passt(&fake.host, good);
        assert_eq!(
            (there.state, there.remedy.as_deref()),
            (State::Warn, Some("run `sudo dnf install passt`"))
        );
        fake.program("passt");
        let there = passt(&fake.host, good);
        assert!(
            there.is_ok() && there.found.contains("(2025), for pods with the network passt"),
            "{there:?}"
        );
        assert!(passt(&fake.host, old).found.contains("has no option --fd"));
        let firmware = libkrunfw(&fake.host, missing("no library"));
        assert_eq!(
            (firmware.state, firmware.remedy.as_deref()),
            (State::Warn, Some("run `sudo dnf install libkrunfw`"))
        );
        assert!(libkrunfw(&fake.host, Ok(())).is_ok());
        let debian = Fake::new(&[("/etc/os-release", "ID=debian\n")]);
        assert!(libkrunfw(&debian.host, missing("no")).remedy.unwrap().contains("https://"));
    }
}
