//! Reports of a VM's process about its end, as JSON lines over a separate pipe. A VMM that is a library ends its process with a number, so
//! that the reason would be lost.
#![allow(unsafe_code, reason = "taking a descriptor by its number is an unsafe call")]

use crate::store::text::ignore;
use magikvm_proto::text::cut;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{LazyLock, Mutex, PoisonError};

/// The descriptor of reports in a VM's process.
pub(super) const REPORT_FD: i32 = 3;
/// Bytes of reports that are read, since a guest may make its VMM complain without end.
const MAX_REPORTS: u64 = 16 << 10;
/// Longest message in a report. A pipe takes lines of this length atomically.
const MAX_MESSAGE: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub enum Report {
    /// The VM could not be made, because a step was refused.
    NotMade {
        step: String,
        errno: i32,
        /// Details beyond the error number.
        detail: String,
    },
    /// Triple fault: an exception during the handling of an exception during the handling of an exception.
    TripleFault,
    /// The VMM logged an error, and may have continued.
    Complaint { message: String },
}

/// The reading end, and the end for the VM's process.
pub(super) fn channel() -> std::io::Result<(Reports, OwnedFd)> {
    let (ours, theirs) = std::io::pipe()?;
    let (ours, theirs) = (OwnedFd::from(ours), OwnedFd::from(theirs));
    for end in [&ours, &theirs] {
        // The writer must not wait for a reader, nor the reader for another process that inherited the writing end.
        fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    Ok((Reports(File::from(ours)), theirs))
}

#[derive(Debug)]
pub struct Reports(File);

impl Reports {
    /// Reads all reports. To be called when the process has ended.
    pub fn read(self) -> Vec<Report> {
        let mut bytes = Vec::new();
        let read = self.0.take(MAX_REPORTS).read_to_end(&mut bytes);
        ignore(read, "a writer that still lives; what was read counts");
        bytes.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
    }
}

/// Sends a report from the VM's process. A report that cannot be written is dropped.
pub(super) fn send(report: &Report) {
    static OUT: LazyLock<Mutex<File>> = LazyLock::new(|| {
        // SAFETY: the descriptor was given to this process for this purpose, and nothing else in it uses its number.
        Mutex::new(unsafe { File::from_raw_fd(REPORT_FD) })
    });
    let Ok(mut line) = serde_json::to_vec(&shortened(report)) else { return };
    line.push(b'\n');
    let mut out = OUT.lock().unwrap_or_else(PoisonError::into_inner);
    ignore(out.write_all(&line), "the monitor is gone, or has been told enough");
}

fn shortened(report: &Report) -> Report {
    let cut = |text: &str| cut(text, MAX_MESSAGE).to_owned();
    match report {
        Report::NotMade { step, errno, detail } => {
            Report::NotMade { step: cut(step), errno: *errno, detail: cut(detail) }
        }
        Report::Complaint { message } => Report::Complaint { message: cut(message) },
        Report::TripleFault => Report::TripleFault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_report_is_passed_over_and_a_flood_is_bounded() {
        let (reports, theirs) = channel().unwrap();
        let mut out = File::from(theirs);
        out.write_all(b"nonsense\n{\"report\":\"triple_fault\"}\n\xff\n{\"report\":\"else\"}\n").unwrap();
        let line = format!("{{\"report\":\"complaint\",\"message\":\"{}\"}}\n", "x".repeat(900));
        // Fills the pipe, which shows that writing does not wait.
        while out.write_all(line.as_bytes()).is_ok() {}
        let read = reports.read();
        assert_eq!(read[0], Report::TripleFault);
        assert!((10..20).contains(&read.len()), "{}", read.len());
    }

    #[test]
    fn a_reader_does_not_wait_for_a_writer() {
        let (reports, _theirs) = channel().unwrap();
        assert_eq!(reports.read(), []);
    }

    #[test]
    fn messages_are_cut_at_characters() {
        let long = "ä".repeat(2000);
        let Report::Complaint { message } = shortened(&Report::Complaint { message: long }) else { panic!() };
        assert_eq!(message.len(), MAX_MESSAGE);
    }
}
