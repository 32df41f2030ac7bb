//! Why hardware virtualization does not work on this host. Each of the many reasons has its own fix, often on another machine.

use super::check::Check;
use super::host::{Forbidden, Host, KvmDevice, User};
use crate::vmm::kvm::Verdict;
use crate::vmm::{Unavailable, probe};
use std::path::Path;

const NAME: &str = "hardware virtualization";
const NEEDED_FOR: &str = "running pods in hardware VMs, which isolate them from this host";

/// How to enable nested virtualization, by words in the vendor's name that a VM reports.
const NESTING: [(&str, &str); 6] = [
    ("Amazon EC2", "use an instance type with nested virtualization, or a bare-metal one (*.metal)"),
    (
        "Google",
        "create the VM again with a machine type that supports it: gcloud compute instances create NAME --machine-type=n2-standard-4 --enable-nested-virtualization",
    ),
    (
        "Microsoft Corporation",
        "on a Hyper-V host: Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true; in Azure: a size with nested virtualization",
    ),
    ("VMware", "shut down the VM and add to its .vmx file: vhv.enable = \"TRUE\""),
    ("VirtualBox", "shut down the VM, then run on its host: VBoxManage modifyvm NAME --nested-hw-virt on"),
    ("Xen", "add to the VM's configuration on its host: nestedhvm = 1, then restart the VM"),
];

/// The first processor, as /proc/cpuinfo says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Processor {
    vendor: Vendor,
    extension: Extension,
    place: RunsOn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
}

impl Vendor {
    fn module(self) -> &'static str {
        match self {
            Self::Intel => "kvm_intel",
            Self::Amd => "kvm_amd",
        }
    }

    fn setting(self) -> &'static str {
        match self {
            Self::Intel => "Intel VT-x",
            Self::Amd => "AMD SVM",
        }
    }
}

/// Whether it can run VMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extension {
    Present,
    Absent,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum RunsOn {
    Metal,
    Vm,
}

impl Processor {
    fn of(host: &Host) -> Self {
        let text = host.read("/proc/cpuinfo").unwrap_or_default();
        let value = |key: &str| {
            let line =
                text.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key));
            line.and_then(|line| line.split_once(':')).map_or("", |(_, value)| value.trim())
        };
        let has = |flag: &str| value("flags").split_whitespace().any(|word| word == flag);
        let amd =
            has("svm") || (!has("vmx") && ["AuthenticAMD", "HygonGenuine"].contains(&value("vendor_id")));
        Self {
            vendor: if amd { Vendor::Amd } else { Vendor::Intel },
            extension: if has("vmx") || has("svm") { Extension::Present } else { Extension::Absent },
            place: if has("hypervisor") { RunsOn::Vm } else { RunsOn::Metal },
        }
    }

    /// A VM whose host keeps virtualization to itself.
    fn is_not_nested(self) -> bool {
        self.extension == Extension::Absent && self.place == RunsOn::Vm
    }
}

pub(super) fn of_machine(host: &Host, verdicts: &Path) -> Check {
    check(host, &host.kvm(), || probe::hardware_afresh(verdicts))
}

/// The check. `probe` runs guest instructions; it is asked only if /dev/kvm can be opened.
fn check(host: &Host, device: &KvmDevice, probe: impl FnOnce() -> Result<Verdict, Unavailable>) -> Check {
    let missing = |(found, remedy): (String, String)| Check::missing(NAME, NEEDED_FOR, found, remedy);
    match device {
        KvmDevice::Missing => missing(why_missing(host)),
        KvmDevice::Forbidden(why) => missing(why_forbidden(host, why)),
        KvmDevice::There => match probe() {
            Ok(verdict) => {
                let turn = verdict.per_turn.as_nanos();
                Check::ok(NAME, format!("/dev/kvm runs guest code at full speed ({turn} ns a turn)"))
            }
            Err(Unavailable { reason, remedy }) if host.arch == "x86_64" => {
                let processor = Processor::of(host);
                if processor.is_not_nested() {
                    let maker = maker(host);
                    let reason =
                        format!("{reason}; this host is itself a VM{maker}, without nested virtualization");
                    return missing((reason, nesting(host, processor)));
                }
                missing((reason, remedy))
            }
            Err(Unavailable { reason, remedy }) => missing((reason, remedy)),
        },
    }
}

