//! The Pod as written: checked against the field table and typed, without defaults and interpretation.

mod env;
mod lifecycle;
mod volumes;

pub(super) use env::*;
pub(super) use lifecycle::*;
pub(super) use volumes::*;

use super::injected;
use super::node::{Entry, Node, Value};
use super::objects::Objects;
use super::problem::{FieldPlace, Mark, ProblemCollector, quote};
use super::walk::Check;
use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A Pod as written, with the position of each value.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) pod: Pod,
    /// Without ignored fields and nulls.
    pub(super) json: Json,
    marks: HashMap<String, Mark>,
    /// The scalars among the ignored fields, by their path.
    ignored: BTreeMap<&'static str, String>,
    /// Names of the volumes that an admission controller has added.
    injected: HashSet<String>,
}

impl Written {
    /// The text of a field that is ignored, if it is there and not empty.
    pub(super) fn ignored(&self, path: &str) -> Option<&str> {
        self.ignored.get(path).map(String::as_str).filter(|text| !text.is_empty())
    }

    /// Whether an admission controller has added the volume of this name.
    pub(super) fn is_injected(&self, volume: Option<&str>) -> bool {
        volume.is_some_and(|name| self.injected.contains(name))
    }

    /// Whether the field is in the manifest, even if its value was refused.
    pub(super) fn has(&self, path: &str) -> bool {
        self.marks.contains_key(path)
    }

