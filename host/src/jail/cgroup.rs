//! Control groups of pods: one with limits for all processes of a pod. They are unified groups, or those of version 1 where the
//! controllers are there.

use super::scope;
use super::spec::Cgroup;
use crate::store::text::ignore;
use nix::unistd::geteuid;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The parent of all our groups.
pub const PARENT: &str = "magikvm";
const CONTROLLERS: [&str; 2] = ["memory", "pids"];
/// Attempts, since another process may remove the empty parent right before a group is made in it.
const ATTEMPTS: usize = 20;

/// The place of the group with this name, or the reason why none is possible. Creates nothing.
pub fn place_cgroup(name: &str) -> Result<Cgroup, String> {
    let mounts = mount_table();
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let dirs = of_version_2(&mounts, &own).or_else(|why| match mounted(&mounts, "cgroup").next() {
        Some(_) => of_version_1(&mounts),
        None => Err(why),
    })?;
    Ok(Cgroup { dirs: dirs.into_iter().map(|dir| dir.join(PARENT).join(name)).collect() })
}

/// Why no group with limits can be made at this place, as far as that can be seen without making one.
pub fn cannot_make(cgroup: &Cgroup) -> Option<String> {
    cgroup.dirs.iter().find_map(|dir| {
        let base = dir.parent()?.parent()?;
        let control = fs::read_to_string(base.join("cgroup.subtree_control")).ok()?;
        let handed_on =
            CONTROLLERS.iter().all(|wanted| control.split_ascii_whitespace().any(|name| name == *wanted));
        let has_processes =
            || fs::read_to_string(base.join("cgroup.procs")).is_ok_and(|text| !text.is_empty());
        (!handed_on && has_processes()).then(|| occupied(base))
    })
}

/// Where the hierarchies are mounted that can hold groups of pods: the unified one, or those of version 1.
pub fn cgroup_mounts() -> Vec<PathBuf> {
    let mounts = mount_table();
    let legacy: Vec<PathBuf> = mounted(&mounts, "cgroup").map(|(dir, _)| dir.to_owned()).collect();
    let unified = mounted(&mounts, "cgroup2").map(|(dir, _)| dir.to_owned());
    legacy.into_iter().chain(unified).collect()
}

/// Whether version 2 is all that there is to limit memory with.
pub(super) fn is_unified() -> bool {
    let mounts = mount_table();
    let has_memory = |options: &str| options.split(',').any(|option| option == "memory");
    !mounted(&mounts, "cgroup").any(|(_, options)| has_memory(options))
        && mounted(&mounts, "cgroup2").next().is_some()
}

/// Moves the calling process from its group of one hierarchy to that same group. The kernel lets the first process that enters a group wait for all readers
/// of a lock (14 ms on a host with two processors), and for some time no other one: what follows soon does not wait. Nothing depends on whether it succeeds.
pub fn stir() {
    let legacy = || {
        let mounts = mount_table();
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let is_freezer = |options: &str| options.split(',').any(|option| option == "freezer");
        let (mount, _) = mounted(&mounts, "cgroup").find(|(_, options)| is_freezer(options))?;
        let path = own.lines().find_map(|line| line.split_once(":freezer:").map(|(_, path)| path))?;
        Some(mount.join(path.trim_start_matches('/')))
    };
    if let Some(dir) = legacy().or_else(own_directory) {
        ignore(enter(&dir), "it only takes longer then");
    }
}

/// Moves the calling process to the group of this directory.
pub(super) fn enter(dir: &Path) -> io::Result<()> {
    let mut procs = fs::OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?;
    io::Write::write_all(&mut procs, b"0")
}

/// What is mounted (proc_pid_mountinfo(5)), or nothing.
fn mount_table() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// The directory of the calling process's group of version 2.
pub(super) fn own_directory() -> Option<PathBuf> {
    let mounts = mount_table();
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(mounted(&mounts, "cgroup2").next()?.0.join(path.trim_start_matches('/')))
}

/// The controllers that a group of a pod of this user can have: those of version 1 if memory is one of them, otherwise those of the unified hierarchy.
pub fn controllers() -> Vec<String> {
    let mounts = mount_table();
    let legacy: Vec<String> = mounted(&mounts, "cgroup")
        .flat_map(|(_, options)| options.split(',').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    if geteuid().is_root() && legacy.iter().any(|name| name == "memory") {
        return legacy;
    }
    let base = if geteuid().is_root() {
        mounted(&mounts, "cgroup2").next().map(|(mount, _)| mount.to_owned())
    } else {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        of_version_2(&mounts, &own).ok().and_then(|dirs| dirs.into_iter().next())
    };
    let there = base.and_then(|base| fs::read_to_string(base.join("cgroup.controllers")).ok());
    there.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect()
}

/// Every place where a group of this name may have been made.
pub fn all_cgroups(name: &str) -> Vec<PathBuf> {
    let mut dirs = place_cgroup(name).map(|cgroup| cgroup.dirs).unwrap_or_default();
    for place in cgroup_mounts().into_iter().map(|mount| mount.join(PARENT).join(name)) {
        if !dirs.contains(&place) {
            dirs.push(place);
        }
    }
    dirs
}

/// The mounts of control groups: the directory of each and its mount options.
fn mounted<'a>(mounts: &'a str, kind: &'a str) -> impl Iterator<Item = (&'a Path, &'a str)> {
    mounts.lines().filter_map(move |line| {
        let (place, what) = line.split_once(" - ")?;
        let mut what = what.split(' ');
        let dir = place.split(' ').nth(4)?;
        (what.next()? == kind).then(|| (Path::new(dir), what.nth(1).unwrap_or_default()))
    })
}

