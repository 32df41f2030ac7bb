//! The place of a pod's control group on this host.

use super::super::microvm::{cgroup_name, network_cgroup_name};
use crate::jail::{self, Cgroup};
use crate::store::layout::PodDir;
use crate::vmm::Unavailable;
use nix::unistd::{AccessFlags, access, geteuid};
use std::path::{Path, PathBuf};

/// The group of a pod.
pub(super) struct Place {
    /// Its path in each hierarchy.
    pub(super) name: String,
    /// Its directories.
    pub(super) dirs: Vec<PathBuf>,
}

/// The name of a pod's group.
pub(super) fn name(dir: &PodDir) -> String {
    cgroup_name(dir.path())
}

/// The group of root's pods is in every hierarchy, or in the scope that systemd has made; that of other users where a part of the unified one was delegated to them. Or the reason why
/// there is none.
pub(super) fn place(dir: &PodDir) -> Result<Place, String> {
    let own = cgroup_name(dir.path());
    if geteuid().is_root() {
        let mounts = jail::cgroup_mounts();
        if let Some(closed) = mounts.iter().find(|mount| access(*mount, AccessFlags::W_OK).is_err()) {
            return Err(format!("{} cannot be written to", closed.display()));
        }
        let above = jail::scope::of_this_process().as_ref().and_then(|dir| within(dir)).unwrap_or_default();
        let name = above.join(jail::CGROUP_PARENT).join(own);
        let dirs = mounts.iter().map(|mount| mount.join(&name)).collect();
        return Ok(Place { name: format!("/{}", name.display()), dirs });
    }
    let delegated = jail::place_cgroup(&own)?;
    if let Some(why) = jail::cannot_make(&delegated) {
        return Err(why);
    }
    let name =
        delegated.dirs.first().and_then(|dir| within(dir)).ok_or("the control group is not mounted")?;
    Ok(Place { name: format!("/{}", name.display()), dirs: delegated.dirs })
}

/// The path of a group's directory within its hierarchy.
fn within(dir: &Path) -> Option<PathBuf> {
    jail::cgroup_mounts().iter().find_map(|mount| Some(dir.strip_prefix(mount).ok()?.to_owned()))
}

/// Most memory and processes of the network of a pod.
const NETWORK_MEMORY: u64 = 256 << 20;
const NETWORK_PIDS: u64 = 64;

/// The group of the processes of a pod's network, which are paused by signals and so not in the group that is frozen.
pub(super) fn place_of_network(dir: &PodDir) -> Result<Cgroup, String> {
    jail::place_cgroup(&network_cgroup_name(dir.path()))
}

/// Makes that group.
pub(super) fn of_network(place: &Result<Cgroup, String>) -> Result<Cgroup, String> {
    let place = place.clone()?;
    jail::make_cgroup(&place, NETWORK_MEMORY, NETWORK_PIDS).map(|()| place)
}

/// Checks that the host has control groups at all.
pub(super) fn probe() -> Result<(), Unavailable> {
    if jail::cgroup_mounts().is_empty() {
        return Err(Unavailable {
            reason: "the host has no control groups, without which nothing limits a container".to_owned(),
            remedy: "Mount them with `mount -t cgroup2 none /sys/fs/cgroup`.".to_owned(),
        });
    }
    Ok(())
}
