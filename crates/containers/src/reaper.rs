//! The only wait for children in this program: every process that ends below the supervisor is reaped here, even an unknown one.
//! Owns: the callbacks for the ends of processes.

use magikvm_proto::wire::ExitStatus;
use magikvm_supervisor::Ended;
use magikvm_supervisor::sync::{self, lock};
use nix::errno::Errno;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

/// The callbacks that wait, by process id.
#[derive(Default)]
pub(crate) struct Reaper(Mutex<HashMap<i32, Ended>>);

impl std::fmt::Debug for Reaper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(lock(&self.0).keys()).finish()
    }
}

/// Converts a wait status of wait(2) to that of the wire.
fn exit_status(raw: i32) -> ExitStatus {
    if libc::WIFSIGNALED(raw) {
        ExitStatus::signaled(libc::WTERMSIG(raw))
    } else {
        ExitStatus::exited(libc::WEXITSTATUS(raw))
    }
}

impl Reaper {
    /// Calls back when the process ends. Must be called before the process can become a child of this one (see
    /// [`crate::spawner`]).
    pub(crate) fn watch(&self, pid: i32, ended: Ended) {
        lock(&self.0).insert(pid, ended);
    }

    pub(crate) fn start(self: &Arc<Self>, note: fn(&str)) -> io::Result<()> {
        let reaper = Arc::clone(self);
        sync::thread("reaper", move || {
            loop {
                match crate::sys::wait_any() {
                    Ok((pid, status)) => {
                        let callback = lock(&reaper.0).remove(&pid);
                        if let Some(callback) = callback {
                            callback(exit_status(status));
                        }
                    }
                    Err(Errno::EINTR) => {}
                    // The spawner is always a child. When it is not, its watcher has already ended the pod.
                    Err(errno) => {
                        note(&format!("reaper: {errno}"));
                        return;
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_are_read_as_the_kernel_writes_them() {
        assert_eq!(exit_status(0), ExitStatus::exited(0));
        assert_eq!(exit_status(3 << 8), ExitStatus::exited(3));
        assert_eq!(exit_status(9), ExitStatus::signaled(9));
        assert_eq!(exit_status(11 | 0x80), ExitStatus::signaled(11));
    }
}
