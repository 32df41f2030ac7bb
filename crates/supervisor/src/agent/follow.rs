//! Streams that only the guest writes: `logs` and `events`.

use super::connection::Connection;
use super::stream::{Broken, Stream};
use crate::events::Subscription;
use crate::output::Chunk;
use crate::output::buffer::{Reader, Taken};
use crate::pod::Pod;
use magikvm_proto::budget::GUEST_LOG_DRAIN_MS;
use magikvm_proto::stream::{MAX_MESSAGE, Traffic, log_channel};
use magikvm_proto::wire::{Done, Refusal, RefusalCode, Reply, StreamMessage};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

/// Most events taken at once.
const BATCH: usize = 64;
/// How long the last events may take to leave the guest.
const LEAVE: Duration = Duration::from_millis(100);

fn refuse(mut connection: Connection, code: RefusalCode, message: impl Into<String>) {
    connection.try_send(&Reply::<Done>::Error(Refusal::new(code, message)));
}

/// Serves `logs`.
pub(super) fn logs(pod: &Pod, mut connection: Connection) {
    let Some(reader) = pod.logs.reader() else {
        return refuse(connection, RefusalCode::Busy, "another client already reads the logs");
    };
    if connection.send(&Reply::Ok(Done {})).is_ok()
        && let Ok(stream) = Stream::new(connection, Traffic::logs(pod.members.len()))
    {
        // An error means that the host has disconnected; the next reader continues from here.
        send_logs(&reader, stream, pod.members.len()).ok();
    }
}

fn send_logs(reader: &Reader<'_>, mut stream: Stream, containers: usize) -> Result<(), Broken> {
    // The run of each container that the host knows of.
    let mut told = vec![0; containers];
    loop {
        reader.bell().hush();
        match reader.take() {
            Taken::Chunk(chunk) => {
                let Some(channel) = log_channel(chunk.container, chunk.channel.number()) else {
                    // No pod has that many containers.
                    reader.delivered(chunk.bytes.len());
                    continue;
                };
                let sent = tell_run(&mut stream, &chunk, &mut told)
                    .and_then(|()| send_chunk(&mut stream, channel, &chunk.bytes));
                match sent {
                    Ok(()) => reader.delivered(chunk.bytes.len()),
                    Err(_) => reader.put_back(chunk),
                }
                sent?;
            }
            Taken::Nothing => stream.wait(Some(reader.bell().as_fd()))?,
            Taken::End => {
                stream.end()?;
                stream.wait_closed(Instant::now() + Duration::from_millis(GUEST_LOG_DRAIN_MS));
                reader.finished();
                return Ok(());
            }
        }
    }
}

/// Tells which run of its container a chunk belongs to, unless the host knows.
fn tell_run(stream: &mut Stream, chunk: &Chunk, told: &mut [u32]) -> Result<(), Broken> {
    let (Some(told), Ok(container)) = (told.get_mut(chunk.container), u16::try_from(chunk.container)) else {
        return Ok(());
    };
    if *told != chunk.run {
        stream.wait_for_room(MAX_MESSAGE)?;
        stream.say(&StreamMessage::Run { container, run: chunk.run })?;
        *told = chunk.run;
    }
    Ok(())
}

/// Sends a chunk, which fits into a frame, and returns when it has left this program.
fn send_chunk(stream: &mut Stream, channel: u16, bytes: &[u8]) -> Result<(), Broken> {
    stream.wait_for_room(bytes.len())?;
    stream.link().send(channel, bytes);
    stream.flush()?;
    while !stream.link().outbox().is_empty() {
        stream.wait(None)?;
    }
    Ok(())
}

/// Serves `events`.
pub(super) fn events(pod: &Pod, mut connection: Connection, since: u64) {
    match pod.events.subscribe() {
        Err(error) => refuse(connection, RefusalCode::Internal, error.to_string()),
        Ok(reader) => {
            if connection.send(&Reply::Ok(Done {})).is_ok()
                && let Ok(stream) = Stream::new(connection, Traffic::EVENTS)
            {
                // An error means that the host has disconnected.
                send_events(pod, &reader, stream, since).ok();
            }
        }
    }
}

