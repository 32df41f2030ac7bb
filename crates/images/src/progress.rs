//! Progress of importing an image, for display. Reports arrive from several threads.

use super::digest::Digest;
use serde::{Deserialize, Serialize};
use std::fmt;

/// One announced layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Digest of the stored bytes; archives of `docker save` have none.
    pub digest: Option<Digest>,
    pub size_bytes: u64,
}

/// A step of importing an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Progress {
    /// Asking for the image.
    Resolving,
    /// The image was found with this digest.
    Found {
        /// Digest of the manifest or index.
        digest: Digest,
        /// The registry or mirror that answered.
        endpoint: String,
    },
    /// A mirror sent wrong bytes; the image is pulled from the next one, or from its registry.
    PassedOver { reason: String },
    /// Its signature was verified; the id of the key.
    Verified(Digest),
    /// The image is known: its layers, bottom first.
    Opened(Vec<LayerInfo>),
    /// Waiting for another process that imports the same image.
    Waiting,
    /// A layer on its way into the store; `number` counts from 0.
    Layer { number: usize, state: LayerState },
    /// The root file system already exists.
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
    /// Everything is written and is being made durable.
    Finishing,
}

/// The state of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LayerState {
    /// It was already in the store.
    Here,
    /// Another process is fetching it.
    Waiting,
    /// This many bytes have arrived.
    Fetching { done_bytes: u64 },
    /// The connection broke; the download continues where it stopped.
    Retrying { reason: String },
    /// Everything has arrived and is being made durable.
    Saving,
    /// It is in the store.
    Done,
}

impl fmt::Display for Progress {
    /// A line for people; the part after a colon changes often.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolving => f.write_str("Asking for the image"),
            Self::Found { digest, endpoint } => write!(f, "{endpoint} has it as {digest}"),
            Self::PassedOver { reason } => write!(f, "Passing over a mirror: {reason}"),
            Self::Verified(key) => write!(f, "Signed with the key {key}"),
            Self::Opened(layers) => {
                let bytes: u64 = layers.iter().map(|layer| layer.size_bytes).sum();
                write!(f, "The image has {} layers with {bytes} bytes", layers.len())
            }
            Self::Waiting => f.write_str("Waiting for another process that imports the same image"),
            Self::Layer { number, state } => write!(f, "Layer {}: {state}", number + 1),
            Self::Reused => f.write_str("The root file system already exists"),
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
            Self::Waiting => f.write_str("another process is fetching it"),
            Self::Fetching { done_bytes } => write!(f, "{done_bytes} bytes"),
            Self::Retrying { reason } => f.write_str(reason),
            Self::Saving => f.write_str("saving"),
            Self::Done => f.write_str("done"),
        }
    }
}
