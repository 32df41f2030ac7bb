//! The resources of the containers, and the size of the VM that follows from them.

use super::checks::Build;
use super::fields::{ANNOTATION_MEMORY, ANNOTATION_ROOT, ANNOTATION_VCPUS};
use super::k8s;
use super::plan::{ContainerSpec, Resources, RootPlace, VolumeSource, VolumeSpec};
use super::problem::quote;
use super::quantity::{Quantity, QuantityError};
use super::size::{
    CONTAINER_OVERHEAD_MIB, DEFAULT_CONTAINER_MEMORY_MIB, MiB, VM_OVERHEAD_MIB, Vcpus, VmSize, default_vcpus,
};
use super::volumes::MIN_SIZE_LIMIT;
use magikvm_proto::raised;
use std::collections::BTreeMap;
use std::str::FromStr;

/// Least memory limit. A smaller one is a missing suffix (`512` for `512Mi`).
const MIN_MEMORY_LIMIT: u64 = 1 << 20;

/// What the containers need together, which may exceed the size of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Need {
    /// Of the containers, without overhead, in MiB.
    containers_mib: u64,
    /// With overhead, in MiB.
    memory_mib: u64,
    /// In thousandths of a processor.
    cpu_millis: u64,
    vcpus: u64,
}

/// Adds up the needs of the containers.
fn need<'a>(containers: impl IntoIterator<Item = &'a Resources>, default_vcpus: u32) -> Need {
    let (mut bytes, mut cpu_millis, mut count, mut unlimited) = (0u64, 0u64, 0u64, false);
    for resources in containers {
        let fallback = resources.memory_request_bytes.unwrap_or(0).max(DEFAULT_CONTAINER_MEMORY_MIB << 20);
        bytes = bytes.saturating_add(resources.memory_limit_bytes.unwrap_or(fallback));
        cpu_millis = cpu_millis
            .saturating_add(resources.cpu_limit_millis.or(resources.cpu_request_millis).unwrap_or(0));
        unlimited |= resources.cpu_limit_millis.is_none();
        count += 1;
    }
    let containers_mib = bytes.div_ceil(1 << 20);
    let memory_mib = containers_mib
        .saturating_add(VM_OVERHEAD_MIB)
        .saturating_add(count.saturating_mul(CONTAINER_OVERHEAD_MIB));
    let least = if unlimited { u64::from(default_vcpus) } else { 1 };
    Need { containers_mib, memory_mib, cpu_millis, vcpus: cpu_millis.div_ceil(1000).max(least) }
}

