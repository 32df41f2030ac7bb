//! The profiles that confine a container: of seccomp and of AppArmor.

use super::checks::Build;
use super::k8s;
use super::plan::{AppArmor, RuntimeClass, Seccomp};
use super::problem::quote;
use magikvm_proto::volume::check_sub_path;

/// Annotations that the API server takes for a container's `appArmorProfile`.
pub(super) const APPARMOR_PREFIX: &str = "container.apparmor.security.beta.kubernetes.io/";
/// Longest path of a profile of seccomp below the directory of profiles, and longest name of a profile of AppArmor, in bytes.
const MAX_PROFILE: usize = 255;
/// What a name of AppArmor consists of beside letters and digits. `:` begins another namespace of policy, `&` joins profiles.
const NAME_CHARACTERS: &str = "._-+@%/";
const NO_APPARMOR: &str = "no AppArmor profile is enforced in a VM";
const APPARMOR_HINT: &str =
    "write a seccompProfile, run the pod in the class pod-containers, or leave it out";

/// A profile as written.
enum Choice<'v> {
    RuntimeDefault,
    Unconfined,
    /// Without a name only after a report.
    Localhost(Option<&'v str>),
}

impl Build<'_> {
    /// The system calls of a container whose security context is at `path`.
    pub(super) fn seccomp_of(&mut self, path: &str, written: &k8s::Profile) -> Seccomp {
        if !written.is_empty() {
            return self.seccomp(&format!("{path}.seccompProfile"), written);
        }
        let whole = self.written;
        let of_pod = &whole.pod.spec.security_context.seccomp_profile;
        self.seccomp("spec.securityContext.seccompProfile", of_pod)
    }

    fn seccomp(&mut self, path: &str, written: &k8s::Profile) -> Seccomp {
        let hint = "it is the path of a profile below the directory `seccomp` of the configuration";
        match self.choice(path, written, hint) {
            Some(Choice::Localhost(Some(file))) => {
                let checked = match file.len() > MAX_PROFILE {
                    true => Err("is too long".to_owned()),
                    false => check_sub_path(file).map_err(|error| format!("{} {error}", quote(file))),
                };
                self.check(&format!("{path}.localhostProfile"), checked);
                Seccomp::Localhost(file.to_owned())
            }
            Some(Choice::Unconfined) => {
                self.only_in_a_vm(&format!("{path}.type"));
                Seccomp::Unconfined
            }
            Some(Choice::RuntimeDefault | Choice::Localhost(None)) | None => Seccomp::RuntimeDefault,
        }
    }

    /// The AppArmor profile of a container: its own field, else its annotation, else the field of the pod, as in an API server.
    pub(super) fn app_armor_of(
        &mut self,
        name: Option<&str>,
        path: &str,
        written: &k8s::Profile,
    ) -> AppArmor {
        if !written.is_empty() {
            return self.app_armor(&format!("{path}.appArmorProfile"), written);
        }
        let whole = self.written;
        let annotations = &whole.pod.metadata.annotations;
        let annotated = name.and_then(|name| annotations.get(&format!("{APPARMOR_PREFIX}{name}")));
        match annotated.and_then(|value| of_annotation(value)) {
            Some(AppArmor::Unset) | None => {
                let of_pod = &whole.pod.spec.security_context.app_armor_profile;
                self.app_armor("spec.securityContext.appArmorProfile", of_pod)
            }
            Some(annotated) => annotated,
        }
    }

    fn app_armor(&mut self, path: &str, written: &k8s::Profile) -> AppArmor {
        match self.choice(path, written, "it is the name of a profile that the host has loaded") {
            None => AppArmor::Unset,
            Some(Choice::RuntimeDefault) => AppArmor::RuntimeDefault,
            Some(Choice::Unconfined) => AppArmor::Unconfined,
            Some(Choice::Localhost(name)) => {
                if self.has_app_armor() {
                    self.check(&format!("{path}.localhostProfile"), check_name(name.unwrap_or("x")));
                } else {
                    let message = format!("\"Localhost\" is not supported: {NO_APPARMOR}");
                    self.problem(&format!("{path}.type"), message, APPARMOR_HINT);
                }
                name.map_or(AppArmor::RuntimeDefault, |name| AppArmor::Localhost(name.to_owned()))
            }
        }
    }

    pub(super) fn check_app_armor_annotation(&mut self, path: &str, value: &str) {
        match of_annotation(value) {
            Some(AppArmor::Localhost(_)) if !self.has_app_armor() => {
                let message = format!("{} is not supported: {NO_APPARMOR}", quote(value));
                self.problem(path, message, APPARMOR_HINT);
            }
            Some(AppArmor::Localhost(name)) => self.check(path, check_name(&name)),
            Some(_) => {}
            None => {
                let message =
                    format!("{} is not one of runtime/default, unconfined, localhost/NAME", quote(value));
                self.problem(path, message, "");
            }
        }
    }

    /// Whether a container may have a profile of the host.
    fn has_app_armor(&self) -> bool {
        self.class == RuntimeClass::PodContainers
    }

    /// What is written, unless it is nothing. `hint` says what a missing `localhostProfile` is.
    fn choice<'v>(&mut self, path: &str, written: &'v k8s::Profile, hint: &str) -> Option<Choice<'v>> {
        if written.is_empty() {
            return None;
        }
        #[derive(Clone, Copy, PartialEq)]
        enum Kind {
            RuntimeDefault,
            Localhost,
            Unconfined,
        }
        let table = [
            ("RuntimeDefault", Kind::RuntimeDefault),
            ("Localhost", Kind::Localhost),
            ("Unconfined", Kind::Unconfined),
        ];
        let (type_at, name_at) = (format!("{path}.type"), format!("{path}.localhostProfile"));
        let name = written.localhost_profile.as_deref().filter(|name| !name.is_empty());
        let kind = self.required(&type_at, written.kind.as_deref().filter(|kind| !kind.is_empty()));
        let kind = self.one_of(&type_at, kind, Kind::RuntimeDefault, &table);
        match (kind, name) {
            (Kind::Localhost, None) => self.problem(&name_at, "is missing", hint),
            (Kind::RuntimeDefault | Kind::Unconfined, Some(_)) => {
                self.problem(&name_at, "is only for the type Localhost", "leave it out");
            }
            (Kind::Localhost, Some(_)) | (Kind::RuntimeDefault | Kind::Unconfined, None) => {}
        }
        Some(match kind {
            Kind::RuntimeDefault => Choice::RuntimeDefault,
            Kind::Unconfined => Choice::Unconfined,
            Kind::Localhost => Choice::Localhost(name),
        })
    }
}

/// What the value of an annotation asks for, if it is one.
fn of_annotation(value: &str) -> Option<AppArmor> {
    match value {
        "" => Some(AppArmor::Unset),
        "runtime/default" => Some(AppArmor::RuntimeDefault),
        "unconfined" => Some(AppArmor::Unconfined),
        other => other.strip_prefix("localhost/").map(|name| AppArmor::Localhost(name.to_owned())),
    }
}

/// Checks that the text can only be the name of one profile.
fn check_name(name: &str) -> Result<(), String> {
    let is_fine = |c: char| c.is_ascii_alphanumeric() || NAME_CHARACTERS.contains(c);
    match name.chars().find(|&c| !is_fine(c)) {
        _ if name.is_empty() => Err("names no profile".to_owned()),
        _ if name.len() > MAX_PROFILE => {
            Err(format!("has {} characters, at most {MAX_PROFILE} are allowed", name.len()))
        }
        Some(odd) => Err(format!("{} is not the name of a profile: it contains {odd:?}", quote(name))),
        // The kernel takes it for the absence of a profile, which has a type of its own.
        None if name == "unconfined" => Err("\"unconfined\" is the type Unconfined".to_owned()),
        None => Ok(()),
    }
}
