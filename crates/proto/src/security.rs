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

/// A size of huge pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePageSize {
    pub bytes: u64,
    /// As in the name of a resource of Kubernetes, `hugepages-2Mi`.
    pub in_kubernetes: &'static str,
    /// As in the name of a file of a control group, `hugetlb.2MB.max`, and in the OCI runtime specification.
    pub in_cgroups: &'static str,
}

/// 2 MiB.
pub const TWO_MIB: HugePageSize = HugePageSize { bytes: 2 << 20, in_kubernetes: "2Mi", in_cgroups: "2MB" };
/// 1 GiB.
pub const ONE_GIB: HugePageSize = HugePageSize { bytes: 1 << 30, in_kubernetes: "1Gi", in_cgroups: "1GB" };

/// How many of the host's huge pages may be used, in bytes of each size. None of either by default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HugePages {
    #[serde(default)]
    pub two_mib: u64,
    #[serde(default)]
    pub one_gib: u64,
}

impl HugePages {
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// Each size, with its bytes.
    pub fn each(self) -> [(HugePageSize, u64); 2] {
        [(TWO_MIB, self.two_mib), (ONE_GIB, self.one_gib)]
    }

    /// What both have together, at most `u64::MAX` of each size.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        self.with(other, u64::saturating_add)
    }

    /// What is enough for either.
    #[must_use]
    pub fn or_more(self, other: Self) -> Self {
        self.with(other, u64::max)
    }

    fn with(self, other: Self, join: fn(u64, u64) -> u64) -> Self {
        Self { two_mib: join(self.two_mib, other.two_mib), one_gib: join(self.one_gib, other.one_gib) }
    }
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
    #[serde(default, skip_serializing_if = "HugePages::is_none")]
    pub huge_pages: HugePages,
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
