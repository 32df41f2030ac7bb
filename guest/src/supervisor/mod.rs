//! Carries out what [`machine`] decides. Owns: the main thread after the boot. It alone turns decisions into
//! processes; everything that may block for long happens on a thread of its own.

pub(crate) mod create;
pub(crate) mod machine;

use crate::agent;
use crate::cgroup::Cgroup;
use crate::output::attach::Hub;
use crate::output::buffer::LogBuffer;
use crate::output::pump::Pump;
use crate::pod::Pod;
use crate::reaper::Reaper;
use crate::spawner::client::Spawner;
use crate::{console, forward, load, power, sync};
use machine::{Effect, Input, Machine, News};
use magikvm_proto::budget::{GUEST_HEARD_WAIT_MS, GUEST_LOG_DRAIN_MS};
use magikvm_proto::plan::{ContainerPlan, GuestPlan, ProcessNamespace};
use magikvm_proto::wire::{EventKind, ExitStatus};
use nix::sys::signal::{SigSet, Signal};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

/// What threads tell the supervisor.
#[derive(Debug)]
pub(crate) enum Message {
    /// For the machine.
    Input(Input),
    /// The process 1 of a container was reaped.
    Reaped {
        /// Its place in the plan.
        index: usize,
        /// Of which run.
        run: u32,
        /// How.
        exit: ExitStatus,
    },
    /// A process that nothing works without is gone.
    HelperDied(&'static str),
    /// Somebody sent PID 1 a signal that means "end".
    Signalled,
}

/// How long the rest of a container may take to die after its process 1, once killed.
const REST_WAIT: Duration = Duration::from_millis(500);
/// How long readers of events may take for the last of them.
const EVENTS_WAIT: Duration = Duration::from_millis(200);

struct Supervisor {
    pod: Arc<Pod>,
    machine: Machine,
    started: Instant,
    inbox: Receiver<Message>,
    tell: Sender<Message>,
    pump: Arc<Pump>,
    /// The threads that wait to start a created container; dropping one cancels it.
    pending: Vec<Option<Sender<create::Go>>>,
    pod_namespace: Option<i32>,
}

/// Runs the pod to its end and ends the VM. Returns only when not even a thread can be started.
pub(crate) fn run(spawner: Spawner, listener: OwnedFd, forwards: OwnedFd) -> io::Result<()> {
    let (tell, inbox) = channel();
    // Blocked before the first thread, so that only the one that waits for them gets them.
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block()?;
    forward_signals(ends, tell.clone())?;

    let reaper = Arc::new(Reaper::default());
    let died = tell.clone();
    reaper.watch(spawner.pid(), move |_| drop(died.send(Message::HelperDied("the spawner has died"))));
    reaper.start()?;

    let (plan, failure) = match load::load() {
        Ok(plan) => (Some(plan), None),
        Err(error) => (None, Some(console::chain(&error))),
    };
    let (plan, pod_namespace, failure) = share_namespace(&spawner, plan, failure);
    if let Some(pid) = pod_namespace {
        let died = tell.clone();
        reaper.watch(pid, move |_| {
            drop(died.send(Message::HelperDied("the pod's process namespace has died")))
        });
    }
    let logs = Arc::new(LogBuffer::new()?);
    let mut pod = Pod::new(plan, Arc::clone(&logs), reaper, spawner, tell.clone());
    pod.helpers.extend(pod_namespace);
    let pod = Arc::new(pod);
    let hubs: Vec<Arc<Hub>> = pod.members.iter().map(|member| Arc::clone(&member.hub)).collect();
    let drained = tell.clone();
    let pump = Pump::start(logs, hubs, move |index, run| {
        drained.send(Message::Input(Input::Container { index, run, news: News::Drained })).ok();
    })?;
    let machine = pod.plan.as_ref().map_or_else(Machine::without_plan, Machine::new);
    let pending = pod.members.iter().map(|_| None).collect();
    let mut supervisor = Supervisor {
        pod: Arc::clone(&pod),
        machine,
        started: Instant::now(),
        inbox,
        tell,
        pump,
        pending,
        pod_namespace,
    };
    supervisor.boot(failure);
    agent::start(pod, listener)?;
    forward::start(forwards)?;
    supervisor.work()
}

fn share_namespace(
    spawner: &Spawner,
    plan: Option<GuestPlan>,
    failure: Option<String>,
) -> (Option<GuestPlan>, Option<i32>, Option<String>) {
    match plan {
        Some(plan) if plan.process_namespace == ProcessNamespace::Pod => match spawner.namespace() {
            Ok(pid) => (Some(plan), Some(pid), failure),
            Err(error) => (None, None, Some(format!("no shared process namespace: {error}"))),
        },
        plan => (plan, None, failure),
    }
}

fn forward_signals(ends: SigSet, tell: Sender<Message>) -> io::Result<()> {
    sync::thread("signals", move || {
        while ends.wait().is_ok() {
            tell.send(Message::Signalled).ok();
        }
    })
}

impl Supervisor {
    fn boot(&mut self, failure: Option<String>) {
        match failure {
            None => self.step(Input::Boot),
            Some(message) => {
                console::say(&format!("no pod: {message}"));
                self.pod.events.add(EventKind::PodFailed { message });
            }
        }
    }

