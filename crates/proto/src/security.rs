//! What a container may do beyond its OCI configuration, and what a pod may use in all.

use serde::{Deserialize, Serialize};

/// Least memory that a pod can be limited to, in bytes.
pub const MIN_MEMORY_LIMIT: u64 = 1 << 20;

/// Whether the groups count that the image's `/etc/group` gives a container's user (core/v1
/// `PodSecurityContext.supplementalGroupsPolicy`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageGroups {
    /// Beside those of its configuration.
    #[default]
    Merge,
    /// Only those of its configuration do.
    Strict,
}

/// Whether a container has all devices of the system that it runs on (core/v1 `SecurityContext.privileged`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Privilege {
    /// A few harmless ones.
    #[default]
    Confined,
    /// All of them, and it may make and use any other.
    Privileged,
}

/// What all containers of a pod may use together (core/v1 `PodSpec.resources`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodLimits {
    /// Thousandths of a processor, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_millis: Option<u64>,
    /// Bytes, at least [`MIN_MEMORY_LIMIT`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

impl PodLimits {
    /// Whether there is no limit.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Whether each limit leaves something.
    pub(crate) fn is_possible(&self) -> bool {
        self.cpu_millis != Some(0) && self.memory_bytes.is_none_or(|bytes| bytes >= MIN_MEMORY_LIMIT)
    }
}
