//! Runs the program, captures its output and exit code, and kills it when it takes too long.

use crate::wait::time_factor;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Time for a command unless a test says otherwise. It is multiplied by [`time_factor`](crate::wait::time_factor), as every limit.
pub const LIMIT: Duration = Duration::from_secs(40);

#[derive(Debug)]
pub struct Cmd {
    command: Command,
    input: Vec<u8>,
    limit: Duration,
}

/// The outcome of a command.
#[derive(Debug)]
pub struct Output {
    /// Exit code; 128 and the number of the signal that ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
    what: String,
}

#[derive(Debug)]
pub struct Running {
    child: Child,
    stdout: File,
    stderr: File,
    started: Instant,
    limit: Duration,
    what: String,
}

impl Cmd {
    /// A program in a given environment, its standard input empty.
    pub fn new(program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.env_clear();
        Self { command, input: Vec::new(), limit: LIMIT }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    #[must_use]
    pub fn args<A: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.command.args(args);
        self
    }

    #[must_use]
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    #[must_use]
    pub fn current_dir(mut self, dir: impl AsRef<std::path::Path>) -> Self {
        self.command.current_dir(dir);
        self
    }

    #[must_use]
    pub fn input(mut self, bytes: impl Into<Vec<u8>>) -> Self {
        self.input = bytes.into();
        self
    }

    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// The command for other uses: with a terminal, or in a pipe.
    pub fn into_command(self) -> Command {
        self.command
    }

    /// Starts the command. Its output goes to files, so that nothing blocks and tests can read it at any time.
    #[track_caller]
    pub fn spawn(mut self) -> Running {
        let what = format!("{:?}", self.command);
        let [mut stdin, stdout, stderr] = [(); 3].map(|()| tempfile::tempfile().expect("a temporary file"));
        stdin.write_all(&self.input).and_then(|()| stdin.rewind()).expect("write a temporary file");
        let keep = |file: &File| Stdio::from(file.try_clone().expect("one more descriptor"));
        let child =
            self.command.stdin(Stdio::from(stdin)).stdout(keep(&stdout)).stderr(keep(&stderr)).spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {what}: {error}"));
        Running { child, stdout, stderr, started: Instant::now(), limit: self.limit, what }
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(self) -> Output {
        self.spawn().wait()
    }

    /// Runs it to its end, which must be a success.
    #[track_caller]
    pub fn ok(self) -> Output {
        self.run().expect_code(0)
    }

    /// Runs it to its end, which must be this exit code.
    #[track_caller]
    pub fn fails(self, code: i32) -> Output {
        assert_ne!(code, 0);
        self.run().expect_code(code)
    }
}

fn so_far(file: &File) -> String {
    // The child writes through the same open file description, whose position must not move: read by position.
    use std::os::unix::fs::FileExt;
    let mut bytes = vec![0; usize::try_from(file.metadata().expect("its size").len()).unwrap()];
    let read = file.read_at(&mut bytes, 0).expect("read a temporary file");
    bytes.truncate(read);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn all(mut file: &File) -> String {
    let mut bytes = Vec::new();
    file.seek(SeekFrom::Start(0)).and_then(|_| file.read_to_end(&mut bytes)).expect("read a temporary file");
    String::from_utf8_lossy(&bytes).into_owned()
}

impl Running {
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    /// The standard output so far.
    pub fn stdout(&self) -> String {
        so_far(&self.stdout)
    }

    /// How many bytes it has printed so far.
    pub fn printed(&self) -> u64 {
        self.stdout.metadata().expect("its size").len()
    }

    /// The standard error so far.
    pub fn stderr(&self) -> String {
        so_far(&self.stderr)
    }

    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal)
            .unwrap_or_else(|errno| panic!("{signal} to {}: {errno}", self.what));
    }

    /// Waits until its standard output holds a text.
    #[track_caller]
    pub fn wait_for_stdout(&mut self, text: &str) {
        self.wait_for_output(text, |running| running.stdout());
    }

    /// Waits until its standard error holds a text.
    #[track_caller]
    pub fn wait_for_stderr(&mut self, text: &str) {
        self.wait_for_output(text, |running| running.stderr());
    }

    #[track_caller]
    fn wait_for_output(&mut self, text: &str, read: impl Fn(&Self) -> String) {
        let found = crate::wait::wait_for(&format!("{text:?} from {}", self.what), self.limit, || {
            let ended = self.child.try_wait().expect("wait for a child").is_some();
            match read(self).contains(text) {
                true => Some(true),
                false => ended.then_some(false),
            }
        });
        assert!(found, "{} ended without {text:?}\n{}\n{}", self.what, self.stdout(), self.stderr());
    }

    /// Waits for its end; kills it and fails the test when it takes too long.
    #[track_caller]
    pub fn wait(mut self) -> Output {
        let limit = self.limit * time_factor();
        let deadline = self.started + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait for a child") {
                break status;
            }
            if Instant::now() > deadline {
                self.child.kill().expect("kill a child");
                self.child.wait().expect("wait for a child");
                let (stdout, stderr) = (all(&self.stdout), all(&self.stderr));
                panic!(
                    "still running after {} s: {}\nstdout:\n{stdout}\nstderr:\n{stderr}",
                    limit.as_secs(),
                    self.what
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        Output {
            code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
            stdout: all(&self.stdout),
            stderr: all(&self.stderr),
            took: self.started.elapsed(),
            what: std::mem::take(&mut self.what),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) && self.child.kill().is_ok() {
            // It does not matter any more whether the process is reaped.
            self.child.wait().ok();
        }
    }
}

impl Output {
    /// Fails the test unless the exit code is this one.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert_eq!(
            self.code, code,
            "exit code of {}\nstdout:\n{}\nstderr:\n{}",
            self.what, self.stdout, self.stderr
        );
        self
    }

    /// Fails the test unless standard error holds this text.
    #[track_caller]
    pub fn complains(self, text: &str) -> Self {
        assert!(self.stderr.contains(text), "no {text:?} from {}\nstderr:\n{}", self.what, self.stderr);
        self
    }

    /// Fails the test unless standard output holds this text.
    #[track_caller]
    pub fn prints(self, text: &str) -> Self {
        assert!(self.stdout.contains(text), "no {text:?} from {}\nstdout:\n{}", self.what, self.stdout);
        self
    }

    /// Both outputs and the code, for a snapshot.
    pub fn transcript(&self) -> String {
        let mut text = String::new();
        if self.code != 0 {
            text.push_str(&format!("[exit code {}]\n", self.code));
        }
        if !self.stdout.is_empty() {
            text.push_str(&format!("[stdout]\n{}", self.stdout));
        }
        if !self.stderr.is_empty() {
            text.push_str(&format!("[stderr]\n{}", self.stderr));
        }
        text
    }
}
