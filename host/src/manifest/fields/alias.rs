//! Objects of a Pod that have the fields of another one, whose rows in the table count for both.

use std::borrow::Cow;

/// Fields whose own fields are those of another field, which has rows for them. An outer one stands before those inside it.
pub const ALIASES: [(&str, &str); 16] = [
    ("spec.initContainers[]", "spec.containers[]"),
    ("spec.containers[].readinessProbe", "spec.containers[].livenessProbe"),
    ("spec.containers[].startupProbe", "spec.containers[].livenessProbe"),
    ("spec.containers[].lifecycle.preStop", "spec.containers[].lifecycle.postStart"),
    ("spec.containers[].lifecycle.postStart.exec", "spec.containers[].livenessProbe.exec"),
    ("spec.containers[].lifecycle.postStart.httpGet", "spec.containers[].livenessProbe.httpGet"),
    ("spec.containers[].env[].valueFrom.secretKeyRef", "spec.containers[].env[].valueFrom.configMapKeyRef"),
    ("spec.containers[].envFrom[].secretRef", "spec.containers[].envFrom[].configMapRef"),
    ("spec.securityContext.seccompProfile", "spec.containers[].securityContext.seccompProfile"),
    ("spec.securityContext.appArmorProfile", "spec.containers[].securityContext.appArmorProfile"),
    ("spec.securityContext.seLinuxOptions", "spec.containers[].securityContext.seLinuxOptions"),
    ("spec.volumes[].secret.items[]", "spec.volumes[].configMap.items[]"),
    ("spec.volumes[].projected.sources[].configMap.items[]", "spec.volumes[].configMap.items[]"),
    ("spec.volumes[].projected.sources[].secret.items[]", "spec.volumes[].configMap.items[]"),
    ("spec.volumes[].projected.sources[].downwardAPI.items[]", "spec.volumes[].downwardAPI.items[]"),
    (
        "spec.volumes[].downwardAPI.items[].resourceFieldRef",
        "spec.containers[].env[].valueFrom.resourceFieldRef",
    ),
];

/// The path of the row for this path.
pub(super) fn resolved(path: &str) -> Cow<'_, str> {
    inside(path, |rest| rest.starts_with('.'))
}

/// As [`resolved`], for an object whose fields are looked for.
pub(super) fn resolved_object(path: &str) -> Cow<'_, str> {
    inside(path, |rest| rest.is_empty() || rest.starts_with('.'))
}

fn inside(path: &str, applies: fn(&str) -> bool) -> Cow<'_, str> {
    ALIASES.iter().fold(Cow::Borrowed(path), |path, (alias, of)| match path.strip_prefix(alias) {
        Some(rest) if applies(rest) => Cow::Owned(format!("{of}{rest}")),
        _ => path,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Shape, find};
    use super::*;

    #[test]
    fn fields_of_an_alias_are_those_of_what_it_stands_for() {
        assert_eq!(
            find("spec.initContainers[].image").map(|field| field.path),
            Some("spec.containers[].image")
        );
        assert_eq!(
            find("spec.initContainers[].readinessProbe.httpGet.port").map(|field| field.path),
            Some("spec.containers[].livenessProbe.httpGet.port")
        );
        assert_eq!(find("spec.initContainers[].imagee"), None);
        // The alias itself has a row of its own.
        for (alias, of) in ALIASES {
            let (row, shape) = match alias.strip_suffix("[]") {
                Some(list) => (list, Shape::Objects),
                None => (alias, Shape::Object),
            };
            assert_eq!(find(row).map(|field| (field.path, field.shape)), Some((row, shape)));
            assert!(find(of.trim_end_matches("[]")).is_some(), "{of}");
        }
        assert_eq!(
            resolved_object("spec.initContainers[].lifecycle.preStop"),
            "spec.containers[].lifecycle.postStart"
        );
        assert_eq!(resolved("spec.containers[].readinessProbes"), "spec.containers[].readinessProbes");
    }
}
