//! What can be found out about a pod's preparation before anything is made: `run --replace` removes an older pod only after that.

use super::{PodToPrepare, RuntimeError, seccomp_file};
use crate::manifest::plan::{RootPlace, VolumeSource};
use crate::manifest::{Capacity, PodFacts, PodPlan, resolve_process};
use crate::net::settle::Settled;
use crate::store::layout::Layout;
use crate::store::text::chain;
use crate::vmm::scratch;
use crate::volume::claims::{ClaimError, Claims};
use crate::volume::host::OpenedPath;
use magikvm_proto::id::PodId;
use std::path::PathBuf;

/// Checks the volumes, and whether the containers can run with their images. An older pod of the same name is about to leave.
pub(super) fn check(
    pod: &PodToPrepare<'_>,
    profiles: &[PathBuf],
    network: &Settled,
) -> Result<(), RuntimeError> {
    let plan = pod.plan;
    let facts = facts(pod, network);
    for (container, image) in plan.containers.iter().zip(pod.images) {
        resolve_process(container, &image.config, &facts)
            .map_err(|source| RuntimeError::Resolve { container: container.name.clone(), source })?;
        seccomp_file::of(container, profiles)?;
    }
    for volume in &plan.volumes {
        let name = || volume.name.clone();
        match &volume.source {
            VolumeSource::HostPath { path, kind } => OpenedPath::check(path, *kind)
                .map_err(|source| RuntimeError::Volume { name: name(), source })?,
            VolumeSource::Claim { name: claim, make, .. } => {
                let id = PodId { namespace: plan.id.namespace.clone(), name: claim.clone() };
                let terms = make.as_ref().map(|claim| super::volumes::terms(plan, claim));
                let failed =
                    |source: ClaimError| RuntimeError::Claim { name: name(), source: Box::new(source) };
                Claims::at(pod.claims).check(&id, terms.as_ref(), &plan.id).map_err(failed)?;
            }
            VolumeSource::Memory { .. }
            | VolumeSource::Disk { .. }
            | VolumeSource::Files(_)
            | VolumeSource::Image { .. } => {}
        }
    }
    Ok(())
}

/// What this host lacks of what a plan names: volumes and profiles. A run would fail for it; another host may have it.
pub fn lacking(plan: &PodPlan, layout: &Layout) -> Vec<String> {
    let profiles = layout.seccomp();
    let profiles = plan.containers.iter().filter_map(|container| {
        let error = seccomp_file::of(container, &profiles).err()?;
        Some(chain(&error))
    });
    let dir = layout.volumes();
    let claims = plan.volumes.iter().filter_map(|volume| match &volume.source {
        VolumeSource::Claim { name, make: None, .. } => {
            let id = PodId { namespace: plan.id.namespace.clone(), name: name.clone() };
            let error = Claims::at(&dir).find(&id).err()?;
            Some(format!("volume {} cannot be provided: {}", volume.name, chain(&error)))
        }
        _ => None,
    });
    profiles.chain(app_armor(plan)).chain(claims).collect()
}

/// What the host lacks of the AppArmor profiles that containers without a VM name.
#[cfg(target_os = "linux")]
fn app_armor(plan: &PodPlan) -> Option<String> {
    use super::containers::apparmor::{self, Support};
    use crate::manifest::RuntimeClass;
    if plan.runtime_class != RuntimeClass::PodContainers {
        return None;
    }
    apparmor::check(plan, &Support::of_host()).err().map(|error| error.to_string())
}

#[cfg(not(target_os = "linux"))]
fn app_armor(_plan: &PodPlan) -> Option<String> {
    None
}

/// What containers can be told about their pod.
pub(super) fn facts(pod: &PodToPrepare<'_>, network: &Settled) -> PodFacts {
    let plan = pod.plan;
    PodFacts {
        hostname: network.hostname(&plan.hostname).to_owned(),
        uid: pod.uid.to_owned(),
        node_name: nix::unistd::gethostname()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
        pod_ips: network.addresses(),
        host_ip: network.host_address,
        capacity: capacity(plan),
    }
}

/// What the containers of a pod run on: its VM, or the host.
pub(super) struct Node {
    /// Thousandths of a processor.
    cpu_millis: u64,
    pub(super) memory_bytes: u64,
}

/// The node of a pod.
pub(super) fn node(plan: &PodPlan) -> Node {
    if plan.runtime_class.has_vm() {
        let cpu_millis = u64::from(plan.vm.vcpus.get()) * 1000;
        Node { cpu_millis, memory_bytes: plan.vm.memory.bytes() }
    } else {
        of_host()
    }
}

/// What a container without limits can have at most.
fn capacity(plan: &PodPlan) -> Capacity {
    let Node { cpu_millis, memory_bytes } = node(plan);
    Capacity {
        cpu_millis: plan.resources.cpu_limit_millis.map_or(cpu_millis, |limit| limit.min(cpu_millis)),
        memory_bytes: plan.resources.memory_limit_bytes.map_or(memory_bytes, |limit| limit.min(memory_bytes)),
        disk_bytes: plan.disk_limit_bytes.unwrap_or(match plan.root {
            RootPlace::Disk => scratch::SHARED_SIZE,
            // A tmpfs has half of the memory.
            RootPlace::Memory => memory_bytes / 2,
        }),
    }
}

/// The processors of the host and its memory.
fn of_host() -> Node {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let cpu_millis = u64::try_from(processors).unwrap_or(1).saturating_mul(1000);
    #[cfg(target_os = "linux")]
    {
        use nix::unistd::{SysconfVar, sysconf};
        let amount = |name| sysconf(name).ok().flatten().and_then(|value| u64::try_from(value).ok());
        let pages = amount(SysconfVar::_PHYS_PAGES).unwrap_or(0);
        Node { cpu_millis, memory_bytes: pages.saturating_mul(amount(SysconfVar::PAGE_SIZE).unwrap_or(4096)) }
    }
    #[cfg(not(target_os = "linux"))]
    Node { cpu_millis, memory_bytes: 0 }
}
