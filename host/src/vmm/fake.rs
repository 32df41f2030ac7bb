//! A VM that is none: a process in which the real supervisor runs over containers that are threads. For tests of the host: of its verbs, and of
//! what it makes of a guest that lies, floods, hangs or sends garbage ([`liar`], [`forward`]). Compiled only with the feature `testing`.

mod containers;
mod forward;
mod home;
mod liar;

use super::{Accel, Capabilities, Unavailable, VmChild, VmConfig, Vmm, VmmError};
use crate::agent::{Connector, Handshake};
use crate::process;
use crate::store::layout::AGENT_SOCK;
use crate::store::sandbox::Role;
use containers::FakeContainers;
use home::FakeHome;
use magikvm_proto::path::AGENT_LISTENING;
use magikvm_proto::plan::GuestPlan;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

/// The hidden verb that makes a process a guest.
pub const GUEST_VERB: &str = "__fake-guest";
/// The pod's own file system in the guest's working directory.
const POD_FILES: &str = "pod.erofs";

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

impl Manner {
    /// Whether it says anything on the agent's connections that the supervisor would not say.
    fn lies(self) -> bool {
        matches!(
            self,
            Self::Silent
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

/// The guest's process. Its directory is the working directory.
pub fn guest_main() -> ExitCode {
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
    let containers = Arc::new(FakeContainers::new(manner, last));
    match magikvm_supervisor::run(Ok(plan), containers, Arc::new(home)) {
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

/// The plan. The file system is not compressed, so the plan stands in it as it was written.
fn plan() -> Option<GuestPlan> {
    let bytes = std::fs::read(POD_FILES).ok()?;
    let begin = b"{\"generation\":";
    let at = bytes.windows(begin.len()).position(|window| window == begin)?;
    serde_json::Deserializer::from_slice(&bytes[at..]).into_iter::<GuestPlan>().next()?.ok()
}
