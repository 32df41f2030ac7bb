//! Forwarded connections: TCP connections of the host that end at a port of the pod. Each is a connection of its own to
//! [`crate::path::FORWARD_PORT`] of the guest: a line with a [`ForwardRequest`], a line with a [`Reply`](crate::wire::Reply), and from then on
//! frames both ways.
//!
//! A frame is four bytes: its kind and a number of 24 bits, most significant byte first.
//!
//! | kind | number | what it is |
//! |---|---|---|
//! | 0 | 1 to [`MAX_DATA`] | so many bytes follow |
//! | 1 | 0 | the sender has no more data; the other direction goes on |
//! | 2 | not 0 | the receiver may send so much more |
//! | 3 | 0 | the connection was reset; nothing follows |
//!
//! No side sends more than the other one has room for ([`WINDOW_TO_HOST`], [`WINDOW_TO_GUEST`]), and each always reads what has come. So no
//! vsock device ever has to wait for either of them: devices stand still for everybody (libkrun's writes to the host's socket block), lose bytes
//! or spin when they do, and they know no half-closed connection. The price of a data frame is its bytes and [`FRAME_COST`], since what
//! a small frame occupies on its way is mostly not its bytes.
//!
//! The guest closes its end when all is said. The host waits for that: what a closed connection had not delivered is lost.
//!
//! Owns: the frames and what one end knows of a connection ([`Link`]), the same on both sides. Must not know: sockets and how one waits for
//! them; that is for who calls [`pump`].

mod link;
mod pump;

pub use link::{Link, Side, Violation};
pub use pump::{Local, Ready, Verdict, pump};

use serde::{Deserialize, Serialize};

/// What the host wants of a new connection.
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
/// A frame without its data.
pub const HEADER_LEN: usize = 4;
/// Bytes of data in one frame. With its header it is as much as one vsock packet may be (`vhost-device-vsock` 0.3 drops larger ones).
pub const MAX_DATA: usize = (16 << 10) - HEADER_LEN;
/// What a data frame costs beside its bytes.
pub const FRAME_COST: u32 = 1024;
/// What the guest may have sent and the host not handed on. It fits into the buffer of a Unix socket (208 KiB on Linux) whatever the frames,
/// so that the device never waits for a host that reads nothing.
pub const WINDOW_TO_HOST: u32 = 128 << 10;
/// What the host may have sent and the guest not handed on: the memory of the guest that one connection may fill.
pub const WINDOW_TO_GUEST: u32 = 64 << 10;
