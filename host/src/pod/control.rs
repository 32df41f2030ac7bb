//! The requests that a pod's monitor answers on its socket, and the client side.

use crate::os::connect_unix;
use crate::store::layout::PodDir;
use magikvm_proto::codec::{CodecError, read_message, write_message};
use magikvm_proto::id::ContainerName;
use magikvm_proto::wire::{Refusal, Reply};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::io::{self, BufReader};
use std::os::unix::fs::FileTypeExt;
use std::time::Duration;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
pub enum ControlRequest {
    /// Ends the pod. The answer follows when the pod has ended.
    Stop {
        /// Time between TERM and KILL, in milliseconds.
        grace_ms: u64,
    },
    /// Pauses the sandbox. The answer follows when it is paused.
    Pause,
    /// Resumes the sandbox. The answer follows when all of its processes run.
    Resume,
    /// Sends a signal to PID 1 of one container, or of all. The monitor asks the agent on a connection that no client can take from it.
    Signal {
        container: Option<ContainerName>,
        /// Linux signal number, 1 to 64.
        signal: i32,
    },
    /// Resource use, asked for in the same way. Answered by [`Stats`](magikvm_proto::wire::Stats).
    Stats,
}

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The monitor has ended or does not listen yet.
    #[error("the pod's monitor cannot be reached")]
    Unreachable(#[source] io::Error),
    #[error("the pod's monitor ended before it answered")]
    Gone,
    #[error("the pod's monitor did not answer within {} s", .0.as_secs())]
    Timeout(Duration),
    #[error("the pod's monitor gave no valid answer")]
    Nonsense(#[source] CodecError),
    #[error(transparent)]
    Refused(Refusal),
}

/// Sends a request to a pod's monitor and waits at most `wait` for the answer.
pub fn ask<T: DeserializeOwned>(
    dir: &PodDir,
    request: &ControlRequest,
    wait: Duration,
) -> Result<T, ControlError> {
    let path = dir.control_sock();
    let there = path.symlink_metadata().map_err(ControlError::Unreachable)?;
    if !there.file_type().is_socket() {
        let why = io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a socket", path.display()));
        return Err(ControlError::Unreachable(why));
    }
    let stream = connect_unix(&path).map_err(ControlError::Unreachable)?;
    stream.set_read_timeout(Some(wait)).map_err(ControlError::Unreachable)?;
    write_message(&mut &stream, request).map_err(ControlError::Nonsense)?;
    match read_message::<Reply<T>>(&mut BufReader::new(stream)) {
        Ok(Some(Reply::Ok(answer))) => Ok(answer),
        Ok(Some(Reply::Error(refusal))) => Err(ControlError::Refused(refusal)),
        Err(CodecError::Io(error))
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
        {
            Err(ControlError::Timeout(wait))
        }
        Ok(None) | Err(CodecError::Io(_) | CodecError::Truncated) => Err(ControlError::Gone),
        Err(error) => Err(ControlError::Nonsense(error)),
    }
}
