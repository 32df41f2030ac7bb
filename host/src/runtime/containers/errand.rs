//! What an ordinary user can do only as root of a user namespace with his subordinate ids: unpack an image with its owners, and remove what pods have
//! left. A process of this program makes the namespace, has the ids mapped by the one that started it, does one errand, and ends.

use super::users;
use crate::jail::SubordinateIds;
use crate::process;
use crate::store::remove;
use crate::store::sandbox::Role;
use crate::store::text::chain;
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Gid, Uid, geteuid, setgid, setgroups, setuid};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The hidden verb of such a process.
pub const ERRAND_VERB: &str = "__errand";
/// Most bytes of an errand as JSON, and of what its process says.
const MAX_TEXT: u64 = 64 << 10;
/// Time for its end after it has closed its error output.
const END_WAIT: Duration = Duration::from_secs(10);
/// What the process says when it has made its namespace.
const MADE: &[u8] = b"made\n";

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Errand {
    /// Fills an empty directory from an EROFS file.
    Unpack { image: PathBuf, into: PathBuf },
    /// Removes a file, or a directory with everything in it.
    Remove { path: PathBuf },
}

/// Does an errand with the ids that are granted.
pub(super) fn run(errand: &Errand, granted: &SubordinateIds) -> io::Result<()> {
    let text = serde_json::to_vec(errand)?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(ERRAND_VERB).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).env_clear();
    let mut process =
        process::spawn_with(Role::Errand, "errand", &mut command, &[]).map_err(io::Error::other)?;
    let outcome = converse(&mut process, &text, granted);
    let status = process.wait_or_kill(END_WAIT);
    match (outcome, status) {
        (Ok(_), Some(status)) if status.success() => Ok(()),
        (Ok(said), _) => Err(io::Error::other(said)),
        (Err(error), _) => Err(error),
    }
}

/// Returns what the process said about a failure.
fn converse(process: &mut process::Process, text: &[u8], granted: &SubordinateIds) -> io::Result<String> {
    let mut made = Vec::new();
    if let Some(stdout) = &mut process.child.stdout {
        let length = u64::try_from(MADE.len()).unwrap_or(0);
        stdout.take(length).read_to_end(&mut made)?;
    }
    if made == MADE {
        granted.map(process.reference.pid).map_err(io::Error::other)?;
        process::tell(process, text)?;
    } else {
        drop(process.child.stdin.take());
    }
    let mut said = String::new();
    if let Some(stderr) = &mut process.child.stderr {
        stderr.take(MAX_TEXT).read_to_string(&mut said)?;
    }
    Ok(said.trim().to_owned())
}

/// The main function of the process.
pub fn main() -> i32 {
    match carry_out() {
        Ok(()) => 0,
        Err(error) => {
            writeln!(io::stderr(), "{}", chain(&error)).ok();
            1
        }
    }
}

fn carry_out() -> io::Result<()> {
    // The program has one thread here.
    unshare(CloneFlags::CLONE_NEWUSER)?;
    io::stdout().write_all(MADE)?;
    io::stdout().flush()?;
    let mut text = Vec::new();
    io::stdin().take(MAX_TEXT).read_to_end(&mut text)?;
    // Without a word the ids are not mapped.
    let errand: Errand = serde_json::from_slice(&text)?;
    setgroups(&[])?;
    setgid(Gid::from_raw(0))?;
    setuid(Uid::from_raw(0))?;
    match errand {
        Errand::Unpack { image, into } => users::unpack(&image, &into),
        Errand::Remove { path } => remove::remove_tree(&path).map_err(io::Error::other),
    }
}

/// Removes what this user's pods have left with the owners of their users. The helper of `magikvm_platform`.
pub fn remove_with_ids(path: &Path) -> io::Result<()> {
    if geteuid().is_root() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let granted = SubordinateIds::granted().map_err(io::Error::other)?;
    run(&Errand::Remove { path: std::path::absolute(path)? }, &granted)
}
