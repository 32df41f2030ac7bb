//! `magikvm logs`, and what a foreground run shows.

use super::error::{CliError, Kind};
use super::select::{self, Filter, PodArg, pod_arg};
use super::ui::Stream;
use super::{Outcome, ui};
use crate::os::DirChanges;
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::pod::logs::{Entry, LogReader, LogStream};
use crate::store::atomic::FileError;
use crate::store::layout::PodDir;
use crate::store::lock::{self, LockState};
use crate::store::record::Found;
use crate::store::text::ignore;
use crate::store::thread;
use magikvm_proto::id::{ContainerName, PodId};
use magikvm_proto::state::ContainerState;
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;

/// How long to wait for a change of a file before the pod's life is looked at again, in milliseconds.
const LOOK_MS: u16 = 200;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pods, as NAME or NAMESPACE/NAME
    #[arg(value_name = "POD", value_parser = pod_arg)]
    pods: Vec<PodArg>,
    /// Print the logs of all pods
    #[arg(short, long, conflicts_with = "pods")]
    all: bool,
    #[command(flatten)]
    filter: Filter,
    /// Print the logs of this container only [default: all containers]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Follow the logs until the pods have ended
    #[arg(short, long)]
    follow: bool,
    /// Print what the last run of the containers has printed, before they were restarted
    #[arg(short, long, conflicts_with = "follow")]
    previous: bool,
    /// Print only the last N lines of each container; -1 for all
    #[arg(long, value_name = "N", value_parser = tail, allow_hyphen_values = true)]
    tail: Option<Tail>,
    /// Print only lines since a time (2026-01-02T03:04:05Z) or a duration ago (90s, 5m, 2h)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<String>,
    /// Prefix each line with its time
    #[arg(short, long)]
    timestamps: bool,
    /// Prefix each line with the name of its container [default with several containers], and of its pod with several pods
    #[arg(long)]
    prefix: bool,
}

/// How many lines of the end, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    All,
    Last(usize),
}

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "-1" => Ok(Tail::All),
        text => text.parse().map(Tail::Last).map_err(|_| "it is a number of lines, or -1".to_owned()),
    }
}

/// How lines look.
#[derive(Debug, Clone, Default)]
pub(super) struct Show {
    /// With the container's name.
    pub(super) prefix: bool,
    /// With the time.
    pub(super) timestamps: bool,
    /// With this before the container's name, where several pods are shown at once.
    pub(super) pod: String,
    /// Least width of the names.
    pub(super) width: usize,
}

/// What to do at the end of the logs.
#[derive(Clone, Copy)]
pub(super) enum Follow<'a> {
    /// Leave.
    No,
    /// Wait for more until this says that there will be none.
    Until(&'a dyn Fn() -> bool),
    /// The same, with output that the logs do not have.
    UntilTold(&'a dyn Told),
}

/// What is known of a pod beside its logs.
pub(super) trait Told {
    /// There will be no more.
    fn is_over(&self) -> bool;

    /// Can be read from the moment when it is over, or when there is output that the logs do not have.
    fn bell(&self) -> BorrowedFd<'_>;

    /// Output of these containers that their logs do not have. All of the logs that is older can be read before this is.
    fn unwritten(&self, wanted: &dyn Fn(&ContainerName) -> bool) -> Vec<(ContainerName, Entry)>;
}

impl Follow<'_> {
    fn bell(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::UntilTold(told) => Some(told.bell()),
            Self::No | Self::Until(_) => None,
        }
    }
}

/// A time as the log has it, so that texts compare as times do.
fn since(text: &str) -> Result<String, String> {
    let time = match text.parse::<jiff::Timestamp>() {
        Ok(time) => time,
        Err(_) => {
            let span: jiff::SignedDuration = text.parse().map_err(|_| {
                format!("{text:?} is neither a time (2026-01-02T03:04:05Z) nor a duration (90s, 5m, 2h)")
            })?;
            jiff::Timestamp::now().checked_sub(span).map_err(|error| error.to_string())?
        }
    };
    Ok(crate::pod::logs::format_time(time))
}

