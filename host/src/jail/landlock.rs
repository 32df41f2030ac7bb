//! Landlock: the file access rules enforced once more by another part of the kernel, and no TCP, no signals to other processes, no
//! abstract sockets.

use super::spec::{Access, HostNetwork, Inside, JailSpec, Procfs};
use landlock::{
    ABI, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use std::path::{Path, PathBuf};

/// The newest version whose rules are requested; older kernels support fewer.
const NEWEST: ABI = ABI::V6;

/// Restricts this process from now on, or says why it cannot.
pub(super) fn restrict(spec: &JailSpec, programs: &[PathBuf]) -> Result<(), String> {
    use landlock::Access as _;
    let reading = AccessFs::ReadFile | AccessFs::ReadDir;
    let all = AccessFs::from_all(NEWEST);
    let mut allowed: Vec<(&Path, BitFlags<AccessFs>)> = Vec::new();
    for mount in &spec.mounts {
        allowed.push((
            &mount.target,
            match mount.access {
                Access::ReadOnly => reading,
                Access::ReadWrite => all & !BitFlags::from(AccessFs::Execute),
            },
        ));
    }
    for device in &spec.devices {
        allowed.push((device, AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::IoctlDev));
    }
    if spec.procfs == Procfs::OwnProcesses {
        allowed.push((Path::new("/proc"), reading | AccessFs::WriteFile));
    }
    if matches!(spec.inside, Inside::Program { .. }) {
        allowed.extend(programs.iter().map(|path| (path.as_path(), reading | AccessFs::Execute)));
    }
    let wrong = |error: &dyn std::error::Error| error.to_string();
    let ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .and_then(|ruleset| match spec.network {
            HostNetwork::None => ruleset.handle_access(AccessNet::from_all(NEWEST)),
            HostNetwork::Kept => Ok(ruleset),
        })
        .and_then(|ruleset| ruleset.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create);
    let mut ruleset = ruleset.map_err(|error| wrong(&error))?;
    for (path, rights) in allowed {
        // A missing path needs no rule.
        let Ok(opened) = PathFd::new(path) else { continue };
        let rights = if path.is_dir() { rights } else { rights & AccessFs::from_file(NEWEST) };
        ruleset = ruleset.add_rule(PathBeneath::new(opened, rights)).map_err(|error| wrong(&error))?;
    }
    let status = ruleset.restrict_self().map_err(|error| wrong(&error))?;
    match status.ruleset {
        RulesetStatus::NotEnforced => Err("the kernel has no Landlock or does not enable it".to_owned()),
        RulesetStatus::PartiallyEnforced | RulesetStatus::FullyEnforced => Ok(()),
    }
}

/// The directories of a program and its libraries.
pub(super) fn programs(spec: &JailSpec) -> Vec<PathBuf> {
    match &spec.inside {
        Inside::Program { path, .. } => {
            super::files::libraries(path).into_iter().chain([path.clone()]).collect()
        }
        Inside::Verb(_) => Vec::new(),
    }
}
