//! The part of the table that a name means, as users write names of fields.

use super::{ALIASES, ANNOTATIONS, Field, Shape, Status, all, did_you_mean, suggest};

/// The part of the table that somebody asks for.
#[derive(Debug)]
pub struct Topic {
    /// The rest of the name, if the field that is meant has no row of its own: the row above it holds for it.
    pub above: Option<String>,
    /// The field, and all below it.
    pub fields: Vec<&'static Field>,
    /// Annotations with their effects.
    pub annotations: Vec<(&'static str, &'static str)>,
}

/// A name that is no field.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a field of a v1 Pod")]
pub struct UnknownField {
    pub name: String,
    /// A guess, which may be empty.
    pub hint: String,
}

/// Names of the Pod itself, which may be before its fields.
const POD: [&str; 3] = ["pod", "pods", "po"];
const ANNOTATION_FIELD: &str = "metadata.annotations";
/// Longest name that is looked up.
const MAX_NAME_LEN: usize = 512;

/// Without the brackets of elements: `spec.containers[0].image` and `spec.containers[].image` are `spec.containers.image`.
fn plain(name: &str) -> String {
    let mut plain = String::new();
    let mut depth = 0_usize;
    for c in name.chars() {
        match c {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ if depth == 0 => plain.push(c),
            _ => {}
        }
    }
    plain
}

/// Whether `name` is `above` or a field below it.
fn is_below<'a>(name: &'a str, above: &str) -> Option<&'a str> {
    if above.is_empty() {
        return Some(name);
    }
    let rest = name.strip_prefix(above)?;
    if rest.is_empty() { Some(rest) } else { rest.strip_prefix('.') }
}

/// The name of the row for a field that has those of another object, see [`ALIASES`].
fn shared(name: &str) -> String {
    ALIASES.iter().fold(name.to_owned(), |name, (alias, of)| {
        match name.strip_prefix(&plain(alias)).filter(|rest| rest.starts_with('.')) {
            Some(rest) => plain(of) + rest,
            None => name,
        }
    })
}

