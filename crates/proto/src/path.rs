//! What only a VM has: its disks, ports and console. Paths of every class are in [`crate::site`].

/// Where the pod's own EROFS (partition 1) is mounted in the guest.
pub const COMPOSITE_MOUNT: &str = "/composite";
/// The composite disk; partition N is this name followed by N.
pub const DISK: &str = "/dev/vda";
/// The scratch disk of a pod that has one, the only disk that can be written to.
pub const SCRATCH_DISK: &str = "/dev/vdb";
/// Under this name the host shares a directory (virtio-fs) with a pod that has something of the host.
pub const SHARED_TAG: &str = "magikvm";
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
