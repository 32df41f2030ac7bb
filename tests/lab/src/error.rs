//! Why the lab gave no result.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

const PREPARE: &str = "ci/lab.sh and ci/test.sh prepare a lab and set MAGIKVM_LAB_DIR";

/// What the lab had printed when something went wrong.
#[derive(Debug, Default)]
pub struct Words {
    pub(crate) console: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    /// What QEMU's monitor said about a lab that stood still.
    pub(crate) registers: Option<String>,
}

impl fmt::Display for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let registers = self.registers.as_ref().map(|text| ("the lab's processor", text));
        for (name, text) in [
            ("the lab's console", &self.console),
            ("standard output", &self.stdout),
            ("standard error", &self.stderr),
        ]
        .into_iter()
        .chain(registers)
        {
            let text = text.trim_end();
            if text.is_empty() {
                write!(f, "\n--- {name}: empty")?;
            } else {
                write!(f, "\n--- {name}:\n{text}")?;
            }
        }
        write!(f, "\n---")
    }
}

/// The lab gave no result, or not the one that a test needs.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// `MAGIKVM_LAB_DIR` is not set.
    #[error("the lab is not prepared: {PREPARE}")]
    NotPrepared,
    /// A part of the prepared lab is missing.
    #[error("the lab has no {}: {PREPARE}", .0.display())]
    Incomplete(PathBuf),
    /// A lab can't be started inside the lab.
    #[error("this runs in the lab already, and a lab cannot start another lab")]
    Nested,
    /// QEMU's virtiofsd opens files for the lab's overlay in a way that only their owner and root may use.
    #[error(
        "the lab shares the host's files, which needs root: run this as root, or on a host with real KVM set MAGIKVM_LAB=never"
    )]
    NotRoot,
    /// A program that the lab needs is not installed.
    #[error("{program} is not installed: install the Debian package {package}, or set {variable}")]
    NoProgram {
        program: &'static str,
        package: &'static str,
        /// The variable that can name it.
        variable: &'static str,
    },
    /// A word of the command that can't be passed to the lab.
    #[error("cannot pass {what} to the lab: {why}")]
    BadCommand {
        what: String,
        /// Why it is refused.
        why: &'static str,
    },
    /// A system call failed.
    #[error("{what}")]
    System {
        what: String,
        #[source]
        source: io::Error,
    },
    /// No turn became free in time.
    #[error("waited {} s for a turn to run a VM: at most {} may run at a time", .waited.as_secs(), .turns)]
    NoTurn {
        waited: Duration,
        /// Number of turns.
        turns: usize,
    },
    /// The command took too long, or the lab itself hung.
    #[error("the lab was killed after {} s without a result{words}", .limit.as_secs())]
    Hung {
        limit: Duration,
        /// Output up to then.
        words: Box<Words>,
    },
    /// The lab ended before the command did: its kernel panicked, or QEMU failed.
    #[error("the lab died after {:.1} s (QEMU: {status}){words}", .after.as_secs_f64())]
    Died {
        status: String,
        after: Duration,
        /// Output up to then.
        words: Box<Words>,
    },
    /// The process that shares the host's files ended before the lab did.
    #[error("virtiofsd ended too early, after {:.1} s ({status}): {log}{words}", .after.as_secs_f64())]
    ShareLost {
        status: String,
        after: Duration,
        log: String,
        /// The lab's output up to then.
        words: Box<Words>,
    },
    /// The command wrote more than the limit.
    #[error("the command in the lab wrote {bytes} bytes to {stream}; {limit} are read")]
    TooMuch { stream: &'static str, bytes: u64, limit: u64 },
    #[error("the test `{name}` failed in the lab with exit code {code}{words}")]
    TestFailed { name: String, code: i32, words: Box<Words> },
    /// Not exactly one test ran in the lab.
    #[error("the lab ran no test, or more than one, with the name `{name}`{words}")]
    NotOneTest {
        name: String,
        /// Output of the test binary.
        words: Box<Words>,
    },
}

impl LabError {
    /// For `map_err`: adds the attempted action.
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        |source| Self::System { what, source }
    }
}

/// An error with all its causes, for a test's panic or a line on standard error.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
