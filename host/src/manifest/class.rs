//! The runtime class of a pod.

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

    /// Whether its pods have VMs. Those of the other classes share the host's kernel.
    pub fn has_vm(self) -> bool {
        match self {
            Self::PodMicrovmContainers => true,
            Self::PodContainers | Self::PodWasm => false,
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

/// The largest user or group id of a pod in namespaces, which has 65536 of each.
pub const MAX_NAMESPACE_ID: u32 = 0xffff;

impl fmt::Display for RuntimeClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
