//! The resources of the containers, and the size of the VM that follows from them.

use super::checks::Build;
use super::fields::{ANNOTATION_LIMITS, ANNOTATION_MEMORY, ANNOTATION_ROOT, ANNOTATION_VCPUS};
use super::k8s;
use super::plan::{ContainerSpec, LimitsKept, Resources, RootPlace, RuntimeClass, VolumeSource, VolumeSpec};
use super::problem::quote;
use super::quantity::{Quantity, QuantityError};
use super::size::{
    CONTAINER_OVERHEAD_MIB, DEFAULT_CONTAINER_MEMORY_MIB, DEFAULT_POD_MEMORY_MIB, MAX_CPU_MILLIS,
    MAX_MEMORY_BYTES, MiB, VM_OVERHEAD_MIB, Vcpus, VmSize, default_vcpus,
};
use super::volumes::MIN_SIZE_LIMIT;
use magikvm_proto::lifecycle::Role;
use magikvm_proto::raised;
use magikvm_proto::security::{HugePageSize, HugePages, ONE_GIB, TWO_MIB};
use std::collections::BTreeMap;
use std::str::FromStr;

/// Least memory limit. A smaller one is a missing suffix (`512` for `512Mi`).
const MIN_MEMORY_LIMIT: u64 = 1 << 20;

/// Why a part of the limits has no effect.
const BEYOND_THE_VM: &str =
    "together they are more than a VM can have, and the pod's is as large as docs/limits.md allows";

/// What the containers need together, which may exceed the size of a VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Need {
    /// Of the containers that run at the same time.
    count: u64,
    /// Of the containers, without overhead, in MiB.
    containers_mib: u64,
    /// With overhead, in MiB.
    memory_mib: u64,
    /// In thousandths of a processor.
    cpu_millis: u64,
    vcpus: u64,
}

/// The containers that run at the same time, for each stage of the pod's life: each init container with the sidecars before it, and at
/// last all sidecars with the main containers.
fn stages(containers: &[ContainerSpec]) -> impl Iterator<Item = Vec<&Resources>> {
    let last = containers.iter().take_while(|container| container.role != Role::Main).count();
    let is_stage = move |&index: &usize| index == last || containers[index].role == Role::Init;
    (0..=last).filter(is_stage).map(move |index| {
        let sidecars = containers[..index].iter().filter(|container| container.role == Role::Sidecar);
        let others = if index == last { &containers[last..] } else { &containers[index..=index] };
        sidecars.chain(others).map(|container| &container.resources).collect()
    })
}

/// The huge pages that the containers may use at the same time.
pub(crate) fn huge_pages(containers: &[ContainerSpec]) -> HugePages {
    let of_stage =
        |stage: Vec<&Resources>| stage.iter().fold(HugePages::default(), |sum, one| sum.plus(one.huge_pages));
    stages(containers).map(of_stage).fold(HugePages::default(), HugePages::or_more)
}

/// The most that any stage of the pod's life needs: what the pod is limited to, or else what the containers need together.
fn need_of_pod(containers: &[ContainerSpec], pod: &Resources, default_vcpus: u32) -> Need {
    let needs = stages(containers).map(|stage| need(stage, default_vcpus));
    let mut most = needs.fold(Need::default(), |most, stage| {
        let (larger, vcpus) =
            (if stage.memory_mib > most.memory_mib { stage } else { most }, most.vcpus.max(stage.vcpus));
        Need { vcpus, cpu_millis: most.cpu_millis.max(stage.cpu_millis), ..larger }
    });
    let overhead_mib = most.memory_mib - most.containers_mib;
    let asked_mib = pod.memory_request_bytes.unwrap_or(0).div_ceil(1 << 20).max(most.containers_mib);
    let is_open = containers.iter().any(|container| container.resources.memory_limit_bytes.is_none());
    let least_mib = if is_open { DEFAULT_POD_MEMORY_MIB } else { 0 };
    most.containers_mib =
        pod.memory_limit_bytes.map_or(asked_mib.max(least_mib), |bytes| bytes.div_ceil(1 << 20));
    most.memory_mib = most.containers_mib.saturating_add(overhead_mib);
    match (pod.cpu_limit_millis, pod.cpu_request_millis) {
        (Some(limit), _) => (most.cpu_millis, most.vcpus) = (limit, limit.div_ceil(1000).max(1)),
        (None, Some(request)) => {
            most.cpu_millis = most.cpu_millis.max(request);
            most.vcpus = most.vcpus.max(request.div_ceil(1000));
        }
        (None, None) => {}
    }
    most
}

