//! What this machine shares with a machine: the jail of whoever serves it, and a server for VMMs that have none of their own.

use super::jails::Site;
use super::{VmConfig, VmmError};
use crate::jail::{Identity, JailSpec, Procfs};
use crate::process::Process;
use crate::store::atomic::FileError;
use crate::volume::tree::{self, Shared};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Name of the socket between a VMM and the server, in the machine's directory.
pub(super) const SOCKET: &str = "share.sock";
/// Open files of whoever serves: each file that the guest knows is one.
const MAX_OPEN_FILES: u64 = 1 << 20;

/// Adds what is shared to a jail, and what is needed to serve it. Returns where it is there.
pub(super) fn add(spec: &mut JailSpec, shared: &Shared, config: &VmConfig) -> PathBuf {
    let place = tree::place(&config.id);
    spec.mounts.extend(shared.mounts(&place));
    spec.identity = Identity::FileServer;
    spec.procfs = Procfs::OwnProcesses;
    spec.limits.open_files = MAX_OPEN_FILES;
    place
}

/// Makes the socket. It listens before there is a server, so a VMM need not wait for that. To be called before the machine's directory comes
/// to be the machine's user's.
pub(super) fn listen(dir: &Path) -> Result<UnixListener, VmmError> {
    let socket = dir.join(SOCKET);
    Ok(crate::os::bind_unix(&socket).map_err(FileError::at("bind", &socket))?)
}

#[cfg(target_os = "linux")]
pub(super) fn serve(
    shared: &Shared,
    listener: &UnixListener,
    config: &VmConfig,
    site: &Site<'_>,
) -> Result<Process, VmmError> {
    use crate::jail::{Access, Descriptor, Inside, SyscallFilter, spawn_jailed};
    use crate::process;
    use crate::store::sandbox::Role;
    use crate::volume::serve::{LISTENER_FD, SERVER_VERB, Settings};
    use std::os::fd::AsRawFd;
    use std::process::Stdio;
    let mut spec =
        site.jail(Inside::Verb(SERVER_VERB.to_owned()), SyscallFilter::FileServer, Access::ReadOnly);
    spec.mounts.clear();
    let tree = add(&mut spec, shared, config);
    spec.working_dir = PathBuf::from("/");
    spec.descriptors = vec![Descriptor { here: listener.as_raw_fd(), there: LISTENER_FD }];
    let failed = |source| VmmError::Start { program: SERVER_VERB.into(), source };
    let settings = serde_json::to_vec(&Settings { tree }).map_err(|error| failed(error.into()))?;
    let mut command = crate::jail::command().map_err(failed)?;
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut server = spawn_jailed(Role::FileServer, "virtiofs", &mut command, &spec, &[])?;
    process::tell(&mut server, &settings).map_err(failed)?;
    Ok(server)
}

#[cfg(not(target_os = "linux"))]
pub(super) fn serve(
    _shared: &Shared,
    _listener: &UnixListener,
    _config: &VmConfig,
    _site: &Site<'_>,
) -> Result<Process, VmmError> {
    Err(VmmError::Helper { program: "virtiofs".to_owned(), detail: "it is for Linux".to_owned() })
}
