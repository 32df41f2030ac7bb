//! The annotation that lets containers ask the pod's service directory.

use super::build::listed;
use super::checks::Build;
use super::fields::{ANNOTATION_SERVICE_DIRECTORY, did_you_mean};
use super::k8s;
use super::problem::{path_key, quote};
use magikvm_proto::id::ContainerName;
use magikvm_proto::limits::MAX_LISTED_PORTS;
use magikvm_proto::service_directory::MOUNT;
use magikvm_proto::volume::names;

impl Build<'_> {
    /// The containers that may ask it. Names that are not valid were reported where the containers are read.
    pub(super) fn service_directory(&mut self) -> Vec<ContainerName> {
        let (metadata, spec) = (&self.written.pod.metadata, &self.written.pod.spec);
        let Some(text) = metadata.annotations.get(ANNOTATION_SERVICE_DIRECTORY) else { return Vec::new() };
        let at = format!("metadata.annotations.{}", path_key(ANNOTATION_SERVICE_DIRECTORY));
        let known: Vec<&str> = listed(spec).filter_map(|(_, _, one)| one.name.as_deref()).collect();
        let mut members: Vec<ContainerName> = Vec::new();
        for word in text.split(',').map(str::trim) {
            if !known.contains(&word) {
                let meant = did_you_mean(word, known.iter().copied());
                let hint = if meant.is_empty() { format!("there are {}", known.join(", ")) } else { meant };
                self.problem(&at, format!("the pod has no container {}", quote(word)), hint);
            } else if let Ok(name) = word.parse::<ContainerName>() {
                if members.contains(&name) {
                    self.problem(&at, format!("names {} twice", quote(word)), "");
                } else {
                    members.push(name);
                }
            }
        }
        for (list, index, container) in listed(spec) {
            let at = list.at(index);
            if container.ports.len() > MAX_LISTED_PORTS {
                let message = format!(
                    "has {} entries, at most {MAX_LISTED_PORTS} are allowed in a pod with a service directory",
                    container.ports.len()
                );
                self.problem(&format!("{at}.ports"), message, "");
            }
            if members.iter().any(|name| container.name.as_deref() == Some(name.as_str())) {
                self.keep_directory_free(&at, container);
            }
        }
        members
    }

    /// Nothing else can be mounted where the container finds the socket.
    fn keep_directory_free(&mut self, at: &str, container: &k8s::Container) {
        let mounts = container.volume_mounts.iter().enumerate().map(|(index, mount)| {
            (format!("{at}.volumeMounts[{index}].mountPath"), mount.mount_path.as_deref())
        });
        let message = (format!("{at}.terminationMessagePath"), container.termination_message_path.as_deref());
        for (field, path) in mounts.chain([message]) {
            let Some(path) = path.filter(|path| is_within(path)) else { continue };
            let message =
                format!("{} is in {MOUNT}, where the container finds the service directory", quote(path));
            self.problem(&field, message, "choose another path");
        }
    }
}

fn is_within(path: &str) -> bool {
    let mut names = names(path);
    self::names(MOUNT).all(|name| names.next() == Some(name))
}

#[cfg(test)]
mod tests {
    use crate::manifest;

    fn parsed(annotation: &str, fields: &str) -> Result<Vec<String>, String> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: shop\n  annotations:\n    magikvm.dev/service-directory: '{annotation}'\n\
             spec:\n  volumes: [{{name: data, emptyDir: {{}}}}]\n  initContainers: [{{name: init, image: busybox}}]\n  \
             containers:\n  - {{name: worker, image: busybox}}\n  - name: web\n    image: busybox\n{fields}"
        );
        match manifest::parse(text.as_bytes(), "pod.yaml") {
            Ok(plan) => Ok(plan.service_directory.iter().map(ToString::to_string).collect()),
            Err(problems) => Err(problems.to_string()),
        }
    }

    #[test]
    fn containers_of_any_kind_are_named() {
        assert_eq!(parsed("web", "").unwrap(), ["web"]);
        assert_eq!(parsed(" web, init ", "").unwrap(), ["web", "init"]);
        let elsewhere =
            "    volumeMounts: [{name: data, mountPath: /run}, {name: data, mountPath: /run/magikvm2}]\n";
        assert_eq!(parsed("web", elsewhere).unwrap(), ["web"]);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_line() {
        let ports: Vec<String> = (1..=65).map(|port| format!("{{containerPort: {port}}}")).collect();
        let ports = format!("    ports: [{}]\n", ports.join(", "));
        let within = "    volumeMounts: [{name: data, mountPath: /run/./magikvm/x}]\n";
        for (annotation, fields, line, expected) in [
            ("wep", "", 6, "service-directory: the pod has no container \"wep\""),
            ("wep", "", 6, "did you mean web?"),
            ("database", "", 6, "there are init, worker, web"),
            ("web,", "", 6, "the pod has no container \"\""),
            ("web,web", "", 6, "names \"web\" twice"),
            ("worker", &ports, 14, "spec.containers[1].ports: has 65 entries, at most 64"),
            ("web", within, 14, "volumeMounts[0].mountPath: \"/run/./magikvm/x\" is in /run/magikvm"),
            ("web", "    terminationMessagePath: /run/magikvm/end\n", 14, "where the container finds"),
        ] {
            let problems = parsed(annotation, fields).unwrap_err();
            assert!(
                problems.contains(expected) && problems.contains(&format!("pod.yaml:{line}:")),
                "{expected}: {problems}"
            );
        }
        assert_eq!(parsed("worker", within).unwrap(), ["worker"], "only where the socket is");
    }
}
