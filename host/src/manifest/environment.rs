//! A container's variables: literal values, or values of the file's ConfigMaps and Secrets or of the Pod itself.

use super::checks::Build;
use super::k8s;
use super::names;
use super::objects::{Content, ObjectKind};
use super::plan::{EnvVar, LateField};
use super::problem::quote;
use magikvm_proto::raised;

/// Fields that can be the value of a variable, beside [`LateField::TABLE`].
const FIELDS: &str = "metadata.name, metadata.namespace, metadata.labels['KEY'], metadata.annotations['KEY'], spec.serviceAccountName";

impl Build<'_> {
    /// The variables of the container at this path, those of `envFrom` first.
    pub(super) fn env(&mut self, at: &str, written: &k8s::Container) -> Vec<EnvVar> {
        let mut env = Vec::new();
        for (index, source) in written.env_from.iter().enumerate() {
            self.env_from(&format!("{at}.envFrom[{index}]"), source, &mut env);
        }
        for (index, variable) in written.env.iter().enumerate() {
            let at = format!("{at}.env[{index}]");
            let Some(name) = self.required(&format!("{at}.name"), variable.name.as_deref()) else { continue };
            self.check(&format!("{at}.name"), names::env_name(name));
            let value = match &variable.value_from {
                None => {
                    let value = variable.value.clone().unwrap_or_default();
                    self.check(&format!("{at}.value"), names::no_nul(&value));
                    Some(value)
                }
                Some(_) if variable.value.as_deref().is_some_and(|value| !value.is_empty()) => {
                    self.problem(&format!("{at}.valueFrom"), "can't be beside `value`", "keep one of them");
                    None
                }
                Some(source) => {
                    if let Some(field) = late(source) {
                        env.push(EnvVar { name: name.to_owned(), value: String::new(), field: Some(field) });
                        continue;
                    }
                    self.value_from(&format!("{at}.valueFrom"), source)
                }
            };
            env.extend(value.map(|value| EnvVar { name: name.to_owned(), value, field: None }));
        }
        let max = raised::in_force().env_vars;
        if env.len() > max {
            let message = format!("has {} entries, at most {max} are allowed", env.len());
            self.problem(&format!("{at}.env"), message, raised::remedy("env-vars"));
        }
        env
    }

    fn env_from(&mut self, at: &str, source: &k8s::EnvFrom, env: &mut Vec<EnvVar>) {
        let (kind, field, reference) = match (&source.config_map_ref, &source.secret_ref) {
            (Some(reference), None) => (ObjectKind::ConfigMap, "configMapRef", reference),
            (None, Some(reference)) => (ObjectKind::Secret, "secretRef", reference),
            _ => return self.problem(at, "must have one of configMapRef and secretRef", ""),
        };
        let path = format!("{at}.{field}.name");
        let Some(name) = self.required(&path, reference.name.as_deref()) else { return };
        let Some(object) = self.object(&path, kind, name, reference.optional) else { return };
        for (key, content) in &object.data {
            let name = format!("{}{key}", source.prefix);
            self.check(
                at,
                names::env_name(&name).map_err(|error| format!("the variable {} {error}", quote(&name))),
            );
            if let Some(value) = self.literal(at, key, content) {
                env.push(EnvVar { name, value, field: None });
            }
        }
    }

    fn value_from(&mut self, at: &str, source: &k8s::ValueFrom) -> Option<String> {
        match (&source.config_map_key_ref, &source.secret_key_ref, &source.field_ref) {
            (Some(key), None, None) => {
                self.key_ref(&format!("{at}.configMapKeyRef"), ObjectKind::ConfigMap, key)
            }
            (None, Some(key), None) => self.key_ref(&format!("{at}.secretKeyRef"), ObjectKind::Secret, key),
            (None, None, Some(field)) => self.field_ref(&format!("{at}.fieldRef.fieldPath"), field),
            _ => {
                self.problem(at, "must have one of configMapKeyRef, secretKeyRef and fieldRef", "");
                None
            }
        }
    }

    fn key_ref(&mut self, at: &str, kind: ObjectKind, reference: &k8s::KeyRef) -> Option<String> {
        let name = self.required(&format!("{at}.name"), reference.name.as_deref())?;
        let key = self.required(&format!("{at}.key"), reference.key.as_deref())?;
        let object = self.object(&format!("{at}.name"), kind, name, reference.optional)?;
        match object.data.get(key) {
            Some(content) => self.literal(&format!("{at}.key"), key, content),
            None if reference.optional => None,
            None => {
                self.problem(
                    &format!("{at}.key"),
                    format!("{kind} {} has no key {}", quote(name), quote(key)),
                    "",
                );
                None
            }
        }
    }

    fn field_ref(&mut self, path: &str, reference: &k8s::FieldRef) -> Option<String> {
        let field = self.required(path, reference.field_path.as_deref())?;
        let metadata = &self.written.pod.metadata;
        let in_quotes = |list: &str| field.strip_prefix(list)?.strip_prefix("['")?.strip_suffix("']");
        let value = if let Some(key) = in_quotes("metadata.labels") {
            metadata.labels.get(key).map(String::as_str).unwrap_or_default()
        } else if let Some(key) = in_quotes("metadata.annotations") {
            metadata.annotations.get(key).map(String::as_str).unwrap_or_default()
        } else {
            match field {
                "metadata.name" => metadata.name.as_deref().unwrap_or_default(),
                "metadata.namespace" => match metadata.namespace.as_deref() {
                    None | Some("") => "default",
                    Some(namespace) => namespace,
                },
                "spec.serviceAccountName" => {
                    let written = self.written.ignored("spec.serviceAccountName");
                    written.or_else(|| self.written.ignored("spec.serviceAccount")).unwrap_or("default")
                }
                _ => {
                    let late = LateField::TABLE.map(|(path, _)| path).join(", ");
                    let hint = format!("{FIELDS}, {late} can be used");
                    self.problem(path, format!("{} is not supported", quote(field)), hint);
                    return None;
                }
            }
        };
        self.check(path, names::no_nul(value));
        Some(escape(value))
    }

    /// A value that is used as it is, without expansion. It may be secret, so it is in no message.
    fn literal(&mut self, path: &str, key: &str, content: &Content) -> Option<String> {
        match std::str::from_utf8(content.bytes()) {
            Ok(text) if !text.contains('\0') => Some(escape(text)),
            _ => {
                let message = format!("the value of {} is not text that a process can be given", quote(key));
                self.problem(path, message, "mount it as a file");
                None
            }
        }
    }
}

/// The field whose value is known only when the VM is made.
fn late(source: &k8s::ValueFrom) -> Option<LateField> {
    let (None, None, Some(reference)) =
        (&source.config_map_key_ref, &source.secret_key_ref, &source.field_ref)
    else {
        return None;
    };
    let path = reference.field_path.as_deref()?;
    LateField::TABLE.iter().find(|(known, _)| *known == path).map(|&(_, field)| field)
}

/// The text that expands to this text.
fn escape(text: &str) -> String {
    text.replace('$', "$$")
}