/// The part of the table that this name means; empty for all of it.
pub fn topic(name: &str) -> Result<Topic, UnknownField> {
    let unknown = |hint: String| {
        let name = name.chars().take(MAX_NAME_LEN).collect();
        Err(UnknownField { name, hint })
    };
    if name.len() > MAX_NAME_LEN {
        return unknown(String::new());
    }
    let wanted = plain(name.trim().trim_matches('.'));
    let (first, rest) = wanted.split_once('.').unwrap_or((&wanted, ""));
    let wanted = if POD.contains(&first.to_ascii_lowercase().as_str()) { rest } else { &wanted };
    let annotation = is_below(wanted, ANNOTATION_FIELD).filter(|_| !wanted.is_empty());
    if let Some(key) = annotation.filter(|key| !key.is_empty()) {
        let annotations: Vec<_> = ANNOTATIONS.iter().filter(|(known, _)| *known == key).copied().collect();
        if annotations.is_empty() {
            return unknown(did_you_mean(key, ANNOTATIONS.iter().map(|(known, _)| *known)));
        }
        return Ok(Topic { above: None, fields: Vec::new(), annotations });
    }
    let wanted = shared(wanted);
    let wanted = wanted.as_str();
    let below = |above: &str| {
        let above = above.to_owned();
        all().filter(move |field| is_below(&plain(field.path), &above).is_some())
    };
    let mut fields: Vec<&Field> = below(wanted).collect();
    // An object that has the fields of another one, which are below that one.
    if let Some((_, of)) = ALIASES.iter().find(|(alias, _)| plain(alias) == wanted) {
        let of = plain(of);
        fields.extend(below(&of).filter(|field| plain(field.path) != of));
    }
    if !fields.is_empty() {
        let annotated = fields.iter().any(|field| field.path == ANNOTATION_FIELD);
        let annotations = if annotated { ANNOTATIONS.to_vec() } else { Vec::new() };
        return Ok(Topic { above: None, fields, annotations });
    }
    // The nearest field above it, and the key below that which is not known.
    let mut above = wanted;
    while let Some((parent, key)) = above.rsplit_once('.') {
        above = parent;
        let Some(field) = all().find(|field| plain(field.path) == parent) else { continue };
        let has_rows = matches!(field.shape, Shape::Object | Shape::Objects);
        if !has_rows && !matches!(field.status, Status::Supported) {
            return Ok(Topic {
                above: Some(wanted.to_owned()),
                fields: vec![field],
                annotations: Vec::new(),
            });
        }
        let schema =
            if field.shape == Shape::Objects { format!("{}[]", field.path) } else { field.path.to_owned() };
        return unknown(suggest(&schema, key).unwrap_or_default());
    }
    let (first, _) = wanted.split_once('.').unwrap_or((wanted, ""));
    unknown(suggest("", first).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(name: &str) -> Vec<&'static str> {
        topic(name).unwrap().fields.iter().map(|field| field.path).collect()
    }

    #[test]
    fn a_field_has_many_names() {
        for name in [
            "spec.containers[].image",
            "spec.containers.image",
            "pod.spec.containers.image",
            "Pods.spec.containers[3].image",
            " spec.containers.image ",
            ".spec.containers.image",
        ] {
            assert_eq!(paths(name), ["spec.containers[].image"], "{name}");
        }
        for name in ["spec.initContainers[0].image", "spec.initContainers.image"] {
            assert_eq!(paths(name), ["spec.containers[].image"], "{name}");
        }
        assert_eq!(
            paths("spec.containers.startupProbe.httpGet.path"),
            ["spec.containers[].livenessProbe.httpGet.path"]
        );
        assert_eq!(paths("pod").len(), all().count());
        assert_eq!(topic("").unwrap().annotations.len(), ANNOTATIONS.len());
    }

    #[test]
    fn a_field_has_those_below_it() {
        let found = paths("spec.dnsConfig");
        assert_eq!(found[0], "spec.dnsConfig");
        assert!(found.len() > 3 && found.iter().all(|path| path.starts_with("spec.dnsConfig")), "{found:?}");
        assert!(topic("spec.dnsConfig").unwrap().annotations.is_empty());
        let annotations = topic("metadata.annotations").unwrap();
        assert_eq!((annotations.fields.len(), annotations.annotations.len()), (1, ANNOTATIONS.len()));
        assert_eq!(topic("metadata.annotations.magikvm.dev/vcpus").unwrap().annotations.len(), 1);
        // Of an object that shares its rows, its own row comes first.
        assert_eq!(
            paths("spec.volumes.secret.items"),
            [
                "spec.volumes[].secret.items",
                "spec.volumes[].configMap.items[].key",
                "spec.volumes[].configMap.items[].path",
                "spec.volumes[].configMap.items[].mode",
                "spec.volumes[].configMap.items[].user"
            ]
        );
    }

    #[test]
    fn what_has_no_row_is_said_by_the_row_above_or_not_known() {
        let inside = topic("spec.affinity.nodeAffinity.x").unwrap();
        assert_eq!((inside.fields[0].path, inside.above.is_some()), ("spec.affinity", true));
        let hint = |name: &str| topic(name).unwrap_err().hint;
        assert_eq!(hint("spec.containers.imagee"), "did you mean `image`?");
        assert_eq!(hint("spec.container.image"), "did you mean `containers`?");
        assert_eq!(hint("pod.spek"), "did you mean `spec`?");
        assert_eq!(hint("metadata.annotations.magikvm.dev/vcpu"), "did you mean magikvm.dev/vcpus?");
        assert_eq!(hint("metadata.name.x"), "");
        assert_eq!(hint("nonsense.of.any.kind"), "");
        assert_eq!(hint(&"x".repeat(100_000)), "");
    }
}
