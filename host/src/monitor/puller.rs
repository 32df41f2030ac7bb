//! The monitor's handle on the process that pulls a pod's images.

use super::message::{Message, spawn};
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::pod::pull::{PULLER_VERB, PullRequest, PullerEnd};
use crate::pod::step::EndPuller;
use crate::process::{self, Process};
use crate::store::sandbox::Role;
use crate::store::text::ignore;
use crate::store::thread::ThreadError;
use crate::vmm::console::ConsoleTail;
use nix::sys::signal::Signal;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

/// Last lines of a puller's standard error that a failure carries: enough for a panic's message without its stack.
const COMPLAINT_LINES: usize = 4;
/// Time for a puller to end after its last message.
const END_WAIT: Duration = Duration::from_secs(1);

/// A running puller. Dropping it kills the process.
#[derive(Debug)]
pub(super) struct Puller {
    process: Process,
    complaints: ConsoleTail,
}

fn failed<E: Error + 'static>() -> impl Fn(E) -> Failure {
    Failure::at(RunStage::Image, Blame::Environment)
}

impl Puller {
    /// Starts a puller and sends its request. Its messages go to the loop.
    pub(super) fn start(request: &PullRequest, outbox: &SyncSender<Message>) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(failed())?;
        let mut command = Command::new(program);
        command.arg(PULLER_VERB).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = process::spawn(Role::Puller, "puller", &mut command).map_err(failed())?;
        let request = serde_json::to_vec(request).map_err(failed())?;
        process::tell(&mut process, &request).map_err(failed())?;
        if let Some(stdout) = process.child.stdout.take() {
            listen(stdout, outbox.clone()).map_err(failed())?;
        }
        let complaints = match process.child.stderr.take() {
            Some(stderr) => tail(stderr, outbox).map_err(failed())?,
            None => ConsoleTail::default(),
        };
        Ok(Self { process, complaints })
    }

    pub(super) fn end(&self, how: EndPuller) {
        self.process.reference.signal(match how {
            EndPuller::Ask => Signal::SIGTERM,
            EndPuller::Kill => Signal::SIGKILL,
        });
    }

    /// The end of a puller that sends nothing more.
    pub(super) fn into_end(mut self) -> PullerEnd {
        let status = self.process.wait_or_kill(END_WAIT);
        self.complaints.wait_end(Instant::now() + END_WAIT);
        PullerEnd {
            code: status.and_then(|status| status.code()),
            signal: status.and_then(|status| status.signal()),
            complaints: self.complaints.lines(COMPLAINT_LINES),
        }
    }
}

/// Keeps the last lines of a puller's standard error.
fn tail(stderr: ChildStderr, outbox: &SyncSender<Message>) -> Result<ConsoleTail, ThreadError> {
    let tail = ConsoleTail::default();
    let kept = tail.clone();
    spawn("puller's stderr", outbox, move || kept.keep(stderr))?;
    Ok(tail)
}

/// Forwards a puller's messages and its end to the loop.
fn listen(stdout: ChildStdout, outbox: SyncSender<Message>) -> Result<(), ThreadError> {
    spawn("puller", &outbox.clone(), move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        // The puller is this program, so that its lines need no length limit.
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            let Ok(said) = serde_json::from_slice(&line) else { break };
            if outbox.send(Message::Puller(Some(said))).is_err() {
                return;
            }
            line.clear();
        }
        ignore(outbox.send(Message::Puller(None)), "the loop is over");
    })?;
    Ok(())
}
