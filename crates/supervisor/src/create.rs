//! One container from its pipes to its running program, on a separate thread: workers answer when they are done,
//! and several containers are made at once.

use crate::interface::{CreateOrder, Created, Failure, FailureKind};
use crate::machine::{Input, News};
use crate::message::Message;
use crate::output::Channel;
use crate::output::pump::{Pump, Run};
use crate::output::tail::Tail;
use crate::pod::{Live, Pod};
use magikvm_proto::lifecycle::MessageFallback;
use magikvm_proto::plan::{Stdin, Stdio};
use magikvm_proto::wire::ExitStatus;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Receiver, Sender};
use std::sync::{Arc, Mutex};

/// What a caller that is attached to a container hears when its program cannot be started, as from Kubernetes.
const START_FAILED: i32 = 128;

#[derive(Debug)]
pub(crate) struct Go;

/// The container to make.
pub(crate) struct Creation {
    pub(crate) pod: Arc<Pod>,
    pub(crate) pump: Arc<Pump>,
    pub(crate) tell: Sender<Message>,
    pub(crate) index: usize,
    pub(crate) run: u32,
}

/// Both ends of a container's standard streams.
pub(crate) struct Streams {
    /// For the container: stdin, stdout, stderr.
    pub(crate) theirs: Vec<OwnedFd>,
    /// Where its input is written; nothing when it gets no input.
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

    /// Creates the container, waits for the order and starts it; reports each step to the supervisor.
    pub(crate) fn carry_out(self, order: &Receiver<Go>) {
        let result = self.create().and_then(|created| {
            self.news(News::Created { pid: created.pid });
            // The order was dropped, which cancels the creation: end what was made.
            order.recv().map_err(|_| Failure { kind: FailureKind::Gone, message: "cancelled".to_owned() })?;
            (created.start)()
        });
        self.news(match result {
            Ok(()) => News::Started,
            Err(failure) => {
                let member = &self.pod.members[self.index];
                // Its end may have been reported before it was known as live.
                member.ended(self.run);
                // Whoever attached to it meanwhile would wait for a program that never ran.
                member.hub.finish(ExitStatus::exited(START_FAILED));
                News::Failed { program: failure.kind.program(), message: failure.message }
            }
        });
    }

    fn create(&self) -> Result<Created, Failure> {
        let member = &self.pod.members[self.index];
        let has_stdin = member.plan.stdin != Stdin::Closed;
        let mut streams = match member.plan.stdio {
            Stdio::Pipes => pipes(has_stdin)?,
            Stdio::Terminal => Streams { theirs: Vec::new(), stdin: None, outputs: Vec::new() },
        };
        let (tell, index, run) = (self.tell.clone(), self.index, self.run);
        let ended = Box::new(move |exit| drop(tell.send(Message::Reaped { index, run, exit })));
        // The order holds the container's ends of the streams, so that they close when the container ends.
        let order = CreateOrder { plan: &member.plan, run, stdio: std::mem::take(&mut streams.theirs) };
        let mut created = self.pod.containers.create(order, ended)?;
        let terminal = created.terminal.take();
        if let Some(master) = &terminal {
            non_blocking(master)?;
            streams.outputs.push((Channel::Stdout, master.try_clone()?));
            if has_stdin {
                streams.stdin = Some(master.try_clone()?);
            }
        }
        member.set_live(Live {
            run,
            process: Arc::clone(&created.process),
            terminal: terminal.map(Arc::new),
            stdin: Mutex::new(streams.stdin.map(Arc::new)),
        });
        let tail = (member.plan.termination_message.fallback == MessageFallback::Logs).then(Tail::default);
        self.pump.add(Run { container: index, run, sources: streams.outputs, tail });
        Ok(created)
    }
}
