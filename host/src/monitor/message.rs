//! What the threads around the event loop tell it, and how they are started.

use crate::pod::pull::FromPuller;
use crate::pod::step::{Input, PauseRequest};
use crate::store::text::ignore;
use crate::store::thread::{self, ThreadError};
use magikvm_proto::wire::Refusal;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Sender, SyncSender};
use std::thread::JoinHandle;

/// Stack of such a thread. None of them recurses or holds a large buffer there.
const STACK: usize = 256 << 10;

/// What comes to the loop.
#[derive(Debug)]
pub(super) enum Message {
    /// For the state machine.
    Input(Input),
    /// From the process that pulls images; None is its end.
    Puller(Option<FromPuller>),
    /// A thread around the loop panicked. What it would have told the loop is lost.
    Panicked(String),
    /// A user's request; answered through `done` when it is carried out or never will be.
    Control { request: LifeRequest, done: Sender<Answer> },
}

/// A request that concerns the pod's life.
#[derive(Debug, Clone, Copy)]
pub(super) enum LifeRequest {
    Stop {
        /// Time between TERM and KILL, in milliseconds.
        grace_ms: u64,
    },
    Motion(PauseRequest),
}

/// What a user's request came to.
pub(super) type Answer = Result<(), Refusal>;

/// Starts a thread whose panic the loop learns of: a pod must not go on without one of its threads.
pub(super) fn spawn(
    name: &str,
    outbox: &SyncSender<Message>,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, ThreadError> {
    let (alarm, own_name) = (outbox.clone(), name.to_owned());
    thread::start_small(name, STACK, move || {
        if catch_unwind(AssertUnwindSafe(body)).is_err() {
            ignore(alarm.send(Message::Panicked(own_name)), "the loop is over, and with it the pod");
        }
    })
}

pub(super) fn send(outbox: &SyncSender<Message>, input: Input) {
    ignore(outbox.send(Message::Input(input)), "the loop is over, and with it the pod");
}
