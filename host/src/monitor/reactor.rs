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
use super::unwritten::Overflow;
use super::watchers;
use crate::agent::Connector;
use crate::net::relay::{News, Relay};
use crate::pod::events::{ClockReason, EventLog, HostEvent, PodEvent};
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::pod::launch::FromMonitor;
use crate::pod::logs::LogLimits;
use crate::pod::pull::{Pull, PullRequest};
use crate::pod::run::{Awaited, Observer, Pod, RunRequest, panic_message};
use crate::pod::status;
use crate::pod::step::{Effect, Input, Machine, PauseRequest, StartWaits};
use crate::runtime::{Sandbox, SandboxControl};
use crate::store::atomic::FileError;
use crate::store::layout::PodDir;
use crate::store::record::{self, Broken, PodState, Stage};
use crate::store::sandbox::{self, ProcessRef, SandboxFailure};
use crate::store::text::{chain, ignore};
use magikvm_proto::budget;
use magikvm_proto::id::ContainerName;
use magikvm_proto::lifecycle::Role;
use magikvm_proto::limits::MAX_MESSAGE_LEN;
use magikvm_proto::text::cut;
use magikvm_proto::wire::{Event, EventKind};
use nix::sys::signal::{SigSet, Signal};
use std::error::Error;
use std::io::PipeWriter;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Lines of the console that a failure carries: enough for a kernel panic with its stack.
const CONSOLE_LINES: usize = 32;

/// Capacity of the loop's queue. Senders wait when it is full, so that a guest cannot fill memory with events.
const MAX_WAITING: usize = 32;

/// Time after which a state that could not be written is written again.
const SAVE_RETRY: Duration = Duration::from_secs(1);

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
    /// Of the present VM.
    life: Arc<Life>,
    first_boot: Option<Instant>,
    /// The warnings that the client has had. The preparation of a second boot gives the same again.
    warned: Vec<String>,
    relay: Option<Relay>,
    log_limits: LogLimits,
    /// How clients' requests for the agent reach it, once there is one.
    agent: Agent,
    /// The last state written, so that a flood of events without a change writes nothing.
    written: Option<PodState>,
    saved: Option<Instant>,
    /// The state could not be written.
    is_unsaved: bool,
    /// Open from the first event on.
    events: Option<EventLog>,
    /// The watch over the pod's directory, until the pod is over.
    directory: Option<PipeWriter>,
}

#[derive(Debug)]
struct SandboxView {
    agent: Connector,
    lines: Arc<Lines>,
    control: Arc<dyn SandboxControl>,
    events: EventLog,
    clock: SyncSender<ClockReason>,
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
    Pulled(Vec<Pull>),
    BootAgain,
    Ready,
    Failed(Box<Failure>),
    Ended,
}

impl<'a> Reactor<'a> {
    /// Starts to listen for signals and for the client's cancellation.
    pub(super) fn new(link: &'a Link, request: &RunRequest) -> std::io::Result<Self> {
        let plan = &request.plan;
        let (outbox, inbox) = sync_channel(MAX_WAITING);
        let containers = plan.containers.iter().map(|container| (container.name.clone(), container.role));
        let grace_ms = plan.grace_seconds * 1000;
        watch_signals(outbox.clone(), grace_ms)?;
        let cancel = outbox.clone();
        link.watch(move || {
            ignore(cancel.send(Message::Input(Input::Cancel)), "the loop is over");
        })?;
        let waits = StartWaits { first_boot_ms: first_boot_wait_ms(), ready_ms: request.ready_wait_ms };
        let machine = Machine::new(containers, waits, grace_ms);
        Ok(Self {
            link,
            machine,
            inbox,
            outbox,
            deadline: None,
            waiting: Vec::new(),
            puller: None,
            sandbox: None,
            life: Arc::default(),
            first_boot: None,
            warned: Vec::new(),
            relay: None,
            log_limits: LogLimits::of(request.logs.or(plan.logs), plan.containers.len()),
            agent: Agent::default(),
            written: None,
            saved: None,
            is_unsaved: false,
            events: None,
            directory: None,
        })
    }

