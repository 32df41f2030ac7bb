//! Container logs on disk, in the CRI log format (`<RFC 3339> <stream> <P|F> <content>`). The monitor writes them, anybody may read them.
//!
//! Output that does not end in a newline is written at once as partial (`P`), so that nothing waits and readers get the exact bytes.

use crate::manifest::logs::LogOptions;
use crate::store::atomic::FileError;
use crate::store::regular::{self, Access};
use magikvm_proto::id::ContainerName;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufReader, Write};
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
    /// A file is rotated when it has grown to this many bytes.
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
/// Longest line that is read: an entry with its time and stream.
const MAX_LINE: usize = MAX_CONTENT + 128;

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
}

impl Entry {
    /// Whether it is a line, or the last piece of one.
    fn is_full(&self) -> bool {
        self.content.last() == Some(&b'\n')
    }
}

pub fn format_time(time: jiff::Timestamp) -> String {
    format!("{time:.9}")
}

/// Appends `bytes` as entries to `out`.
pub fn encode(out: &mut Vec<u8>, time: &str, stream: LogStream, bytes: &[u8]) {
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let (content, full) = match line.strip_suffix(b"\n") {
            Some(content) => (content, true),
            None => (line, false),
        };
        let mut pieces = content.chunks(MAX_CONTENT).peekable();
        if pieces.peek().is_none() {
            put(out, time, stream, full, b"");
        }
        while let Some(piece) = pieces.next() {
            put(out, time, stream, full && pieces.peek().is_none(), piece);
        }
    }
}

fn put(out: &mut Vec<u8>, time: &str, stream: LogStream, full: bool, content: &[u8]) {
    out.extend_from_slice(time.as_bytes());
    out.push(b' ');
    out.extend_from_slice(stream.name().as_bytes());
    out.extend_from_slice(if full { b" F " } else { b" P " });
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
    let full = match fields.next()? {
        b"F" => true,
        b"P" => false,
        _ => return None,
    };
    let mut content = fields.next()?.to_vec();
    if full {
        content.push(b'\n');
    }
    Some(Entry { time, stream, content })
}

fn inode(path: &Path) -> Option<u64> {
    path.symlink_metadata().ok().map(|there| there.ino())
}

