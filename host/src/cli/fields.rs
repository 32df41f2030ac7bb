//! Field selectors as kubectl has them for pods: `status.phase=Running,metadata.namespace!=team`.

use super::labels::MAX_SELECTOR;
use serde_json::Value;
use std::str::FromStr;

/// The fields of a pod that the API server selects by, and that pods have here.
const FIELDS: [&str; 5] =
    ["metadata.name", "metadata.namespace", "spec.restartPolicy", "status.phase", "status.podIP"];

/// What fields have to be like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FieldSelector(Vec<Requirement>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Requirement {
    /// JSON pointer of the field.
    pointer: String,
    is_equal: bool,
    value: String,
}

/// Why a text is not a selector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FieldSelectorError {
    #[error("it is longer than {MAX_SELECTOR} bytes")]
    TooLong,
    #[error("{0:?} is neither FIELD=VALUE nor FIELD!=VALUE")]
    Form(String),
    #[error("pods are not selected by {0:?}, but by {fields}", fields = FIELDS.join(", "))]
    Field(String),
}

impl FieldSelector {
    /// Whether a core/v1 Pod fits. A field that is not there is like an empty one.
    pub(super) fn fits(&self, pod: &Value) -> bool {
        self.0.iter().all(|requirement| {
            let value = pod.pointer(&requirement.pointer).and_then(Value::as_str).unwrap_or_default();
            (value == requirement.value) == requirement.is_equal
        })
    }
}

impl FromStr for FieldSelector {
    type Err = FieldSelectorError;

    fn from_str(text: &str) -> Result<Self, FieldSelectorError> {
        if text.len() > MAX_SELECTOR {
            return Err(FieldSelectorError::TooLong);
        }
        text.split(',').map(requirement).collect::<Result<_, _>>().map(Self)
    }
}

fn requirement(text: &str) -> Result<Requirement, FieldSelectorError> {
    let (field, value) = text.split_once('=').ok_or_else(|| FieldSelectorError::Form(text.to_owned()))?;
    let (field, is_equal) = field.strip_suffix('!').map_or((field, true), |field| (field, false));
    // `==` is the same as `=`.
    let value = value.strip_prefix('=').filter(|_| is_equal).unwrap_or(value);
    let field = field.trim();
    if !FIELDS.contains(&field) {
        return Err(FieldSelectorError::Field(field.to_owned()));
    }
    let pointer = format!("/{}", field.replace('.', "/"));
    Ok(Requirement { pointer, is_equal, value: value.trim().to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn pods_are_chosen_by_their_fields() {
        let pod = json!({ "metadata": { "name": "web" }, "status": { "phase": "Running" } });
        let fits = |text: &str| text.parse::<FieldSelector>().unwrap().fits(&pod);
        for right in [
            "status.phase=Running",
            "status.phase==Running,metadata.name=web",
            "status.podIP!=10.0.0.1",
            "status.podIP=",
        ] {
            assert!(fits(right), "{right}");
        }
        for wrong in
            ["status.phase!=Running", "metadata.name=web,status.phase=Failed", "status.podIP=10.0.0.1"]
        {
            assert!(!fits(wrong), "{wrong}");
        }
        for (text, said) in [
            ("", "\"\" is neither FIELD=VALUE nor"),
            ("status.phase", "\"status.phase\" is neither"),
            ("spec.nodeName=a", "pods are not selected by \"spec.nodeName\", but by metadata.name,"),
            (&"a".repeat(5000), "longer than 4096"),
        ] {
            let error = text.parse::<FieldSelector>().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
