//! The pod's volumes, each mounted once in a separate directory when the pod is loaded. `magikvm_containers` decides what a container sees of
//! them. Must not know: the supervisor, the wire.

use crate::load::{LoadError, file_error};
use magikvm_proto::path;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::site::Site;
use magikvm_proto::volume::{Part, VolumePlan, VolumeSource};
use nix::mount::{MsFlags, mount};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

/// Mode of an emptyDir, as in the kubelet.
const EMPTY_DIR_MODE: u32 = 0o777;
/// Mounts every volume in a separate directory.
pub(crate) fn mount_all(site: &Site, plan: &GuestPlan) -> Result<(), LoadError> {
    // The host has no device for volumes that no container mounts.
    let mut mounts = plan.containers.iter().flat_map(|container| &container.mounts);
    if mounts.any(|mount| matches!(mount.part, Part::Shared(_))) {
        let target = site.shared();
        make_dir(&target)?;
        mount_at(path::SHARED_TAG, &target, Some("virtiofs"), MsFlags::MS_NODEV, None)?;
    }
    (0..).zip(&plan.volumes).try_for_each(|(index, volume)| mount_volume(site, index, volume))
}

fn mount_volume(site: &Site, index: u32, volume: &VolumePlan) -> Result<(), LoadError> {
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
            let source = site.lasting(disk).join(path::LASTING_ROOT);
            return mount_at(&source.to_string_lossy(), &target, None, bind, None);
        }
        VolumeSource::Image { partition } => {
            make_dir(&target)?;
            mount_at(&site.image(*partition).to_string_lossy(), &target, None, bind, None)?;
            // As in Kubernetes, its programs can't be executed. The mounts of containers are copies of this one, with its flags.
            let flags =
                bind | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
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

fn make_dir(path: &Path) -> Result<(), LoadError> {
    fs::create_dir_all(path).map_err(file_error(path))
}

fn mount_at(
    source: &str,
    target: &Path,
    fstype: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<(), LoadError> {
    mount(Some(source), target, fstype, flags, data).map_err(|errno| LoadError::Mount {
        source_path: source.to_owned(),
        target: target.to_owned(),
        source: errno,
    })
}
