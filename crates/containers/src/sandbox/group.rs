//! The control group of the pod, made with the rights of the host and handed to the pod's root: one group for the sandbox's first process, and one
//! that holds those of the containers, so that the limits of the pod are not those of its supervisor.

use super::{Failed, at};
use crate::cgroup::{Hierarchies, Tree};
use crate::devices;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::chown;
use std::path::PathBuf;

/// No container can have this name.
const SUPERVISOR: &str = "_supervisor";
/// Holds those of the containers.
pub(super) const CONTAINERS: &str = "pod";

#[derive(Debug)]
pub(super) struct PodGroup {
    /// Open files of the supervisor's group, one in each hierarchy: those who enter it need the rights of who opened them.
    doors: Vec<File>,
}

impl PodGroup {
    pub(super) fn make(hierarchies: &Hierarchies, name: &str, owner: Option<u32>) -> Result<Self, Failed> {
        let tree = |below: &str| Tree::new(hierarchies.clone(), &format!("{name}/{below}"));
        let (containers, supervisor) = (tree(CONTAINERS), tree(SUPERVISOR));
        containers
            .make()
            .and_then(|()| supervisor.make_leaf())
            .map_err(at("make the pod's control group"))?;
        containers.forbid_huge_pages().map_err(at("keep the pod from huge pages"))?;
        if let Some(owner) = owner {
            // Only root of the host can set rules for devices, so they hold for the whole pod.
            devices::restrict_pod(&containers.itself()).map_err(at("restrict the pod's devices"))?;
            for dir in containers.dirs() {
                give(&dir, owner).map_err(at("hand the pod's control group over"))?;
            }
            if let Hierarchies::Unified(_) = hierarchies {
                // Who moves a process from one group to another needs this of the group above both.
                for dir in Tree::new(hierarchies.clone(), name).dirs() {
                    chown(dir.join("cgroup.procs"), Some(owner), Some(owner))
                        .map_err(at("hand the pod's control group over"))?;
                }
            }
        }
        let open = |dir: PathBuf| OpenOptions::new().write(true).open(dir.join("cgroup.procs"));
        let doors = supervisor.dirs().into_iter().map(open).collect::<Result<_, _>>();
        Ok(Self { doors: doors.map_err(at("open the supervisor's control group"))? })
    }

    /// Moves a process to the supervisor's group.
    pub(super) fn add(&self, pid: i32) -> Result<(), Failed> {
        self.doors
            .iter()
            .try_for_each(|mut door| door.write_all(pid.to_string().as_bytes()))
            .map_err(at("enter the pod's control group"))
    }
}

/// Gives a group and its files to the pod's root. What limits the group itself, its parent has set.
fn give(dir: &std::path::Path, owner: u32) -> std::io::Result<()> {
    chown(dir, Some(owner), Some(owner))?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            chown(entry.path(), Some(owner), Some(owner))?;
        }
    }
    Ok(())
}
