//! Kubernetes manifests: as written (`k8s`) and as meant (`plan`). Pure: no file system, no process.
