//! The result of all checks.

use super::check::{Check, State};
use serde::Serialize;

/// The processor of the guest image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestFor {
    ThisProcessor,
    /// Only an emulator can run it.
    AnotherProcessor,
}

/// The checks of what runs VMs. One driver with everything it needs is sufficient.
#[derive(Debug)]
pub(super) struct Machines {
    pub(super) hardware: Check,
    pub(super) krun: Check,
    pub(super) qemu: Check,
    pub(super) vsock: Check,
    pub(super) guest_for: GuestFor,
}

/// The drivers with which pods can run on this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Drivers {
    krun: bool,
    qemu: bool,
}

/// Whether at least one driver has all its parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parts {
    There,
    Missing,
}

/// The pods that need something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pods {
    All,
    WithVms,
    /// Those of the class pod-containers.
    #[cfg_attr(target_os = "macos", allow(dead_code, reason = "the class is one of Linux"))]
    WithoutVms,
}

/// The result of all checks. `hardware`, `emulation` and `containers` say whether pods can run in this way.
#[derive(Debug, Serialize)]
pub(super) struct DoctorReport {
    pub(super) checks: Vec<Check>,
    pub(super) hardware: bool,
    pub(super) emulation: bool,
    /// Without VMs, in namespaces of the host.
    pub(super) containers: bool,
    pub(super) drivers: Drivers,
    #[serde(skip)]
    machines: Parts,
}

impl DoctorReport {
    /// If no pod can run, each missing part is a failure: every fix begins with one of them. If pods can run in one way, then nothing fails that only
    /// another way needs.
    pub(super) fn new(machines: Machines, others: Vec<(Pods, Check)>) -> Self {
        let Machines { hardware, krun, qemu, vsock, guest_for } = machines;
        let processor = hardware.is_ok() && guest_for == GuestFor::ThisProcessor;
        let by = Drivers { krun: krun.is_ok() && processor, qemu: qemu.is_ok() && vsock.is_ok() };
        let machines = if by.krun || by.qemu { Parts::There } else { Parts::Missing };
        let fails = |of: Pods| others.iter().any(|(pods, check)| *pods == of && check.state == State::Fail);
        let (base, vms) = (!fails(Pods::All), !fails(Pods::WithVms));
        let drivers = Drivers { krun: by.krun && base && vms, qemu: by.qemu && base && vms };
        let is_checked = others.iter().any(|(pods, _)| *pods == Pods::WithoutVms);
        let containers = is_checked && base && !fails(Pods::WithoutVms);
        let some = drivers.krun || drivers.qemu || containers;
        let parts = [hardware, krun, qemu, vsock];
        let parts = if some || machines == Parts::There { parts } else { parts.map(Check::required) };
        let others = others.into_iter().map(|(_, check)| if some { check.optional() } else { check });
        Self {
            checks: parts.into_iter().chain(others).collect(),
            hardware: drivers.krun || (drivers.qemu && processor),
            emulation: drivers.qemu,
            containers,
            drivers,
            machines,
        }
    }

