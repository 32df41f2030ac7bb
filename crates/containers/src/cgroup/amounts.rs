//! What a container may use, from its OCI configuration. libcontainer is given no resources: its cgroup code would write rules for devices, which
//! only root of the host may set, and would overwrite ours.

use libcontainer::oci_spec::runtime::LinuxResources;
use magikvm_proto::security::{HugePageSize, HugePages, ONE_GIB, TWO_MIB};
use std::io;

/// Amounts in the terms of cgroup v1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Amounts {
    pub(crate) memory_bytes: Option<u64>,
    /// Memory and swap together.
    pub(crate) with_swap_bytes: Option<u64>,
    pub(crate) cpu_shares: Option<u64>,
    /// Quota and period, in microseconds.
    pub(crate) cpu_quota: Option<(u64, u64)>,
    pub(crate) pids: Option<u64>,
    pub(crate) huge_pages: HugePages,
}

impl Amounts {
    pub(crate) fn of(resources: &LinuxResources) -> Self {
        let amount = |value: i64| u64::try_from(value).ok();
        let memory = resources.memory().as_ref();
        let cpu = resources.cpu().as_ref();
        let huge_pages = |size: HugePageSize| {
            let all = resources.hugepage_limits().iter().flatten();
            let found = all
                .filter(|limit| limit.page_size() == size.in_cgroups)
                .find_map(|limit| amount(limit.limit()));
            found.unwrap_or(0)
        };
        Self {
            memory_bytes: memory.and_then(|memory| memory.limit().and_then(amount)),
            with_swap_bytes: memory.and_then(|memory| memory.swap().and_then(amount)),
            cpu_shares: cpu.and_then(|cpu| cpu.shares()),
            cpu_quota: cpu.and_then(|cpu| Some((amount(cpu.quota()?)?, cpu.period()?))),
            pids: resources.pids().as_ref().and_then(|pids| amount(pids.limit())),
            huge_pages: HugePages { two_mib: huge_pages(TWO_MIB), one_gib: huge_pages(ONE_GIB) },
        }
    }

    /// Swap alone, as cgroup v2 counts it.
    pub(crate) fn swap_bytes(&self) -> Option<u64> {
        Some(self.with_swap_bytes?.saturating_sub(self.memory_bytes?))
    }

    /// The shares as a weight of cgroup v2: 2 to 262144 become 1 to 10000, and 1024 becomes 100 (runc's conversion).
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small positive numbers"
    )]
    pub(crate) fn cpu_weight(&self) -> Option<u64> {
        let shares = self.cpu_shares?;
        if shares <= 2 {
            return Some(1);
        }
        let log = (shares.min(262_144) as f64).log2();
        let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
        Some((10f64.powf(exponent).ceil() as u64).clamp(1, 10_000))
    }
}

/// The result of writing an amount that a system need not support.
pub(super) fn if_there(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_become_weights() {
        let weight =
            |shares| Amounts { cpu_shares: Some(shares), ..Amounts::default() }.cpu_weight().unwrap();
        assert_eq!([0, 2, 1024, 262_144, u64::MAX].map(weight), [1, 1, 100, 10_000, 10_000]);
        assert_eq!(Amounts::default().cpu_weight(), None);
    }

    #[test]
    fn amounts_are_those_of_the_configuration() {
        let text = r#"{"memory":{"limit":64,"swap":64},"cpu":{"shares":512,"quota":50,"period":100},"pids":{"limit":9},"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#;
        let amounts = Amounts::of(&serde_json::from_str(text).unwrap());
        let wanted = Amounts {
            memory_bytes: Some(64),
            with_swap_bytes: Some(64),
            cpu_shares: Some(512),
            cpu_quota: Some((50, 100)),
            pids: Some(9),
            huge_pages: HugePages { two_mib: 4 << 20, one_gib: 0 },
        };
        assert_eq!((amounts, amounts.swap_bytes()), (wanted, Some(0)));
        assert_eq!(Amounts::of(&LinuxResources::default()), Amounts::default());
    }
}
