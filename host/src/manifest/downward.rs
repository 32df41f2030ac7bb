//! The downward API: which field of a Pod or resource of a container is meant, and what it says. Must not know: where the value is put.

use super::checks::Build;
use super::k8s;
use super::names;
use super::plan::{LateField, Resource, ResourceShare};
use super::problem::quote;
use super::quantity::Quantity;
use std::collections::BTreeMap;
use std::fmt::Write;

/// Fields that can be the value of a variable.
const OF_VARIABLES: &str = "metadata.name, metadata.namespace, metadata.uid, metadata.labels['KEY'], metadata.annotations['KEY'], \
     spec.nodeName, spec.serviceAccountName, status.podIP, status.podIPs, status.hostIP and status.hostIPs can be used";
/// Fields that can be the content of a file. As in Kubernetes, addresses can't.
const OF_FILES: &str = "metadata.name, metadata.namespace, metadata.uid, metadata.labels, metadata.annotations, metadata.labels['KEY'] and \
     metadata.annotations['KEY'] can be used";
const OF_RESOURCES: &str =
    "limits and requests of cpu, memory, ephemeral-storage, hugepages-2Mi and hugepages-1Gi can be used";
/// Divisors of processors, and those of bytes.
const CPU_DIVISORS: [&str; 2] = ["1m", "1"];
const BYTE_DIVISORS: [&str; 13] =
    ["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];

/// A field of a Pod (core/v1 `ObjectFieldSelector.fieldPath`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldPath<'a> {
    Name,
    Namespace,
    ServiceAccountName,
    /// All labels, one a line.
    Labels,
    /// All annotations, one a line.
    Annotations,
    Label(&'a str),
    Annotation(&'a str),
    /// Known when the VM is made.
    Late(LateField),
}

/// Why a text is not the path of a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldPathError {
    #[error("is not supported")]
    Unknown,
    /// The key of a label or annotation.
    #[error("has a key that can't be there: {0}")]
    Key(String),
}

impl<'a> FieldPath<'a> {
    /// Reads a path like `metadata.labels['KEY']`.
    pub fn parse(path: &'a str) -> Result<Self, FieldPathError> {
        if let Some((list, key)) = path.strip_suffix("']").and_then(|path| path.split_once("['")) {
            // Kubernetes tolerates capitals in the key of an annotation.
            let (field, checked) = match list {
                "metadata.labels" => (Self::Label(key), names::qualified_name(key)),
                "metadata.annotations" => {
                    (Self::Annotation(key), names::qualified_name(&key.to_ascii_lowercase()))
                }
                _ => return Err(FieldPathError::Unknown),
            };
            return checked.map(|()| field).map_err(FieldPathError::Key);
        }
        let late = LateField::TABLE.iter().find(|(known, _)| *known == path);
        Ok(match path {
            "metadata.name" => Self::Name,
            "metadata.namespace" => Self::Namespace,
            "spec.serviceAccountName" => Self::ServiceAccountName,
            "metadata.labels" => Self::Labels,
            "metadata.annotations" => Self::Annotations,
            _ => Self::Late(late.ok_or(FieldPathError::Unknown)?.1),
        })
    }

    /// Whether it can be the value of a variable.
    fn is_of_variables(self) -> bool {
        !matches!(self, Self::Labels | Self::Annotations)
    }

    /// Whether it can be the content of a file.
    fn is_of_files(self) -> bool {
        !matches!(self, Self::ServiceAccountName)
            && (!matches!(self, Self::Late(_)) || self == Self::Late(LateField::Uid))
    }
}

/// The use of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Variable,
    File,
}

/// A value of the downward API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Told {
    Text(String),
    /// It is known when the VM is made.
    Late(LateField),
}

