//! Limits that cannot be enforced for a pod: the host lacks a controller, or an ordinary user has no control group and can mount no disk.

use super::ContainersError;
use crate::jail;
use crate::manifest::PodPlan;
use crate::manifest::fields::ANNOTATION_LIMITS;
use crate::manifest::plan::{LimitsKept, Resources, VolumeSource};
use std::borrow::Cow;

const NO_DISK: &str = "only root can mount the disk that it needs";

pub(super) fn remedy(is_root: bool) -> String {
    let accept = format!(
        "accept that nothing enforces the limit with the annotation `{ANNOTATION_LIMITS}: best-effort`"
    );
    match is_root {
        true => format!("Run the pod in a VM, or {accept}."),
        false => format!("Run the pod with `sudo` or in a VM, or {accept}."),
    }
}

/// Why amounts cannot be limited.
#[derive(Debug, Clone, Default)]
pub(super) struct Missing {
    cpu: Option<String>,
    memory: Option<String>,
    /// Of processes.
    pids: Option<String>,
    disk: Option<String>,
}

impl Missing {
    /// For a pod of root. `no_group` says why it has no control group.
    pub(super) fn of_root(no_group: Option<&str>) -> Self {
        match no_group.map(str::to_owned) {
            Some(why) => {
                Self { cpu: Some(why.clone()), memory: Some(why.clone()), pids: Some(why), disk: None }
            }
            None => Self { disk: None, ..Self::of_controllers() },
        }
    }

    /// For a pod of an ordinary user. `no_group` says why it has no control group.
    pub(super) fn of_user(no_group: Option<&str>) -> Self {
        let disk = Some(NO_DISK.to_owned());
        match no_group.map(str::to_owned) {
            Some(why) => Self { cpu: Some(why.clone()), memory: Some(why.clone()), pids: Some(why), disk },
            None => Self { disk, ..Self::of_controllers() },
        }
    }

    fn of_controllers() -> Self {
        let there = jail::controllers();
        let why = |name: &str| {
            let is_there = there.iter().any(|one| one == name);
            (!is_there).then(|| format!("there is no {name} controller in the control groups of the host"))
        };
        Self { cpu: why("cpu"), memory: why("memory"), pids: why("pids"), disk: None }
    }

    /// Refuses limits, or returns a warning for each if the pod accepts that.
    pub(super) fn check(&self, plan: &PodPlan) -> Result<Vec<String>, ContainersError> {
        let mut found: Vec<(String, &str)> = Vec::new();
        let mut add = |whose: &str, resources: &Resources| {
            let amounts = [
                ("cpu", resources.cpu_limit_millis, &self.cpu),
                ("memory", resources.memory_limit_bytes, &self.memory),
                ("ephemeral-storage", resources.disk_limit_bytes, &self.disk),
            ];
            for (name, amount, why) in amounts {
                if let (Some(_), Some(why)) = (amount, why) {
                    found.push((format!("{whose}resources.limits.{name}"), why));
                }
            }
        };
        for container in &plan.containers {
            add(&format!("container {}: ", container.name), &container.resources);
        }
        add("spec.", &plan.resources);
        for volume in &plan.volumes {
            if let (VolumeSource::Disk { size_bytes: Some(_) }, Some(why)) = (&volume.source, &self.disk) {
                found.push((format!("volume {}: emptyDir.sizeLimit", volume.name), why));
            }
        }
        let mut found = found.into_iter();
        match plan.limits_kept {
            LimitsKept::Enforced => match found.next() {
                Some((what, why)) => Err(ContainersError::Limit { what, why: why.to_owned() }),
                None => Ok(Vec::new()),
            },
            LimitsKept::BestEffort => {
                Ok(found.map(|(what, why)| format!("{what} is not enforced: {why}")).collect())
            }
        }
    }

    /// What nobody asked for and every pod has otherwise.
    pub(super) fn implied(&self) -> Option<String> {
        self.pids.as_ref().map(|why| format!("nothing limits how many processes the pod has: {why}"))
    }

    /// The plan without the limits that are not enforced, for whom they would be an error.
    pub(super) fn without<'a>(&self, plan: &'a PodPlan) -> Cow<'a, PodPlan> {
        if self.cpu.is_none() && self.memory.is_none() {
            return Cow::Borrowed(plan);
        }
        let mut plan = plan.clone();
        let all = plan.containers.iter_mut().map(|container| &mut container.resources);
        for resources in all.chain([&mut plan.resources]) {
            if self.cpu.is_some() {
                resources.cpu_limit_millis = None;
            }
            if self.memory.is_some() {
                resources.memory_limit_bytes = None;
            }
        }
        Cow::Owned(plan)
    }
}
