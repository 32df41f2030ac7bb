//! Carries out what [`machine`](crate::machine) decides. Owns: the main thread. It alone turns decisions into processes; everything
//! that may block for long happens on a separate thread.

use crate::extension::{Around, Extension, Extensions};
use crate::handler::{self, Outcome, Purpose, Target};
use crate::interface::{Containers, Home, Subject};
use crate::machine::{Effect, Handled, Input, Machine, News, Task};
use crate::message::Message;
use crate::output::attach::Hub;
use crate::output::buffer::LogBuffer;
use crate::output::pump::Pump;
use crate::pod::Pod;
use crate::{agent, create, forward, sync};
use magikvm_proto::budget::{GUEST_HEARD_WAIT_MS, GUEST_LOG_DRAIN_MS};
use magikvm_proto::lifecycle::MAX_PROBE_SECS;
use magikvm_proto::plan::{ContainerPlan, GuestPlan};
use magikvm_proto::wire::{EventKind, ExitStatus};
use nix::sys::signal::{SigSet, Signal};
use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant, SystemTime};

/// How long the killed rest of a container may take to end after its PID 1.
const REST_WAIT: Duration = Duration::from_millis(500);
/// The longest time of a hook that has no other limit.
const LONGEST_TASK: Duration = Duration::from_secs(MAX_PROBE_SECS);
/// How often requests to end are looked for while the host is waited for.
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How long readers may take for the last events.
const EVENTS_WAIT: Duration = Duration::from_millis(200);

struct Supervisor {
    pod: Arc<Pod>,
    machine: Machine,
    started: Instant,
    inbox: Receiver<Message>,
    tell: Sender<Message>,
    pump: Arc<Pump>,
    /// The threads that wait to start a created container; dropping an entry cancels it.
    pending: Vec<Option<Sender<create::Go>>>,
    /// Probes and hooks that are being run; dropping an entry cancels it.
    tasks: HashMap<(usize, Task), handler::Running>,
    extensions: Extensions,
    /// A process that it can't work without has died.
    is_broken: bool,
}

/// Signals that ask the supervisor to end. They are blocked in the calling thread and in all that it starts from now on, so that only the
/// thread that waits for them gets them. Must be called before the first thread.
pub fn block_signals() -> io::Result<()> {
    Ok(ends().thread_block()?)
}

fn ends() -> SigSet {
    [Signal::SIGTERM, Signal::SIGINT].into_iter().collect()
}

/// Runs a pod to its end, or reports why it can't run (the error text instead of a plan), and ends the surroundings. Returns only if no
/// thread can be started. [`block_signals`] must have been called. The extensions are dropped if there is no plan.
pub fn run(
    plan: Result<GuestPlan, String>,
    extensions: Vec<Box<dyn Extension>>,
    containers: Arc<dyn Containers>,
    home: Arc<dyn Home>,
) -> io::Result<()> {
    let (tell, inbox) = channel();
    forward_signals(ends(), tell.clone())?;
    let died = tell.clone();
    containers.begin(Box::new(move |what, exit| drop(died.send(Message::HelperDied { what, exit }))))?;
    let (plan, failure) = match plan {
        Ok(plan) => (Some(plan), None),
        Err(failure) => (None, Some(failure)),
    };
    let logs = Arc::new(LogBuffer::new()?);
    let pod = Arc::new(Pod::new(plan, Arc::clone(&logs), containers, Arc::clone(&home), tell.clone()));
    let hubs: Vec<Arc<Hub>> = pod.members.iter().map(|member| Arc::clone(&member.hub)).collect();
    let drained = tell.clone();
    let noting = Arc::clone(&home);
    let pump = Pump::start(
        logs,
        hubs,
        move |text| noting.note(text),
        move |index, run, tail| {
            let news = News::Drained { tail };
            drained.send(Message::Input(Input::Container { index, run, news })).ok();
        },
    )?;
    let extensions = start_extensions(extensions, &pod);
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
        tasks: HashMap::new(),
        extensions,
        is_broken: false,
    };
    supervisor.boot(failure);
    agent::start(pod)?;
    forward::start(home)?;
    supervisor.work()
}

