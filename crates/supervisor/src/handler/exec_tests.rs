//! Programs of probes and hooks, as real processes that are in no container.

use super::super::{Outcome, Purpose, Running, Target, run};
use super::*;
use crate::interface::{Broken, CreateOrder, Created, Door, Ended, Gone, Home, Process};
use crate::output::buffer::LogBuffer;
use magikvm_proto::wire::{ClockSet, ContainerStats, GuestStats, Refusal};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

const PATIENCE: Duration = Duration::from_secs(20);

/// Makes a process group for each exec.
#[derive(Debug, Default)]
struct Groups(Mutex<HashMap<u64, Pid>>);

#[derive(Debug)]
struct Unsignalled;

impl Process for Unsignalled {
    fn signal(&self, _: i32) -> io::Result<()> {
        Ok(())
    }
}

impl crate::interface::Containers for Groups {
    fn begin(&self, _: Broken) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, _: CreateOrder<'_>, _: Ended) -> Result<Created, Failure> {
        Err(Failure::new(FailureKind::Other, "no containers here"))
    }

    fn exec(&self, order: ExecOrder<'_>, ended: Ended) -> Result<Created, Failure> {
        if order.request.container.as_str() == "ended" {
            return Err(Failure::new(FailureKind::Gone, "the container has just ended"));
        }
        let [program, args @ ..] = &order.request.args[..] else { panic!("no program") };
        let mut stdio = order.stdio.into_iter().map(Stdio::from);
        let mut command = Command::new(program);
        command.args(args).process_group(0);
        command.stdin(stdio.next().unwrap()).stdout(stdio.next().unwrap()).stderr(stdio.next().unwrap());
        let mut child = command.spawn().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                Failure::new(FailureKind::NoProgram, format!("there is no program {program:?}"))
            }
            _ => error.into(),
        })?;
        // The command holds the other ends of the pipes.
        drop(command);
        let pid = i32::try_from(child.id()).unwrap();
        lock(&self.0).insert(order.id, Pid::from_raw(pid));
        std::thread::spawn(move || {
            let status = child.wait().unwrap();
            ended(match status.code() {
                Some(code) => ExitStatus::exited(code),
                None => ExitStatus::signaled(status.signal().unwrap()),
            });
        });
        Ok(Created { pid, process: Arc::new(Unsignalled), terminal: None, start: Box::new(|| Ok(())) })
    }

    fn kill(&self, subject: Subject<'_>) {
        let Subject::Exec { id, .. } = subject else { panic!("{subject:?}") };
        if let Some(&group) = lock(&self.0).get(&id) {
            killpg(group, Signal::SIGKILL).ok();
        }
    }

    fn await_gone(&self, subject: Subject<'_>, _: Instant) -> Gone {
        let Subject::Exec { id, .. } = subject else { panic!("{subject:?}") };
        lock(&self.0).remove(&id);
        Gone { completely: true, oom_killed: false }
    }

    fn termination_message(&self, _: &ContainerName) -> Option<String> {
        None
    }

    fn stats(&self, _: &ContainerName) -> Option<ContainerStats> {
        None
    }

    fn helpers(&self) -> Vec<i32> {
        Vec::new()
    }
}

/// A handler has no business with its surroundings.
#[derive(Debug)]
struct Nowhere;

impl Home for Nowhere {
    fn note(&self, text: &str) {
        panic!("{text}");
    }

    fn set_clock(&self, _: u64) -> Result<ClockSet, Refusal> {
        panic!("the clock is set");
    }

    fn listener(&self, door: Door) -> BorrowedFd<'_> {
        panic!("{door:?}");
    }

    fn accept(&self, door: Door) -> io::Result<Option<OwnedFd>> {
        panic!("{door:?}");
    }

    fn stats(&self, _: &[i32]) -> GuestStats {
        panic!("stats are asked for");
    }

    fn end(&self) -> ! {
        panic!("the end");
    }
}

struct Room {
    pod: Arc<Pod>,
    directory: tempfile::TempDir,
}

impl Room {
    fn new() -> Self {
        let logs = Arc::new(LogBuffer::new().unwrap());
        let (tell, _) = channel();
        let pod = Pod::new(None, logs, Arc::new(Groups::default()), Arc::new(Nowhere), tell);
        Self { pod: Arc::new(pod), directory: tempfile::tempdir().unwrap() }
    }

    fn begin(&self, purpose: Purpose, command: &[&str], timeout: Duration) -> (Running, Receiver<Outcome>) {
        self.begin_in("main", purpose, command, timeout)
    }

    fn begin_in(
        &self,
        container: &str,
        purpose: Purpose,
        command: &[&str],
        timeout: Duration,
    ) -> (Running, Receiver<Outcome>) {
        let command = command.iter().map(|&word| word.to_owned()).collect();
        let handler = magikvm_proto::lifecycle::Handler::Exec { command };
        let (tell, told) = channel();
        let container = container.parse().unwrap();
        let target = Target { pod: &self.pod, container: &container, purpose };
        (run(&handler, target, timeout, move |outcome| tell.send(outcome).unwrap()), told)
    }

