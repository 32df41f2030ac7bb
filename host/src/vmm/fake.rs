//! A machine that is none: a process that speaks the guest's side of the wire and runs nothing. For tests of the host: of its verbs, and of
//! what it makes of a guest that lies, floods, hangs or sends garbage. Compiled only with the feature `testing`.

mod forward;

use super::{Accel, Capabilities, Unavailable, VmChild, VmConfig, Vmm, VmmError};
use crate::agent::{Connector, Handshake};
use crate::process;
use crate::store::layout::AGENT_SOCK;
use crate::store::sandbox::Role;
use magikvm_proto::budget::GUEST_LOG_DRAIN_MS;
use magikvm_proto::codec::{read_frame, read_message, write_frame, write_message};
use magikvm_proto::id::ContainerName;
use magikvm_proto::path::AGENT_LISTENING;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::state::ContainerState;
use magikvm_proto::wire::*;
use std::io::{BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The hidden verb that makes a process a guest.
pub const GUEST_VERB: &str = "__fake-guest";

/// The driver.
#[derive(Debug)]
pub struct Fake;

impl Vmm for Fake {
    fn probe(&self, _accel: Accel) -> Result<Capabilities, Unavailable> {
        Ok(Capabilities { version: "fake".to_owned() })
    }

    fn spawn(&self, _config: &VmConfig, dir: &Path) -> Result<VmChild, VmmError> {
        let program = std::env::current_exe()
            .map_err(|source| VmmError::Start { program: GUEST_VERB.into(), source })?;
        let mut command = Command::new(program);
        command
            .arg(GUEST_VERB)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut guest = process::spawn(Role::Vmm, "fake", &mut command)?;
        let (console, diagnostics) = guest.take_output()?;
        let connector = Connector { socket: dir.join(AGENT_SOCK), handshake: Handshake::Direct };
        Ok(VmChild { processes: vec![guest], connector, console, diagnostics, reports: None })
    }
}

/// How the guest behaves (`MAGIKVM_FAKE`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// As a guest should; containers run until they are stopped.
    Run,
    /// As a guest should; containers exit at once with this code.
    Exit(i32),
    /// Panics on the console and ends.
    Panic,
    /// Accepts, and never says a word.
    Silent,
    /// Answers hello with bytes that are no JSON.
    Garbage,
    /// Answers hello with a line that never ends.
    EndlessLine,
    /// Speaks generation 99.
    Generation,
    /// Reports a container that the pod does not have.
    UnknownContainer,
    /// Says that a container could not be started.
    ContainerFails,
    /// The same at great length.
    ContainerFailsAtLength,
    /// Answers hello and then ends.
    Vanish,
    /// Never starts its containers' last one.
    NeverReady,
    /// Prints on its console without end, and otherwise behaves.
    FloodConsole,
    /// Sends events without end.
    FloodEvents,
    /// Starts, and then reports restarts without end.
    FloodRestarts,
    /// Sends a log frame that claims to be huge.
    HugeFrame,
    /// Does not end when told to.
    Immortal,
    /// Starts and shows its logs, and answers nothing else.
    Deaf,
    /// Has a clock that is 30 s late until it is set.
    LateClock,
    /// Says of its clock what cannot be.
    LyingClock,
    /// Answers the time with bytes that are no JSON.
    GarbageClock,
    /// Does not know what the time is for.
    NoClock,
    /// Rests for some seconds in the middle of a log frame.
    SlowFrame,
    /// Answers forwarded connections with bytes that are no JSON.
    ForwardGarbage,
    /// Accepts forwarded connections, and never says a word.
    ForwardSilent,
    /// Sends more on forwarded connections than it may.
    ForwardFlood,
}

fn manner() -> Manner {
    let text = std::env::var("MAGIKVM_FAKE").unwrap_or_default();
    match text.as_str() {
        "panic" => Manner::Panic,
        "silent" => Manner::Silent,
        "garbage" => Manner::Garbage,
        "endless-line" => Manner::EndlessLine,
        "generation" => Manner::Generation,
        "unknown-container" => Manner::UnknownContainer,
        "container-fails" => Manner::ContainerFails,
        "container-fails-at-length" => Manner::ContainerFailsAtLength,
        "vanish" => Manner::Vanish,
        "never-ready" => Manner::NeverReady,
        "flood-console" => Manner::FloodConsole,
        "flood-events" => Manner::FloodEvents,
        "flood-restarts" => Manner::FloodRestarts,
        "huge-frame" => Manner::HugeFrame,
        "immortal" => Manner::Immortal,
        "deaf" => Manner::Deaf,
        "late-clock" => Manner::LateClock,
        "lying-clock" => Manner::LyingClock,
        "garbage-clock" => Manner::GarbageClock,
        "no-clock" => Manner::NoClock,
        "slow-frame" => Manner::SlowFrame,
        "forward-garbage" => Manner::ForwardGarbage,
        "forward-silent" => Manner::ForwardSilent,
        "forward-flood" => Manner::ForwardFlood,
        other => {
            other.strip_prefix("exit=").and_then(|code| code.parse().ok()).map_or(Manner::Run, Manner::Exit)
        }
    }
}

