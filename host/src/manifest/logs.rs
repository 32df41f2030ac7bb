//! How much a pod's containers may log: the limits of Kubernetes' kubelet, as annotations of a pod and as options of `run`.

use super::checks::Build;
use super::fields::{ANNOTATION_LOG_MAX_FILES, ANNOTATION_LOG_MAX_POD_SIZE, ANNOTATION_LOG_MAX_SIZE};
use super::problem::path_key;
use super::quantity::Quantity;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// Sizes of a log file, and of all log files of a pod, in bytes.
const SIZES: RangeInclusive<u64> = 64 << 10..=1 << 40;
/// Numbers of log files of a container, with the one that is written.
const FILES: RangeInclusive<u32> = 2..=1000;

/// Limits of the logs; `None` where nothing was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogOptions {
    /// Size at which a container's log file is put aside, in bytes (`containerLogMaxSize`).
    pub max_size_bytes: Option<u64>,
    /// Number of log files of a container (`containerLogMaxFiles`).
    pub max_files: Option<u32>,
    /// Size of all log files of the pod, in bytes.
    pub max_pod_bytes: Option<u64>,
}

impl LogOptions {
    /// These options, and where they say nothing those of another source.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            max_size_bytes: self.max_size_bytes.or(other.max_size_bytes),
            max_files: self.max_files.or(other.max_files),
            max_pod_bytes: self.max_pod_bytes.or(other.max_pod_bytes),
        }
    }
}

/// Reads a size (`10Mi`) in bytes.
pub fn log_size(text: &str) -> Result<u64, String> {
    let size = Quantity::parse(text).and_then(Quantity::units);
    let size = size.map_err(|error| format!("{text:?} {error}; write a size such as 10Mi"))?;
    if SIZES.contains(&size) { Ok(size) } else { Err(format!("{text:?} is not between 64Ki and 1Ti")) }
}

/// Reads a number of files.
pub fn log_files(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count| FILES.contains(count));
    count.ok_or_else(|| format!("{text:?} is not a whole number from {} to {}", FILES.start(), FILES.end()))
}

impl Build<'_> {
    /// The limits that the pod's annotations ask for.
    pub(super) fn log_options(&mut self, annotations: &BTreeMap<String, String>) -> LogOptions {
        LogOptions {
            max_size_bytes: self.log_limit(annotations, ANNOTATION_LOG_MAX_SIZE, log_size),
            max_files: self.log_limit(annotations, ANNOTATION_LOG_MAX_FILES, log_files),
            max_pod_bytes: self.log_limit(annotations, ANNOTATION_LOG_MAX_POD_SIZE, log_size),
        }
    }

    fn log_limit<T>(
        &mut self,
        annotations: &BTreeMap<String, String>,
        name: &str,
        read: fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = annotations.get(name)?;
        let path = format!("metadata.annotations.{}", path_key(name));
        read(text).map_err(|message| self.problem(&path, message, "")).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_sizes_and_numbers_in_their_ranges() {
        assert_eq!(log_size("10Mi"), Ok(10 << 20));
        assert_eq!(log_size("64Ki"), Ok(64 << 10));
        for wrong in ["", "0", "1Ki", "2Ti", "-1", "ten"] {
            assert!(log_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!((log_files("2"), log_files("1000")), (Ok(2), Ok(1000)));
        for wrong in ["", "1", "1001", "5.5", "-2"] {
            assert!(log_files(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_first_source_counts() {
        let one = LogOptions { max_files: Some(3), ..LogOptions::default() };
        let two = LogOptions { max_files: Some(4), max_size_bytes: Some(5), max_pod_bytes: None };
        assert_eq!(
            one.or(two),
            LogOptions { max_files: Some(3), max_size_bytes: Some(5), max_pod_bytes: None }
        );
    }
}
