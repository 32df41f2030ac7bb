//! The event loop: feeds the pod's state machine and carries its effects out. One thread, which is also the one whose death would end
//! the VMM.

use super::clock;
use super::control;
use super::link::Link;
use super::watchers;
use crate::agent::Connector;
use crate::manifest::PodPlan;
use crate::net::relay::Relay;
use crate::pod::control::ControlRequest;
use crate::pod::events::{ClockReason, EventLog, Happening, HostEvent};
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::pod::launch::FromMonitor;
use crate::pod::pull::{FromPuller, PULLER_VERB, PullRequest};
use crate::pod::run::{Attendant, Pod};
use crate::pod::status;
use crate::pod::step::{Effect, Input, Machine, Wish};
use crate::process::{self, Process};
use crate::runtime::Sandbox;
use crate::store::layout::PodDir;
use crate::store::record::{self, Broken, PodState, Stage};
use crate::store::sandbox::SandboxFailure;
use crate::store::sandbox::{ProcessRef, Role};
use crate::vmm::console::ConsoleTail;
use magikvm_proto::budget;
use magikvm_proto::id::ContainerName;
use magikvm_proto::wire::{Refusal, RefusalCode};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, sync_channel};
use std::time::{Duration, Instant};

/// Lines of the console that a failure carries: enough for a panic of the kernel with its stack.
const CONSOLE_LINES: usize = 32;

/// Last lines of a puller's standard error that a failure carries: what a panic says, without its stack.
const COMPLAINT_LINES: usize = 4;
/// How long a puller that says nothing more may take to end.
const PULLER_END_WAIT: Duration = Duration::from_secs(1);

/// Messages that wait for the loop; whoever has one more waits too. A guest that sends events faster than they are written down fills no memory.
const MAX_WAITING: usize = 32;

/// While messages come without a pause, the state is written so often.
const SAVE_INTERVAL: Duration = Duration::from_millis(100);

/// What comes to the loop.
#[derive(Debug)]
pub(super) enum Message {
    /// For the state machine.
    Input(Input),
    /// From the process that pulls images; None is its end.
    Puller(Option<FromPuller>),
    /// A user's wish; answered through `done` when it has come true or never will.
    Control {
        /// Which.
        request: ControlRequest,
        /// Where to answer.
        done: Sender<Answer>,
    },
}

/// What a user's wish came to.
pub(super) type Answer = Result<(), Refusal>;

/// Somebody who waits for an answer.
#[derive(Debug)]
struct Waiter {
    /// For what; `None` for the pod's end.
    wish: Option<Wish>,
    done: Sender<Answer>,
}

impl Waiter {
    fn answer(self, answer: Answer) {
        if self.done.send(answer).is_err() {
            // Whoever waited has gone.
        }
    }
}

/// The loop and what it owns.
#[derive(Debug)]
pub(super) struct Reactor<'a> {
    link: &'a Link,
    machine: Machine,
    inbox: Receiver<Message>,
    outbox: SyncSender<Message>,
    deadline: Option<Instant>,
    waiting: Vec<Waiter>,
    sandbox: Option<SandboxView>,
    /// Carries connections to the pod's ports.
    relay: Option<Relay>,
    is_listening: bool,
    /// The state as it was written last, so that a flood of empty events writes nothing.
    written: Option<PodState>,
    saved: Option<Instant>,
}

#[derive(Debug)]
struct SandboxView {
    agent: Connector,
    /// Those of the machine; the guest's own first.
    processes: Vec<ProcessRef>,
    events: EventLog,
    clock: SyncSender<ClockReason>,
}

impl SandboxView {
    fn carry_out(&self, effect: Effect) {
        match effect {
            Effect::KillVm => self.processes.iter().for_each(ProcessRef::kill),
            // The guest's processors stand before what serves them does.
            Effect::StopVm => self.processes.iter().for_each(ProcessRef::stop),
            Effect::ContinueVm => self.processes.iter().rev().for_each(ProcessRef::go_on),
            Effect::TellTime(reason) => self.tell_time(reason),
            Effect::Note(event) => self.events.write(Happening::Host(event)),
            _ => {}
        }
    }

    fn tell_time(&self, reason: ClockReason) {
        if self.clock.try_send(reason).is_err() {
            // It is about to be told anyhow.
        }
    }
}

/// Why the loop was left.
enum Outcome {
    Ready,
    Failed(Box<Failure>),
    Ended,
}

