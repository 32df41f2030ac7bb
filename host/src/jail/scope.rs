//! A control group of its own for a pod, where systemd manages the groups: a transient scope with delegation (org.freedesktop.systemd1(5),
//! `StartTransientUnit`) of the system's manager, or of an ordinary user's. The monitor moves itself there before it makes anything. systemd removes
//! the scope when its last process has ended. Only with groups of version 2: those of version 1 are made beside systemd's.

use super::cgroup;
use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// The names of our scopes begin like this, and end with `.scope`.
const PREFIX: &str = "magikvm-";
/// The group of the monitor in its scope. One that holds processes can have no groups with limits beneath it.
const OWN_LEAF: &str = "monitor";
/// D-Bus Specification, "System message bus".
const SYSTEM_BUS: &str = "/run/dbus/system_bus_socket";
/// Time for systemd to answer, and then to move the monitor.
const ANSWER: Duration = Duration::from_secs(5);
/// How often to look whether it has moved it.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// Nothing else runs in a monitor that waits for this.
static TRIED: AtomicBool = AtomicBool::new(false);

/// Whether this is the directory of one of our scopes.
pub(super) fn is_one(dir: &Path) -> bool {
    let name = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(PREFIX) && name.ends_with(".scope")
}

/// The slice of root's pods, as of other VMs and containers (systemd.special(7)).
const SLICE: &str = "machine.slice";

/// A manager of groups.
enum Manager {
    /// The host's first process.
    System,
    /// An ordinary user's, by the user's runtime directory.
    User(PathBuf),
}

/// Whether a monitor of this ordinary user will ask for a scope, so that the group of the calling process says nothing about that of a pod.
pub fn is_to_come() -> bool {
    !TRIED.load(Ordering::Relaxed) && matches!(manager(), Some(Manager::User(_)))
}

/// The directory of the scope that this process is in, if there is one.
pub fn of_this_process() -> Option<PathBuf> {
    let dir = cgroup::is_unified().then(cgroup::own_directory)??;
    dir.ancestors().find(|dir| is_one(dir)).map(Path::to_owned)
}

/// Whether the scopes of this user outlive their logins (loginctl(1), `enable-linger`).
pub fn survives_logout() -> bool {
    let name = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name);
    name.is_some_and(|name| Path::new("/var/lib/systemd/linger").join(name).exists())
}

/// Who manages groups that can have limits, and takes calls.
fn manager() -> Option<Manager> {
    let uid = nix::unistd::geteuid();
    if !cgroup::is_unified() {
        return None;
    }
    let is_socket = |path: &Path| fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    if uid.is_root() {
        // sd_booted(3), and the bus that calls go through.
        let booted = fs::symlink_metadata("/run/systemd/system").is_ok_and(|found| found.is_dir());
        return (booted && is_socket(Path::new(SYSTEM_BUS))).then_some(Manager::System);
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty());
    let runtime = runtime.map_or_else(|| PathBuf::from(format!("/run/user/{uid}")), PathBuf::from);
    is_socket(&runtime.join("systemd/private")).then_some(Manager::User(runtime))
}

/// Moves the calling process into a scope of its own, whose name has this in it. Says why not, if there is a manager that should have made it.
pub fn enter(name: &str) -> Result<(), String> {
    let found = manager();
    TRIED.store(true, Ordering::Relaxed);
    let Some(manager) = found else { return Ok(()) };
    let pid = std::process::id().to_string();
    let scope = format!("{PREFIX}{}-{pid}.scope", unit_name(name));
    let own = || {
        let dir = cgroup::own_directory()?;
        dir.ancestors()
            .find(|dir| dir.file_name().is_some_and(|name| name == scope.as_str()))
            .map(Path::to_owned)
    };
    if own().is_some() {
        return Ok(());
    }
    let mut call = Command::new("busctl");
    let slice: &[&str] = match &manager {
        Manager::System => {
            call.arg("--system");
            &["Slice", "s", SLICE]
        }
        Manager::User(runtime) => {
            call.arg("--user").env("XDG_RUNTIME_DIR", runtime);
            &[]
        }
    };
    let properties = 3 + slice.len() / 3;
    call.args(["--quiet", &format!("--timeout={}", ANSWER.as_secs()), "call"])
        .args(["org.freedesktop.systemd1", "/org/freedesktop/systemd1"])
        .args(["org.freedesktop.systemd1.Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))"])
        .args([scope.as_str(), "fail", &properties.to_string()])
        .args(slice)
        .args(["PIDs", "au", "1", &pid])
        .args(["Delegate", "b", "true"])
        .args(["CollectMode", "s", "inactive-or-failed"])
        .arg("0");
    let said = call.stdin(Stdio::null()).output().map_err(|error| format!("cannot start busctl: {error}"))?;
    if !said.status.success() {
        let text = String::from_utf8_lossy(&said.stderr);
        return Err(format!("systemd made no scope: {}", text.lines().next().unwrap_or_default().trim()));
    }
    let deadline = Instant::now() + ANSWER;
    let dir = loop {
        match own() {
            Some(dir) => break dir,
            None if Instant::now() > deadline => {
                return Err(format!("systemd did not move the monitor into {scope}"));
            }
            None => std::thread::sleep(LOOK_EVERY),
        }
    };
    leave_top(&dir).map_err(|error| format!("cannot use {}: {error}", dir.display()))
}

/// Makes room for groups with limits.
fn leave_top(scope: &Path) -> io::Result<()> {
    let leaf = scope.join(OWN_LEAF);
    fs::create_dir(&leaf)?;
    cgroup::enter(&leaf)
}

/// What a unit can be named (systemd.unit(5)): other characters become `_`.
fn unit_name(name: &str) -> String {
    const MOST: usize = 200;
    let possible = |c: char| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    name.chars().take(MOST).map(possible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_scopes_have_names_that_systemd_takes() {
        assert_eq!(unit_name("default_web.0a1b@é"), "default_web.0a1b__");
        assert_eq!(unit_name(&"a".repeat(300)).len(), 200);
        assert!(is_one(Path::new("/sys/fs/cgroup/user.slice/magikvm-default_web-1.scope")));
        assert!(!is_one(Path::new("/sys/fs/cgroup/magikvm-a.scope/monitor")));
        assert!(!is_one(Path::new("/")));
    }
}
