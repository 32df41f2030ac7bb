//! What can run machines, and what runs in them.

use super::check::Check;
use super::host::{Host, Package};
use super::report::GuestFor;
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

/// The driver that is taken unless another one is asked for.
pub(super) fn libkrun(version: Result<String, Unavailable>) -> Check {
    let name = "libkrun";
    version.map_or_else(
        |why| Check::unavailable(name, "--vmm krun, which runs pods in hardware VMs", why),
        |version| Check::ok(name, version),
    )
}

/// The other driver.
pub(super) fn qemu(version: Result<String, Unavailable>) -> Check {
    let name = "QEMU";
    version.map_or_else(|why| Check::unavailable(name, QEMU_FOR, why), |version| Check::ok(name, version))
}

/// How the host speaks with the guest in QEMU.
pub(super) fn vsock(host: &Host, program: Result<PathBuf, Unavailable>) -> Check {
    let name = "QEMU's vsock";
    let kernels = if host.exists("/dev/vhost-vsock") {
        "the kernel's /dev/vhost-vsock is here too, this version does not use it"
    } else {
        "there is no /dev/vhost-vsock, and no need of it"
    };
    match program {
        Ok(program) => Check::ok(name, format!("{} ({kernels})", program.display())),
        Err(why) => Check::unavailable(name, QEMU_FOR, why),
    }
}

/// The kernel and init of the machines.
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
                GuestFor::AnotherProcessor => ": not this machine's processor, for --accel tcg only",
            };
            let dir = dir.display();
            Check::ok(name, format!("{dir} (kernel {kernel_version}, generation {generation}, {arch}{note})"))
        }
        Err(error) => Check::missing(
            name,
            "every pod: the VM boots from it",
            format!("{} cannot be used: {}", dir.display(), chain(error)),
            "make one with magikvm-image build, or name one with --guest DIR or MAGIKVM_GUEST",
        )
        .required(),
    }
}

/// Another kernel.
pub(super) fn libkrunfw(host: &Host, there: Result<(), Unavailable>) -> Check {
    let name = "libkrunfw";
    match there {
        Ok(()) => Check::ok(name, "its library can be loaded"),
        Err(why) => {
            Check::missing(name, "--kernel libkrunfw, and nothing else", why.reason, host.install(&LIBKRUNFW))
        }
    }
}

/// The way out of a machine.
pub(super) fn passt(host: &Host) -> Check {
    let name = "passt";
    match host.find("passt") {
        Some(path) => Check::ok(name, path.display().to_string()),
        None => Check::missing(
            name,
            "pods with a network, which are not in this version",
            "it is not in PATH",
            host.install(&PASST),
        ),
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
        assert!(
            check.is_ok() && check.found.starts_with("/bin/v (the kernel's /dev/vhost-vsock is"),
            "{check:?}"
        );
        assert!(
            vsock(&Fake::new(&[]).host, Ok("/bin/v".into())).found.contains("there is no /dev/vhost-vsock")
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
    fn what_few_pods_need_is_optional() {
        let fake = Fake::of_user(&[("/etc/os-release", "ID=fedora\n")]);
        let there = passt(&fake.host);
        assert_eq!((there.state, there.remedy.as_deref()), (State::Warn, Some("sudo dnf install passt")));
        fake.program("passt");
        assert!(passt(&fake.host).is_ok());
        let firmware = libkrunfw(&fake.host, missing("no library"));
        assert_eq!(
            (firmware.state, firmware.remedy.as_deref()),
            (State::Warn, Some("sudo dnf install libkrunfw"))
        );
        assert!(libkrunfw(&fake.host, Ok(())).is_ok());
        let debian = Fake::new(&[("/etc/os-release", "ID=debian\n")]);
        assert!(libkrunfw(&debian.host, missing("no")).remedy.unwrap().contains("https://"));
    }
}
