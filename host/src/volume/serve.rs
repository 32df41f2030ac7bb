//! The server of the shared tree for VMMs that have none built in: a process of this program with a hidden verb, in which the crate
//! `virtiofsd` speaks vhost-user with the VMM.

use crate::process::{self, SettingsError};
use nix::sys::resource::{Resource, getrlimit};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use vhost_user_backend::VhostUserDaemon;
use virtiofsd::passthrough::{CachePolicy, Config, PassthroughFs};
use virtiofsd::vhost_user::VhostUserFsBackendBuilder;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// The hidden verb of the server.
pub const SERVER_VERB: &str = "__virtiofs";
/// Number of the descriptor on which it listens.
pub const LISTENER_FD: RawFd = 4;
/// How long the guest may cache names and attributes. Changes on the host become visible after this time at the latest.
const CACHED_FOR: Duration = Duration::from_secs(1);
/// Open files that the server needs in addition to the guest's.
const OWN_FILES: u64 = 128;

/// The settings of the server, which it reads from standard input.
#[derive(Debug, Serialize, Deserialize)]
pub struct Settings {
    pub tree: PathBuf,
}

/// Why the server cannot run.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error(transparent)]
    Settings(#[from] SettingsError),
    #[error("the path of the tree, {0:?}, is not UTF-8")]
    Tree(PathBuf),
    #[error("cannot open {0}")]
    Open(&'static str, #[source] io::Error),
    #[error("cannot serve the tree")]
    FileSystem(#[source] io::Error),
    #[error("cannot talk to the VMM: {0}")]
    Backend(String),
}

/// The main function of the server: it serves until it is killed. Returns an exit code when it cannot serve.
pub fn main() -> i32 {
    process::serve("virtiofs", |settings: Settings| serve(&settings))
}

/// Returns when the VM has ended. The VMM reports how.
fn serve(settings: &Settings) -> Result<(), ServeError> {
    let open_files = getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(soft, _)| soft);
    let proc_fds = File::open("/proc/self/fd").map_err(|error| ServeError::Open("/proc/self/fd", error))?;
    let config = Config {
        entry_timeout: CACHED_FOR,
        attr_timeout: CACHED_FOR,
        cache_policy: CachePolicy::Auto,
        root_dir: text(&settings.tree)?,
        xattr: true,
        proc_sfd_rawfd: Some(proc_fds),
        announce_submounts: true,
        guest_fd_limit: open_files.saturating_sub(OWN_FILES).max(OWN_FILES),
        ..Config::default()
    };
    let file_system = PassthroughFs::new(config).map_err(ServeError::FileSystem)?;
    let backend = VhostUserFsBackendBuilder::default()
        .build(file_system)
        .map_err(|error| ServeError::Backend(error.to_string()))?;
    let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
    let mut daemon = VhostUserDaemon::new("virtiofs".to_owned(), Arc::new(backend), memory)
        .map_err(|error| ServeError::Backend(error.to_string()))?;
    let mut listener = listener();
    daemon.start(&mut listener).map_err(|error| ServeError::Backend(error.to_string()))?;
    // The result means nothing, since the VMM goes away in any case.
    daemon.wait().ok();
    Ok(())
}

fn text(path: &Path) -> Result<String, ServeError> {
    path.to_str().map(str::to_owned).ok_or_else(|| ServeError::Tree(path.to_owned()))
}

#[allow(unsafe_code, reason = "the descriptor has a number that was agreed on")]
fn listener() -> vhost::vhost_user::Listener {
    // SAFETY: the starter of this process left the descriptor open for this purpose, and it is taken once.
    let owned = unsafe { OwnedFd::from_raw_fd(LISTENER_FD) };
    UnixListener::from(owned).into()
}
