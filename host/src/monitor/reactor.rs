//! The event loop: feeds the pod's state machine and carries its effects out. It runs on the thread whose death would end the VMM.

use super::broker;
use super::clock;
use super::control::{self, Agent};
use super::life::Life;
use super::lines::Lines;
use super::link::Link;
use super::message::{Answer, LifeRequest, Message, spawn};
use super::puller::Puller;
use super::trace;
use super::watchers;
use crate::agent::Connector;
use crate::net::relay::{News, Relay};
use crate::pod::events::{ClockReason, EventLog, HostEvent, PodEvent};
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::pod::launch::FromMonitor;
use crate::pod::logs::LogLimits;
use crate::pod::pull::PullRequest;
use crate::pod::run::{Observer, Pod, RunRequest, panic_message};
use crate::pod::status;
use crate::pod::step::{Effect, Input, Machine, PauseRequest};
use crate::runtime::{Sandbox, SandboxControl};
use crate::store::layout::PodDir;
use crate::store::record::{self, Broken, PodState, Stage};
use crate::store::sandbox::{ProcessRef, Role, SandboxFailure};
use crate::store::text::{chain, ignore};
use magikvm_proto::budget;
use magikvm_proto::id::ContainerName;
use magikvm_proto::limits::MAX_MESSAGE_LEN;
use magikvm_proto::text::cut;
use nix::sys::signal::{SigSet, Signal};
use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Lines of the console that a failure carries: enough for a kernel panic with its stack.
const CONSOLE_LINES: usize = 32;

/// Capacity of the loop's queue. Senders wait when it is full, so that a guest cannot fill memory with events.
const MAX_WAITING: usize = 32;

/// Interval for writing the state while messages arrive without a pause.
const SAVE_INTERVAL: Duration = Duration::from_millis(100);

/// A client that waits for an answer.
#[derive(Debug)]
struct Waiter {
    /// The request; `None` means the pod's end.
    request: Option<PauseRequest>,
    done: Sender<Answer>,
}

impl Waiter {
    fn answer(self, answer: Answer) {
        ignore(self.done.send(answer), "the client has gone");
    }
}

#[derive(Debug)]
pub(super) struct Reactor<'a> {
    link: &'a Link,
    machine: Machine,
    inbox: Receiver<Message>,
    outbox: SyncSender<Message>,
    deadline: Option<Instant>,
    waiting: Vec<Waiter>,
    /// Set until the puller's last message or its end.
    puller: Option<Puller>,
    sandbox: Option<SandboxView>,
    relay: Option<Relay>,
    log_limits: LogLimits,
    /// How clients' requests for the agent reach it, once there is one.
    agent: Agent,
    /// The last state written, so that a flood of events without a change writes nothing.
    written: Option<PodState>,
    saved: Option<Instant>,
}

#[derive(Debug)]
struct SandboxView {
    agent: Connector,
    lines: Arc<Lines>,
    control: Arc<dyn SandboxControl>,
    events: EventLog,
    clock: SyncSender<ClockReason>,
    life: Arc<Life>,
}

impl SandboxView {
    fn carry_out(&self, effect: Effect) {
        match effect {
            Effect::Kill => self.control.kill(),
            Effect::Pause => self.control.pause(),
            Effect::Resume => self.control.resume(),
            Effect::TellTime(reason) => {
                ignore(self.clock.try_send(reason), "the guest is about to be told anyway")
            }
            Effect::Note(event) => self.events.write(PodEvent::Host(event)),
            _ => {}
        }
    }
}

enum Outcome {
    Pulled,
    Ready,
    Failed(Box<Failure>),
    Ended,
}

impl<'a> Reactor<'a> {
    /// Starts to listen for signals and for the client's cancellation.
    pub(super) fn new(link: &'a Link, request: &RunRequest) -> std::io::Result<Self> {
        let plan = &request.plan;
        let (outbox, inbox) = sync_channel(MAX_WAITING);
        let names: Vec<ContainerName> =
            plan.containers.iter().map(|container| container.name.clone()).collect();
        let grace_ms = plan.grace_seconds * 1000;
        watch_signals(outbox.clone(), grace_ms)?;
        let cancel = outbox.clone();
        link.watch(move || {
            ignore(cancel.send(Message::Input(Input::Cancel)), "the loop is over");
        })?;
        let machine = Machine::new(&names, request.ready_wait_ms);
        Ok(Self {
            link,
            machine,
            inbox,
            outbox,
            deadline: None,
            waiting: Vec::new(),
            puller: None,
            sandbox: None,
            relay: None,
            log_limits: LogLimits::of(request.logs.or(plan.logs), plan.containers.len()),
            agent: Agent::default(),
            written: None,
            saved: None,
        })
    }

