//! The host whose pods are tested.

use magikvm_tests::Pod;
use magikvm_tests::leaks::Holdings;
use magikvm_tests::user::Ordinary;
use magikvm_tests::virtual_machine::{Driver, VmHost};
use magikvm_tests::wait::time_factor;
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;
use std::time::Duration;

/// A host with one driver, and what the system held of it when it was new.
#[derive(Debug)]
pub(crate) struct Subject {
    host: VmHost,
    new: Holdings,
    pod: Option<&'static str>,
}

impl std::ops::Deref for Subject {
    type Target = VmHost;

    fn deref(&self) -> &VmHost {
        &self.host
    }
}

impl Subject {
    /// Waits for its turn.
    pub(crate) fn new(driver: Driver, pod: Option<&'static str>) -> Self {
        let host = match driver {
            Driver::ContainersUser => Ordinary::with_everything(driver).into_host(),
            _ => VmHost::with(driver),
        };
        let new = host.holdings();
        Self { host, new, pod }
    }

    /// The pod that the rows of its group share.
    #[track_caller]
    pub(crate) fn pod(&self) -> &'static str {
        self.pod.expect("a group whose rows share a pod")
    }

    /// Starts a pod with limits of disks, which an ordinary user has to do without.
    #[track_caller]
    pub(crate) fn start_with_disks(&self, pod: Pod) {
        let pod = match self.driver() {
            Driver::ContainersUser => pod.annotated("magikvm.dev/limits", "best-effort"),
            _ => pod,
        };
        self.start(&pod);
    }

    /// Gives a file or directory, but not what is in it, to the user who runs the pods.
    #[track_caller]
    pub(crate) fn give(&self, path: &Path) {
        let owner = fs::metadata(self.root()).expect("the state directory");
        chown(path, Some(owner.uid()), Some(owner.gid())).expect("change its owner");
    }

    /// The name of the VM's process in the state of a pod.
    pub(crate) fn vm_process(&self) -> &'static str {
        self.driver().processes()[0]
    }

    /// This number of seconds, or more on a host that is slow by design.
    pub(crate) fn seconds(&self, seconds: u64) -> Duration {
        Duration::from_secs(seconds) * time_factor()
    }

    /// The statuses of a pod's containers.
    #[track_caller]
    pub(crate) fn statuses(&self, pod: &str) -> Vec<Value> {
        let pod = self.inspect(pod).expect("the pod is there");
        pod["status"]["containerStatuses"].as_array().expect("it has containers").clone()
    }

    /// The logs of a container.
    #[track_caller]
    pub(crate) fn logs(&self, pod: &str, container: &str) -> String {
        self.cmd(["logs", pod, "-c", container]).ok().stdout
    }

    /// Fails the test unless the system holds of this host only what it held when it was new.
    #[track_caller]
    pub(crate) fn assert_as_new(&self) {
        self.assert_as_before(&self.new);
    }

    /// Removes all pods; fails the test unless nothing of them is left.
    #[track_caller]
    pub(crate) fn clear(&self) {
        for pod in self.cmd(["ps", "-q"]).ok().stdout.lines() {
            self.cmd(["rm", "-f", pod]).ok();
        }
        self.assert_as_new();
    }
}
