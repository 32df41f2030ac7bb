//! Connects a pod to a network: its plugins are run one after the other, and each is told the result of the one before.

use super::chain::{self, Joining};
use super::conf::{NetworkConf, NetworkName};
use super::find::{FindError, Places};
use super::result::{self, Given, ResultError};
use crate::store::cni::{Attachment, Plugin, PluginError, Verb};
use serde_json::Value;
use std::path::PathBuf;

/// Why a pod cannot join a network.
#[derive(Debug, thiserror::Error)]
pub enum CniError {
    #[error("metadata.annotations.magikvm.dev/cni: the network cannot be used")]
    Find(#[from] FindError),
    #[error(
        "{origin}: no plugin of the network {network} carries ports of the host (a plugin with the capability portMappings)"
    )]
    NoPorts { origin: String, network: NetworkName },
    #[error("cannot connect the pod to the network {network}")]
    Plugin {
        network: String,
        #[source]
        source: PluginError,
    },
    #[error("the CNI plugin {kind} (ADD) has printed a result that cannot be used")]
    Result {
        kind: String,
        #[source]
        source: ResultError,
    },
}

impl CniError {
    /// Whether the manifest is to blame, and not the host.
    pub fn is_of_user(&self) -> bool {
        matches!(self, Self::NoPorts { .. } | Self::Find(FindError::Unknown { .. }))
    }

    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Find(FindError::NoPlugin { .. }) => {
                "Install the plugins with `apt-get install containernetworking-plugins`, or name their directory with `--cni-bin-dir DIR`."
            }
            Self::Find(FindError::Unknown { .. }) => {
                "List the networks with `magikvm doctor`, or name the directory of their files with `--cni-conf-dir DIR`."
            }
            Self::NoPorts { .. } => {
                "Add the plugin portmap to the network's file, with `\"capabilities\": {\"portMappings\": true}`, or leave the port out."
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// A network that the host has, with the programs of its plugins.
#[derive(Debug, Clone)]
pub struct Network {
    conf: NetworkConf,
    programs: Vec<PathBuf>,
    path: Vec<PathBuf>,
}

impl Network {
    pub fn find(name: &NetworkName, places: &Places) -> Result<Self, CniError> {
        let conf = places.network(name)?;
        let programs = places.programs(&conf)?;
        Ok(Self { conf, programs, path: places.bin.clone() })
    }

    /// What undoes the connection that [`add`] makes. `origin` says where the first port was asked for.
    pub fn attachment(&self, pod: Joining<'_>, origin: &str) -> Result<Attachment, CniError> {
        let made = chain::attachment(&self.conf, self.programs.clone(), &self.path, pod);
        made.map_err(|chain::NoPorts| CniError::NoPorts {
            origin: origin.to_owned(),
            network: self.conf.name.clone(),
        })
    }
}

/// Keeps the network namespace of a process for the plugins.
pub fn pin(attachment: &Attachment, pid: i32) -> Result<(), CniError> {
    let failed = |source| CniError::Plugin { network: attachment.network.clone(), source };
    attachment.pin(pid).map_err(failed)
}

/// Runs the plugins. The undo journal has the attachment already.
pub fn add(attachment: &Attachment) -> Result<Given, CniError> {
    let failed = |source| CniError::Plugin { network: attachment.network.clone(), source };
    let mut last: Option<(&Plugin, Vec<u8>, Value)> = None;
    for plugin in &attachment.plugins {
        let previous = last.as_ref().map(|(.., value)| value);
        let printed = attachment.run(plugin, Verb::Add, previous).map_err(failed)?;
        let value = serde_json::from_slice(&printed).map_err(|error| CniError::Result {
            kind: plugin.kind.clone(),
            source: ResultError::Json(error),
        })?;
        // Also after each of several: what follows may fail.
        attachment.keep_result(&printed).map_err(failed)?;
        last = Some((plugin, printed, value));
    }
    match last {
        Some((plugin, printed, _)) => {
            result::parse(&printed).map_err(|source| CniError::Result { kind: plugin.kind.clone(), source })
        }
        None => Ok(Given::default()),
    }
}

#[cfg(test)]
mod tests;
