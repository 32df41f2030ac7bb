//! The process that pulls a pod's images, as its monitor has it: started, listened to, and ended.

use super::message::{Message, spawn};
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::pod::pull::{PULLER_VERB, PullRequest, PullerEnd};
use crate::pod::step::EndPuller;
use crate::process::{self, Process};
use crate::store::sandbox::Role;
use crate::store::text::ignore;
use crate::vmm::console::ConsoleTail;
use nix::sys::signal::Signal;
use std::error::Error;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{ChildStderr, ChildStdout, Command, Stdio};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

/// Last lines of a puller's standard error that a failure carries: what a panic says, without its stack.
const COMPLAINT_LINES: usize = 4;
/// How long a puller that says nothing more may take to end.
const END_WAIT: Duration = Duration::from_secs(1);

/// A puller that was started. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Puller {
    process: Process,
    complaints: ConsoleTail,
}

fn failed<E: Error + 'static>() -> impl Fn(E) -> Failure {
    Failure::at(RunStage::Image, Blame::Environment)
}

impl Puller {
    /// Starts one and says what to pull. What it says in turn goes to the loop.
    pub(super) fn start(request: &PullRequest, outbox: SyncSender<Message>) -> Result<Self, Failure> {
        let program = std::env::current_exe().map_err(failed())?;
        let mut command = Command::new(program);
        command.arg(PULLER_VERB).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = process::spawn(Role::Puller, "puller", &mut command).map_err(failed())?;
        let request = serde_json::to_vec(request).map_err(failed())?;
        process::tell(&mut process, &request).map_err(failed())?;
        if let Some(stdout) = process.child.stdout.take() {
            listen(stdout, outbox);
        }
        let complaints = process.child.stderr.take().map(tail).unwrap_or_default();
        Ok(Self { process, complaints })
    }

    pub(super) fn end(&self, how: EndPuller) {
        self.process.reference.signal(match how {
            EndPuller::Ask => Signal::SIGTERM,
            EndPuller::Kill => Signal::SIGKILL,
        });
    }

    /// How a puller ended that says nothing more.
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

/// Keeps the last lines of a puller's standard error. Without a thread nothing is kept, and the puller's writes fail.
fn tail(stderr: ChildStderr) -> ConsoleTail {
    let tail = ConsoleTail::default();
    let kept = tail.clone();
    spawn("puller's stderr", move || kept.keep(stderr));
    tail
}

/// Passes on what a puller says, and its end.
fn listen(stdout: ChildStdout, outbox: SyncSender<Message>) {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        // It is this program; its lines are as long as it makes them.
        while matches!(reader.read_until(b'\n', &mut line), Ok(1..)) {
            let Ok(said) = serde_json::from_slice(&line) else { break };
            if outbox.send(Message::Puller(Some(said))).is_err() {
                return;
            }
            line.clear();
        }
        ignore(outbox.send(Message::Puller(None)), "the loop is over");
    });
}
