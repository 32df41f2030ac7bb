//! What the containers of a pod share, made before the first of them: host name, network, kernel parameters, the files of `/etc`, shared memory,
//! volumes. The same in a VM and in the namespaces of a pod. Must not know: containers, the wire, where images and disks come from.

mod network;
mod sysctls;
mod volumes;

pub use network::NetworkError;
pub use volumes::mount_volumes;

use crate::rootfs::read_capped;
use crate::sys;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::service_directory::DirectoryAccess;
use magikvm_proto::site::Site;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

/// Most bytes of one file of the pod's `/etc`.
const MAX_ETC_FILE: u64 = 64 << 10;
/// The files of the pod's `/etc`.
const ETC_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Why a pod lacks something that its containers share.
#[derive(Debug, thiserror::Error)]
pub enum FurnishError {
    /// The kernel refused the host name.
    #[error("cannot set the host name {0:?}")]
    Hostname(String, #[source] Errno),
    #[error("cannot bring up the loopback interface")]
    Loopback(#[source] io::Error),
    #[error("cannot set up the pod's network")]
    Network(#[from] NetworkError),
    #[error("cannot set the kernel parameter {name} to {value:?}")]
    Sysctl {
        name: String,
        value: String,
        #[source]
        source: io::Error,
    },
    /// A file system could not be mounted.
    #[error("cannot mount {source_path} at {}", target.display())]
    Mount {
        source_path: String,
        target: PathBuf,
        #[source]
        source: Errno,
    },
    /// A file could not be read or written.
    #[error("cannot use {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// For a file or directory that could not be used.
pub fn file_error(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> FurnishError {
    let path = path.as_ref().to_owned();
    move |source| FurnishError::File { path, source }
}

/// Makes a directory and those above it.
pub fn make_dir(path: &Path) -> Result<(), FurnishError> {
    fs::create_dir_all(path).map_err(file_error(path))
}

/// Mounts a file system.
pub fn mount_at(
    source: &str,
    target: &Path,
    fstype: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<(), FurnishError> {
    mount(Some(source), target, fstype, flags, data).map_err(|errno| FurnishError::Mount {
        source_path: source.to_owned(),
        target: target.to_owned(),
        source: errno,
    })
}

/// Whose the network namespace of a pod is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetworkOwner {
    Pod,
    /// Nothing of it can or may be changed.
    Host,
}

/// Makes everything but the volumes, in the calling process's namespaces.
pub fn furnish(site: &Site, plan: &GuestPlan, network: NetworkOwner) -> Result<(), FurnishError> {
    nix::unistd::sethostname(&plan.hostname)
        .map_err(|errno| FurnishError::Hostname(plan.hostname.clone(), errno))?;
    if network == NetworkOwner::Pod {
        sys::loopback_up().map_err(FurnishError::Loopback)?;
        if let Some(network) = &plan.network {
            network::set_up(network)?;
        }
        sysctls::set_defaults()?;
    }
    sysctls::set(plan)?;
    share(site)?;
    make_service_directories(site, plan)
}

/// Makes writable copies of the pod's `/etc` files, and `/dev/shm`.
fn share(site: &Site) -> Result<(), FurnishError> {
    let etc = site.etc();
    make_dir(&etc)?;
    for name in ETC_FILES {
        let from = site.original_etc().join(name);
        let bytes = match File::open(&from).and_then(|file| read_capped(file, MAX_ETC_FILE)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(file_error(from)(error)),
        };
        let to = etc.join(name);
        fs::write(&to, bytes).map_err(file_error(&to))?;
    }
    let shm = site.shm();
    make_dir(&shm)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // The same size as in other runtimes.
    mount_at("shm", &shm, Some("tmpfs"), flags, Some("mode=1777,size=64m"))
}

/// Makes the directories in which the sockets of the service directory will be. Containers can't write to them; a privileged one that does all the same
/// fills nothing else.
fn make_service_directories(site: &Site, plan: &GuestPlan) -> Result<(), FurnishError> {
    if !plan.has_service_directory() {
        return Ok(());
    }
    let all = site.service_directories();
    make_dir(&all)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount_at("directory", &all, Some("tmpfs"), flags, Some("mode=0755,size=64k,nr_inodes=128"))?;
    let mut members = plan.containers.iter().filter(|one| one.directory == DirectoryAccess::Socket);
    members.try_for_each(|member| make_dir(&site.service_directory(&member.name)))
}
