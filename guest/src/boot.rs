//! From the kernel's initramfs to a root file system in which containers can be made. Owns: vminit's own mounts, as data. Must
//! not know: pods.

use crate::console;
use magikvm_proto::site::Site;
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use std::fs;
use std::io;
use std::path::PathBuf;

/// Why the VM can't be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// A file system could not be mounted.
    #[error("cannot mount {fstype} at {target}")]
    Mount {
        fstype: &'static str,
        target: &'static str,
        #[source]
        source: Errno,
    },
    #[error("cannot write {path}")]
    Write {
        path: &'static str,
        #[source]
        source: io::Error,
    },
    /// A directory of the pod could not be made.
    #[error("cannot make {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The new root could not be entered.
    #[error("cannot enter the new root ({step})")]
    Enter {
        step: &'static str,
        #[source]
        source: Errno,
    },
}

struct MountRow {
    source: &'static str,
    target: &'static str,
    fstype: &'static str,
    flags: MsFlags,
    data: &'static str,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);

/// Mounted below the new root before entering it, in this order.
const MOUNTS: &[MountRow] = &[
    // Processes: libcontainer and the statistics read it. Containers get their own.
    MountRow { source: "proc", target: "/proc", fstype: "proc", flags: SAFE, data: "" },
    // Devices as the kernel shows them; the cgroup tree is mounted inside.
    MountRow { source: "sysfs", target: "/sys", fstype: "sysfs", flags: SAFE, data: "" },
    // The kernel creates the nodes of the composite disk's partitions and of the console here.
    MountRow {
        source: "devtmpfs",
        target: "/dev",
        fstype: "devtmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        data: "mode=0755",
    },
    // Limits and accounting of containers.
    MountRow { source: "cgroup2", target: "/sys/fs/cgroup", fstype: "cgroup2", flags: SAFE, data: "" },
    // State: the bundles' state and the pod's writable files.
    MountRow {
        source: "tmpfs",
        target: "/run",
        fstype: "tmpfs",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV),
        data: "mode=0755",
    },
];

/// Where the new root is assembled.
const NEW_ROOT: &str = "/newroot";

fn mount_row(root: &str, row: &MountRow) -> Result<(), BootError> {
    let target = format!("{root}{}", row.target);
    fs::create_dir_all(&target).map_err(|source| BootError::Write { path: row.target, source })?;
    let data = Some(row.data).filter(|data| !data.is_empty());
    mount(Some(row.source), target.as_str(), Some(row.fstype), row.flags, data)
        .map_err(|source| BootError::Mount { fstype: row.fstype, target: row.target, source })
}

/// Moves from the initramfs to a tmpfs with every mount that vminit needs. Every container is made with pivot_root(2),
/// which fails while the root is the initramfs.
pub(crate) fn mount_all(site: &Site) -> Result<(), BootError> {
    let root = MountRow {
        source: "root",
        target: NEW_ROOT,
        fstype: "tmpfs",
        flags: MsFlags::MS_NOSUID,
        data: "mode=0755,size=16m",
    };
    mount_row("", &root)?;
    for row in MOUNTS {
        mount_row(NEW_ROOT, row)?;
    }
    let enter = |step| move |source| BootError::Enter { step, source };
    std::env::set_current_dir(NEW_ROOT).map_err(|source| BootError::Write { path: NEW_ROOT, source })?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(enter("move"))?;
    nix::unistd::chroot(".").map_err(enter("chroot"))?;
    nix::unistd::chdir("/").map_err(enter("chdir"))?;
    for directory in [&site.images, &site.bundles, &site.files, &site.empty] {
        fs::create_dir(directory)
            .map_err(|source| BootError::Directory { path: directory.clone(), source })?;
    }
    set_limits();
    hasten_grace_periods();
    protect_from_oom()
}

/// Moving a process to a control group and removing a mount wait until no processor can still see the old state (RCU). Each container and
/// each exec does several of both. Asking the few processors of a VM at once costs less than waiting for their clock ticks.
fn hasten_grace_periods() {
    if let Err(error) = fs::write("/sys/kernel/rcu_expedited", "1") {
        console::say(&format!("cannot hasten RCU grace periods: {error}"));
    }
}

/// Raises the limits to what programs in containers expect. The kernel starts PID 1 with 4096 files at most.
fn set_limits() {
    let limits =
        [(Resource::RLIMIT_NOFILE, 1024, 524_288), (Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY)];
    for (resource, soft, hard) in limits {
        if let Err(errno) = setrlimit(resource, soft, hard) {
            console::say(&format!("cannot set {resource:?}: {errno}"));
        }
    }
}

/// The OOM killer never chooses PID 1, but the helpers of PID 1 are forks that inherit this setting.
fn protect_from_oom() -> Result<(), BootError> {
    let path = "/proc/self/oom_score_adj";
    fs::write(path, "-1000").map_err(|source| BootError::Write { path, source })
}
