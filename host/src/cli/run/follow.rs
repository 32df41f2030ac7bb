//! A foreground run: the ends of its pods.

use super::end::{End, NoPipe, Patience};
use super::start::Started;
use super::view::Viewer;
use crate::cli::error::{CliError, Kind};
use crate::cli::ui;
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::pod::launch::{FromMonitor, Launched};
use crate::pod::status;
use crate::store::record::Found;
use crate::store::sandbox::SandboxRecord;
use crate::store::text::ignore;
use crate::store::thread;
use magikvm_proto::id::PodId;
use magikvm_proto::state::ContainerStatus;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;

/// Waits until all pods have ended and all of their output has been shown. The first exit code that is not zero counts, in the order of the pods.
pub(super) fn all(
    mut followed: Vec<(Started, Waiter, Viewer)>,
    pods: &PodRuntimeInterface,
) -> Result<u8, CliError> {
    if followed.len() < 2 {
        let (started, waiter, viewer) = followed.pop().ok_or_else(lost)?;
        return one(started, waiter, viewer, pods);
    }
    let followers = followed.into_iter().map(|(started, waiter, viewer)| {
        let (pods, id) = (pods.clone(), started.id.clone());
        let thread = thread::start("pod", move || one(started, waiter, viewer, &pods));
        thread.map(|thread| (id, thread))
    });
    // All of them are started before one is waited for.
    let followers: Vec<_> = followers.collect();
    let mut code = 0;
    let mut failed: Option<CliError> = None;
    for follower in followers {
        let (id, thread) = follower?;
        match thread.join().unwrap_or_else(|_| Err(lost())) {
            Ok(0) => {}
            Ok(other) => {
                ui::note(&format!("Pod {id} ended with exit code {other}."));
                code = if code == 0 { other } else { code };
            }
            // The last one is reported by the program's end.
            Err(error) => {
                if let Some(earlier) = failed.replace(error) {
                    earlier.report();
                }
            }
        }
    }
    failed.map_or(Ok(code), Err)
}

fn lost() -> CliError {
    CliError::new(Kind::Internal, "lost the connection to the pod's monitor")
}

/// Waits until a pod has ended and its output has been shown, and returns its exit code.
fn one(started: Started, waiter: Waiter, viewer: Viewer, pods: &PodRuntimeInterface) -> Result<u8, CliError> {
    let Started { id, launched } = started;
    let id = &id;
    let Waiter { give, thread, .. } = waiter;
    ignore(give.send(launched), "its end is seen below");
    viewer.end()?;
    let (last, launched) = thread.join().ok().flatten().ok_or_else(lost)?;
    match last {
        Some(FromMonitor::Ended { code }) => {
            let found = pods.find(id).ok();
            launched.finish().map_err(CliError::of_failure)?;
            for note in found.iter().flat_map(out_of_memory) {
                ui::note(&note);
            }
            let state = found.and_then(|found| found.state);
            if let Some(failed) = state.as_ref().and_then(|state| state.failed) {
                ui::note(&format!("Pod {id} has failed: {}.", failed.message()));
            }
            if let Some(why) = state.and_then(|state| state.broken) {
                let message = format!("pod {id} did not end properly: {}", why.message);
                return Err(CliError::new(Kind::Internal, message).because(why.reason));
            }
            Ok(u8::try_from(code).unwrap_or(u8::MAX))
        }
        Some(FromMonitor::Failed(failure)) => Err(CliError::of_failure(*failure)),
        Some(
            FromMonitor::Ready
            | FromMonitor::Begun
            | FromMonitor::Initializing { .. }
            | FromMonitor::Pulling { .. }
            | FromMonitor::Unwritten { .. }
            | FromMonitor::Warning { .. },
        )
        | None => {
            if matches!(pods.find(id), Err(PodError::NotFound { .. })) {
                return Err(removed(id));
            }
            Err(CliError::new(Kind::Internal, format!("the monitor of pod {id} was killed; the pod is lost"))
                .hint(format!("Remove what is left of it with `magikvm rm {id}`.")))
        }
    }
}

pub(super) fn removed(id: &PodId) -> CliError {
    CliError::new(Kind::User, format!("pod {id} was removed"))
}

/// A thread that waits for the pod's end while its logs are shown.
pub(super) struct Waiter {
    give: Sender<Launched>,
    end: Arc<End>,
    /// It gives `launched` back: the monitor waits for its end before it removes the pod (--rm).
    thread: JoinHandle<Option<(Option<FromMonitor>, Launched)>>,
}

impl Waiter {
    pub(super) fn start() -> Result<Self, CliError> {
        let (give, given) = channel::<Launched>();
        let end = End::new().map_err(|source| CliError::of(Kind::Environment, &NoPipe { source }))?;
        let end = Arc::new(end);
        let ended = Arc::clone(&end);
        let thread = thread::start("end", move || {
            let mut launched = given.recv().ok()?;
            let last = loop {
                match launched.next_message() {
                    Some(FromMonitor::Unwritten { container, entries }) => {
                        ended.add(&container, FromMonitor::entries(&entries), Patience::Waits);
                    }
                    Some(FromMonitor::Warning { message }) => ui::warn(&message),
                    last => break last,
                }
            };
            ended.tell();
            Some((last, launched))
        })?;
        Ok(Self { give, end, thread })
    }

    pub(super) fn end(&self) -> Arc<End> {
        Arc::clone(&self.end)
    }
}

/// A word about each container that was killed because memory ran out, which its exit code alone does not tell.
fn out_of_memory(found: &Found) -> Vec<String> {
    let statuses = found.state.as_ref().map(|state| state.containers.as_slice()).unwrap_or_default();
    let killed = |status: &&ContainerStatus| {
        let mut runs = status.state.terminated().into_iter().chain(&status.last);
        runs.any(|run| run.exit.oom_killed)
    };
    statuses
        .iter()
        .filter(killed)
        .map(|status| {
            let name = &status.name;
            match status::memory_limit(found, name) {
                Some(limit) => format!(
                    "Container {name} was killed: out of memory (its limit is {limit}).\nHint: Raise `resources.limits.memory` of this container in the manifest."
                ),
                None => format!(
                    "Container {name} was killed: out of memory.\nHint: {}",
                    match found.record.as_ref().map(|record| &record.sandbox) {
                        Some(SandboxRecord::Containers(_)) => "See with `free -m` how much memory the host has left, and in the manifest whether `spec.resources.limits.memory` is too low.",
                        Some(SandboxRecord::Vm(_)) | None => "Set `resources.limits.memory` of this container in the manifest; without it, the VM has only its default memory.",
                    }
                ),
            }
        })
        .collect()
}
