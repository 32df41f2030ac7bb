//! The plan that the host bakes into `/pod/spec.json` and the guest carries out. All names are resolved, all defaults applied.

use crate::id::{ContainerName, PodId};
use crate::limits::{MAX_CONTAINERS_PER_POD, MAX_VOLUMES_PER_POD};
use crate::volume::{MountPlan, VolumeError, VolumePlan};
use serde::{Deserialize, Serialize};

/// What happens to a container that has ended (core/v1 `PodSpec.restartPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum RestartPolicy {
    /// Start it again, whatever its exit code.
    #[default]
    Always,
    /// Start it again unless it exited with 0.
    OnFailure,
    /// Leave it.
    Never,
}

impl RestartPolicy {
    /// Whether a container that ended with this exit code is to be started again.
    pub fn restarts(self, exit_code: i32) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => exit_code != 0,
            Self::Never => false,
        }
    }
}

/// Whether the containers of a pod see each other's processes (core/v1 `PodSpec.shareProcessNamespace`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProcessNamespace {
    /// Each container is process 1 of its own PID namespace.
    #[default]
    PerContainer,
    /// All containers share one PID namespace, whose process 1 belongs to vminit and reaps.
    Pod,
}

/// How a container's standard output and error are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdio {
    /// Two pipes.
    #[default]
    Pipes,
    /// One terminal (core/v1 `Container.tty`).
    Terminal,
}

/// What a container reads from its standard input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Stdin {
    /// End of file at once.
    #[default]
    Closed,
    /// A pipe that stays open over many attaches (core/v1 `Container.stdin`).
    Open,
    /// A pipe that ends with the first attach that ends (core/v1 `Container.stdinOnce`).
    Once,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContainerPlan {
    /// Its name; its OCI configuration is at [`crate::path::container_config`].
    pub name: ContainerName,
    /// Partition of the stitched disk with its root file system (EROFS), 2 or more.
    pub image_partition: u32,
    /// Who it runs as, in the form of an OCI image's `User`: empty (root), `user`, `uid`, `user:group`, `uid:gid` and mixtures.
    /// Names are looked up in the image's own `/etc/passwd` and `/etc/group` by the guest. Numbers need neither file.
    pub user: String,
    /// Standard output and error.
    pub stdio: Stdio,
    /// Standard input.
    pub stdin: Stdin,
    /// What it sees of the pod's volumes, in the order they are mounted.
    pub mounts: Vec<MountPlan>,
}

/// The whole pod, as the guest needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestPlan {
    /// [`crate::GENERATION`] of the host that wrote it.
    pub generation: u32,
    /// The pod's name.
    pub pod: PodId,
    /// The pod's unique id (UUID text).
    pub uid: String,
    /// The pod's host name (UTS).
    pub hostname: String,
    /// What happens to a container that has ended.
    pub restart_policy: RestartPolicy,
    /// Whose processes a container sees.
    pub process_namespace: ProcessNamespace,
    /// Grace period used when the guest itself has to stop the pod (signal to PID 1), in milliseconds.
    pub grace_ms: u64,
    /// 1 to 16 containers, in the order they start; they stop in reverse.
    pub containers: Vec<ContainerPlan>,
    /// At most 64 volumes.
    pub volumes: Vec<VolumePlan>,
}

/// Why a plan is not to be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// Written by a host of another generation.
    #[error("the plan is of generation {found}, this vminit speaks {expected}")]
    Generation {
        /// Found in the plan.
        found: u32,
        /// [`crate::GENERATION`].
        expected: u32,
    },
    /// None or too many.
    #[error("the plan has {0} containers, 1 to {MAX_CONTAINERS_PER_POD} are possible")]
    ContainerCount(usize),
    /// Two containers of one name.
    #[error("the plan names container {0} twice")]
    Duplicate(ContainerName),
    /// A partition that can't hold an image.
    #[error("container {container} names partition {partition}, images start at 2")]
    Partition {
        /// Which container.
        container: ContainerName,
        /// The number found.
        partition: u32,
    },
    /// Too many volumes.
    #[error("the plan has {0} volumes, at most {MAX_VOLUMES_PER_POD} are possible")]
    VolumeCount(usize),
    /// A volume or a mount that can't be made.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

impl GuestPlan {
    /// Checks what the types alone can't say. Both ends call it: the host before baking, the guest before acting.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.generation != crate::GENERATION {
            return Err(PlanError::Generation { found: self.generation, expected: crate::GENERATION });
        }
        if self.containers.is_empty() || self.containers.len() > MAX_CONTAINERS_PER_POD {
            return Err(PlanError::ContainerCount(self.containers.len()));
        }
        for (index, container) in self.containers.iter().enumerate() {
            if self.containers[..index].iter().any(|earlier| earlier.name == container.name) {
                return Err(PlanError::Duplicate(container.name.clone()));
            }
            if container.image_partition < crate::path::FIRST_IMAGE_PARTITION {
                return Err(PlanError::Partition {
                    container: container.name.clone(),
                    partition: container.image_partition,
                });
            }
        }
        if self.volumes.len() > MAX_VOLUMES_PER_POD {
            return Err(PlanError::VolumeCount(self.volumes.len()));
        }
        let mounts = self.containers.iter().map(|container| (&container.name, &container.mounts[..]));
        Ok(crate::volume::check(&self.volumes, mounts)?)
    }
}
