//! Forwarded connections: TCP connections of the host that end at a port of the pod. Each one is a separate connection to
//! [`crate::path::FORWARD_PORT`] of the guest: a line with a [`ForwardRequest`], a line with a [`Reply`](crate::wire::Reply), and then
//! the frames of [`crate::stream`] in both directions.

use serde::{Deserialize, Serialize};

/// The host's request on a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum ForwardRequest {
    /// A TCP connection to this port of the pod.
    Forward {
        /// Not 0.
        port: u16,
    },
}

/// Most bytes of the line with a [`ForwardRequest`], including the newline.
pub const MAX_REQUEST_LEN: usize = 128;
/// Most bytes of the answering line, including the newline: a message of [`crate::limits::MAX_MESSAGE_LEN`] bytes with all its escapes.
pub const MAX_ANSWER_LEN: usize = 32 << 10;
