//! A container's variables: literal values, or values of the file's ConfigMaps and Secrets or of the Pod itself.

use super::checks::Build;
use super::downward::{Told, Use};
use super::k8s;
use super::names;
use super::objects::{Content, ObjectKind};
use super::plan::{EnvVar, FileKey};
use super::problem::quote;
use super::process::MAX_PROCESS_BYTES;
use super::volumes::Known;
use magikvm_proto::raised;
use magikvm_proto::variable::MAX_KEY_LEN;
use magikvm_proto::volume::check_sub_path;

/// The value of a variable.
enum Value {
    Told(Told),
    File(FileKey),
}

/// Variables of a container while they are collected.
#[derive(Default)]
struct Variables {
    list: Vec<EnvVar>,
    bytes: usize,
}

impl Build<'_> {
    /// The variables of the container at this path, those of `envFrom` first.
    pub(super) fn env(&mut self, at: &str, written: &k8s::Container, volumes: &Known) -> Vec<EnvVar> {
        let mut env = Variables::default();
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
                    Some(Value::Told(Told::Text(value)))
                }
                Some(_) if variable.value.as_deref().is_some_and(|value| !value.is_empty()) => {
                    self.problem(&format!("{at}.valueFrom"), "can't be beside `value`", "keep one of them");
                    None
                }
                Some(source) => {
                    self.value_from(&format!("{at}.valueFrom"), source, &written.resources, volumes)
                }
            };
            let Some(value) = value else { continue };
            let name = name.to_owned();
            let variable = match value {
                Value::Told(Told::Text(value)) => EnvVar { name, value, field: None, file: None },
                Value::Told(Told::Late(field)) => {
                    EnvVar { name, value: String::new(), field: Some(field), file: None }
                }
                Value::File(file) => EnvVar { name, value: String::new(), field: None, file: Some(file) },
            };
            self.add(&at, variable, &mut env);
        }
        let env = env.list;
        let max = raised::in_force().env_vars;
        if env.len() > max {
            let message = format!("has {} entries, at most {max} are allowed", env.len());
            self.problem(&format!("{at}.env"), message, raised::remedy("env-vars"));
        }
        env
    }

    /// Adds a variable, unless there are too many bytes of them for any process. That is reported once.
    fn add(&mut self, at: &str, variable: EnvVar, env: &mut Variables) {
        let before = env.bytes;
        env.bytes = before.saturating_add(variable.name.len() + variable.value.len());
        if env.bytes <= MAX_PROCESS_BYTES {
            env.list.push(variable);
        } else if before <= MAX_PROCESS_BYTES {
            let message = format!(
                "brings the variables of the container to {} bytes, at most {MAX_PROCESS_BYTES} are possible",
                env.bytes
            );
            self.problem(at, message, "mount large values as files");
        }
    }

    fn env_from(&mut self, at: &str, source: &k8s::EnvFrom, env: &mut Variables) {
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
                self.add(at, EnvVar { name, value, field: None, file: None }, env);
            }
        }
    }

    fn value_from(
        &mut self,
        at: &str,
        source: &k8s::ValueFrom,
        own: &k8s::Requirements,
        volumes: &Known,
    ) -> Option<Value> {
        let k8s::ValueFrom {
            config_map_key_ref,
            secret_key_ref,
            field_ref,
            resource_field_ref,
            file_key_ref,
        } = source;
        let at = |field: &str| format!("{at}.{field}");
        let others = [
            config_map_key_ref.is_some(),
            secret_key_ref.is_some(),
            field_ref.is_some(),
            resource_field_ref.is_some(),
        ];
        if let (Some(file), false) = (file_key_ref, others.contains(&true)) {
            return self.file_key(&at("fileKeyRef"), file, volumes).map(Value::File);
        }
        let told = match (config_map_key_ref, secret_key_ref, field_ref, resource_field_ref) {
            _ if file_key_ref.is_some() => self.one_source(&at("")),
            (Some(key), None, None, None) => {
                self.key_ref(&at("configMapKeyRef"), ObjectKind::ConfigMap, key).map(Told::Text)
            }
            (None, Some(key), None, None) => {
                self.key_ref(&at("secretKeyRef"), ObjectKind::Secret, key).map(Told::Text)
            }
            (None, None, Some(field), None) => {
                let told = self.field_ref(&at("fieldRef"), field, Use::Variable)?;
                let Told::Text(text) = told else { return Some(Value::Told(told)) };
                self.check(&at("fieldRef.fieldPath"), names::no_nul(&text));
                Some(Told::Text(escape(&text)))
            }
            (None, None, None, Some(resource)) => {
                self.resource_ref(&at("resourceFieldRef"), resource, Some(own))
            }
            _ => self.one_source(&at("")),
        };
        told.map(Value::Told)
    }

    fn one_source(&mut self, at: &str) -> Option<Told> {
        let message =
            "must have one of configMapKeyRef, secretKeyRef, fieldRef, resourceFieldRef and fileKeyRef";
        self.problem(at.trim_end_matches('.'), message, "");
        None
    }

    /// A key of a file in an emptyDir volume, which is read when the container is made.
    fn file_key(&mut self, at: &str, written: &k8s::FileKeyRef, volumes: &Known) -> Option<FileKey> {
        let (volume_at, path_at, key_at) =
            (format!("{at}.volumeName"), format!("{at}.path"), format!("{at}.key"));
        let volume = self.required(&volume_at, written.volume_name.as_deref());
        let path = self.required(&path_at, written.path.as_deref());
        let key = self.required(&key_at, written.key.as_deref());
        let (volume, path, key) = (volume?, path?, key?);
        self.check(&path_at, check_sub_path(path).map_err(|error| format!("{} {error}", quote(path))));
        let long = key.len() > MAX_KEY_LEN;
        let checked =
            if long { Err(format!("is longer than {MAX_KEY_LEN} bytes")) } else { names::env_name(key) };
        self.check(&key_at, checked);
        let Some(&(index, _)) = volumes.get(volume) else {
            let message = format!("there is no volume {}", quote(volume));
            self.problem(&volume_at, message, "volumes are in spec.volumes");
            return None;
        };
        let of_pod = &self.written.pod.spec.volumes;
        let is_empty_dir = of_pod.iter().any(|one| one.name.as_deref() == Some(volume) && one.is_empty_dir());
        if !is_empty_dir {
            let message = format!("{} is not an emptyDir", quote(volume));
            self.problem(&volume_at, message, "as in Kubernetes, only files of an emptyDir can be used");
        }
        Some(FileKey {
            volume: index,
            path: path.to_owned(),
            key: key.to_owned(),
            optional: written.optional,
        })
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

/// The text that expands to this text.
fn escape(text: &str) -> String {
    text.replace('$', "$$")
}
