//! Streams that only the guest writes: `logs` and `events`.

use super::connection::Connection;
use crate::output::buffer::{Reader, Taken};
use crate::output::{Channel, Chunk};
use crate::pod::Pod;
use crate::sync::{self, Ready};
use magikvm_proto::budget::GUEST_LOG_DRAIN_MS;
use magikvm_proto::codec::CodecError;
use magikvm_proto::wire::{Done, FrameHeader, Refusal, RefusalCode, Reply, Stream};
use nix::poll::PollFlags;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

/// Events sent in one go.
const BATCH: usize = 64;
/// How long the last events may take to leave the guest.
const LEAVE: Duration = Duration::from_millis(100);

fn refuse(mut connection: Connection, code: RefusalCode, message: impl Into<String>) {
    connection.try_send(&Reply::<Done>::Error(Refusal::new(code, message)));
}

/// Waits for a ring. Whatever the host sends here is against the protocol, so that ends the stream like a closed
/// connection.
fn wait_for(connection: &Connection, bell: BorrowedFd<'_>) -> io::Result<bool> {
    let [host, _]: [Ready; 2] = sync::wait(
        [(connection.as_fd(), PollFlags::POLLIN | sync::HANG_UP), (bell, PollFlags::POLLIN)],
        None,
    )?;
    Ok(!(host.read || host.hang_up))
}

/// Serves `logs`.
pub(super) fn logs(pod: &Pod, mut connection: Connection) {
    let Some(reader) = pod.logs.reader() else {
        return refuse(connection, RefusalCode::Busy, "somebody else reads the logs");
    };
    if connection.send(&Reply::Ok(Done {})).is_ok() {
        // An error means that the host is gone; the next reader goes on from here.
        send_logs(pod, &reader, &mut connection).ok();
    }
}

fn send_logs(pod: &Pod, reader: &Reader<'_>, connection: &mut Connection) -> Result<(), CodecError> {
    loop {
        reader.bell().hush();
        match reader.take() {
            Taken::Chunk(chunk) => {
                let sent = connection.send_frame(&log_header(pod, &chunk), &chunk.bytes);
                match sent {
                    Ok(()) => reader.delivered(chunk.bytes.len()),
                    Err(_) => reader.put_back(chunk),
                }
                sent?;
            }
            Taken::Nothing => {
                if !wait_for(connection, reader.bell().as_fd())? {
                    return Ok(());
                }
            }
            Taken::End => {
                connection.send_frame(&FrameHeader::control(Stream::End), &[])?;
                connection.wait_closed(Instant::now() + Duration::from_millis(GUEST_LOG_DRAIN_MS));
                reader.finished();
                return Ok(());
            }
        }
    }
}

fn log_header(pod: &Pod, chunk: &Chunk) -> FrameHeader {
    let container = pod.members.get(chunk.container).map(|member| member.plan.name.clone());
    FrameHeader { container, ..output_header(chunk.channel, 0, chunk.bytes.len()) }
}

/// The header of output bytes.
pub(super) fn output_header(channel: Channel, dropped: u64, len: usize) -> FrameHeader {
    let stream = match channel {
        Channel::Stdout => Stream::Stdout { dropped },
        Channel::Stderr => Stream::Stderr { dropped },
    };
    FrameHeader::data(stream, len)
}

/// Serves `events`.
pub(super) fn events(pod: &Pod, mut connection: Connection, since: u64) {
    match pod.events.subscribe() {
        Err(error) => refuse(connection, RefusalCode::Internal, error.to_string()),
        Ok(reader) => {
            let mut next = since;
            let mut send = || -> Result<(), CodecError> {
                connection.send(&Reply::Ok(Done {}))?;
                loop {
                    reader.bell().hush();
                    let batch = pod.events.from(next, BATCH);
                    for event in &batch {
                        connection.send(event)?;
                        next = event.seq + 1;
                    }
                    if batch.is_empty() {
                        if pod.events.closing() {
                            connection.wait_sent(Instant::now() + LEAVE);
                        }
                        pod.events.seen(&reader, next.saturating_sub(1));
                        if !wait_for(&connection, reader.bell().as_fd())? {
                            return Ok(());
                        }
                    }
                }
            };
            // An error means that the host is gone.
            send().ok();
        }
    }
}