fn send_events(pod: &Pod, reader: &Subscription, mut stream: Stream, mut next: u64) -> Result<(), Broken> {
    loop {
        reader.bell().hush();
        let batch = pod.events.from(next, BATCH);
        for event in &batch {
            let mut line = serde_json::to_vec(event).map_err(Broken::Message)?;
            line.push(b'\n');
            let mut rest = line.as_slice();
            while !rest.is_empty() {
                stream.wait_for_room(1)?;
                let (piece, later) = rest.split_at(stream.link().room().min(rest.len()));
                stream.link().send(0, piece);
                stream.flush()?;
                rest = later;
            }
            next = event.seq + 1;
        }
        if batch.is_empty() && stream.link().outbox().is_empty() {
            if pod.events.closing() {
                stream.wait_sent(Instant::now() + LEAVE);
            }
            pod.events.seen(reader, next.saturating_sub(1));
        }
        if batch.is_empty() {
            stream.wait(Some(reader.bell().as_fd()))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::stream::pair;
    use super::*;
    use crate::output::Channel;
    use crate::output::buffer::LogBuffer;
    use crate::sync;
    use magikvm_proto::stream::{Incoming, Link, Side};
    use nix::poll::PollFlags;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    /// Reads like a host until the guest has no more to send, and hands on at most this many bytes.
    fn take(mut host: &UnixStream, most: usize) -> Vec<(u16, Vec<u8>)> {
        let mut link = Link::new(Side::Host, Traffic::logs(2));
        let (mut all, mut buffer) = (Vec::new(), [0; 1000]);
        let mut taken = 0;
        while !link.is_delivered() && taken < most {
            let count = host.read(&mut buffer).unwrap();
            link.receive(&buffer[..count]).unwrap();
            while let Some(Incoming::Data { channel, bytes }) = link.next() {
                all.push((channel, bytes.to_vec()));
                let count = bytes.len();
                taken += count;
                link.delivered(count);
            }
            host.write_all(link.outbox()).unwrap();
            link.sent(link.outbox().len());
        }
        all
    }

    #[test]
    fn logs_wait_for_a_reader_that_rests_and_then_end() {
        let logs = Arc::new(LogBuffer::new().unwrap());
        let (host, guest) = pair(Traffic::logs(2));
        let for_sender = Arc::clone(&logs);
        let sender = std::thread::spawn(move || send_logs(&for_sender.reader().unwrap(), guest, 2));
        let mut pushed = 0;
        while pushed < 1 << 20 {
            match logs.room() {
                Some(room) => {
                    logs.push(1, 0, Channel::Stderr, &vec![b'x'; room]);
                    pushed += room;
                }
                // The socket is full, and so is the window.
                None => break,
            }
        }
        let reader = std::thread::spawn(move || take(&host, usize::MAX));
        while pushed < 1 << 20 {
            if let Some(room) = logs.room() {
                logs.push(1, 0, Channel::Stderr, &vec![b'x'; room]);
                pushed += room;
            } else {
                sync::wait([(logs.room_bell().as_fd(), PollFlags::POLLIN)], None).unwrap();
                logs.room_bell().hush();
            }
        }
        logs.close();
        let taken = reader.join().unwrap();
        assert!(taken.iter().all(|(channel, _)| *channel == 3));
        assert_eq!(taken.iter().map(|(_, bytes)| bytes.len()).sum::<usize>(), pushed);
        sender.join().unwrap().unwrap();
    }

    #[test]
    fn the_host_is_told_which_run_has_written_what() {
        let logs = LogBuffer::new().unwrap();
        for (container, run, bytes) in [(0, 0, "a"), (1, 2, "b"), (0, 0, "c"), (1, 2, "d"), (1, 3, "e")] {
            logs.push(container, run, Channel::Stdout, bytes.as_bytes());
        }
        logs.close();
        let (mut host, guest) = pair(Traffic::logs(2));
        let mut seen = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| send_logs(&logs.reader().unwrap(), guest, 2).unwrap());
            let (mut link, mut buffer) = (Link::new(Side::Host, Traffic::logs(2)), [0; 1000]);
            while !link.is_delivered() {
                let count = host.read(&mut buffer).unwrap();
                link.receive(&buffer[..count]).unwrap();
                while let Some(incoming) = link.next() {
                    let count = match incoming {
                        Incoming::Data { bytes, .. } => {
                            seen.push(String::from_utf8_lossy(bytes).into_owned());
                            bytes.len()
                        }
                        Incoming::Message(bytes) => {
                            match serde_json::from_slice(bytes).unwrap() {
                                StreamMessage::Run { container, run } => {
                                    seen.push(format!("{container}:{run}"))
                                }
                                other => panic!("{other:?}"),
                            }
                            bytes.len()
                        }
                    };
                    link.delivered(count);
                }
                host.write_all(link.outbox()).unwrap();
                link.sent(link.outbox().len());
            }
            drop(host);
        });
        assert_eq!(seen, ["a", "1:2", "b", "c", "d", "1:3", "e"]);
    }

    #[test]
    fn the_next_reader_goes_on_behind_what_the_last_one_was_sent() {
        let logs = LogBuffer::new().unwrap();
        while let Some(room) = logs.room() {
            logs.push(0, 0, Channel::Stdout, &vec![b'x'; room]);
        }
        let (host, guest) = pair(Traffic::logs(1));
        std::thread::scope(|scope| {
            let sender = scope.spawn(|| send_logs(&logs.reader().unwrap(), guest, 1));
            take(&host, 20_000);
            drop(host);
            assert!(sender.join().unwrap().is_err());
        });
        let reader = logs.reader().unwrap();
        let mut left = 0;
        while let Taken::Chunk(chunk) = reader.take() {
            left += chunk.bytes.len();
            reader.delivered(chunk.bytes.len());
        }
        assert!(left > 0, "the window is smaller than the buffer");
        logs.push(0, 0, Channel::Stdout, b"more");
        assert!(matches!(reader.take(), Taken::Chunk(chunk) if chunk.bytes == b"more"));
    }
}
