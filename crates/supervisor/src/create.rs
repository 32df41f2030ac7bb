//! One container from its pipes to its running program, on a thread of its own: workers answer when they are done,
//! and several containers are made at once.

use super::Message;
use super::machine::{Input, News};
use crate::output::Channel;
use crate::output::pump::{Pump, Run};
use crate::pod::{Live, Pod};
use crate::spawner::client::Pending;
use crate::spawner::{Failure, FailureKind};
use magikvm_proto::plan::{Stdin, Stdio};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

/// The order to start.
#[derive(Debug)]
pub(super) struct Go;

/// What is to be made.
pub(super) struct Creation {
    pub(super) pod: Arc<Pod>,
    pub(super) pump: Arc<Pump>,
    pub(super) tell: Sender<Message>,
    pub(super) index: usize,
    pub(super) run: u32,
    pub(super) pod_namespace: Option<i32>,
}

/// Both ends of a container's standard streams.
pub(crate) struct Streams {
    /// For the container: stdin, stdout, stderr.
    pub(crate) theirs: Vec<OwnedFd>,
    /// Where its input is written; nothing when it gets none.
    pub(crate) stdin: Option<OwnedFd>,
    /// Where its output is read, non-blocking.
    pub(crate) outputs: Vec<(Channel, OwnedFd)>,
}

/// Makes a descriptor's reads and writes return at once.
pub(crate) fn non_blocking(fd: &OwnedFd) -> io::Result<()> {
    fcntl(fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Three pipes; without `stdin`, nothing to read.
pub(crate) fn pipes(stdin: bool) -> io::Result<Streams> {
    let (stdin_read, stdin_write) = if stdin {
        let (read, write) = pipe2(OFlag::O_CLOEXEC)?;
        non_blocking(&write)?;
        (read, Some(write))
    } else {
        (OwnedFd::from(File::open("/dev/null")?), None)
    };
    let (stdout_read, stdout_write) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr_read, stderr_write) = pipe2(OFlag::O_CLOEXEC)?;
    non_blocking(&stdout_read)?;
    non_blocking(&stderr_read)?;
    Ok(Streams {
        theirs: vec![stdin_read, stdout_write, stderr_write],
        stdin: stdin_write,
        outputs: vec![(Channel::Stdout, stdout_read), (Channel::Stderr, stderr_read)],
    })
}

impl Creation {
    fn news(&self, news: News) {
        let input = Input::Container { index: self.index, run: self.run, news };
        self.tell.send(Message::Input(input)).ok();
    }

    /// Creates the container, waits for the order and starts it; tells the supervisor at each point.
    pub(super) fn carry_out(self, order: &Receiver<Go>) {
        let result = self.create().and_then(|pending| {
            self.news(News::Created { pid: pending.pid });
            // Dropped unsent: cancelled. The worker then kills what it made.
            order.recv().map_err(|_| Failure { kind: FailureKind::Gone, message: "cancelled".to_owned() })?;
            pending.start()
        });
        self.news(match result {
            Ok(_) => News::Started,
            Err(failure) => News::Failed { message: failure.message },
        });
    }

    fn create(&self) -> Result<Pending, Failure> {
        let member = &self.pod.members[self.index];
        let has_stdin = member.plan.stdin != Stdin::Closed;
        let mut streams = match member.plan.stdio {
            Stdio::Pipes => pipes(has_stdin)?,
            Stdio::Terminal => Streams { theirs: Vec::new(), stdin: None, outputs: Vec::new() },
        };
        let mut pending =
            self.pod.spawner.create(&member.plan, self.run, self.pod_namespace, &streams.theirs)?;
        // From here on only the container holds its ends, so that they close when it ends.
        drop(streams.theirs);
        let terminal = pending.terminal.take();
        if let Some(master) = &terminal {
            non_blocking(master)?;
            streams.outputs.push((Channel::Stdout, master.try_clone()?));
            if has_stdin {
                streams.stdin = Some(master.try_clone()?);
            }
        }
        let (tell, index, run) = (self.tell.clone(), self.index, self.run);
        self.pod.reaper.watch(pending.pid, move |exit| drop(tell.send(Message::Reaped { index, run, exit })));
        member.set_live(Live {
            run,
            pidfd: pending.pidfd.try_clone()?,
            terminal: terminal.map(Arc::new),
            stdin: Mutex::new(streams.stdin.map(Arc::new)),
        });
        self.pump.add(Run { container: index, run, sources: streams.outputs });
        Ok(pending)
    }
}
