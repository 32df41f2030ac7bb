//! Volumes in the guest's plan: where their content is, and where containers mount them.

use crate::id::ContainerName;
use crate::limits::{MAX_LASTING_DISKS, MAX_MOUNT_PATHS_LEN, MAX_MOUNTS_PER_CONTAINER, MAX_VOLUME_PATH_LEN};
use crate::path::FIRST_IMAGE_PARTITION;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Whether a mount of a volume is writable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Access {
    /// Read-only.
    ReadOnly,
    /// Writable.
    #[default]
    ReadWrite,
}

/// A volume of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumePlan {
    pub source: VolumeSource,
    /// Its group, whose members may write (core/v1 `PodSecurityContext.fsGroup`).
    pub group: Option<u32>,
}

/// Where a volume's content is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum VolumeSource {
    /// In the guest's memory.
    Memory {
        /// Most bytes it may hold; without a limit, half of the guest's memory.
        size_bytes: Option<u64>,
    },
    /// A directory of a file system on the scratch disk.
    Disk { partition: u32 },
    /// Files in the pod's own file system ([`crate::site::volume_files`]).
    Files,
    /// Files of the host; each mount says which.
    Shared,
    /// A container image, in this partition of the composite disk; nothing in it can be changed or executed.
    Image { partition: u32 },
    /// An ext4 file system that outlives the pod, in the only partition of a disk of its own.
    Lasting {
        /// The GUID in the disk's partition table: 32 lower-case hexadecimal digits. Several volumes may have the same disk.
        disk: String,
        /// When its files get the volume's group.
        regroup: Regroup,
    },
}

/// When the files of a volume that outlives the pod get its group (core/v1 `PodFSGroupChangePolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Regroup {
    #[default]
    Always,
    /// Only if its root directory has not got it.
    OnRootMismatch,
}

/// Digits of a disk's GUID.
pub const DISK_GUID_DIGITS: usize = 32;

fn is_guid(text: &str) -> bool {
    text.len() == DISK_GUID_DIGITS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// What a container sees of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountPlan {
    /// Index of the volume.
    pub volume: u32,
    pub part: Part,
    /// Where the container sees it: an absolute path without `..`.
    pub destination: String,
    /// Whether it is writable.
    pub access: Access,
}

/// A part of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Part {
    Whole,
    /// The entry at this relative path without `..`; a missing one becomes a directory.
    Path(String),
    /// An entry of the directory that the host shares.
    Shared(u32),
}

/// Why a volume can't be mounted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VolumeError {
    /// Too many mounts for a container.
    #[error("container {container} has {count} mounts, at most {MAX_MOUNTS_PER_CONTAINER} are allowed")]
    MountCount { container: ContainerName, count: usize },
    /// The paths of a container's mounts are too long together.
    #[error(
        "the paths of the mounts of container {container} have {len} bytes, at most {MAX_MOUNT_PATHS_LEN} are allowed"
    )]
    PathsLen {
        container: ContainerName,
        /// Their length in bytes.
        len: usize,
    },
    /// A mount of a volume that does not exist.
    #[error("container {container} mounts volume {volume}, which does not exist")]
    Missing { container: ContainerName, volume: u32 },
    /// A mount of a part that this kind of volume does not have.
    #[error("container {container} mounts a part of volume {volume} that this kind of volume does not have")]
    Part { container: ContainerName, volume: u32 },
    /// A destination or a path that is not allowed.
    #[error("container {container}: a mount's path {path}")]
    Path {
        container: ContainerName,
        /// Why it is refused.
        path: PathError,
    },
    /// A partition that can't hold an image.
    #[error("volume {volume} is partition {partition}, images start at {FIRST_IMAGE_PARTITION}")]
    Partition { volume: usize, partition: u32 },
    /// A disk that has no valid name, or more disks than a VM has slots for.
    #[error("volume {volume} is on a disk that no VM can have")]
    Disk { volume: usize },
    /// Two mounts have the same destination.
    #[error("container {container} has two mounts with the same destination")]
    Twice { container: ContainerName },
}

/// Why a path is not allowed in a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("must not be empty")]
    Empty,
    /// Too long for the kernel.
    #[error("is longer than {MAX_VOLUME_PATH_LEN} bytes")]
    TooLong,
    #[error("contains a NUL byte")]
    Nul,
    /// `..`.
    #[error("must not contain '..'")]
    Back,
    #[error("must be an absolute path")]
    Relative,
    #[error("must be a relative path")]
    Absolute,
    /// The root, a path below /proc or /sys, /dev, or a device that every container has.
    #[error("can't be mounted over: it is the root, /dev, a standard device, or beneath /proc or /sys")]
    Reserved,
}