/// The same when each limit is no more than what is requested: what a node must have for the pod to be placed on it.
fn requested(containers: &[ContainerSpec], pod: &Resources, default_vcpus: u32) -> Need {
    let of = |resources: &Resources| Resources {
        memory_limit_bytes: resources.memory_request_bytes,
        cpu_limit_millis: resources.cpu_request_millis,
        ..*resources
    };
    let containers: Vec<ContainerSpec> = containers
        .iter()
        .map(|container| ContainerSpec { resources: of(&container.resources), ..container.clone() })
        .collect();
    need_of_pod(&containers, &of(pod), default_vcpus)
}

/// Adds up the needs of containers that run at the same time.
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
    Need { count, containers_mib, memory_mib, cpu_millis, vcpus: cpu_millis.div_ceil(1000).max(least) }
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
        let resources = Resources {
            disk_limit_bytes,
            huge_pages: self.huge_pages(path, written),
            cpu_limit_millis: cpu.0,
            cpu_request_millis: cpu.1,
            memory_limit_bytes: memory.0,
            memory_request_bytes: memory.1,
        };
        self.check_possible(path, &resources);
        resources
    }

    /// By the rules of an API server: what is requested is what may be used, and programs need something else too.
    fn huge_pages(&mut self, path: &str, written: &k8s::Requirements) -> HugePages {
        let k8s::Requirements { limits, requests, .. } = written;
        let mut read = |size: HugePageSize, limit: &Option<String>, request: &Option<String>| {
            let resource = format!("hugepages-{}", size.in_kubernetes);
            let (limit, request) = self.amounts(path, &resource, limit, request, Quantity::units);
            let (limit_at, request_at) =
                (format!("{path}.limits.{resource}"), format!("{path}.requests.{resource}"));
            let bytes = limit.unwrap_or(0);
            if request.is_some_and(|request| request < bytes || limit.is_none() && request > 0) {
                self.problem(&request_at, "is not the limit", "leave it out: it is the limit then");
            }
            if bytes == 0 {
                return 0;
            }
            if self.class.has_vm() {
                let message = "is not possible in a VM: the huge pages are the host's";
                let class = RuntimeClass::PodContainers.as_str();
                let hint = format!("leave it out, or write `runtimeClassName: {class}`");
                self.problem(&limit_at, message, hint);
                return 0;
            }
            if bytes % size.bytes != 0 {
                self.problem(&limit_at, format!("is {bytes} bytes, no number of whole pages"), "");
            }
            let others = [&limits.cpu, &limits.memory, &requests.cpu, &requests.memory];
            if others.iter().all(|amount| amount.is_none()) {
                let hint = "add a limit or a request of one of them, as Kubernetes demands";
                self.problem(&limit_at, "is alone, without cpu and memory", hint);
            }
            bytes
        };
        HugePages {
            two_mib: read(TWO_MIB, &limits.huge_pages_2mi, &requests.huge_pages_2mi),
            one_gib: read(ONE_GIB, &limits.huge_pages_1gi, &requests.huge_pages_1gi),
        }
    }

    /// Refuses amounts that no host has, of a pod without a VM, whose size bounds those of the others.
    fn check_possible(&mut self, path: &str, resources: &Resources) {
        if self.class.has_vm() {
            return;
        }
        let Resources {
            cpu_limit_millis, cpu_request_millis, memory_limit_bytes, memory_request_bytes, ..
        } = *resources;
        let (cpu, memory) = ((MAX_CPU_MILLIS, "m"), (MAX_MEMORY_BYTES, " bytes"));
        for (field, amount, (most, unit)) in [
            ("limits.cpu", cpu_limit_millis, cpu),
            ("requests.cpu", cpu_request_millis, cpu),
            ("limits.memory", memory_limit_bytes, memory),
            ("requests.memory", memory_request_bytes, memory),
        ] {
            // A request that is the default has been reported as the limit.
            let is_written = self.written.has(&format!("{path}.{field}"));
            if let Some(amount) = amount.filter(|amount| *amount > most && is_written) {
                let message = format!("is {amount}{unit}, at most {most}{unit} are possible");
                self.problem(&format!("{path}.{field}"), message, "");
            }
        }
    }

    fn disk_limit(&mut self, path: &str, written: &k8s::Requirements) -> Option<u64> {
        self.size_limit(&format!("{path}.limits.ephemeral-storage"), written.limits.disk.as_deref()?)
    }

    /// What the containers may use together, with the defaults of an API server: a request is what the containers request, or else the
    /// limit.
    pub(super) fn pod_resources(&mut self, containers: &[ContainerSpec]) -> Resources {
        let spec = &self.written.pod.spec;
        let mut pod = self.resources("spec.resources", &spec.resources);
        let requests = &spec.resources.requests;
        let of_cpu = |of: &Resources| (of.cpu_limit_millis, of.cpu_request_millis);
        let of_memory = |of: &Resources| (of.memory_limit_bytes, of.memory_request_bytes);
        let wanted = self.pod_request("cpu", "m", requests.cpu.is_some(), containers, of_cpu(&pod), of_cpu);
        pod.cpu_request_millis = wanted;
        let is_written = requests.memory.is_some();
        let wanted = self.pod_request("memory", " bytes", is_written, containers, of_memory(&pod), of_memory);
        pod.memory_request_bytes = wanted;
        pod
    }

    /// The request of the whole pod for one resource, after a check against those of its containers.
    fn pod_request(
        &mut self,
        resource: &str,
        unit: &str,
        is_written: bool,
        containers: &[ContainerSpec],
        (limit, request): (Option<u64>, Option<u64>),
        amounts: impl Fn(&Resources) -> (Option<u64>, Option<u64>),
    ) -> Option<u64> {
        let asked = stages(containers).filter_map(|stage| {
            let asked = stage.iter().filter_map(|resources| amounts(resources).1);
            asked.reduce(u64::saturating_add)
        });
        let asked = asked.max();
        let (limit_at, request_at) =
            (format!("spec.resources.limits.{resource}"), format!("spec.resources.requests.{resource}"));
        for container in containers {
            let own = amounts(&container.resources).0;
            if let (Some(own), Some(limit)) = (own, limit)
                && own > limit
            {
                let message =
                    format!("is {limit}{unit}, and that of container {} is {own}{unit}", container.name);
                self.problem(&limit_at, message, "no container's limit may be more than the pod's");
            }
        }
        let sum = "it is not less than what the containers request together";
        match (asked, limit) {
            (Some(asked), _) if is_written && request.is_some_and(|request| request < asked) => {
                let message =
                    format!("is {}{unit}, and the containers request {asked}{unit}", request.unwrap_or(0));
                self.problem(&request_at, message, sum);
            }
            (Some(asked), Some(limit)) if !is_written && asked > limit => {
                let message = format!("is {limit}{unit}, and the containers request {asked}{unit}");
                self.problem(&limit_at, message, sum);
            }
            _ => {}
        }
        if is_written { request } else { limit.map(|limit| asked.unwrap_or(limit)) }
    }

    /// The limit of the whole pod's disk has room for the limits of its containers and for what has none.
    pub(super) fn check_pod_disk_limit(
        &mut self,
        pod: &Resources,
        containers: &[ContainerSpec],
        volumes: &[VolumeSpec],
    ) {
        let Some(all) = pod.disk_limit_bytes else { return };
        let shared = volumes.iter().any(|volume| volume.source == VolumeSource::Disk { size_bytes: None });
        let needed = stages(containers).map(|stage| {
            let limits = stage.iter().map(|resources| resources.disk_limit_bytes);
            let unlimited = shared || limits.clone().any(|limit| limit.is_none());
            let rest = if unlimited { MIN_SIZE_LIMIT } else { 0 };
            limits.flatten().fold(rest, u64::saturating_add)
        });
        let needed = needed.max().unwrap_or(0);
        if needed > all {
            let message = format!("is {all} bytes, and the containers need {needed}");
            self.problem(
                "spec.resources.limits.ephemeral-storage",
                message,
                "it is not less than the sum of theirs",
            );
        }
    }

    pub(super) fn root_place(&mut self, annotations: &BTreeMap<String, String>) -> RootPlace {
        let table = [("disk", RootPlace::Disk), ("memory", RootPlace::Memory)];
        let path = format!("metadata.annotations.{ANNOTATION_ROOT}");
        let text = annotations.get(ANNOTATION_ROOT).map(String::as_str);
        self.one_of(&path, text, RootPlace::default(), &table)
    }

    pub(super) fn limits_kept(&mut self, annotations: &BTreeMap<String, String>) -> LimitsKept {
        let table = [("enforced", LimitsKept::Enforced), ("best-effort", LimitsKept::BestEffort)];
        let path = format!("metadata.annotations.{ANNOTATION_LIMITS}");
        let text = annotations.get(ANNOTATION_LIMITS).map(String::as_str);
        self.one_of(&path, text, LimitsKept::default(), &table)
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
        pod: &Resources,
    ) -> Option<VmSize> {
        if !self.class.has_vm() {
            return Some(VmSize::least());
        }
        let need = need_of_pod(containers, pod, default_vcpus());
        let (max_mib, max_vcpus) = (raised::in_force().vm_memory_mib, raised::in_force().vcpus);
        let fits = need.containers_mib <= max_mib && need.vcpus <= max_vcpus.into();
        let requested = if fits { need } else { requested(containers, pod, default_vcpus()) };
        let memory = match annotations.get(ANNOTATION_MEMORY) {
            Some(text) => self.annotated::<u64, MiB>(ANNOTATION_MEMORY, text, ("vm-memory-mib", max_mib)),
            None if need.containers_mib <= max_mib => Some(MiB::with_overhead(need.memory_mib)),
            None if requested.containers_mib <= max_mib => {
                self.report.ignore(BEYOND_THE_VM, "a part of resources.limits.memory");
                Some(MiB::with_overhead(max_mib + (need.memory_mib - need.containers_mib)))
            }
            None => {
                let message = format!(
                    "need {} MiB of memory, at most {max_mib} MiB are possible",
                    requested.containers_mib
                );
                let hint = format!(
                    "lower resources.requests.memory (a limit without a request is one, too) or set the annotation {ANNOTATION_MEMORY}; {}",
                    raised::remedy("vm-memory-mib")
                );
                self.problem("spec.containers", message, hint);
                None
            }
        };
        let vcpus = match annotations.get(ANNOTATION_VCPUS) {
            Some(text) => self.annotated::<u32, Vcpus>(
                ANNOTATION_VCPUS,
                text,
                ("vcpus", max_vcpus.into()),
            ),
            None if need.vcpus > max_vcpus.into() && requested.vcpus <= max_vcpus.into() => {
                self.report.ignore(BEYOND_THE_VM, "a part of resources.limits.cpu");
                Vcpus::try_from(max_vcpus).ok()
            }
            None => {
                u32::try_from(need.vcpus).ok().and_then(|count| Vcpus::try_from(count).ok()).or_else(|| {
                    let message = format!(
                        "need {} processors ({}m together), at most {} are possible",
                        requested.vcpus,
                        requested.cpu_millis,
                        max_vcpus
                    );
                    self.problem(
                        "spec.containers",
                        message,
                        format!(
                            "lower resources.requests.cpu (a limit without a request is one, too) or set the annotation {ANNOTATION_VCPUS}; {}",
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