/// Most pods whose logs are followed at once; each takes a thread.
const MAX_FOLLOWED: usize = 64;

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let chosen = select::choose(pods, &args.pods, args.all, &args.filter, |_| true)?;
    if let [id] = chosen.as_slice() {
        let shown = one(args, pods, id, String::new(), 0)?;
        if shown == Shown::Nothing && !args.follow {
            let found = pods.find(id)?;
            if found.is_starting() && !has_begun(&found, args.container.as_deref()) {
                return Err(PodError::Starting(id.clone()).into());
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    if chosen.is_empty() {
        let is_search = args.all || args.filter.choice().is_some();
        if !is_search {
            return Err(CliError::new(Kind::Code(2), "no pod was named")
                .hint("Name pods, or use `--all` or `-l SELECTOR`; `magikvm ps` lists the pods."));
        }
        ui::note("There is no such pod.");
        return Ok(ExitCode::SUCCESS);
    }
    several(args, pods, &chosen)
}

/// Whether this container, or any, has begun to run: then it has nothing to say yet.
fn has_begun(found: &Found, container: Option<&str>) -> bool {
    let statuses = found.state.as_ref().map(|state| state.containers.as_slice()).unwrap_or_default();
    let mut chosen =
        statuses.iter().filter(|status| container.is_none_or(|name| status.name.as_str() == name));
    let waits = |state: &ContainerState| matches!(state, ContainerState::Waiting { .. });
    chosen.any(|status| !waits(&status.state) || status.last.is_some())
}

/// Prints the logs of several pods, one after the other or all at once.
fn several(args: &Args, pods: &PodRuntimeInterface, chosen: &[PodId]) -> Outcome {
    let names = names(chosen.iter());
    let longest = |(name, id): (&String, &PodId)| {
        let record = pods.find(id).ok().and_then(|found| found.record);
        let containers = record.map(|record| record.containers).unwrap_or_default();
        name.len() + containers.iter().map(|container| container.name.as_str().len()).max().unwrap_or(0)
    };
    let width = names.iter().zip(chosen).map(longest).max().unwrap_or(0);
    let mut worst = ExitCode::SUCCESS;
    let mut report = |result: Result<Shown, CliError>| {
        if let Err(error) = result {
            worst = error.report();
        }
    };
    if !args.follow {
        for (id, name) in chosen.iter().zip(names) {
            report(one(args, pods, id, name, width));
        }
        return Ok(worst);
    }
    if chosen.len() > MAX_FOLLOWED {
        let message = format!(
            "{} pods are too many to follow at once, at most {MAX_FOLLOWED} are possible",
            chosen.len()
        );
        return Err(CliError::new(Kind::User, message).hint("Choose fewer pods with `-l SELECTOR`."));
    }
    std::thread::scope(|scope| {
        let followers: Vec<_> = chosen
            .iter()
            .zip(names)
            .map(|(id, name)| scope.spawn(move || one(args, pods, id, name, width)))
            .collect();
        for follower in followers {
            report(follower.join().unwrap_or_else(|_| {
                Err(CliError::new(Kind::Internal, "a thread that shows logs has failed"))
            }));
        }
    });
    Ok(worst)
}

/// What to call each pod before the names of its containers: its name, with the namespace where that differs.
pub(super) fn names<'a>(ids: impl Iterator<Item = &'a PodId> + Clone) -> Vec<String> {
    let mut namespaces = ids.clone().map(|id| &id.namespace);
    let first = namespaces.next();
    let is_one = namespaces.all(|namespace| Some(namespace) == first);
    ids.map(|id| if is_one { format!("{}/", id.name) } else { format!("{id}/") }).collect()
}

/// Prints the logs of one pod, its containers behind `pod` where several pods are shown.
fn one(
    args: &Args,
    pods: &PodRuntimeInterface,
    id: &PodId,
    pod: String,
    width: usize,
) -> Result<Shown, CliError> {
    let found = pods.find(id)?;
    let containers = pods.containers(&found, args.container.as_deref(), id)?;
    let prefix = args.prefix || containers.len() > 1 || !pod.is_empty();
    let show_as = Show { prefix, timestamps: args.timestamps, pod, width };
    let mut readers = match (args.previous, args.container.is_some()) {
        (false, _) => pods.logs(&found, containers),
        (true, true) => pods.previous_logs(&found, id, containers)?,
        // Of all containers, those that were restarted.
        (true, false) => restarted(pods, &found, id, containers)?,
    };
    if let Some(Tail::Last(lines)) = args.tail {
        for reader in &mut readers {
            reader.tail(lines).map_err(|error| CliError::of(Kind::Environment, &error))?;
        }
    }
    let over = || lock::state(&found.dir.lock()).is_ok_and(|state| state == LockState::Free);
    let follow = if args.follow { Follow::Until(&over) } else { Follow::No };
    show(&mut readers, &found.dir, show_as, args.since.as_deref(), follow)
}

/// The logs of the last runs of those containers that were restarted.
fn restarted(
    pods: &PodRuntimeInterface,
    found: &Found,
    id: &PodId,
    containers: Vec<ContainerName>,
) -> Result<Vec<LogReader>, CliError> {
    let (mut readers, mut none) = (Vec::new(), None);
    for container in containers {
        match pods.previous_logs(found, id, vec![container]) {
            Ok(some) => readers.extend(some),
            Err(error @ PodError::NoPrevious { .. }) => none = none.or(Some(error)),
            Err(error) => return Err(error.into()),
        }
    }
    none.filter(|_| readers.is_empty()).map_or(Ok(readers), |error| Err(error.into()))
}

/// Prints the entries of all readers in order of time.
pub(super) fn show(
    readers: &mut [LogReader],
    dir: &PodDir,
    how: Show,
    since: Option<&str>,
    follow: Follow<'_>,
) -> Result<Shown, CliError> {
    let mut shown = Shown::Nothing;
    let failed = |error: FileError| CliError::of(Kind::Environment, &error);
    // Before the first look at the files, so that no change is missed.
    let changes = match follow {
        Follow::No => None,
        Follow::Until(_) | Follow::UntilTold(..) => Some(Changes::of(dir)),
    };
    let mut printer = Printer::new(readers, how);
    let mut heads = Heads::of(readers);
    loop {
        // Asked before the last look at the files, so that what was written before the end is seen.
        let last_look = match &follow {
            Follow::No => true,
            Follow::Until(over) => over(),
            Follow::UntilTold(told) => told.is_over(),
        };
        while let Some((index, entry)) = heads.next(readers, &follow).map_err(failed)? {
            if since.is_none_or(|since| entry.time.as_str() >= since) {
                printer.print(index, &entry);
                shown = Shown::Something;
            }
        }
        printer.flush();
        let Some(changes) = changes.as_ref().filter(|_| !last_look) else { return Ok(shown) };
        changes.wait(follow.bell());
    }
}

/// The next entry of each log, and of the output that no log has.
struct Heads {
    written: Vec<Option<Entry>>,
    unwritten: Vec<VecDeque<Entry>>,
}

impl Heads {
    fn of(readers: &[LogReader]) -> Self {
        let unwritten = readers.iter().map(|_| VecDeque::new()).collect();
        Self { written: readers.iter().map(|_| None).collect(), unwritten }
    }

    /// Takes the earliest entry, with the number of its reader. At the same time what is in a log was first.
    fn next(
        &mut self,
        readers: &mut [LogReader],
        follow: &Follow<'_>,
    ) -> Result<Option<(usize, Entry)>, FileError> {
        if let Follow::UntilTold(told) = follow {
            let place = |name: &ContainerName| readers.iter().position(|reader| reader.container == *name);
            for (name, entry) in told.unwritten(&|name| place(name).is_some()) {
                if let Some(index) = place(&name) {
                    self.unwritten[index].push_back(entry);
                }
            }
        }
        for (head, reader) in self.written.iter_mut().zip(readers) {
            if head.is_none() {
                *head = reader.next_entry()?;
            }
        }
        let written =
            self.written.iter().enumerate().filter_map(|(index, head)| Some((head.as_ref()?, 0, index)));
        let unwritten =
            self.unwritten.iter().enumerate().filter_map(|(index, queue)| Some((queue.front()?, 1, index)));
        let first = written.chain(unwritten).map(|(entry, rank, index)| (&entry.time, rank, index)).min();
        Ok(match first.map(|(_, rank, index)| (rank, index)) {
            Some((0, index)) => self.written[index].take().map(|entry| (index, entry)),
            Some((_, index)) => self.unwritten[index].pop_front().map(|entry| (index, entry)),
            None => None,
        })
    }
}

/// Whether logs had any entries to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shown {
    Nothing,
    Something,
}