fn plain(path: &str) -> Result<(), PathError> {
    if path.is_empty() {
        return Err(PathError::Empty);
    }
    if path.len() > MAX_VOLUME_PATH_LEN {
        return Err(PathError::TooLong);
    }
    if path.contains('\0') {
        return Err(PathError::Nul);
    }
    if path.split('/').any(|name| name == "..") { Err(PathError::Back) } else { Ok(()) }
}

/// Checks a path beneath a volume: relative, without `..`.
pub fn check_sub_path(path: &str) -> Result<(), PathError> {
    plain(path)?;
    if path.starts_with('/') { Err(PathError::Absolute) } else { Ok(()) }
}

/// What a runtime makes in every container's `/dev`.
const DEVICES: [&str; 13] = [
    "null", "zero", "full", "random", "urandom", "tty", "console", "ptmx", "pts", "fd", "stdin", "stdout",
    "stderr",
];

/// Checks a mount's destination: absolute, without `..`, and nothing that every container has in the same way.
pub fn check_destination(path: &str) -> Result<(), PathError> {
    plain(path)?;
    if !path.starts_with('/') {
        return Err(PathError::Relative);
    }
    let mut names = names(path);
    match (names.next(), names.next(), names.next()) {
        (None | Some("proc" | "sys"), ..) | (Some("dev"), None, _) => Err(PathError::Reserved),
        (Some("dev"), Some(name), _) if DEVICES.contains(&name) => Err(PathError::Reserved),
        _ => Ok(()),
    }
}

/// The components of a path.
pub fn names(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|name| !name.is_empty() && *name != ".")
}

/// Checks volumes and the mounts of each container.
pub(crate) fn check<'a>(
    volumes: &[VolumePlan],
    containers: impl Iterator<Item = (&'a ContainerName, &'a [MountPlan])>,
) -> Result<(), VolumeError> {
    let mut disks = HashSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        match &volume.source {
            VolumeSource::Image { partition: partition @ ..FIRST_IMAGE_PARTITION } => {
                return Err(VolumeError::Partition { volume: index, partition: *partition });
            }
            VolumeSource::Lasting { disk, .. } => {
                disks.insert(disk);
                if !is_guid(disk) || disks.len() > MAX_LASTING_DISKS {
                    return Err(VolumeError::Disk { volume: index });
                }
            }
            _ => {}
        }
    }
    for (container, mounts) in containers {
        if mounts.len() > MAX_MOUNTS_PER_CONTAINER {
            return Err(VolumeError::MountCount { container: container.clone(), count: mounts.len() });
        }
        let part = |mount: &MountPlan| if let Part::Path(path) = &mount.part { path.len() } else { 0 };
        let len = mounts.iter().map(|mount| mount.destination.len() + part(mount)).sum();
        if len > MAX_MOUNT_PATHS_LEN {
            return Err(VolumeError::PathsLen { container: container.clone(), len });
        }
        let mut seen = HashSet::new();
        for mount in mounts {
            check_mount(volumes, mount, container)?;
            if !seen.insert(names(&mount.destination).collect::<Vec<_>>()) {
                return Err(VolumeError::Twice { container: container.clone() });
            }
        }
    }
    Ok(())
}