impl<'a> Reactor<'a> {
    /// Listens for signals and for the starter's change of mind from now on.
    pub(super) fn new(link: &'a Link, plan: &PodPlan) -> nix::Result<Self> {
        let (outbox, inbox) = sync_channel(MAX_WAITING);
        let names: Vec<ContainerName> =
            plan.containers.iter().map(|container| container.name.clone()).collect();
        let grace_ms = plan.grace_seconds * 1000;
        watch_signals(outbox.clone(), grace_ms)?;
        let cancel = outbox.clone();
        link.watch(move || {
            if cancel.send(Message::Input(Input::Cancel)).is_err() {
                // The loop is over.
            }
        })
        .map_err(|error| nix::errno::Errno::from_raw(error.raw_os_error().unwrap_or(0)))?;
        let machine = Machine::new(&names);
        Ok(Self {
            link,
            machine,
            inbox,
            outbox,
            deadline: None,
            waiting: Vec::new(),
            sandbox: None,
            relay: None,
            is_listening: false,
            written: None,
            saved: None,
        })
    }

    /// Says that the pod runs, runs the loop until it has ended, and takes away all but its record. Returns the pod's exit code.
    pub(super) fn run_to_end(&mut self, pod: &mut Pod) -> i32 {
        self.link.send(&FromMonitor::Ready);
        while !matches!(self.turn(&pod.dir), Outcome::Ended | Outcome::Failed(_)) {}
        if let Some(relay) = self.relay.take() {
            relay.drain();
        }
        if let Err(error) = pod.undo.end_run() {
            self.machine.state.broken.get_or_insert_with(|| Broken {
                reason: SandboxFailure::Leftover,
                message: format!("not all of the pod could be taken away: {error}"),
            });
        }
        self.machine.state.processes.clear();
        self.machine.state.agent = None;
        self.machine.state.ports.clear();
        self.save(&pod.dir);
        for waiter in std::mem::take(&mut self.waiting) {
            let answer = waiter.wish.and_then(|wish| self.machine.outcome(wish)).unwrap_or(Ok(()));
            waiter.answer(answer);
        }
        status::exit_code(&self.machine.state)
    }

    /// Takes users' wishes from now on; again changes nothing.
    fn listen(&mut self, dir: &PodDir) -> Result<(), Failure> {
        if !self.is_listening {
            control::listen(dir, self.outbox.clone())
                .map_err(|error| Failure::new(RunStage::Prepare, Blame::Environment, &error))?;
            self.is_listening = true;
        }
        Ok(())
    }