fn of_version_2(mounts: &str, own: &str) -> Result<Vec<PathBuf>, String> {
    let none = || "the host has no unified control groups".to_owned();
    let (mount, _) = mounted(mounts, "cgroup2").next().ok_or_else(none)?;
    let holds_all = |dir: &Path, file: &str| {
        let there = fs::read_to_string(dir.join(file)).unwrap_or_default();
        CONTROLLERS.iter().all(|wanted| there.split_ascii_whitespace().any(|name| name == *wanted))
    };
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).ok_or_else(none)?;
    let here = mount.join(path.trim_start_matches('/'));
    let uid = geteuid().as_raw();
    let is_ours = |dir: &&Path| {
        let owned = |file: &str| fs::metadata(dir.join(file)).is_ok_and(|meta| meta.uid() == uid);
        owned("cgroup.procs") && owned("cgroup.subtree_control")
    };
    let usable = |dir: &&Path| holds_all(dir, "cgroup.controllers");
    let scope = here.ancestors().find(|dir| scope::is_one(dir)).filter(is_ours).filter(usable);
    if geteuid().is_root() {
        // The whole tree is root's.
        return match scope.or_else(|| Some(mount).filter(usable)) {
            Some(dir) => Ok(vec![dir.to_owned()]),
            None => Err(format!("{} has no controllers for memory and pids", mount.display())),
        };
    }
    // The part of the tree that was delegated to this user, if there is one: the user's topmost group above the current one.
    let top = scope.or_else(|| here.ancestors().take_while(is_ours).filter(usable).last());
    top.map(|dir| vec![dir.to_owned()]).ok_or_else(|| {
        "no control group with controllers for memory and pids was delegated to this user; get one with `systemd-run --user --scope -p Delegate=yes`".to_owned()
    })
}

fn of_version_1(mounts: &str) -> Result<Vec<PathBuf>, String> {
    let of = |controller: &str| {
        let mut all = mounted(mounts, "cgroup");
        let found = all.find(|(_, options)| options.split(',').any(|option| option == controller));
        found
            .map(|(dir, _)| dir.to_owned())
            .ok_or_else(|| format!("the host has no control groups for {controller}"))
    };
    if !geteuid().is_root() {
        return Err("control groups of version 1 belong to root".to_owned());
    }
    CONTROLLERS.into_iter().map(of).collect()
}

/// Creates a group with its limits, or says why it cannot.
pub fn make_cgroup(cgroup: &Cgroup, memory_bytes: u64, pids: u64) -> Result<(), String> {
    let mut refused = None;
    for dir in &cgroup.dirs {
        refused = make(dir).map_err(|error| format!("cannot make {}: {error}", dir.display()))?.or(refused);
        for (file, value) in
            [("memory.max", memory_bytes), ("memory.limit_in_bytes", memory_bytes), ("pids.max", pids)]
        {
            let path = dir.join(file);
            if path.exists() {
                fs::write(&path, value.to_string())
                    .map_err(|error| format!("cannot write {}: {error}", path.display()))?;
            }
        }
    }
    let has = |file: &str| cgroup.dirs.iter().any(|dir| dir.join(file).exists());
    if !has("pids.max") || !(has("memory.max") || has("memory.limit_in_bytes")) {
        return Err(refused.unwrap_or_else(|| "the group has no limits for memory and pids".to_owned()));
    }
    Ok(())
}

/// Makes a group. Says why a group above it has not handed its controllers on, which may have been unnecessary.
fn make(dir: &Path) -> io::Result<Option<String>> {
    let parent = dir.parent().unwrap_or(dir);
    let base = parent.parent().unwrap_or(parent);
    let mut refused = None;
    for attempt in 1.. {
        refused = delegate(base);
        match fs::create_dir(parent) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        refused = refused.or(delegate(parent));
        match fs::create_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {}
            made => return made.map(|()| refused),
        }
    }
    Ok(refused)
}

/// With unified groups, the children of a group have only the controllers that the group hands on. Says why it does not, which matters only
/// when a child has nothing to write a limit to.
fn delegate(dir: &Path) -> Option<String> {
    let control = dir.join("cgroup.subtree_control");
    if !control.exists() {
        return None;
    }
    let hand_on = |controller| fs::write(&control, format!("+{controller}")).err();
    let mut errors: Vec<io::Error> = CONTROLLERS.into_iter().filter_map(hand_on).collect();
    let error = errors.pop()?;
    Some(match error.kind() {
        io::ErrorKind::ResourceBusy => occupied(dir),
        _ => format!("cannot write {}: {error}", control.display()),
    })
}

fn occupied(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "the control group {dir} has processes, so that it can have no groups with limits beneath it; start magikvm in a group beneath it: `mkdir {dir}/shell && echo $$ >{dir}/shell/cgroup.procs`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_understood() {
        let table = "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     31 23 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 none rw\n";
        let one: Vec<_> = mounted(table, "cgroup").collect();
        assert_eq!(one, [(Path::new("/sys/fs/cgroup/memory"), "rw,memory")]);
        assert_eq!(mounted(table, "cgroup2").next().unwrap().0, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(
            of_version_1(table).unwrap_err(),
            if geteuid().is_root() {
                "the host has no control groups for pids"
            } else {
                "control groups of version 1 belong to root"
            }
        );
    }
}