fn check_mount(volumes: &[VolumePlan], mount: &MountPlan, name: &ContainerName) -> Result<(), VolumeError> {
    let container = || name.clone();
    let volume = usize::try_from(mount.volume).ok().and_then(|index| volumes.get(index));
    let Some(volume) = volume else {
        return Err(VolumeError::Missing { container: container(), volume: mount.volume });
    };
    let failed = |path| VolumeError::Path { container: container(), path };
    check_destination(&mount.destination).map_err(failed)?;
    match (&volume.source, &mount.part) {
        (VolumeSource::Shared, Part::Shared(_)) => Ok(()),
        (VolumeSource::Shared, _) | (_, Part::Shared(_)) => {
            Err(VolumeError::Part { container: container(), volume: mount.volume })
        }
        (_, Part::Whole) => Ok(()),
        (_, Part::Path(path)) => check_sub_path(path).map_err(failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(volume: u32, part: Part, destination: &str) -> MountPlan {
        MountPlan { volume, part, destination: destination.to_owned(), access: Access::ReadOnly }
    }

    fn checked(mounts: &[MountPlan]) -> Result<(), VolumeError> {
        let source = [VolumeSource::Files, VolumeSource::Shared];
        let volumes = source.map(|source| VolumePlan { source, group: None });
        check(&volumes, [(&"a".parse().unwrap(), mounts)].into_iter())
    }

    #[test]
    fn a_mount_is_of_a_volume_that_is_there_at_a_place_of_its_own() {
        let path = |path: &str| Part::Path(path.to_owned());
        let fine =
            [mount(0, Part::Whole, "/a"), mount(0, path("b/c"), "/a/b"), mount(1, Part::Shared(3), "/c")];
        assert_eq!(checked(&fine), Ok(()));
        let bad = |one: MountPlan| checked(&[one]).unwrap_err();
        assert!(matches!(bad(mount(2, Part::Whole, "/a")), VolumeError::Missing { volume: 2, .. }));
        assert!(matches!(bad(mount(1, Part::Whole, "/a")), VolumeError::Part { .. }));
        assert!(matches!(bad(mount(0, Part::Shared(0), "/a")), VolumeError::Part { .. }));
        let twice = [mount(0, Part::Whole, "/a//b/"), mount(0, Part::Whole, "/a/./b")];
        assert!(matches!(checked(&twice), Err(VolumeError::Twice { .. })));
        let many: Vec<_> =
            (0..=MAX_MOUNTS_PER_CONTAINER).map(|n| mount(0, Part::Whole, &format!("/{n}"))).collect();
        assert!(matches!(checked(&many), Err(VolumeError::MountCount { .. })));
    }

    #[test]
    fn an_image_is_not_in_the_partition_of_the_pods_own_files() {
        let volume = |partition| VolumePlan { source: VolumeSource::Image { partition }, group: None };
        assert_eq!(check(&[volume(FIRST_IMAGE_PARTITION)], std::iter::empty()), Ok(()));
        assert_eq!(
            check(&[volume(2), volume(1)], std::iter::empty()),
            Err(VolumeError::Partition { volume: 1, partition: 1 })
        );
    }

    #[test]
    fn a_disk_has_a_guid_and_few_are_possible() {
        let volume = |disk: String| {
            let source = VolumeSource::Lasting { disk, regroup: Regroup::Always };
            VolumePlan { source, group: None }
        };
        let guid = |number: usize| format!("{number:032x}");
        let many = |count: usize| (0..count).map(|number| volume(guid(number))).collect::<Vec<_>>();
        assert_eq!(check(&many(MAX_LASTING_DISKS), std::iter::empty()), Ok(()));
        let same = vec![volume(guid(1)); MAX_LASTING_DISKS + 1];
        assert_eq!(check(&same, std::iter::empty()), Ok(()), "one disk");
        let too_many = check(&many(MAX_LASTING_DISKS + 1), std::iter::empty());
        assert_eq!(too_many, Err(VolumeError::Disk { volume: MAX_LASTING_DISKS }));
        for bad in ["", "../x", &"A".repeat(32), &"0".repeat(31)] {
            let found = check(&[volume(bad.to_owned())], std::iter::empty());
            assert_eq!(found, Err(VolumeError::Disk { volume: 0 }), "{bad}");
        }
    }

    #[test]
    fn paths_lead_nowhere_else() {
        let long = format!("/{}", "x".repeat(MAX_VOLUME_PATH_LEN));
        let destinations = [
            ("", PathError::Empty),
            (&long, PathError::TooLong),
            ("/a\0", PathError::Nul),
            ("/a/../b", PathError::Back),
            ("a", PathError::Relative),
            ("//.", PathError::Reserved),
            ("/proc", PathError::Reserved),
            ("/./sys/fs", PathError::Reserved),
            ("/dev/", PathError::Reserved),
            ("/dev/null", PathError::Reserved),
            ("/dev/pts/0", PathError::Reserved),
        ];
        for (path, error) in destinations {
            assert_eq!(check_destination(path), Err(error), "{path}");
        }
        for path in ["/etc/..x", "/dev/shm", "/dev/mine", "/data/dev/null"] {
            assert_eq!(check_destination(path), Ok(()), "{path}");
        }
        assert_eq!(check_sub_path("/a"), Err(PathError::Absolute));
        assert_eq!(check_sub_path("a/.."), Err(PathError::Back));
        assert_eq!(check_sub_path("a/b"), Ok(()));
    }
}
