//! The one thread that reads the output of containers.
//!
//! A container's runs are read strictly one after the other: the output of a new run waits until what the old run has left in its pipes is
//! read. They need not have ended: a process of another container may have got one. Whatever that process still writes is not the old run's,
//! and must not keep the new run's output back, so that only as much is read as was there when the new run came.

use super::attach::Hub;
use super::buffer::LogBuffer;
use super::tail::Tail;
use super::{Channel, MAX_CHUNK};
use crate::sync::{self, Bell, lock};
use crate::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The handle of the pump.
#[derive(Debug)]
pub(crate) struct Pump {
    new: Mutex<Vec<Run>>,
    bell: Bell,
}

/// One run's outputs, all of them non-blocking.
#[derive(Debug)]
pub(crate) struct Run {
    /// The container's index in the plan.
    pub(crate) container: usize,
    /// How often the container was made before.
    pub(crate) run: u32,
    pub(crate) sources: Vec<(Channel, OwnedFd)>,
    /// Where its last lines are kept, if they are wanted.
    pub(crate) tail: Option<Tail>,
}

/// A run in the queue of its container.
struct Queued {
    run: Run,
    /// How many bytes of it are still read, once another run waits behind it.
    left: Option<usize>,
}

impl Queued {
    /// Another run waits: from now on only what is there is read. Terminals do not tell all of it.
    fn limit(&mut self) {
        let waiting = |(_, fd): &(Channel, OwnedFd)| sys::unread_bytes(fd).max(LEAST_LEFT);
        self.left.get_or_insert_with(|| self.run.sources.iter().map(waiting).sum());
    }
}

/// What is read at least of each output of an earlier run, if it is there.
const LEAST_LEFT: usize = 64 << 10;

impl Pump {
    /// Starts the thread. `drained(container, run, tail)` is called once all outputs of a run have ended and are in the
    /// buffer; `note` receives the reason if the thread gives up.
    pub(crate) fn start(
        logs: Arc<LogBuffer>,
        hubs: Vec<Arc<Hub>>,
        note: impl Fn(&str) + Send + 'static,
        drained: impl Fn(usize, u32, Option<String>) + Send + 'static,
    ) -> io::Result<Arc<Self>> {
        let pump = Arc::new(Self { new: Mutex::default(), bell: Bell::new()? });
        let worker = Arc::clone(&pump);
        sync::thread("output", move || {
            if let Err(error) = worker.work(&logs, &hubs, &drained) {
                note(&format!("output: {error}"));
            }
        })?;
        Ok(pump)
    }

    /// Adds a run's outputs.
    pub(crate) fn add(&self, run: Run) {
        lock(&self.new).push(run);
        self.bell.ring();
    }

    fn work(
        &self,
        logs: &LogBuffer,
        hubs: &[Arc<Hub>],
        drained: &impl Fn(usize, u32, Option<String>),
    ) -> io::Result<()> {
        let mut queues: Vec<VecDeque<Queued>> = hubs.iter().map(|_| VecDeque::new()).collect();
        let mut buffer = vec![0; MAX_CHUNK];
        loop {
            for run in std::mem::take(&mut *lock(&self.new)) {
                if let Some(queue) = queues.get_mut(run.container) {
                    queue.push_back(Queued { run, left: None });
                }
            }
            let ready = self.wait(logs, &queues)?;
            for (container, queue) in queues.iter_mut().enumerate() {
                let superseded = queue.len() > 1;
                let Some(head) = queue.front_mut() else { continue };
                if superseded {
                    head.limit();
                }
                for index in (0..head.run.sources.len()).rev() {
                    if !superseded && !ready.contains(&(container, index)) {
                        continue;
                    }
                    match read_once(head, index, &mut buffer, logs, &hubs[container]) {
                        Read::End => drop(head.run.sources.remove(index)),
                        Read::Nothing if superseded => drop(head.run.sources.remove(index)),
                        Read::Some | Read::Nothing | Read::NoRoom => {}
                    }
                }
                if head.run.sources.is_empty() {
                    drained(container, head.run.run, head.run.tail.take().and_then(Tail::text));
                    queue.pop_front();
                }
            }
        }
    }

    /// Waits for something to do: the readable outputs, as container and source.
    fn wait(&self, logs: &LogBuffer, queues: &[VecDeque<Queued>]) -> io::Result<Vec<(usize, usize)>> {
        let mut fds = vec![
            PollFd::new(self.bell.as_fd(), PollFlags::POLLIN),
            PollFd::new(logs.room_bell().as_fd(), PollFlags::POLLIN),
        ];
        let mut whose = Vec::new();
        let mut deadline = None;
        if logs.room().is_some() {
            // What is left of an earlier run is read without waiting.
            deadline = queues.iter().any(|queue| queue.len() > 1).then(Instant::now);
            for (container, head) in
                queues.iter().enumerate().filter_map(|(i, queue)| Some((i, queue.front()?)))
            {
                for (index, (_, fd)) in head.run.sources.iter().enumerate() {
                    fds.push(PollFd::new(fd.as_fd(), PollFlags::POLLIN));
                    whose.push((container, index));
                }
            }
        }
        sync::poll_until(&mut fds, deadline)?;
        self.bell.hush();
        logs.room_bell().hush();
        Ok(whose
            .into_iter()
            .zip(&fds[2..])
            .filter(|(_, fd)| sync::ready(fd).read)
            .map(|(whose, _)| whose)
            .collect())
    }
}

/// What one read found.
enum Read {
    Some,
    Nothing,
    /// The log is full.
    NoRoom,
    End,
}