/// Puts prefixes where lines begin: an entry may be a piece of a line.
struct Printer {
    how: Show,
    prefixes: Vec<[String; 2]>,
    /// Whether the next entry of this container and stream begins a line.
    at_start: Vec<[bool; 2]>,
    pending: Vec<u8>,
    pending_to: Stream,
}

impl Printer {
    fn new(readers: &[LogReader], how: Show) -> Self {
        let name = |reader: &LogReader| format!("{}{}", how.pod, reader.container);
        let width = readers.iter().map(|reader| name(reader).len()).max().unwrap_or(0).max(how.width);
        let prefix = |index: usize, reader: &LogReader, to| {
            if how.prefix { ui::prefix(&name(reader), index, width, to) } else { String::new() }
        };
        let prefixes = readers
            .iter()
            .enumerate()
            .map(|(index, reader)| [prefix(index, reader, Stream::Out), prefix(index, reader, Stream::Error)])
            .collect();
        Self {
            how,
            prefixes,
            at_start: vec![[true; 2]; readers.len()],
            pending: Vec::new(),
            pending_to: Stream::Out,
        }
    }

    fn print(&mut self, index: usize, entry: &Entry) {
        let (to, side) = match entry.stream {
            LogStream::Stdout => (Stream::Out, 0),
            LogStream::Stderr => (Stream::Error, 1),
        };
        if to != self.pending_to || self.pending.len() > 64 << 10 {
            self.flush();
            self.pending_to = to;
        }
        if self.at_start[index][side] {
            self.pending.extend_from_slice(self.prefixes[index][side].as_bytes());
            if self.how.timestamps {
                self.pending.extend_from_slice(entry.time.as_bytes());
                self.pending.push(b' ');
            }
        }
        self.pending.extend_from_slice(&entry.content);
        self.at_start[index][side] = entry.content.last() == Some(&b'\n');
    }

