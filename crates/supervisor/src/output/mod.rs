//! The output of containers. [`pump`] reads every pipe and terminal; [`buffer`] holds it for the one `logs` reader
//! and loses nothing; [`attach`] gives copies to attached callers and drops what they are too slow for; [`tail`] keeps the last lines of one run. Must not know:
//! connections, the supervisor's states.

pub(crate) mod attach;
pub(crate) mod buffer;
pub(crate) mod pump;
pub(crate) mod tail;

use magikvm_proto::stream;

/// An output of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Channel {
    /// Standard output, or everything on a terminal.
    Stdout,
    Stderr,
}

impl Channel {
    /// Its channel on the stream of exec or attach.
    pub(crate) fn number(self) -> u16 {
        match self {
            Self::Stdout => stream::STDOUT,
            Self::Stderr => stream::STDERR,
        }
    }
}

/// Consecutive bytes of one output of one container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// The container's index in the plan.
    pub(crate) container: usize,
    /// How often the container was made before the run that wrote it.
    pub(crate) run: u32,
    pub(crate) channel: Channel,
    /// The bytes, at most [`MAX_CHUNK`].
    pub(crate) bytes: Vec<u8>,
}

/// Longest chunk: one frame on the wire.
pub(crate) const MAX_CHUNK: usize = stream::MAX_DATA;