fn read_once(queued: &mut Queued, index: usize, buffer: &mut [u8], logs: &LogBuffer, hub: &Hub) -> Read {
    let Some(room) = logs.room() else { return Read::NoRoom };
    let most = room.min(queued.left.unwrap_or(room));
    let run = &mut queued.run;
    let (channel, fd) = &run.sources[index];
    // With nothing left to read this finds the end.
    match nix::unistd::read(fd, &mut buffer[..most]) {
        Ok(0) => Read::End,
        Ok(len) => {
            queued.left = queued.left.map(|left| left - len);
            logs.push(run.container, run.run, *channel, &buffer[..len]);
            hub.publish(*channel, &buffer[..len]);
            run.tail.iter_mut().for_each(|tail| tail.push(&buffer[..len]));
            Read::Some
        }
        Err(Errno::EAGAIN) => Read::Nothing,
        Err(Errno::EINTR) => Read::Some,
        // EIO: nobody has the other end of the terminal open.
        Err(_) => Read::End,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::buffer::Taken;
    use nix::fcntl::OFlag;
    use nix::unistd::{pipe2, write};
    use std::sync::mpsc;

    fn pipe() -> (OwnedFd, OwnedFd) {
        pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap()
    }

    #[test]
    fn a_new_run_waits_for_the_old_ones_last_bytes() {
        let logs = Arc::new(LogBuffer::new().unwrap());
        let (tell, told) = mpsc::channel();
        let pump = Pump::start(
            Arc::clone(&logs),
            vec![Arc::default()],
            |_| {},
            move |_, run, _| tell.send(run).unwrap(),
        )
        .unwrap();
        let (old_read, old_write) = pipe();
        let (new_read, new_write) = pipe();
        pump.add(Run { container: 0, run: 0, sources: vec![(Channel::Stdout, old_read)], tail: None });
        write(&new_write, b"new").unwrap();
        write(&old_write, b"old").unwrap();
        pump.add(Run { container: 0, run: 1, sources: vec![(Channel::Stdout, new_read)], tail: None });
        // The old run's pipe is still open somewhere.
        assert_eq!(told.recv().unwrap(), 0);
        drop(new_write);
        assert_eq!(told.recv().unwrap(), 1);
        assert_eq!(write(&old_write, b"later"), Err(Errno::EPIPE), "nobody reads it any more");
        let reader = logs.reader().unwrap();
        let mut all = Vec::new();
        while let Taken::Chunk(chunk) = reader.take() {
            all.extend(chunk.bytes);
        }
        assert_eq!(all, b"oldnew");
    }

    #[test]
    fn one_that_keeps_an_old_runs_output_full_does_not_hold_the_new_one_back() {
        let logs = Arc::new(LogBuffer::new().unwrap());
        let (tell, told) = mpsc::channel();
        let drained = move |_, run, _| {
            tell.send(run).ok();
        };
        let pump = Pump::start(Arc::clone(&logs), vec![Arc::default()], |_| {}, drained).unwrap();
        let (old_read, old_write) = pipe2(OFlag::O_CLOEXEC).unwrap();
        nix::fcntl::fcntl(&old_read, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let (new_read, new_write) = pipe();
        pump.add(Run { container: 0, run: 0, sources: vec![(Channel::Stdout, old_read)], tail: None });
        // It writes until nobody reads.
        let writer = std::thread::spawn(move || while write(&old_write, &[b'x'; 4096]).is_ok() {});
        let reader = logs.reader().unwrap();
        let mut runs = std::collections::BTreeSet::new();
        let mut take = |wanted: u32| {
            while !runs.contains(&wanted) {
                match reader.take() {
                    Taken::Chunk(chunk) => {
                        reader.delivered(chunk.bytes.len());
                        runs.insert(chunk.run);
                    }
                    _ => {
                        sync::wait([(reader.bell().as_fd(), PollFlags::POLLIN)], None).unwrap();
                        reader.bell().hush();
                    }
                }
            }
        };
        take(0);
        write(&new_write, b"new").unwrap();
        pump.add(Run { container: 0, run: 1, sources: vec![(Channel::Stdout, new_read)], tail: None });
        take(1);
        assert_eq!(told.recv().unwrap(), 0);
        // The other end is closed: no descriptor of the old run is left.
        writer.join().unwrap();
    }

    #[test]
    fn a_writer_faster_than_the_reader_is_held_up_and_loses_nothing() {
        let logs = Arc::new(LogBuffer::new().unwrap());
        let (tell, told) = mpsc::channel();
        let pump = Pump::start(
            Arc::clone(&logs),
            vec![Arc::default()],
            |_| {},
            move |_, run, _| tell.send(run).unwrap(),
        )
        .unwrap();
        let (read, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        pump.add(Run { container: 0, run: 0, sources: vec![(Channel::Stdout, read)], tail: None });
        let sent: Vec<u8> = (0..3_000_000u32).map(|i| (i % 251) as u8).collect();
        let expected = sent.clone();
        let writing = std::thread::spawn(move || {
            let mut rest = sent.as_slice();
            while !rest.is_empty() {
                rest = &rest[write(&writer, rest).unwrap()..];
            }
        });
        let reader = logs.reader().unwrap();
        let mut received = Vec::new();
        while received.len() < expected.len() {
            match reader.take() {
                Taken::Chunk(chunk) => {
                    reader.delivered(chunk.bytes.len());
                    received.extend(chunk.bytes);
                }
                _ => {
                    sync::wait([(reader.bell().as_fd(), PollFlags::POLLIN)], None).unwrap();
                    reader.bell().hush();
                }
            }
        }
        writing.join().unwrap();
        assert_eq!(told.recv().unwrap(), 0);
        assert!(received == expected);
    }
}
