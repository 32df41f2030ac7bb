//! The framing of every byte stream between host and guest: forwarded ports, exec, attach, logs and events.
//!
//! A stream is a connection on which one request was answered with `ok`. From then on both ends send frames. A frame begins with four
//! bytes: its kind and a number of 24 bits, most significant byte first.
//!
//! | kind | number | meaning |
//! |---|---|---|
//! | 0 data | channel × 2^14 + length | length bytes (1 to [`MAX_DATA`]) of a channel (0 to 1023) follow |
//! | 1 end | 0 | the sender has no more data and messages; the other direction goes on |
//! | 2 window | not 0 | the receiver may send this many more bytes |
//! | 3 reset | 0 | the connection was reset; nothing follows |
//! | 4 message | length | length bytes (1 to [`MAX_MESSAGE`]) of JSON follow, in order with the data |
//! | 5 urgent | length | length bytes (1 to [`MAX_URGENT`]) of JSON follow, which overtake waiting data |
//!
//! What a connection may carry depends on its request ([`Traffic`]):
//!
//! | request | to the host | to the guest |
//! |---|---|---|
//! | a forwarded port | data of channel 0 | data of channel 0 |
//! | exec, attach | data of [`STDOUT`] and [`STDERR`], messages ([`StreamMessage`](crate::wire::StreamMessage)) | data of [`STDIN`], urgent messages ([`UrgentMessage`](crate::wire::UrgentMessage)) |
//! | logs | data of two channels for each container, see [`log_channel`], messages | nothing |
//! | events | data of channel 0: a line for each [`Event`](crate::wire::Event) | nothing |
//!
//! Neither end sends more than the other one has room for ([`WINDOW_TO_HOST`], [`WINDOW_TO_GUEST`]). A data frame or a message costs its bytes and
//! [`FRAME_COST`], since a small frame occupies mostly overhead on its way. Urgent messages cost nothing: they are few and short, and
//! an end sends one only when nothing else waits for the connection.
//!
//! The guest always reads what has arrived and keeps what it cannot hand on, bounded by the window. The host either does the same or
//! leaves the bytes in the buffer of its Unix socket, which holds a whole window. So no vsock device ever waits for either of them.
//! Waiting devices block every connection (libkrun's writes to the host's socket block), lose bytes or spin, and they do not support
//! half-closed connections. A reader that stops reading stops only itself.
//!
//! The guest closes its end when everything is sent. The host waits for that while it still has something to send: a closed connection loses what
//! it has not delivered.
//!
//! Owns: the frames and the state of one end of a connection ([`Link`]), the same on both sides. Must not know: sockets and how to wait for
//! them; that is up to the caller of [`pump`] and [`Link`].

mod link;
mod pump;
mod traffic;

pub use link::{Incoming, Link, Side, Violation};
pub use pump::{Local, Ready, Verdict, pump};
pub use traffic::{STDERR, STDIN, STDOUT, Traffic, log_channel, log_source};

/// Length of a frame without its data.
pub const HEADER_LEN: usize = 4;
/// Most bytes of data in one frame. With its header it is as large as a vsock packet may be (`vhost-device-vsock` 0.3 drops larger ones).
pub const MAX_DATA: usize = (16 << 10) - HEADER_LEN;
/// Channels in one direction of a connection.
pub const MAX_CHANNELS: u16 = 1024;
/// Most bytes of a message that is delivered in order.
pub const MAX_MESSAGE: usize = 4096;
/// Most bytes of an urgent message.
pub const MAX_URGENT: usize = 255;
/// What a data frame or a message costs in addition to its bytes.
pub const FRAME_COST: u32 = 1024;
/// What the guest may have sent and the host not handed on. It fits into the buffer of a Unix socket (208 KiB on Linux) whatever the frames,
/// so the device never waits for a host that does not read.
pub const WINDOW_TO_HOST: u32 = 128 << 10;
/// What the host may have sent and the guest not handed on: the guest memory that one connection may fill.
pub const WINDOW_TO_GUEST: u32 = 64 << 10;
