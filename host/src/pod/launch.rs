//! Starts a pod's monitor and defines the messages between the two sides (JSON lines over a socket pair).

use super::failure::{Blame, Failure, RunStage};
use super::logs::{self, Entry};
use super::run::RunRequest;
use crate::image::{Progress, Reference};
use crate::manifest::PodPlan;
use crate::manifest::plan::VolumeSource;
use crate::process::ProcessError;
use crate::store::text::ignore;
#[cfg(target_os = "linux")]
use crate::store::thread;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use magikvm_proto::codec::write_message;
use magikvm_proto::id::ContainerName;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

/// The hidden verb that makes a process a monitor.
pub const MONITOR_VERB: &str = "__monitor";
/// Longest request that a monitor reads, in bytes.
pub const MAX_REQUEST: usize = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromMonitor {
    /// An image is being pulled.
    Pulling {
        image: Reference,
        progress: Progress,
    },
    /// A warning for the user.
    Warning {
        message: String,
    },
    /// Output that a container's log does not have, because the log could not be written.
    Unwritten {
        container: ContainerName,
        /// Entries as in the log, in base64. See [`FromMonitor::entries`].
        entries: String,
    },
    /// The pod's VM has answered, and its containers have logs.
    Begun,
    /// An init container or a sidecar runs for the first time, as this one of so many.
    Initializing {
        container: ContainerName,
        number: usize,
        of: usize,
    },
    Ready,
    /// The pod does not run, and nothing of it is left.
    Failed(Box<Failure>),
    /// The pod has ended. Its exit code is the first non-zero one of its containers.
    Ended {
        code: i32,
    },
}

/// Most bytes of entries in a message, unless one entry is longer.
const MAX_PART: usize = 16 << 10;

impl FromMonitor {
    /// Entries of a log, cut into parts that are short enough for a message.
    pub fn parts(entries: &[u8]) -> Vec<&[u8]> {
        let (mut parts, mut from, mut end) = (Vec::new(), 0, 0);
        for entry in entries.split_inclusive(|&byte| byte == b'\n') {
            if end > from && end + entry.len() - from > MAX_PART {
                parts.push(&entries[from..end]);
                from = end;
            }
            end += entry.len();
        }
        if end > from {
            parts.push(&entries[from..end]);
        }
        parts
    }

    pub fn unwritten(container: ContainerName, entries: &[u8]) -> Self {
        Self::Unwritten { container, entries: STANDARD.encode(entries) }
    }

    /// The entries of [`FromMonitor::Unwritten`].
    pub fn entries(text: &str) -> Vec<Entry> {
        let bytes = STANDARD.decode(text).unwrap_or_default();
        let lines = bytes.split_inclusive(|&byte| byte == b'\n');
        lines.filter_map(|line| logs::decode(line.strip_suffix(b"\n")?)).collect()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToMonitor {
    /// Cancels the start if the pod does not run yet.
    Cancel,
}

/// What happens while a pod starts.
#[derive(Debug, Clone, Copy)]
pub enum StartNews<'a> {
    Pulling {
        image: &'a Reference,
        progress: &'a Progress,
    },
    Warning(&'a str),
    /// Output that a container's log does not have, because the log could not be written.
    Unwritten {
        container: &'a ContainerName,
        entries: &'a [Entry],
    },
    /// Its containers have logs.
    Begun,
    /// An init container or a sidecar runs, as this one of so many.
    Initializing {
        container: &'a ContainerName,
        number: usize,
        of: usize,
    },
}

#[derive(Debug)]
pub struct Launched {
    reader: BufReader<UnixStream>,
    monitor: Child,
}

/// Cancels a start from another thread.
#[derive(Debug)]
pub struct Canceller(UnixStream);

impl Canceller {
    /// Asks the monitor to cancel the start if the pod does not run yet.
    pub fn cancel(&self) {
        let asked = write_message(&mut &self.0, &ToMonitor::Cancel);
        ignore(asked, "the monitor has ended; there is nothing to cancel");
    }
}

/// The plan does not fit into what a monitor reads.
#[derive(Debug, thiserror::Error)]
#[error(
    "the pod's plan has {bytes} bytes, at most {MAX_REQUEST} are possible; most of it are {what} ({largest} bytes)"
)]
struct TooLarge {
    bytes: usize,
    what: String,
    largest: usize,
}

/// What takes most bytes of a plan, and how many.
fn largest_part(plan: &PodPlan) -> (String, usize) {
    let files = plan.volumes.iter().filter_map(|volume| match &volume.source {
        VolumeSource::Files(files) => {
            let bytes = files.iter().map(|file| file.content.bytes().len()).sum();
            Some((format!("the files of volume {}", volume.name), bytes))
        }
        _ => None,
    });
    let texts = plan.containers.iter().map(|container| {
        let env = container.env.iter().map(|variable| variable.value.len());
        let args = container.command.iter().chain(&container.args).map(String::len);
        (format!("the variables and arguments of container {}", container.name), env.chain(args).sum())
    });
    let secrets = plan
        .pull_secrets
        .iter()
        .map(|secret| (format!("the logins of the Secret {}", secret.name), secret.content.bytes().len()));
    let manifest = ("the fields of its manifest".to_owned(), plan.manifest.to_string().len());
    files.chain(texts).chain(secrets).chain([manifest]).max_by_key(|(_, bytes)| *bytes).unwrap_or_default()
}