    /// Reports that the pod runs, runs the loop until the pod has ended, and removes all but its record. Returns the pod's exit code.
    pub(super) fn run_to_end(&mut self, pod: &mut Pod) -> i32 {
        self.link.send(&FromMonitor::Ready);
        let looped = catch_unwind(AssertUnwindSafe(|| {
            while !matches!(self.turn(&pod.dir), Outcome::Ended | Outcome::Failed(_)) {}
        }));
        if let Err(panic) = looped {
            self.give_up(&panic_message(&*panic));
        }
        if let Some(relay) = self.relay.take() {
            relay.drain();
        }
        if let Err(error) = pod.undo.end_run() {
            self.machine.state.broken.get_or_insert_with(|| Broken {
                reason: SandboxFailure::Leftover,
                message: format!("not all of the pod could be removed: {error}"),
            });
        }
        self.machine.state.processes.clear();
        self.machine.state.agent = None;
        self.machine.state.ports.clear();
        self.save(&pod.dir);
        for waiter in std::mem::take(&mut self.waiting) {
            let answer = waiter.request.and_then(|request| self.machine.outcome(request)).unwrap_or(Ok(()));
            waiter.answer(answer);
        }
        status::exit_code(&self.machine.state)
    }

    /// Ends a running pod without its guest's help. What it leaves is removed as after every end.
    fn give_up(&mut self, why: &str) {
        let effects = self.machine.end_at_once(why, record::now_ms());
        if let Some(sandbox) = &self.sandbox {
            sandbox.control.kill();
            effects.into_iter().for_each(|effect| sandbox.carry_out(effect));
        }
    }

    /// Handles messages until the machine leaves the loop.
    fn turn(&mut self, dir: &PodDir) -> Outcome {
        loop {
            let input = match self.next(dir) {
                Message::Input(input) => input,
                Message::Puller(Some(said)) => Input::Puller(said),
                Message::Puller(None) => match self.puller.take() {
                    Some(puller) => Input::PullerGone(puller.into_end()),
                    // The puller's last message came before its end.
                    None => continue,
                },
                Message::Panicked(name) => {
                    let why = format!("its thread {name:?} panicked");
                    if matches!(self.machine.state.stage, Stage::Starting | Stage::Pulling) {
                        Input::MonitorFailed { why }
                    } else {
                        // It may be the thread that waits for the sandbox's end.
                        self.give_up(&why);
                        return Outcome::Ended;
                    }
                }
                Message::Control { request, done } => self.on_request(request, done),
            };
            let effects = self.machine.step(input, record::now_ms());
            let outcome = self.carry_out(effects);
            self.answer_requests(dir);
            match outcome {
                None => {}
                Some(Outcome::Ready) => {
                    self.save(dir);
                    return Outcome::Ready;
                }
                Some(outcome) => return outcome,
            }
        }
    }

    /// Accepts connections to the pod's ports, including those that wait already.
    fn open_ports(&mut self, pod: &mut Pod) -> Result<(), Failure> {
        let doors = std::mem::take(&mut pod.ports.doors);
        let (false, Some(sandbox)) = (doors.is_empty(), &self.sandbox) else { return Ok(()) };
        // A connection that cannot be carried is reset, which tells the client enough; the user of the pod finds the reason here.
        let events = sandbox.events.clone();
        let tell = move |news| {
            if let News::Failed { port, error } = news {
                let message = cut(&chain(&error), MAX_MESSAGE_LEN).to_owned();
                events.write(PodEvent::Host(HostEvent::Connection { port, message }));
            }
        };
        let relay = Relay::start(doors, sandbox.agent.forwards(), tell).map_err(failed())?;
        self.relay = Some(relay);
        Ok(())
    }

    fn on_request(&mut self, request: LifeRequest, done: Sender<Answer>) -> Input {
        let (request, input) = match request {
            LifeRequest::Stop { grace_ms } => (None, Input::Stop { grace_ms }),
            LifeRequest::Motion(request) => (Some(request), Input::Request(request)),
        };
        self.waiting.push(Waiter { request, done });
        input
    }

