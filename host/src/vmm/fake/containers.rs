//! Containers that are threads of the fake guest: they print a line, echo their input, and end on request.

use super::Manner;
use magikvm_proto::files::FileTask;
use magikvm_proto::id::ContainerName;
use magikvm_proto::lifecycle::Role;
use magikvm_proto::wire::{ContainerStats, ExitStatus};
use magikvm_supervisor::sync::lock;
use magikvm_supervisor::{
    Broken, Containers, CreateOrder, Created, Ended, ExecOrder, Failure, FailureKind, Gone, Process, Subject,
};
use nix::pty::openpty;
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// The process ID of every fake process.
const PID: i32 = 2;

/// The owner of a process: a container's name, and the number of an exec.
type Key = (ContainerName, Option<u64>);

/// The containers of one pod.
#[derive(Debug)]
pub(super) struct FakeContainers {
    manner: Manner,
    /// The last container of the pod, which some manners do not start.
    last: Option<ContainerName>,
    processes: Mutex<HashMap<Key, Arc<FakeProcess>>>,
}

/// A fake process.
struct FakeProcess(Mutex<Option<Alive>>);

struct Alive {
    ended: Ended,
    /// The output, closed at the process's end so that readers see the end.
    output: Option<File>,
    errors: Option<File>,
}

impl std::fmt::Debug for FakeProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeProcess").field("alive", &lock(&self.0).is_some()).finish()
    }
}

impl FakeProcess {
    fn print(&self, bytes: &[u8]) -> io::Result<()> {
        let output = match &*lock(&self.0) {
            Some(Alive { output: Some(output), .. }) => output.try_clone()?,
            _ => return Ok(()),
        };
        (&output).write_all(bytes)
    }

    fn print_error(&self, bytes: &[u8]) -> io::Result<()> {
        let errors = match &*lock(&self.0) {
            Some(Alive { errors: Some(errors), .. }) => errors.try_clone()?,
            _ => return Ok(()),
        };
        (&errors).write_all(bytes)
    }

    fn end(&self, status: ExitStatus) {
        let alive = lock(&self.0).take();
        if let Some(Alive { ended, output, errors }) = alive {
            drop((output, errors));
            ended(status);
        }
    }
}

impl Process for FakeProcess {
    fn signal(&self, number: i32) -> io::Result<()> {
        if lock(&self.0).is_none() {
            return Err(io::Error::from_raw_os_error(nix::libc::ESRCH));
        }
        self.end(ExitStatus::signaled(number));
        Ok(())
    }
}

impl FakeContainers {
    pub(super) fn new(manner: Manner, last: Option<ContainerName>) -> Self {
        Self { manner, last, processes: Mutex::default() }
    }

    /// A process that runs `body` with its input when it is started.
    fn make(
        &self,
        key: Key,
        stdio: Vec<OwnedFd>,
        ended: Ended,
        body: impl FnOnce(&FakeProcess, File) -> io::Result<Option<ExitStatus>> + Send + 'static,
    ) -> Result<Created, Failure> {
        let mut stdio = stdio.into_iter();
        let (input, output, terminal) = match (stdio.next(), stdio.next()) {
            (Some(input), Some(output)) => (input, output, None),
            _ => {
                let pair = openpty(None, None)?;
                (pair.slave.try_clone()?, pair.slave, Some(pair.master))
            }
        };
        let alive = Alive { ended, output: Some(File::from(output)), errors: stdio.next().map(File::from) };
        let process = Arc::new(FakeProcess(Mutex::new(Some(alive))));
        lock(&self.processes).insert(key, Arc::clone(&process));
        let running = Arc::clone(&process);
        let start = Box::new(move || {
            std::thread::spawn(move || match body(&running, File::from(input)) {
                Ok(Some(status)) => running.end(status),
                // The process runs until a signal ends it.
                Ok(None) => {}
                Err(_) => running.end(ExitStatus::exited(1)),
            });
            Ok(())
        });
        Ok(Created { pid: PID, process, terminal, start })
    }
}

