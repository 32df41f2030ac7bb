//! The reader of `events.jsonl`, which its writer may replace by a shorter file at any time.

use super::{MAX_LINE, TimedEvent, key};
use crate::store::atomic::FileError;
use crate::store::regular::{self, Access};
use std::fs::File;
use std::io::{BufReader, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// Reads events from the first one on.
#[derive(Debug)]
pub struct EventReader {
    path: PathBuf,
    /// The file that is read and its inode. It stays open until the next one is, so that its inode is not that of a new file.
    current: Option<(BufReader<File>, u64)>,
    line: Vec<u8>,
    /// Time of the last event.
    last: String,
    /// Events of a new file up to this time were read in the one before.
    read_until: String,
}

impl EventReader {
    /// Of the file at this path, which need not exist yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path, current: None, line: Vec::new(), last: String::new(), read_until: String::new() }
    }

    /// The next event and its line; `None` when there is none yet.
    pub fn next_event(&mut self) -> Result<Option<(TimedEvent, Vec<u8>)>, FileError> {
        loop {
            if !self.read_line()? {
                let Some(next) = self.open_next()? else { return Ok(None) };
                // What was written to the file before it was replaced comes first.
                if !self.read_line()? {
                    self.line.clear();
                    self.current = Some(next);
                    self.read_until.clone_from(&self.last);
                    continue;
                }
            }
            let line = std::mem::take(&mut self.line);
            // A line that a full disk cut off.
            let Ok(timed) = serde_json::from_slice::<TimedEvent>(&line) else { continue };
            if timed.time > self.read_until || self.read_until.is_empty() {
                self.last.clone_from(&timed.time);
                return Ok(Some((timed, line)));
            }
        }
    }

    /// Reads on in the line at hand; false when the file has no more of it yet.
    fn read_line(&mut self) -> Result<bool, FileError> {
        let Some((reader, _)) = &mut self.current else { return Ok(false) };
        regular::read_line(reader, &mut self.line, MAX_LINE).map_err(FileError::at("read", &self.path))
    }

    /// Opens the file at the path, if it is another one.
    fn open_next(&self) -> Result<Option<(BufReader<File>, u64)>, FileError> {
        let file = match regular::open(&self.path, Access::Read) {
            Ok(file) => file,
            Err(error) if error.source.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let inode = file.metadata().map_err(FileError::at("look at", &self.path))?.ino();
        let is_new = self.current.as_ref().is_none_or(|(_, read)| *read != inode);
        Ok(is_new.then(|| (BufReader::new(file), inode)))
    }
}

/// Leaves only the last of the lines that count the same event.
pub fn collapse(events: Vec<TimedEvent>) -> Vec<TimedEvent> {
    let counted = |timed: &TimedEvent| Some((key(&timed.what)?, timed.repeated.as_ref()?.since.clone()));
    let mut seen = Vec::new();
    let mut kept: Vec<TimedEvent> = events
        .into_iter()
        .rev()
        .filter(|timed| match counted(timed) {
            Some(series) if seen.contains(&series) => false,
            series => {
                seen.extend(series);
                true
            }
        })
        .collect();
    kept.reverse();
    kept
}
