//! The service directory: which containers live in the pod, their ports, and whether they are ready, as HTTP/1.1 and JSON on a Unix socket.
//! The pod's annotation `magikvm.dev/service-directory` says which containers see the socket, at
//! [`magikvm_proto::service_directory::MOUNT`].
//!
//! Each of these containers has a socket of its own in a directory that it can't change, so that one that keeps all connections of its socket
//! busy disturbs nobody else. The directory can only be read.
//!
//! Owns: the sockets, and what is told. Must not know: who mounts the directories of the sockets.

mod answer;
mod server;
#[cfg(test)]
mod tests;

use crate::extension::{Extension, ExtensionError, Occurrence, PodView, Threads};
use crate::sync::lock;
use answer::Pod;
use magikvm_proto::id::ContainerName;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::service_directory::{DirectoryAccess, SOCKET};
use magikvm_proto::site::Site;
use server::Server;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// The answer to a request in a pod without containers, for the fuzz targets.
pub fn reply(request: &[u8]) -> Option<Vec<u8>> {
    answer::respond(request, &Pod::default())
}

/// Why the directory can't be asked.
#[derive(Debug, thiserror::Error)]
enum DirectoryError {
    #[error("cannot listen at {}", path.display())]
    Listen {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start its thread")]
    Thread(#[source] io::Error),
    #[error("cannot wait for requests")]
    Wait(#[source] io::Error),
}

/// The extension.
#[derive(Debug)]
pub struct ServiceDirectory {
    /// The sockets, until it starts.
    doors: Result<Vec<UnixListener>, DirectoryError>,
    pod: Arc<Mutex<Pod>>,
}

impl ServiceDirectory {
    /// Makes the sockets in the directories [`Site::service_directory`], which must be there. They exist when this returns, before any container
    /// does. What fails is the failure of its start. `None` for a pod without a service directory.
    pub fn of(site: &Site, plan: &GuestPlan) -> Option<Self> {
        if !plan.has_service_directory() {
            return None;
        }
        let members = plan.containers.iter().filter(|one| one.directory == DirectoryAccess::Socket);
        let doors = members.map(|member| listen(site, &member.name)).collect();
        Some(Self { doors, pod: Arc::new(Mutex::new(Pod::of(plan))) })
    }
}

fn listen(site: &Site, member: &ContainerName) -> Result<UnixListener, DirectoryError> {
    let path = site.service_directory(member).join(SOCKET);
    bind(&path).map_err(|source| DirectoryError::Listen { path, source })
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    // Every user of the container may ask.
    fs::set_permissions(path, Permissions::from_mode(0o666))?;
    Ok(listener)
}

impl Extension for ServiceDirectory {
    fn name(&self) -> &'static str {
        "service-directory"
    }

    fn start(&mut self, pod: &PodView<'_>, threads: &Threads) -> Result<(), ExtensionError> {
        let doors = std::mem::replace(&mut self.doors, Ok(Vec::new()))?;
        lock(&self.pod).update(pod.containers);
        let server = Server::new(doors, Arc::clone(&self.pod));
        let started = threads
            .start("directory", move |ending| Ok(server.serve(ending).map_err(DirectoryError::Wait)?));
        Ok(started.map_err(DirectoryError::Thread)?)
    }

    fn event(&mut self, _: &Occurrence, pod: &PodView<'_>) -> Result<(), ExtensionError> {
        lock(&self.pod).update(pod.containers);
        Ok(())
    }

    fn stop(&mut self) -> Result<(), ExtensionError> {
        Ok(())
    }
}
