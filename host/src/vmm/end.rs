//! How machines end. Every end that nobody asked for gets a name that programs can rely on and a sentence for people.
//!
//! Pure: it is told what was seen. Must not know: pods, or where what was seen came from.

use super::report::Report;
use crate::jail::Violation;
use crate::store::text::harmless;
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use serde::{Deserialize, Serialize};
use std::fmt;

/// What the guest's kernel says when it panics.
const KERNEL_PANIC: &str = "Kernel panic - not syncing: ";
/// What vminit says when it does.
const INIT_PANIC: &str = "vminit: panic: ";
/// Longest quotation of a guest.
const MAX_QUOTED: usize = 300;

/// Why a machine ended otherwise than it should have. `status.reason` of a pod shows the name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MachineFailure {
    /// The VMM could not make it: a file is missing or damaged, there is too little memory for it…
    NotMade,
    /// Somebody killed a process of the VMM.
    VmmKilled,
    /// The host's kernel did, for want of memory.
    VmmOutOfMemory,
    /// A process of the VMM made a system call that its list does not have, and was killed for it.
    FilterViolated,
    /// The VMM gave up.
    VmmFailed,
    /// A process of the machine's network ended.
    NetworkFailed,
    /// The guest's kernel or its init panicked.
    GuestPanicked,
    /// The guest's processor gave up.
    TripleFault,
    /// The guest restarted or turned itself off, and nobody had asked it to.
    GuestEnded,
    /// The guest's agent did not answer in time.
    AgentSilent,
    /// The guest's agent broke the contract.
    AgentBroke,
    /// The guest did not end in time, and was killed.
    GuestStuck,
    /// All has ended, and something of it could not be taken away.
    Leftover,
}

impl fmt::Display for MachineFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Its name is what it is called in JSON too.
        fmt::Debug::fmt(self, f)
    }
}

/// The end of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineEnd {
    /// What it was, if nobody asked for it.
    pub failure: MachineFailure,
    /// The same for people.
    pub how: String,
}

/// What was seen of an end.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// The process that ended first.
    pub process: &'a str,
    /// How it ended.
    pub status: WaitStatus,
    /// The system call that it was killed for.
    pub violation: Option<&'a Violation>,
    /// What it said of itself.
    pub reports: &'a [Report],
    /// Last lines of the guest's console.
    pub console: &'a [String],
    /// Whether the host's kernel has killed anything for want of memory in the machine's lifetime.
    pub host_was_out_of_memory: bool,
}

impl MachineEnd {
    /// What it was, by what was seen of it. What the host saw counts more than what the guest said.
    pub fn of(seen: Seen<'_>) -> Self {
        let end = |failure, how| Self { failure, how };
        let name = seen.process;
        if let Some(Violation { call }) = seen.violation {
            return end(MachineFailure::FilterViolated, format!("filter: {name} called {call}"));
        }
        for report in seen.reports {
            match report {
                Report::NotMade { step, errno, detail } => {
                    let why = if detail.is_empty() {
                        std::io::Error::from_raw_os_error(*errno).to_string()
                    } else {
                        harmless(detail, &[])
                    };
                    return end(
                        MachineFailure::NotMade,
                        format!("{name} could not make the machine: {}: {why}", harmless(step, &[])),
                    );
                }
                Report::TripleFault => {
                    let how = "the guest's processor gave up (triple fault)".to_owned();
                    return end(MachineFailure::TripleFault, how);
                }
                Report::Complaint { .. } => {}
            }
        }
        if crate::net::chain::NAMES.contains(&name) {
            let how = match seen.status {
                WaitStatus::Signaled(_, signal, _) => format!("{name} was killed by {signal}"),
                WaitStatus::Exited(_, code) => format!("{name} exited with {code}"),
                _ => format!("{name} is gone"),
            };
            return end(MachineFailure::NetworkFailed, format!("the pod's network ended: {how}"));
        }
        match seen.status {
            WaitStatus::Signaled(_, Signal::SIGKILL, _) if seen.host_was_out_of_memory => end(
                MachineFailure::VmmOutOfMemory,
                format!("{name} was killed by SIGKILL, and the host was out of memory"),
            ),
            WaitStatus::Signaled(_, Signal::SIGSYS, _) => end(
                MachineFailure::FilterViolated,
                format!("filter: {name} made a system call that it does not have, and it is not known which"),
            ),
            WaitStatus::Signaled(_, signal, _) => {
                end(MachineFailure::VmmKilled, format!("{name} was killed by {signal}"))
            }
            WaitStatus::Exited(_, code) => Self::exited(seen, code),
            _ => end(MachineFailure::VmmFailed, format!("{name} is gone")),
        }
    }

