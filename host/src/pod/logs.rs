//! Container logs on disk, in the CRI log format (`<RFC 3339> <stream> <P|F> <content>`). The monitor writes them, anybody may read them.
//!
//! Output that does not end in a newline is written at once as partial (`P`), so that nothing waits and readers get the exact bytes.
//!
//! A container that was restarted writes to the same log. The first entry of each run but the first one, and the first of each file, name the
//! run in another tag (`F:run=2`), which the format allows.

use crate::manifest::logs::LogOptions;
use crate::store::atomic::FileError;
use crate::store::regular::{self, Access};
use magikvm_proto::id::ContainerName;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The limits of the kubelet: the size at which a log file is rotated (`containerLogMaxSize`), and the number of files of a container
/// (`containerLogMaxFiles`).
const DEFAULT_SIZE: u64 = 10 << 20;
const DEFAULT_FILES: u32 = 5;
/// Size of all log files of a pod: so that ten containers have what the kubelet gives them.
const DEFAULT_POD_SIZE: u64 = 500 << 20;
/// Smallest file that is rotated, however little there is for the pod.
const MIN_SIZE: u64 = 4 << 10;

/// What the logs of each container of a pod may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// A file is rotated before it grows beyond this many bytes.
    pub max_size: u64,
    /// Number of files, with the one that is written: `<name>.log.1` is the newest of the others.
    pub max_files: u32,
}

impl LogLimits {
    /// The limits of each of a pod's containers.
    pub fn of(options: LogOptions, containers: usize) -> Self {
        let max_files = options.max_files.unwrap_or(DEFAULT_FILES);
        let files = u64::from(max_files) * u64::try_from(containers.max(1)).unwrap_or(u64::MAX);
        let share = options.max_pod_bytes.unwrap_or(DEFAULT_POD_SIZE) / files;
        Self { max_size: options.max_size_bytes.unwrap_or(DEFAULT_SIZE).min(share).max(MIN_SIZE), max_files }
    }
}

/// Longest content of one entry, as in containerd.
const MAX_CONTENT: usize = 16 << 10;
/// More than the time and the stream of an entry take.
const MAX_HEAD: usize = 128;
/// Longest line that is read.
const MAX_LINE: usize = MAX_CONTENT + MAX_HEAD;
/// Encoded bytes that are collected before they are written. Empty lines grow to fifty times their size.
const MAX_BUFFER: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStream {
    Stdout,
    Stderr,
}