fn why_missing(host: &Host) -> (String, String) {
    let sudo = host.sudo();
    if host.arch != "x86_64" {
        return (
            "there is no /dev/kvm: this kernel was not started at EL2 (it may run in a VM without nested virtualization), or it has no KVM"
                .to_owned(),
            "look for the reason with `dmesg | grep -i kvm`".to_owned(),
        );
    }
    let processor = Processor::of(host);
    let (module, setting) = (processor.vendor.module(), processor.vendor.setting());
    match (processor.extension, processor.place) {
        (Extension::Present, _) if host.is_container() => (
            "there is no /dev/kvm in this container".to_owned(),
            "start the container with --device /dev/kvm".to_owned(),
        ),
        (Extension::Present, _) if host.exists(&format!("/sys/module/{module}")) => (
            format!("there is no /dev/kvm, although {module} is loaded"),
            format!(
                "run `{sudo}modprobe -r {module} && {sudo}modprobe {module}`, then `dmesg | grep -i kvm`"
            ),
        ),
        (Extension::Present, _) => (
            format!("there is no /dev/kvm: the processor can run VMs, but the module {module} is not loaded"),
            format!(
                "run `{sudo}modprobe {module}` (if this fails, {setting} is off in the firmware settings)"
            ),
        ),
        (Extension::Absent, RunsOn::Vm) => (
            format!(
                "there is no /dev/kvm: this host is itself a VM{}, without nested virtualization",
                maker(host)
            ),
            nesting(host, processor),
        ),
        (Extension::Absent, RunsOn::Metal) => (
            format!(
                "there is no /dev/kvm: {setting} is off in this host's firmware, or the processor lacks it"
            ),
            format!(
                "run `{sudo}systemctl reboot --firmware-setup`, and turn on {setting} (\"virtualization\") there"
            ),
        ),
    }
}

fn why_forbidden(host: &Host, why: &Forbidden) -> (String, String) {
    let user = match &host.user {
        User::Root => "root",
        User::Ordinary { name, .. } => name,
    };
    let found = |because: &str| format!("the user {user} may not open /dev/kvm: {because}");
    match why {
        Forbidden::NotInGroup(group) => (
            found(&format!("only the group {group} may")),
            format!("run `sudo usermod -aG {group} {user}`, then log in again"),
        ),
        Forbidden::NotSinceLogin(group) => (
            found(&format!("only the group {group} may, and this session is not in it yet")),
            format!("log in again, or run `newgrp {group}` for one shell"),
        ),
        Forbidden::NoGroup => (
            found("only root may"),
            format!(
                "run `sudo chgrp kvm /dev/kvm && sudo chmod 660 /dev/kvm && sudo usermod -aG kvm {user}`, then log in again"
            ),
        ),
        Forbidden::Container => {
            (found("the kernel forbids it"), "start the container with --device /dev/kvm".to_owned())
        }
    }
}

/// To go behind "a VM".
fn maker(host: &Host) -> String {
    let maker = host.maker();
    if is_wsl(host) {
        " (WSL)".to_owned()
    } else if maker.is_empty() {
        String::new()
    } else {
        format!(" ({maker})")
    }
}

fn is_wsl(host: &Host) -> bool {
    host.read("/proc/sys/kernel/osrelease")
        .is_some_and(|release| release.to_lowercase().contains("microsoft"))
}

