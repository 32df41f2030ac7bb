//! Runs another program: its output goes to a log and to a listener, and its whole process group ends when the user asks to stop.

use crate::files::FileError;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, PipeReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// How often a quiet child and a request to stop are checked.
const TICK: Duration = Duration::from_millis(200);
/// How long a child may take to end after SIGTERM.
const GRACE: Duration = Duration::from_secs(5);
/// Most bytes of one line of output; the rest counts as the next line.
const MAX_LINE: u64 = 4096;
/// How many lines of a failed child's output are shown.
const TAIL: usize = 20;

/// The user asked to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Whether the user has asked to stop.
#[derive(Debug, Clone, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Set by SIGINT, SIGTERM and SIGHUP. The second SIGINT ends the process immediately.
    pub fn on_signals() -> io::Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let stop = Self::default();
        signal_hook::flag::register_conditional_shutdown(SIGINT, 130, Arc::clone(&stop.0))?;
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&stop.0))?;
        }
        Ok(stop)
    }

    /// Returns an error once the user has asked to stop.
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }
}

/// Why a child did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    #[error("cannot start {program}")]
    Spawn {
        program: String,
        #[source]
        source: io::Error,
    },
    /// The child ended with an error.
    #[error("`{command}` failed ({status}); the end of {}:\n{tail}", log.display())]
    Failed {
        command: String,
        /// Exit code or signal.
        status: ExitStatus,
        log: PathBuf,
        tail: String,
    },
    /// Its log could not be written, or waiting for it failed.
    #[error(transparent)]
    File(#[from] FileError),
    /// The user asked to stop, and the child has ended.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

/// The common log of all children of one job.
#[derive(Debug)]
pub struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Creates an empty log, which replaces an older one.
    pub fn create(path: &Path) -> Result<Self, FileError> {
        let file = File::create(path).map_err(FileError::at("create", path))?;
        Ok(Self { file, path: path.to_owned() })
    }

    fn line(&mut self, line: &[u8]) -> Result<(), FileError> {
        self.file.write_all(line).map_err(FileError::at("write", &self.path))
    }
}

/// Runs the command to its end with the standard input that the caller has set. `listen` gets every line of its output, and `None` whenever it was quiet for a while.
///
/// The output comes through a pipe that this process reads: if this process is killed, the child ends at its next line.
pub fn run(
    mut command: Command,
    log: &mut Log,
    stop: &Stop,
    listen: &mut dyn FnMut(Option<&str>),
) -> Result<(), ChildError> {
    let words: Vec<_> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect();
    let text = words.join(" ");
    log.line(format!("$ {text}\n").as_bytes())?;
    let spawn_error = |source| ChildError::Spawn { program: text.clone(), source };
    let (reader, writer) = io::pipe().map_err(spawn_error)?;
    command.stdout(writer.try_clone().map_err(spawn_error)?).stderr(writer).process_group(0);
    let mut child = command.spawn().map_err(spawn_error)?;
    // The command holds the pipe's other end. While it is open, the reader would never see the end.
    drop(command);
    let lines = read_lines(reader);
    let mut tail = VecDeque::with_capacity(TAIL);
    if let Err(error) = follow(&lines, log, stop, &mut tail, listen) {
        end(&mut child, &lines);
        return Err(error);
    }
    let status = child.wait().map_err(spawn_error)?;
    if status.success() {
        return Ok(());
    }
    let tail = Vec::from(tail).join("\n");
    Err(ChildError::Failed { command: text, status, log: log.path.clone(), tail })
}

fn read_lines(pipe: PipeReader) -> Receiver<Vec<u8>> {
    let (sender, receiver) = sync_channel(256);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(pipe);
        loop {
            let mut line = Vec::new();
            match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(read) if read > 0 && sender.send(line).is_ok() => {}
                _ => return,
            }
        }
    });
    receiver
}

fn follow(
    lines: &Receiver<Vec<u8>>,
    log: &mut Log,
    stop: &Stop,
    tail: &mut VecDeque<String>,
    listen: &mut dyn FnMut(Option<&str>),
) -> Result<(), ChildError> {
    loop {
        stop.check()?;
        match lines.recv_timeout(TICK) {
            Ok(line) => {
                log.line(&line)?;
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                listen(Some(&text));
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(text);
            }
            Err(RecvTimeoutError::Timeout) => listen(None),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Ends the child's process group and waits until none of its processes holds the output any more, so that its files can be removed.
fn end(child: &mut Child, lines: &Receiver<Vec<u8>>) {
    let group = i32::try_from(child.id()).map(Pid::from_raw);
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        // A group that no longer exists is fine. The child is not reaped yet, so the number still belongs to it.
        let _gone = group.is_ok_and(|group| killpg(group, signal).is_err());
        let deadline = Instant::now() + GRACE;
        loop {
            match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => {
                    let _reaped = child.wait().is_ok();
                    return;
                }
            }
        }
    }
    let _reaped = child.wait().is_ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    fn log() -> (tempfile::TempDir, Log) {
        let dir = tempfile::tempdir().unwrap();
        let log = Log::create(&dir.path().join("log")).unwrap();
        (dir, log)
    }

    #[test]
    fn both_outputs_go_to_the_listener_and_the_log() {
        let (dir, mut log) = log();
        let mut heard = Vec::new();
        run(shell("echo one; echo two >&2"), &mut log, &Stop::default(), &mut |line| {
            heard.extend(line.map(str::to_owned))
        })
        .unwrap();
        assert_eq!(heard, ["one", "two"]);
        let text = std::fs::read_to_string(dir.path().join("log")).unwrap();
        assert_eq!(text, "$ sh -c echo one; echo two >&2\none\ntwo\n");
    }

    #[test]
    fn a_failure_shows_the_last_lines() {
        let (_dir, mut log) = log();
        let error = run(shell("seq 1 100; exit 3"), &mut log, &Stop::default(), &mut |_| {}).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("exit status: 3") && text.contains("\n81\n") && text.ends_with("\n100"),
            "{text}"
        );
        assert!(!text.contains("\n80\n"), "{text}");
    }

    #[test]
    fn a_request_to_stop_ends_the_grandchildren_too() {
        let (_dir, mut log) = log();
        let stop = Stop::default();
        let started = Instant::now();
        // The background process holds the output open: `run` returns only when that process has ended too.
        let error = run(shell("sleep 1000 & echo ready; wait"), &mut log, &stop, &mut |line| {
            if line == Some("ready") {
                stop.0.store(true, Ordering::Relaxed);
            }
        })
        .unwrap_err();
        assert!(matches!(error, ChildError::Interrupted(_)), "{error}");
        assert!(started.elapsed() < GRACE, "SIGTERM was enough");
    }

    #[test]
    fn a_program_that_does_not_exist_is_named() {
        let (_dir, mut log) = log();
        let error =
            run(Command::new("no-such-program"), &mut log, &Stop::default(), &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("no-such-program"), "{error}");
    }
}
