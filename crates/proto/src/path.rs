//! What only a VM has: its disks, ports and console. Paths of every isolation class are in [`crate::site`].

/// Where the pod's private EROFS (partition 1) is mounted in the guest.
pub const COMPOSITE_MOUNT: &str = "/composite";
/// The composite disk; partition N is this name followed by N.
pub const DISK: &str = "/dev/vda";
/// The scratch disk, if the pod has one. Partition N is this name followed by N.
pub const SCRATCH_DISK: &str = "/dev/vdb";
/// The GUID in the partition tables of the composite disk and of the scratch disk. Disks that outlive the pod have others.
pub const POD_DISK_GUID: [u8; 16] = *b"magikvm-disk\0\0\0\0";
/// Where the GUID is in a disk with a GPT (UEFI 2.10, 5.3.2): in the header, which is the second sector.
pub const DISK_GUID_AT: u64 = 512 + 56;
/// The directory of a file system that outlives the pod that is the root of its volume. Beside it are only `mkfs`'s own files.
pub const LASTING_ROOT: &str = "data";
/// The virtio-fs tag of the directory that the host shares with a pod, if the pod uses files of the host.
pub const SHARED_TAG: &str = "magikvm";
/// Partition with the pod's private file system.
pub const POD_PARTITION: u32 = 1;
/// First partition with an image.
pub const FIRST_IMAGE_PARTITION: u32 = 2;

/// Port the agent listens on (AF_VSOCK).
pub const AGENT_PORT: u32 = 1024;
/// Port that forwarded connections go to (AF_VSOCK); see [`crate::forward`].
pub const FORWARD_PORT: u32 = 1025;
/// What vminit prints on the console once the agent listens. The line only hints to the host when to connect and proves nothing: a connection
/// during the setup of the guest's vsock driver can wedge a vsock device.
pub const AGENT_LISTENING: &str = "vminit: listening";
/// The host's context id, the only peer that the agent accepts.
pub const HOST_CID: u32 = 2;