/// How to make the host of this VM pass virtualization through.
fn nesting(host: &Host, processor: Processor) -> String {
    if is_wsl(host) {
        return "add nestedVirtualization=true below [wsl2] in %UserProfile%\\.wslconfig, then run `wsl --shutdown`".to_owned();
    }
    let maker = host.maker();
    if let Some((_, remedy)) = NESTING.iter().find(|(word, _)| maker.contains(word)) {
        return (*remedy).to_owned();
    }
    let module = processor.vendor.module();
    format!(
        "on the host of this VM, run `echo 'options {module} nested=1' | sudo tee /etc/modprobe.d/kvm-nested.conf`, reload {module}, and give \
         this VM the host's processor (QEMU: -cpu host; libvirt: host-passthrough); in a cloud, use an instance type with nested virtualization"
    )
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::super::host::tests::Fake;
    use super::*;
    use std::time::Duration;

    fn cpuinfo(vendor: &str, flags: &str) -> String {
        let one = |n| {
            format!(
                "processor\t: {n}\nvendor_id\t: {vendor}\nvmx flags\t: ept\nflags\t\t: fpu {flags} sse2\n\n"
            )
        };
        format!("{}{}", one(0), one(1))
    }

    fn never() -> Result<Verdict, Unavailable> {
        panic!("there is nothing to probe")
    }

    fn emulates() -> Result<Verdict, Unavailable> {
        crate::vmm::kvm::judge(Duration::from_millis(25))
    }

    /// Of a machine without /dev/kvm.
    fn missing(files: &[(&str, &str)]) -> (String, String) {
        let fake = Fake::new(files);
        let check = check(&fake.host, &fake.host.kvm(), never);
        assert_eq!((check.state, check.needed_for), (State::Warn, Some(NEEDED_FOR)));
        (check.found, check.remedy.unwrap())
    }

    #[test]
    fn hardware_that_works_is_ok() {
        let fake = Fake::new(&[("/dev/kvm", "")]);
        let check = check(&fake.host, &fake.host.kvm(), || crate::vmm::kvm::judge(Duration::from_micros(20)));
        assert!(check.is_ok() && check.remedy.is_none() && check.found.contains("1 ns"), "{check:?}");
    }

    #[test]
    fn modules_that_are_not_loaded_are_told_from_a_device_that_is_not_in_the_container() {
        let intel = cpuinfo("GenuineIntel", "vmx");
        let (found, remedy) = missing(&[("/proc/cpuinfo", &intel)]);
        assert!(found.contains("kvm_intel is not loaded"), "{found}");
        assert!(
            remedy.starts_with("run `modprobe kvm_intel`") && remedy.contains("Intel VT-x is off"),
            "{remedy}"
        );
        let amd = cpuinfo("AuthenticAMD", "svm hypervisor");
        let (found, _) = missing(&[("/proc/cpuinfo", &amd), ("/sys/module/kvm_amd/refcnt", "0")]);
        assert!(found.contains("although kvm_amd is loaded"), "{found}");
        let (found, remedy) = missing(&[("/proc/cpuinfo", &amd), ("/run/.containerenv", "")]);
        assert!(found.contains("in this container"), "{found}");
        assert!(remedy.contains("--device /dev/kvm"), "{remedy}");
    }

    #[test]
    fn a_firmware_that_has_it_off_is_told_from_a_vm_without_nesting() {
        let (found, remedy) = missing(&[("/proc/cpuinfo", &cpuinfo("AuthenticAMD", "lm"))]);
        assert!(found.contains("AMD SVM is off in this host's firmware"), "{found}");
        assert!(remedy.contains("systemctl reboot --firmware-setup"), "{remedy}");
        let (found, remedy) = missing(&[("/proc/cpuinfo", &cpuinfo("GenuineIntel", "hypervisor"))]);
        assert!(found.ends_with("itself a VM, without nested virtualization"), "{found}");
        assert!(remedy.contains("options kvm_intel nested=1"), "{remedy}");
    }

    #[test]
    fn a_cloud_is_told_what_its_users_can_do() {
        let cpuinfo = cpuinfo("GenuineIntel", "hypervisor");
        let remedy = |vendor: &str, product: &str| {
            let files = [
                ("/proc/cpuinfo", cpuinfo.as_str()),
                ("/sys/class/dmi/id/sys_vendor", vendor),
                ("/sys/class/dmi/id/product_name", product),
            ];
            let (found, remedy) = missing(&files);
            assert!(found.contains(&format!("({vendor} {product})")), "{found}");
            remedy
        };
        assert!(remedy("Amazon EC2", "m5.large").contains("*.metal"));
        assert!(remedy("Google", "Google Compute Engine").contains("--enable-nested-virtualization"));
        assert!(remedy("Microsoft Corporation", "Virtual Machine").contains("Set-VMProcessor"));
        assert!(remedy("innotek GmbH", "VirtualBox").contains("--nested-hw-virt on"));
        assert!(remedy("QEMU", "Standard PC (Q35 + ICH9, 2009)").contains("-cpu host"));
        let (found, remedy) = missing(&[
            ("/proc/cpuinfo", &cpuinfo),
            ("/proc/sys/kernel/osrelease", "5.15.167.4-microsoft-standard-WSL2"),
        ]);
        assert!(found.contains("(WSL)") && remedy.contains("nestedVirtualization=true"), "{found} {remedy}");
    }

    #[test]
    fn a_device_that_only_emulates_has_the_remedy_of_its_host() {
        let (vm, metal) = (cpuinfo("AuthenticAMD", "hypervisor"), cpuinfo("AuthenticAMD", "svm"));
        let fake = Fake::new(&[("/dev/kvm", ""), ("/proc/cpuinfo", &vm)]);
        let nested = check(&fake.host, &fake.host.kvm(), emulates);
        assert!(nested.found.contains("only emulates") && nested.found.contains("itself a VM"), "{nested:?}");
        assert!(nested.remedy.unwrap().contains("kvm_amd nested=1"));
        fake.put("/proc/cpuinfo", &metal);
        let own = check(&fake.host, &fake.host.kvm(), emulates);
        assert_eq!(Some(own.found), emulates().err().map(|why| why.reason));
        assert_eq!(own.remedy, emulates().err().map(|why| why.remedy));
    }

    #[test]
    fn who_may_not_open_it_is_named_with_the_group_that_may() {
        let fake = Fake::of_user(&[]);
        let said = |why| {
            let check = check(&fake.host, &KvmDevice::Forbidden(why), never);
            assert!(check.found.contains("the user ada may not open /dev/kvm"), "{check:?}");
            check.remedy.unwrap()
        };
        let group = || "kvm".to_owned();
        assert_eq!(said(Forbidden::NotInGroup(group())), "run `sudo usermod -aG kvm ada`, then log in again");
        assert!(said(Forbidden::NotSinceLogin(group())).contains("newgrp kvm"));
        assert!(said(Forbidden::NoGroup).contains("sudo chmod 660 /dev/kvm"));
        assert!(said(Forbidden::Container).contains("--device /dev/kvm"));
    }

    #[test]
    fn arm_has_its_own_words() {
        let mut fake = Fake::new(&[("/proc/cpuinfo", "processor\t: 0\nFeatures\t: fp asimd\n")]);
        fake.host.arch = "aarch64";
        let check = check(&fake.host, &fake.host.kvm(), never);
        assert!(
            check.found.contains("EL2") && !check.remedy.unwrap().contains("modprobe"),
            "{}",
            check.found
        );
    }
}
