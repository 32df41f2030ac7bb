//! Variables whose values a container gets when it is made.

use crate::volume::check_sub_path;
use serde::{Deserialize, Serialize};

/// Most bytes of a file of variables.
pub const MAX_ENV_FILE: u64 = 64 << 10;
/// Longest key of such a file, in bytes.
pub const MAX_KEY_LEN: usize = 128;
/// Longest placeholder, in bytes.
const MAX_PLACEHOLDER_LEN: usize = 128;
/// Most such variables of a container: as many as it may have of any kind.
const MAX_VARIABLES: usize = 4096;

/// A variable with a value from a file of an emptyDir volume (core/v1 `FileKeySelector`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileVariable {
    pub name: String,
    /// The text that stands for the value in the arguments and variables of the container's configuration.
    pub placeholder: String,
    /// Index of the volume.
    pub volume: u32,
    /// Relative, without `..`.
    pub path: String,
    /// Which of the file's variables.
    pub key: String,
    /// What happens if there is no such file or key.
    pub missing: Missing,
}

/// What happens if a value is not there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Missing {
    /// The container is not made.
    Fails,
    /// The variable has this value instead, or there is no such variable.
    Instead(Option<String>),
}

/// Whether variables can be what a plan with this number of volumes has.
pub(crate) fn are_possible(variables: &[FileVariable], volumes: usize) -> bool {
    let is_possible = |one: &FileVariable| {
        usize::try_from(one.volume).is_ok_and(|volume| volume < volumes)
            && check_sub_path(&one.path).is_ok()
            && (1..=MAX_PLACEHOLDER_LEN).contains(&one.placeholder.len())
            && (1..=MAX_KEY_LEN).contains(&one.key.len())
    };
    variables.len() <= MAX_VARIABLES && variables.iter().all(is_possible)
}
