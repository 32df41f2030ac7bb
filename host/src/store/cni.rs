//! A pod's connection to a network of CNI, as far as it must be undone when its configuration has changed or is gone: what to tell which plugin, and
//! how to run one. It is here because the undo journal runs plugins too. Must not know: where configurations come from, and what results mean.
#![allow(
    unsafe_code,
    reason = "pre_exec is the only place where a plugin can lose descriptors and get its parent's death signal"
)]

use super::atomic::{self, FileError};
use super::regular;
use super::text::{harmless, ignore};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::File;
use std::io::{self, ErrorKind, Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a plugin may take.
const LIMIT: Duration = Duration::from_secs(60);
/// Most bytes that a plugin may print, on either output.
pub const MAX_OUTPUT: usize = 1 << 20;
/// Characters of a message of a plugin that are shown.
const MAX_SHOWN: usize = 1024;
/// How often to check whether a plugin has ended that has closed its output.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// Plugins run programs such as `iptables`.
const PROGRAMS: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    Add,
    Del,
    Check,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
        }
    }
}

impl std::fmt::Display for Verb {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The connection of one pod to one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attachment {
    /// Name of the network.
    pub network: String,
    /// `CNI_CONTAINERID`.
    pub container: String,
    /// `CNI_IFNAME`.
    pub interface: String,
    /// `CNI_ARGS`.
    pub args: String,
    /// `CNI_PATH`.
    pub path: String,
    /// A file on which the pod's network namespace is mounted, so that it lasts until everything in it is undone.
    pub namespace: PathBuf,
    /// The file with the result of the last plugin.
    pub result: PathBuf,
    /// Whether the plugins want the result when the connection is undone (CNI 0.4.0 and later).
    pub tells_result: bool,
    /// Whether the plugins can be asked if the connection is still as they made it (CNI 0.4.0 and later, unless the configuration disables it).
    #[serde(default)]
    pub is_checked: bool,
    /// In the order in which they made the connection.
    pub plugins: Vec<Plugin>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plugin {
    /// Its `type`.
    pub kind: String,
    pub program: PathBuf,
    /// Its configuration without `prevResult`.
    pub config: Map<String, Value>,
}

/// Why a plugin has not done what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    #[error("cannot run the CNI plugin {}", program.display())]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot use the output of the CNI plugin {kind} ({verb})")]
    Io {
        kind: String,
        verb: Verb,
        #[source]
        source: io::Error,
    },
    #[error("the CNI plugin {kind} ({verb}) has not ended within {limit:?} and was killed")]
    Silent { kind: String, verb: Verb, limit: Duration },
    #[error("the CNI plugin {kind} ({verb}) has printed more than {MAX_OUTPUT} bytes and was killed")]
    TooMuch { kind: String, verb: Verb },
    #[error("the CNI plugin {kind} ({verb}) failed: {message}")]
    Failed { kind: String, verb: Verb, message: String },
    #[error("cannot write the configuration of the CNI plugin {kind} as JSON")]
    Json {
        kind: String,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot keep the network namespace of the pod at {}", path.display())]
    Namespace {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    File(#[from] FileError),
}

/// The error object of a plugin.
#[derive(Debug, Deserialize)]
struct Complaint {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

impl Attachment {
    /// Keeps the network namespace of a process.
    pub fn pin(&self, pid: i32) -> Result<(), PluginError> {
        let path = &self.namespace;
        let failed = |source: io::Error| PluginError::Namespace { path: path.clone(), source };
        File::create_new(path).map_err(failed)?;
        let none = None::<&str>;
        mount(Some(format!("/proc/{pid}/ns/net").as_str()), path, none, MsFlags::MS_BIND, none)
            .map_err(|errno| failed(errno.into()))
    }

    fn is_pinned(&self) -> bool {
        statfs(&self.namespace).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
    }

    /// Keeps the result of a plugin.
    pub fn keep_result(&self, result: &[u8]) -> Result<(), PluginError> {
        Ok(atomic::write(&self.result, result, 0o600)?)
    }

    /// Runs one of its plugins, and returns what that has printed.
    pub fn run(&self, plugin: &Plugin, verb: Verb, previous: Option<&Value>) -> Result<Vec<u8>, PluginError> {
        self.run_within(plugin, verb, previous, LIMIT)
    }

    /// The same with another limit of its time.
    pub(crate) fn run_within(
        &self,
        plugin: &Plugin,
        verb: Verb,
        previous: Option<&Value>,
        limit: Duration,
    ) -> Result<Vec<u8>, PluginError> {
        let kind = || plugin.kind.clone();
        let io_failed = |source: io::Error| PluginError::Io { kind: kind(), verb, source };
        let mut config = plugin.config.clone();
        if let Some(previous) = previous {
            config.insert("prevResult".to_owned(), previous.clone());
        }
        let input =
            serde_json::to_vec(&config).map_err(|source| PluginError::Json { kind: kind(), source })?;
        let input = in_memory(&input).map_err(io_failed)?;
        let namespace = if self.is_pinned() { self.namespace.as_path() } else { Path::new("") };
        let mut command = Command::new(&plugin.program);
        command
            .env_clear()
            .env("PATH", PROGRAMS)
            .env("CNI_COMMAND", verb.as_str())
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", namespace)
            .env("CNI_IFNAME", &self.interface)
            .env("CNI_ARGS", &self.args)
            .env("CNI_PATH", &self.path)
            .current_dir("/")
            .stdin(Stdio::from(input))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        // SAFETY: between fork and exec there are only system calls that take integers.
        unsafe {
            command.pre_exec(|| {
                let (first, last) = (3, nix::libc::c_uint::MAX);
                let at_exec = nix::libc::CLOSE_RANGE_CLOEXEC;
                nix::libc::syscall(nix::libc::SYS_close_range, first, last, at_exec);
                nix::libc::prctl(nix::libc::PR_SET_PDEATHSIG, nix::libc::SIGKILL, 0, 0, 0);
                Ok(())
            });
        }
        let mut child = command
            .spawn()
            .map_err(|source| PluginError::Start { program: plugin.program.clone(), source })?;
        let ended = collect(&mut child, Instant::now() + limit);
        if !matches!(ended, Ok(Collected::Ended { .. })) {
            ignore(killpg(pid_of(&child), Signal::SIGKILL), "it has just ended");
            ignore(child.wait(), "somebody else has reaped it");
        }
        match ended.map_err(io_failed)? {
            Collected::Late => Err(PluginError::Silent { kind: kind(), verb, limit }),
            Collected::TooMuch => Err(PluginError::TooMuch { kind: kind(), verb }),
            Collected::Ended { status, output, .. } if status.success() => Ok(output),
            Collected::Ended { status, output, messages } => {
                let message = complaint(status, &output, &messages);
                Err(PluginError::Failed { kind: kind(), verb, message })
            }
        }
    }

    /// What the last plugin that made the connection has printed.
    fn result(&self) -> Option<Value> {
        let cap = u64::try_from(MAX_OUTPUT).unwrap_or(u64::MAX);
        serde_json::from_slice(&regular::read(&self.result, cap).ok()?).ok()
    }

    /// Asks the plugins whether the connection is still as they made it (CNI specification, CHECK). Returns whether they could be asked.
    pub fn check(&self) -> Result<bool, PluginError> {
        let Some(result) = self.result().filter(|_| self.is_checked && self.is_pinned()) else {
            return Ok(false);
        };
        self.plugins
            .iter()
            .try_for_each(|plugin| self.run(plugin, Verb::Check, Some(&result)).map(drop))
            .map(|()| true)
    }

    /// Undoes the connection as far as it was made, which each plugin has to bear any number of times. What no plugin has failed at is forgotten.
    pub fn detach(&self) -> Result<(), PluginError> {
        // Without a result, or with half of one, the plugins find what they can.
        let previous = self.result().filter(|_| self.tells_result);
        let done: Vec<_> = self
            .plugins
            .iter()
            .rev()
            .map(|plugin| self.run(plugin, Verb::Del, previous.as_ref()).map(drop))
            .collect();
        done.into_iter().collect::<Result<(), _>>()?;
        while self.is_pinned() {
            umount2(&self.namespace, MntFlags::MNT_DETACH).map_err(|errno| PluginError::Namespace {
                path: self.namespace.clone(),
                source: errno.into(),
            })?;
        }
        atomic::remove(&self.namespace)?;
        Ok(atomic::remove(&self.result)?)
    }
}

/// A file of memory, from its beginning. Unlike a pipe it needs nobody who writes to it.
fn in_memory(bytes: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("cni", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file)
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX))
}

enum Collected {
    Ended { status: ExitStatus, output: Vec<u8>, messages: Vec<u8> },
    Late,
    TooMuch,
}

/// Reads the outputs of a plugin until that ends. Processes that it leaves behind may have them open for longer.
fn collect(child: &mut Child, deadline: Instant) -> io::Result<Collected> {
    let (mut output, mut messages) = (child.stdout.take(), child.stderr.take());
    let (mut printed, mut said) = (Vec::new(), Vec::new());
    output.as_ref().map_or(Ok(()), unblock)?;
    messages.as_ref().map_or(Ok(()), unblock)?;
    loop {
        let ended = child.try_wait()?;
        // After the look at its end, so that nothing is missed.
        if drain(&mut output, &mut printed)? || drain(&mut messages, &mut said)? {
            return Ok(Collected::TooMuch);
        }
        if let Some(status) = ended {
            return Ok(Collected::Ended { status, output: printed, messages: said });
        }
        if Instant::now() >= deadline {
            return Ok(Collected::Late);
        }
        let mut open: Vec<PollFd<'_>> = Vec::new();
        open.extend(output.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        open.extend(messages.as_ref().map(|pipe| PollFd::new(pipe.as_fd(), PollFlags::POLLIN)));
        match poll(&mut open, PollTimeout::try_from(LOOK_EVERY).unwrap_or(PollTimeout::ZERO)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn unblock(pipe: &impl AsFd) -> io::Result<()> {
    fcntl(pipe.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Reads what is there. Whether that is too much.
fn drain<R: Read>(pipe: &mut Option<R>, into: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 16 << 10];
    while let Some(open) = pipe {
        match open.read(&mut buffer) {
            Ok(0) => *pipe = None,
            Ok(count) if into.len() + count > MAX_OUTPUT => return Ok(true),
            Ok(count) => into.extend_from_slice(&buffer[..count]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// What a plugin says of its failure.
fn complaint(status: ExitStatus, output: &[u8], messages: &[u8]) -> String {
    let said = match serde_json::from_slice::<Complaint>(output) {
        Ok(Complaint { code, msg, details }) if details.is_empty() => format!("{msg} (code {code})"),
        Ok(Complaint { code, msg, details }) => format!("{msg}: {details} (code {code})"),
        Err(_) => {
            let text = String::from_utf8_lossy(if messages.is_empty() { output } else { messages });
            format!("{status}: {}", text.trim())
        }
    };
    let said: String = said.chars().take(MAX_SHOWN).collect();
    harmless(&said, &[]).trim_end_matches([' ', ':']).to_owned()
}
