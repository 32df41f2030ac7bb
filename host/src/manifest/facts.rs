//! Values of a Pod's fields that are known only when its VM is made.

use super::plan::{LateField, Resource, ResourceShare};
use std::net::IpAddr;

/// What is known of a pod only when its VM is made.
#[derive(Debug, Clone, Default)]
pub struct PodFacts {
    pub hostname: String,
    pub uid: String,
    /// The host's own name.
    pub node_name: String,
    pub pod_ips: Vec<IpAddr>,
    pub host_ip: Option<IpAddr>,
    pub capacity: Capacity,
}

/// What a container without limits can have at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capacity {
    pub cpu_millis: u64,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

impl Capacity {
    fn told(self, share: ResourceShare) -> String {
        let amount = match share.resource {
            Resource::Cpu => self.cpu_millis,
            Resource::Memory => self.memory_bytes,
            Resource::Disk => self.disk_bytes,
            Resource::HugePages2Mi | Resource::HugePages1Gi => 0,
        };
        amount.div_ceil(share.divisor.max(1)).to_string()
    }
}

impl PodFacts {
    /// The value of such a field, if the pod has one.
    pub(crate) fn value(&self, field: LateField) -> Option<String> {
        let text = |address: &IpAddr| address.to_string();
        let text = match field {
            LateField::Uid => self.uid.clone(),
            LateField::NodeName => self.node_name.clone(),
            LateField::PodIp => self.pod_ips.first().map(text)?,
            LateField::PodIps => self.pod_ips.iter().map(text).collect::<Vec<_>>().join(","),
            LateField::HostIp | LateField::HostIps => self.host_ip.as_ref().map(text)?,
            LateField::Limit(share) => self.capacity.told(share),
        };
        Some(text).filter(|text| !text.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::ImageDefaults;
    use crate::manifest::{ResolveError, parse, resolve_process};

    #[test]
    fn fields_that_are_known_late_are_values_like_others() {
        let variables: String = LateField::TABLE
            .iter()
            .map(|(path, _)| {
                format!(
                    "{{name: {}, valueFrom: {{fieldRef: {{fieldPath: {path}}}}}}}, ",
                    path.replace('.', "_")
                )
            })
            .collect();
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec:\n  containers:\n  - name: a\n    image: b:1\n    command: [a]\n    \
             env: [{variables}{{name: URL, value: 'http://$(status_podIP)'}}, {{name: CPU, valueFrom: {{resourceFieldRef: {{resource: limits.cpu}}}}}}, \
             {{name: MEMORY, valueFrom: {{resourceFieldRef: {{resource: limits.memory, divisor: 1Mi}}}}}}, \
             {{name: DISK, valueFrom: {{resourceFieldRef: {{resource: limits.ephemeral-storage, containerName: a}}}}}}, \
             {{name: NONE, valueFrom: {{resourceFieldRef: {{resource: requests.cpu, divisor: 1m}}}}}}]\n"
        );
        let plan = parse(text.as_bytes(), "x").unwrap();
        let facts = PodFacts {
            hostname: "h".to_owned(),
            uid: "u-1".to_owned(),
            node_name: "host".to_owned(),
            pod_ips: vec!["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()],
            host_ip: Some("192.0.2.1".parse().unwrap()),
            capacity: Capacity { cpu_millis: 2000, memory_bytes: (100 << 20) + 1, disk_bytes: 10 << 30 },
        };
        let process =
            |facts: &PodFacts| resolve_process(&plan.containers[0], &ImageDefaults::default(), facts);
        let found = process(&facts).unwrap().env;
        for expected in [
            "metadata_uid=u-1",
            "spec_nodeName=host",
            "status_podIP=192.0.2.7",
            "status_podIPs=192.0.2.7,2001:db8::7",
            "status_hostIP=192.0.2.1",
            "status_hostIPs=192.0.2.1",
            "URL=http://192.0.2.7",
            "CPU=2",
            "MEMORY=101",
            "DISK=10737418240",
            "NONE=0",
        ] {
            assert!(found.iter().any(|variable| variable == expected), "{expected}: {found:?}");
        }
        let without = PodFacts { pod_ips: Vec::new(), ..facts };
        let error = process(&without).unwrap_err();
        assert!(matches!(error, ResolveError::NoField { field: LateField::PodIp, .. }), "{error}");
    }
}
