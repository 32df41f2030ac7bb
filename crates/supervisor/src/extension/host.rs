//! The threads of extensions: their calls, their queues and their deadlines. Owns: when an extension is over. The supervisor's main thread
//! calls [`Extensions::tell`], which never waits for an extension, and [`Extensions::stop`], which waits for a bounded time.

use super::{
    EVENT_DEADLINE, Ending, Extension, ExtensionError, MAX_WAITING, Occurrence, PodView, START_DEADLINE,
    STOP_DEADLINE, contain,
};
use crate::sync::{Bell, lock, thread, thread_with_stack};
use crate::text::chain;
use magikvm_proto::limits::MAX_MESSAGE_LEN;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::state::ContainerStatus;
use magikvm_proto::text::cut;
use magikvm_proto::wire::EventKind;
use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::io;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What extensions and their failures have to do with the pod.
pub(crate) struct Around {
    pub(crate) plan: GuestPlan,
    /// The present states of the containers.
    pub(crate) states: Box<dyn Fn() -> Vec<ContainerStatus> + Send + Sync>,
    /// Told once of each extension that has failed: its name, and what has happened to it.
    pub(crate) failed: Box<dyn Fn(&'static str, String) + Send + Sync>,
}

/// How long the calls may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadlines {
    pub(super) start: Duration,
    pub(super) event: Duration,
    pub(super) stop: Duration,
}

/// Stack of an extension's threads, in bytes. What is never used of it takes no memory.
const STACK: usize = 256 << 10;

const DEADLINES: Deadlines = Deadlines { start: START_DEADLINE, event: EVENT_DEADLINE, stop: STOP_DEADLINE };

/// The extensions of a pod.
#[derive(Debug, Default)]
pub(crate) struct Extensions {
    posts: Vec<Arc<Post>>,
    stop: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Start,
    Event,
    Stop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Going,
    /// It has until then to take the events that wait, and to stop.
    Stopping(Instant),
    /// It has failed, and its failure is being told.
    Failing,
    Over,
}

impl Phase {
    fn is_going(self) -> bool {
        matches!(self, Self::Going | Self::Stopping(_))
    }
}

#[derive(Debug)]
struct State {
    phase: Phase,
    waiting: VecDeque<EventKind>,
    /// Events that were dropped before those that wait.
    missed: u64,
    /// The call that is being made, and when it has to be done.
    call: Option<(Call, Instant)>,
}

/// Where an extension gets its events, and where its threads meet.
struct Post {
    name: &'static str,
    state: Mutex<State>,
    changed: Condvar,
    ending: Ending,
    around: Arc<Around>,
}

impl Debug for Post {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Post").field("name", &self.name).field("state", &self.state).finish_non_exhaustive()
    }
}

/// Why the thread of an extension makes no more calls.
enum Done {
    /// It has stopped.
    Stopped,
    /// The extension is over already.
    GivenUp,
    Failed(String),
}

impl From<ExtensionError> for Done {
    fn from(error: ExtensionError) -> Self {
        Self::Failed(said(error))
    }
}

/// Starts threads for an extension.
#[derive(Debug, Clone)]
pub struct Threads(Arc<Post>);

impl Threads {
    /// Starts a thread of the extension. An error or a panic in it is a failure of the extension. It has to return soon after its [`Ending`]
    /// has begun; nobody waits for it. Fails where the system has no more threads.
    pub fn start(
        &self,
        name: &str,
        work: impl FnOnce(&Ending) -> Result<(), ExtensionError> + Send + 'static,
    ) -> io::Result<()> {
        let post = Arc::clone(&self.0);
        thread_with_stack(name, STACK, move || {
            let ending = post.ending.clone();
            match contain::caught(|| work(&ending).map_err(said)) {
                Ok(Ok(())) => {}
                Ok(Err(what)) => post.fail(what),
                Err(panic) => post.fail(panicked(&panic)),
            }
        })
    }
}

