//! The isolation layers that a process can have, and those that it got. The jail builds them; this module only describes the result.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A layer of the isolation around a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layer {
    /// A control group with limits.
    Cgroup,
    /// A user that nothing else runs as, and a user namespace.
    User,
    /// A root directory that contains only the given files.
    Files,
    /// No other process is visible.
    Processes,
    /// Private System V IPC and POSIX message queues.
    Ipc,
    /// A private host name.
    Hostname,
    Network,
    /// No capabilities, and no way to gain any.
    Capabilities,
    /// Limits of the process itself, no core dumps, and the first place in line when memory is short.
    Limits,
    /// The kernel's file access rules, enforced a second time.
    Landlock,
    /// The list of allowed system calls.
    Syscalls,
}

impl Layer {
    pub const ALL: [Self; 11] = [
        Self::Cgroup,
        Self::User,
        Self::Files,
        Self::Processes,
        Self::Ipc,
        Self::Hostname,
        Self::Network,
        Self::Capabilities,
        Self::Limits,
        Self::Landlock,
        Self::Syscalls,
    ];

    /// Its name, as in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cgroup => "cgroup",
            Self::User => "user",
            Self::Files => "files",
            Self::Processes => "processes",
            Self::Ipc => "ipc",
            Self::Hostname => "hostname",
            Self::Network => "network",
            Self::Capabilities => "capabilities",
            Self::Limits => "limits",
            Self::Landlock => "landlock",
            Self::Syscalls => "syscalls",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A layer that the host does not provide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    pub layer: Layer,
    pub why: String,
}

/// The isolation of one process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Layers {
    pub had: Vec<Layer>,
    /// Requested layers that are not available.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub missing: Vec<Missing>,
    /// Capabilities that it keeps in its user namespace, as capabilities(7) names them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kept: Vec<String>,
    /// Why its user namespace has fewer ids than it should have.
    #[serde(default, rename = "fewerIds", skip_serializing_if = "Option::is_none")]
    pub fewer_ids: Option<String>,
}

impl Layers {
    #[cfg(target_os = "linux")]
    pub(crate) fn have(&mut self, layer: Layer) {
        self.had.push(layer);
    }

    pub(crate) fn miss(&mut self, layer: Layer, why: impl Into<String>) {
        self.missing.push(Missing { layer, why: why.into() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_called_in_json_what_they_are_called_to_people() {
        for layer in Layer::ALL {
            assert_eq!(serde_json::to_value(layer).unwrap(), layer.as_str());
        }
    }
}
