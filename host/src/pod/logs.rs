//! Container logs on disk, in the CRI log format (`<RFC 3339> <stream> <P|F> <content>`). The monitor writes them, anybody may read them.
//!
//! Output that does not end in a newline is written at once as partial (`P`), so that nothing waits and readers get the exact bytes.

use crate::store::atomic::{FileError, open_append};
use magikvm_proto::id::ContainerName;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// A log file is rotated when it has grown to this many bytes.
pub const MAX_FILE: u64 = 16 << 20;
/// Number of older files that are kept: `<name>.log.1` is the newest of them.
pub const KEPT_FILES: u32 = 2;
/// Longest content of one entry, as in containerd.
const MAX_CONTENT: usize = 16 << 10;

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
    max_file: u64,
    buffer: Vec<u8>,
}

impl LogWriter {
    /// Opens the log at `path` for appending.
    pub fn open(path: &Path) -> Result<Self, FileError> {
        Self::with_max(path, MAX_FILE)
    }

    fn with_max(path: &Path, max_file: u64) -> Result<Self, FileError> {
        let file = open_append(path)?;
        let size = file.metadata().map_err(FileError::at("look at", path))?.len();
        Ok(Self { path: path.to_owned(), file, size, max_file, buffer: Vec::new() })
    }

    /// Appends output with the present time.
    pub fn write(&mut self, stream: LogStream, bytes: &[u8]) -> Result<(), FileError> {
        self.buffer.clear();
        encode(&mut self.buffer, &format_time(jiff::Timestamp::now()), stream, bytes);
        self.file.write_all(&self.buffer).map_err(FileError::at("write", &self.path))?;
        self.size += u64::try_from(self.buffer.len()).unwrap_or(u64::MAX);
        if self.size >= self.max_file { self.rotate() } else { Ok(()) }
    }

    fn rotate(&mut self) -> Result<(), FileError> {
        for number in (1..KEPT_FILES).rev() {
            let from = older(&self.path, number);
            if from.exists() {
                fs::rename(&from, older(&self.path, number + 1)).map_err(FileError::at("rename", &from))?;
            }
        }
        fs::rename(&self.path, older(&self.path, 1)).map_err(FileError::at("rename", &self.path))?;
        self.file = open_append(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

/// Reads one container's log from its oldest kept entry on, across files that are rotated meanwhile.
#[derive(Debug)]
pub struct LogReader {
    pub container: ContainerName,
    path: PathBuf,
    current: Option<(BufReader<File>, u64)>,
    /// Older files that are not read yet, oldest first.
    backlog: Vec<PathBuf>,
    partial: Vec<u8>,
    /// How many lines of each stream are still to be skipped.
    skip: [usize; 2],
}

impl LogReader {
    /// Starts at the oldest entry.
    pub fn new(container: ContainerName, path: PathBuf) -> Self {
        let backlog =
            (1..=KEPT_FILES).map(|number| older(&path, number)).filter(|older| older.exists()).collect();
        Self { container, path, current: None, backlog, partial: Vec::new(), skip: [0; 2] }
    }

    /// The next entry; `None` when there is none yet.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, FileError> {
        loop {
            if self.current.is_none() && !self.open_next()? {
                return Ok(None);
            }
            let Some((reader, inode)) = &mut self.current else { return Ok(None) };
            reader.read_until(b'\n', &mut self.partial).map_err(FileError::at("read", &self.path))?;
            if self.partial.last() == Some(&b'\n') {
                self.partial.pop();
                let entry = decode(&self.partial);
                self.partial.clear();
                let Some(entry) = entry else { continue };
                match &mut self.skip[entry.stream.index()] {
                    0 => return Ok(Some(entry)),
                    left => *left -= usize::from(entry.is_full()),
                }
                continue;
            }
            // If the name now leads to another file, this one is complete.
            if !fs::metadata(&self.path).is_ok_and(|there| there.ino() != *inode) {
                return Ok(None);
            }
            reader.read_until(b'\n', &mut self.partial).map_err(FileError::at("read", &self.path))?;
            if self.partial.is_empty() {
                self.current = None;
            }
        }
    }

    fn open_next(&mut self) -> Result<bool, FileError> {
        let path = self.backlog.pop().unwrap_or_else(|| self.path.clone());
        match File::open(&path) {
            Ok(file) => {
                let inode = file.metadata().map_err(FileError::at("look at", &path))?.ino();
                self.current = Some((BufReader::with_capacity(64 << 10, file), inode));
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(FileError::at("open", &path)(error)),
        }
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
        let mut writer = LogWriter::with_max(&path, 1000).unwrap();
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
    fn the_tail_is_counted_in_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.log");
        let mut writer = LogWriter::open(&path).unwrap();
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
        let mut writer = LogWriter::open(&path).unwrap();
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
