//! The pod's volumes, each mounted once in a separate directory before the first container is made. Must not know: what a container sees of them,
//! and where the shared directory comes from.

use super::{FurnishError, file_error, make_dir, mount_at};
use magikvm_proto::path::LASTING_ROOT;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::site::Site;
use magikvm_proto::volume::{VolumePlan, VolumeSource};
use nix::mount::MsFlags;
use nix::sys::statvfs::{FsFlags, statvfs};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};

/// Mode of an emptyDir, as in the kubelet.
const EMPTY_DIR_MODE: u32 = 0o777;

/// Mounts every volume in a separate directory, except those of the shared directory, which is mounted as a whole. File systems of disks must be
/// mounted already.
pub fn mount_volumes(site: &Site, plan: &GuestPlan) -> Result<(), FurnishError> {
    (0..).zip(&plan.volumes).try_for_each(|(index, volume)| mount_volume(site, index, volume))
}

fn mount_volume(site: &Site, index: u32, volume: &VolumePlan) -> Result<(), FurnishError> {
    let target = site.volume(index);
    let bind = MsFlags::MS_BIND;
    match &volume.source {
        VolumeSource::Shared => return Ok(()),
        VolumeSource::Memory { size_bytes } => {
            make_dir(&target)?;
            let size = size_bytes.map(|bytes| format!("size={bytes},")).unwrap_or_default();
            let options = format!("{size}mode={EMPTY_DIR_MODE:o}");
            mount_at("volume", &target, Some("tmpfs"), MsFlags::MS_NODEV, Some(&options))?;
        }
        VolumeSource::Disk { partition } => {
            make_dir(&target)?;
            let source = site.scratch(*partition).join(index.to_string());
            make_dir(&source)?;
            fs::set_permissions(&source, Permissions::from_mode(EMPTY_DIR_MODE))
                .map_err(file_error(&source))?;
            mount_at(&source.to_string_lossy(), &target, None, bind, None)?;
        }
        VolumeSource::Files => {
            make_dir(&target)?;
            return mount_at(&site.volume_files(index).to_string_lossy(), &target, None, bind, None);
        }
        VolumeSource::Lasting { disk, .. } => {
            make_dir(&target)?;
            let source = site.lasting(disk).join(LASTING_ROOT);
            return mount_at(&source.to_string_lossy(), &target, None, bind, None);
        }
        VolumeSource::Image { partition } => {
            make_dir(&target)?;
            mount_at(&site.image(*partition).to_string_lossy(), &target, None, bind, None)?;
            // As in Kubernetes, its programs can't be executed. The mounts of containers are copies of this one, with its flags.
            let flags =
                bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
            // Where the image is on a file system without it, root of a user namespace must not take that back (mount_namespaces(7)).
            let found = statvfs(&target).map_err(|errno| file_error(&target)(errno.into()))?;
            let no_suid = found.flags().contains(FsFlags::ST_NOSUID);
            let flags = flags | if no_suid { MsFlags::MS_NOSUID } else { MsFlags::empty() };
            return mount_at("none", &target, None, flags, None);
        }
    }
    if let Some(group) = volume.group {
        chown(&target, None, Some(group)).map_err(file_error(&target))?;
        let mode = Permissions::from_mode(0o2000 | EMPTY_DIR_MODE);
        fs::set_permissions(&target, mode).map_err(file_error(&target))?;
    }
    Ok(())
}
