//! Forwarded connections: TCP connections of the host that end at a port of the pod. Each is a connection of its own to
//! [`crate::path::FORWARD_PORT`] of the guest: a line with a [`ForwardRequest`], a line with a [`Reply`](crate::wire::Reply), and from then on
//! the frames of [`crate::stream`] both ways.

use serde::{Deserialize, Serialize};

/// What the host asks for on a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum ForwardRequest {
    /// A TCP connection to this port of the pod.
    Forward {
        /// Not 0.
        port: u16,
    },
}

/// Bytes of the line with a [`ForwardRequest`], newline included.
pub const MAX_REQUEST_LEN: usize = 128;
/// Bytes of the line that answers it, newline included: a message of [`crate::limits::MAX_MESSAGE_LEN`] bytes with all its escapes.
pub const MAX_ANSWER_LEN: usize = 32 << 10;
