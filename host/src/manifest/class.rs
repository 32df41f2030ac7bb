//! The runtime class of a pod, and what a pod of each class cannot have.

use super::plan::{PodPlan, PodUsers, Seccomp, Security};
use crate::net::Provider;
use magikvm_proto::id::ContainerName;
use magikvm_proto::security::Privilege;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The isolation of a pod (`spec.runtimeClassName`). The set is closed: an unknown class is an error and never replaced by another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuntimeClass {
    /// One hardware VM for the pod, containers inside it.
    #[default]
    PodMicrovmContainers,
    /// Namespaces, cgroups and seccomp of the host.
    PodContainers,
    PodWasm,
}

impl RuntimeClass {
    pub const ALL: [Self; 3] = [Self::PodMicrovmContainers, Self::PodContainers, Self::PodWasm];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::PodMicrovmContainers => "pod-microvm-containers",
            Self::PodContainers => "pod-containers",
            Self::PodWasm => "pod-wasm",
        }
    }
}

/// There is no such class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no runtime class {0:?}; there are {names}", names = RuntimeClass::ALL.map(RuntimeClass::as_str).join(", "))]
pub struct UnknownClass(String);

impl std::str::FromStr for RuntimeClass {
    type Err = UnknownClass;

    fn from_str(text: &str) -> Result<Self, UnknownClass> {
        let found = Self::ALL.into_iter().find(|class| class.as_str() == text);
        found.ok_or_else(|| UnknownClass(text.to_owned()))
    }
}

/// A pod that cannot be of a class.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClassConflict {
    #[error(
        "container {container} has {field}, which is possible only in a VM, and pods of the class {class} have none"
    )]
    OnlyInVm { container: ContainerName, field: &'static str, class: RuntimeClass },
    #[error("spec.hostUsers is true, which is not supported for pods of the class {class} in this version")]
    HostUsers { class: RuntimeClass },
    #[error("spec.hostNetwork is true, which is not possible for pods of the class {class}")]
    HostNetwork { class: RuntimeClass },
    #[error(
        "metadata.annotations.{} is not possible for pods of the class {class}",
        super::fields::ANNOTATION_CNI
    )]
    Cni { class: RuntimeClass },
    #[error(
        "the pod has the user or group {id}, and one of the class {class} has the ids 0 to {}",
        MAX_NAMESPACE_ID
    )]
    Id { id: u32, class: RuntimeClass },
}

/// The largest user or group id of a pod in namespaces, which has 65536 of each.
pub const MAX_NAMESPACE_ID: u32 = 0xffff;

impl PodPlan {
    /// Makes it a pod of another class than that of its manifest.
    pub fn change_class(&mut self, class: RuntimeClass) -> Result<(), ClassConflict> {
        match (class, &self.network.provider) {
            (RuntimeClass::PodContainers, _) => self.check_namespaces(class)?,
            (_, Provider::Host) => return Err(ClassConflict::HostNetwork { class }),
            (_, Provider::Cni(_)) => return Err(ClassConflict::Cni { class }),
            (_, Provider::Magikvm) => {}
        }
        self.runtime_class = class;
        Ok(())
    }

    fn check_namespaces(&self, class: RuntimeClass) -> Result<(), ClassConflict> {
        for container in &self.containers {
            let field = match &container.security {
                Security { privilege: Privilege::Privileged, .. } => "securityContext.privileged",
                Security { seccomp: Seccomp::Unconfined, .. } => "the seccomp profile Unconfined",
                _ => continue,
            };
            return Err(ClassConflict::OnlyInVm { container: container.name.clone(), field, class });
        }
        if self.users == PodUsers::Host {
            return Err(ClassConflict::HostUsers { class });
        }
        let of_containers = self.containers.iter().flat_map(|container| {
            [container.security.run_as_user, container.security.run_as_group].into_iter().flatten()
        });
        let of_pod = self.volume_group.into_iter().chain(self.further_groups.iter().copied());
        match of_containers.chain(of_pod).find(|id| *id > MAX_NAMESPACE_ID) {
            Some(id) => Err(ClassConflict::Id { id, class }),
            None => Ok(()),
        }
    }
}

impl fmt::Display for RuntimeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