impl Build<'_> {
    pub(super) fn resources(&mut self, path: &str, written: &k8s::Requirements) -> Resources {
        let cpu = self.amounts(path, "cpu", &written.limits.cpu, &written.requests.cpu, Quantity::millis);
        let memory =
            self.amounts(path, "memory", &written.limits.memory, &written.requests.memory, Quantity::units);
        if let Some(bytes) = memory.0.filter(|&bytes| bytes < MIN_MEMORY_LIMIT) {
            let text = written.limits.memory.as_deref().unwrap_or_default();
            let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
            self.problem(
                &format!("{path}.limits.memory"),
                format!("{} is {bytes} bytes, less than any program needs (1Mi)", quote(text)),
                format!("did you mean {digits}Mi?"),
            );
        }
        let disk_limit_bytes = self.disk_limit(path, written);
        Resources {
            disk_limit_bytes,
            cpu_limit_millis: cpu.0,
            cpu_request_millis: cpu.1,
            memory_limit_bytes: memory.0,
            memory_request_bytes: memory.1,
        }
    }

    fn disk_limit(&mut self, path: &str, written: &k8s::Requirements) -> Option<u64> {
        self.size_limit(&format!("{path}.limits.ephemeral-storage"), written.limits.disk.as_deref()?)
    }

    /// The limit of the whole pod's disk, which has room for the limits of its containers and for what has none.
    pub(super) fn pod_disk_limit(
        &mut self,
        written: &k8s::Requirements,
        containers: &[ContainerSpec],
        volumes: &[VolumeSpec],
    ) -> Option<u64> {
        let all = self.disk_limit("spec.resources", written)?;
        let limits = containers.iter().map(|container| container.resources.disk_limit_bytes);
        let unlimited = limits.clone().any(|limit| limit.is_none())
            || volumes.iter().any(|volume| volume.source == VolumeSource::Disk { size_bytes: None });
        let rest = if unlimited { MIN_SIZE_LIMIT } else { 0 };
        let needed = limits.flatten().fold(rest, u64::saturating_add);
        if needed > all {
            let message = format!("is {all} bytes, and the containers need {needed}");
            self.problem(
                "spec.resources.limits.ephemeral-storage",
                message,
                "it is not less than the sum of theirs",
            );
        }
        Some(all)
    }

    pub(super) fn root_place(&mut self, annotations: &BTreeMap<String, String>) -> RootPlace {
        let table = [("disk", RootPlace::Disk), ("memory", RootPlace::Memory)];
        let path = format!("metadata.annotations.{ANNOTATION_ROOT}");
        let text = annotations.get(ANNOTATION_ROOT).map(String::as_str);
        self.one_of(&path, text, RootPlace::default(), &table)
    }

    /// Limit and request of one resource. A request defaults to the limit and cannot exceed it; a limit of zero means none.
    fn amounts(
        &mut self,
        path: &str,
        resource: &str,
        limit: &Option<String>,
        request: &Option<String>,
        unit: fn(Quantity) -> Result<u64, QuantityError>,
    ) -> (Option<u64>, Option<u64>) {
        let mut read = |list: &str, text: &Option<String>| {
            let text = text.as_deref()?;
            match Quantity::parse(text).and_then(unit) {
                Ok(amount) => Some(amount),
                Err(error) => {
                    self.problem(
                        &format!("{path}.{list}.{resource}"),
                        format!("{} {error}", quote(text)),
                        "",
                    );
                    None
                }
            }
        };
        let (limit_amount, request_amount) = (read("limits", limit), read("requests", request));
        if let (Some(limit_amount), Some(request_amount)) = (limit_amount, request_amount)
            && request_amount > limit_amount
        {
            let written = |text: &Option<String>| quote(text.as_deref().unwrap_or_default());
            let message = format!("{} is more than the limit {}", written(request), written(limit));
            self.problem(&format!("{path}.requests.{resource}"), message, "");
        }
        (
            limit_amount.filter(|&amount| amount > 0),
            request_amount.or(limit_amount.filter(|&amount| amount > 0)),
        )
    }

    pub(super) fn vm_size(
        &mut self,
        annotations: &BTreeMap<String, String>,
        containers: &[ContainerSpec],
    ) -> Option<VmSize> {
        let need = need(containers.iter().map(|container| &container.resources), default_vcpus());
        let memory = match annotations.get(ANNOTATION_MEMORY) {
            Some(text) => self.annotated::<u64, MiB>(ANNOTATION_MEMORY, text, ("vm-memory-mib", raised::in_force().vm_memory_mib)),
            None => MiB::try_from(need.memory_mib).ok().or_else(|| {
                let count = containers.len();
                let message = format!(
                    "need a VM of {} MiB ({} MiB for the containers + {VM_OVERHEAD_MIB} + {count} x {CONTAINER_OVERHEAD_MIB} MiB overhead), \
                     at most {} MiB are possible",
                    need.memory_mib, need.containers_mib, raised::in_force().vm_memory_mib
                );
                self.problem("spec.containers", message, format!("lower resources.limits.memory or set the annotation {ANNOTATION_MEMORY}; {}", raised::remedy("vm-memory-mib")));
                None
            }),
        };
        let vcpus = match annotations.get(ANNOTATION_VCPUS) {
            Some(text) => self.annotated::<u32, Vcpus>(
                ANNOTATION_VCPUS,
                text,
                ("vcpus", raised::in_force().vcpus.into()),
            ),
            None => {
                u32::try_from(need.vcpus).ok().and_then(|count| Vcpus::try_from(count).ok()).or_else(|| {
                    let message = format!(
                        "need {} processors ({}m together), at most {} are possible",
                        need.vcpus,
                        need.cpu_millis,
                        raised::in_force().vcpus
                    );
                    self.problem(
                        "spec.containers",
                        message,
                        format!(
                            "lower resources.limits.cpu or set the annotation {ANNOTATION_VCPUS}; {}",
                            raised::remedy("vcpus")
                        ),
                    );
                    None
                })
            }
        };
        Some(VmSize { memory: memory?, vcpus: vcpus? })
    }

    fn annotated<N: FromStr, T: TryFrom<N, Error: ToString>>(
        &mut self,
        key: &str,
        text: &str,
        limit: (&str, u64),
    ) -> Option<T> {
        let path = format!("metadata.annotations.{key}");
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let Some(number) = text.parse::<N>().ok().filter(|_| digits) else {
            self.problem(&path, format!("must be a whole number in quotes, not {}", quote(text)), "");
            return None;
        };
        let (limit, max) = limit;
        // A number below the least is not too large.
        let is_large = text.parse::<u64>().is_ok_and(|number| number > max);
        let hint = if is_large { raised::remedy(limit) } else { String::new() };
        T::try_from(number).map_err(|error| self.problem(&path, error.to_string(), hint)).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(memory_mib: Option<u64>, cpu_millis: Option<u64>) -> Resources {
        Resources {
            memory_limit_bytes: memory_mib.map(|mib| mib << 20),
            cpu_limit_millis: cpu_millis,
            ..Resources::default()
        }
    }

    #[test]
    fn the_sum_of_the_limits_and_the_overhead_is_what_the_vm_gets() {
        let found = need(&[resources(None, None)], 2);
        assert_eq!((found.memory_mib, found.vcpus), (128 + 96 + 8, 2));
        assert_eq!(need(&[resources(None, None)], 1).vcpus, 1, "a host with one processor");
        let found = need(&[resources(Some(256), Some(500)), resources(Some(64), Some(600))], 2);
        assert_eq!((found.memory_mib, found.vcpus), (256 + 64 + 96 + 16, 2));
        assert_eq!(need(&[resources(Some(64), Some(100))], 2).vcpus, 1);
        assert_eq!(need(&[resources(None, Some(100)), resources(None, None)], 2).vcpus, 2);
        assert_eq!(
            need(&[resources(None, Some(u64::MAX)), resources(Some(1 << 43), Some(1))], 2).vcpus,
            u64::MAX.div_ceil(1000)
        );
    }

    #[test]
    fn a_request_above_the_default_counts_when_there_is_no_limit() {
        let asked = Resources {
            memory_request_bytes: Some(200 << 20),
            cpu_request_millis: Some(3000),
            ..Resources::default()
        };
        let found = need(&[asked], 2);
        assert_eq!((found.memory_mib, found.vcpus), (200 + 96 + 8, 3));
    }
}