    /// Answers the requests that were carried out or never can be, after the pod's state shows that.
    fn answer_requests(&mut self, dir: &PodDir) {
        let mut is_saved = false;
        for waiter in std::mem::take(&mut self.waiting) {
            match waiter.request.and_then(|request| self.machine.outcome(request)) {
                None => self.waiting.push(waiter),
                Some(answer) => {
                    if !is_saved {
                        self.save(dir);
                        is_saved = true;
                    }
                    waiter.answer(answer);
                }
            }
        }
    }

    /// Returns the next message. The state is written when the queue is empty, or else at intervals, so that a flood of events does not keep
    /// the disk busy.
    fn next(&mut self, dir: &PodDir) -> Message {
        // The deadline comes first, so that a guest cannot escape its end by a flood of events.
        if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            self.deadline = None;
            return Message::Input(Input::Deadline);
        }
        let at_hand = self.inbox.try_recv();
        if at_hand.is_err() || self.saved.is_none_or(|saved| saved.elapsed() > SAVE_INTERVAL) {
            self.save(dir);
        }
        if let Ok(message) = at_hand {
            return message;
        }
        let received = match self.deadline {
            Some(deadline) => self.inbox.recv_timeout(deadline.saturating_duration_since(Instant::now())),
            None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        // The loop holds a sender itself, so that the channel cannot be disconnected.
        received.unwrap_or_else(|_| {
            self.deadline = None;
            Message::Input(Input::Deadline)
        })
    }

    fn carry_out(&mut self, effects: Vec<Effect>) -> Option<Outcome> {
        let mut outcome = None;
        for effect in effects {
            match effect {
                Effect::ShowProgress { image, progress } => {
                    self.link.send_if_room(&FromMonitor::Pulling { image, progress })
                }
                Effect::EndPuller(how) => self.puller.iter().for_each(|puller| puller.end(how)),
                Effect::Pulled => outcome = Some(Outcome::Pulled),
                Effect::Ready => outcome = Some(Outcome::Ready),
                Effect::Fail(failure) => outcome = Some(Outcome::Failed(failure)),
                Effect::End => outcome = Some(Outcome::Ended),
                Effect::Arm { after_ms } => {
                    self.deadline = Some(Instant::now() + Duration::from_millis(after_ms))
                }
                Effect::Disarm => self.deadline = None,
                Effect::Shutdown { grace_ms } => {
                    if let Some(sandbox) = &self.sandbox {
                        let (lines, life) = (Arc::clone(&sandbox.lines), Arc::clone(&sandbox.life));
                        watchers::shut_down(lines, grace_ms, life, self.outbox.clone());
                    }
                }
                Effect::Kill | Effect::Pause | Effect::Resume | Effect::TellTime(_) | Effect::Note(_) => {
                    if let Some(sandbox) = &self.sandbox {
                        sandbox.carry_out(effect);
                    }
                }
            }
        }
        outcome
    }

    /// Writes the state if it has changed. A failed write does not end the pod, because a full disk may have room later.
    fn save(&mut self, dir: &PodDir) {
        // A pod whose images are being pulled has no record yet, and a state without a record would outlive a crash.
        let is_pulling = self.machine.state.stage == Stage::Pulling;
        if is_pulling || self.written.as_ref() == Some(&self.machine.state) {
            return;
        }
        self.saved = Some(Instant::now());
        if record::write_json(&dir.state_json(), &self.machine.state).is_ok() {
            self.written = Some(self.machine.state.clone());
        }
    }
}

/// Turns an error of the preparation into a failed run.
fn failed<E: Error + 'static>() -> impl Fn(E) -> Failure {
    Failure::at(RunStage::Prepare, Blame::Environment)
}

