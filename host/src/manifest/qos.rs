//! The Quality of Service class of a pod.

use super::plan::{PodPlan, Resources};
use super::quantity::{Quantity, QuantityError};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The priority with which a pod's containers keep their memory when it is short (core/v1 `PodStatus.qosClass`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QosClass {
    /// Every container, or the pod as a whole, has limits of CPU and memory and requests no less.
    Guaranteed,
    /// Some request or limit is set.
    Burstable,
    BestEffort,
}

impl QosClass {
    /// The class by the rules of Kubernetes: resources of the pod as a whole decide alone.
    pub fn of<'a>(pod: &Resources, containers: impl Iterator<Item = &'a Resources>) -> Self {
        let amounts = |resources: &Resources| {
            let cpu = (resources.cpu_limit_millis, resources.cpu_request_millis);
            let memory = (resources.memory_limit_bytes, resources.memory_request_bytes);
            [cpu, memory]
        };
        let all: Vec<_> = match pod.is_of_compute() {
            true => amounts(pod).to_vec(),
            false => containers.flat_map(amounts).collect(),
        };
        if all.iter().all(|(limit, request)| limit.is_none() && request.unwrap_or(0) == 0) {
            Self::BestEffort
        } else if all.iter().all(|(limit, request)| limit.is_some() && limit == request) {
            Self::Guaranteed
        } else {
            Self::Burstable
        }
    }
}

/// The class of a Pod as written, which has been accepted before.
pub fn qos_of(manifest: &Value) -> QosClass {
    let spec = &manifest["spec"];
    let lists = ["initContainers", "containers"].into_iter().filter_map(|list| spec[list].as_array());
    let containers: Vec<Resources> = lists.flatten().map(|one| of_json(&one["resources"])).collect();
    let mut pod = of_json(&spec["resources"]);
    // What a pod with a limit requests is what its containers request, as an API server has it. Whether that is the limit decides.
    let asked = |amounts: Vec<u64>| amounts.into_iter().reduce(u64::saturating_add);
    let written = &spec["resources"]["requests"];
    if let (Some(_), true) = (pod.cpu_limit_millis, written["cpu"].is_null()) {
        let all = containers.iter().filter_map(|one| one.cpu_request_millis).collect();
        pod.cpu_request_millis = asked(all).or(pod.cpu_request_millis);
    }
    if let (Some(_), true) = (pod.memory_limit_bytes, written["memory"].is_null()) {
        let all = containers.iter().filter_map(|one| one.memory_request_bytes).collect();
        pod.memory_request_bytes = asked(all).or(pod.memory_request_bytes);
    }
    QosClass::of(&pod, containers.iter())
}

/// What a `resources` says about processors and memory. A limit is the default of the request, and one of zero is none.
fn of_json(resources: &Value) -> Resources {
    let amount = |list: &str, name: &str, unit: fn(Quantity) -> Result<u64, QuantityError>| {
        let text = match &resources[list][name] {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        Quantity::parse(&text).and_then(unit).ok()
    };
    let limit = |name, unit| amount("limits", name, unit).filter(|&amount| amount > 0);
    let (cpu, memory) = (limit("cpu", Quantity::millis), limit("memory", Quantity::units));
    Resources {
        cpu_limit_millis: cpu,
        cpu_request_millis: amount("requests", "cpu", Quantity::millis).or(cpu),
        memory_limit_bytes: memory,
        memory_request_bytes: amount("requests", "memory", Quantity::units).or(memory),
        ..Resources::default()
    }
}

impl PodPlan {
    /// The pod's class by the rules of Kubernetes.
    pub fn qos_class(&self) -> QosClass {
        QosClass::of(&self.resources, self.containers.iter().map(|container| &container.resources))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resources(cpu: (Option<u64>, Option<u64>), memory: (Option<u64>, Option<u64>)) -> Resources {
        Resources {
            cpu_limit_millis: cpu.0,
            cpu_request_millis: cpu.1,
            memory_limit_bytes: memory.0,
            memory_request_bytes: memory.1,
            ..Resources::default()
        }
    }

    #[test]
    fn a_manifest_has_the_class_of_its_plan() {
        let amounts =
            ["{}", "{limits: {cpu: 1, memory: 64Mi}}", "{requests: {cpu: 1m}}", "{limits: {cpu: 1}}"];
        for pod in [
            "{}",
            "{limits: {cpu: 4, memory: 512Mi}}",
            "{requests: {cpu: 3}}",
            "{limits: {cpu: 2, memory: 128Mi}}",
        ] {
            for (one, two) in amounts.iter().flat_map(|one| amounts.map(|two| (one, two))) {
                let text = format!(
                    "{{apiVersion: v1, kind: Pod, metadata: {{name: a}}, spec: {{resources: {pod}, containers: \
                     [{{name: a, image: b, resources: {one}}}, {{name: b, image: b, resources: {two}}}]}}}}"
                );
                let plan = crate::manifest::parse(text.as_bytes(), "x").unwrap();
                assert_eq!(qos_of(&plan.manifest), plan.qos_class(), "{text}");
            }
        }
    }

    /// The cases of Kubernetes' table for `ComputePodQOS`.
    #[test]
    fn the_class_is_that_of_kubernetes() {
        let none = Resources::default();
        let full = resources((Some(1), Some(1)), (Some(2), Some(2)));
        let less = resources((Some(2), Some(1)), (Some(2), Some(2)));
        let memory = resources((None, None), (Some(2), Some(2)));
        let zero = resources((None, Some(0)), (None, Some(0)));
        for (pod, containers, expected) in [
            (none, &[none][..], QosClass::BestEffort),
            (none, &[zero], QosClass::BestEffort),
            (none, &[full, full], QosClass::Guaranteed),
            (none, &[full, none], QosClass::Burstable),
            (none, &[full, less], QosClass::Burstable),
            (none, &[memory], QosClass::Burstable),
            (full, &[none], QosClass::Guaranteed),
            (full, &[less, none], QosClass::Guaranteed),
            (less, &[full], QosClass::Burstable),
            (memory, &[full], QosClass::Burstable),
        ] {
            assert_eq!(QosClass::of(&pod, containers.iter()), expected, "{pod:?} {containers:?}");
        }
    }
}