    /// Takes messages until the machine wants the loop to be left.
    fn turn(&mut self, dir: &PodDir) -> Outcome {
        loop {
            let input = match self.next(dir) {
                Message::Input(input) => input,
                // Its last words, when all was said.
                Message::Puller(_) => continue,
                Message::Control { request, done } => self.on_request(request, done),
            };
            let effects = self.machine.step(input, record::now_ms());
            let outcome = self.carry_out(effects);
            self.answer_wishes(dir);
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

    /// Accepts those who have connected to the pod's ports, and all to come.
    fn open_ports(&mut self, pod: &mut Pod) -> Result<(), Failure> {
        let doors = std::mem::take(&mut pod.ports.doors);
        let (false, Some(sandbox)) = (doors.is_empty(), &self.sandbox) else { return Ok(()) };
        // A connection that cannot be carried is reset, which says enough to whoever made it.
        let relay = Relay::start(doors, sandbox.agent.forwards(), |_| {})
            .map_err(|error| Failure::new(RunStage::Prepare, Blame::Environment, &error))?;
        self.relay = Some(relay);
        Ok(())
    }

    fn on_request(&mut self, request: ControlRequest, done: Sender<Answer>) -> Input {
        let (wish, input) = match request {
            ControlRequest::Stop { grace_ms } => (None, Input::Stop { grace_ms }),
            ControlRequest::Pause => (Some(Wish::Pause), Input::Wish(Wish::Pause)),
            ControlRequest::Resume => (Some(Wish::Resume), Input::Wish(Wish::Resume)),
        };
        self.waiting.push(Waiter { wish, done });
        input
    }

    /// Answers the wishes that have come true, or never will, once that can be read in the pod's state.
    fn answer_wishes(&mut self, dir: &PodDir) {
        let mut is_saved = false;
        for waiter in std::mem::take(&mut self.waiting) {
            match waiter.wish.and_then(|wish| self.machine.outcome(wish)) {
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

    /// The next message. The state is written when there is none at hand, and else now and then: a guest that floods events keeps no disk busy.
    fn next(&mut self, dir: &PodDir) -> Message {
        // Before all else: a guest that floods events keeps nobody from ending it.
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
        // The loop holds a sender itself, so the channel can't be disconnected.
        received.unwrap_or_else(|_| {
            self.deadline = None;
            Message::Input(Input::Deadline)
        })
    }

    fn carry_out(&mut self, effects: Vec<Effect>) -> Option<Outcome> {
        let mut outcome = None;
        for effect in effects {
            match effect {
                Effect::Ready => outcome = Some(Outcome::Ready),
                Effect::Fail(failure) => outcome = Some(Outcome::Failed(failure)),
                Effect::End => outcome = Some(Outcome::Ended),
                Effect::Arm { after_ms } => {
                    self.deadline = Some(Instant::now() + Duration::from_millis(after_ms))
                }
                Effect::Disarm => self.deadline = None,
                Effect::Shutdown { grace_ms } => {
                    if let Some(sandbox) = &self.sandbox {
                        watchers::shut_down(sandbox.agent.clone(), grace_ms, self.outbox.clone());
                    }
                }
                Effect::KillVm
                | Effect::StopVm
                | Effect::ContinueVm
                | Effect::TellTime(_)
                | Effect::Note(_) => {
                    if let Some(sandbox) = &self.sandbox {
                        sandbox.carry_out(effect);
                    }
                }
            }
        }
        outcome
    }

    /// Writes the state if it has changed. A disk that is full now may not be later, so failure to write is no reason to end the pod.
    fn save(&mut self, dir: &PodDir) {
        if self.written.as_ref() == Some(&self.machine.state) {
            return;
        }
        self.saved = Some(Instant::now());
        if record::write_json(&dir.state_json(), &self.machine.state).is_ok() {
            self.written = Some(self.machine.state.clone());
        }
    }
}

impl Attendant for Reactor<'_> {
    fn pull(&mut self, dir: &PodDir, request: &PullRequest) -> Result<(), Failure> {
        self.listen(dir)?;
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(RunStage::Image, Blame::Environment, error)
        };
        let program = std::env::current_exe().map_err(|error| failed(&error))?;
        let mut command = Command::new(program);
        command.arg(PULLER_VERB).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut puller =
            process::spawn(Role::Puller, "puller", &mut command).map_err(|error| failed(&error))?;
        if let Some(mut stdin) = puller.child.stdin.take() {
            let request = serde_json::to_vec(request).map_err(|error| failed(&error))?;
            match stdin.write_all(&request) {
                // It has ended already; how, is heard below.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
                written => written.map_err(|error| failed(&error))?,
            }
        }
        if let Some(stdout) = puller.child.stdout.take() {
            watchers::puller(stdout, self.outbox.clone());
        }
        let complaints = puller.child.stderr.take().map(watchers::tail).unwrap_or_default();
        let mut given_up = false;
        loop {
            // The loop holds a sender itself, so the channel can't be disconnected.
            let Ok(message) = self.inbox.recv() else { continue };
            match message {
                Message::Puller(Some(FromPuller::Progress { image, progress })) => {
                    self.link.send(&FromMonitor::Pulling { image, progress });
                }
                Message::Puller(Some(FromPuller::Done)) if !given_up => return Ok(()),
                Message::Puller(_) if given_up => {
                    return Err(Failure::message(
                        RunStage::Cancelled,
                        Blame::User,
                        "the start was cancelled",
                    ));
                }
                Message::Puller(Some(FromPuller::Failed(failure))) => return Err(*failure),
                Message::Puller(_) => return Err(without_a_word(&mut puller, &complaints)),
                wish @ (Message::Input(_) | Message::Control { .. }) => {
                    if let Message::Control { request, done } = wish {
                        match request {
                            ControlRequest::Stop { .. } => self.waiting.push(Waiter { wish: None, done }),
                            ControlRequest::Pause | ControlRequest::Resume => {
                                let why = "its images are being pulled";
                                let refusal = Refusal::new(RefusalCode::Conflict, why);
                                Waiter { wish: None, done }.answer(Err(refusal));
                                continue;
                            }
                        }
                    }
                    // It removes what is half-done, and then says so; asked twice, it is killed.
                    let signal = if given_up { Signal::SIGKILL } else { Signal::SIGTERM };
                    given_up = true;
                    if kill(Pid::from_raw(puller.reference.pid), signal).is_err() {
                        // It has ended; its last word is on its way.
                    }
                }
            }
        }
    }

    fn warn(&mut self, dir: &PodDir, message: &str) {
        self.link.send(&FromMonitor::Warning { message: message.to_owned() });
        if let Ok(events) = EventLog::open(dir) {
            events.write(Happening::Host(HostEvent::Warning { message: message.to_owned() }));
        }
    }

    fn await_ready(&mut self, pod: &mut Pod, mut sandbox: Box<dyn Sandbox>) -> Result<(), Failure> {
        let failed = |error: &(dyn std::error::Error + 'static)| {
            Failure::new(RunStage::Prepare, Blame::Environment, error)
        };
        let (agent, processes, console) = (sandbox.agent().clone(), sandbox.processes(), sandbox.console());
        let walls = sandbox.layers();
        let network = sandbox.network();
        let state = &mut self.machine.state;
        state.pod_ips = network.addresses;
        state.host_ip = network.host_address;
        state.annotations.extend(status::jail_annotation(&walls));
        state.agent = Some(agent.clone());
        state.ports.clone_from(&pod.ports.bound);
        state.processes = processes.clone();
        state.processes.extend(ProcessRef::of_this_process(Role::Monitor, "monitor"));
        let names = state.containers.iter().map(|container| container.name.clone()).collect();
        self.deadline = Some(Instant::now() + Duration::from_millis(budget::HOST_BOOT_WAIT_MS));
        let events = EventLog::open(&pod.dir).map_err(|error| failed(&error))?;
        if let Some(reports) = network.reports {
            watchers::refusals(reports, events.clone());
        }
        let life = watchers::start(sandbox, &pod.dir, names, events.clone(), self.outbox.clone())
            .map_err(|error| failed(&error))?;
        for (process, layers) in &walls {
            if !layers.missing.is_empty() {
                let (process, missing) = (process.clone(), layers.missing.clone());
                events.write(Happening::Host(HostEvent::Jail { process, missing }));
            }
        }
        let clock = clock::start(agent.clone(), events.clone(), life);
        if clock::watch_host(self.outbox.clone()).is_err() {
            // A kernel that cannot say that its clock jumps: the guest's then follows only after a pause.
        }
        self.sandbox = Some(SandboxView { agent, processes, events, clock });
        self.listen(&pod.dir)?;
        self.save(&pod.dir);
        match self.turn(&pod.dir) {
            Outcome::Ready => self.open_ports(pod),
            Outcome::Failed(mut failure) => {
                if matches!(failure.stage, RunStage::Boot | RunStage::Agent) {
                    failure.console = console.lines(CONSOLE_LINES);
                }
                Err(*failure)
            }
            Outcome::Ended => {
                debug_assert_eq!(self.machine.state.stage, Stage::Ended);
                Err(Failure::message(RunStage::Boot, Blame::Internal, "the VM ended before the pod ran"))
            }
        }
    }
}

/// A puller that has ended, or is about to, and has not said why.
fn without_a_word(puller: &mut Process, complaints: &ConsoleTail) -> Failure {
    let status = puller.wait_or_kill(PULLER_END_WAIT);
    let signal = status.and_then(|status| status.signal());
    let mut failure = match signal {
        Some(signal) => {
            let name = Signal::try_from(signal).map_or_else(|_| signal.to_string(), |name| name.to_string());
            let message = format!("the process that pulls the pod's images was killed ({name})");
            let failure = Failure::message(RunStage::Image, Blame::Environment, message);
            match signal {
                nix::libc::SIGKILL => failure.hint("look whether the machine is out of memory: dmesg"),
                _ => failure,
            }
        }
        None => {
            let code = status.and_then(|status| status.code());
            let code = code.map_or_else(String::new, |code| format!(" (exit code {code})"));
            let message = format!("the process that pulls the pod's images ended without a word{code}");
            Failure::message(RunStage::Image, Blame::Internal, message)
        }
    };
    complaints.wait_end(Instant::now() + PULLER_END_WAIT);
    failure.causes = complaints.lines(COMPLAINT_LINES);
    failure
}

/// TERM and INT to the monitor stop the pod with its own grace period. Must be called before any other thread is started, so that all
/// threads have the signals blocked.
fn watch_signals(outbox: SyncSender<Message>, grace_ms: u64) -> nix::Result<()> {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        set.add(signal);
    }
    set.thread_block()?;
    std::thread::spawn(move || {
        while let Ok(signal) = set.wait() {
            let wanted = signal != Signal::SIGHUP;
            if wanted && outbox.send(Message::Input(Input::Stop { grace_ms })).is_err() {
                return;
            }
        }
    });
    Ok(())
}
