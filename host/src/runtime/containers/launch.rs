//! Starts the process of a sandbox and records what it prints.

use super::super::RuntimeError;
use super::ContainersError;
use super::program::Executable;
use super::talk::Talk;
use crate::os;
use crate::process::{self, Process};
use crate::store::layout::{AGENT_SOCK, FORWARD_SOCK};
use crate::store::sandbox::Role;
use crate::store::undo::{Scope, Undo};
use crate::vmm::console::{self, ConsoleTail};
use magikvm_proto::sandbox::{AGENT_FD, FIRST_SOURCE_FD, FORWARD_FD, SandboxSettings, TALK_FD};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

#[derive(Debug)]
pub(super) struct ToLaunch {
    pub(super) program: PathBuf,
    /// The host's id of the pod's root.
    pub(super) root: u32,
    /// The directory of its files and sockets.
    pub(super) dir: PathBuf,
    pub(super) settings: SandboxSettings,
    /// The files and directories of the host, in the order of the settings.
    pub(super) sources: Vec<OwnedFd>,
}

/// A process that makes a sandbox.
#[derive(Debug)]
pub(super) struct Launched {
    pub(super) sandbox: Process,
    pub(super) talk: Talk,
    /// The agent's socket.
    pub(super) socket: PathBuf,
    pub(super) tail: ConsoleTail,
}

impl ToLaunch {
    /// The calling thread must live as long as the pod.
    pub(super) fn launch(self, undo: &mut Undo) -> Result<Launched, RuntimeError> {
        let (talk, theirs) = Talk::pair().map_err(ContainersError::io("make a socket"))?;
        let socket = self.dir.join(AGENT_SOCK);
        let agent = os::bind_unix(&socket).map(OwnedFd::from);
        let agent = agent.map_err(ContainersError::io("make the agent's socket"))?;
        let forward = os::bind_unix(&self.dir.join(FORWARD_SOCK)).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(OwnedFd::from(listener))
        });
        let forward = forward.map_err(ContainersError::io("make the socket for forwarded connections"))?;
        let executable = Executable::of(&self.program, self.root)
            .map_err(ContainersError::io("copy the sandbox's program"))?;
        let mut command = Command::new(&executable.path);
        command.arg0(&self.program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_clear();
        let fixed = [(&agent, AGENT_FD), (&forward, FORWARD_FD), (&theirs, TALK_FD)];
        let inherits: Vec<(&OwnedFd, i32)> =
            fixed.into_iter().chain(self.sources.iter().zip(FIRST_SOURCE_FD..)).collect();
        let mut sandbox = process::spawn_with(Role::Sandbox, "sandbox", &mut command, &inherits)
            .map_err(ContainersError::from)?;
        undo.plan(Scope::Run, sandbox.reference.undo_step())?;
        drop((agent, forward, theirs));
        let settings = serde_json::to_vec(&self.settings)
            .map_err(|source| RuntimeError::Json { what: "the sandbox's settings".to_owned(), source })?;
        process::tell(&mut sandbox, &settings).map_err(ContainersError::io("start the sandbox"))?;
        let tail = ConsoleTail::default();
        let (console, diagnostics) = sandbox.take_output().map_err(ContainersError::from)?;
        console::follow(console, diagnostics, &self.dir.with_file_name("log"), &tail)?;
        Ok(Launched { sandbox, talk, socket, tail })
    }
}
