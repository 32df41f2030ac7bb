//! Classifies the ends of VMs. Every unrequested end gets a name that programs can rely on ([`SandboxFailure`]) and a sentence for people.
//!
//! Pure: observations in, verdict out. Must not know: pods, or the sources of the observations.

use super::report::Report;
use crate::process::Violation;
use crate::store::sandbox::{Role, SandboxEnd, SandboxFailure};
use crate::store::text::harmless;
use magikvm_proto::text::cut;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;

/// Prefix of a panic message of the guest's kernel.
const KERNEL_PANIC: &str = "Kernel panic - not syncing: ";
/// Prefix of a panic message of vminit.
const INIT_PANIC: &str = "vminit: panic: ";
/// Longest quotation from a guest.
const MAX_QUOTED: usize = 300;

/// The observations of an end.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The role of the process that ended first.
    pub role: Role,
    pub process: &'a str,
    pub status: WaitStatus,
    /// The system call for which the process was killed.
    pub violation: Option<&'a Violation>,
    /// The process's reports about itself.
    pub reports: &'a [Report],
    /// Last lines of the guest's console.
    pub console: &'a [String],
    /// Whether the host's kernel killed any process for lack of memory during the VM's life.
    pub host_was_out_of_memory: bool,
}

/// Classifies an end. What the host observed counts more than what the guest printed.
pub fn of(seen: Seen<'_>) -> SandboxEnd {
    let name = seen.process;
    if let Some(Violation { call }) = seen.violation {
        return end(SandboxFailure::FilterViolated, format!("filter: {name} called {call}"));
    }
    if let Some(told) = seen.reports.iter().find_map(|report| told(name, report)) {
        return told;
    }
    if seen.role.is_of_network() {
        let how = match seen.status {
            WaitStatus::Signaled(_, signal, _) => format!("{name} was killed by {signal}"),
            WaitStatus::Exited(_, code) => format!("{name} exited with {code}"),
            _ => format!("{name} is gone"),
        };
        return end(SandboxFailure::NetworkFailed, format!("the pod's network ended: {how}"));
    }
    match seen.status {
        WaitStatus::Signaled(_, Signal::SIGKILL, _) if seen.host_was_out_of_memory => end(
            SandboxFailure::VmmOutOfMemory,
            format!("{name} was killed by SIGKILL, and the host was out of memory"),
        ),
        WaitStatus::Signaled(_, Signal::SIGSYS, _) => end(
            SandboxFailure::FilterViolated,
            format!("filter: {name} made a system call that it does not have, and it is not known which"),
        ),
        WaitStatus::Signaled(_, signal, _) => {
            end(SandboxFailure::VmmKilled, format!("{name} was killed by {signal}"))
        }
        WaitStatus::Exited(_, code) => exited(seen, code),
        _ => end(SandboxFailure::VmmFailed, format!("{name} is gone")),
    }
}

fn end(failure: SandboxFailure, how: String) -> SandboxEnd {
    SandboxEnd { failure, how }
}

/// The end that a report of the VMM's process describes.
fn told(name: &str, report: &Report) -> Option<SandboxEnd> {
    match report {
        Report::NotMade { step, errno, detail } => {
            let why = if detail.is_empty() {
                std::io::Error::from_raw_os_error(*errno).to_string()
            } else {
                harmless(detail, &[])
            };
            let how = format!("{name} could not make the VM: {}: {why}", harmless(step, &[]));
            Some(end(SandboxFailure::NotMade, how))
        }
        Report::TripleFault => {
            let how = "the guest's processor gave up (triple fault)".to_owned();
            Some(end(SandboxFailure::TripleFault, how))
        }
        Report::Complaint { .. } => None,
    }
}

fn exited(seen: Seen<'_>, code: i32) -> SandboxEnd {
    if let Some(hint) = seen.console.iter().find_map(|line| PanicHint::of(line)) {
        let how = match hint {
            PanicHint::Kernel(words) => format!("the guest's kernel panicked: {words}"),
            PanicHint::Init(words) => format!("the guest's init panicked: {words}"),
        };
        return end(SandboxFailure::GuestPanicked, how);
    }
    let name = seen.process;
    if code == 0 {
        let how = format!("the guest ended by itself ({name} exited with 0)");
        return end(SandboxFailure::GuestEnded, how);
    }
    let complaint = seen.reports.iter().rev().find_map(|report| match report {
        Report::Complaint { message } => Some(format!(": {}", harmless(message, &[]))),
        _ => None,
    });
    let how = format!("{name} exited with {code}{}", complaint.unwrap_or_default());
    end(SandboxFailure::VmmFailed, how)
}

