//! The contract between the magikvm host and its guest init (`vminit`), and nothing else.
//!
//! Owns: names and their rules ([`id`]), hard limits ([`limits`]), the plan written to the pod's private file system
//! ([`plan`], [`volume`], [`sysctl`], [`security`], [`variable`], [`service_directory`]), where both ends find it ([`site`], [`path`]), time budgets ([`budget`]), how text is cut ([`text`]), a
//! guest image's manifest ([`guest_image`]), signals ([`signal`]), the settings of a sandbox of namespaces ([`sandbox`]), the states of a container ([`state`]) and the wire ([`wire`], [`codec`], [`stream`],
//! [`forward`], [`files`]).
//! Must not know: async runtimes, file systems, Kubernetes YAML, hypervisors.

pub mod budget;
pub mod codec;
pub mod files;
pub mod forward;
pub mod guest_image;
pub mod id;
pub mod lifecycle;
pub mod limits;
pub mod path;
pub mod plan;
pub mod raised;
pub mod sandbox;
pub mod security;
pub mod service_directory;
pub mod signal;
pub mod site;
pub mod state;
pub mod stream;
pub mod sysctl;
pub mod text;
pub mod variable;
pub mod volume;
pub mod wire;

/// Generation of the wire and the plan. Both ends state it in `hello`; a guest image's `manifest.json` states it too.
/// A host refuses to boot a guest of another generation.
pub const GENERATION: u32 = 7;
