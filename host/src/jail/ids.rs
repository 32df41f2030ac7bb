//! The identity of a jailed process and the ids of its user namespace. Both are decided outside.

use super::caps;
use super::spec::{Identity, PodUser};
use nix::unistd::{getegid, geteuid};
use std::fs;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A range in the map of a user namespace: first id inside, first id outside, length.
type Extent = (u32, u32, u32);

/// The identity of the processes of a VM that read these files (and write only to the VM's directory). All processes of a VM should have
/// the same one.
pub fn identity(machine: &str, reads: &[PathBuf]) -> Identity {
    if !geteuid().is_root() {
        return Identity::Caller(None);
    }
    let user = PodUser::of_machine(machine);
    match why_not(user, reads) {
        None => Identity::Nobody(user),
        why => Identity::Caller(why),
    }
}

fn why_not(user: PodUser, reads: &[PathBuf]) -> Option<String> {
    let wanted = [caps::CHOWN, caps::SETGID, caps::SETUID, caps::SETPCAP, caps::SYS_ADMIN];
    let held = caps::effective();
    if let Some((_, name)) = wanted.iter().find(|(number, _)| held & (1 << number) == 0) {
        return Some(format!("root has no {name} in this environment"));
    }
    for map in ["/proc/self/uid_map", "/proc/self/gid_map"] {
        let holds = |&(inside, _, count): &Extent| user.id().checked_sub(inside).is_some_and(|at| at < count);
        if !extents(&fs::read_to_string(map).unwrap_or_default()).iter().any(holds) {
            return Some(format!("this user namespace has no id {}", user.id()));
        }
    }
    let hidden = reads.iter().find(|path| !is_readable_by_all(path))?;
    Some(format!("{} can be read by root only (chmod a+r it)", hidden.display()))
}

/// Checks the file's mode only. The directories above it do not matter, because the file is mounted.
fn is_readable_by_all(path: &Path) -> bool {
    let wanted = |is_dir: bool| if is_dir { 0o005 } else { 0o004 };
    fs::metadata(path).is_ok_and(|meta| meta.mode() & wanted(meta.is_dir()) == wanted(meta.is_dir()))
}

/// Gives a VM's directory and the files in it to the VM's user. It must hold no directories, and none of the VM's processes may have been
/// started.
pub fn give(dir: &Path, identity: &Identity) -> std::io::Result<()> {
    let Identity::Nobody(user) = identity else { return Ok(()) };
    for entry in fs::read_dir(dir)? {
        lchown(entry?.path(), Some(user.id()), Some(user.id()))?;
    }
    lchown(dir, Some(user.id()), Some(user.id()))
}

fn extents(text: &str) -> Vec<Extent> {
    let number = |word: Option<&str>| word.and_then(|word| word.parse().ok());
    let extent = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        Some((number(words.next())?, number(words.next())?, number(words.next())?))
    };
    text.lines().filter_map(extent).collect()
}

/// Maps the ids of a process that has just created a user namespace. Says why some ids are missing that its identity should have.
pub(super) fn map(pid: i32, identity: &Identity) -> Result<Option<String>, String> {
    match identity {
        Identity::Nobody(user) => {
            let own = [(user.id(), user.id(), 1)];
            write(pid, &USERS, &own)?;
            write(pid, &GROUPS, &own)?;
        }
        Identity::Caller(_) => {
            let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
            write(pid, &USERS, &[(uid, uid, 1)])?;
            deny_setgroups(pid)?;
            write(pid, &GROUPS, &[(gid, gid, 1)])?;
        }
        Identity::FileServer if geteuid().is_root() => {
            // All ids of this namespace, under the same numbers.
            let all = |map: &str| -> Vec<Extent> {
                let here = extents(&fs::read_to_string(map).unwrap_or_default());
                here.into_iter().map(|(inside, _, count)| (inside, inside, count)).collect()
            };
            write(pid, &USERS, &all("/proc/self/uid_map"))?;
            write(pid, &GROUPS, &all("/proc/self/gid_map"))?;
        }
        Identity::FileServer => return of_ordinary_user(pid),
    }
    Ok(None)
}

/// Maps the ids 0 to 65535 of a process that has just created a user namespace to a range of the host's ids. Only root can.
pub fn map_range(pid: i32, first: u32, count: u32) -> Result<(), String> {
    write(pid, &USERS, &[(0, first, count)])?;
    write(pid, &GROUPS, &[(0, first, count)])
}

/// The ids of users, or those of groups.
struct Ids {
    map: &'static str,
    /// The program that may map subordinate ids, and the file that grants them.
    program: &'static str,
    table: &'static str,
    /// The one of this process.
    own: fn() -> u32,
}

const USERS: Ids =
    Ids { map: "uid_map", program: "newuidmap", table: "/etc/subuid", own: || geteuid().as_raw() };
const GROUPS: Ids =
    Ids { map: "gid_map", program: "newgidmap", table: "/etc/subgid", own: || getegid().as_raw() };

fn write(pid: i32, ids: &Ids, extents: &[Extent]) -> Result<(), String> {
    let text: String =
        extents.iter().map(|(inside, outside, count)| format!("{inside} {outside} {count}\n")).collect();
    fs::write(format!("/proc/{pid}/{}", ids.map), text)
        .map_err(|error| format!("cannot write {}: {error}", ids.map))
}

