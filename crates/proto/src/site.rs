//! Where a pod's supervisor keeps what it makes containers of. The host that writes a plan and the supervisor that carries it out use the same
//! [`Site`], so both know every path. Must not know: what the paths are used for.

use crate::id::ContainerName;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// The plan, relative to the pod's own files.
pub const SPEC_JSON: &str = "pod/spec.json";
/// Directory of `hosts`, `hostname` and `resolv.conf`, relative to the pod's own files.
pub const POD_ETC: &str = "pod/etc";

/// The OCI runtime configuration of a container, relative to the pod's own files.
pub fn container_config(name: &ContainerName) -> String {
    format!("containers/{name}/config.json")
}

/// The files of volume N, relative to the pod's own files.
pub fn volume_files(volume: u32) -> String {
    format!("pod/volumes/{volume}")
}

/// Directories of one pod as its supervisor sees them. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// Root of the pod's own files, written by the host: [`SPEC_JSON`], [`POD_ETC`], [`volume_files`], [`container_config`].
    pub files: PathBuf,
    /// Writable state that lives as long as the pod: its `/etc` files, `/dev/shm`, mounted volumes, runtime state.
    pub run: PathBuf,
    /// Root file systems of partitions: `N` is partition N, read-only.
    pub images: PathBuf,
    /// One OCI bundle for each container: `NAME/config.json` and `NAME/rootfs`.
    pub bundles: PathBuf,
    /// An empty directory: the root of processes that need no files.
    pub empty: PathBuf,
    /// Control group of the pod, as an OCI `cgroupsPath`: the group of a container is `NAME` in it.
    pub cgroup: String,
}

impl Site {
    /// The site inside a VM, whose root PID 1 has made.
    pub fn guest() -> Self {
        Self {
            files: crate::path::COMPOSITE_MOUNT.into(),
            run: "/run".into(),
            images: "/images".into(),
            bundles: "/bundles".into(),
            empty: "/empty".into(),
            cgroup: "/pod".to_owned(),
        }
    }

    /// A site below one private directory.
    pub fn beneath(dir: &Path, cgroup: impl Into<String>) -> Self {
        Self {
            files: dir.join("files"),
            run: dir.join("run"),
            images: dir.join("images"),
            bundles: dir.join("bundles"),
            empty: dir.join("empty"),
            cgroup: cgroup.into(),
        }
    }

    pub fn spec_json(&self) -> PathBuf {
        self.files.join(SPEC_JSON)
    }

    /// Directory of `hosts`, `hostname` and `resolv.conf` as written by the host.
    pub fn original_etc(&self) -> PathBuf {
        self.files.join(POD_ETC)
    }

    /// The OCI runtime configuration of a container as written by the host.
    pub fn container_config(&self, name: &ContainerName) -> PathBuf {
        self.files.join(container_config(name))
    }

    /// The files of volume N as written by the host.
    pub fn volume_files(&self, volume: u32) -> PathBuf {
        self.files.join(volume_files(volume))
    }

    /// The pod's writable copy of [`Self::original_etc`]; containers see its files.
    pub fn etc(&self) -> PathBuf {
        self.run.join("pod/etc")
    }

    /// The tmpfs behind every container's `/dev/shm`.
    pub fn shm(&self) -> PathBuf {
        self.run.join("pod/shm")
    }

    /// A view of the kernel's devices for containers that cannot mount their own, because the network namespace is not the pod's.
    pub fn kernel_view(&self) -> PathBuf {
        self.run.join("sys")
    }

    /// Where volume N is mounted.
    pub fn volume(&self, volume: u32) -> PathBuf {
        self.run.join("volumes").join(volume.to_string())
    }

    /// Where the host's shared directory is mounted.
    pub fn shared(&self) -> PathBuf {
        self.run.join("volumes/shared")
    }

    /// Where a file system of the scratch disk is mounted, hidden from containers.
    pub fn scratch(&self, partition: u32) -> PathBuf {
        self.run.join("scratch").join(partition.to_string())
    }

    /// Where the file system of a disk that outlives the pod is mounted, hidden from containers.
    pub fn lasting(&self, disk: &str) -> PathBuf {
        self.run.join("lasting").join(disk)
    }

    /// Where a file system of the scratch disk keeps a container's changes to its root file system. Directories of volumes have numbers as
    /// names.
    pub fn layer(&self, partition: u32, container: &ContainerName) -> PathBuf {
        self.scratch(partition).join("layers").join(container.as_str())
    }

    /// What a container's mount with this number needs besides its volume.
    pub fn mount(&self, container: &ContainerName, number: usize) -> PathBuf {
        self.run.join("mounts").join(container.as_str()).join(number.to_string())
    }

    /// Directory of the file in which a container leaves its termination message.
    pub fn messages(&self, container: &ContainerName) -> PathBuf {
        self.run.join("messages").join(container.as_str())
    }

    /// Where the sockets of the service directory are: a directory of [`Self::service_directory`] for each container that has one.
    pub fn service_directories(&self) -> PathBuf {
        self.run.join("directory")
    }

    /// What a container sees at [`crate::service_directory::MOUNT`].
    pub fn service_directory(&self, container: &ContainerName) -> PathBuf {
        self.service_directories().join(container.as_str())
    }

    /// Where the container runtime keeps its state.
    pub fn runtime_state(&self) -> PathBuf {
        self.run.join("containers")
    }

    /// The PID namespace that all containers share, if they share one.
    pub fn pid_namespace(&self) -> PathBuf {
        self.run.join("pid-namespace")
    }

    /// The socket through which a container hands over its terminal.
    pub fn console_socket(&self, id: &str) -> PathBuf {
        self.run.join(format!("console-{id}"))
    }

    /// Root file system of a partition.
    pub fn image(&self, partition: u32) -> PathBuf {
        self.images.join(partition.to_string())
    }

    /// The OCI bundle of a container.
    pub fn bundle(&self, name: &ContainerName) -> PathBuf {
        self.bundles.join(name.as_str())
    }

    /// The control group of a container, as an OCI `cgroupsPath`.
    pub fn container_cgroup(&self, name: &ContainerName) -> String {
        format!("{}/{name}", self.cgroup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_beneath_a_directory_never_leaves_it() {
        let site = Site::beneath(Path::new("/x/pod"), "/magikvm/shop");
        let name: ContainerName = "web".parse().unwrap();
        let all = [
            site.spec_json(),
            site.original_etc(),
            site.container_config(&name),
            site.volume_files(3),
            site.etc(),
            site.shm(),
            site.kernel_view(),
            site.volume(3),
            site.shared(),
            site.layer(1, &name),
            site.mount(&name, 2),
            site.messages(&name),
            site.service_directory(&name),
            site.runtime_state(),
            site.pid_namespace(),
            site.console_socket("web-0"),
            site.image(2),
            site.bundle(&name),
        ];
        assert!(all.iter().all(|path| path.starts_with("/x/pod")), "{all:?}");
        assert_eq!(site.container_cgroup(&name), "/magikvm/shop/web");
    }
}
