//! The output of one pod of a foreground run: first that of its init containers and sidecars, and that of all containers once the pod runs.

use super::end::{End, Patience};
use super::follow::removed;
use crate::cli::error::CliError;
use crate::cli::logs::{self, Follow, Show, Told};
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::pod::logs::Entry;
use crate::pod::run::RunRequest;
use crate::store::record::Found;
use crate::store::text::ignore;
use crate::store::thread::{self, ThreadError};
use magikvm_proto::id::{ContainerName, PodId};
use magikvm_proto::lifecycle::Role;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// A thread that shows a pod's logs until the pod has ended.
pub(super) struct Viewer {
    begun: Sender<()>,
    ready: Sender<()>,
    end: Arc<End>,
    thread: JoinHandle<Result<(), CliError>>,
}

impl Viewer {
    /// Waits for [`Viewer::begin`].
    pub(super) fn start(
        pods: &PodRuntimeInterface,
        id: &PodId,
        show: Show,
        end: Arc<End>,
    ) -> Result<Self, ThreadError> {
        let ((begun, begins), (ready, runs)) = (channel(), channel());
        let (pods, id, ended) = (pods.clone(), id.clone(), Arc::clone(&end));
        let thread = thread::start("logs", move || {
            let viewed = view(&pods, &id, &show, &begins, &runs, &ended);
            ended.close();
            viewed
        })?;
        Ok(Self { begun, ready, end, thread })
    }

    /// The pod has logs.
    pub(super) fn begin(&self) {
        ignore(self.begun.send(()), "it has failed, which its end tells");
    }

    /// Output of a pod that starts, which its logs do not have.
    pub(super) fn unwritten(&self, container: &ContainerName, entries: &[Entry]) {
        // Whoever waited here could not begin to show it.
        self.end.add(container, entries.to_vec(), Patience::None);
    }

    /// The pod runs.
    pub(super) fn ready(&self) {
        self.begin();
        ignore(self.ready.send(()), "it has failed, which its end tells");
    }

    /// Waits until all has been shown of a pod that has ended.
    pub(super) fn end(self) -> Result<(), CliError> {
        drop((self.begun, self.ready));
        self.thread.join().unwrap_or(Ok(()))
    }

    /// Shows what is left of a pod that has failed to start.
    pub(super) fn give_up(self) {
        self.end.tell();
        ignore(self.end(), "the failure of the start says more");
    }
}

fn view(
    pods: &PodRuntimeInterface,
    id: &PodId,
    show: &Show,
    begins: &Receiver<()>,
    runs: &Receiver<()>,
    end: &End,
) -> Result<(), CliError> {
    // The other side has given up, and there is nothing to show.
    if begins.recv().is_err() {
        return Ok(());
    }
    let gone = |error| match error {
        PodError::NotFound { .. } => removed(id),
        error => error.into(),
    };
    let found = pods.find(id).map_err(gone)?;
    let containers = pods.containers(&found, None, id).map_err(gone)?;
    let mut readers = pods.logs(&found, containers);
    let is_over = || end.has_come();
    // They come before the others.
    let first = before_main(&found);
    if let Some(first) = readers.get_mut(..first).filter(|first| !first.is_empty()) {
        let until = || is_over() || !pods.find(id).is_ok_and(|found| found.is_starting());
        let told = Phase { end, is_over: &until };
        logs::show(first, &found.dir, show.clone(), None, Follow::UntilTold(&told))?;
    }
    if runs.recv().is_err() {
        return Ok(());
    }
    let told = Phase { end, is_over: &is_over };
    logs::show(&mut readers, &found.dir, show.clone(), None, Follow::UntilTold(&told)).map(|_| ())
}

/// A part of a pod's life whose output is shown.
struct Phase<'a> {
    end: &'a End,
    is_over: &'a dyn Fn() -> bool,
}

impl Told for Phase<'_> {
    fn is_over(&self) -> bool {
        (self.is_over)()
    }

    fn bell(&self) -> BorrowedFd<'_> {
        self.end.bell()
    }

    fn unwritten(&self, wanted: &dyn Fn(&ContainerName) -> bool) -> Vec<(ContainerName, Entry)> {
        self.end.take(wanted)
    }
}

/// The number of containers that have to come before the main ones.
fn before_main(found: &Found) -> usize {
    let containers = found.record.iter().flat_map(|record| &record.containers);
    containers.take_while(|container| container.role != Role::Main).count()
}

/// How the output of each pod looks.
pub(super) fn shows(requests: &[RunRequest], no_prefix: bool) -> Vec<Show> {
    let longest = |request: &RunRequest| {
        let names = request.plan.containers.iter().map(|container| container.name.as_str().len());
        names.max().unwrap_or(0)
    };
    let names = match requests {
        [_] => vec![String::new()],
        _ => logs::names(requests.iter().map(|request| &request.plan.id)),
    };
    let width = names.iter().zip(requests).map(|(name, request)| name.len() + longest(request)).max();
    let width = width.unwrap_or(0);
    names.into_iter().map(|pod| Show { prefix: !no_prefix, pod, width, ..Show::default() }).collect()
}
