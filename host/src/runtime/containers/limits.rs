//! Limits that cannot be enforced for a pod of an ordinary user, who may have no control group and can mount no disk.

use super::ContainersError;
use crate::manifest::PodPlan;
use crate::manifest::fields::ANNOTATION_LIMITS;
use crate::manifest::plan::{LimitsKept, Resources, VolumeSource};

const NO_DISK: &str = "only root can mount the disk that it needs";

pub(super) fn remedy() -> String {
    format!(
        "Run the pod with `sudo` or in a VM, or accept that nothing enforces the limit with the annotation `{ANNOTATION_LIMITS}: best-effort`."
    )
}

/// `no_group` says why the pod has no control group. Refuses limits, or returns a warning for each if the pod accepts that.
pub(super) fn check(plan: &PodPlan, no_group: Option<&str>) -> Result<Vec<String>, ContainersError> {
    let mut found: Vec<(String, &str)> = Vec::new();
    let mut add = |whose: &str, resources: &Resources| {
        let amounts = [
            ("cpu", resources.cpu_limit_millis, no_group),
            ("memory", resources.memory_limit_bytes, no_group),
            ("ephemeral-storage", resources.disk_limit_bytes, Some(NO_DISK)),
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
        if let VolumeSource::Disk { size_bytes: Some(_) } = volume.source {
            found.push((format!("volume {}: emptyDir.sizeLimit", volume.name), NO_DISK));
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