/// The kernel demands this before an ordinary user maps a group without the help of a program.
fn deny_setgroups(pid: i32) -> Result<(), String> {
    fs::write(format!("/proc/{pid}/setgroups"), "deny")
        .map_err(|error| format!("cannot write setgroups: {error}"))
}

/// The mapping of rootless podman: the user's id becomes root, and the subordinate ids follow from 1. Where the host does not grant them, the
/// user's id is the only one.
fn of_ordinary_user(pid: i32) -> Result<Option<String>, String> {
    let users = granted(&USERS).and_then(|range| subordinate(pid, &USERS, range));
    if users.is_err() {
        map_only(pid, &USERS)?;
    }
    let groups = granted(&GROUPS).and_then(|range| subordinate(pid, &GROUPS, range));
    if groups.is_err() {
        deny_setgroups(pid)?;
        map_only(pid, &GROUPS)?;
    }
    Ok(users.and(groups).err())
}

/// The ids that the host grants to the user of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SubordinateIds {
    users: Range,
    groups: Range,
}

/// The first id and how many there are.
type Range = (u32, u32);

impl SubordinateIds {
    /// The programs that map them.
    pub const PROGRAMS: [&'static str; 2] = [USERS.program, GROUPS.program];

    /// Reads them. The reason of a failure ends with what mends it.
    pub fn granted() -> Result<Self, String> {
        Ok(Self { users: granted(&USERS)?, groups: granted(&GROUPS)? })
    }

    /// A name for them, of letters and digits.
    pub fn name(&self) -> String {
        let Self { users: (user, users), groups: (group, groups) } = self;
        format!("u{user}n{users}g{group}n{groups}")
    }

    /// Users and groups of a namespace that [`Self::map`] has mapped: from 0 to one below these numbers.
    pub fn counts(&self) -> (u32, u32) {
        (self.users.1.saturating_add(1), self.groups.1.saturating_add(1))
    }

    /// Maps the ids of a process that has just created a user namespace.
    pub fn map(&self, pid: i32) -> Result<(), String> {
        subordinate(pid, &USERS, self.users)?;
        subordinate(pid, &GROUPS, self.groups)
    }
}

/// Maps the ids of a process that has just created a user namespace: its root is the user of this process, and there is no other one.
pub fn map_caller(pid: i32) -> Result<(), String> {
    map_only(pid, &USERS)?;
    deny_setgroups(pid)?;
    map_only(pid, &GROUPS)
}

fn map_only(pid: i32, ids: &Ids) -> Result<(), String> {
    write(pid, ids, &[(0, (ids.own)(), 1)])
}

fn granted(ids: &Ids) -> Result<Range, String> {
    let user = geteuid();
    let name = nix::unistd::User::from_uid(user).ok().flatten().map(|user| user.name).unwrap_or_default();
    let table = ids.table;
    let text = fs::read_to_string(table).map_err(|error| format!("cannot read {table}: {error}; {MEND}"))?;
    range(&text, &name, user.as_raw()).ok_or_else(|| format!("{table} has no ids of this user; {MEND}"))
}

/// The reason of a failure ends with what mends it.
fn subordinate(pid: i32, ids: &Ids, (first, count): Range) -> Result<(), String> {
    let program = ids.program;
    let numbers = [pid.unsigned_abs(), 0, (ids.own)(), 1, 1, first, count].map(|number| number.to_string());
    match Command::new(program).args(numbers).stdin(Stdio::null()).output() {
        Ok(done) if done.status.success() => Ok(()),
        Ok(done) => {
            let said = String::from_utf8_lossy(&done.stderr);
            Err(format!(
                "{program} failed: {}; {MEND}",
                said.trim().chars().take(MAX_SAID).collect::<String>()
            ))
        }
        Err(error) => Err(format!("cannot run {program}: {error}; {MEND}")),
    }
}

const MEND: &str = "`magikvm doctor` says how to get subordinate ids";
/// Longest message of a program that is repeated.
const MAX_SAID: usize = 300;

fn range(table: &str, name: &str, uid: u32) -> Option<Range> {
    let uid = uid.to_string();
    table.lines().find_map(|line| {
        let mut words = line.split(':');
        let user = words.next()?;
        if user != uid && (user != name || name.is_empty()) {
            return None;
        }
        Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subordinate_ids_are_found_by_name_and_by_number() {
        let table = "ann:100000:65536\n1001:165536:65536\nbroken\n";
        assert_eq!(range(table, "ann", 1000), Some((100_000, 65_536)));
        assert_eq!(range(table, "", 1001), Some((165_536, 65_536)));
        assert_eq!(range(table, "", 1002), None);
    }

    #[test]
    fn what_only_root_may_read_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("kernel");
        fs::write(&file, "x").unwrap();
        for (mode, readable) in [(0o600, false), (0o640, false), (0o644, true)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(is_readable_by_all(&file), readable, "{mode:o}");
        }
        assert_eq!(extents("         0          0 4294967295\n"), [(0, 0, u32::MAX)]);
    }
}
