//! The one thread that reads the output of containers.
//!
//! A container's runs are read strictly one after the other: the output of a new run waits until the old run's pipes
//! are empty. They need not have ended: a process of another container may have got one, and nothing of the old run writes any more.

use super::attach::Hub;
use super::buffer::LogBuffer;
use super::{Channel, MAX_CHUNK};
use crate::sync::{self, Bell, lock};
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
}

impl Pump {
    /// Starts the thread. `drained(container, run)` is called once all outputs of a run have ended and are in the
    /// buffer; `note` receives the reason if the thread gives up.
    pub(crate) fn start(
        logs: Arc<LogBuffer>,
        hubs: Vec<Arc<Hub>>,
        note: impl Fn(&str) + Send + 'static,
        drained: impl Fn(usize, u32) + Send + 'static,
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

    fn work(&self, logs: &LogBuffer, hubs: &[Arc<Hub>], drained: &impl Fn(usize, u32)) -> io::Result<()> {
        let mut queues: Vec<VecDeque<Run>> = hubs.iter().map(|_| VecDeque::new()).collect();
        let mut buffer = vec![0; MAX_CHUNK];
        loop {
            for run in std::mem::take(&mut *lock(&self.new)) {
                if let Some(queue) = queues.get_mut(run.container) {
                    queue.push_back(run);
                }
            }
            let ready = self.wait(logs, &queues)?;
            for (container, queue) in queues.iter_mut().enumerate() {
                let superseded = queue.len() > 1;
                let Some(head) = queue.front_mut() else { continue };
                for index in (0..head.sources.len()).rev() {
                    if !superseded && !ready.contains(&(container, index)) {
                        continue;
                    }
                    match read_once(head, index, &mut buffer, logs, &hubs[container]) {
                        Read::End => drop(head.sources.remove(index)),
                        Read::Nothing if superseded => drop(head.sources.remove(index)),
                        Read::Some | Read::Nothing | Read::NoRoom => {}
                    }
                }
                if head.sources.is_empty() {
                    drained(container, head.run);
                    queue.pop_front();
                }
            }
        }
    }

    /// Waits for something to do: the readable outputs, as container and source.
    fn wait(&self, logs: &LogBuffer, queues: &[VecDeque<Run>]) -> io::Result<Vec<(usize, usize)>> {
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
                for (index, (_, fd)) in head.sources.iter().enumerate() {
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

fn read_once(run: &Run, index: usize, buffer: &mut [u8], logs: &LogBuffer, hub: &Hub) -> Read {
    let Some(room) = logs.room() else { return Read::NoRoom };
    let (channel, fd) = &run.sources[index];
    match nix::unistd::read(fd, &mut buffer[..room]) {
        Ok(0) => Read::End,
        Ok(len) => {
            logs.push(run.container, *channel, &buffer[..len]);
            hub.publish(*channel, &buffer[..len]);
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
            move |_, run| tell.send(run).unwrap(),
        )
        .unwrap();
        let (old_read, old_write) = pipe();
        let (new_read, new_write) = pipe();
        pump.add(Run { container: 0, run: 0, sources: vec![(Channel::Stdout, old_read)] });
        write(&new_write, b"new").unwrap();
        write(&old_write, b"old").unwrap();
        pump.add(Run { container: 0, run: 1, sources: vec![(Channel::Stdout, new_read)] });
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
    fn a_writer_faster_than_the_reader_is_held_up_and_loses_nothing() {
        let logs = Arc::new(LogBuffer::new().unwrap());
        let (tell, told) = mpsc::channel();
        let pump = Pump::start(
            Arc::clone(&logs),
            vec![Arc::default()],
            |_| {},
            move |_, run| tell.send(run).unwrap(),
        )
        .unwrap();
        let (read, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        nix::fcntl::fcntl(&read, nix::fcntl::FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        pump.add(Run { container: 0, run: 0, sources: vec![(Channel::Stdout, read)] });
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
