//! Starting a pod's monitor, and what the two sides say to each other (JSON lines over a socket pair).

use super::failure::{Blame, Failure, RunStage};
use super::run::RunRequest;
use crate::image::{Progress, Reference};
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
    /// An image is on its way.
    Pulling {
        image: Reference,
        progress: Progress,
    },
    /// The user should know this.
    Warning {
        message: String,
    },
    Ready,
    /// It does not, and nothing of it is left.
    Failed(Box<Failure>),
    /// It has ended; its exit code is the first non-zero one of its containers.
    Ended {
        code: i32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToMonitor {
    /// Give up if the pod does not run yet.
    Cancel,
}

/// A monitor that was started.
#[derive(Debug)]
pub struct Launched {
    reader: BufReader<UnixStream>,
    monitor: Child,
}

/// For changing one's mind from another thread.
#[derive(Debug)]
pub struct Canceller(UnixStream);

impl Canceller {
    /// Asks the monitor to give up if the pod does not run yet.
    pub fn cancel(&self) {
        let asked = write_message(&mut &self.0, &ToMonitor::Cancel);
        ignore(asked, "the monitor has ended; there is nothing to give up");
    }
}

/// Starts a monitor (this program again) for a pod. It outlives this process.
pub fn launch(request: &RunRequest) -> Result<Launched, Failure> {
    let program = std::env::current_exe().map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    let (ours, theirs) = UnixStream::pair().map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    let mut command = Command::new(program);
    // The monitor works in the root directory; where logins are kept may have been said relative to this one.
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
        .map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    let request = serde_json::to_vec(request).map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    if let Some(mut stdin) = monitor.stdin.take() {
        stdin.write_all(&request).map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    }
    Ok(Launched { reader: BufReader::new(ours), monitor })
}

impl Launched {
    /// For changing one's mind.
    pub fn canceller(&self) -> std::io::Result<Canceller> {
        self.reader.get_ref().try_clone().map(Canceller)
    }

    /// What the monitor says next; `None` when it has ended without another word. Its lines carry whole failures, so they are as long as
    /// it makes them: it is this program.
    pub fn next_message(&mut self) -> Option<FromMonitor> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).ok()?;
        serde_json::from_slice(&line).ok()
    }

    /// After the pod's end: lets go of it, and waits until its monitor has removed it, if it is to, and has ended.
    pub fn finish(mut self) -> Result<(), Failure> {
        ignore(self.reader.get_ref().shutdown(Shutdown::Write), "the monitor has ended already");
        let last = self.next_message();
        ignore(self.monitor.wait(), "somebody else has reaped it; it has ended");
        match last {
            Some(FromMonitor::Failed(failure)) => Err(*failure),
            _ => Ok(()),
        }
    }

    /// Waits until the pod runs, or has failed. `pulling` hears of images that come meanwhile.
    /// `warned` of what the user should know.
    pub fn await_ready(
        &mut self,
        pulling: &mut dyn FnMut(&Reference, &Progress),
        warned: &mut dyn FnMut(&str),
    ) -> Result<(), Failure> {
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
                Some(FromMonitor::Failed(failure)) => Err(*failure),
                Some(FromMonitor::Ended { .. }) | None => Err(Failure::message(
                    RunStage::Reserve,
                    Blame::Internal,
                    "the pod's monitor ended before the pod ran",
                )
                .hint("see what is left: magikvm ps; take it away: magikvm rm -f NAME")),
            };
        }
    }
}
