//! `attach`: a container's live output, and its input.

use super::connection::{Connection, Filled};
use super::exec::resize;
use super::follow::output_header;
use super::frames::{MAX_INPUT, Outbox, Sink, parse};
use crate::output::MAX_CHUNK;
use crate::output::attach::{Next, Subscriber};
use crate::pod::{Live, Member, Pod};
use crate::sync::{self, lock};
use magikvm_proto::codec::CodecError;
use magikvm_proto::id::ContainerName;
use magikvm_proto::plan::{Stdin, Stdio};
use magikvm_proto::wire::{Attached, FrameHeader, Refusal, RefusalCode, Reply, Stream};
use nix::poll::{PollFd, PollFlags};
use std::os::fd::AsFd;
use std::sync::Arc;

/// What a terminal takes for the end of input.
const END_OF_TRANSMISSION: [u8; 1] = [4];

struct Session<'a> {
    connection: Connection,
    member: &'a Member,
    live: Arc<Live>,
    subscriber: Arc<Subscriber>,
    out: Outbox,
    stdin: Sink,
}

/// Serves `attach`.
pub(super) fn serve(pod: &Pod, mut connection: Connection, container: &ContainerName, stdin: bool) {
    match begin(pod, container, stdin) {
        Err(refusal) => connection.try_send(&Reply::<Attached>::Error(refusal)),
        Ok((member, live, subscriber, sink)) => {
            let terminal = member.plan.stdio == Stdio::Terminal;
            if connection.send(&Reply::Ok(Attached { terminal })).is_ok() {
                let mut session =
                    Session { connection, member, live, subscriber, out: Outbox::default(), stdin: sink };
                // An error means that the host is gone.
                session.run().ok();
                if stdin {
                    session.leave();
                }
            }
        }
    }
}

type Begun<'a> = (&'a Member, Arc<Live>, Arc<Subscriber>, Sink);

fn begin<'a>(pod: &'a Pod, container: &ContainerName, stdin: bool) -> Result<Begun<'a>, Refusal> {
    let (member, live) = pod.running(container)?;
    let target = lock(&live.stdin).clone();
    if stdin && target.is_none() {
        return Err(Refusal::new(
            RefusalCode::Conflict,
            format!("container {:?} has no open stdin", container.as_str()),
        ));
    }
    let subscriber =
        member.hub.subscribe().map_err(|error| Refusal::new(RefusalCode::Internal, error.to_string()))?;
    // It may have ended between the look and the subscription, and then nobody would tell.
    if member.live().is_none_or(|now| now.run != live.run) {
        return Err(Refusal::new(
            RefusalCode::Conflict,
            format!("container {:?} has just ended", container.as_str()),
        ));
    }
    Ok((member, live, subscriber, Sink::new(target.filter(|_| stdin))))
}

impl Session<'_> {
    fn run(&mut self) -> Result<(), CodecError> {
        loop {
            if self.out.is_empty() {
                self.subscriber.bell().hush();
                match self.subscriber.next() {
                    Next::Piece(piece) => {
                        self.out.push(
                            &output_header(piece.channel, piece.dropped, piece.bytes.len()),
                            &piece.bytes,
                        )?;
                    }
                    Next::Exit(exit) => {
                        return self.connection.send_frame(&FrameHeader::control(Stream::Exit(exit)), &[]);
                    }
                    Next::Nothing => {}
                }
            }
            self.out.flush(&mut self.connection)?;
            if self.out.is_empty() && self.subscriber.has_more() {
                continue;
            }
            if self.wait()? && !self.read_host()? {
                return Ok(());
            }
            self.stdin.flush();
        }
    }

    /// Waits for something to do; whether the host said something.
    fn wait(&self) -> Result<bool, CodecError> {
        let mut host = sync::HANG_UP;
        host.set(PollFlags::POLLIN, self.stdin.waits_for().is_none());
        host.set(PollFlags::POLLOUT, !self.out.is_empty());
        let mut fds = vec![PollFd::new(self.connection.as_fd(), host)];
        if self.out.is_empty() {
            fds.push(PollFd::new(self.subscriber.bell().as_fd(), PollFlags::POLLIN));
        }
        if let Some(stdin) = self.stdin.waits_for() {
            fds.push(PollFd::new(stdin.as_fd(), PollFlags::POLLOUT));
        }
        sync::poll_until(&mut fds, None)?;
        let host = sync::ready(&fds[0]);
        Ok(host.read || host.hang_up)
    }

    /// Takes what the host sent; `false` once it is gone.
    fn read_host(&mut self) -> Result<bool, CodecError> {
        if self.stdin.waits_for().is_some() {
            return Ok(false);
        }
        let limit = MAX_INPUT.saturating_sub(self.connection.input().len());
        let filled = self.connection.fill(limit.min(MAX_CHUNK))?;
        while let Some((header, payload)) = parse(self.connection.input())? {
            match header.stream {
                Stream::Stdin => self.stdin.push(&payload),
                Stream::End => self.end_input(),
                Stream::Resize(size) => resize(self.live.terminal.as_deref(), size),
                _ => {}
            }
        }
        Ok(filled != Filled::End)
    }

    /// The caller sends no more. What that means for the container is the plan's business.
    fn end_input(&mut self) {
        if self.member.plan.stdin == Stdin::Once && self.live.terminal.is_some() {
            self.stdin.push(&END_OF_TRANSMISSION);
        }
        self.stdin.flush();
        if self.stdin.waits_for().is_none() {
            self.close_once();
        }
        self.stdin.end();
    }

    /// The attach is over.
    fn leave(&mut self) {
        self.stdin.flush();
        self.close_once();
    }

    fn close_once(&self) {
        if self.member.plan.stdin == Stdin::Once {
            *lock(&self.live.stdin) = None;
        }
    }
}