impl Containers for FakeContainers {
    fn begin(&self, _broken: Broken) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, order: CreateOrder<'_>, ended: Ended) -> Result<Created, Failure> {
        let name = order.plan.name.clone();
        let is_last = self.last.as_ref() == Some(&name);
        match self.manner {
            Manner::ContainerFails | Manner::ContainerFailsAtLength if is_last => {
                let times = if self.manner == Manner::ContainerFails { 1 } else { 8000 };
                let message = format!("no such {}[31mprogram", "\x1b".repeat(times));
                return Err(Failure { kind: FailureKind::NoProgram, message });
            }
            Manner::ContainerDenied if is_last => {
                let message = "program \"/app\" may not be executed".to_owned();
                return Err(Failure { kind: FailureKind::NotExecutable, message });
            }
            Manner::NeverReady if is_last => loop {
                std::thread::park();
            },
            _ => {}
        }
        let greeting = format!("hello from {name}\n");
        let code = exit_code(self.manner, order.plan.role, &name);
        self.make((name, None), order.stdio, ended, move |process, input| {
            process.print(greeting.as_bytes())?;
            if let Some(code) = code {
                return Ok(Some(ExitStatus::exited(code)));
            }
            for line in BufReader::new(input).lines() {
                let line = line?;
                if let Some(code) = line.strip_prefix("exit ") {
                    return Ok(Some(ExitStatus::exited(code.parse().unwrap_or(1))));
                }
                process.print(format!("{line}\n").as_bytes())?;
            }
            Ok(None)
        })
    }

    /// Prints its input and then its arguments, and exits with 0. `exit N` exits with N; the program `missing` does not exist.
    fn exec(&self, order: ExecOrder<'_>, ended: Ended) -> Result<Created, Failure> {
        let args = order.request.args.clone();
        if args.first().is_some_and(|program| program == "missing") {
            return Err(Failure::new(FailureKind::NoProgram, "there is no program \"missing\""));
        }
        let reads = order.request.stdin;
        let files = order.request.files.clone();
        let key = (order.request.container.clone(), Some(order.id));
        self.make(key, order.stdio, ended, move |process, mut input| {
            if let Some(task) = files {
                return Ok(Some(copy(process, &task, input)));
            }
            let mut buffer = vec![0; 64 << 10];
            if reads {
                loop {
                    match input.read(&mut buffer)? {
                        0 => break,
                        count => process.print(&buffer[..count])?,
                    }
                }
            }
            process.print(format!("{}\n", args.join(" ")).as_bytes())?;
            let code = match args.as_slice() {
                [name, code] if name == "exit" => code.parse().unwrap_or(1),
                _ => 0,
            };
            Ok(Some(ExitStatus::exited(code)))
        })
    }

    fn kill(&self, subject: Subject<'_>) {
        let found = lock(&self.processes).get(&key(subject)).cloned();
        if let Some(process) = found {
            process.end(ExitStatus::signaled(Signal::SIGKILL as i32));
        }
    }

    fn await_gone(&self, subject: Subject<'_>, _deadline: Instant) -> Gone {
        lock(&self.processes).remove(&key(subject));
        Gone { completely: true, oom_killed: false }
    }

    fn termination_message(&self, _container: &ContainerName) -> Option<String> {
        None
    }

    fn stats(&self, container: &ContainerName) -> Option<ContainerStats> {
        Some(ContainerStats {
            name: container.clone(),
            cpu_usec: 1_234_567,
            memory_bytes: 5 << 20,
            memory_peak_bytes: 6 << 20,
            memory_limit_bytes: Some(64 << 20),
            pids: 3,
        })
    }

    fn helpers(&self) -> Vec<i32> {
        Vec::new()
    }
}

/// Copies files beneath the directory `MAGIKVM_FAKE_FILES`, which stands for every container. A file `stream` in it is sent as it is in the place
/// of a directory `hostile`.
fn copy(process: &FakeProcess, task: &FileTask, input: File) -> ExitStatus {
    let root = PathBuf::from(std::env::var_os("MAGIKVM_FAKE_FILES").unwrap_or_default());
    if task.path() == "/hostile" {
        let sent = std::fs::read(root.join("stream")).and_then(|bytes| process.print(&bytes));
        return ExitStatus::exited(i32::from(sent.is_err()));
    }
    match magikvm_supervisor::files::carry_out(task, &root, input, Printer(process)) {
        Ok(()) => ExitStatus::exited(0),
        Err(message) => {
            let told = process.print_error(message.as_bytes());
            ExitStatus::exited(if told.is_ok() { 1 } else { 2 })
        }
    }
}

/// The output of a process.
struct Printer<'a>(&'a FakeProcess);

impl Write for Printer<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.print(bytes).map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The code with which a container ends at once. Init containers succeed, unless their name begins with `bad`; one that is `slow` runs
/// until it is stopped. The manner is that of main containers.
fn exit_code(manner: Manner, role: Role, name: &ContainerName) -> Option<i32> {
    match (role, manner) {
        (Role::Init, _) if name.as_str().starts_with("slow") => None,
        (Role::Init, _) => Some(if name.as_str().starts_with("bad") { 3 } else { 0 }),
        (Role::Main, Manner::Exit(code)) => Some(code),
        (Role::Main | Role::Sidecar, _) => None,
    }
}

fn key(subject: Subject<'_>) -> Key {
    match subject {
        Subject::Container(name) => (name.clone(), None),
        Subject::Exec { container, id } => (container.clone(), Some(id)),
    }
}
