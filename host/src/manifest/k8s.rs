//! The Pod as written: checked against the field table and typed, without defaults and interpretation.

use super::injected;
use super::node::{Entry, Node, Value};
use super::objects::Objects;
use super::problem::{FieldPlace, Mark, ProblemCollector, quote};
use super::walk::{self, Check};
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
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Spec {
    pub(super) containers: Vec<Container>,
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
    /// Only `linux` is accepted.
    #[serde(rename = "os")]
    _os: Os,
    /// Only `false` is accepted, as for the next three fields.
    #[serde(rename = "setHostnameAsFQDN")]
    _set_hostname_as_fqdn: bool,
    #[serde(rename = "hostNetwork")]
    _host_network: bool,
    #[serde(rename = "hostPID")]
    _host_pid: bool,
    #[serde(rename = "hostIPC")]
    _host_ipc: bool,
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
    /// Has no effect whatever its value, like the next field.
    #[serde(rename = "fsGroupChangePolicy")]
    _fs_group_change_policy: String,
    #[serde(rename = "supplementalGroupsPolicy")]
    _supplemental_groups_policy: String,
    #[serde(rename = "seccompProfile")]
    _seccomp_profile: SeccompProfile,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Sysctl {
    pub(super) name: Option<String>,
    pub(super) value: Option<String>,
}

/// Only `RuntimeDefault` is accepted.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SeccompProfile {
    #[serde(rename = "type")]
    _type: String,
}

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
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Env {
    pub(super) name: Option<String>,
    pub(super) value: Option<String>,
    pub(super) value_from: Option<ValueFrom>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct ValueFrom {
    pub(super) config_map_key_ref: Option<KeyRef>,
    pub(super) secret_key_ref: Option<KeyRef>,
    pub(super) field_ref: Option<FieldRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct KeyRef {
    pub(super) name: Option<String>,
    pub(super) key: Option<String>,
    pub(super) optional: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct FieldRef {
    pub(super) field_path: Option<String>,
    /// Only `v1` is accepted.
    #[serde(rename = "apiVersion")]
    _api_version: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct EnvFrom {
    pub(super) prefix: String,
    pub(super) config_map_ref: Option<ObjectRef>,
    pub(super) secret_ref: Option<ObjectRef>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct ObjectRef {
    pub(super) name: Option<String>,
    pub(super) optional: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct VolumeMount {
    pub(super) name: Option<String>,
    pub(super) mount_path: Option<String>,
    pub(super) sub_path: Option<String>,
    pub(super) sub_path_expr: Option<String>,
    pub(super) read_only: bool,
    /// Has no effect whatever its value, like the next field.
    #[serde(rename = "recursiveReadOnly")]
    _recursive_read_only: String,
    #[serde(rename = "mountPropagation")]
    _mount_propagation: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct Volume {
    pub(super) name: Option<String>,
    pub(super) host_path: Option<HostPath>,
    pub(super) empty_dir: Option<EmptyDir>,
    pub(super) config_map: Option<ObjectVolume>,
    pub(super) secret: Option<ObjectVolume>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct HostPath {
    pub(super) path: Option<String>,
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct EmptyDir {
    pub(super) medium: Option<String>,
    pub(super) size_limit: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub(super) struct ObjectVolume {
    #[serde(alias = "secretName")]
    pub(super) name: Option<String>,
    pub(super) items: Vec<Item>,
    pub(super) default_mode: Option<i64>,
    pub(super) optional: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Item {
    pub(super) key: Option<String>,
    pub(super) path: Option<String>,
    pub(super) mode: Option<i64>,
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
    /// Only `false` is accepted.
    #[serde(rename = "privileged")]
    _privileged: bool,
    /// Only `Default` is accepted.
    #[serde(rename = "procMount")]
    _proc_mount: String,
    #[serde(rename = "seccompProfile")]
    _seccomp_profile: SeccompProfile,
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
    let is_pod = expect(entries, &top, "kind", "Pod", kind_hint, report);
    // Of another kind, the version says nothing more.
    if !is_pod || !expect(entries, &top, "apiVersion", "v1", |_| "", report) {
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

/// The kind that a document claims.
pub(super) fn kind(root: &Node) -> Option<&str> {
    let Value::Map(entries) = &root.value else { return None };
    walk::text(walk::get(entries, "kind")?)
}

/// Whether a field at the top has its only possible value. An absent one is reported, but does not change what the document is.
fn expect(
    entries: &[Entry],
    top: &FieldPlace,
    key: &str,
    wanted: &str,
    hint: fn(&str) -> &'static str,
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
            report.add(&place, format!("must be {wanted}, not {}", quote(text)), hint(text));
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

/// What to do with an object of a kind that does not run.
pub(super) fn kind_hint(kind: &str) -> &'static str {
    match kind {
        "Deployment" | "DaemonSet" | "StatefulSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            "make a Pod of its `spec.template`"
        }
        "CronJob" => "make a Pod of its `spec.jobTemplate.spec.template`",
        "PodTemplate" => "make a Pod of its `template`",
        _ => "only Pods run here, with ConfigMaps and Secrets beside them",
    }
}
