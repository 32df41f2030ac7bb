//! What bringing an image is doing, for whoever shows it. Reports come from several threads.

use super::digest::Digest;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One layer, as announced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Of what is stored; archives of `docker save` have none.
    pub digest: Option<Digest>,
    /// Bytes stored.
    pub size_bytes: u64,
}

/// A step of bringing an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Asking for the image.
    Resolving,
    /// It has this digest.
    Found {
        /// Of the manifest or index.
        digest: Digest,
        /// Who said so: the registry, or one of its mirrors.
        endpoint: String,
    },
    /// Its signature was checked: the key's id.
    Verified(Digest),
    /// The image is known: its layers, bottom first.
    Opened(Vec<LayerInfo>),
    /// Another process is bringing the same image; waiting for it.
    Waiting,
    /// A layer on its way into the store; `number` counts from 0.
    Layer { number: usize, state: LayerState },
    /// The root file system is here already.
    Reused,
    /// A layer is being merged into the root file system; `number` counts from 1.
    Building {
        number: usize,
        of: usize,
        /// Stored bytes read so far.
        done_bytes: u64,
        /// Stored bytes of this layer.
        total_bytes: u64,
    },
    /// Everything is written; making it durable.
    Finishing,
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerState {
    /// It is in the store already.
    Here,
    /// Another process is bringing it.
    Waiting,
    /// So many bytes have come.
    Fetching {
        /// Bytes.
        done_bytes: u64,
    },
    /// The connection broke; it goes on where it stopped.
    Retrying { reason: String },
    /// All has come; making it durable.
    Saving,
    /// It is in the store.
    Done,
}

impl fmt::Display for Progress {
    /// A line for people; what stands behind a colon changes often.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolving => f.write_str("Asking for the image"),
            Self::Found { digest, endpoint } => write!(f, "{endpoint} has it as {digest}"),
            Self::Verified(key) => write!(f, "Signed with the key {key}"),
            Self::Opened(layers) => {
                let bytes: u64 = layers.iter().map(|layer| layer.size_bytes).sum();
                write!(f, "The image has {} layers with {bytes} bytes", layers.len())
            }
            Self::Waiting => f.write_str("Waiting for another process that is bringing the same image"),
            Self::Layer { number, state } => write!(f, "Layer {}: {state}", number + 1),
            Self::Reused => f.write_str("The root file system is here already"),
            Self::Building { number, of, done_bytes, total_bytes } => {
                let percent = done_bytes.saturating_mul(100).checked_div(*total_bytes).unwrap_or(100);
                write!(f, "Unpacking layer {number} of {of}: {percent} %")
            }
            Self::Finishing => f.write_str("Writing to disk"),
        }
    }
}

impl fmt::Display for LayerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Here => f.write_str("here already"),
            Self::Waiting => f.write_str("another process is bringing it"),
            Self::Fetching { done_bytes } => write!(f, "{done_bytes} bytes"),
            Self::Retrying { reason } => f.write_str(reason),
            Self::Saving => f.write_str("saving"),
            Self::Done => f.write_str("done"),
        }
    }
}
