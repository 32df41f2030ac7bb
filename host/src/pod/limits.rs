//! What a pod needs of the limits of its user and its control group. A limit that is far too low is reported before anything is made, since
//! most of what fails in the middle cannot say why. What fails for a limit all the same gets its hint here.

use super::failure::{Blame, Failure, RunStage};
use crate::manifest::{PodPlan, RuntimeClass};
use crate::net::ports::allow_files;
use crate::process::ProcessError;
use crate::store::text::causes;
use crate::store::thread::ThreadError;
use nix::libc::{EMFILE, ENFILE, ENOMEM, rlim_t};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
use std::error::Error;
use std::io;

/// Open files of the largest process of a pod without connections.
const MIN_FILES: rlim_t = 256;
/// Address space that a VMM needs beside the VM's memory.
const MIN_SPACE_MIB: u64 = 1024;
/// Address space that a verb takes for its threads and their memory, beside what the program has at its start.
const MIN_OWN_MIB: u64 = 32;
/// Processes and threads of a pod with one container.
#[cfg(target_os = "linux")]
const MIN_TASKS: u64 = 32;

const FILES_HINT: &str =
    "Raise the limit of open files with `ulimit -n 1024`, and the hard limit in /etc/security/limits.conf.";
const SPACE_HINT: &str = "Lift the limit of address space with `ulimit -v unlimited`; see with `free -m` how much memory the host has.";
const TASKS_HINT: &str = "Raise the limit of processes with `ulimit -u`, or `pids.max` of the control group (in systemd `TasksMax=`).";

/// Address space of the largest process of a pod.
fn address_space_mib(plan: &PodPlan) -> u64 {
    match plan.runtime_class {
        RuntimeClass::PodMicrovmContainers => plan.vm.memory.get().saturating_add(MIN_SPACE_MIB),
        RuntimeClass::PodContainers | RuntimeClass::PodWasm => MIN_SPACE_MIB,
    }
}

/// Checks the limits of this process, which the pod's processes inherit, and raises that of open files.
pub fn check(plan: &PodPlan) -> Result<(), Failure> {
    allow_files();
    // For tests of what fails in the middle.
    #[cfg(feature = "testing")]
    if std::env::var("MAGIKVM_FAULT").as_deref() == Ok("limits") {
        return Ok(());
    }
    if let Ok((files, _)) = getrlimit(Resource::RLIMIT_NOFILE)
        && files < MIN_FILES
    {
        return Err(too_low(
            &format!("a process may open {files} files, and a pod needs {MIN_FILES}"),
            FILES_HINT,
        ));
    }
    let space = address_space_mib(plan);
    if let Ok((bytes, _)) = getrlimit(Resource::RLIMIT_AS)
        && bytes != RLIM_INFINITY
        && bytes >> 20 < space
    {
        let have = bytes >> 20;
        let message =
            format!("a process may have {have} MiB of address space, and the pod needs {space} MiB");
        return Err(too_low(&message, SPACE_HINT));
    }
    #[cfg(target_os = "linux")]
    if let Some((free, whose)) = tasks::free()
        && free < MIN_TASKS
    {
        let message =
            format!("{whose} may have {free} more processes and threads, and a pod needs {MIN_TASKS}");
        return Err(too_low(&message, TASKS_HINT));
    }
    Ok(())
}

/// Checks the limit of address space for this program itself. Without room the memory allocator ends the program, and cannot say why.
pub fn check_program() -> Result<(), (String, &'static str)> {
    let Ok((bytes, _)) = getrlimit(Resource::RLIMIT_AS) else { return Ok(()) };
    let needed = own_space_mib() + MIN_OWN_MIB;
    if bytes == RLIM_INFINITY || bytes >> 20 >= needed {
        return Ok(());
    }
    let have = bytes >> 20;
    let what = format!("a process may have {have} MiB of address space, and this program needs {needed} MiB");
    Err((format!("a limit of this host is too low: {what}"), SPACE_HINT))
}

/// The address space that this process has now.
#[cfg(target_os = "linux")]
fn own_space_mib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: u64 = statm.split(' ').next().and_then(|pages| pages.parse().ok()).unwrap_or(0);
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096);
    pages.saturating_mul(page.unsigned_abs()) >> 20
}

/// The limit counts little of a process elsewhere.
#[cfg(not(target_os = "linux"))]
fn own_space_mib() -> u64 {
    0
}

fn too_low(what: &str, hint: &str) -> Failure {
    let message = format!("a limit of this host is too low for a pod: {what}");
    Failure::message(RunStage::Plan, Blame::Environment, message).hint(hint)
}