/// The guest's message about its panic. A guest can print it at any time, so that it only explains an end that the host has observed.
#[derive(Debug, PartialEq, Eq)]
enum PanicHint<'a> {
    Kernel(&'a str),
    Init(&'a str),
}

impl<'a> PanicHint<'a> {
    fn of(line: &'a str) -> Option<Self> {
        let quoted = |begin: &str| line.split_once(begin).map(|(_, words)| cut(words, MAX_QUOTED));
        quoted(KERNEL_PANIC).map(Self::Kernel).or_else(|| quoted(INIT_PANIC).map(Self::Init))
    }
}

/// Number of processes that the host's kernel has killed for lack of memory since its boot, or 0 if that is unknown.
pub fn out_of_memory_kills() -> u64 {
    let counted = std::fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = counted.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::Pid;

    const PID: Pid = Pid::from_raw(7);

    fn seen(status: WaitStatus, reports: &[Report], console: &[&str], out_of_memory: bool) -> SandboxEnd {
        let console: Vec<String> = console.iter().map(|&line| line.to_owned()).collect();
        of(Seen {
            role: Role::Vmm,
            process: "krun",
            status,
            violation: None,
            reports,
            console: &console,
            host_was_out_of_memory: out_of_memory,
        })
    }

    #[test]
    fn every_end_has_its_name() {
        let killed = WaitStatus::Signaled(PID, Signal::SIGKILL, false);
        let exited = |code| WaitStatus::Exited(PID, code);
        let panicked = "[    0.4] Kernel panic - not syncing: No working init found.";
        let complaint = Report::Complaint { message: "Received KVM_EXIT_INTERNAL_ERROR signal".to_owned() };
        let not_made = Report::NotMade {
            step: "krun_start_enter".to_owned(),
            errno: 22,
            detail: "Building the microVM failed: ElfLoadKernel".to_owned(),
        };
        let cases = [
            (seen(killed, &[], &[panicked], false), SandboxFailure::VmmKilled, "krun was killed by SIGKILL"),
            (seen(killed, &[], &[], true), SandboxFailure::VmmOutOfMemory, "out of memory"),
            (
                of(Seen {
                    violation: None,
                    role: Role::Passt,
                    process: "passt",
                    status: exited(1),
                    reports: &[],
                    console: &[],
                    host_was_out_of_memory: false,
                }),
                SandboxFailure::NetworkFailed,
                "passt exited with 1",
            ),
            (
                seen(WaitStatus::Signaled(PID, Signal::SIGSEGV, true), &[], &[], true),
                SandboxFailure::VmmKilled,
                "SIGSEGV",
            ),
            (
                seen(exited(0), &[], &["x", panicked], false),
                SandboxFailure::GuestPanicked,
                "panicked: No working init found.",
            ),
            (
                seen(exited(0), &[], &["vminit: panic: at the disco"], false),
                SandboxFailure::GuestPanicked,
                "init panicked: at the disco",
            ),
            (
                seen(exited(0), &[Report::TripleFault], &["x"], false),
                SandboxFailure::TripleFault,
                "triple fault",
            ),
            (
                seen(exited(0), &[], &["reboot: Restarting system"], false),
                SandboxFailure::GuestEnded,
                "by itself",
            ),
            (
                seen(exited(1), &[complaint], &[], false),
                SandboxFailure::VmmFailed,
                "exited with 1: Received KVM_EXIT_INTERNAL_ERROR",
            ),
            (
                seen(exited(1), &[not_made], &[], false),
                SandboxFailure::NotMade,
                "krun_start_enter: Building the microVM failed: ElfLoadKernel",
            ),
        ];
        for (end, failure, words) in cases {
            assert_eq!(end.failure, failure, "{end:?}");
            assert!(end.how.contains(words), "{end:?} has not {words:?}");
        }
    }

    #[test]
    fn what_a_guest_says_is_cut_and_harmless() {
        let long = format!("{KERNEL_PANIC}{}", "ä".repeat(5000));
        let end = seen(WaitStatus::Exited(PID, 0), &[], &[&long], false);
        assert!(end.how.len() < MAX_QUOTED + 50, "{}", end.how.len());
    }
}