impl Build<'_> {
    /// The value of the field that the selector at this path names.
    pub(super) fn field_ref(&mut self, at: &str, reference: &k8s::FieldRef, used: Use) -> Option<Told> {
        let path = format!("{at}.fieldPath");
        let text = self.required(&path, reference.field_path.as_deref())?;
        let allowed = |field: FieldPath<'_>| match used {
            Use::Variable => field.is_of_variables(),
            Use::File => field.is_of_files(),
        };
        let hint = if used == Use::File { OF_FILES } else { OF_VARIABLES };
        let field = match FieldPath::parse(text) {
            Ok(field) if allowed(field) => field,
            Ok(_) => {
                let thing = if used == Use::File { "a file" } else { "a variable" };
                self.problem(&path, format!("{} can't be in {thing}", quote(text)), hint);
                return None;
            }
            Err(error) => {
                self.problem(&path, format!("{} {error}", quote(text)), hint);
                return None;
            }
        };
        let metadata = &self.written.pod.metadata;
        let of = |map: &BTreeMap<String, String>, key: &str| map.get(key).cloned().unwrap_or_default();
        Some(Told::Text(match field {
            FieldPath::Late(field) => return Some(Told::Late(field)),
            FieldPath::Name => metadata.name.clone().unwrap_or_default(),
            FieldPath::Namespace => match metadata.namespace.as_deref() {
                None | Some("") => "default".to_owned(),
                Some(namespace) => namespace.to_owned(),
            },
            FieldPath::ServiceAccountName => {
                let written = self.written.ignored("spec.serviceAccountName");
                written
                    .or_else(|| self.written.ignored("spec.serviceAccount"))
                    .unwrap_or("default")
                    .to_owned()
            }
            FieldPath::Label(key) => of(&metadata.labels, key),
            FieldPath::Annotation(key) => of(&metadata.annotations, key),
            FieldPath::Labels => lines(&metadata.labels),
            FieldPath::Annotations => lines(&metadata.annotations),
        }))
    }

    /// The amount of the resource that the selector at this path names. `own` is the container that it is in.
    pub(super) fn resource_ref(
        &mut self,
        at: &str,
        reference: &k8s::ResourceFieldRef,
        own: Option<&k8s::Requirements>,
    ) -> Option<Told> {
        let path = |field: &str| format!("{at}.{field}");
        let written = self.written;
        let name = reference.container_name.as_deref().filter(|name| !name.is_empty());
        let of = match (name, own) {
            (None, Some(own)) => own,
            (None, None) => {
                self.required(&path("containerName"), None);
                return None;
            }
            (Some(name), _) => match written.pod.spec.container(name) {
                Some(container) => &container.resources,
                None => {
                    let message = format!("there is no container {}", quote(name));
                    self.problem(&path("containerName"), message, "");
                    return None;
                }
            },
        };
        let text = self.required(&path("resource"), reference.resource.as_deref())?;
        let (list, resource) = match text.split_once('.') {
            Some((list @ ("limits" | "requests"), name)) => (list, Resource::named(name)),
            _ => ("", None),
        };
        let Some(resource) = resource else {
            self.problem(&path("resource"), format!("{} is not supported", quote(text)), OF_RESOURCES);
            return None;
        };
        let divisor = self.divisor(&path("divisor"), resource, reference.divisor.as_deref())?;
        let amount = |amounts: &k8s::Amounts| {
            let text = match resource {
                Resource::Cpu => &amounts.cpu,
                Resource::Memory => &amounts.memory,
                Resource::Disk => &amounts.disk,
                Resource::HugePages2Mi => &amounts.huge_pages_2mi,
                Resource::HugePages1Gi => &amounts.huge_pages_1gi,
            };
            // What is not a quantity was reported where it stands.
            resource.amount(text.as_deref()?)
        };
        // A limit of zero is not a limit.
        let limit = amount(&of.limits).filter(|&amount| amount > 0);
        let amount = match list {
            // Without a limit there are none of them.
            "limits" if matches!(resource, Resource::HugePages2Mi | Resource::HugePages1Gi) => {
                limit.or(Some(0))
            }
            "limits" => limit,
            // An API server makes the limit the default of the request.
            _ => amount(&of.requests).or(limit).or(Some(0)),
        };
        Some(match amount {
            Some(amount) => Told::Text(amount.div_ceil(divisor).to_string()),
            None => Told::Late(LateField::Limit(ResourceShare { resource, divisor })),
        })
    }

    fn divisor(&mut self, path: &str, resource: Resource, text: Option<&str>) -> Option<u64> {
        let known: &[&str] = if resource == Resource::Cpu { &CPU_DIVISORS } else { &BYTE_DIVISORS };
        let text = text.filter(|text| !Quantity::parse(text).is_ok_and(Quantity::is_zero)).unwrap_or("1");
        // Not a part of a byte either, which would be rounded up.
        let exact = |text: &str| {
            let quantity = Quantity::parse(text).ok()?;
            Some((quantity.units().ok()?, quantity.millis().ok()))
        };
        if known.iter().any(|known| exact(known) == exact(text)) {
            return resource.amount(text);
        }
        self.problem(path, format!("{} is not one of {}", quote(text), known.join(", ")), "");
        None
    }
}