    fn work(&mut self) -> ! {
        loop {
            let message = match self.machine.deadline() {
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(at) => self.inbox.recv_timeout(Duration::from_millis(at.saturating_sub(self.now()))),
            };
            match message {
                Ok(Message::Input(input)) => self.step(input),
                Ok(Message::Reaped { index, run, exit }) => self.reaped(index, run, exit),
                Ok(Message::Signalled) => self.stop("signal"),
                Ok(Message::HelperDied(why)) => self.stop(why),
                Err(RecvTimeoutError::Timeout) => self.step(Input::Tick),
                // This thread holds a sender itself, so this does not happen.
                Err(RecvTimeoutError::Disconnected) => self.finish(),
            }
        }
    }

    /// Milliseconds since the supervisor began.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn stop(&mut self, why: &str) {
        console::say(&format!("stopping: {why}"));
        let grace_ms = self.pod.plan.as_ref().map_or(0, |plan| plan.grace_ms);
        self.step(Input::Stop { grace_ms });
    }

    fn step(&mut self, input: Input) {
        let now = self.now();
        let effects = self.machine.step(input, now);
        // Whoever hears of an event and asks for the state gets one that is no older.
        self.pod.set_status(self.machine.status(epoch_ms(now)));
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Create { index, run } => self.create(index, run),
            Effect::Start { index } => {
                if let Some(go) = self.pending.get_mut(index).and_then(Option::take) {
                    go.send(create::Go).ok();
                }
            }
            Effect::Terminate { index } => {
                self.pod.members[index].signal(libc::SIGTERM);
            }
            Effect::Kill { index } => {
                self.pending[index] = None;
                Cgroup::container(self.name(index)).kill();
            }
            Effect::Emit(kind) => {
                note(&kind);
                self.pod.events.add(kind);
            }
            Effect::Ended { index, exit } => self.pod.members[index].hub.finish(exit),
            Effect::Finish => self.finish(),
        }
    }

    fn name(&self, index: usize) -> &magikvm_proto::id::ContainerName {
        &self.plan(index).name
    }

    fn plan(&self, index: usize) -> &ContainerPlan {
        &self.pod.members[index].plan
    }

    fn create(&mut self, index: usize, run: u32) {
        let (go, wait) = channel();
        self.pending[index] = Some(go);
        let task = create::Creation {
            pod: Arc::clone(&self.pod),
            pump: Arc::clone(&self.pump),
            tell: self.tell.clone(),
            index,
            run,
            pod_namespace: self.pod_namespace,
        };
        if let Err(error) = sync::thread("create", move || task.carry_out(&wait)) {
            let news = News::Failed { message: format!("no thread: {error}") };
            self.tell.send(Message::Input(Input::Container { index, run, news })).ok();
        }
    }

    /// A container counts as ended when nothing of it runs any more.
    fn reaped(&mut self, index: usize, run: u32, mut exit: ExitStatus) {
        self.pod.members[index].ended(run);
        // A run that failed to start may be reaped when the next one is being made in the same cgroup.
        if self.machine.run(index) != Some(run) {
            return;
        }
        let cgroup = Cgroup::container(self.name(index));
        cgroup.kill();
        if !cgroup.wait_empty(Instant::now() + REST_WAIT) {
            console::say(&format!("container {}: a process does not die", self.name(index)));
        }
        exit.oom_killed = cgroup.oom_kills() > 0;
        cgroup.remove();
        self.step(Input::Container { index, run, news: News::Ended(exit) });
    }

    /// Hands over what is left and ends the VM.
    fn finish(&mut self) -> ! {
        self.pod.events.wait_heard(Instant::now() + Duration::from_millis(GUEST_HEARD_WAIT_MS));
        self.pod.logs.close();
        self.pod.logs.wait_finished(Instant::now() + Duration::from_millis(GUEST_LOG_DRAIN_MS));
        self.pod.events.close(Instant::now() + EVENTS_WAIT);
        power::end_vm();
    }
}

/// The time since 1970, in milliseconds, at which the supervisor's clock showed 0, as long as nobody sets this guest's clock.
fn epoch_ms(now: u64) -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_sub(now)
}

/// The few events that belong on the console, for a host that never gets to the agent.
fn note(kind: &EventKind) {
    if let EventKind::ContainerFailed { container, message, .. } = kind {
        console::say(&format!("container {container}: {message}"));
    }
}
