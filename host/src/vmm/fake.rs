//! A fake VM: a process in which the real supervisor runs over containers that are threads. For tests of the host's verbs and of its handling of
//! a guest that lies, floods, hangs or sends garbage ([`liar`], [`forward`]). Compiled only with the feature `testing`.

mod containers;
mod disk;
mod forward;
mod home;
mod liar;

use super::jails::HELD_FD;
use super::{Accel, Capabilities, Unavailable, VmChild, VmConfig, Vmm, VmmError, qmp};
use crate::agent::{Connector, Handshake};
use crate::process;
use crate::store::layout::{AGENT_SOCK, PodDir};
use crate::store::sandbox::Role;
use crate::store::text::ignore;
use containers::FakeContainers;
use home::FakeHome;
use magikvm_proto::path::AGENT_LISTENING;
use magikvm_proto::plan::GuestPlan;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

pub const GUEST_VERB: &str = "__fake-guest";
/// The pod's private file system in the guest's working directory.
const POD_FILES: &str = "pod.erofs";

#[derive(Debug)]
pub struct Fake;

impl Vmm for Fake {
    fn probe(&self, _accel: Accel) -> Result<Capabilities, Unavailable> {
        Ok(Capabilities { version: "fake".to_owned() })
    }

    fn spawn(&self, config: &VmConfig, dir: &Path) -> Result<VmChild, VmmError> {
        let program = std::env::current_exe()
            .map_err(|source| VmmError::Start { program: GUEST_VERB.into(), source })?;
        let mut command = Command::new(program);
        command
            .arg(GUEST_VERB)
            .current_dir(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let start = |source| VmmError::Start { program: GUEST_VERB.into(), source };
        let (disk, theirs) = qmp::channel(dir).map_err(start)?;
        let held = config.held.as_ref().map(|lock| lock.as_fd().try_clone_to_owned());
        let held = held.transpose().map_err(start)?;
        let inherits: Vec<(&OwnedFd, i32)> =
            held.iter().map(|held| (held, HELD_FD)).chain([(&theirs, qmp::QMP_FD)]).collect();
        let mut guest = process::spawn_with(Role::Vmm, "fake", &mut command, &inherits)?;
        let (console, diagnostics) = guest.take_output()?;
        let connector = Connector { socket: dir.join(AGENT_SOCK), handshake: Handshake::Direct };
        Ok(VmChild {
            processes: vec![guest],
            connector,
            console,
            diagnostics,
            reports: None,
            disk: Some(disk),
        })
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// Behaves. Containers run until they are stopped.
    Run,
    /// Behaves. Containers exit at once with this code.
    Exit(i32),
    Panic,
    /// Accepts and never answers.
    Silent,
    /// The same in the first boot, and behaves in the second.
    SilentOnce,
    /// Answers hello with bytes that are not JSON.
    Garbage,
    EndlessLine,
    Generation,
    UnknownContainer,
    ContainerFails,
    ContainerDenied,
    /// The same with a very long message.
    ContainerFailsAtLength,
    Vanish,
    /// Never starts the last container.
    NeverReady,
    FloodConsole,
    FloodEvents,
    FloodRestarts,
    HugeFrame,
    Immortal,
    /// Starts and sends its logs, and answers nothing else.
    Deaf,
    LateClock,
    /// Reports an impossible clock offset.
    LyingClock,
    /// Answers the time with bytes that are not JSON.
    GarbageClock,
    /// Does not support setting the time.
    NoClock,
    /// Pauses for some seconds in the middle of a log frame.
    SlowFrame,
    /// Answers forwarded connections with bytes that are not JSON.
    ForwardGarbage,
    /// Accepts forwarded connections and never answers.
    ForwardSilent,
    /// Sends more on forwarded connections than the window allows.
    ForwardFlood,
}

impl Manner {
    /// Whether the guest deviates from the supervisor on the agent's connections.
    fn lies(self) -> bool {
        matches!(
            self,
            Self::Silent
                | Self::SilentOnce
                | Self::Garbage
                | Self::EndlessLine
                | Self::Generation
                | Self::UnknownContainer
                | Self::Vanish
                | Self::FloodEvents
                | Self::FloodRestarts
                | Self::HugeFrame
                | Self::Deaf
                | Self::GarbageClock
                | Self::NoClock
                | Self::SlowFrame
        )
    }
}

fn manner() -> Manner {
    let text = std::env::var("MAGIKVM_FAKE").unwrap_or_default();
    match text.as_str() {
        "panic" => Manner::Panic,
        "silent" => Manner::Silent,
        "silent-once" if is_second_boot() => Manner::Run,
        "silent-once" => Manner::SilentOnce,
        "garbage" => Manner::Garbage,
        "endless-line" => Manner::EndlessLine,
        "generation" => Manner::Generation,
        "unknown-container" => Manner::UnknownContainer,
        "container-fails" => Manner::ContainerFails,
        "container-denied" => Manner::ContainerDenied,
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

/// Whether the monitor has written down that the VM is booted again.
fn is_second_boot() -> bool {
    let events = PodDir::at("..".into()).events();
    std::fs::read_to_string(events).is_ok_and(|text| text.contains("\"host\":\"rebooted\""))
}

/// The guest's process. The working directory is the VM's directory.
pub fn guest_main() -> ExitCode {
    // As in `vminit`, nothing goes on after a panic.
    std::panic::set_hook(Box::new(|panic| {
        ignore(writeln!(std::io::stderr(), "{panic}"), "the end of the process tells the same");
        std::process::abort();
    }));
    let manner = manner();
    if manner == Manner::Panic {
        console("Kernel panic - not syncing: no init \x1b[2J found\n");
        return ExitCode::FAILURE;
    }
    let Some(plan) = plan() else { return ExitCode::FAILURE };
    let last = plan.containers.last().map(|container| container.name.clone());
    if magikvm_supervisor::block_signals().is_err() {
        return ExitCode::FAILURE;
    }
    let Ok(home) = FakeHome::listen(manner) else { return ExitCode::FAILURE };
    console(&format!("{AGENT_LISTENING}\n"));
    if manner == Manner::FloodConsole {
        std::thread::spawn(|| {
            loop {
                console("all work and no play makes a dull guest \x07\n");
            }
        });
    }
    disk::play();
    let containers = Arc::new(FakeContainers::new(manner, last));
    match magikvm_supervisor::run(Ok(plan), Vec::new(), containers, Arc::new(home)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn console(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(1);
    }
}

/// Finds the plan. The file system is not compressed, so that the plan is in it verbatim.
fn plan() -> Option<GuestPlan> {
    let bytes = std::fs::read(POD_FILES).ok()?;
    let begin = b"{\"generation\":";
    let at = bytes.windows(begin.len()).position(|window| window == begin)?;
    serde_json::Deserializer::from_slice(&bytes[at..]).into_iter::<GuestPlan>().next()?.ok()
}