    /// Sentences for people: whether pods can run, and in which ways.
    pub(super) fn summary(&self) -> String {
        let in_vms = match (self.hardware, self.drivers) {
            (true, Drivers { krun: true, qemu: true }) => {
                "Pods run on this host in hardware VMs, with libkrun, or with QEMU (--vmm qemu)."
            }
            (true, Drivers { krun: true, qemu: false }) => {
                "Pods run on this host in hardware VMs, with libkrun."
            }
            (true, Drivers { krun: false, .. }) => "Pods run on this host in hardware VMs, with QEMU.",
            (false, Drivers { qemu: true, .. }) => {
                "Pods run on this host by software emulation only (--accel tcg, with QEMU). It is slow, and not a security boundary."
            }
            (false, Drivers { qemu: false, .. }) if self.containers => {
                "Pods run on this host only without a VM (--class pod-containers). That isolates them less, because they share the kernel of this host. VMs need either libkrun with hardware virtualization or QEMU with its vsock, and a guest image."
            }
            (false, Drivers { qemu: false, .. }) if self.machines == Parts::Missing => {
                "Pods cannot run on this host. They need either libkrun with hardware virtualization or QEMU with its vsock, or for the class pod-containers what its checks say, and everything else that is marked FAIL."
            }
            (false, Drivers { qemu: false, .. }) => {
                "Pods cannot run on this host. They need everything that is marked FAIL."
            }
        };
        let without = match self.containers && (self.drivers.krun || self.drivers.qemu) {
            true => {
                " Without a VM they run with --class pod-containers, which isolates them less: they share the kernel of this host."
            }
            false => "",
        };
        format!("{in_vms}{without}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(is_there: bool) -> Check {
        if is_there {
            Check::ok("part", "there")
        } else {
            Check::missing("part", "much", "not there", "get it")
        }
    }

    fn report(parts: [bool; 4], guest_for: GuestFor, others: Vec<Check>) -> DoctorReport {
        let [hardware, krun, qemu, vsock] = parts.map(part);
        let others = others.into_iter().map(|check| (Pods::WithVms, check)).collect();
        DoctorReport::new(Machines { hardware, krun, qemu, vsock, guest_for }, others)
    }

    #[test]
    fn something_fails_exactly_where_nothing_can_run() {
        for bits in 0..64u32 {
            let bit = |n: u32| bits & (1 << n) != 0;
            let required = part(bit(4)).required();
            let optional = part(bit(5));
            let parts = [bit(0), bit(1), bit(2), bit(3)];
            let report = report(parts, GuestFor::ThisProcessor, vec![required, optional]);
            let fails = report.checks.iter().any(|check| check.state == State::Fail);
            assert_eq!(fails, !(report.hardware || report.emulation), "{parts:?}: {report:?}");
            assert_eq!(fails, report.summary().starts_with("Pods cannot run on this host"));
            assert_eq!(report.hardware || report.emulation, report.drivers.krun || report.drivers.qemu);
            for check in &report.checks {
                assert_eq!(check.is_ok(), check.remedy.is_none() && check.needed_for.is_none());
            }
        }
    }

    #[test]
    fn a_driver_needs_its_parts() {
        let of = |parts| {
            let report = report(parts, GuestFor::ThisProcessor, vec![]);
            (report.hardware, report.emulation, report.drivers.krun, report.drivers.qemu, report.summary())
        };
        let (hardware, emulation, krun, qemu, summary) = of([true, true, false, true]);
        assert_eq!((hardware, emulation, krun, qemu), (true, false, true, false));
        assert_eq!(summary, "Pods run on this host in hardware VMs, with libkrun.");
        let (hardware, emulation, krun, qemu, summary) = of([true, false, true, true]);
        assert_eq!((hardware, emulation, krun, qemu), (true, true, false, true));
        assert_eq!(summary, "Pods run on this host in hardware VMs, with QEMU.");
        let (hardware, emulation, krun, qemu, summary) = of([false, true, true, true]);
        assert_eq!((hardware, emulation, krun, qemu), (false, true, false, true));
        assert!(summary.contains("--accel tcg"), "{summary}");
        let (hardware, emulation, krun, qemu, summary) = of([false, true, true, false]);
        assert_eq!((hardware, emulation, krun, qemu), (false, false, false, false));
        assert!(summary.contains("or QEMU with its vsock"), "{summary}");
        let image = report([true; 4], GuestFor::ThisProcessor, vec![part(false).required()]);
        assert_eq!(
            image.summary(),
            "Pods cannot run on this host. They need everything that is marked FAIL."
        );
    }

    #[test]
    fn a_guest_for_another_processor_is_only_emulated() {
        let all = report([true; 4], GuestFor::AnotherProcessor, vec![]);
        assert_eq!((all.hardware, all.emulation, all.drivers.krun), (false, true, false));
        let none = report([true, true, false, false], GuestFor::AnotherProcessor, vec![]);
        assert!(!none.hardware && !none.emulation);
    }

    #[test]
    fn a_class_without_vms_is_a_way_of_its_own() {
        for bits in 0..32u32 {
            let bit = |n: u32| bits & (1 << n) != 0;
            let of = |n: u32| part(bit(n)).required();
            let [hardware, krun, qemu, vsock] = [bit(0); 4].map(part);
            let machines = Machines { hardware, krun, qemu, vsock, guest_for: GuestFor::ThisProcessor };
            let others = vec![
                (Pods::All, of(1)),
                (Pods::WithVms, of(2)),
                (Pods::WithoutVms, of(3)),
                (Pods::WithoutVms, part(bit(4))),
            ];
            let report = DoctorReport::new(machines, others);
            let (vms, containers) = (bit(0) && bit(1) && bit(2), bit(1) && bit(3));
            assert_eq!((report.hardware, report.containers), (vms, containers), "{bits:b}");
            let fails = report.checks.iter().any(|check| check.state == State::Fail);
            assert_eq!(fails, !vms && !containers, "{report:?}");
            let summary = report.summary();
            assert_eq!(summary.contains("--class pod-containers"), containers, "{summary}");
            assert_eq!(summary.contains("only without a VM"), containers && !vms, "{summary}");
            assert_eq!(summary.starts_with("Pods cannot run on this host"), fails, "{summary}");
        }
        let none = report([true; 4], GuestFor::ThisProcessor, vec![]);
        assert!(!none.containers, "where there is no such class");
    }
}
