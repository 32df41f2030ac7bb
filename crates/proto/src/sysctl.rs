//! Kernel parameters that a pod may set (core/v1 `PodSecurityContext.sysctls`). Owns: which ones, and how their names are written. Must not know:
//! what they do.

use crate::limits::MAX_SYSCTLS;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// Longest name and longest value in bytes.
const MAX_NAME_LEN: usize = 253;
const MAX_VALUE_LEN: usize = 1024;
/// The parameters that the kernel keeps for each namespace of network or inter-process communication (Kubernetes' list). A name that ends with
/// a dot, or is marked as a prefix, stands for all that begin with it.
const NAMESPACED: [(&str, bool); 5] =
    [("kernel.sem", false), ("kernel.shm", true), ("kernel.msg", true), ("fs.mqueue.", true), ("net.", true)];

/// A parameter and its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sysctl {
    /// As in sysctl(8): `net.ipv4.ip_unprivileged_port_start`, or with slashes instead of dots.
    pub name: String,
    pub value: String,
}

/// Why a parameter can't be set.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SysctlError {
    #[error("is not the name of a kernel parameter")]
    Name,
    /// It belongs to the whole kernel.
    #[error(
        "does not belong to a pod: kernel.sem, kernel.shm*, kernel.msg*, fs.mqueue.* and net.* can be set"
    )]
    NotNamespaced,
    #[error("has a value of more than {MAX_VALUE_LEN} bytes")]
    LongValue,
    #[error("has a value with a control character")]
    Control,
    /// The name of an earlier one.
    #[error("is set twice")]
    Twice,
    #[error("there are more than {MAX_SYSCTLS}")]
    Count,
}

impl Sysctl {
    /// Its file beneath `/proc/sys`: names joined by slashes, without `..`.
    pub fn path(&self) -> Result<String, SysctlError> {
        let slashes_separate = self.name.find(['.', '/']).is_some_and(|at| self.name[at..].starts_with('/'));
        // The other character stands for a dot in a name, as in `net.ipv4.conf.eth0/1.rp_filter`.
        let path = match slashes_separate {
            true => self.name.clone(),
            false => self
                .name
                .chars()
                .map(|c| {
                    if c == '.' {
                        '/'
                    } else if c == '/' {
                        '.'
                    } else {
                        c
                    }
                })
                .collect(),
        };
        let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        let word = |word: &str| {
            word.starts_with(alphanumeric)
                && word.ends_with(alphanumeric)
                && word.chars().all(|c| alphanumeric(c) || c == '-' || c == '_')
        };
        if path.len() <= MAX_NAME_LEN && path.split(['/', '.']).all(word) {
            Ok(path)
        } else {
            Err(SysctlError::Name)
        }
    }

    /// Checks that it belongs to the pod.
    pub fn check(&self) -> Result<(), SysctlError> {
        let dotted = self.path()?.replace('/', ".");
        let known = |(name, prefix): &(&str, bool)| {
            if *prefix { dotted.starts_with(name) } else { dotted == *name }
        };
        if !NAMESPACED.iter().any(known) {
            return Err(SysctlError::NotNamespaced);
        }
        if self.value.len() > MAX_VALUE_LEN {
            return Err(SysctlError::LongValue);
        }
        match self.value.chars().any(|c| c.is_control() && c != '\t') {
            true => Err(SysctlError::Control),
            false => Ok(()),
        }
    }
}

/// Checks a list. The error is that of the first wrong parameter, with its index.
pub fn check(list: &[Sysctl]) -> Result<(), (usize, SysctlError)> {
    if list.len() > MAX_SYSCTLS {
        return Err((MAX_SYSCTLS, SysctlError::Count));
    }
    let mut seen = HashSet::new();
    for (index, one) in list.iter().enumerate() {
        one.check().map_err(|error| (index, error))?;
        if !seen.insert(one.path().ok()) {
            return Err((index, SysctlError::Twice));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sysctl(name: &str, value: &str) -> Sysctl {
        Sysctl { name: name.to_owned(), value: value.to_owned() }
    }

    #[test]
    fn only_what_belongs_to_the_pod_can_be_set() {
        for name in [
            "kernel.shm_rmid_forced",
            "kernel.shmmax",
            "kernel.msgmni",
            "kernel.sem",
            "fs.mqueue.msg_max",
            "net/core/somaxconn",
        ] {
            assert_eq!(sysctl(name, "1").check(), Ok(()), "{name}");
        }
        for name in [
            "kernel.semaphore",
            "kernel.panic",
            "vm.swappiness",
            "fs.file-max",
            "fs.mqueue",
            "net",
            "kernel/panic",
        ] {
            assert_eq!(sysctl(name, "1").check(), Err(SysctlError::NotNamespaced), "{name}");
        }
        for name in [
            "",
            ".",
            "net.",
            "net..x",
            "net/../kernel/panic",
            "net.../x",
            "net.IPV4.x",
            "/net/x",
            "net.x\n",
            "net. x",
        ] {
            assert_eq!(sysctl(name, "1").check(), Err(SysctlError::Name), "{name:?}");
        }
        assert_eq!(sysctl("net.x", &"1".repeat(2000)).check(), Err(SysctlError::LongValue));
        assert_eq!(sysctl("net.x", "1\n2").check(), Err(SysctlError::Control));
        assert_eq!(sysctl("kernel.sem", "250\t32000 32 128").check(), Ok(()));
    }

    #[test]
    fn names_are_written_with_dots_or_slashes() {
        let path = |name| sysctl(name, "1").path().unwrap();
        assert_eq!(path("net.ipv4.conf.eth0/1.rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
        assert_eq!(path("net/ipv4/conf/eth0.1/rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
        let twice = [sysctl("net.core.somaxconn", "1"), sysctl("net/core/somaxconn", "2")];
        assert_eq!(check(&twice), Err((1, SysctlError::Twice)));
        let many = vec![sysctl("net.x", "1"); MAX_SYSCTLS + 1];
        assert_eq!(check(&many), Err((MAX_SYSCTLS, SysctlError::Count)));
    }
}
