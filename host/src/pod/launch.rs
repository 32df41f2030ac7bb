//! Starts a pod's monitor and defines the messages between the two sides (JSON lines over a socket pair).

use super::failure::{Blame, Failure, RunStage};
use super::run::RunRequest;
use crate::image::{Progress, Reference};
use crate::process::ProcessError;
use crate::store::text::ignore;
use magikvm_proto::codec::write_message;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

/// The hidden verb that makes a process a monitor.
pub const MONITOR_VERB: &str = "__monitor";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromMonitor {
    /// An image is being pulled.
    Pulling {
        image: Reference,
        progress: Progress,
    },
    /// A warning for the user.
    Warning {
        message: String,
    },
    Ready,
    /// The pod does not run, and nothing of it is left.
    Failed(Box<Failure>),
    /// The pod has ended. Its exit code is the first non-zero one of its containers.
    Ended {
        code: i32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToMonitor {
    /// Cancels the start if the pod does not run yet.
    Cancel,
}

#[derive(Debug)]
pub struct Launched {
    reader: BufReader<UnixStream>,
    monitor: Child,
}

/// Cancels a start from another thread.
#[derive(Debug)]
pub struct Canceller(UnixStream);

impl Canceller {
    /// Asks the monitor to cancel the start if the pod does not run yet.
    pub fn cancel(&self) {
        let asked = write_message(&mut &self.0, &ToMonitor::Cancel);
        ignore(asked, "the monitor has ended; there is nothing to cancel");
    }
}

/// Starts a monitor (this program with a hidden verb) for a pod. It outlives this process.
pub fn launch(request: &RunRequest) -> Result<Launched, Failure> {
    let program = std::env::current_exe().map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    let (ours, theirs) = UnixStream::pair().map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    let mut command = Command::new(program);
    // The monitor works in the root directory, but these paths may be relative to this process's working directory.
    for variable in ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG"] {
        if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
            command.env(variable, std::path::absolute(&path).unwrap_or(path.into()));
        }
    }
    let mut monitor = command
        .arg(MONITOR_VERB)
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(theirs))
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| ProcessError::Start { program: "magikvm".into(), source })
        .map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    let request = serde_json::to_vec(request).map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    if let Some(mut stdin) = monitor.stdin.take() {
        stdin.write_all(&request).map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    }
    Ok(Launched { reader: BufReader::new(ours), monitor })
}

impl Launched {
    /// Cancels the start.
    pub fn cancel(&self) {
        ignore(write_message(&mut self.reader.get_ref(), &ToMonitor::Cancel), "the monitor has ended");
    }

    /// A handle that cancels the start.
    pub fn canceller(&self) -> std::io::Result<Canceller> {
        self.reader.get_ref().try_clone().map(Canceller)
    }

    /// The monitor's next message; `None` when it has ended. Lines have no length limit, because the monitor is this program and its lines
    /// carry whole failures.
    pub fn next_message(&mut self) -> Option<FromMonitor> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).ok()?;
        serde_json::from_slice(&line).ok()
    }

    /// Releases a pod that has ended, and waits until its monitor has ended (and has removed the pod, if that was requested).
    pub fn finish(mut self) -> Result<(), Failure> {
        ignore(self.reader.get_ref().shutdown(Shutdown::Write), "the monitor has ended already");
        let last = self.next_message();
        ignore(self.monitor.wait(), "it has ended and another process has reaped it");
        match last {
            Some(FromMonitor::Failed(failure)) => Err(*failure),
            _ => Ok(()),
        }
    }

    /// Waits until the pod runs or has failed. `pulling` is called for progress of image pulls, `warned` for warnings. An error without
    /// a failure is the sudden end of the monitor.
    pub fn await_ready(
        &mut self,
        pulling: &mut dyn FnMut(&Reference, &Progress),
        warned: &mut dyn FnMut(&str),
    ) -> Result<(), Option<Failure>> {
        loop {
            return match self.next_message() {
                Some(FromMonitor::Pulling { image, progress }) => {
                    pulling(&image, &progress);
                    continue;
                }
                Some(FromMonitor::Warning { message }) => {
                    warned(&message);
                    continue;
                }
                Some(FromMonitor::Ready) => Ok(()),
                Some(FromMonitor::Failed(failure)) => Err(Some(*failure)),
                Some(FromMonitor::Ended { .. }) | None => Err(None),
            };
        }
    }
}
