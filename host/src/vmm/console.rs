//! Writes the VM's console to disk and keeps its last lines in memory.

use crate::store::atomic::FileError;
use crate::store::regular::{self, Access};
use crate::store::text::{harmless, ignore};
use crate::store::thread::{self, ThreadError};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Bytes that are kept in memory.
const TAIL: usize = 8 << 10;
/// The console's file is rotated at this size, and one older file is kept, so that a guest cannot fill the disk.
const MAX_FILE: u64 = 256 << 10;

/// The last bytes of a console.
#[derive(Debug, Clone, Default)]
pub struct ConsoleTail {
    shared: Arc<(Mutex<Tail>, Condvar)>,
}

#[derive(Debug, Default)]
struct Tail {
    bytes: VecDeque<u8>,
    ended: bool,
}

impl ConsoleTail {
    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Appends bytes and drops the oldest ones.
    pub fn push(&self, bytes: &[u8]) {
        let mut tail = self.tail();
        tail.bytes.extend(&bytes[bytes.len().saturating_sub(TAIL)..]);
        let excess = tail.bytes.len().saturating_sub(TAIL);
        tail.bytes.drain(..excess);
        self.shared.1.notify_all();
    }

    /// Marks the end of the guest's output.
    fn end(&self) {
        self.tail().ended = true;
        self.shared.1.notify_all();
    }

    /// Keeps the last bytes of the console until it ends.
    pub fn keep(&self, stream: impl Read) {
        self.keep_too(stream);
        self.end();
    }

    /// Keeps the last bytes of a stream without marking its end.
    pub fn keep_too(&self, mut stream: impl Read) {
        let mut buffer = [0u8; 4096];
        loop {
            match stream.read(&mut buffer) {
                Ok(read @ 1..) => self.push(&buffer[..read]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Ok(_) | Err(_) => return,
            }
        }
    }

    /// Waits until the console has ended, or until the deadline.
    pub fn wait_end(&self, until: Instant) {
        let mut tail = self.tail();
        while !tail.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            (tail, _) = self.shared.1.wait_timeout(tail, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until this text was printed, the console has ended, or the deadline. Returns whether the text was printed.
    pub fn wait_for(&self, text: &str, until: Instant) -> bool {
        let mut tail = self.tail();
        loop {
            if tail.bytes.make_contiguous().windows(text.len()).any(|window| window == text.as_bytes()) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || tail.ended {
                return false;
            }
            (tail, _) = self.shared.1.wait_timeout(tail, left).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The last lines, at most `count`, without control characters.
    pub fn lines(&self, count: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.tail().bytes.iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<String> = text
            .lines()
            .map(|line| harmless(line.trim_end(), &['\t']))
            .filter(|line: &String| !line.is_empty())
            .collect();
        lines[lines.len().saturating_sub(count)..].to_vec()
    }
}

/// Follows the console and the messages of a sandbox in two threads: the console goes to the file `console` of this directory, and both to the tail,
/// so that a failure shows both.
pub fn follow(
    console: impl Read + Send + 'static,
    diagnostics: impl Read + Send + 'static,
    log: &Path,
    tail: &ConsoleTail,
) -> Result<(), ThreadError> {
    let (one, two, path) = (tail.clone(), tail.clone(), log.join("console"));
    thread::start("console", move || {
        if let Err(error) = record(console, &path, &one) {
            one.push(format!("magikvm: {error}: {}\n", error.source).as_bytes());
        }
    })?;
    thread::start("diagnostics", move || two.keep_too(diagnostics)).map(drop)
}

/// Copies a console to a bounded file and its tail until it ends. What cannot be written is lost: the guest must never wait for the host's disk.
fn record(console: impl Read, path: &Path, tail: &ConsoleTail) -> Result<(), FileError> {
    let result = match regular::open(path, Access::Append) {
        Ok(file) => copy(console, file, path, tail),
        Err(error) => {
            tail.keep_too(console);
            Err(error)
        }
    };
    tail.end();
    result
}

fn copy(mut console: impl Read, mut file: File, path: &Path, tail: &ConsoleTail) -> Result<(), FileError> {
    let mut size = 0u64;
    let mut buffer = [0u8; 4096];
    loop {
        let read = match console.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(FileError::at("read the console for", path)(error)),
        };
        tail.push(&buffer[..read]);
        ignore(file.write_all(&buffer[..read]), "the disk may have room for the next bytes");
        size += u64::try_from(read).unwrap_or(0);
        if size > MAX_FILE {
            let older = PathBuf::from(format!("{}.1", path.display()));
            let next = fs::rename(path, &older).map_err(FileError::at("rename", path));
            match next.and_then(|()| regular::open(path, Access::Append)) {
                Ok(next) => file = next,
                Err(_) => ignore(file.set_len(0), "it grows no further than the disk allows"),
            }
            size = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_without_a_file_leaves_its_last_lines() {
        let tail = ConsoleTail::default();
        tail.wait_end(Instant::now());
        let until = Instant::now() + std::time::Duration::from_secs(3600);
        std::thread::scope(|scope| {
            scope.spawn(|| tail.keep(&b"first\nlast\n"[..]));
            tail.wait_end(until);
        });
        assert_eq!(tail.lines(1), ["last"]);
    }

    #[test]
    fn a_flood_leaves_bounded_files_and_its_last_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("console");
        let tail = ConsoleTail::default();
        let mut flood = b"x\x1b[31m\n".repeat(200_000);
        flood.extend(b"Kernel panic\n");
        record(flood.as_slice(), &path, &tail).unwrap();
        let kept: u64 = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
        assert!(kept <= 2 * (MAX_FILE + 4096), "{kept}");
        assert_eq!(tail.lines(2), ["x\u{fffd}[31m", "Kernel panic"]);
    }
}