    /// The position of a field, or of the object that lacks it.
    pub(super) fn place(&self, path: &str) -> FieldPlace {
        let mut above = path;
        loop {
            if let Some(&mark) = self.marks.get(above) {
                return FieldPlace { path: path.to_owned(), mark };
            }
            above = match above.rfind(['.', '[']) {
                Some(end) => &above[..end],
                None => "",
            };
            if above.is_empty() {
                let mark = self.marks.get("").copied().unwrap_or(Mark { line: 1, column: 1 });
                return FieldPlace { path: path.to_owned(), mark };
            }
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Pod {
    api_version: String,
    kind: String,
    pub(super) metadata: Metadata,
    pub(super) spec: Spec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Metadata {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) annotations: BTreeMap<String, String>,
    /// It has become the name, unless there is one.
    #[serde(rename = "generateName")]
    _generate_name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Spec {
    pub(super) init_containers: Vec<Container>,
    pub(super) containers: Vec<Container>,
    pub(super) active_deadline_seconds: Option<i64>,
    pub(super) restart_policy: Option<String>,
    pub(super) termination_grace_period_seconds: Option<i64>,
    pub(super) hostname: Option<String>,
    pub(super) runtime_class_name: Option<String>,
    pub(super) share_process_namespace: bool,
    pub(super) security_context: PodSecurity,
    pub(super) volumes: Vec<Volume>,
    pub(super) dns_policy: Option<String>,
    pub(super) dns_config: DnsConfig,
    pub(super) host_aliases: Vec<HostAlias>,
    pub(super) subdomain: Option<String>,
    pub(super) resources: Requirements,
    pub(super) image_pull_secrets: Vec<LocalReference>,
    /// Only `linux` is accepted.
    #[serde(rename = "os")]
    _os: Os,
    #[serde(rename = "setHostnameAsFQDN")]
    pub(super) set_hostname_as_fqdn: bool,
    pub(super) hostname_override: Option<String>,
    pub(super) host_users: Option<bool>,
    pub(super) host_network: bool,
    /// Only `false` is accepted, as for the next field.
    #[serde(rename = "hostPID")]
    _host_pid: bool,
    #[serde(rename = "hostIPC")]
    _host_ipc: bool,
}

impl Spec {
    /// The container of this name.
    pub(super) fn container(&self, name: &str) -> Option<&Container> {
        self.init_containers
            .iter()
            .chain(&self.containers)
            .find(|container| container.name.as_deref() == Some(name))
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LocalReference {
    pub(super) name: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Os {
    #[serde(rename = "name")]
    _name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DnsConfig {
    pub(super) nameservers: Vec<String>,
    pub(super) searches: Vec<String>,
    pub(super) options: Vec<DnsOption>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DnsOption {
    pub(super) name: Option<String>,
    pub(super) value: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HostAlias {
    pub(super) ip: Option<String>,
    pub(super) hostnames: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct PodSecurity {
    pub(super) run_as_user: Option<i64>,
    pub(super) run_as_group: Option<i64>,
    pub(super) run_as_non_root: Option<bool>,
    pub(super) fs_group: Option<i64>,
    pub(super) supplemental_groups: Vec<i64>,
    pub(super) sysctls: Vec<Sysctl>,
    pub(super) fs_group_change_policy: Option<String>,
    pub(super) supplemental_groups_policy: Option<String>,
    pub(super) seccomp_profile: Profile,
    pub(super) app_armor_profile: Profile,
    #[serde(rename = "seLinuxOptions")]
    _se_linux_options: SeLinuxOptions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Sysctl {
    pub(super) name: Option<String>,
    pub(super) value: Option<String>,
}

/// A profile of seccomp or AppArmor.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Profile {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) localhost_profile: Option<String>,
}

impl Profile {
    /// Whether it asks for nothing, as if it was absent.
    pub(super) fn is_empty(&self) -> bool {
        [&self.kind, &self.localhost_profile]
            .iter()
            .all(|text| text.as_deref().unwrap_or_default().is_empty())
    }
}

/// Only empty ones are accepted.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SeLinuxOptions {}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Container {
    pub(super) name: Option<String>,
    pub(super) image: Option<String>,
    pub(super) image_pull_policy: Option<String>,
    pub(super) command: Vec<String>,
    pub(super) args: Vec<String>,
    pub(super) working_dir: Option<String>,
    pub(super) env: Vec<Env>,
    pub(super) env_from: Vec<EnvFrom>,
    pub(super) volume_mounts: Vec<VolumeMount>,
    pub(super) resources: Requirements,
    pub(super) ports: Vec<Port>,
    pub(super) tty: bool,
    pub(super) stdin: bool,
    pub(super) stdin_once: bool,
    pub(super) security_context: ContainerSecurity,
    pub(super) restart_policy: Option<String>,
    pub(super) restart_policy_rules: Vec<RestartRule>,
    pub(super) startup_probe: Option<Probe>,
    pub(super) liveness_probe: Option<Probe>,
    pub(super) readiness_probe: Option<Probe>,
    pub(super) lifecycle: Option<Lifecycle>,
    pub(super) termination_message_path: Option<String>,
    pub(super) termination_message_policy: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Requirements {
    pub(super) limits: Amounts,
    pub(super) requests: Amounts,
}

/// Quantities as written. They have been parsed once, so they can be parsed again.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Amounts {
    pub(super) cpu: Option<String>,
    pub(super) memory: Option<String>,
    #[serde(rename = "ephemeral-storage")]
    pub(super) disk: Option<String>,
    #[serde(rename = "hugepages-2Mi")]
    pub(super) huge_pages_2mi: Option<String>,
    #[serde(rename = "hugepages-1Gi")]
    pub(super) huge_pages_1gi: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Port {
    pub(super) name: Option<String>,
    pub(super) container_port: Option<i64>,
    pub(super) host_port: Option<i64>,
    #[serde(rename = "hostIP")]
    pub(super) host_ip: Option<String>,
    pub(super) protocol: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct ContainerSecurity {
    pub(super) run_as_user: Option<i64>,
    pub(super) run_as_group: Option<i64>,
    pub(super) run_as_non_root: Option<bool>,
    pub(super) read_only_root_filesystem: bool,
    pub(super) allow_privilege_escalation: Option<bool>,
    pub(super) capabilities: CapabilityChange,
    pub(super) privileged: bool,
    pub(super) proc_mount: Option<String>,
    pub(super) seccomp_profile: Profile,
    pub(super) app_armor_profile: Profile,
    #[serde(rename = "seLinuxOptions")]
    _se_linux_options: SeLinuxOptions,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct CapabilityChange {
    pub(super) add: Vec<String>,
    pub(super) drop: Vec<String>,
}

/// Checks a tree against the field table and types it. `None`: it is not a v1 Pod at all.
pub(super) fn read(root: &Node, objects: &Objects, report: &mut ProblemCollector) -> Option<Written> {
    let top = FieldPlace { path: String::new(), mark: root.mark };
    let Value::Map(entries) = &root.value else {
        report.add(&top, "must be a mapping", "a Pod begins with `apiVersion: v1` and `kind: Pod`");
        return None;
    };
    let is_pod = expect(entries, &top, "kind", "Pod", report);
    // Of another kind, the version says nothing more.
    if !is_pod || !expect(entries, &top, "apiVersion", "v1", report) {
        return None;
    }
    let injected = injected::volumes(entries, objects);
    let mut check = Check { report, marks: HashMap::new(), ignored: BTreeMap::new(), injected: &injected };
    check.marks.insert(String::new(), root.mark);
    let mut json = check.object(entries, "", "");
    let (marks, ignored) = (check.marks, check.ignored);
    match Pod::deserialize(&json) {
        Ok(pod) => {
            debug_assert!(matches!((pod.api_version.as_str(), pod.kind.as_str()), ("v1" | "", "Pod" | "")));
            injected::remove(&mut json, &injected);
            Some(Written { pod, json, marks, ignored, injected })
        }
        Err(error) => {
            // The table and the types of this module disagree, which their test rules out.
            report.add(&top, format!("can't be read: {error}"), "");
            None
        }
    }
}

/// Whether a field at the top has its only possible value. An absent one is reported, but does not change what the document is.
fn expect(
    entries: &[Entry],
    top: &FieldPlace,
    key: &str,
    wanted: &str,
    report: &mut ProblemCollector,
) -> bool {
    let Some(entry) = entries.iter().find(|entry| entry.key == key) else {
        let place = FieldPlace { path: key.to_owned(), mark: top.mark };
        report.add(&place, "is missing", format!("write `{key}: {wanted}`"));
        return true;
    };
    match &entry.node.value {
        Value::Scalar { text, .. } if text == wanted => true,
        Value::Scalar { text, .. } => {
            let place = FieldPlace { path: key.to_owned(), mark: entry.node.mark };
            report.add(&place, format!("must be {wanted}, not {}", quote(text)), "");
            false
        }
        Value::List(_) | Value::Map(_) => {
            report.add(
                &FieldPlace { path: key.to_owned(), mark: entry.key_mark },
                format!("must be {wanted}"),
                "",
            );
            false
        }
    }
}
