//! How large the VM of a pod is.

use super::plan::Resources;
use magikvm_proto::limits::{MAX_VCPUS, MAX_VM_MEMORY_MIB};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What a container without a memory limit counts for, in MiB (or its request, if that is more).
pub const DEFAULT_CONTAINER_MEMORY_MIB: u64 = 128;
/// What the guest's kernel and vminit need, in MiB.
pub const VM_OVERHEAD_MIB: u64 = 96;
/// What the guest needs for each container beside the container's own memory, in MiB.
pub const CONTAINER_OVERHEAD_MIB: u64 = 8;
/// Smallest VM that boots, in MiB.
pub const MIN_VM_MEMORY_MIB: u64 = VM_OVERHEAD_MIB;
/// Virtual processors when a container has no CPU limit.
pub const DEFAULT_VCPUS: u32 = 2;

/// Why a size is none that a VM can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Memory out of range.
    #[error("a VM has {MIN_VM_MEMORY_MIB} to {MAX_VM_MEMORY_MIB} MiB of memory, not {0}")]
    Memory(u64),
    /// Processors out of range.
    #[error("a VM has 1 to {MAX_VCPUS} processors, not {0}")]
    Vcpus(u32),
}

/// Memory of a VM, in MiB: [`MIN_VM_MEMORY_MIB`] to `MAX_VM_MEMORY_MIB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct MiB(u64);

impl MiB {
    /// The number of MiB.
    pub fn get(self) -> u64 {
        self.0
    }

    /// The number of bytes.
    pub fn bytes(self) -> u64 {
        self.0 << 20
    }
}

impl TryFrom<u64> for MiB {
    type Error = SizeError;
    fn try_from(mib: u64) -> Result<Self, SizeError> {
        if (MIN_VM_MEMORY_MIB..=MAX_VM_MEMORY_MIB).contains(&mib) {
            Ok(Self(mib))
        } else {
            Err(SizeError::Memory(mib))
        }
    }
}

impl From<MiB> for u64 {
    fn from(mib: MiB) -> Self {
        mib.0
    }
}

impl fmt::Display for MiB {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// Processors of a VM: 1 to `MAX_VCPUS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Vcpus(u32);

impl Vcpus {
    /// The number of processors.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vcpus {
    type Error = SizeError;
    fn try_from(count: u32) -> Result<Self, SizeError> {
        if (1..=MAX_VCPUS).contains(&count) { Ok(Self(count)) } else { Err(SizeError::Vcpus(count)) }
    }
}

impl From<Vcpus> for u32 {
    fn from(vcpus: Vcpus) -> Self {
        vcpus.0
    }
}

impl fmt::Display for Vcpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSize {
    /// Memory.
    pub memory: MiB,
    /// Processors.
    pub vcpus: Vcpus,
}

/// What the containers need together, which may be more than a VM can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    /// Of the containers, without any overhead, in MiB.
    pub(super) containers_mib: u64,
    /// With the overhead, in MiB.
    pub(super) memory_mib: u64,
    /// Thousandths of a processor.
    pub(super) cpu_millis: u64,
    /// Processors.
    pub(super) vcpus: u64,
}

/// Adds up what the containers need.
pub(super) fn need<'a>(containers: impl IntoIterator<Item = &'a Resources>) -> Need {
    let (mut bytes, mut cpu_millis, mut count, mut unlimited) = (0u64, 0u64, 0u64, false);
    for resources in containers {
        let fallback = resources.memory_request_bytes.unwrap_or(0).max(DEFAULT_CONTAINER_MEMORY_MIB << 20);
        bytes = bytes.saturating_add(resources.memory_limit_bytes.unwrap_or(fallback));
        cpu_millis = cpu_millis
            .saturating_add(resources.cpu_limit_millis.or(resources.cpu_request_millis).unwrap_or(0));
        unlimited |= resources.cpu_limit_millis.is_none();
        count += 1;
    }
    let containers_mib = bytes.div_ceil(1 << 20);
    let memory_mib = containers_mib
        .saturating_add(VM_OVERHEAD_MIB)
        .saturating_add(count.saturating_mul(CONTAINER_OVERHEAD_MIB));
    let least = if unlimited { u64::from(DEFAULT_VCPUS) } else { 1 };
    Need { containers_mib, memory_mib, cpu_millis, vcpus: cpu_millis.div_ceil(1000).max(least) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(memory_mib: Option<u64>, cpu_millis: Option<u64>) -> Resources {
        Resources {
            memory_limit_bytes: memory_mib.map(|mib| mib << 20),
            cpu_limit_millis: cpu_millis,
            ..Resources::default()
        }
    }

    #[test]
    fn the_sum_of_the_limits_and_the_overhead_is_what_the_vm_gets() {
        let found = need(&[resources(None, None)]);
        assert_eq!((found.memory_mib, found.vcpus), (128 + 96 + 8, 2));
        let found = need(&[resources(Some(256), Some(500)), resources(Some(64), Some(600))]);
        assert_eq!((found.memory_mib, found.vcpus), (256 + 64 + 96 + 16, 2));
        assert_eq!(need(&[resources(Some(64), Some(100))]).vcpus, 1);
        assert_eq!(need(&[resources(None, Some(100)), resources(None, None)]).vcpus, 2);
        assert_eq!(
            need(&[resources(None, Some(u64::MAX)), resources(Some(1 << 43), Some(1))]).vcpus,
            u64::MAX.div_ceil(1000)
        );
    }

    #[test]
    fn a_request_above_the_default_counts_when_there_is_no_limit() {
        let asked = Resources {
            memory_request_bytes: Some(200 << 20),
            cpu_request_millis: Some(3000),
            ..Resources::default()
        };
        let found = need(&[asked]);
        assert_eq!((found.memory_mib, found.vcpus), (200 + 96 + 8, 3));
    }

    #[test]
    fn sizes_out_of_range_cannot_be_had() {
        assert!(MiB::try_from(95).is_err() && MiB::try_from(4097).is_err());
        assert_eq!(MiB::try_from(4096).unwrap().bytes(), 4 << 30);
        assert!(Vcpus::try_from(0).is_err() && Vcpus::try_from(9).is_err());
        assert!(serde_json::from_str::<MiB>("1").is_err());
        assert_eq!(serde_json::from_str::<Vcpus>("8").unwrap().get(), 8);
    }
}
