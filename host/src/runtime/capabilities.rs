//! The capabilities of a container.

use crate::manifest::plan::{CapabilityList, Security};
use magikvm_proto::security::Privilege;
use oci_spec::runtime::{Capabilities, Capability};

/// The capabilities that containerd and Docker give every container.
pub(super) const DEFAULT_CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];
/// All capabilities of the runtime specification.
pub(super) const ALL_CAPABILITIES: [Capability; 41] = [
    Capability::AuditControl,
    Capability::AuditRead,
    Capability::AuditWrite,
    Capability::BlockSuspend,
    Capability::Bpf,
    Capability::CheckpointRestore,
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::Kill,
    Capability::Lease,
    Capability::LinuxImmutable,
    Capability::MacAdmin,
    Capability::MacOverride,
    Capability::Mknod,
    Capability::NetAdmin,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetRaw,
    Capability::Perfmon,
    Capability::Setgid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysChroot,
    Capability::SysModule,
    Capability::SysNice,
    Capability::SysPacct,
    Capability::SysPtrace,
    Capability::SysRawio,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Syslog,
    Capability::WakeAlarm,
];

/// In containerd's order: `ALL` of add, `ALL` of drop, then the names of add, then those of drop. A privileged container has all.
pub(super) fn capabilities(security: &Security) -> Capabilities {
    if security.privilege == Privilege::Privileged {
        return ALL_CAPABILITIES.into();
    }
    let (add, drop) = (&security.add_capabilities, &security.drop_capabilities);
    let mut set: Capabilities = match (add, drop) {
        (_, CapabilityList::All) => Capabilities::new(),
        (CapabilityList::All, _) => ALL_CAPABILITIES.into(),
        _ => DEFAULT_CAPABILITIES.into(),
    };
    if let CapabilityList::Only(names) = add {
        set.extend(names);
    }
    if let CapabilityList::Only(names) = drop {
        set.retain(|capability| !names.contains(capability));
    }
    set
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_capabilities_are_all_there_are() {
        // 41 is CAP_LAST_CAP (CAP_CHECKPOINT_RESTORE, 40) and 0.
        assert_eq!(ALL_CAPABILITIES.into_iter().collect::<Capabilities>().len(), 41);
    }
}
