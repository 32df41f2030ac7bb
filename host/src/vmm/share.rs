//! Directories that the host shares with a VM: the jail of the process that serves them, and a server for VMMs without one.

use super::jails::Site;
use super::{VmConfig, VmmError};
use crate::jail::{Identity, JailSpec, Procfs};
use crate::process::Process;
use crate::store::atomic::FileError;
use crate::volume::tree::{self, Shared};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Name of the socket between a VMM and the server, in the VM's directory.
pub(super) const SOCKET: &str = "share.sock";
/// Open files of the serving process, which keeps one for each file that the guest knows.
const MAX_OPEN_FILES: u64 = 1 << 20;

/// Adds the shared directories to a jail, and what their server needs. Returns their path in the jail.
pub(super) fn add(spec: &mut JailSpec, shared: &Shared, config: &VmConfig) -> PathBuf {
    let place = tree::place(&config.id);
    spec.mounts.extend(shared.mounts(&place));
    spec.identity = Identity::FileServer;
    spec.procfs = Procfs::OwnProcesses;
    spec.limits.open_files = MAX_OPEN_FILES;
    place
}

/// Makes the socket. It listens before the server starts, so that a VMM need not wait. Must be called before the VM's directory is given to
/// the VM's user.
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
    site.hold(&mut spec);
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
    Err(VmmError::Helper { program: "virtiofs".to_owned(), detail: "it runs only on Linux".to_owned() })
}
