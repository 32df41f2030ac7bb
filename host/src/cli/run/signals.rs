//! Signals during a run: the first gives the start up or stops the pods, the second kills, the third leaves.

use crate::cli::error::CliError;
use crate::cli::several::code_of;
use crate::cli::ui;
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::pod::interface::PodRuntimeInterface;
use crate::pod::launch::Canceller;
use crate::store::text::ignore;
use crate::store::thread::{self, ThreadError};
use magikvm_proto::id::PodId;
use nix::sys::signal::{SigSet, Signal};
use std::io::IsTerminal;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Signals that would end this program, blocked in all its threads.
pub(super) struct Signals {
    set: SigSet,
    /// The number of the last signal, for the exit code.
    caught: Arc<AtomicI32>,
}

/// How far the run is.
#[derive(Debug, Default)]
enum Phase {
    /// No pod is being started at this moment, or one that runs is waited for.
    #[default]
    Between,
    /// The pod with this number is being started.
    Starting(usize, Canceller),
    /// All pods run.
    Running,
}

#[derive(Debug, Default)]
struct State {
    phase: Phase,
    cancelled: bool,
}

/// The run as the thread that hears the signals sees it.
#[derive(Debug, Clone)]
pub(super) struct Watch {
    state: Arc<Mutex<State>>,
    pods: Arc<[PodId]>,
}

impl Watch {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails when the run was cancelled.
    pub(super) fn check(&self) -> Result<(), CliError> {
        if self.is_cancelled() { Err(cancelled("the start was cancelled")) } else { Ok(()) }
    }

    /// The pod with this number is being started.
    pub(super) fn begin(&self, number: usize, canceller: Canceller) {
        let mut state = self.state();
        if state.cancelled {
            canceller.cancel();
        }
        state.phase = Phase::Starting(number, canceller);
    }

    /// The pod with this number runs. A signal after the last one stops all of them. True: a signal came too late to cancel the start.
    pub(super) fn runs(&self, number: usize) -> bool {
        let is_last = number + 1 == self.pods.len();
        let mut state = self.state();
        state.phase = if is_last { Phase::Running } else { Phase::Between };
        state.cancelled
    }

    /// A pod runs that is waited for. A signal ends the wait, and the pod goes on running.
    pub(super) fn waits(&self) {
        self.state().phase = Phase::Between;
    }

    /// Whether the user wants no more of this run.
    pub(super) fn is_cancelled(&self) -> bool {
        self.state().cancelled
    }

    /// Cancels the start, unless all pods run.
    fn cancel(&self) -> bool {
        let mut state = self.state();
        match &state.phase {
            Phase::Running => return false,
            Phase::Starting(_, canceller) => canceller.cancel(),
            Phase::Between => {}
        }
        state.cancelled = true;
        true
    }

    /// The pods that a signal is for: the one that is being started, or all of them.
    fn meant(&self) -> &[PodId] {
        match self.state().phase {
            Phase::Between => &[],
            Phase::Starting(number, _) => self.pods.get(number..=number).unwrap_or_default(),
            Phase::Running => &self.pods,
        }
    }
}

/// What a run ends with that the user has cancelled.
pub(super) fn cancelled(message: &str) -> CliError {
    CliError::of_failure(Failure::message(RunStage::Cancelled, Blame::User, message))
}

impl Signals {
    pub(super) fn block(caught: Arc<AtomicI32>) -> Self {
        let set = crate::signals::ending();
        ignore(
            set.thread_block(),
            "they then end the program as usual; the pod's monitor does not depend on it",
        );
        Self { set, caught }
    }

    /// First signal: gives the start up, or stops the pods with their grace periods. Second: kills them. Third: leaves them.
    pub(super) fn watch(self, pods: PodRuntimeInterface, ids: Vec<PodId>) -> Result<Watch, ThreadError> {
        let watch = Watch { state: Arc::default(), pods: ids.into() };
        let seen = watch.clone();
        thread::start("signals", move || {
            for count in 1.. {
                let Ok(signal) = self.set.wait() else { return };
                self.caught.store(signal as i32, Ordering::Release);
                let grace = match count {
                    1 if seen.cancel() => {
                        say(signal, "Cancelling the start of", seen.meant(), "kill");
                        continue;
                    }
                    1 => {
                        say(signal, "Stopping", &seen.pods, "kill");
                        None
                    }
                    2 => {
                        say(signal, "Killing", seen.meant(), "leave");
                        Some(Duration::ZERO)
                    }
                    _ => std::process::exit(code_of(signal).into()),
                };
                for id in seen.meant() {
                    stop(&pods, id, grace);
                }
            }
        })?;
        Ok(watch)
    }
}

/// Says what a signal does, and what the next one will do.
fn say(signal: Signal, now: &str, ids: &[PodId], next: &str) {
    // A terminal has shown `^C` in this line.
    let line = if signal == Signal::SIGINT && std::io::stderr().is_terminal() { "\n" } else { "" };
    match ids {
        [] => {}
        [id] => ui::note(&format!("{line}{now} pod {id}; interrupt again to {next} it.")),
        _ => {
            ui::note(&format!("{line}{now} {}; interrupt again to {next} them.", ui::count(ids.len(), "pod")))
        }
    }
}

/// Stops a pod in a thread, so that the next signal is heard meanwhile.
fn stop(pods: &PodRuntimeInterface, id: &PodId, grace: Option<Duration>) {
    let (pods, id) = (pods.clone(), id.clone());
    let stopping = thread::start("stop", move || {
        if let Err(error) = pods.stop_pod(&id, grace) {
            CliError::from(error).report();
        }
    });
    if let Err(error) = stopping {
        CliError::from(error).report();
    }
}