    /// Reports that the pod runs, runs the loop until the pod has ended, and removes all but its record. Returns the pod's exit code.
    pub(super) fn run_to_end(&mut self, pod: &mut Pod) -> i32 {
        self.link.send(&FromMonitor::Ready);
        let looped = catch_unwind(AssertUnwindSafe(|| {
            while !matches!(self.turn(&pod.dir), Outcome::Ended | Outcome::Failed(_)) {}
        }));
        self.directory = None;
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
        self.events.iter().for_each(EventLog::finish);
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
            self.tell_client(&input);
            if let Input::Guest(Event { kind: EventKind::PodEnded, .. }) = input {
                self.directory = None;
            }
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

    /// Tells the client that waits for the start how far it is.
    fn tell_client(&self, input: &Input) {
        if self.machine.state.stage != Stage::Starting {
            return;
        }
        if let Input::AgentUp = input {
            self.link.send_if_room(&FromMonitor::Begun);
        }
        if let Input::Guest(Event {
            kind: EventKind::ContainerStarted { container, restart_count: 0, .. },
            ..
        }) = input
        {
            let all = self.machine.state.containers.iter().filter(|one| one.role != Role::Main);
            let (of, at) = (all.clone().count(), all.clone().position(|one| one.name == *container));
            if let Some(number) = at.map(|at| at + 1) {
                let container = container.clone();
                self.link.send_if_room(&FromMonitor::Initializing { container, number, of });
            }
        }
    }

    /// Nothing leads to a sandbox that is gone, while the pod goes on.
    fn forget_sandbox(&mut self, dir: &PodDir) {
        self.sandbox = None;
        self.agent.clear();
        self.machine.state.agent = None;
        self.machine.state.processes.retain(|process| process.role == sandbox::Role::Monitor);
        self.save(dir);
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
        loop {
            let until = [self.deadline, self.chores()].into_iter().flatten().min();
            let received = match until {
                Some(until) => self.inbox.recv_timeout(until.saturating_duration_since(Instant::now())),
                None => self.inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            // The loop holds a sender itself, so that the channel cannot be disconnected.
            if let Ok(message) = received {
                return message;
            }
            if self.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                self.deadline = None;
                return Message::Input(Input::Deadline);
            }
            self.save(dir);
            self.events.iter().for_each(EventLog::catch_up);
        }
    }

    /// When something has to be written although nothing happens.
    fn chores(&self) -> Option<Instant> {
        let save = self.is_unsaved.then(|| Instant::now() + SAVE_RETRY);
        let events = self.events.as_ref().and_then(EventLog::due);
        [save, events].into_iter().flatten().min()
    }

    /// The pod's events. The file has only one writer.
    fn events(&mut self, dir: &PodDir) -> Result<EventLog, FileError> {
        if let Some(events) = &self.events {
            return Ok(events.clone());
        }
        let events = EventLog::open(dir)?;
        self.events = Some(events.clone());
        Ok(events)
    }

    fn carry_out(&mut self, effects: Vec<Effect>) -> Option<Outcome> {
        let mut outcome = None;
        for effect in effects {
            match effect {
                Effect::ShowProgress { image, progress } => {
                    self.link.send_if_room(&FromMonitor::Pulling { image, progress })
                }
                Effect::EndPuller(how) => self.puller.iter().for_each(|puller| puller.end(how)),
                Effect::Pulled(pulls) => outcome = Some(Outcome::Pulled(pulls)),
                Effect::Ready => outcome = Some(Outcome::Ready),
                Effect::BootAgain => outcome = Some(Outcome::BootAgain),
                Effect::Warn { message } => self.link.send(&FromMonitor::Warning { message }),
                Effect::Fail(failure) => outcome = Some(Outcome::Failed(failure)),
                Effect::End => outcome = Some(Outcome::Ended),
                Effect::Arm { after_ms } => {
                    self.deadline = Some(Instant::now() + Duration::from_millis(after_ms))
                }
                Effect::Disarm => self.deadline = None,
                Effect::Shutdown { grace_ms } => {
                    if let Some(sandbox) = &self.sandbox {
                        let (lines, life) = (Arc::clone(&sandbox.lines), Arc::clone(&self.life));
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

    /// Writes the state if it has changed. A failed write does not end the pod and is repeated, because a full disk may have room later.
    fn save(&mut self, dir: &PodDir) {
        // A pod whose images are being pulled has no record yet, and a state without a record would outlive a crash.
        let is_pulling = self.machine.state.stage == Stage::Pulling;
        if is_pulling || self.written.as_ref() == Some(&self.machine.state) {
            return;
        }
        self.saved = Some(Instant::now());
        self.is_unsaved = record::write_state(&dir.state_json(), &self.machine.state).is_err();
        if !self.is_unsaved {
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
        self.directory = Some(watchers::directory(dir, self.outbox.clone()).map_err(failed())?);
        Ok(())
    }

    fn pull(&mut self, dir: &PodDir, request: &PullRequest) -> Result<Vec<Pull>, Failure> {
        self.puller = Some(Puller::start(request, &self.outbox)?);
        let effects = self.machine.step(Input::PullBegun, record::now_ms());
        debug_assert!(effects.is_empty());
        let outcome = self.turn(dir);
        // The puller has sent its last message.
        self.puller = None;
        match outcome {
            Outcome::Pulled(pulls) => Ok(pulls),
            Outcome::Failed(failure) => Err(*failure),
            Outcome::Ready | Outcome::BootAgain | Outcome::Ended => Err(out_of_order()),
        }
    }

    fn note(&mut self, dir: &PodDir, event: HostEvent) {
        if let Ok(events) = self.events(dir) {
            events.write(PodEvent::Host(event));
        }
    }

    fn warn(&mut self, dir: &PodDir, message: &str) {
        if self.warned.iter().any(|had| had == message) {
            return;
        }
        self.warned.push(message.to_owned());
        self.link.send(&FromMonitor::Warning { message: message.to_owned() });
        self.note(dir, HostEvent::Warning { message: message.to_owned() });
    }

    fn await_ready(&mut self, pod: &mut Pod, mut sandbox: Box<dyn Sandbox>) -> Result<Awaited, Failure> {
        let is_first = self.first_boot.is_none();
        let began = *self.first_boot.get_or_insert_with(Instant::now);
        let since_first_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.life.begin();
        let running = sandbox.running();
        let (agent, control, console) = (running.agent().clone(), running.control(), running.console());
        let (layers, network) = (running.layers(), running.network());
        let state = &mut self.machine.state;
        state.pod_ips = network.addresses;
        state.host_ip = network.host_address;
        state.annotations.extend(status::jail_annotation(&layers));
        state.agent = Some(agent.clone());
        state.ports.clone_from(&pod.ports.bound);
        state.processes = control.processes().to_vec();
        state.processes.extend(ProcessRef::of_this_process(sandbox::Role::Monitor, "monitor"));
        let names: Vec<ContainerName> =
            state.containers.iter().map(|container| container.name.clone()).collect();
        let started = self.machine.step(Input::SandboxStarted { since_first_ms }, record::now_ms());
        debug_assert!(matches!(started[..], [Effect::Arm { .. }]));
        self.carry_out(started);
        let events = self.events(&pod.dir).map_err(failed())?;
        if let Some(reports) = network.reports {
            watchers::refusals(reports, events.clone(), &self.outbox).map_err(failed())?;
        }
        let lines = Lines::new(&agent);
        let life = Arc::clone(&self.life);
        if let Some(disk) = sandbox.disk() {
            watchers::disk(disk, Arc::clone(&life), &self.outbox).map_err(failed())?;
        }
        let writers = watchers::logs(&pod.dir, &names, self.log_limits).map_err(failed())?;
        let overflow = Overflow {
            link: self.link.clone(),
            events: events.clone(),
            names,
            told: Vec::new(),
            is_stalled: false,
        };
        let logs = watchers::Logs { writers, overflow };
        watchers::start(
            sandbox,
            &pod.dir,
            logs,
            events.clone(),
            Arc::clone(&lines),
            Arc::clone(&life),
            self.outbox.clone(),
        )
        .map_err(failed())?;
        for (process, layers) in &layers {
            if is_first && !layers.missing.is_empty() {
                let (process, missing) = (process.clone(), layers.missing.clone());
                events.write(PodEvent::Host(HostEvent::Jail { process, missing }));
            }
            if let Some(why) = &layers.fewer_ids {
                let message = format!("files of other users on hostPath volumes belong to nobody: {why}");
                events.write(PodEvent::Host(HostEvent::Warning { message }));
            }
        }
        let clock = clock::start(Arc::clone(&lines), events.clone(), Arc::clone(&life), &self.outbox);
        let clock = clock.map_err(failed())?;
        if is_first {
            clock::watch_host(self.outbox.clone()).map_err(failed())?;
            // The way to the agent of a second VM is the same.
            broker::listen(&pod.dir, agent.clone(), life, &self.outbox).map_err(failed())?;
        }
        self.agent.set(Arc::clone(&lines));
        self.sandbox = Some(SandboxView { agent, lines, control, events, clock });
        self.save(&pod.dir);
        match self.turn(&pod.dir) {
            Outcome::Ready => self.open_ports(pod).map(|()| Awaited::Ready),
            Outcome::BootAgain => {
                self.forget_sandbox(&pod.dir);
                Ok(Awaited::Silent)
            }
            Outcome::Failed(mut failure) => {
                if matches!(failure.stage, RunStage::Boot | RunStage::Agent) {
                    failure.trace.console = console.lines(CONSOLE_LINES);
                }
                if failure.reason == Some(SandboxFailure::NetworkFailed) {
                    failure.trace.network = network.messages.lines(CONSOLE_LINES);
                }
                let has_story = match failure.stage {
                    RunStage::Agent | RunStage::Container => true,
                    RunStage::Boot => self.machine.boots_again(),
                    _ => false,
                };
                if has_story {
                    self.events.iter().for_each(EventLog::finish);
                    trace::add(&mut failure, &pod.dir, &self.machine.state);
                }
                Err(*failure)
            }
            Outcome::Pulled(_) | Outcome::Ended => Err(out_of_order()),
        }
    }
}

/// How long a first boot may be silent. Tests with the fake VM set less (`MAGIKVM_FIRST_BOOT_WAIT_MS`).
fn first_boot_wait_ms() -> u64 {
    #[cfg(feature = "testing")]
    if let Some(set) = std::env::var("MAGIKVM_FIRST_BOOT_WAIT_MS").ok().and_then(|text| text.parse().ok()) {
        return set;
    }
    budget::HOST_FIRST_BOOT_WAIT_MS
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
