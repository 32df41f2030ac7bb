//! Manifests for tests.

use crate::virtual_machine::VCPUS;
use serde_json::{Value, json};

/// A Pod that is written as a file, with further documents. JSON is YAML too.
#[derive(Debug, Clone)]
pub struct Pod(Value, Vec<Value>);

impl Pod {
    /// A pod without containers yet, whose containers are not restarted.
    pub fn new(name: &str) -> Self {
        let pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": { "name": name },
            "spec": { "restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [] },
        });
        Self(pod, Vec::new())
    }

    /// A pod with one container `web`, for tests that do not care about containers.
    pub fn simple(name: &str) -> Self {
        Self::new(name).container("web", &["sleep", "1000"])
    }

    /// One more container of the image that every test host has.
    #[must_use]
    pub fn container(self, name: &str, command: &[&str]) -> Self {
        self.container_of(name, crate::host::IMAGE, command)
    }

    /// One more container of another image.
    #[must_use]
    pub fn container_of(mut self, name: &str, image: &str, command: &[&str]) -> Self {
        let container = json!({ "name": name, "image": image, "command": command });
        self.0["spec"]["containers"].as_array_mut().unwrap().push(container);
        self
    }

    /// One more init container of the usual image that runs a shell script; with `Always`, a sidecar.
    #[must_use]
    pub fn init_script(mut self, name: &str, script: &str, restart_policy: Option<&str>) -> Self {
        let mut container =
            json!({ "name": name, "image": crate::host::IMAGE, "command": ["sh", "-c", script] });
        if let Some(policy) = restart_policy {
            container["restartPolicy"] = policy.into();
        }
        let containers = &mut self.0["spec"]["initContainers"];
        if containers.is_null() {
            *containers = json!([]);
        }
        containers.as_array_mut().unwrap().push(container);
        self
    }

    /// Sets a field of the init container added last, its path separated by slashes.
    #[must_use]
    pub fn with_init(mut self, path: &str, value: impl Into<Value>) -> Self {
        let containers = self.0["spec"]["initContainers"].as_array_mut().expect("init containers");
        set(containers.last_mut().unwrap(), path, value.into());
        self
    }

    /// One more container of the usual image that runs a shell script.
    #[must_use]
    pub fn script(self, name: &str, script: &str) -> Self {
        self.container(name, &["sh", "-c", script])
    }

    /// Sets a field of the container added last, its path separated by slashes.
    #[must_use]
    pub fn with(mut self, path: &str, value: impl Into<Value>) -> Self {
        let container = self.0["spec"]["containers"].as_array_mut().unwrap().last_mut().expect("a container");
        set(container, path, value.into());
        self
    }

    /// Sets a field of the pod, its path separated by slashes.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        set(&mut self.0, path, value.into());
        self
    }

    /// Sets an annotation, unless it is there.
    #[must_use]
    pub fn annotated(mut self, name: &str, value: &str) -> Self {
        let annotation = &mut self.0["metadata"]["annotations"][name];
        if annotation.is_null() {
            *annotation = value.into();
        }
        self
    }

    /// Without the annotations about the size of its VM, for classes whose pods have none.
    #[must_use]
    pub fn without_size(mut self) -> Self {
        if let Some(annotations) = self.0["metadata"]["annotations"].as_object_mut() {
            annotations.retain(|name, _| !["magikvm.dev/memory-mib", VCPUS].contains(&name.as_str()));
        }
        self
    }

    #[must_use]
    pub fn volume(mut self, name: &str, source: Value) -> Self {
        let volumes = &mut self.0["spec"]["volumes"];
        if volumes.is_null() {
            *volumes = json!([]);
        }
        let mut volume = source;
        volume["name"] = name.into();
        volumes.as_array_mut().unwrap().push(volume);
        self
    }

    /// One more volume, mounted in the container added last. The text is the manifest's after the name.
    #[must_use]
    pub fn mount(mut self, volume: &str, path: &str, further: Value) -> Self {
        let container = self.0["spec"]["containers"].as_array_mut().unwrap().last_mut().expect("a container");
        let mounts = &mut container["volumeMounts"];
        if mounts.is_null() {
            *mounts = json!([]);
        }
        let mut mount = further;
        mount["name"] = volume.into();
        mount["mountPath"] = path.into();
        mounts.as_array_mut().unwrap().push(mount);
        self
    }

    /// One more document in the same file.
    #[must_use]
    pub fn beside(mut self, document: Value) -> Self {
        self.1.push(document);
        self
    }

    /// The name of the pod.
    pub fn name(&self) -> &str {
        self.0["metadata"]["name"].as_str().unwrap()
    }

    pub fn text(&self) -> String {
        let documents = std::iter::once(&self.0).chain(&self.1);
        let texts: Vec<String> =
            documents.map(|document| serde_json::to_string_pretty(document).unwrap()).collect();
        texts.join("\n---\n")
    }
}

fn set(mut at: &mut Value, path: &str, value: Value) {
    for key in path.split('/') {
        at = &mut at[key];
    }
    *at = value;
}