impl LogStream {
    fn index(self) -> usize {
        match self {
            Self::Stdout => 0,
            Self::Stderr => 1,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// RFC 3339 in UTC with nine decimals.
    pub time: String,
    pub stream: LogStream,
    /// The content, including the newline if the entry is a full line.
    pub content: Vec<u8>,
    /// How often its container was restarted before, if the entry says that. It holds for those that follow.
    run: Option<u32>,
}

/// The tag with which an entry names its run, before the number.
const RUN: &str = "run=";

impl Entry {
    /// Whether it is a line, or the last piece of one.
    fn is_full(&self) -> bool {
        self.content.last() == Some(&b'\n')
    }
}

pub fn format_time(time: jiff::Timestamp) -> String {
    format!("{time:.9}")
}

/// The entries of this output: the content of each, and whether it ends a line. No content is longer than `longest`.
fn pieces(bytes: &[u8], longest: usize) -> impl Iterator<Item = (&[u8], bool)> {
    bytes.split_inclusive(|&byte| byte == b'\n').flat_map(move |line| {
        let (content, full) = match line.strip_suffix(b"\n") {
            Some(content) => (content, true),
            None => (line, false),
        };
        // An empty line is an entry too.
        let count = content.len().div_ceil(longest).max(1);
        (1..=count).map(move |number| {
            let piece = &content[(number - 1) * longest..content.len().min(number * longest)];
            (piece, full && number == count)
        })
    })
}

fn put(out: &mut Vec<u8>, time: &str, stream: LogStream, full: bool, run: Option<u32>, content: &[u8]) {
    out.extend_from_slice(time.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(if full { b" F" } else { b" P" });
    if let Some(run) = run {
        out.extend_from_slice(format!(":{RUN}{run}").as_bytes());
    }
    out.push(b' ');
    out.extend_from_slice(content);
    out.push(b'\n');
}

/// Parses one line of a log (without its newline); `None` if it is not an entry.
pub fn decode(line: &[u8]) -> Option<Entry> {
    let mut fields = line.splitn(4, |&byte| byte == b' ');
    let time = String::from_utf8(fields.next()?.to_vec()).ok()?;
    let stream = match fields.next()? {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        _ => return None,
    };
    let mut tags = str::from_utf8(fields.next()?).ok()?.split(':');
    let full = match tags.next()? {
        "F" => true,
        "P" => false,
        _ => return None,
    };
    let run = tags.find_map(|tag| tag.strip_prefix(RUN)?.parse().ok());
    let mut content = fields.next()?.to_vec();
    if full {
        content.push(b'\n');
    }
    Some(Entry { time, stream, content, run })
}

fn size(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

fn inode(path: &Path) -> Option<u64> {
    path.symlink_metadata().ok().map(|there| there.ino())
}

fn older(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Output that could not be written. The log has everything before it.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the log")]
pub struct Unwritten {
    /// As the log would have it.
    pub entries: Vec<u8>,
    #[source]
    pub source: FileError,
}

impl Unwritten {
    fn because(source: FileError) -> Self {
        Self { entries: Vec::new(), source }
    }
}

/// A log file that is written.
#[derive(Debug)]
struct Target {
    file: File,
    /// How many bytes a test lets it grow.
    #[cfg(test)]
    room: Option<usize>,
}

impl Target {
    fn new(file: File) -> Self {
        Self {
            file,
            #[cfg(test)]
            room: None,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        #[cfg(test)]
        if let Some(room) = &mut self.room {
            let taken = self.file.write(&bytes[..bytes.len().min(*room)])?;
            *room -= taken;
            return if taken == 0 { Err(io::ErrorKind::StorageFull.into()) } else { Ok(taken) };
        }
        self.file.write(bytes)
    }

    /// Writes as much as there is room for, and returns how much that was.
    fn write_most(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        let mut written = 0;
        while written < bytes.len() {
            match self.write(&bytes[written..]) {
                Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return (written, Err(error)),
            }
        }
        (written, Ok(()))
    }

    /// Takes the last bytes away again.
    fn shorten(&self, count: usize) -> io::Result<()> {
        let length = self.file.metadata()?.len();
        self.file.set_len(length.saturating_sub(u64::try_from(count).unwrap_or(u64::MAX)))
    }
}

/// Writes one container's log and rotates full files.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: Target,
    size: u64,
    limits: LogLimits,
    buffer: Vec<u8>,
    /// The file ends in the middle of an entry, because the disk was full and the piece could not be taken away.
    is_torn: bool,
    /// How often the container was restarted before.
    run: u32,
    /// Whether the file names the run, or need not.
    is_named: bool,
}

impl LogWriter {
    /// Opens the log at `path` for appending.
    pub fn open(path: &Path, limits: LogLimits) -> Result<Self, FileError> {
        let file = regular::open(path, Access::Append)?;
        let size = file.metadata().map_err(FileError::at("look at", path))?.len();
        Ok(Self {
            path: path.to_owned(),
            file: Target::new(file),
            size,
            limits,
            buffer: Vec::new(),
            is_torn: false,
            run: 0,
            is_named: true,
        })
    }

    /// What follows is output of this run of the container.
    pub fn begin_run(&mut self, run: u32) {
        self.is_named &= self.run == run;
        self.run = run;
    }

    /// The run, if the next entry has to name it.
    fn name_run(&mut self) -> Option<u32> {
        let run = (!self.is_named).then_some(self.run);
        self.is_named = true;
        run
    }

    /// Appends output with the present time. No file becomes larger than its limit. After the first entry that cannot be written none is, so that
    /// those of the error are the last ones.
    pub fn write(&mut self, stream: LogStream, bytes: &[u8]) -> Result<(), Unwritten> {
        let time = format_time(jiff::Timestamp::now());
        let room = usize::try_from(self.limits.max_size).unwrap_or(usize::MAX);
        let longest = room.saturating_sub(MAX_HEAD).clamp(1, MAX_CONTENT);
        let mut lost: Option<Unwritten> = None;
        for (content, full) in pieces(bytes, longest) {
            let entry = |out: &mut Vec<u8>, run| put(out, &time, stream, full, run, content);
            match &mut lost {
                Some(lost) => entry(&mut lost.entries, None),
                None => lost = self.append(&entry).err(),
            }
        }
        let written = match lost {
            Some(lost) => Err(lost),
            None => self.flush(),
        };
        if written.is_err() {
            // What names it may be lost.
            self.is_named = self.run == 0;
        }
        written
    }

    /// Collects an entry, and writes when there is enough.
    fn append(&mut self, entry: &impl Fn(&mut Vec<u8>, Option<u32>)) -> Result<(), Unwritten> {
        let before = self.buffer.len();
        let run = self.name_run();
        entry(&mut self.buffer, run);
        let is_first = self.size == 0 && before == 0;
        if !is_first && self.size + size(&self.buffer) > self.limits.max_size {
            self.buffer.truncate(before);
            let turned = self.flush().and_then(|()| self.rotate().map_err(Unwritten::because));
            turned.map_err(|mut lost| {
                entry(&mut lost.entries, None);
                lost
            })?;
            let run = self.name_run();
            entry(&mut self.buffer, run);
        }
        if self.buffer.len() >= MAX_BUFFER { self.flush() } else { Ok(()) }
    }

    /// Writes what was collected. Of what has no room, whole entries are written only.
    fn flush(&mut self) -> Result<(), Unwritten> {
        let was_torn = self.is_torn;
        if was_torn {
            self.buffer.insert(0, b'\n');
        }
        let (written, outcome) = self.file.write_most(&self.buffer);
        let ends = |bytes: &[u8]| bytes.iter().rposition(|&byte| byte == b'\n').map_or(0, |at| at + 1);
        let whole = ends(&self.buffer[..written]);
        let is_cut = whole < written && self.file.shorten(written - whole).is_err();
        self.is_torn = is_cut || (was_torn && whole == 0);
        self.size += size(&self.buffer[..if is_cut { written } else { whole }]);
        let mut entries = std::mem::take(&mut self.buffer);
        let Err(source) = outcome else {
            entries.clear();
            self.buffer = entries;
            return Ok(());
        };
        entries.drain(..whole.max(usize::from(was_torn)));
        Err(Unwritten { entries, source: FileError::at("write", &self.path)(source) })
    }

    fn rotate(&mut self) -> Result<(), FileError> {
        // Otherwise an earlier rotation found no room for the new file.
        if self.path.symlink_metadata().is_ok() {
            for number in (1..self.limits.max_files - 1).rev() {
                let from = older(&self.path, number);
                if from.symlink_metadata().is_ok() {
                    fs::rename(&from, older(&self.path, number + 1))
                        .map_err(FileError::at("rename", &from))?;
                }
            }
            fs::rename(&self.path, older(&self.path, 1)).map_err(FileError::at("rename", &self.path))?;
        }
        self.file = Target::new(regular::open(&self.path, Access::Append)?);
        (self.size, self.is_torn, self.is_named) = (0, false, self.run == 0);
        Ok(())
    }
}

/// Reads one container's log from its oldest kept entry on, across files that are rotated meanwhile.
#[derive(Debug)]
pub struct LogReader {
    pub container: ContainerName,
    path: PathBuf,
    /// The file that is read and its inode. It stays open until the next one is, so that its inode is not that of a new file.
    current: Option<(BufReader<File>, u64)>,
    partial: Vec<u8>,
    /// How many lines of each stream are still to be skipped.
    skip: [usize; 2],
    /// The run of the entries at hand.
    run: u32,
    /// The only run whose entries are wanted.
    only: Option<u32>,
}

/// Attempts to open the next file while files are rotated.
const OPEN_TRIES: usize = 8;

impl LogReader {
    /// Starts at the oldest entry.
    pub fn new(container: ContainerName, path: PathBuf) -> Self {
        Self { container, path, current: None, partial: Vec::new(), skip: [0; 2], run: 0, only: None }
    }

    /// Reads only what was written when the container had been restarted this often.
    #[must_use]
    pub fn of_run(self, run: u32) -> Self {
        Self { only: Some(run), ..self }
    }

    /// The next entry; `None` when there is none yet.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, FileError> {
        loop {
            if !self.read_line()? {
                let Some(next) = self.open_next()? else { return Ok(None) };
                // A file that has a successor is complete. What was written to it in between comes first.
                if !self.read_line()? {
                    // A line that a crash cut off.
                    self.partial.clear();
                    self.current = Some(next);
                    continue;
                }
            }
            let entry = decode(&self.partial);
            self.partial.clear();
            let Some(entry) = entry else { continue };
            self.run = entry.run.unwrap_or(self.run);
            if self.only.is_some_and(|only| only != self.run) {
                continue;
            }
            match &mut self.skip[entry.stream.index()] {
                0 => return Ok(Some(entry)),
                left => *left -= usize::from(entry.is_full()),
            }
        }
    }

    /// Reads a line; false when the file does not have all of it yet. An ended line stays in `partial` until it is taken. A piece of a line is read
    /// anew the next time, because the writer takes it away if the disk has no room for the rest.
    fn read_line(&mut self) -> Result<bool, FileError> {
        let Some((reader, _)) = &mut self.current else { return Ok(false) };
        let failed = FileError::at("read", &self.path);
        let is_whole = match regular::read_line(reader, &mut self.partial, MAX_LINE) {
            Ok(is_whole) => is_whole,
            Err(error) => return Err(failed(error)),
        };
        // Of a line that is too long for an entry not all bytes are kept.
        if !is_whole && (1..MAX_LINE).contains(&self.partial.len()) {
            let back = i64::try_from(self.partial.len()).unwrap_or(i64::MAX);
            self.partial.clear();
            reader.seek(SeekFrom::Current(-back)).map_err(failed)?;
        }
        Ok(is_whole)
    }

    /// Opens the file after the one that is read, or the oldest one.
    fn open_next(&self) -> Result<Option<(BufReader<File>, u64)>, FileError> {
        let read = self.current.as_ref().map(|(_, inode)| *inode);
        if read.is_some() && read == inode(&self.path) {
            return Ok(None);
        }
        let mut files = self.files();
        for _ in 0..OPEN_TRIES {
            // Two equal lists were not read in the middle of a rotation, which would hide a file or show one twice.
            let before = std::mem::replace(&mut files, self.files());
            if before != files {
                continue;
            }
            let next = match files.iter().position(|(_, inode)| Some(*inode) == read) {
                Some(at) => files.get(at + 1),
                None => files.first(),
            };
            let Some((path, inode)) = next else { return Ok(None) };
            match regular::open(path, Access::Read) {
                Ok(file) => {
                    let there = file.metadata().map_err(FileError::at("look at", path))?;
                    // Otherwise the files were renamed in between.
                    if there.ino() == *inode {
                        return Ok(Some((BufReader::with_capacity(64 << 10, file), *inode)));
                    }
                }
                Err(error) if error.source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The log's files with their inodes, oldest first.
    fn files(&self) -> Vec<(PathBuf, u64)> {
        let mut numbers: Vec<u32> = Vec::new();
        let (Some(dir), Some(name)) = (self.path.parent(), self.path.file_name()) else { return Vec::new() };
        for entry in fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok) {
            let number = entry
                .file_name()
                .to_str()
                .and_then(|file| file.strip_prefix(name.to_str()?)?.strip_prefix('.')?.parse::<u32>().ok());
            numbers.extend(number);
        }
        numbers.sort_unstable();
        let older = numbers.into_iter().rev().map(|number| older(&self.path, number));
        older.chain([self.path.clone()]).filter_map(|path| Some((path.clone(), inode(&path)?))).collect()
    }

    /// Skips all but the last `lines` lines of the present content. The pieces of a line of one stream may have lines of the other one between
    /// them, so each stream is skipped separately.
    pub fn tail(&mut self, lines: usize) -> Result<(), FileError> {
        let mut counter = Self::new(self.container.clone(), self.path.clone());
        counter.only = self.only;
        let mut kept = VecDeque::new();
        let mut open: Vec<LogStream> = Vec::new();
        let mut keep = |kept: &mut VecDeque<LogStream>, stream| {
            kept.push_back(stream);
            if kept.len() > lines
                && let Some(skipped) = kept.pop_front()
            {
                self.skip[skipped.index()] += 1;
            }
        };
        while let Some(entry) = counter.next_entry()? {
            open.retain(|stream| *stream != entry.stream);
            if entry.is_full() {
                keep(&mut kept, entry.stream);
            } else {
                open.push(entry.stream);
            }
        }
        // Lines that are not complete yet are the last ones.
        open.into_iter().for_each(|stream| keep(&mut kept, stream));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
