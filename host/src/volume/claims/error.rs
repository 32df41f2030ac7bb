//! Why a claim cannot be used.

use super::DISK_SCHEMA;
use crate::store::atomic::FileError;
use crate::volume::ClaimForm;
use magikvm_proto::id::PodId;
use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum ClaimError {
    #[error("there is no volume {0}")]
    Missing(PodId),
    #[error("volume {0} exists already")]
    Exists(PodId),
    /// A pod that can't run together with another one.
    #[error("volume {id} is for one pod at a time (ReadWriteOncePod), and pod {user} uses it")]
    Busy { id: PodId, user: PodId },
    /// A second VM for a disk.
    #[error("volume {id} is a disk, which one pod at a time can have, and pod {user} uses it")]
    Taken { id: PodId, user: PodId },
    #[error("volume {id} is used by pod {user}")]
    InUse { id: PodId, user: PodId },
    /// Its content must not change meanwhile.
    #[error("volume {0} is being exported")]
    Exported(PodId),
    /// The manifest asks for another claim than the one that exists.
    #[error("volume {id} exists with the access modes {found}, and the manifest asks for {wanted}")]
    OtherModes { id: PodId, found: String, wanted: String },
    #[error("volume {id} exists as a {}, and the manifest asks for a {}", found.as_str(), wanted.as_str())]
    OtherForm { id: PodId, found: ClaimForm, wanted: ClaimForm },
    /// The manifest asks for less than a disk holds.
    #[error("volume {id} holds {} bytes, and the manifest asks for {wanted}; disks never shrink", found)]
    Shrinks { id: PodId, found: u64, wanted: u64 },
    #[error("{} is damaged", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// Written by another version.
    #[error("{} has schema {found}, this program knows up to {DISK_SCHEMA}", path.display())]
    Schema { path: PathBuf, found: u32 },
    /// The host never looks into a file system that a guest has written.
    #[error("volume {0} is a disk, and the host does not look into its file system")]
    NoFiles(PodId),
    #[error("volume {0} is a directory, not a disk")]
    NoDisk(PodId),
    #[error("volume {0} is empty: no pod has used its disk yet")]
    NotMade(PodId),
    #[error("the archive has {}, which is {kind}; volumes get files, directories, links and FIFOs only", path.display())]
    Special { path: PathBuf, kind: &'static str },
    #[error("cannot read the archive")]
    Archive(#[source] std::io::Error),
    #[error("cannot write the archive")]
    Write(#[source] std::io::Error),
    #[error("{} is not in a volume", .0.display())]
    Outside(PathBuf),
    #[error(transparent)]
    File(#[from] FileError),
}

impl ClaimError {
    /// What the user can do, as a whole sentence.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Missing(_) => Some("List the volumes with `magikvm volume ls`.".to_owned()),
            Self::Exists(id) => {
                Some(format!("Remove it first with `magikvm volume rm {id}`, or choose another name."))
            }
            Self::Busy { user, .. } | Self::InUse { user, .. } => {
                Some(format!("Stop the pod first with `magikvm stop {user}`."))
            }
            Self::Taken { user, .. } => Some(format!(
                "Stop the pod first with `magikvm stop {user}`, or make a claim that pods can share: with `accessModes: [ReadWriteMany]` or `storageClassName: directory`."
            )),
            Self::OtherForm { id, .. } => Some(format!(
                "Leave storageClassName as it was when the volume was made, or remove the volume and its content with `magikvm volume rm {id}`."
            )),
            Self::Shrinks { id, found, .. } => Some(format!(
                "Request {found} or more, or remove the volume and its content with `magikvm volume rm {id}`."
            )),
            Self::NoFiles(id) => Some(format!(
                "Export the disk itself with `magikvm volume export --disk {id} -o FILE`, or its files with a pod that has it: `magikvm exec POD -- tar -c -C DIRECTORY . > FILE`."
            )),
            Self::NoDisk(id) => Some(format!("Export its files with `magikvm volume export {id} -o FILE`.")),
            Self::Special { .. } => Some("Leave it out of the archive (`tar --exclude`).".to_owned()),
            Self::Exported(_) => Some("Try again when the export has ended.".to_owned()),
            Self::OtherModes { id, .. } => Some(format!(
                "Write the modes that it has, or remove the volume and its content with `magikvm volume rm {id}`."
            )),
            _ => None,
        }
    }

    /// Whether the host is at fault.
    pub fn is_of_host(&self) -> bool {
        matches!(self, Self::File(_) | Self::Damaged { .. } | Self::Schema { .. } | Self::Write(_))
    }
}