/// What all connections share.
#[derive(Debug)]
struct Guest {
    manner: Manner,
    containers: Vec<ContainerName>,
    events: Mutex<Vec<Event>>,
    changed: Condvar,
    /// Whether the host has taken the logs, which a guest that is over waits for.
    logs_taken: Mutex<bool>,
    taken: Condvar,
    /// By how much its clock is ahead, in milliseconds.
    clock_ms: Mutex<i64>,
}

/// The guest's process. Its directory is the working directory.
pub fn guest_main() -> ExitCode {
    let manner = manner();
    if manner == Manner::Panic {
        console("Kernel panic - not syncing: no init \x1b[2J found\n");
        return ExitCode::FAILURE;
    }
    let Some(containers) = plan("pod.erofs") else { return ExitCode::FAILURE };
    let clock_ms = Mutex::new(if manner == Manner::LateClock { -30_012 } else { 0 });
    let events = Mutex::new(Vec::new());
    let guest = Arc::new(Guest {
        manner,
        containers,
        events,
        changed: Condvar::new(),
        logs_taken: Mutex::new(false),
        taken: Condvar::new(),
        clock_ms,
    });
    let Ok(listener) = UnixListener::bind(AGENT_SOCK) else { return ExitCode::FAILURE };
    if forward::listen(manner).is_err() {
        return ExitCode::FAILURE;
    }
    console(&format!("{AGENT_LISTENING}\n"));
    guest.boot();
    for stream in listener.incoming().filter_map(Result::ok) {
        let guest = Arc::clone(&guest);
        std::thread::spawn(move || guest.serve(&stream));
    }
    ExitCode::SUCCESS
}

