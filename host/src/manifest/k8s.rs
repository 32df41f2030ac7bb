//! The Pod as written: checked against the field table and typed, without defaults and interpretation.

use super::fields::{self, Field, Shape, Status};
use super::node::{Entry, Node, Style, Value};
use super::problem::{FieldPlace, Mark, ProblemCollector, path_key, quote};
use super::quantity::Quantity;
use super::scalar::{self, ScalarKind};
use serde::Deserialize;
use serde_json::Value as Json;
use std::collections::{BTreeMap, HashMap};

/// A Pod as written, with the position of each value.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) pod: Pod,
    /// Without ignored fields and nulls.
    pub(super) json: Json,
    marks: HashMap<String, Mark>,
}

impl Written {
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
    /// Only `false` is accepted, as for the next four fields.
    #[serde(rename = "hostNetwork")]
    _host_network: bool,
    #[serde(rename = "hostPID")]
    _host_pid: bool,
    #[serde(rename = "hostIPC")]
    _host_ipc: bool,
    #[serde(rename = "automountServiceAccountToken")]
    _automount_service_account_token: bool,
    #[serde(rename = "enableServiceLinks")]
    _enable_service_links: bool,
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
pub(super) fn read(root: &Node, report: &mut ProblemCollector) -> Option<Written> {
    let top = FieldPlace { path: String::new(), mark: root.mark };
    let Value::Map(entries) = &root.value else {
        report.add(&top, "must be a mapping", "a Pod begins with `apiVersion: v1` and `kind: Pod`");
        return None;
    };
    let is_pod = expect(entries, &top, "kind", "Pod", kind_hint, report);
    let is_v1 = expect(entries, &top, "apiVersion", "v1", |_| "", report);
    if !(is_pod && is_v1) {
        return None;
    }
    let mut check = Check { report, marks: HashMap::new() };
    check.marks.insert(String::new(), root.mark);
    let json = check.object(entries, "", "");
    let marks = check.marks;
    match Pod::deserialize(&json) {
        Ok(pod) => {
            debug_assert!(matches!((pod.api_version.as_str(), pod.kind.as_str()), ("v1" | "", "Pod" | "")));
            Some(Written { pod, json, marks })
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
    match &entries.iter().find(|entry| entry.key == "kind")?.node.value {
        Value::Scalar { text, .. } => Some(text),
        Value::List(_) | Value::Map(_) => None,
    }
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

fn kind_hint(kind: &str) -> &'static str {
    match kind {
        "Deployment" | "DaemonSet" | "StatefulSet" | "ReplicaSet" | "ReplicationController" | "Job" => {
            "make a Pod of its `spec.template`"
        }
        "CronJob" => "make a Pod of its `spec.jobTemplate.spec.template`",
        "List" | "PodList" => "run its items one by one",
        _ => "only Pods run here, with ConfigMaps and Secrets beside them",
    }
}

struct Check<'a> {
    report: &'a mut ProblemCollector,
    marks: HashMap<String, Mark>,
}

impl Check<'_> {
    fn object(&mut self, entries: &[Entry], schema: &str, path: &str) -> Json {
        let mut object = serde_json::Map::new();
        for entry in entries {
            let join = |parent: &str, key: &str| {
                if parent.is_empty() { key.to_owned() } else { format!("{parent}.{key}") }
            };
            let path = join(path, &path_key(&entry.key));
            let place = FieldPlace { path, mark: entry.key_mark };
            let Some(field) = fields::find(&join(schema, &entry.key)) else {
                let hint = fields::suggest(schema, &entry.key).unwrap_or_default();
                self.report.add(&place, "is not a field of a v1 Pod", hint);
                continue;
            };
            if let Some(value) = self.field(&entry.node, field, place) {
                object.insert(entry.key.clone(), value);
            }
        }
        Json::Object(object)
    }

    fn field(&mut self, node: &Node, field: &Field, place: FieldPlace) -> Option<Json> {
        // As in Kubernetes, null means absent.
        if scalar::is_null(node) {
            return None;
        }
        match field.status {
            Status::Ignored { .. } => return None,
            Status::Refused { why } => {
                self.report.add(&place, format!("is not supported: {why}"), "");
                return None;
            }
            Status::Supported | Status::Only { .. } => {}
        }
        let mark = if matches!(node.value, Value::Scalar { .. }) { node.mark } else { place.mark };
        let place = FieldPlace { mark, ..place };
        self.marks.insert(place.path.clone(), mark);
        let value = self.shape(node, field, &place)?;
        if let Status::Only { values, why } = field.status {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if !values.contains(&text.as_str()) {
                let message = format!("{} is not supported: {why}", quote(&text));
                self.report.add(&place, message, format!("leave it out or write {}", values.join(" or ")));
                return None;
            }
        }
        Some(value)
    }

    fn shape(&mut self, node: &Node, field: &Field, place: &FieldPlace) -> Option<Json> {
        match (field.shape, &node.value) {
            (Shape::Any, _) => None,
            (Shape::Object, Value::Map(entries)) => Some(self.object(entries, field.path, &place.path)),
            (Shape::Objects, Value::List(items)) => Some(self.objects(items, field, place)),
            (Shape::Texts, Value::List(items)) => Some(self.scalars(Shape::Text, items, place)),
            (Shape::Ints, Value::List(items)) => Some(self.scalars(Shape::Int, items, place)),
            (Shape::TextMap, Value::Map(entries)) => Some(self.text_map(entries, place)),
            (shape, Value::Scalar { text, style }) => self.scalar(shape, text, *style, place),
            (shape, _) => {
                self.report.add(place, format!("must be {}", wanted(shape)), "");
                None
            }
        }
    }

    fn objects(&mut self, items: &[Node], field: &Field, place: &FieldPlace) -> Json {
        let schema = format!("{}[]", field.path);
        let objects = items.iter().enumerate().map(|(index, item)| {
            let place = FieldPlace { path: format!("{}[{index}]", place.path), mark: item.mark };
            self.marks.insert(place.path.clone(), place.mark);
            match &item.value {
                Value::Map(entries) => self.object(entries, &schema, &place.path),
                _ => {
                    self.report.add(&place, "must be a mapping", "");
                    // Keeps the indexes of the other elements right.
                    Json::Object(serde_json::Map::new())
                }
            }
        });
        Json::Array(objects.collect())
    }

    fn scalars(&mut self, shape: Shape, items: &[Node], place: &FieldPlace) -> Json {
        let scalars = items.iter().enumerate().filter_map(|(index, item)| {
            let place = FieldPlace { path: format!("{}[{index}]", place.path), mark: item.mark };
            self.marks.insert(place.path.clone(), place.mark);
            self.simple(shape, item, &place)
        });
        Json::Array(scalars.collect())
    }

    fn text_map(&mut self, entries: &[Entry], place: &FieldPlace) -> Json {
        let map = entries.iter().filter_map(|entry| {
            let path = format!("{}.{}", place.path, path_key(&entry.key));
            let place = FieldPlace { path, mark: entry.node.mark };
            self.marks.insert(place.path.clone(), place.mark);
            Some((entry.key.clone(), self.simple(Shape::Text, &entry.node, &place)?))
        });
        Json::Object(map.collect())
    }

    fn simple(&mut self, shape: Shape, node: &Node, place: &FieldPlace) -> Option<Json> {
        match &node.value {
            Value::Scalar { text, style } => self.scalar(shape, text, *style, place),
            Value::List(_) | Value::Map(_) => {
                self.report.add(place, format!("must be {}", wanted(shape)), "");
                None
            }
        }
    }

    fn scalar(&mut self, shape: Shape, text: &str, style: Style, place: &FieldPlace) -> Option<Json> {
        let kind = if style == Style::Quoted { ScalarKind::Text } else { scalar::kind(text) };
        let (message, hint) = match (shape, kind) {
            (Shape::Text, ScalarKind::Text) => return Some(Json::from(text)),
            (Shape::Text, _) => {
                ("must be a string".to_owned(), format!("write it in quotes: {}", quote(text)))
            }
            (Shape::Bool, ScalarKind::Bool(value)) => return Some(Json::from(value)),
            (Shape::Bool, ScalarKind::MaybeBool(value)) => {
                (format!("must be true or false, not {}", quote(text)), format!("write {value}"))
            }
            (Shape::Int, ScalarKind::Int(value)) => return Some(Json::from(value)),
            (Shape::Mode, ScalarKind::Int(value)) => return Some(Json::from(value)),
            (Shape::Mode, ScalarKind::Number) if octal(text).is_some() => return octal(text).map(Json::from),
            (Shape::Int, ScalarKind::Number) => (
                format!("must be a whole number, not {}", quote(text)),
                "write it in decimal digits only".to_owned(),
            ),
            (Shape::Quantity, _) => match quantity(text, kind) {
                Ok(()) => return Some(Json::from(text)),
                Err((message, hint)) => (message, hint.to_owned()),
            },
            (shape, _) => {
                let unquoted = matches!(scalar::kind(text), ScalarKind::Int(_) | ScalarKind::Bool(_));
                let hint = if unquoted && style == Style::Quoted { "write it without quotes" } else { "" };
                (format!("must be {}, not {}", wanted(shape), quote(text)), hint.to_owned())
            }
        };
        self.report.add(place, message, hint);
        None
    }
}

/// The number that Kubernetes' YAML reader makes of `0644` and `0o644`.
fn octal(text: &str) -> Option<i64> {
    let digits = text.strip_prefix("0o").or_else(|| text.strip_prefix('0'))?;
    let is_octal = !digits.is_empty() && digits.bytes().all(|digit| (b'0'..=b'7').contains(&digit));
    i64::from_str_radix(digits, 8).ok().filter(|_| is_octal)
}

/// The shape, to complete "must be".
fn wanted(shape: Shape) -> String {
    match shape {
        Shape::Bool => shape.describe().to_owned(),
        _ => format!("a {}", shape.describe()),
    }
}

fn quantity(text: &str, kind: ScalarKind) -> Result<(), (String, &'static str)> {
    let example = "for example 500m, 2, 128Mi or 1.5Gi";
    let digits = text.trim_start_matches(['+', '-']).as_bytes();
    if kind == ScalarKind::Number
        && digits.first() == Some(&b'0')
        && digits.get(1).is_some_and(u8::is_ascii_digit)
    {
        return Err((
            format!("{} is octal to some YAML readers", quote(text)),
            "write it without the leading zero",
        ));
    }
    match Quantity::parse(text) {
        Ok(_) => Ok(()),
        Err(error) => Err((format!("{} {error}", quote(text)), example)),
    }
}
