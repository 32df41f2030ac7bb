//! The possible sizes of a VM, and of what a pod without one may use.

use magikvm_proto::limits::{VCPUS_BOUND, VM_MEMORY_BOUND_MIB};
use magikvm_proto::raised;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Memory counted for a container without a memory limit, in MiB (or its request, if that is more).
pub const DEFAULT_CONTAINER_MEMORY_MIB: u64 = 128;
/// Least memory of all containers together when one of them has no memory limit, in MiB: it may use more than it asks for.
pub const DEFAULT_POD_MEMORY_MIB: u64 = 512;
/// Memory for the guest's kernel and vminit, in MiB.
pub const VM_OVERHEAD_MIB: u64 = 96;
/// Memory for each container in addition to the container's own, in MiB.
pub const CONTAINER_OVERHEAD_MIB: u64 = 8;
/// Smallest VM that boots, in MiB.
pub const MIN_VM_MEMORY_MIB: u64 = VM_OVERHEAD_MIB;
/// Most memory that a pod without a VM can ask for, in bytes: as much as the kernel addresses on x86-64 (64 TiB).
pub const MAX_MEMORY_BYTES: u64 = 1 << 46;
/// Most processors that a pod without a VM can ask for, in thousandths: as many as Linux supports (CONFIG_NR_CPUS).
pub const MAX_CPU_MILLIS: u64 = 8192 * 1000;
/// Virtual processors when a container has no CPU limit, unless the host has fewer.
const DEFAULT_VCPUS: u32 = 2;

/// Virtual processors when a container has no CPU limit. More than the host has would only wait for each other: one spins for a lock that
/// another holds, which cannot run meanwhile.
pub fn default_vcpus() -> u32 {
    let host = std::thread::available_parallelism().map_or(1, usize::from);
    u32::try_from(host).unwrap_or(u32::MAX).min(DEFAULT_VCPUS)
}

/// Why a VM cannot have this size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Memory out of range.
    #[error("a VM has {MIN_VM_MEMORY_MIB} to {} MiB of memory, not {}", raised::in_force().vm_memory_mib, .0)]
    Memory(u64),
    /// Processors out of range.
    #[error("a VM has 1 to {} processors, not {}", raised::in_force().vcpus, .0)]
    Vcpus(u32),
}

/// Memory of a VM, in MiB: at least [`MIN_VM_MEMORY_MIB`]. A stored one may exceed the limit in force, but not what is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "StoredMiB", into = "u64")]
pub struct MiB(u64);

impl MiB {
    pub fn get(self) -> u64 {
        self.0
    }

    pub fn bytes(self) -> u64 {
        self.0 << 20
    }

    /// The memory of a VM whose containers have no more than the limit in force. What the VM needs itself is not limited.
    pub(super) fn with_overhead(mib: u64) -> Self {
        Self(mib.clamp(MIN_VM_MEMORY_MIB, VM_MEMORY_BOUND_MIB))
    }
}

impl TryFrom<u64> for MiB {
    type Error = SizeError;
    fn try_from(mib: u64) -> Result<Self, SizeError> {
        if (MIN_VM_MEMORY_MIB..=raised::in_force().vm_memory_mib).contains(&mib) {
            Ok(Self(mib))
        } else {
            Err(SizeError::Memory(mib))
        }
    }
}

#[derive(Deserialize)]
struct StoredMiB(u64);

impl TryFrom<StoredMiB> for MiB {
    type Error = SizeError;
    fn try_from(StoredMiB(mib): StoredMiB) -> Result<Self, SizeError> {
        if (MIN_VM_MEMORY_MIB..=VM_MEMORY_BOUND_MIB).contains(&mib) {
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

/// Processors of a VM. A stored number may exceed the limit in force, but not what is possible.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "StoredVcpus", into = "u32")]
pub struct Vcpus(u32);

impl Vcpus {
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Vcpus {
    type Error = SizeError;
    fn try_from(count: u32) -> Result<Self, SizeError> {
        let max = raised::in_force().vcpus;
        if (1..=max).contains(&count) { Ok(Self(count)) } else { Err(SizeError::Vcpus(count)) }
    }
}

#[derive(Deserialize)]
struct StoredVcpus(u32);

impl TryFrom<StoredVcpus> for Vcpus {
    type Error = SizeError;
    fn try_from(StoredVcpus(count): StoredVcpus) -> Result<Self, SizeError> {
        if (1..=VCPUS_BOUND).contains(&count) { Ok(Self(count)) } else { Err(SizeError::Vcpus(count)) }
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
    pub memory: MiB,
    pub vcpus: Vcpus,
}

impl VmSize {
    /// The smallest one, for the plan of a pod without a VM.
    pub(super) fn least() -> Self {
        Self { memory: MiB(MIN_VM_MEMORY_MIB), vcpus: Vcpus(1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_out_of_range_cannot_be_had() {
        assert!(MiB::try_from(95).is_err() && MiB::try_from(4097).is_err());
        assert_eq!(MiB::try_from(4096).unwrap().bytes(), 4 << 30);
        assert!(Vcpus::try_from(0).is_err() && Vcpus::try_from(9).is_err());
        assert!(serde_json::from_str::<MiB>("1").is_err());
        assert_eq!(serde_json::from_str::<Vcpus>("8").unwrap().get(), 8);
    }
}
