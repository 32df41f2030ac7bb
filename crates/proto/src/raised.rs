//! The limits that an administrator can raise, as they are in force in this process. A process that is told nothing has the product's defaults.
//! Who reads the file is none of this module's business.

use crate::limits;
use std::sync::OnceLock;

/// Each within the bounds that its reader checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Raised {
    /// Bytes of one layer, as stored and as unpacked.
    pub layer_bytes: u64,
    /// Bytes of one image's root file system.
    pub rootfs_bytes: u64,
    /// Layers of one image.
    pub layers: usize,
    /// Entries of one layer.
    pub files_per_layer: usize,
    /// Environment variables of one container.
    pub env_vars: usize,
    /// Longest `terminationGracePeriodSeconds`, in seconds.
    pub grace_secs: u64,
    /// Memory of one VM, in MiB.
    pub vm_memory_mib: u64,
    /// Virtual processors of one VM.
    pub vcpus: u32,
    /// Pods of one state root.
    pub pods: usize,
}

impl Default for Raised {
    fn default() -> Self {
        Self {
            layer_bytes: limits::MAX_LAYER_SIZE,
            rootfs_bytes: limits::MAX_ROOTFS_SIZE,
            layers: limits::MAX_LAYERS,
            files_per_layer: limits::MAX_FILES_PER_LAYER,
            env_vars: limits::MAX_ENV_VARS_PER_CONTAINER,
            grace_secs: limits::MAX_GRACE_PERIOD_SECS,
            vm_memory_mib: limits::MAX_VM_MEMORY_MIB,
            vcpus: limits::MAX_VCPUS,
            pods: limits::MAX_PODS,
        }
    }
}

/// The limits, and the file that can raise them.
static IN_FORCE: OnceLock<(Raised, String)> = OnceLock::new();

/// Puts limits in force for the rest of this process's life, once. `place` is the file's path, for messages.
pub fn put_in_force(limits: Raised, place: String) {
    // A second call comes from a second reading of the same file.
    drop(IN_FORCE.set((limits, place)));
}

/// The limits in force.
pub fn in_force() -> Raised {
    IN_FORCE.get().map_or_else(Raised::default, |(limits, _)| *limits)
}

/// Half a sentence for messages: where the limit with this key is raised.
pub fn remedy(key: &str) -> String {
    let place = IN_FORCE.get().map_or("limits.toml", |(_, place)| place);
    format!("an administrator can raise `{key}` in {place}")
}