/// Starts a monitor (this program with a hidden verb) for a pod. It outlives this process.
pub fn launch(request: &RunRequest) -> Result<Launched, Failure> {
    let bytes = serde_json::to_vec(request).map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    if bytes.len() > MAX_REQUEST {
        let (what, largest) = largest_part(&request.plan);
        let error = TooLarge { bytes: bytes.len(), what, largest };
        return Err(Failure::at(RunStage::Plan, Blame::User)(error));
    }
    let program = std::env::current_exe().map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    #[cfg(target_os = "linux")]
    if !request.plan.runtime_class.has_vm() {
        ignore(thread::start("groups", crate::jail::stir), "the pod only starts later then");
    }
    let (ours, theirs) = UnixStream::pair().map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    let mut command = Command::new(program);
    // The monitor works in the root directory, but these paths may be relative to this process's working directory.
    for variable in ["REGISTRY_AUTH_FILE", "DOCKER_CONFIG"] {
        if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
            command.env(variable, std::path::absolute(&path).unwrap_or(path.into()));
        }
    }
    let mut monitor = command
        .arg(MONITOR_VERB)
        .stdin(Stdio::piped())
        .stdout(OwnedFd::from(theirs))
        .stderr(Stdio::null())
        .spawn()
        .map_err(|source| ProcessError::Start { program: "magikvm".into(), source })
        .map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    if let Some(mut stdin) = monitor.stdin.take() {
        stdin.write_all(&bytes).map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    }
    Ok(Launched { reader: BufReader::new(ours), monitor })
}

impl Launched {
    /// Cancels the start.
    pub fn cancel(&self) {
        ignore(write_message(&mut self.reader.get_ref(), &ToMonitor::Cancel), "the monitor has ended");
    }

    /// A handle that cancels the start.
    pub fn canceller(&self) -> std::io::Result<Canceller> {
        self.reader.get_ref().try_clone().map(Canceller)
    }

    /// The monitor's next message; `None` when it has ended. Lines have no length limit, because the monitor is this program and its lines
    /// carry whole failures.
    pub fn next_message(&mut self) -> Option<FromMonitor> {
        let mut line = Vec::new();
        self.reader.read_until(b'\n', &mut line).ok()?;
        serde_json::from_slice(&line).ok()
    }

    /// Releases a pod that has ended, and waits until its monitor has ended (and has removed the pod, if that was requested).
    pub fn finish(mut self) -> Result<(), Failure> {
        ignore(self.reader.get_ref().shutdown(Shutdown::Write), "the monitor has ended already");
        let last = self.next_message();
        ignore(self.monitor.wait(), "it has ended and another process has reaped it");
        match last {
            Some(FromMonitor::Failed(failure)) => Err(*failure),
            _ => Ok(()),
        }
    }

    /// Waits until the pod runs or has failed. `tell` is called for what happens meanwhile. An error without a failure is the sudden end of
    /// the monitor.
    pub fn await_ready(&mut self, tell: &mut dyn FnMut(StartNews<'_>)) -> Result<(), Option<Failure>> {
        loop {
            return match self.next_message() {
                Some(FromMonitor::Pulling { image, progress }) => {
                    tell(StartNews::Pulling { image: &image, progress: &progress });
                    continue;
                }
                Some(FromMonitor::Warning { message }) => {
                    tell(StartNews::Warning(&message));
                    continue;
                }
                Some(FromMonitor::Unwritten { container, entries }) => {
                    let entries = FromMonitor::entries(&entries);
                    tell(StartNews::Unwritten { container: &container, entries: &entries });
                    continue;
                }
                Some(FromMonitor::Begun) => {
                    tell(StartNews::Begun);
                    continue;
                }
                Some(FromMonitor::Initializing { container, number, of }) => {
                    tell(StartNews::Initializing { container: &container, number, of });
                    continue;
                }
                Some(FromMonitor::Ready) => Ok(()),
                Some(FromMonitor::Failed(failure)) => Err(Some(*failure)),
                Some(FromMonitor::Ended { .. }) | None => Err(None),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_that_are_passed_on_arrive_whole_and_in_order() {
        let entry = |n: usize| {
            let content = vec![0xff; n * 100];
            [b"2026-01-01T00:00:00.000000000Z stderr P ", &content[..], b"\n"].concat()
        };
        let all: Vec<u8> = (0..165).flat_map(entry).collect();
        let parts = FromMonitor::parts(&all);
        assert!(parts.len() > 10 && parts.iter().all(|part| part.len() < 17 << 10));
        assert_eq!(parts.concat(), all);
        let mut lengths = Vec::new();
        for part in parts {
            let message = FromMonitor::unwritten("web".parse().unwrap(), part);
            let text = serde_json::to_vec(&message).unwrap();
            assert!(text.len() < 32 << 10);
            let FromMonitor::Unwritten { entries, .. } = serde_json::from_slice(&text).unwrap() else {
                panic!()
            };
            lengths.extend(FromMonitor::entries(&entries).iter().map(|entry| entry.content.len()));
        }
        assert_eq!(lengths, (0..165).map(|n| n * 100).collect::<Vec<_>>());
        assert!(FromMonitor::parts(b"").is_empty());
        assert!(FromMonitor::entries("no base64").is_empty());
    }
}
