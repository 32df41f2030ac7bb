//! Limits of huge pages, the same in both versions of control groups (Linux's Documentation/admin-guide/cgroup-v1/hugetlb.rst).

use super::set;
use magikvm_proto::security::HugePages;
use std::fs;
use std::io;
use std::path::Path;

/// Limits the huge pages of each size that the kernel has: to the given bytes, or to none. Without the controller `hugetlb` this does nothing.
pub(super) fn limit(group: &Path, pages: HugePages) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if let Some(size) = entry.file_name().to_str().and_then(size_limited) {
            let found = pages.each().into_iter().find(|(known, _)| known.in_cgroups == size);
            set(entry.path(), found.map_or(0, |(_, bytes)| bytes).to_string())?;
        }
    }
    Ok(())
}

/// The size of the pages that a file of this name limits. `rsvd` is what was reserved and not yet used; only with its limit does a
/// reservation fail, and not the program that uses it, by SIGBUS.
fn size_limited(file: &str) -> Option<&str> {
    let middle = file.strip_prefix("hugetlb.")?;
    let size = middle.strip_suffix(".max").or_else(|| middle.strip_suffix(".limit_in_bytes"))?;
    Some(size.strip_suffix(".rsvd").unwrap_or(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_with_limits_are_known() {
        for (file, size) in [
            ("hugetlb.2MB.max", Some("2MB")),
            ("hugetlb.1GB.rsvd.max", Some("1GB")),
            ("hugetlb.64KB.limit_in_bytes", Some("64KB")),
            ("hugetlb.2MB.rsvd.limit_in_bytes", Some("2MB")),
            ("hugetlb.2MB.current", None),
            ("hugetlb.2MB.max_usage_in_bytes", None),
            ("memory.max", None),
        ] {
            assert_eq!(size_limited(file), size, "{file}");
        }
    }
}
