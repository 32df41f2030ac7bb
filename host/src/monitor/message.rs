//! What the threads around the event loop tell it, and how they are started.

use crate::pod::pull::FromPuller;
use crate::pod::step::{Input, PauseRequest};
use crate::store::text::ignore;
use magikvm_proto::wire::Refusal;
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

pub(super) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(body).ok()
}

pub(super) fn send(outbox: &SyncSender<Message>, input: Input) {
    ignore(outbox.send(Message::Input(input)), "the loop is over, and with it the pod");
}
