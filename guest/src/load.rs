//! From the composite disk to a pod that can run: the pod's own file system, its plan, the images, and what the
//! containers share.

use crate::scratch::Early;
use crate::sys;
use magikvm_containers::read_capped;
use magikvm_proto::limits::MAX_PLAN_SIZE;
use magikvm_proto::path;
use magikvm_proto::plan::{GuestPlan, PlanError, Rootfs};
use magikvm_proto::site::Site;
use magikvm_proto::volume::VolumeSource;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a partition may take to appear. Drivers are built into the kernel, so it nearly always exists already.
pub(crate) const DISK_WAIT: Duration = Duration::from_secs(5);
/// Delay between two checks for a partition.
pub(crate) const DISK_POLL: Duration = Duration::from_millis(2);
/// Most bytes of one file of the pod's `/etc`.
const MAX_ETC_FILE: u64 = 64 << 10;
/// The files of the pod's `/etc`.
const ETC_FILES: [&str; 3] = ["hosts", "hostname", "resolv.conf"];

/// Why the pod can't be loaded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error("the disk has no partition {0}")]
    Disk(PathBuf),
    /// A disk that outlives the pod is missing.
    #[error("there is no disk with the GUID {0}")]
    Lasting(String),
    /// Its file system could not be made as large as the disk.
    #[error("cannot enlarge the file system of the disk {disk}")]
    Grow {
        disk: String,
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
    #[error("{} is not a valid plan", .0.display())]
    Json(PathBuf, #[source] serde_json::Error),
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The kernel refused the host name.
    #[error("cannot set the host name {0:?}")]
    Hostname(String, #[source] Errno),
    #[error("cannot set up the pod's network")]
    Network(#[from] crate::network::NetworkError),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    #[error("cannot set the kernel parameter {name} to {value:?}")]
    Sysctl {
        name: String,
        value: String,
        #[source]
        source: io::Error,
    },
    #[error("cannot bring up the loopback interface")]
    Loopback(#[source] io::Error),
}

pub(crate) fn file_error(path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> LoadError {
    let path = path.as_ref().to_owned();
    move |source| LoadError::File { path, source }
}

/// Mounts everything and reads the plan.
pub(crate) fn load(site: &Site, scratch: Early) -> Result<GuestPlan, LoadError> {
    mount_partition(path::POD_PARTITION, &site.files)?;
    let plan = read_plan(site)?;
    let roots = plan.containers.iter().filter_map(|container| match container.rootfs {
        Rootfs::Partition(partition) => Some(partition),
        Rootfs::Path(_) => None,
    });
    let volumes = plan.volumes.iter().filter_map(|volume| match volume.source {
        VolumeSource::Image { partition } => Some(partition),
        _ => None,
    });
    let partitions: BTreeSet<u32> = roots.chain(volumes).collect();
    for partition in partitions {
        let target = site.image(partition);
        fs::create_dir_all(&target).map_err(file_error(&target))?;
        mount_partition(partition, &target)?;
    }
    nix::unistd::sethostname(&plan.hostname)
        .map_err(|errno| LoadError::Hostname(plan.hostname.clone(), errno))?;
    sys::loopback_up().map_err(LoadError::Loopback)?;
    if let Some(network) = &plan.network {
        crate::network::set_up(network)?;
    }
    crate::sysctls::set(&plan)?;
    share(site)?;
    scratch.finish(site, &plan)?;
    crate::lasting::mount_all(site, &plan)?;
    crate::volumes::mount_all(site, &plan)?;
    Ok(plan)
}

fn read_plan(site: &Site) -> Result<GuestPlan, LoadError> {
    let file = site.spec_json();
    let cap = u64::try_from(MAX_PLAN_SIZE).unwrap_or(u64::MAX);
    let bytes = File::open(&file).and_then(|file| read_capped(file, cap)).map_err(file_error(&file))?;
    let plan: GuestPlan = serde_json::from_slice(&bytes).map_err(|error| LoadError::Json(file, error))?;
    plan.check()?;
    Ok(plan)
}

fn mount_partition(partition: u32, target: &Path) -> Result<(), LoadError> {
    // Not nosuid: an image's set-user-id programs work as in any container. Not nodev: the device rules of the cgroup
    // decide.
    mount_device(&format!("{}{partition}", path::DISK), target, "erofs", MsFlags::MS_RDONLY, None)
}

/// Mounts a partition as soon as it appears.
pub(crate) fn mount_device(
    device: &str,
    target: &Path,
    fstype: &str,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<(), LoadError> {
    let deadline = Instant::now() + DISK_WAIT;
    while !Path::new(device).exists() {
        if Instant::now() >= deadline {
            return Err(LoadError::Disk(device.into()));
        }
        std::thread::sleep(DISK_POLL);
    }
    mount(Some(device), target, Some(fstype), flags, data).map_err(|source| LoadError::Mount {
        source_path: device.to_owned(),
        target: target.to_owned(),
        source,
    })
}

/// Makes what all containers of the pod share: writable copies of the pod's `/etc` files, and `/dev/shm`.
fn share(site: &Site) -> Result<(), LoadError> {
    let etc = site.etc();
    fs::create_dir_all(&etc).map_err(file_error(&etc))?;
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
    fs::create_dir_all(&shm).map_err(file_error(&shm))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // The same size as in other runtimes.
    mount(Some("shm"), &shm, Some("tmpfs"), flags, Some("mode=1777,size=64m"))
        .map_err(|source| LoadError::Mount { source_path: "shm".to_owned(), target: shm, source })
}