    fn exited(seen: Seen<'_>, code: i32) -> Self {
        if let Some(why) = panic(seen.console) {
            return Self { failure: MachineFailure::GuestPanicked, how: why };
        }
        let name = seen.process;
        if code == 0 {
            let how = format!("the guest ended by itself ({name} exited with 0)");
            return Self { failure: MachineFailure::GuestEnded, how };
        }
        let complaint = seen.reports.iter().rev().find_map(|report| match report {
            Report::Complaint { message } => Some(format!(": {}", harmless(message, &[]))),
            _ => None,
        });
        let how = format!("{name} exited with {code}{}", complaint.unwrap_or_default());
        Self { failure: MachineFailure::VmmFailed, how }
    }
}

/// The guest's own words about its panic.
fn panic(console: &[String]) -> Option<String> {
    let quoted = |line: &str, begin: &str| {
        let (_, why) = line.split_once(begin)?;
        Some(why[..why.floor_char_boundary(MAX_QUOTED)].to_owned())
    };
    console.iter().find_map(|line| match (quoted(line, KERNEL_PANIC), quoted(line, INIT_PANIC)) {
        (Some(why), _) => Some(format!("the guest's kernel panicked: {why}")),
        (None, Some(why)) => Some(format!("the guest's init panicked: {why}")),
        (None, None) => None,
    })
}

/// How many processes the host's kernel has killed for want of memory since its boot, as far as can be told.
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

    fn end(status: WaitStatus, reports: &[Report], console: &[&str], out_of_memory: bool) -> MachineEnd {
        let console: Vec<String> = console.iter().map(|&line| line.to_owned()).collect();
        MachineEnd::of(Seen {
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
            (end(killed, &[], &[panicked], false), MachineFailure::VmmKilled, "krun was killed by SIGKILL"),
            (end(killed, &[], &[], true), MachineFailure::VmmOutOfMemory, "out of memory"),
            (
                MachineEnd::of(Seen {
                    violation: None,
                    process: "passt",
                    status: exited(1),
                    reports: &[],
                    console: &[],
                    host_was_out_of_memory: false,
                }),
                MachineFailure::NetworkFailed,
                "passt exited with 1",
            ),
            (
                end(WaitStatus::Signaled(PID, Signal::SIGSEGV, true), &[], &[], true),
                MachineFailure::VmmKilled,
                "SIGSEGV",
            ),
            (
                end(exited(0), &[], &["x", panicked], false),
                MachineFailure::GuestPanicked,
                "panicked: No working init found.",
            ),
            (
                end(exited(0), &[], &["vminit: panic: at the disco"], false),
                MachineFailure::GuestPanicked,
                "init panicked: at the disco",
            ),
            (
                end(exited(0), &[Report::TripleFault], &["x"], false),
                MachineFailure::TripleFault,
                "triple fault",
            ),
            (
                end(exited(0), &[], &["reboot: Restarting system"], false),
                MachineFailure::GuestEnded,
                "by itself",
            ),
            (
                end(exited(1), &[complaint], &[], false),
                MachineFailure::VmmFailed,
                "exited with 1: Received KVM_EXIT_INTERNAL_ERROR",
            ),
            (
                end(exited(1), &[not_made], &[], false),
                MachineFailure::NotMade,
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
        let end = end(WaitStatus::Exited(PID, 0), &[], &[&long], false);
        assert!(end.how.len() < MAX_QUOTED + 50, "{}", end.how.len());
    }
}
