//! `magikvm logs`, and what a foreground run shows.

use super::error::{CliError, Kind};
use super::ui::Stream;
use super::{Outcome, pod_id, ui};
use crate::os::DirChanges;
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::pod::logs::{Entry, LogReader, LogStream};
use crate::store::layout::PodDir;
use crate::store::lock::{self, LockState};
use magikvm_proto::id::PodId;
use std::process::ExitCode;

/// How long to wait for a change of a file before the pod's life is looked at again, in milliseconds.
const LOOK_MS: u16 = 200;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pod, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_id)]
    pod: PodId,
    /// Print the logs of this container only [default: all containers]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Follow the logs until the pod has ended
    #[arg(short, long)]
    follow: bool,
    /// Print only the last N lines of each container
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    tail: Option<usize>,
    /// Print only lines since a time (2026-01-02T03:04:05Z) or a duration ago (90s, 5m, 2h)
    #[arg(long, value_name = "TIME", value_parser = since)]
    since: Option<String>,
    /// Prefix each line with its time
    #[arg(long)]
    timestamps: bool,
    /// Prefix each line with the name of its container [default with several containers]
    #[arg(long)]
    prefix: bool,
}

/// How lines look.
#[derive(Debug, Clone, Copy)]
pub(super) struct Show {
    /// With the container's name.
    pub(super) prefix: bool,
    /// With the time.
    pub(super) timestamps: bool,
}

/// What to do at the end of the logs.
#[derive(Clone, Copy)]
pub(super) enum Follow<'a> {
    /// Leave.
    No,
    /// Wait for more until this says that there will be none.
    Until(&'a dyn Fn() -> bool),
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

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let found = pods.find(&args.pod)?;
    let containers = pods.containers(&found, args.container.as_deref(), &args.pod)?;
    let show_as = Show { prefix: args.prefix || containers.len() > 1, timestamps: args.timestamps };
    let mut readers = pods.logs(&found, containers);
    if let Some(lines) = args.tail {
        for reader in &mut readers {
            reader.tail(lines).map_err(|error| CliError::of(Kind::Environment, &error))?;
        }
    }
    let over = || lock::state(&found.dir.lock()).is_ok_and(|state| state == LockState::Free);
    let follow = if args.follow { Follow::Until(&over) } else { Follow::No };
    let shown = show(&mut readers, &found.dir, show_as, args.since.as_deref(), follow)?;
    if shown == Shown::Nothing && !args.follow && found.is_starting() {
        return Err(PodError::Starting(args.pod.clone()).into());
    }
    Ok(ExitCode::SUCCESS)
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
    let failed = |error: crate::store::atomic::FileError| CliError::of(Kind::Environment, &error);
    let changes = Changes::of(dir);
    let mut printer = Printer::new(readers, how);
    let mut heads: Vec<Option<Entry>> = readers.iter().map(|_| None).collect();
    loop {
        // Asked before the last look at the files, so that what was written before the end is seen.
        let last_look = match &follow {
            Follow::No => true,
            Follow::Until(over) => over(),
        };
        loop {
            for (head, reader) in heads.iter_mut().zip(readers.iter_mut()) {
                if head.is_none() {
                    *head = reader.next_entry().map_err(failed)?;
                }
            }
            let first = heads
                .iter()
                .enumerate()
                .filter_map(|(index, head)| head.as_ref().map(|entry| (&entry.time, index)));
            let Some((_, index)) = first.min() else { break };
            if let Some(entry) = heads[index].take()
                && since.is_none_or(|since| entry.time.as_str() >= since)
            {
                printer.print(index, &entry);
                shown = Shown::Something;
            }
        }
        printer.flush();
        if last_look {
            return Ok(shown);
        }
        changes.wait();
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
        let width = readers.iter().map(|reader| reader.container.as_str().len()).max().unwrap_or(0);
        let prefix = |index: usize, reader: &LogReader, to| {
            if how.prefix { ui::prefix(reader.container.as_str(), index, width, to) } else { String::new() }
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

    pub(super) fn wait(&self) {
        match &self.0 {
            Some(changes) => changes.wait(LOOK_MS),
            None => std::thread::sleep(std::time::Duration::from_millis(LOOK_MS.into())),
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