fn older(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Writes one container's log and rotates full files.
#[derive(Debug)]
pub struct LogWriter {
    path: PathBuf,
    file: File,
    size: u64,
    limits: LogLimits,
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Opens the log at `path` for appending.
    pub fn open(path: &Path, limits: LogLimits) -> Result<Self, FileError> {
        let file = regular::open(path, Access::Append)?;
        let size = file.metadata().map_err(FileError::at("look at", path))?.len();
        Ok(Self { path: path.to_owned(), file, size, limits, buffer: Vec::new() })
    }

    /// Appends output with the present time.
    pub fn write(&mut self, stream: LogStream, bytes: &[u8]) -> Result<(), FileError> {
        self.buffer.clear();
        encode(&mut self.buffer, &format_time(jiff::Timestamp::now()), stream, bytes);
        self.file.write_all(&self.buffer).map_err(FileError::at("write", &self.path))?;
        self.size += u64::try_from(self.buffer.len()).unwrap_or(u64::MAX);
        if self.size >= self.limits.max_size { self.rotate() } else { Ok(()) }
    }

    fn rotate(&mut self) -> Result<(), FileError> {
        for number in (1..self.limits.max_files - 1).rev() {
            let from = older(&self.path, number);
            if from.symlink_metadata().is_ok() {
                fs::rename(&from, older(&self.path, number + 1)).map_err(FileError::at("rename", &from))?;
            }
        }
        fs::rename(&self.path, older(&self.path, 1)).map_err(FileError::at("rename", &self.path))?;
        self.file = regular::open(&self.path, Access::Append)?;
        self.size = 0;
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
}

/// Attempts to open the next file while files are rotated.
const OPEN_TRIES: usize = 8;

impl LogReader {
    /// Starts at the oldest entry.
    pub fn new(container: ContainerName, path: PathBuf) -> Self {
        Self { container, path, current: None, partial: Vec::new(), skip: [0; 2] }
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
            match &mut self.skip[entry.stream.index()] {
                0 => return Ok(Some(entry)),
                left => *left -= usize::from(entry.is_full()),
            }
        }
    }

    /// Reads on in the line at hand; false when the file has no more of it yet. An ended line stays in `partial` until it is taken.
    fn read_line(&mut self) -> Result<bool, FileError> {
        let Some((reader, _)) = &mut self.current else { return Ok(false) };
        regular::read_line(reader, &mut self.partial, MAX_LINE).map_err(FileError::at("read", &self.path))
    }

    /// Opens the file after the one that is read, or the oldest one.
    fn open_next(&self) -> Result<Option<(BufReader<File>, u64)>, FileError> {
        let read = self.current.as_ref().map(|(_, inode)| *inode);
        if read.is_some() && read == inode(&self.path) {
            return Ok(None);
        }
        for _ in 0..OPEN_TRIES {
            let files = self.files();
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
                Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {}
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
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(reader: &mut LogReader) -> Vec<u8> {
        let mut bytes = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            bytes.extend(entry.content);
        }
        bytes
    }

    #[test]
    fn entries_are_as_the_format_says() {
        let mut out = Vec::new();
        let time = format_time("2026-01-02T03:04:05.6Z".parse().unwrap());
        encode(&mut out, &time, LogStream::Stdout, b"hello\n\nhalf");
        let text = String::from_utf8(out).unwrap();
        let expected = "2026-01-02T03:04:05.600000000Z stdout F hello\n2026-01-02T03:04:05.600000000Z stdout F \n\
                        2026-01-02T03:04:05.600000000Z stdout P half\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn full_files_are_put_aside_and_a_reader_misses_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let mut writer = LogWriter::open(&path, LogLimits { max_size: 1000, max_files: 3 }).unwrap();
        let mut reader = LogReader::new("c".parse().unwrap(), path.clone());
        let mut expected = Vec::new();
        let mut got = Vec::new();
        for number in 0..200 {
            let line = format!("line {number}\n");
            writer.write(LogStream::Stdout, line.as_bytes()).unwrap();
            expected.extend(line.as_bytes());
            got.extend(all(&mut reader));
        }
        assert_eq!(got, expected);
        let files = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(files, 3);
        let mut late = LogReader::new("c".parse().unwrap(), path);
        let kept = all(&mut late);
        assert!(expected.ends_with(&kept) && kept.len() > 300, "{}", kept.len());
    }

    #[test]
    fn a_reader_that_is_rotations_behind_misses_no_file_that_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let mut writer = LogWriter::open(&path, LogLimits { max_size: 200, max_files: 5 }).unwrap();
        let mut reader = LogReader::new("c".parse().unwrap(), path);
        let mut expected = Vec::new();
        let mut got = Vec::new();
        for number in 0..100 {
            let line = format!("line {number}\n");
            writer.write(LogStream::Stdout, line.as_bytes()).unwrap();
            expected.extend(line.as_bytes());
            // Some ten lines fill three files.
            if number % 10 == 0 {
                got.extend(all(&mut reader));
            }
        }
        got.extend(all(&mut reader));
        assert_eq!(String::from_utf8(got).unwrap(), String::from_utf8(expected).unwrap());
    }

    #[test]
    fn a_pod_has_the_limits_of_the_kubelet_and_one_of_its_own() {
        let none = LogOptions::default();
        assert_eq!(LogLimits::of(none, 1), LogLimits { max_size: 10 << 20, max_files: 5 });
        assert_eq!(LogLimits::of(none, 10), LogLimits { max_size: 10 << 20, max_files: 5 });
        assert_eq!(LogLimits::of(none, 16), LogLimits { max_size: (500 << 20) / 80, max_files: 5 });
        let asked =
            LogOptions { max_size_bytes: Some(1 << 20), max_files: Some(2), max_pod_bytes: Some(3 << 20) };
        assert_eq!(LogLimits::of(asked, 1), LogLimits { max_size: 1 << 20, max_files: 2 });
        assert_eq!(LogLimits::of(asked, 3), LogLimits { max_size: 512 << 10, max_files: 2 });
        let little = LogOptions { max_files: Some(1000), max_pod_bytes: Some(64 << 10), ..none };
        assert_eq!(LogLimits::of(little, 16).max_size, MIN_SIZE);
    }

    #[test]
    fn the_tail_is_counted_in_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let mut writer = LogWriter::open(&path, LogLimits::of(LogOptions::default(), 1)).unwrap();
        writer.write(LogStream::Stdout, b"1\n2\n3\n4").unwrap();
        for (lines, expected) in [(0, ""), (1, "4"), (2, "3\n4"), (9, "1\n2\n3\n4")] {
            let mut reader = LogReader::new("c".parse().unwrap(), path.clone());
            reader.tail(lines).unwrap();
            assert_eq!(all(&mut reader), expected.as_bytes(), "{lines}");
        }
    }

    #[test]
    fn the_tail_has_whole_lines_where_streams_interleave() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let mut writer = LogWriter::open(&path, LogLimits::of(LogOptions::default(), 1)).unwrap();
        for (stream, bytes) in [
            (LogStream::Stdout, "out 1 begins, "),
            (LogStream::Stderr, "error 1\nerror 2 begins, "),
            (LogStream::Stdout, "out 1 ends\nout 2 begins, "),
            (LogStream::Stderr, "error 2 ends\n"),
        ] {
            writer.write(stream, bytes.as_bytes()).unwrap();
        }
        let tail = |lines| {
            let mut reader = LogReader::new("c".parse().unwrap(), path.clone());
            reader.tail(lines).unwrap();
            reader
        };
        let text = |lines| String::from_utf8(all(&mut tail(lines))).unwrap();
        assert_eq!(text(0), "");
        assert_eq!(text(1), "out 2 begins, ");
        assert_eq!(text(2), "error 2 begins, out 2 begins, error 2 ends\n");
        assert_eq!(text(3), "out 1 begins, error 2 begins, out 1 ends\nout 2 begins, error 2 ends\n");
        assert_eq!(text(4), text(usize::MAX));
        // What follows a skipped piece is skipped up to the end of its line.
        let mut reader = tail(0);
        writer.write(LogStream::Stdout, b"out 2 ends\nout 3\n").unwrap();
        assert_eq!(all(&mut reader), b"out 3\n");
    }

    proptest! {
        #[test]
        fn any_output_comes_back_exactly(pieces in proptest::collection::vec(proptest::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..50), 0..10)) {
            let mut out = Vec::new();
            for piece in &pieces {
                encode(&mut out, "2026-01-01T00:00:00.000000000Z", LogStream::Stderr, piece);
            }
            let mut back = Vec::new();
            for line in out.split_inclusive(|&b| b == b'\n') {
                let entry = decode(line.strip_suffix(b"\n").unwrap());
                back.extend(entry.unwrap().content);
            }
            prop_assert_eq!(back, pieces.concat());
        }
    }
}
