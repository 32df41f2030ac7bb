//! `attach`: a container's live output, and its input.

use super::connection::Connection;
use super::exec::resize;
use super::input::{AtEnd, Input};
use super::stream::{Broken, Stream};
use crate::output::attach::{Next, Subscriber};
use crate::pod::{Live, Member, Pod};
use crate::sync::{self, lock};
use magikvm_proto::id::ContainerName;
use magikvm_proto::plan::{Stdin, Stdio};
use magikvm_proto::stream::Traffic;
use magikvm_proto::wire::{Attached, ExitStatus, Refusal, RefusalCode, Reply, StreamMessage, UrgentMessage};
use nix::poll::{PollFd, PollFlags};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

struct Session<'a> {
    stream: Stream,
    member: &'a Member,
    live: Arc<Live>,
    subscriber: Arc<Subscriber>,
    stdin: Input,
    /// Whether the caller sends input.
    sends: bool,
}

/// Serves `attach`.
pub(super) fn serve(pod: &Pod, mut connection: Connection, container: &ContainerName, stdin: bool) {
    match begin(pod, container, stdin) {
        Err(refusal) => connection.try_send(&Reply::<Attached>::Error(refusal)),
        Ok((member, live, subscriber, input)) => {
            let terminal = member.plan.stdio == Stdio::Terminal;
            if connection.send(&Reply::Ok(Attached { terminal })).is_ok()
                && let Ok(stream) = Stream::new(connection, Traffic::PROCESS)
            {
                let session = Session { stream, member, live, subscriber, stdin: input, sends: stdin };
                // An error means that the host has disconnected.
                session.run().ok();
            }
        }
    }
}

type Begun<'a> = (&'a Member, Arc<Live>, Arc<Subscriber>, Input);

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
    // It may have ended between the check and the subscription; then nothing would report the end.
    if member.live().is_none_or(|now| now.run != live.run) {
        return Err(Refusal::new(
            RefusalCode::Conflict,
            format!("container {:?} has just ended", container.as_str()),
        ));
    }
    let told = member.plan.stdin == Stdin::Once && live.terminal.is_some();
    let at_end = if told { AtEnd::EndOfTransmission } else { AtEnd::LetGo };
    Ok((member, live, subscriber, Input::new(target.filter(|_| stdin), at_end)))
}

impl Session<'_> {
    fn run(mut self) -> Result<(), Broken> {
        let exit = self.carry();
        if self.sends {
            // Input that the process has not taken by now is lost with the connection.
            self.stdin.feed(self.stream.link());
            self.close_once();
        }
        self.stream.finish(&StreamMessage::Exit(exit?))
    }

    /// Carries both directions until the process has ended and there is room to report that.
    fn carry(&mut self) -> Result<ExitStatus, Broken> {
        loop {
            if self.stdin.feed(self.stream.link()) && self.sends {
                self.close_once();
            }
            self.stream.flush()?;
            let room = self.stream.link().room();
            if room > 0 {
                self.subscriber.bell().hush();
                match self.subscriber.next(room) {
                    Next::Piece { channel, bytes } => {
                        self.stream.link().send(channel.number(), &bytes);
                        self.stream.flush()?;
                    }
                    Next::Dropped { channel, bytes } => {
                        self.stream.say(&StreamMessage::Dropped { channel: channel.number(), bytes })?;
                    }
                    Next::Exit(exit) => return Ok(exit),
                    Next::Nothing => {}
                }
            }
            self.wait()?;
            while let Some(message) = self.stream.link().take_urgent() {
                match serde_json::from_slice(&message).map_err(Broken::Urgent)? {
                    UrgentMessage::Resize(size) => resize(self.live.terminal.as_deref(), size),
                    // A separate request sends signals to a container's process.
                    UrgentMessage::Signal { .. } => {}
                }
            }
        }
    }

    /// Waits for something to do, unless more output is ready; the stream has had its turn then.
    fn wait(&mut self) -> Result<(), Broken> {
        let reading = self.stream.link().room() > 0;
        let at_once = reading && self.subscriber.has_more();
        let mut fds = Vec::new();
        if reading {
            fds.push(PollFd::new(self.subscriber.bell().as_fd(), PollFlags::POLLIN));
        }
        let (before, stdin) = (fds.len(), self.stdin.waits_for(self.stream.link()));
        fds.extend(stdin.map(|stdin| PollFd::new(stdin.as_fd(), PollFlags::POLLOUT)));
        let stdin = (fds.len() > before).then_some(before);
        fds.push(PollFd::new(self.stream.as_fd(), self.stream.interest()));
        sync::poll_until(&mut fds, at_once.then(Instant::now))?;
        let host = fds.last().map(sync::ready).unwrap_or_default();
        let unread = stdin.is_some_and(|index| sync::ready(&fds[index]).hang_up);
        drop(fds);
        if unread {
            self.stdin.close();
        }
        self.stream.turn(host)
    }

    /// The caller sends no more. The plan decides what that means for the container.
    fn close_once(&self) {
        if self.member.plan.stdin == Stdin::Once {
            *lock(&self.live.stdin) = None;
        }
    }
}