impl Resource {
    fn named(name: &str) -> Option<Self> {
        [Self::Cpu, Self::Memory, Self::Disk, Self::HugePages2Mi, Self::HugePages1Gi]
            .into_iter()
            .find(|resource| resource.as_str() == name)
    }

    /// Thousandths of a processor, or bytes.
    fn amount(self, text: &str) -> Option<u64> {
        let quantity = Quantity::parse(text).ok()?;
        if self == Self::Cpu { quantity.millis().ok() } else { quantity.units().ok() }
    }
}

/// A file with labels or annotations: `KEY="VALUE"`, sorted by key, in the escapes of Go's `strconv.Quote`.
fn lines(map: &BTreeMap<String, String>) -> String {
    map.iter().map(|(key, value)| format!("{key}={}", go_quoted(value))).collect::<Vec<_>>().join("\n")
}

fn go_quoted(text: &str) -> String {
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{b}' => quoted.push_str("\\v"),
            _ if is_printable(c) => quoted.push(c),
            _ => {
                let code = u32::from(c);
                // Writing to a String can't fail.
                match code {
                    0..0x80 => write!(quoted, "\\x{code:02x}"),
                    0x80..0x1_0000 => write!(quoted, "\\u{code:04x}"),
                    _ => write!(quoted, "\\U{code:08x}"),
                }
                .unwrap_or_default();
            }
        }
    }
    quoted.push('"');
    quoted
}

/// Whether a character is shown. Rust escapes the others, and marks that combine with what is before them only at the beginning of a text.
fn is_printable(c: char) -> bool {
    let after_a_letter: String = ['a', c].iter().collect();
    matches!(c, '\'' | '"' | '\\') || after_a_letter.escape_debug().all(|c| c != '\\')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths_name_fields_with_their_keys() {
        use FieldPathError::{Key, Unknown};
        assert_eq!(
            FieldPath::parse("metadata.labels['app.kubernetes.io/name']"),
            Ok(FieldPath::Label("app.kubernetes.io/name"))
        );
        assert_eq!(FieldPath::parse("metadata.annotations['A.b/C']"), Ok(FieldPath::Annotation("A.b/C")));
        assert_eq!(FieldPath::parse("metadata.uid"), Ok(FieldPath::Late(LateField::Uid)));
        for bad in [
            "",
            "metadata",
            "metadata.name ",
            "metadata.names",
            "metadata.name['x']",
            "metadata.labels['x",
            "metadata.labels[x]",
            "metadata.labels[\"x\"]",
            "spec.containers[0].image",
            "status.phase",
            "limits.cpu",
        ] {
            assert_eq!(FieldPath::parse(bad), Err(Unknown), "{bad}");
        }
        for bad in [
            "metadata.labels['']",
            "metadata.labels['a b']",
            "metadata.labels['a']['b']",
            "metadata.annotations['/x']",
        ] {
            assert!(matches!(FieldPath::parse(bad), Err(Key(_))), "{bad}");
        }
    }

    /// As `kubelet`'s tests have it, and the escapes of Go.
    #[test]
    fn labels_are_lines_as_kubernetes_writes_them() {
        let map = |pairs: &[(&str, &str)]| {
            lines(&pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
        };
        assert_eq!(map(&[]), "");
        assert_eq!(map(&[("b", "2"), ("a", "line\nbreak")]), "a=\"line\\nbreak\"\nb=\"2\"");
        let odd = "\"\\\u{7}\u{8}\u{c}\r\t\u{b}\u{1}\u{7f}ä'e\u{301}\u{a0}\u{200b}😀\u{e0001}";
        assert_eq!(
            map(&[("k", odd)]),
            "k=\"\\\"\\\\\\a\\b\\f\\r\\t\\v\\x01\\x7fä'e\u{301}\\u00a0\\u200b😀\\U000e0001\""
        );
    }

    proptest! {
        #[test]
        fn no_path_makes_it_panic(path in r"(metadata|spec|status)?\.?(labels|annotations|name|uid|podIP)?(\[')?[a-zA-Z./'\[\]]{0,20}('\])?") {
            if let Ok(FieldPath::Label(key) | FieldPath::Annotation(key)) = FieldPath::parse(&path) {
                prop_assert!(path.contains(key) && !key.contains('\''));
            }
        }

        #[test]
        fn a_quoted_text_is_one_line(text in any::<String>()) {
            let quoted = go_quoted(&text);
            prop_assert!(!quoted.chars().any(char::is_control));
            prop_assert!(quoted.len() >= text.len() + 2 || text.chars().any(|c| !is_printable(c)));
        }
    }
}