fn start_extensions(extensions: Vec<Box<dyn Extension>>, pod: &Arc<Pod>) -> Extensions {
    let Some(plan) = pod.plan.clone() else { return Extensions::default() };
    let (seen, told) = (Arc::clone(pod), Arc::clone(pod));
    let failed = move |extension: &'static str, message: String| {
        told.home.note(&format!("extension {extension} {message}"));
        told.events.add(EventKind::ExtensionFailed { extension: extension.to_owned(), message });
    };
    let states = move || seen.status();
    Extensions::start(extensions, Around { plan, states: Box::new(states), failed: Box::new(failed) })
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
                self.pod.home.note(&format!("cannot run the pod: {message}"));
                self.pod.events.add(EventKind::PodFailed { message, killed: false });
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
                Ok(Message::HelperDied { what, exit }) => self.broken(what, exit),
                Err(RecvTimeoutError::Timeout) => self.step(Input::Tick),
                // This thread holds a sender itself, so the channel never closes.
                Err(RecvTimeoutError::Disconnected) => self.finish(),
            }
        }
    }

    /// Milliseconds since the supervisor began.
    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn stop(&mut self, why: &str) {
        self.pod.home.note(&format!("stopping: {why}"));
        let grace_ms = self.pod.plan.as_ref().map_or(0, |plan| plan.grace_ms);
        self.step(Input::Stop { grace_ms });
    }

    /// Without this process no container can be made and no end be seen, so that the pod ends. The first such death is told, because it may be the
    /// cause of the others.
    fn broken(&mut self, what: &str, exit: ExitStatus) {
        let message = how_ended(what, exit);
        if !std::mem::replace(&mut self.is_broken, true) {
            let killed = exit.signal.is_some();
            self.pod.events.add(EventKind::PodFailed { message: message.clone(), killed });
        }
        self.stop(&message);
    }

    fn step(&mut self, input: Input) {
        if let Input::Container { index, news: News::Handled { task, .. }, .. } = &input {
            self.tasks.remove(&(*index, *task));
        }
        let now = self.now();
        let effects = self.machine.step(input, now);
        // A client that receives an event and then asks for the state must not get an older state.
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
            Effect::Handle { index, run, task, timeout_ms } => self.handle(index, run, task, timeout_ms),
            Effect::Cancel { index, task } => drop(self.tasks.remove(&(index, task))),
            Effect::Terminate { index } => {
                let member = &self.pod.members[index];
                member.signal(member.plan.stop_signal.number());
            }
            Effect::Kill { index } => {
                self.pending[index] = None;
                self.pod.containers.kill(Subject::Container(self.name(index)));
            }
            Effect::Emit(kind) => {
                self.note(&kind);
                // Before the last event, so that what is wrong with an extension is told.
                if kind == EventKind::PodEnded {
                    self.extensions.stop();
                } else {
                    self.extensions.tell(&kind);
                }
                self.pod.events.add(kind);
            }
            Effect::Ended { index, exit } => self.pod.members[index].hub.finish(exit),
            Effect::Finish => self.finish(),
        }
    }

    /// Logs the few events that a host needs even if it never reaches the agent.
    fn note(&self, kind: &EventKind) {
        if let EventKind::ContainerFailed { container, message, .. } = kind {
            self.pod.home.note(&format!("container {container}: {message}"));
        }
    }

    fn name(&self, index: usize) -> &magikvm_proto::id::ContainerName {
        &self.plan(index).name
    }

    fn plan(&self, index: usize) -> &ContainerPlan {
        &self.pod.members[index].plan
    }

    /// Begins a probe or a hook.
    fn handle(&mut self, index: usize, run: u32, task: Task, timeout_ms: u64) {
        let plan = self.plan(index);
        let (handler, purpose) = match task {
            Task::Hook(kind) => (plan.hooks.get(kind), Purpose::Hook),
            Task::Probe(kind) => (plan.probes.get(kind).map(|probe| &probe.handler), Purpose::Probe),
        };
        let Some(handler) = handler else { return };
        let tell = self.tell.clone();
        let done = move |outcome| {
            let answer = match outcome {
                Outcome::Success => Handled::Success,
                Outcome::Failure(message) => Handled::Failure(message),
                Outcome::Error(message) => Handled::Error(message),
            };
            let news = News::Handled { task, answer };
            tell.send(Message::Input(Input::Container { index, run, news })).ok();
        };
        let target = Target { pod: &self.pod, container: &plan.name, purpose };
        let timeout = Duration::from_millis(timeout_ms).min(LONGEST_TASK);
        let running = handler::run(handler, target, timeout, done);
        self.tasks.insert((index, task), running);
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
        };
        if let Err(error) = sync::thread("create", move || task.carry_out(&wait)) {
            let news = News::Failed { program: None, message: format!("cannot start a thread: {error}") };
            self.tell.send(Message::Input(Input::Container { index, run, news })).ok();
        }
    }

    /// A container counts as ended when nothing of it runs any more.
    fn reaped(&mut self, index: usize, run: u32, mut exit: ExitStatus) {
        self.pod.members[index].ended(run);
        // A run that failed to start may be reaped while the next one is being made in the same cgroup.
        if self.machine.run(index) != Some(run) {
            return;
        }
        let subject = Subject::Container(self.name(index));
        self.pod.containers.kill(subject);
        let gone = self.pod.containers.await_gone(subject, Instant::now() + REST_WAIT);
        if !gone.completely {
            self.pod.home.note(&format!("container {}: a killed process has not ended", self.name(index)));
        }
        exit.oom_killed = gone.oom_killed;
        let message = self.pod.containers.termination_message(self.name(index));
        self.step(Input::Container { index, run, news: News::Ended { exit, message } });
    }

    /// Waits until the host has heard of the end. Whoever asks the pod to end now has heard of it, or has no need to.
    fn await_heard(&self) {
        let deadline = Instant::now() + Duration::from_millis(GUEST_HEARD_WAIT_MS);
        while Instant::now() < deadline && !self.pod.events.wait_heard(Instant::now() + ASK_EVERY) {
            let asked = |message| {
                matches!(
                    message,
                    Message::Signalled | Message::HelperDied { .. } | Message::Input(Input::Stop { .. })
                )
            };
            if self.inbox.try_iter().any(asked) {
                return;
            }
        }
    }

    /// Hands over the remaining output and events and ends the surroundings.
    fn finish(&mut self) -> ! {
        self.await_heard();
        self.pod.logs.close();
        self.pod.logs.wait_finished(Instant::now() + Duration::from_millis(GUEST_LOG_DRAIN_MS));
        self.pod.events.close(Instant::now() + EVENTS_WAIT);
        self.pod.home.end();
    }
}

/// The time since 1970, in milliseconds, at which the supervisor's clock showed 0, unless the clock is set later.
fn epoch_ms(now: u64) -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX).saturating_sub(now)
}

fn how_ended(what: &str, exit: ExitStatus) -> String {
    match exit.signal {
        Some(number) => match Signal::try_from(number) {
            Ok(signal) => format!("{what} was killed by {signal}"),
            Err(_) => format!("{what} was killed by signal {number}"),
        },
        None => format!("{what} exited with {}", exit.code),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_helper_is_told_in_words() {
        assert_eq!(how_ended("the spawner", ExitStatus::signaled(9)), "the spawner was killed by SIGKILL");
        assert_eq!(how_ended("the spawner", ExitStatus::exited(1)), "the spawner exited with 1");
    }
}
