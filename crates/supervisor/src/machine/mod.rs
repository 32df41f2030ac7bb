//! What to do next with the pod's containers. Pure: `(state, input, now) -> (state, effects)`. Two machines, one in the other:
//! [`container`] is the life of one container (creation, start, hooks, probes, restarts with the kubelet's backoff, its deadlines); [`pod`]
//! holds all of them and decides the order: init containers, sidecars, the all-or-nothing start of the main containers, the stop, and when
//! the pod is over. Two smaller ones serve the first: [`probe`] is one probe, [`ending`] is how a running container is ended. Must not know:
//! processes, threads, clocks.
//!
//! `now` is in milliseconds on any steady clock. All times of the machines are on that clock.
//!
//! The happy path of a pod with two containers, `restartPolicy: Never`:
//! 1. [`Input::Boot`]: the pod has no init containers, so it begins with its last step and answers [`Effect::Create`] for both containers.
//! 2. [`News::Created`] of one is reported to the host (`ContainerCreated`); nothing starts yet. After that of the other, all
//!    are created, and both get [`Effect::Start`].
//! 3. [`News::Started`] of both: `ContainerStarted` twice. It was the last step, so `PodStarted` follows. From now on ends are
//!    reported, and restarts follow where the policy says so.
//! 4. [`News::Ended`], then [`News::Drained`] of each: all its output has been read, so its end is reported
//!    (`ContainerExited`).
//! 5. With the second end every container is over for good: `PodEnded`, and [`Effect::Finish`].

pub(crate) mod container;
mod ending;
pub(crate) mod pod;
mod probe;
mod rules;
#[cfg(test)]
mod timing_tests;

use magikvm_proto::lifecycle::{HookKind, ProbeKind};
use magikvm_proto::wire::{EventKind, ExitStatus, ProgramProblem};
pub(crate) use pod::Machine;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    Boot,
    /// Something happened to a container.
    Container {
        /// The container's index in the plan.
        index: usize,
        /// The number of the run.
        run: u32,
        news: News,
    },
    /// Stop the pod. A repeated stop can only shorten the grace period.
    Stop {
        /// From TERM to KILL, in milliseconds.
        grace_ms: u64,
    },
    /// The deadline of [`Machine::deadline`] has passed.
    Tick,
}

/// What happened to a run of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum News {
    /// It exists and waits for its start.
    Created {
        pid: i32,
    },
    Started,
    /// It could not be created or started.
    Failed {
        message: String,
        /// The problem of its program, if that is the reason.
        program: Option<ProgramProblem>,
    },
    /// Its PID 1 was reaped and the rest of it was killed.
    Ended {
        exit: ExitStatus,
        /// What it left as its termination message.
        message: Option<String>,
    },
    /// All its output is in the log buffer.
    Drained {
        /// The end of its log, if it stands for a termination message.
        tail: Option<String>,
    },
    /// A probe or a hook has ended by itself.
    Handled {
        task: Task,
        answer: Handled,
    },
}

/// A probe or a hook of a container. No two of the same kind run at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Task {
    Hook(HookKind),
    Probe(ProbeKind),
}

/// How a probe or a hook has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Handled {
    Success,
    Failure(String),
    /// It could not be carried out, which says nothing about the container.
    Error(String),
}

/// An action to take. `index` is the container's index in the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Create a container for the run with this number.
    Create {
        index: usize,
        run: u32,
    },
    /// Start the program of a created container.
    Start {
        index: usize,
    },
    /// Run a probe or a hook; [`News::Handled`] answers.
    Handle {
        index: usize,
        /// The number of the run.
        run: u32,
        task: Task,
        timeout_ms: u64,
    },
    /// Give up a probe or a hook. Nothing answers.
    Cancel {
        index: usize,
        task: Task,
    },
    /// Send its stop signal to its PID 1.
    Terminate {
        index: usize,
    },
    /// Kill all of it, and give it up if it is not created yet.
    Kill {
        index: usize,
    },
    Emit(EventKind),
    /// A run has ended and its output was read.
    Ended {
        index: usize,
        exit: ExitStatus,
    },
    /// Nothing is left to do: end the sandbox as soon as the host knows.
    Finish,
}
