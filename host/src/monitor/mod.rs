//! The process of one pod: it holds the pod's lock for life, is the only writer of its state, and carries out its end. The CLI starts it,
//! and it outlives the CLI.

mod broker;
mod clock;
mod control;
mod life;
mod lines;
mod link;
mod message;
mod puller;
mod reactor;
mod trace;
mod unwritten;
mod watchers;

use crate::pod::failure::{Blame, Failure, RunStage};
use crate::pod::launch::{FromMonitor, MAX_REQUEST};
use crate::pod::run::{self, AtEnd, RunRequest};
use crate::store::layout::{Layout, Surroundings};
use crate::store::limits;
use link::Link;
use reactor::Reactor;
use std::error::Error;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

/// The main function of a monitor: reads a [`RunRequest`] from standard input, answers on the socket that is its standard output, and
/// runs the pod to its end. Returns the exit code of the process, which nobody has to read.
pub fn main() -> i32 {
    let Ok(socket) = std::io::stdout().as_fd().try_clone_to_owned().map(UnixStream::from) else { return 70 };
    let link = Link::new(socket);
    match serve(&link) {
        Ok(()) => 0,
        Err(failure) => {
            link.send(&FromMonitor::Failed(Box::new(failure)));
            1
        }
    }
}

fn serve(link: &Link) -> Result<(), Failure> {
    let request = read_request()?;
    crate::net::ports::allow_files();
    detach().map_err(internal())?;
    let layout = Layout::new(&Surroundings::of_process(request.root.clone())).map_err(internal())?;
    limits::put_in_force(&layout.limits()).map_err(internal())?;
    let failed = Failure::at(RunStage::Reserve, Blame::Environment);
    let mut reactor = Reactor::new(link, &request).map_err(failed)?;
    let mut pod = run::run_pod(&request, &layout, &mut reactor)?;
    drop(request.plan);
    let code = reactor.run_to_end(&mut pod);
    link.send(&FromMonitor::Ended { code });
    if pod.undo.is_orphaned() {
        pod.undo.delete().map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    } else if request.at_end == AtEnd::Remove {
        // The client may still read the logs.
        link.wait_for_close();
        pod.undo.delete().map_err(Failure::at(RunStage::Reserve, Blame::Environment))?;
    }
    Ok(())
}

/// Reports an error before anything of the pod exists.
fn internal<E: Error + 'static>() -> impl Fn(E) -> Failure {
    Failure::at(RunStage::Plan, Blame::Internal)
}

fn read_request() -> Result<RunRequest, Failure> {
    let mut request = Vec::new();
    std::io::stdin().take(MAX_REQUEST as u64).read_to_end(&mut request).map_err(internal())?;
    serde_json::from_slice(&request).map_err(internal())
}

/// Starts a session, so that no signals of a terminal arrive here, and adopts orphans of the VMM instead of leaving them to init.
fn detach() -> nix::Result<()> {
    nix::unistd::setsid()?;
    crate::os::adopt_orphans()?;
    // All files and sockets of this process and its children are for this user only.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    nix::unistd::chdir("/")
}
