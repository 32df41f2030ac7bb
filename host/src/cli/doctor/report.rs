//! What all checks come to.

use super::check::{Check, State};
use serde::Serialize;

/// For which processor the guest image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GuestFor {
    ThisProcessor,
    /// Which only an emulator can be.
    AnotherProcessor,
}

/// The checks of what runs machines. Not all of it must be there: either of the drivers, with what it needs.
#[derive(Debug)]
pub(super) struct Machines {
    pub(super) hardware: Check,
    pub(super) krun: Check,
    pub(super) qemu: Check,
    pub(super) vsock: Check,
    pub(super) guest_for: GuestFor,
}

/// By which drivers pods can run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Drivers {
    krun: bool,
    qemu: bool,
}

/// Whether some driver has all of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Parts {
    There,
    Missing,
}

/// What all checks come to. `hardware` and `emulation`: whether pods can run so.
#[derive(Debug, Serialize)]
pub(super) struct DoctorReport {
    pub(super) checks: Vec<Check>,
    pub(super) hardware: bool,
    pub(super) emulation: bool,
    pub(super) drivers: Drivers,
    #[serde(skip)]
    machines: Parts,
}

impl DoctorReport {
    /// Where no driver can run machines, each part that is missing becomes a failure: any way out begins with one of them.
    pub(super) fn new(machines: Machines, others: Vec<Check>) -> Self {
        let Machines { hardware, krun, qemu, vsock, guest_for } = machines;
        let processor = hardware.is_ok() && guest_for == GuestFor::ThisProcessor;
        let by = Drivers { krun: krun.is_ok() && processor, qemu: qemu.is_ok() && vsock.is_ok() };
        let parts = [hardware, krun, qemu, vsock];
        let (machines, parts) = if by.krun || by.qemu {
            (Parts::There, parts)
        } else {
            (Parts::Missing, parts.map(Check::required))
        };
        let checks: Vec<Check> = parts.into_iter().chain(others).collect();
        let rest = checks.iter().all(|check| check.state != State::Fail);
        let drivers = Drivers { krun: by.krun && rest, qemu: by.qemu && rest };
        Self {
            checks,
            hardware: drivers.krun || (drivers.qemu && processor),
            emulation: drivers.qemu,
            drivers,
            machines,
        }
    }

    /// For people: what can run here, and by what.
    pub(super) fn summary(&self) -> &'static str {
        match (self.hardware, self.drivers) {
            (true, Drivers { krun: true, qemu: true }) => {
                "Pods run here in hardware VMs by libkrun, or by QEMU with --vmm qemu."
            }
            (true, Drivers { krun: true, qemu: false }) => "Pods run here in hardware VMs by libkrun.",
            (true, Drivers { krun: false, .. }) => "Pods run here in hardware VMs by QEMU.",
            (false, Drivers { qemu: true, .. }) => {
                "Pods run here only by software emulation: --accel tcg (QEMU). It is slow, and not a security boundary."
            }
            (false, Drivers { qemu: false, .. }) if self.machines == Parts::Missing => {
                "Pods cannot run here. They need libkrun with hardware virtualization, or QEMU with its vsock, and all else that is marked FAIL."
            }
            (false, Drivers { qemu: false, .. }) => {
                "Pods cannot run here. They need all that is marked FAIL."
            }
        }
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
            assert_eq!(fails, report.summary().starts_with("Pods cannot run here"));
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
        assert_eq!(summary, "Pods run here in hardware VMs by libkrun.");
        let (hardware, emulation, krun, qemu, summary) = of([true, false, true, true]);
        assert_eq!((hardware, emulation, krun, qemu), (true, true, false, true));
        assert_eq!(summary, "Pods run here in hardware VMs by QEMU.");
        let (hardware, emulation, krun, qemu, summary) = of([false, true, true, true]);
        assert_eq!((hardware, emulation, krun, qemu), (false, true, false, true));
        assert!(summary.contains("--accel tcg"), "{summary}");
        let (hardware, emulation, krun, qemu, summary) = of([false, true, true, false]);
        assert_eq!((hardware, emulation, krun, qemu), (false, false, false, false));
        assert!(summary.contains("or QEMU with its vsock"), "{summary}");
        let image = report([true; 4], GuestFor::ThisProcessor, vec![part(false).required()]);
        assert_eq!(image.summary(), "Pods cannot run here. They need all that is marked FAIL.");
    }

    #[test]
    fn a_guest_for_another_processor_is_only_emulated() {
        let all = report([true; 4], GuestFor::AnotherProcessor, vec![]);
        assert_eq!((all.hardware, all.emulation, all.drivers.krun), (false, true, false));
        let none = report([true, true, false, false], GuestFor::AnotherProcessor, vec![]);
        assert!(!none.hardware && !none.emulation);
    }
}
