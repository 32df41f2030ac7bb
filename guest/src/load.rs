//! From the composite disk to a pod that can run: the pod's own file system, its plan and the images. What the containers share is made by
//! `magikvm_containers`.

use crate::scratch::Early;
use magikvm_containers::pod::{self, FurnishError};
use magikvm_containers::read_capped;
use magikvm_proto::limits::MAX_PLAN_SIZE;
use magikvm_proto::path;
use magikvm_proto::plan::{GuestPlan, PlanError, Rootfs};
use magikvm_proto::site::Site;
use magikvm_proto::volume::{Part, VolumeSource};
use nix::mount::MsFlags;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a partition may take to appear. Drivers are built into the kernel, so it nearly always exists already.
pub(crate) const DISK_WAIT: Duration = Duration::from_secs(5);
/// Delay between two checks for a partition.
pub(crate) const DISK_POLL: Duration = Duration::from_millis(2);

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
    #[error("{} is not a valid plan", .0.display())]
    Json(PathBuf, #[source] serde_json::Error),
    #[error(transparent)]
    Plan(#[from] PlanError),
    #[error(transparent)]
    Furnish(#[from] FurnishError),
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
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
        pod::make_dir(&target)?;
        mount_partition(partition, &target)?;
    }
    pod::furnish(site, &plan, pod::NetworkOwner::Pod)?;
    scratch.finish(site, &plan)?;
    crate::lasting::mount_all(site, &plan)?;
    mount_shared(site, &plan)?;
    pod::mount_volumes(site, &plan)?;
    Ok(plan)
}

fn read_plan(site: &Site) -> Result<GuestPlan, LoadError> {
    let file = site.spec_json();
    let cap = u64::try_from(MAX_PLAN_SIZE).unwrap_or(u64::MAX);
    let bytes = File::open(&file).and_then(|file| read_capped(file, cap)).map_err(pod::file_error(&file))?;
    let plan: GuestPlan = serde_json::from_slice(&bytes).map_err(|error| LoadError::Json(file, error))?;
    plan.check()?;
    Ok(plan)
}

/// Mounts the host's shared directory. The host has no device for volumes that no container mounts.
fn mount_shared(site: &Site, plan: &GuestPlan) -> Result<(), LoadError> {
    let mut mounts = plan.containers.iter().flat_map(|container| &container.mounts);
    if !mounts.any(|mount| matches!(mount.part, Part::Shared(_))) {
        return Ok(());
    }
    let target = site.shared();
    pod::make_dir(&target)?;
    Ok(pod::mount_at(path::SHARED_TAG, &target, Some("virtiofs"), MsFlags::MS_NODEV, None)?)
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
    Ok(pod::mount_at(device, target, Some(fstype), flags, data)?)
}