fn console(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

/// The containers of the baked plan. The file system is not compressed, so the plan stands in it as it was written.
fn plan(path: &str) -> Option<Vec<ContainerName>> {
    let bytes = std::fs::read(path).ok()?;
    let begin = b"{\"generation\":";
    let at = bytes.windows(begin.len()).position(|window| window == begin)?;
    let plan = serde_json::Deserializer::from_slice(&bytes[at..]).into_iter::<GuestPlan>().next()?.ok()?;
    Some(plan.containers.into_iter().map(|container| container.name).collect())
}

impl Guest {
    fn emit(&self, kind: EventKind) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let seq = u64::try_from(events.len()).unwrap_or(0) + 1;
        events.push(Event { seq, kind });
        self.changed.notify_all();
    }

    /// Ends the containers that have not ended yet, and with them the pod.
    fn end_all(&self, signal: i32) {
        for container in self.containers.iter().rev() {
            let ended = |event: &Event| matches!(&event.kind, EventKind::ContainerExited { container: who, .. } if who == container);
            if !self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().any(ended) {
                let exit = ExitStatus::signaled(signal);
                self.emit(EventKind::ContainerExited {
                    container: container.clone(),
                    exit,
                    restart_in_ms: None,
                });
            }
        }
        self.emit(EventKind::PodEnded);
    }

    /// The pod is over and the host has been told: ends as a guest does.
    fn finish(&self) -> ! {
        let taken = self.logs_taken.lock().unwrap_or_else(PoisonError::into_inner);
        let limit = Duration::from_millis(GUEST_LOG_DRAIN_MS);
        drop(self.taken.wait_timeout_while(taken, limit, |taken| !*taken));
        // A socket keeps what was written to it for its reader.
        std::process::exit(0)
    }

    fn boot(&self) {
        if self.manner == Manner::FloodConsole {
            std::thread::spawn(|| {
                loop {
                    console("all work and no play makes a dull guest \x07\n");
                }
            });
        }
        for (index, container) in self.containers.iter().enumerate() {
            let container = container.clone();
            let last = index + 1 == self.containers.len();
            match self.manner {
                Manner::ContainerFails | Manner::ContainerFailsAtLength if last => {
                    let times = if self.manner == Manner::ContainerFails { 1 } else { 8000 };
                    let message = format!("no such {}[31mprogram", "\x1b".repeat(times));
                    return self.emit(EventKind::ContainerFailed { container, message, restart_in_ms: None });
                }
                Manner::NeverReady if last => return,
                _ => self.emit(EventKind::ContainerStarted { container, pid: 2, restart_count: 0 }),
            }
        }
        if self.manner == Manner::UnknownContainer {
            let container: ContainerName = "nobody".parse().unwrap_or_else(|_| self.containers[0].clone());
            self.emit(EventKind::ContainerStarted { container, pid: 2, restart_count: 0 });
        }
        self.emit(EventKind::PodStarted);
        if let Manner::Exit(code) = self.manner {
            for container in self.containers.clone() {
                self.emit(EventKind::ContainerExited {
                    container,
                    exit: ExitStatus::exited(code),
                    restart_in_ms: None,
                });
            }
            self.emit(EventKind::PodEnded);
        }
    }

    fn serve(&self, stream: &UnixStream) {
        let mut reader = BufReader::new(stream);
        while let Ok(Some(request)) = read_message::<Request>(&mut reader) {
            if self.answer(request, stream, &mut reader).is_err() {
                return;
            }
        }
    }

    fn answer(
        &self,
        request: Request,
        mut out: &UnixStream,
        reader: &mut BufReader<&UnixStream>,
    ) -> Result<(), magikvm_proto::codec::CodecError> {
        let is_heard = matches!(request, Request::Hello { .. } | Request::Events { .. } | Request::Logs);
        if self.manner == Manner::Deaf && !is_heard {
            std::thread::sleep(Duration::from_secs(3600));
        }
        match request {
            Request::Hello { .. } => self.hello(out),
            Request::Ping => write_message(&mut out, &Reply::Ok(Done {})),
            Request::Signal { signal, .. } => {
                self.end_all(signal);
                write_message(&mut out, &Reply::Ok(Done {}))
            }
            Request::Status => {
                let containers = self.containers.iter().map(|name| ContainerStatus {
                    name: name.clone(),
                    restart_count: 0,
                    state: ContainerState::Running { started_ms: 0 },
                    last: None,
                });
                write_message(
                    &mut out,
                    &Reply::Ok(Status { containers: containers.collect(), last_event: 0 }),
                )
            }
            Request::Stats => {
                let containers = self.containers.iter().map(|name| ContainerStats {
                    name: name.clone(),
                    cpu_usec: 1_234_567,
                    memory_bytes: 5 << 20,
                    memory_peak_bytes: 6 << 20,
                    memory_limit_bytes: Some(64 << 20),
                    pids: 3,
                });
                let guest = GuestStats {
                    uptime_ms: 5000,
                    memory_total_bytes: 128 << 20,
                    memory_available_bytes: 100 << 20,
                    init_pss_bytes: 4 << 20,
                };
                write_message(&mut out, &Reply::Ok(Stats { containers: containers.collect(), guest }))
            }
            Request::Exec(exec) => self.exec(&exec, out, reader),
            Request::Attach { .. } => {
                write_message(&mut out, &Reply::Ok(Attached { terminal: false }))?;
                output(out, b"attached\n", None)?;
                exit(out, ExitStatus::exited(0))
            }
            Request::Logs => self.logs(out),
            Request::Events { .. } => self.events(out),
            Request::Clock { .. } => self.clock(out),
            Request::Shutdown { .. } => self.shutdown(out),
        }
    }

    /// The process has no clock of its own, so it pretends.
    fn clock(&self, mut out: &UnixStream) -> Result<(), magikvm_proto::codec::CodecError> {
        let offset_ms = std::mem::take(&mut *self.clock_ms.lock().unwrap_or_else(PoisonError::into_inner));
        match self.manner {
            Manner::LyingClock => write_message(&mut out, &Reply::Ok(ClockSet { offset_ms: i64::MIN })),
            Manner::GarbageClock => Ok(out.write_all(b"{\"status\":\"ok\",\"offset_ms\":1e99}\n")?),
            Manner::NoClock => {
                let message = "not a request: unknown variant `clock`\x1b[2J";
                write_message(&mut out, &Reply::<Done>::Error(Refusal::new(RefusalCode::Invalid, message)))
            }
            _ => write_message(&mut out, &Reply::Ok(ClockSet { offset_ms })),
        }
    }

    fn hello(&self, mut out: &UnixStream) -> Result<(), magikvm_proto::codec::CodecError> {
        match self.manner {
            Manner::Silent => std::thread::sleep(Duration::from_secs(3600)),
            Manner::Garbage => out.write_all(b"\x00\xff nonsense }\n")?,
            Manner::EndlessLine => loop {
                out.write_all(&[b'x'; 4096])?;
            },
            _ => {}
        }
        let generation = if self.manner == Manner::Generation { 99 } else { magikvm_proto::GENERATION };
        let capabilities = if self.manner == Manner::NoClock { vec![] } else { vec!["clock".to_owned()] };
        let hello = Hello { generation, version: "fake".to_owned(), pod: None, capabilities };
        write_message(&mut out, &Reply::Ok(hello))?;
        if self.manner == Manner::Vanish {
            std::process::exit(7);
        }
        Ok(())
    }

    /// `cat` of what is sent to it, then the arguments, exit code 0; `exit N` exits with N, `missing` is not there.
    fn exec(
        &self,
        exec: &ExecRequest,
        mut out: &UnixStream,
        reader: &mut BufReader<&UnixStream>,
    ) -> Result<(), magikvm_proto::codec::CodecError> {
        if exec.args[0] == "missing" {
            let refusal = Refusal::new(RefusalCode::NotFound, "there is no program \"missing\"");
            return write_message(&mut out, &Reply::<Done>::Error(refusal));
        }
        write_message(&mut out, &Reply::Ok(ExecStarted { pid: 3 }))?;
        let mut payload = Vec::new();
        let mut open = exec.stdin;
        while open {
            match read_frame(reader, &mut payload)? {
                Some(FrameHeader { stream: Stream::Stdin, .. }) => output(out, &payload, None)?,
                Some(FrameHeader { stream: Stream::End, .. }) | None => open = false,
                Some(_) => {}
            }
        }
        output(out, format!("{}\n", exec.args.join(" ")).as_bytes(), None)?;
        let code = match exec.args.as_slice() {
            [name, code] if name == "exit" => code.parse().unwrap_or(1),
            _ => 0,
        };
        exit(out, ExitStatus::exited(code))
    }

    fn logs(&self, mut out: &UnixStream) -> Result<(), magikvm_proto::codec::CodecError> {
        write_message(&mut out, &Reply::Ok(Done {}))?;
        if self.manner == Manner::HugeFrame {
            out.write_all(b"{\"stream\":\"stdout\",\"len\":99999999999,\"container\":\"web\"}\n")?;
        }
        if self.manner == Manner::SlowFrame {
            out.write_all(b"{\"stream\":\"stdout\",\"len\":16,\"container\":\"web\"}\none half")?;
            std::thread::sleep(Duration::from_secs(10));
            out.write_all(b", other\n")?;
        }
        for container in &self.containers {
            output(out, format!("hello from {container}\n").as_bytes(), Some(container))?;
        }
        *self.logs_taken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.taken.notify_all();
        Ok(())
    }

    fn events(&self, mut out: &UnixStream) -> Result<(), magikvm_proto::codec::CodecError> {
        write_message(&mut out, &Reply::Ok(Done {}))?;
        if self.manner == Manner::FloodEvents {
            loop {
                write_message(&mut out, &Event { seq: 1, kind: EventKind::ShuttingDown })?;
            }
        }
        let mut sent = 0;
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            for event in &events[sent..] {
                write_message(&mut out, event)?;
                if event.kind == EventKind::PodEnded {
                    self.finish();
                }
            }
            sent = events.len();
            if self.manner == Manner::FloodRestarts {
                let container = self.containers[0].clone();
                for restart_count in 1.. {
                    let kind =
                        EventKind::ContainerStarted { container: container.clone(), pid: 2, restart_count };
                    write_message(&mut out, &Event { seq: 1, kind })?;
                }
            }
            events = self.changed.wait(events).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn shutdown(&self, mut out: &UnixStream) -> Result<(), magikvm_proto::codec::CodecError> {
        write_message(&mut out, &Reply::Ok(Done {}))?;
        if self.manner == Manner::Immortal {
            return Ok(());
        }
        self.end_all(15);
        Ok(())
    }
}

fn output(
    mut out: &UnixStream,
    bytes: &[u8],
    container: Option<&ContainerName>,
) -> Result<(), magikvm_proto::codec::CodecError> {
    let header = FrameHeader {
        container: container.cloned(),
        ..FrameHeader::data(Stream::Stdout { dropped: 0 }, bytes.len())
    };
    write_frame(&mut out, &header, bytes)
}

fn exit(mut out: &UnixStream, status: ExitStatus) -> Result<(), magikvm_proto::codec::CodecError> {
    write_frame(&mut out, &FrameHeader::control(Stream::Exit(status)), b"")
}
