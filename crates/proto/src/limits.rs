//! Hard limits for both ends, enforced before anything is allocated. Those that an administrator can raise are defaults: what is in force is
//! said by [`crate::raised`].

/// Pods of one state root.
pub const MAX_PODS: usize = 1024;
/// Main containers of one pod.
pub const MAX_CONTAINERS_PER_POD: usize = 16;
/// Init containers and sidecars of one pod.
pub const MAX_INIT_CONTAINERS_PER_POD: usize = 16;
/// Volumes of one pod.
pub const MAX_VOLUMES_PER_POD: usize = 64;
/// Disks of a pod that outlive it: those that libkrun has interrupt lines for besides its other devices.
pub const MAX_LASTING_DISKS: usize = 4;
/// Volume mounts of one container.
pub const MAX_MOUNTS_PER_CONTAINER: usize = 64;
/// Kernel parameters of one pod.
pub const MAX_SYSCTLS: usize = 64;
/// Bytes of the paths of all volume mounts of one container, which travel in one message within the guest.
pub const MAX_MOUNT_PATHS_LEN: usize = 16 << 10;
/// Bytes of a volume's mount path, or of a path within a volume.
pub const MAX_VOLUME_PATH_LEN: usize = 1024;
/// Ports of one container that a pod's service directory lists.
pub const MAX_LISTED_PORTS: usize = 64;
/// Bytes of the name of a port (an IANA service name).
pub const MAX_PORT_NAME_LEN: usize = 15;
/// Bytes of all data of one ConfigMap or Secret.
pub const MAX_OBJECT_BYTES: usize = 1 << 20;
/// Bytes of a manifest.
pub const MAX_MANIFEST_SIZE: usize = 1 << 20;
/// Environment variables of one container.
pub const MAX_ENV_VARS_PER_CONTAINER: usize = 256;
/// Longest `terminationGracePeriodSeconds`, in seconds.
pub const MAX_GRACE_PERIOD_SECS: u64 = 300;
/// The longest grace period that can be allowed by an administrator, in seconds.
pub const GRACE_PERIOD_BOUND_SECS: u64 = 86_400;
/// Default `terminationGracePeriodSeconds`, in seconds.
pub const DEFAULT_GRACE_PERIOD_SECS: u64 = 30;
/// Labels of one pod.
pub const MAX_LABELS_PER_POD: usize = 64;
/// Annotations of one pod.
pub const MAX_ANNOTATIONS_PER_POD: usize = 64;
/// Bytes of a pod's name (RFC 1123 subdomain).
pub const MAX_NAME_LEN: usize = 253;
/// Bytes of a container's or namespace's name (RFC 1123 label).
pub const MAX_LABEL_LEN: usize = 63;
/// Bytes of an image reference.
pub const MAX_IMAGE_REF_LEN: usize = 512;
/// Bytes of one layer, as stored and as unpacked.
pub const MAX_LAYER_SIZE: u64 = 512 << 20;
/// Bytes of one image's root file system.
pub const MAX_ROOTFS_SIZE: u64 = 4 << 30;
/// Layers of one image.
pub const MAX_LAYERS: usize = 128;
/// Entries of one layer.
pub const MAX_FILES_PER_LAYER: usize = 100_000;
/// Default limit for pulling one image, in seconds.
pub const IMAGE_PULL_TIMEOUT_SECS: u64 = 300;
/// Memory of one VM, in MiB.
pub const MAX_VM_MEMORY_MIB: u64 = 4096;
/// Virtual processors of one VM.
pub const MAX_VCPUS: u32 = 8;
/// The most memory of one VM that can be allowed by an administrator, in MiB.
pub const VM_MEMORY_BOUND_MIB: u64 = 1 << 20;
/// The most virtual processors of one VM that can be allowed by an administrator.
pub const VCPUS_BOUND: u32 = 255;
/// Default limit for a program that the agent runs by itself in a container (probes and hooks), in seconds. An `exec` of a client has none.
pub const EXEC_TIMEOUT_SECS: u64 = 300;

/// Sessions of one pod at a time: clients of `exec` and `attach`. The pod's monitor counts them.
pub const MAX_SESSIONS: usize = 64;
/// Connections that the monitor keeps to the agent for itself.
pub const MONITOR_CONNECTIONS: usize = 8;
/// Concurrent connections of the agent. There is room for each session twice, because what a session has run is cleaned up after its
/// connection has ended, when the next session may have begun.
pub const MAX_AGENT_CONNECTIONS: usize = 2 * MAX_SESSIONS + MONITOR_CONNECTIONS;
/// Concurrent forwarded connections of the guest.
pub const MAX_FORWARDS: usize = 1024;
/// Limit for setting up a forwarded connection, in seconds: its request is sent and the pod's port is connected. If a server accepts slowly,
/// TCP retries after one, three, seven and fifteen seconds.
pub const FORWARD_TIMEOUT_SECS: u64 = 20;
/// Bytes of one line on the wire, including the newline.
pub const MAX_LINE_LEN: usize = 64 << 10;
/// Arguments of one exec.
pub const MAX_EXEC_ARGS: usize = 256;
/// Bytes of one argument of an exec.
pub const MAX_EXEC_ARG_LEN: usize = 4096;
/// Limit for answering a request, in seconds.
pub const REQUEST_TIMEOUT_SECS: u64 = 30;
/// Bytes of `/pod/spec.json` and of one `config.json`.
pub const MAX_PLAN_SIZE: usize = 1 << 20;
/// Bytes of any message text that one end shows from the other.
pub const MAX_MESSAGE_LEN: usize = 4096;
