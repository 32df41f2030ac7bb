//! What the host tells the sandbox of a pod in namespaces (`magikvm-containers`), on its standard input, and what they say to each other while it is
//! made. Must not know: how namespaces and mounts are made.

use crate::plan::MacAddress;
use crate::volume::Access;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Most bytes of [`SandboxSettings`] as JSON.
pub const MAX_SANDBOX_SETTINGS: u64 = 1 << 20;
/// Most bytes of one message ([`FromSandbox`], [`ToSandbox`]).
pub const MAX_SANDBOX_MESSAGE: usize = 16 << 10;

/// The sandbox's descriptors: the listening socket of the agent.
pub const AGENT_FD: i32 = 3;
/// The listening socket for forwarded connections.
pub const FORWARD_FD: i32 = 4;
/// A socket that preserves message boundaries, for [`FromSandbox`] and [`ToSandbox`].
pub const TALK_FD: i32 = 5;
/// The first of the opened files and directories that [`Source::Descriptor`] names.
pub const FIRST_SOURCE_FD: i32 = 6;
/// Most opened files and directories.
pub const MAX_SOURCES: usize = 56;

/// The argument with which the sandbox's program makes no pod. It reads [`TrialSettings`], tries each [`Feature`], and tells the outcome of each with
/// [`FromSandbox::Tried`].
pub const TRIAL_ARGUMENT: &str = "trial";

/// What a trial needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialSettings {
    /// The [`crate::GENERATION`] of the host.
    pub generation: u32,
    /// An empty directory.
    pub dir: PathBuf,
    /// An EROFS file.
    pub image: PathBuf,
    /// The id on the host of the root of a user namespace.
    pub root: u32,
}

/// Something that the sandbox needs of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// Namespaces with users of their own.
    Namespaces,
    /// Mounting the EROFS files of images.
    Images,
    /// Mapping the owners of the files of images to the pod's users.
    Owners,
    /// Overlays that the pod's root mounts.
    Overlays,
    /// Loop devices, which limits of storage need.
    LoopDevices,
    /// A network interface.
    Interface,
}

impl Feature {
    pub const ALL: [Self; 6] =
        [Self::Namespaces, Self::Images, Self::Owners, Self::Overlays, Self::LoopDevices, Self::Interface];
}

/// Everything that the sandbox needs before it can read its plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SandboxSettings {
    /// The [`crate::GENERATION`] of the host.
    pub generation: u32,
    /// An empty directory of the pod, on which the sandbox mounts its root.
    pub root: PathBuf,
    /// The pod's own files; see [`crate::site::Site::files`].
    pub files: PathBuf,
    pub users: Users,
    /// The images by their partition numbers.
    pub images: Vec<ImageMount>,
    /// Files and directories of the host, by their numbers in [`crate::volume::Part::Shared`].
    pub shared: Vec<SharedMount>,
    /// The file systems for what containers write, by their numbers in [`crate::plan::Layer::Disk`].
    pub scratch: Vec<ScratchMount>,
    pub network: NetworkSpace,
    /// The control group of the pod, relative to the root of each hierarchy; without one nothing of the pod is limited.
    pub cgroup: Option<String>,
    /// Files of the pod whose group the host could not set.
    #[serde(default)]
    pub groups: Vec<GroupOfFile>,
}

/// The users of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Users {
    /// Those of the host (core/v1 `PodSpec.hostUsers: true`).
    Host,
    /// A user namespace. The host maps the ids when it is told [`FromSandbox::Users`]; `root` is the id on the host of the pod's root.
    Own { root: u32 },
    /// A user namespace whose root is the user that runs the sandbox and has no rights on the host. The host maps the ids likewise.
    Caller,
}

/// One image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageMount {
    pub partition: u32,
    pub place: ImagePlace,
}

/// Where an image is on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImagePlace {
    /// An EROFS file.
    File(PathBuf),
    /// Its directory form, with the owners that the pod is to see.
    Directory(PathBuf),
}

/// A file of the pod that belongs to another group than 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupOfFile {
    /// Beneath [`SandboxSettings::files`].
    pub path: PathBuf,
    pub gid: u32,
}

/// A file or directory of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharedMount {
    pub entry: u32,
    /// The number of its opened descriptor.
    pub descriptor: i32,
    pub access: Access,
}

/// A place for what containers write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScratchMount {
    pub partition: u32,
    pub place: ScratchPlace,
}

/// What it is on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ScratchPlace {
    /// A directory of the pod's root.
    Directory(PathBuf),
    /// A file with an ext4 file system, as large as a limit.
    Disk(PathBuf),
}

/// The network namespace of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkSpace {
    /// One with nothing but loopback.
    Isolated,
    /// One with an interface whose other end the host gets with [`FromSandbox::Tap`].
    Tap { mac: MacAddress },
    /// That of the host.
    Host,
    /// One in which others make the interfaces, when they are told [`FromSandbox::Network`].
    Given,
}

/// What the sandbox says while it is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FromSandbox {
    /// The process with this id, in the host's numbers, has a user namespace without ids. It waits for [`ToSandbox::Mapped`].
    Users { pid: i32 },
    /// The network namespace of the sandbox's own process is that of the pod. It waits for [`ToSandbox::Connected`].
    Network,
    /// The other end of its interface: one descriptor comes with this.
    Tap,
    /// Its first process runs and makes containers as soon as it can.
    Made { pid: i32 },
    /// The outcome of a trial: nothing, or why the feature cannot be had.
    Tried { feature: Feature, error: Option<String> },
    /// It cannot be made: the owners of files of this one of [`SandboxSettings::shared`] cannot be mapped, because at this path, which is that of the
    /// file or directory or one beneath it, a file system of this type is mounted.
    Unmappable { entry: u32, path: PathBuf, file_system: String },
    /// It cannot be made.
    Failed { step: String, errno: Option<i32>, detail: String },
}

/// What the host answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ToSandbox {
    /// The ids are mapped.
    Mapped,
    /// The pod has its network, and its files are written.
    Connected,
}