    fn flush(&mut self) {
        match self.pending_to {
            _ if self.pending.is_empty() => {}
            Stream::Out => ui::bytes(&self.pending),
            Stream::Error => ui::error_bytes(&self.pending),
        }
        self.pending.clear();
    }
}

/// Changes of the log directory. Where they can't be watched (no inotify left, or another system), looking now and then has to do.
pub(super) struct Changes(Option<DirChanges>);

impl Changes {
    pub(super) fn of(dir: &PodDir) -> Self {
        Self(DirChanges::of(&[&dir.log(), dir.path()]).ok())
    }

    /// Waits for a change, until `bell` can be read, or until it is time to look.
    pub(super) fn wait(&self, bell: Option<BorrowedFd<'_>>) {
        match &self.0 {
            Some(changes) => changes.wait(LOOK_MS, bell),
            None => std::thread::sleep(std::time::Duration::from_millis(LOOK_MS.into())),
        }
    }
}

impl Drop for Changes {
    /// Linux takes some ten milliseconds to end a watch. A run has to wait for its monitor meanwhile.
    fn drop(&mut self) {
        if let Some(changes) = self.0.take() {
            ignore(
                thread::start("changes", move || {
                    // Its end is what takes the time.
                    let _ends_here = changes;
                }),
                "then it is ended at once",
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_may_be_given_in_two_ways() {
        assert_eq!(since("2026-01-02T03:04:05Z").unwrap(), "2026-01-02T03:04:05.000000000Z");
        let recent = since("90s").unwrap();
        assert!(recent < crate::pod::logs::format_time(jiff::Timestamp::now()));
        for bad in ["yesterday", "", "5 parsecs"] {
            assert!(since(bad).is_err(), "{bad}");
        }
    }
}