/// The text and the end of an error are code of the extension, too, so that this belongs to what is caught.
fn said(error: ExtensionError) -> String {
    let what = format!("has failed: {}", chain(&*error));
    drop(error);
    what
}

fn panicked(message: &str) -> String {
    format!("has panicked: {message}")
}

impl Extensions {
    /// Starts the extensions and returns at once.
    pub(crate) fn start(extensions: Vec<Box<dyn Extension>>, around: Around) -> Self {
        Self::start_within(DEADLINES, extensions, around)
    }

    pub(super) fn start_within(
        deadlines: Deadlines,
        extensions: Vec<Box<dyn Extension>>,
        around: Around,
    ) -> Self {
        let around = Arc::new(around);
        let start = |extension: Box<dyn Extension>| {
            let name = extension.name();
            let started = Post::start(extension, &around, deadlines);
            started.map_err(|error| (around.failed)(name, format!("cannot be started: {error}"))).ok()
        };
        Self { posts: extensions.into_iter().filter_map(start).collect(), stop: deadlines.stop }
    }

    /// Tells all extensions that something has happened.
    pub(crate) fn tell(&self, kind: &EventKind) {
        self.posts.iter().for_each(|post| post.tell(kind));
    }

    /// Stops all extensions, and waits until they have stopped or have missed the deadline that they share.
    pub(crate) fn stop(&self) {
        let by = Instant::now() + self.stop;
        self.posts.iter().for_each(|post| post.begin_to_stop(by));
        self.posts.iter().for_each(|post| post.await_end(by));
    }
}

impl Post {
    fn start(
        extension: Box<dyn Extension>,
        around: &Arc<Around>,
        deadlines: Deadlines,
    ) -> io::Result<Arc<Self>> {
        let name = extension.name();
        let call = Some((Call::Start, Instant::now() + deadlines.start));
        let state = State { phase: Phase::Going, waiting: VecDeque::new(), missed: 0, call };
        let post = Arc::new(Self {
            name,
            state: Mutex::new(state),
            changed: Condvar::new(),
            ending: Ending(Arc::new(Bell::new()?)),
            around: Arc::clone(around),
        });
        let watched = Arc::clone(&post);
        thread("deadlines", move || watched.watch())?;
        let called = Arc::clone(&post);
        thread_with_stack(name, STACK, move || called.live(extension, deadlines)).inspect_err(|_| {
            post.leave(Phase::Over);
        })?;
        Ok(post)
    }

    /// The life of the extension's thread.
    fn live(self: Arc<Self>, extension: Box<dyn Extension>, deadlines: Deadlines) {
        // With the end of the extension's value, whose destructor may panic.
        match contain::caught(|| self.make_calls(extension, deadlines)) {
            Ok(Done::Stopped) => {
                self.leave(Phase::Over);
            }
            Ok(Done::GivenUp) => {}
            Ok(Done::Failed(what)) => self.fail(what),
            Err(panic) => self.fail(panicked(&panic)),
        }
    }

    fn make_calls(self: &Arc<Self>, mut extension: Box<dyn Extension>, deadlines: Deadlines) -> Done {
        let mut call = || -> Result<std::convert::Infallible, Done> {
            let states = (self.around.states)();
            extension.start(&self.view(&states), &Threads(Arc::clone(self)))?;
            self.called()?;
            loop {
                let Some(occurrence) = self.next(deadlines)? else {
                    self.ending.0.ring();
                    extension.stop()?;
                    return Err(Done::Stopped);
                };
                let states = (self.around.states)();
                extension.event(&occurrence, &self.view(&states))?;
                self.called()?;
            }
        };
        match call() {
            Ok(never) => match never {},
            Err(done) => done,
        }
    }

    fn view<'a>(&'a self, containers: &'a [ContainerStatus]) -> PodView<'a> {
        PodView { plan: &self.around.plan, containers }
    }