/// The hint for an error that a limit has caused.
pub fn hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    std::iter::once(error).chain(causes(error)).find_map(|error| {
        let io = error.downcast_ref::<io::Error>();
        // An `io::Error` hides the error that it was made from from the chain of causes.
        let inner = io.and_then(io::Error::get_ref).and_then(<dyn Error + Send + Sync>::downcast_ref);
        let source = match (error.downcast_ref::<ThreadError>().or(inner), error.downcast_ref()) {
            (Some(thread), _) => Some(&thread.source),
            (None, Some(ProcessError::Start { source, .. })) => Some(source),
            (None, _) => None,
        };
        if source.is_some_and(|source| source.kind() == io::ErrorKind::WouldBlock) {
            return Some(TASKS_HINT);
        }
        match io?.raw_os_error()? {
            EMFILE | ENFILE => Some(FILES_HINT),
            ENOMEM => Some(SPACE_HINT),
            _ => None,
        }
    })
}

/// Processes and threads, which the kernel counts together.
#[cfg(target_os = "linux")]
mod tasks {
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};
    use std::fs;
    use std::os::unix::fs::MetadataExt;
    use std::path::Path;

    /// How many more there may be by the narrowest limit, and whose limit that is; `None` if nothing limits them.
    pub(super) fn free() -> Option<(u64, &'static str)> {
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group = of_groups(&own, Path::new("/sys/fs/cgroup")).map(|free| (free, "this control group"));
        let user = of_user().map(|free| (free, "this user"));
        group.into_iter().chain(user).min()
    }

    pub(super) fn of_groups(own: &str, mount: &Path) -> Option<u64> {
        let groups = own.lines().filter_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let place = match controllers {
                "" => mount.to_owned(),
                _ if controllers.split(',').any(|name| name == "pids") => mount.join("pids"),
                _ => return None,
            };
            Some((place.join(path.trim_start_matches('/')), place))
        });
        let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let free = |dir: &Path| {
            Some(number(&dir.join("pids.max"))?.saturating_sub(number(&dir.join("pids.current"))?))
        };
        groups
            .flat_map(|(dir, top)| {
                let up = dir.ancestors().take_while(|dir| dir.starts_with(&top));
                up.filter_map(free).collect::<Vec<_>>()
            })
            .min()
    }

    fn of_user() -> Option<u64> {
        let uid = nix::unistd::getuid();
        let (soft, _) = getrlimit(Resource::RLIMIT_NPROC).ok()?;
        // The kernel does not hold root to this limit.
        if uid.is_root() || soft == RLIM_INFINITY {
            return None;
        }
        let mut count = 0u64;
        for process in fs::read_dir("/proc").ok()?.filter_map(Result::ok) {
            if process.metadata().is_ok_and(|there| there.uid() == uid.as_raw()) {
                let threads = fs::read_dir(process.path().join("task"));
                count += threads.map_or(0, |threads| u64::try_from(threads.count()).unwrap_or(0));
            }
        }
        Some(soft.saturating_sub(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_for_a_limit_has_a_hint() {
        let thread =
            ThreadError { name: "x".to_owned(), source: io::Error::from_raw_os_error(nix::libc::EAGAIN) };
        assert_eq!(hint(&thread), Some(TASKS_HINT));
        assert_eq!(hint(&io::Error::from(thread)), Some(TASKS_HINT));
        let process = ProcessError::Start { program: "x".into(), source: io::ErrorKind::WouldBlock.into() };
        assert_eq!(hint(&process), Some(TASKS_HINT));
        assert_eq!(hint(&io::Error::from_raw_os_error(EMFILE)), Some(FILES_HINT));
        // A read that took too long is no matter of limits.
        assert_eq!(hint(&io::Error::from_raw_os_error(nix::libc::EAGAIN)), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_narrowest_control_group_counts() {
        let base = tempfile::tempdir().unwrap();
        let put = |group: &str, max: &str, current: &str| {
            let dir = base.path().join(group);
            std::fs::create_dir_all(&dir).unwrap();
            std::fs::write(dir.join("pids.max"), max).unwrap();
            std::fs::write(dir.join("pids.current"), current).unwrap();
        };
        assert_eq!(tasks::of_groups("0::/a/b\n", base.path()), None);
        put("a", "20\n", "15\n");
        put("a/b", "max\n", "3\n");
        assert_eq!(tasks::of_groups("0::/a/b\n", base.path()), Some(5));
        put("pids/c", "9", "10");
        assert_eq!(tasks::of_groups("3:cpu,pids:/c\n1:memory:/a\n", base.path()), Some(0));
    }
}
