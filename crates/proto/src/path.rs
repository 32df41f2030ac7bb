//! Paths inside the guest, and the shape of the pod's own file system (the first partition of the stitched disk).

/// Where the pod's own EROFS (partition 1) is mounted in the guest. `/pod` and `/containers` are links into it.
pub const COMPOSITE_MOUNT: &str = "/composite";
/// The plan, inside the pod's own file system and (through the link) in the guest.
pub const SPEC_JSON: &str = "/pod/spec.json";
/// Directory of `hosts`, `hostname` and `resolv.conf` inside the pod's own file system.
pub const POD_ETC: &str = "/pod/etc";
/// Where vminit keeps the pod's writable copy of [`POD_ETC`]; `config.json` bind-mounts its files from here.
pub const GUEST_POD_ETC: &str = "/run/pod/etc";
/// The tmpfs behind every container's `/dev/shm`.
pub const GUEST_POD_SHM: &str = "/run/pod/shm";
/// Where vminit mounts image partition N read-only: `/images/N`.
pub const GUEST_IMAGES: &str = "/images";
/// Where vminit makes one OCI bundle per container: `/bundles/<name>/{config.json,rootfs}`.
pub const GUEST_BUNDLES: &str = "/bundles";
/// The stitched disk; partition N is this name followed by N.
pub const DISK: &str = "/dev/vda";
/// The scratch disk of a pod that has one, the only disk that can be written to.
pub const SCRATCH_DISK: &str = "/dev/vdb";
/// Under this name the host shares a directory (virtio-fs) with a pod that has something of the host.
pub const SHARED_TAG: &str = "magikvm";
/// Where vminit mounts volumes: `memory/N`, `disk/PARTITION`, and what the host shares.
pub const GUEST_VOLUMES: &str = "/run/volumes";
/// Where vminit keeps what containers see of volumes: `<container>/<number of the mount>`.
pub const GUEST_MOUNTS: &str = "/run/mounts";
/// Partition that holds the pod's own file system.
pub const POD_PARTITION: u32 = 1;
/// First partition that holds an image.
pub const FIRST_IMAGE_PARTITION: u32 = 2;

/// Port the agent listens on (AF_VSOCK).
pub const AGENT_PORT: u32 = 1024;
/// Port that forwarded connections go to (AF_VSOCK); see [`crate::forward`].
pub const FORWARD_PORT: u32 = 1025;
/// What vminit prints on the console once the agent listens. A hint to the host when to connect, never a proof of anything: connections
/// that come while the guest's vsock driver is being set up can wedge a vsock device.
pub const AGENT_LISTENING: &str = "vminit: listening";
/// The host's context id: the only peer the agent talks to.
pub const HOST_CID: u32 = 2;

/// The OCI runtime configuration of one container, inside the pod's own file system.
pub fn container_config(name: &crate::id::ContainerName) -> String {
    format!("/containers/{name}/config.json")
}

/// The files of volume N, inside the pod's own file system and (through the link) in the guest.
pub fn volume_files(volume: usize) -> String {
    format!("/pod/volumes/{volume}")
}