    fn probe(&self, command: &[&str], timeout: Duration) -> Outcome {
        let (_running, told) = self.begin(Purpose::Probe, command, timeout);
        told.recv_timeout(PATIENCE).unwrap()
    }

    /// A command that leaves a process in the background, whose id it writes to a file, and then goes on.
    fn leaving(&self, then: &str) -> String {
        format!("sleep 1000 & echo $! > {0}/new; mv {0}/new {0}/pid; {then}", self.directory.path().display())
    }

    /// The process in the background.
    fn background(&self) -> i32 {
        let path = self.directory.path().join("pid");
        until(|| std::fs::read_to_string(&path).ok()?.trim().parse().ok())
    }
}

/// Asks until there is an answer.
fn until<T>(mut ask: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < deadline, "no answer");
        std::thread::yield_now();
    }
}

/// Whether a process runs, and is no zombie.
fn runs(pid: i32) -> bool {
    let stat =
        std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn failure(text: &str) -> Outcome {
    Outcome::Failure(text.to_owned())
}

#[test]
fn the_exit_code_judges_and_the_output_explains() {
    let room = Room::new();
    let probe = |command: &[&str]| room.probe(command, PATIENCE);
    assert_eq!(probe(&["sh", "-c", "echo fine; exit 0"]), Outcome::Success);
    assert_eq!(probe(&["sh", "-c", "echo one; echo two >&2; exit 3"]), failure("one\ntwo"));
    assert_eq!(probe(&["sh", "-c", "exit 3"]), failure("command \"sh -c exit 3\" exited with 3"));
    assert_eq!(probe(&["sh", "-c", "kill -9 $$"]), failure("command \"sh -c kill -9 $$\" exited with 137"));
    assert_eq!(probe(&["no-such-program"]), failure("there is no program \"no-such-program\""));
    // It reads nothing.
    assert_eq!(probe(&["sh", "-c", "cat; exit 1"]), failure("command \"sh -c cat; exit 1\" exited with 1"));
    let (_running, told) = room.begin_in("ended", Purpose::Probe, &["true"], PATIENCE);
    assert_eq!(told.recv_timeout(PATIENCE), Ok(Outcome::Error("the container has just ended".to_owned())));
}

#[test]
fn output_is_kept_to_a_limit_and_never_waited_for() {
    let room = Room::new();
    match room.probe(&["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; exit 1"], PATIENCE) {
        Outcome::Failure(text) => assert_eq!(text, "x".repeat(MAX_PROBE_OUTPUT)),
        other => panic!("{other:?}"),
    }
    // One that never stops writing is stopped by the timeout.
    let endless = ["sh", "-c", "exec yes"];
    assert_eq!(
        room.probe(&endless, Duration::from_millis(300)),
        failure("command \"sh -c exec yes\" timed out")
    );
    // One that holds the output open does not hold the probe.
    let background = room.leaving("exit 0");
    assert_eq!(room.probe(&["sh", "-c", &background], PATIENCE), Outcome::Success);
}

#[test]
fn a_program_that_takes_too_long_is_killed_with_what_it_has_started() {
    let room = Room::new();
    let command = room.leaving("wait");
    let begun = Instant::now();
    let timeout = Duration::from_millis(400);
    let expected = format!("command {:?} timed out", format!("sh -c {command}"));
    assert_eq!(room.probe(&["sh", "-c", &command], timeout), Outcome::Failure(expected));
    assert!((timeout..PATIENCE).contains(&begun.elapsed()));
    let pid = room.background();
    until(|| (!runs(pid)).then_some(()));
}

#[test]
fn nothing_of_a_probe_stays_and_what_a_hook_leaves_does() {
    let room = Room::new();
    assert_eq!(room.probe(&["sh", "-c", &room.leaving("exit 0")], PATIENCE), Outcome::Success);
    let pid = room.background();
    until(|| (!runs(pid)).then_some(()));
    let room = Room::new();
    let (_running, told) = room.begin(Purpose::Hook, &["sh", "-c", &room.leaving("exit 0")], PATIENCE);
    assert_eq!(told.recv_timeout(PATIENCE), Ok(Outcome::Success));
    let pid = room.background();
    assert!(runs(pid));
    nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
}

#[test]
fn one_that_is_cancelled_is_killed_and_says_nothing() {
    let room = Room::new();
    let (running, told) = room.begin(Purpose::Hook, &["sh", "-c", &room.leaving("wait")], PATIENCE);
    let pid = room.background();
    assert!(runs(pid));
    drop(running);
    until(|| (!runs(pid)).then_some(()));
    // The other end is dropped without a word.
    assert!(
        told.recv_timeout(PATIENCE)
            .is_err_and(|error| error == std::sync::mpsc::RecvTimeoutError::Disconnected)
    );
}
