//! Logins for the pulls of one Pod: its `imagePullSecrets`, which are Secrets beside it.

use super::checks::Build;
use super::objects::{Object, ObjectKind};
use super::plan::PullSecret;
use super::problem::quote;
use crate::image::{LoginFile, LoginFormat};
use std::path::Path;

/// Most pull secrets of one Pod.
const MAX_PULL_SECRETS: usize = 16;
/// Most bytes of all pull secrets of one Pod. They travel to the process that pulls.
const MAX_BYTES: usize = 1 << 20;
/// Why a Secret that is not there changes nothing, as on a cluster.
const MISSING: &str =
    "there is no such Secret beside the Pod; the logins of `podman login` and `docker login` are used";
const HINT: &str = "make it with `kubectl create secret docker-registry NAME … --dry-run=client -o yaml`";

/// The types of Secrets with logins, each with its key.
const FORMATS: [(&str, &str, LoginFormat); 2] = [
    ("kubernetes.io/dockerconfigjson", ".dockerconfigjson", LoginFormat::DockerConfigJson),
    ("kubernetes.io/dockercfg", ".dockercfg", LoginFormat::DockerCfg),
];

impl Build<'_> {
    /// The logins that the Pod names. Their content is in no message.
    pub(super) fn pull_secrets(&mut self) -> Vec<PullSecret> {
        let written = &self.written.pod.spec.image_pull_secrets;
        self.count("spec.imagePullSecrets", written.len(), MAX_PULL_SECRETS);
        let objects = self.objects;
        let mut found: Vec<PullSecret> = Vec::new();
        for (index, reference) in written.iter().enumerate().take(MAX_PULL_SECRETS) {
            let path = format!("spec.imagePullSecrets[{index}].name");
            let Some(name) = self.required(&path, reference.name.as_deref()) else { continue };
            if found.iter().any(|other| other.name == name) {
                continue;
            }
            match objects.get(ObjectKind::Secret, name) {
                None => self.report.ignore(MISSING, "spec.imagePullSecrets"),
                Some(secret) => found.extend(self.pull_secret(&path, name, secret)),
            }
        }
        let bytes: usize = found.iter().map(|secret| secret.content.bytes().len()).sum();
        if bytes > MAX_BYTES {
            let message = format!("are {bytes} bytes together, at most {MAX_BYTES} are allowed");
            self.problem("spec.imagePullSecrets", message, "");
        }
        found
    }

    fn pull_secret(&mut self, path: &str, name: &str, secret: &Object) -> Option<PullSecret> {
        let kind = secret.secret_type.as_deref().unwrap_or("Opaque");
        let Some((_, key, format)) = FORMATS.iter().find(|(known, ..)| *known == kind) else {
            let [(one, ..), (two, ..)] = FORMATS;
            let message = format!("Secret {} has the type {}, not {one} or {two}", quote(name), quote(kind));
            self.problem(path, message, HINT);
            return None;
        };
        let Some(content) = secret.data.get(*key) else {
            self.problem(path, format!("Secret {} has no key {}", quote(name), quote(key)), HINT);
            return None;
        };
        if let Err(error) = LoginFile::of_secret(content.bytes(), *format, Path::new(name)) {
            self.problem(path, error.to_string(), HINT);
            return None;
        }
        Some(PullSecret { name: name.to_owned(), format: *format, content: content.clone() })
    }
}
