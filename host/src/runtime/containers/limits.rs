//! Limits that cannot be enforced for a pod: the host lacks a controller, or an ordinary user has no control group and can mount no disk.

use super::ContainersError;
use crate::jail;
use crate::manifest::fields::ANNOTATION_LIMITS;
use crate::manifest::plan::{LimitsKept, Resources, VolumeSource};
use crate::manifest::{self, PodPlan};
use std::borrow::Cow;
use std::fs;
use std::path::Path;

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

/// What the host has set aside of each size (Linux's Documentation/admin-guide/mm/hugetlbpage.rst).
const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages";

/// Refuses a pod that may use more huge pages than the host has in all, which no node could run.
pub(super) fn check_huge_pages(plan: &PodPlan) -> Result<(), ContainersError> {
    check_huge_pages_of(plan, Path::new(HUGE_PAGES))
}

fn check_huge_pages_of(plan: &PodPlan, pages: &Path) -> Result<(), ContainersError> {
    for (size, bytes) in manifest::huge_pages(&plan.containers).each() {
        let needed = bytes / size.bytes;
        let dir = pages.join(format!("hugepages-{}kB", size.bytes >> 10));
        let number = |file| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok();
        // The kernel makes the latter when they are used.
        let there = ["nr_hugepages", "nr_overcommit_hugepages"].into_iter().filter_map(number).sum::<u64>();
        if needed > there {
            return Err(ContainersError::HugePages { size: size.in_kubernetes, there, needed });
        }
    }
    Ok(())
}

pub(super) fn huge_pages_remedy(size: &str) -> String {
    format!(
        "As root, set some aside by {HUGE_PAGES}/…/nr_hugepages (those of 2Mi also by `sysctl -w vm.nr_hugepages=N`), or ask for less of {size}."
    )
}

/// Why amounts cannot be limited.
#[derive(Debug, Clone, Default)]
pub(super) struct Missing {
    cpu: Option<String>,
    memory: Option<String>,
    /// Of processes.
    pids: Option<String>,
    disk: Option<String>,
    huge_pages: Option<String>,
}

impl Missing {
    /// For a pod of root. `no_group` says why it has no control group.
    pub(super) fn of_root(no_group: Option<&str>) -> Self {
        no_group.map_or_else(Self::of_controllers, Self::of_everything)
    }

    /// For a pod of an ordinary user. `no_group` says why it has no control group.
    pub(super) fn of_user(no_group: Option<&str>) -> Self {
        Self { disk: Some(NO_DISK.to_owned()), ..Self::of_root(no_group) }
    }

    /// Of everything that control groups limit.
    fn of_everything(why: &str) -> Self {
        let why = Some(why.to_owned());
        Self { cpu: why.clone(), memory: why.clone(), pids: why.clone(), disk: None, huge_pages: why }
    }

    fn of_controllers() -> Self {
        let there = jail::controllers();
        let why = |name: &str| {
            let is_there = there.iter().any(|one| one == name);
            (!is_there).then(|| format!("there is no {name} controller in the control groups of the host"))
        };
        Self {
            cpu: why("cpu"),
            memory: why("memory"),
            pids: why("pids"),
            disk: None,
            huge_pages: why("hugetlb"),
        }
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
            for (size, _) in resources.huge_pages.each().iter().filter(|(_, bytes)| *bytes > 0) {
                if let Some(why) = &self.huge_pages {
                    found.push((format!("{whose}resources.limits.hugepages-{}", size.in_kubernetes), why));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest;

    #[test]
    fn a_pod_has_no_more_huge_pages_than_the_host() {
        let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  runtimeClassName: pod-containers\n  containers:\n  \
                    - {name: a, image: b, resources: {limits: {cpu: 1, hugepages-2Mi: 6Mi}}}\n";
        let plan = manifest::parse(text.as_bytes(), "x").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let said = check_huge_pages_of(&plan, dir.path()).unwrap_err().to_string();
        assert!(said.contains("the host has 0 huge pages of 2Mi, and the pod needs 3"), "{said}");
        let of_size = dir.path().join("hugepages-2048kB");
        fs::create_dir(&of_size).unwrap();
        fs::write(of_size.join("nr_hugepages"), "2\n").unwrap();
        let said = check_huge_pages_of(&plan, dir.path()).unwrap_err().to_string();
        assert!(said.contains("the host has 2 huge pages"), "{said}");
        fs::write(of_size.join("nr_overcommit_hugepages"), "1\n").unwrap();
        check_huge_pages_of(&plan, dir.path()).unwrap();
    }
}