    /// A call has returned.
    fn called(&self) -> Result<(), Done> {
        let mut state = lock(&self.state);
        state.call = None;
        if state.phase.is_going() { Ok(()) } else { Err(Done::GivenUp) }
    }

    /// Waits for the next call: an event, or nothing if the extension has to stop.
    fn next(&self, deadlines: Deadlines) -> Result<Option<Occurrence>, Done> {
        let mut state = lock(&self.state);
        loop {
            let occurrence = match std::mem::take(&mut state.missed) {
                0 => state.waiting.pop_front().map(Occurrence::Event),
                events => Some(Occurrence::Missed { events }),
            };
            let call = match (state.phase, &occurrence) {
                (Phase::Failing | Phase::Over, _) => return Err(Done::GivenUp),
                (Phase::Stopping(by), None) => (Call::Stop, by),
                (_, Some(_)) => (Call::Event, Instant::now() + deadlines.event),
                (Phase::Going, None) => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            };
            state.call = Some(call);
            self.changed.notify_all();
            return Ok(occurrence);
        }
    }

    /// Gives the extension up when it misses a deadline. Returns when it is over.
    fn watch(&self) {
        let mut state = lock(&self.state);
        let late = loop {
            let by = match (state.phase, state.call) {
                (Phase::Failing | Phase::Over, _) => return,
                (Phase::Stopping(by), _) => Some((Call::Stop, by)),
                (Phase::Going, call) => call,
            };
            let left = by.map(|(_, by)| by.saturating_duration_since(Instant::now()));
            state = match (left, by) {
                (Some(Duration::ZERO), Some((call, _))) => break call,
                (Some(left), _) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
                (None, _) => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
        };
        drop(state);
        self.fail(missed(late));
    }

    fn tell(&self, kind: &EventKind) {
        let mut state = lock(&self.state);
        if state.phase != Phase::Going {
            return;
        }
        if state.waiting.len() == MAX_WAITING {
            state.missed += u64::try_from(MAX_WAITING).unwrap_or(u64::MAX);
            state.waiting.clear();
        }
        state.waiting.push_back(kind.clone());
        drop(state);
        self.changed.notify_all();
    }

    fn begin_to_stop(&self, by: Instant) {
        let mut state = lock(&self.state);
        if state.phase == Phase::Going {
            state.phase = Phase::Stopping(by);
        }
        drop(state);
        self.changed.notify_all();
    }

    fn await_end(&self, by: Instant) {
        let mut state = lock(&self.state);
        loop {
            let left = by.saturating_duration_since(Instant::now());
            state = match state.phase {
                Phase::Over => return,
                // Its failure is to be told before the end of the pod is, which takes no time.
                Phase::Failing => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Phase::Going | Phase::Stopping(_) if left.is_zero() => {
                    drop(state);
                    return self.fail(missed(Call::Stop));
                }
                Phase::Going | Phase::Stopping(_) => {
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Ends the calls. Returns false if that was done before.
    fn leave(&self, phase: Phase) -> bool {
        let mut state = lock(&self.state);
        if !state.phase.is_going() {
            return false;
        }
        state.phase = phase;
        state.waiting = VecDeque::new();
        drop(state);
        self.ending.0.ring();
        self.changed.notify_all();
        true
    }

    /// Tells that the extension has failed, before anybody can see that it is over. Only the first failure counts.
    fn fail(&self, mut what: String) {
        if self.leave(Phase::Failing) {
            what.truncate(cut(&what, MAX_MESSAGE_LEN).len());
            (self.around.failed)(self.name, what);
            lock(&self.state).phase = Phase::Over;
            self.changed.notify_all();
        }
    }
}

fn missed(call: Call) -> String {
    let what = match call {
        Call::Start => "start",
        Call::Event => "take an event",
        Call::Stop => "stop",
    };
    format!("has missed its deadline to {what}")
}