impl Observer for Reactor<'_> {
    fn reserved(&mut self, dir: &PodDir) -> Result<(), Failure> {
        control::listen(dir, self.agent.clone(), self.outbox.clone()).map_err(failed())?;
        watchers::directory(dir, self.outbox.clone()).map_err(failed())
    }

    fn pull(&mut self, dir: &PodDir, request: &PullRequest) -> Result<(), Failure> {
        self.puller = Some(Puller::start(request, &self.outbox)?);
        let effects = self.machine.step(Input::PullBegun, record::now_ms());
        debug_assert!(effects.is_empty());
        let outcome = self.turn(dir);
        // The puller has sent its last message.
        self.puller = None;
        match outcome {
            Outcome::Pulled => Ok(()),
            Outcome::Failed(failure) => Err(*failure),
            Outcome::Ready | Outcome::Ended => Err(out_of_order()),
        }
    }

    fn warn(&mut self, dir: &PodDir, message: &str) {
        self.link.send(&FromMonitor::Warning { message: message.to_owned() });
        if let Ok(events) = EventLog::open(dir) {
            events.write(PodEvent::Host(HostEvent::Warning { message: message.to_owned() }));
        }
    }

    fn await_ready(&mut self, pod: &mut Pod, mut sandbox: Box<dyn Sandbox>) -> Result<(), Failure> {
        let (agent, control, console) = (sandbox.agent().clone(), sandbox.control(), sandbox.console());
        let layers = sandbox.layers();
        let network = sandbox.network();
        let state = &mut self.machine.state;
        state.pod_ips = network.addresses;
        state.host_ip = network.host_address;
        state.annotations.extend(status::jail_annotation(&layers));
        state.agent = Some(agent.clone());
        state.ports.clone_from(&pod.ports.bound);
        state.processes = control.processes().to_vec();
        state.processes.extend(ProcessRef::of_this_process(Role::Monitor, "monitor"));
        let names: Vec<ContainerName> =
            state.containers.iter().map(|container| container.name.clone()).collect();
        self.deadline = Some(Instant::now() + Duration::from_millis(budget::HOST_BOOT_WAIT_MS));
        let events = EventLog::open(&pod.dir).map_err(failed())?;
        if let Some(reports) = network.reports {
            watchers::refusals(reports, events.clone(), &self.outbox).map_err(failed())?;
        }
        let lines = Lines::new(&agent);
        let life = watchers::start(
            sandbox,
            &pod.dir,
            &names,
            self.log_limits,
            events.clone(),
            Arc::clone(&lines),
            self.outbox.clone(),
        )
        .map_err(failed())?;
        for (process, layers) in &layers {
            if !layers.missing.is_empty() {
                let (process, missing) = (process.clone(), layers.missing.clone());
                events.write(PodEvent::Host(HostEvent::Jail { process, missing }));
            }
        }
        let clock = clock::start(Arc::clone(&lines), events.clone(), Arc::clone(&life), &self.outbox);
        let clock = clock.map_err(failed())?;
        clock::watch_host(self.outbox.clone()).map_err(failed())?;
        broker::listen(&pod.dir, agent.clone(), Arc::clone(&life), &self.outbox).map_err(failed())?;
        self.agent.set(Arc::clone(&lines));
        self.sandbox = Some(SandboxView { agent, lines, control, events, clock, life });
        self.save(&pod.dir);
        match self.turn(&pod.dir) {
            Outcome::Ready => self.open_ports(pod),
            Outcome::Failed(mut failure) => {
                if matches!(failure.stage, RunStage::Boot | RunStage::Agent) {
                    failure.trace.console = console.lines(CONSOLE_LINES);
                }
                if failure.reason == Some(SandboxFailure::NetworkFailed) {
                    failure.trace.network = network.messages.lines(CONSOLE_LINES);
                }
                if matches!(failure.stage, RunStage::Agent | RunStage::Container) {
                    trace::add(&mut failure, &pod.dir, &self.machine.state);
                }
                Err(*failure)
            }
            Outcome::Pulled | Outcome::Ended => Err(out_of_order()),
        }
    }
}

/// The machine leaves the loop for the stage that the flow waits for, or with a failure.
fn out_of_order() -> Failure {
    debug_assert!(false, "the machine left the loop for something else");
    Failure::message(RunStage::Boot, Blame::Internal, "the pod's monitor lost track of the pod")
}

/// TERM and INT to the monitor stop the pod with the pod's grace period. Must be called before any other thread is started, so that the
/// signals are blocked in all threads.
fn watch_signals(outbox: SyncSender<Message>, grace_ms: u64) -> std::io::Result<()> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    spawn("signals", &outbox.clone(), move || {
        while let Ok(signal) = set.wait() {
            let wanted = signal != Signal::SIGHUP;
            if wanted && outbox.send(Message::Input(Input::Stop { grace_ms })).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
