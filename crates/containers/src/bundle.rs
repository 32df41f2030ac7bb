//! One container's OCI bundle: its overlay, and the host's `config.json` completed by what only the supervisor knows
//! (user ids, the cgroup, the shared PID namespace). Runs in forked copies of the spawner. Must not know:
//! the reactor, the wire.

use crate::cgroup::View;
use crate::devices;
use crate::env_file::{self, EnvFileError};
use crate::layer::{self, LayerError, Made};
use crate::message;
use crate::mounts::{self, Further, MountError};
use crate::rootfs;
use crate::sys::Users;
use crate::user::{self, IdMaps, Listed, UserError};
use libcontainer::oci_spec::runtime::{
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResources, Mount, Process, Spec,
};
use magikvm_proto::limits::MAX_PLAN_SIZE;
use magikvm_proto::plan::{ContainerPlan, ProcessNamespace, Rootfs, Stdio};
use magikvm_proto::security::{ImageGroups, Privilege};
use magikvm_proto::site::Site;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

/// Why a bundle can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BundleError {
    /// A file could not be read or written.
    #[error("cannot use {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A file system could not be mounted.
    #[error("cannot mount {}", path.display())]
    Mount {
        path: PathBuf,
        #[source]
        source: Errno,
    },
    /// The host's configuration is not valid OCI JSON.
    #[error("{} is not an OCI configuration", path.display())]
    Config {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    /// The configuration lacks something that every container needs.
    #[error("the OCI configuration has no {0}")]
    Missing(&'static str),
    #[error("the container has no writable layer")]
    Layer(#[from] LayerError),
    #[error(transparent)]
    EnvFile(#[from] EnvFileError),
    #[error(transparent)]
    User(#[from] UserError),
    #[error(transparent)]
    Mounts(#[from] MountError),
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> BundleError {
    let path = path.to_owned();
    move |source| BundleError::File { path, source }
}

/// Reads one OCI configuration.
pub(crate) fn load(path: &Path) -> Result<Spec, BundleError> {
    let cap = u64::try_from(MAX_PLAN_SIZE).unwrap_or(u64::MAX);
    let bytes = File::open(path).and_then(|file| rootfs::read_capped(file, cap)).map_err(file_error(path))?;
    serde_json::from_slice(&bytes).map_err(|source| BundleError::Config { path: path.to_owned(), source })
}

/// A bundle that libcontainer can make a container of, and what it does not set for it.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) spec: Spec,
    pub(crate) resources: LinuxResources,
}

/// Makes the bundle with an empty writable layer and its mounts. The layer of an earlier run is removed. The calling process is in a mount
/// namespace of its own afterwards.
pub(crate) fn prepare(
    site: &Site,
    plan: &ContainerPlan,
    users: Users,
    groups: Option<&[View]>,
    processes: ProcessNamespace,
) -> Result<Prepared, BundleError> {
    let bundle = site.bundle(&plan.name);
    let lower = match &plan.rootfs {
        Rootfs::Partition(partition) => site.image(*partition),
        Rootfs::Path(path) => path.clone(),
    };
    let root = mount_rootfs(site, plan, users, &bundle, &lower)?;
    let mut spec = load(&site.container_config(&plan.name))?;
    patch(&mut spec, plan, users, site, &root, processes)?;
    // In the supervisor's mount namespace, where it is read.
    let messages = site.messages(&plan.name);
    let message = message::make(site, &plan.name).map_err(file_error(&messages))?;
    let further = Further { users, groups, message: &message };
    mounts::make(site, plan, &mut spec, &bundle.join("rootfs"), further)?;
    let resources = spec.linux_mut().as_mut().and_then(|linux| linux.resources_mut().take());
    let config = bundle.join("config.json");
    let bytes =
        serde_json::to_vec(&spec).map_err(|source| BundleError::Config { path: config.clone(), source })?;
    // An exec of the run before may be reading it.
    let new = bundle.join("config.json.new");
    fs::write(&new, bytes).and_then(|()| fs::rename(&new, &config)).map_err(file_error(&config))?;
    Ok(Prepared { spec, resources: resources.unwrap_or_default() })
}

/// Nothing of a layer has to survive the VM, so that nothing of it is synced (`volatile`).
fn mount_rootfs(
    site: &Site,
    plan: &ContainerPlan,
    users: Users,
    bundle: &Path,
    lower: &Path,
) -> Result<OwnedFd, BundleError> {
    let rootfs = bundle.join("rootfs");
    umount2(&rootfs, MntFlags::MNT_DETACH).ok();
    fs::create_dir_all(&rootfs).map_err(file_error(&rootfs))?;
    let Made { upper, work } = layer::make(site, &plan.name, plan.layer, &bundle.join("layer"))?;
    rootfs::open_root(lower)
        .and_then(|image| rootfs::take_attributes(&image, &upper))
        .map_err(file_error(lower))?;
    let options = format!("{},volatile", rootfs::overlay_options(lower, &upper, &work, users));
    mount(Some("overlay"), &rootfs, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
        .map_err(|source| BundleError::Mount { path: rootfs.clone(), source })?;
    rootfs::open_root(&rootfs).map_err(file_error(&rootfs))
}

fn patch(
    spec: &mut Spec,
    plan: &ContainerPlan,
    users: Users,
    site: &Site,
    root: &OwnedFd,
    processes: ProcessNamespace,
) -> Result<(), BundleError> {
    spec.root_mut()
        .as_mut()
        .ok_or(BundleError::Missing("root"))?
        .set_path(site.bundle(&plan.name).join("rootfs"));
    // The pod's host name belongs to the supervisor's UTS namespace. libcontainer refuses a host name without a private UTS
    // namespace.
    spec.set_hostname(None).set_domainname(None);
    let process = spec.process_mut().as_mut().ok_or(BundleError::Missing("process"))?;
    env_file::fill(process, site, &plan.file_variables)?;
    patch_process(process, plan, users, root)?;
    if users == Users::Own {
        keep_oom_score(process);
        own_terminals(spec.mounts_mut().as_deref_mut().unwrap_or_default());
    }
    let linux = spec.linux_mut().as_mut().ok_or(BundleError::Missing("linux"))?;
    linux.set_cgroups_path(Some(PathBuf::from(site.container_cgroup(&plan.name))));
    if plan.privilege == Privilege::Privileged {
        linux.set_devices(Some(devices::all()));
    }
    let namespaces = linux.namespaces_mut().get_or_insert_default();
    let mut wanted = Vec::new();
    if processes == ProcessNamespace::Pod {
        namespaces.retain(|namespace| namespace.typ() != LinuxNamespaceType::Pid);
        wanted.push(LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Pid).path(site.pid_namespace()));
    } else if !namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Pid) {
        wanted.push(LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Pid));
    }
    // Without a private mount namespace a container could see and change the supervisor's root.
    if !namespaces.iter().any(|namespace| namespace.typ() == LinuxNamespaceType::Mount) {
        wanted.push(LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Mount));
    }
    for namespace in wanted {
        namespaces.push(namespace.build().map_err(|_| BundleError::Missing("namespace type"))?);
    }
    Ok(())
}

/// Only root of the host may make a process less likely to be killed than its parent is.
fn keep_oom_score(process: &mut Process) {
    let own = fs::read_to_string("/proc/self/oom_score_adj").ok().and_then(|text| text.trim().parse().ok());
    let wanted = process.oom_score_adj();
    process.set_oom_score_adj(wanted.max(own));
}

/// Terminals belong to a group that other users can write to (`tty`). Where it does not exist, they have the group of their user.
fn own_terminals(mounts: &mut [Mount]) {
    let maps = IdMaps::of_this_process();
    for mount in mounts.iter_mut().filter(|mount| mount.typ().as_deref() == Some("devpts")) {
        let exists = |option: &String| match option.strip_prefix("gid=").and_then(|gid| gid.parse().ok()) {
            Some(gid) => maps.check(0, [gid]).is_ok(),
            None => true,
        };
        let kept = mount.options().iter().flatten().filter(|option| exists(option)).cloned().collect();
        mount.set_options(Some(kept));
    }
}

fn patch_process(
    process: &mut Process,
    plan: &ContainerPlan,
    users: Users,
    root: &OwnedFd,
) -> Result<(), BundleError> {
    let read = |file: &str| {
        let path = Path::new(file);
        rootfs::read_file(root, path, user::MAX_USER_FILE)
            .map(Option::unwrap_or_default)
            .map_err(file_error(path))
    };
    let listed = match plan.image_groups {
        ImageGroups::Merge => Listed::Always,
        ImageGroups::Strict => Listed::Never,
    };
    let resolved = user::resolve(&plan.user, &read("/etc/passwd")?, &read("/etc/group")?, listed)?;
    let mut groups = resolved.groups;
    groups.extend(process.user().additional_gids().iter().flatten());
    groups.sort_unstable();
    groups.dedup();
    if users == Users::Own {
        IdMaps::of_this_process().check(resolved.uid, groups.iter().copied().chain([resolved.gid]))?;
    }
    process
        .user_mut()
        .set_uid(resolved.uid)
        .set_gid(resolved.gid)
        .set_additional_gids(Some(groups).filter(|g| !g.is_empty()));
    let env = process.env_mut().get_or_insert_default();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", resolved.home));
    }
    process.set_terminal(Some(plan.stdio == Stdio::Terminal));
    // The supervisor's own OOM protection must not pass to a container.
    if process.oom_score_adj().is_none() {
        process.set_oom_score_adj(Some(0));
    }
    // libcontainer takes an explicit `false` for "after the capabilities are dropped", when the kernel no longer allows
    // a seccomp filter.
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    if !process.cwd().is_absolute() {
        return Err(BundleError::Missing("absolute working directory"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::lifecycle::{Hooks, Probes, Restarts, Role, TerminationMessage};
    use magikvm_proto::plan::{Layer, Stdin};
    use magikvm_proto::service_directory::DirectoryAccess;
    use magikvm_proto::signal::Signal;

    fn plan(user: &str) -> ContainerPlan {
        ContainerPlan {
            name: "web".parse().unwrap(),
            rootfs: Rootfs::Partition(2),
            layer: Layer::Memory { size_bytes: None },
            user: user.to_owned(),
            image_groups: ImageGroups::Merge,
            privilege: Privilege::Confined,
            file_variables: Vec::new(),
            stdio: Stdio::Terminal,
            stdin: Stdin::Closed,
            stop_signal: Signal::TERM,
            mounts: Vec::new(),
            role: Role::Main,
            restarts: Restarts::default(),
            probes: Probes::default(),
            hooks: Hooks::default(),
            termination_message: TerminationMessage::default(),
            directory: DirectoryAccess::None,
            ports: Vec::new(),
        }
    }

    fn spec() -> Spec {
        let json = r#"{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"user":{"uid":0,"gid":0,"additionalGids":[9]},
            "args":["sh"],"env":["A=b"],"cwd":"/srv/data","noNewPrivileges":false},"linux":{"namespaces":[{"type":"pid"}]}}"#;
        serde_json::from_str(json).unwrap()
    }

    fn root() -> (tempfile::TempDir, OwnedFd) {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/passwd"), "web:x:5:6::/home/web:/bin/sh\n").unwrap();
        fs::write(dir.path().join("etc/group"), "more:x:7:web\n").unwrap();
        let root = rootfs::open_root(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn the_supervisor_fills_in_what_only_it_knows() {
        let (_dir, root) = root();
        let mut spec = spec();
        patch(&mut spec, &plan("web"), Users::Host, &Site::guest(), &root, ProcessNamespace::PerContainer)
            .unwrap();
        let process = spec.process().as_ref().unwrap();
        assert_eq!((process.user().uid(), process.user().gid()), (5, 6));
        assert_eq!(process.user().additional_gids(), &Some(vec![7, 9]));
        assert_eq!(process.env().as_ref().unwrap(), &["A=b", "HOME=/home/web"]);
        assert_eq!(
            (process.terminal(), process.oom_score_adj(), process.no_new_privileges()),
            (Some(true), Some(0), None)
        );
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_ref().unwrap(), Path::new("/pod/web"));
        let types: Vec<_> = linux.namespaces().as_ref().unwrap().iter().map(|n| n.typ()).collect();
        assert_eq!(types, [LinuxNamespaceType::Pid, LinuxNamespaceType::Mount]);
    }

    #[test]
    fn a_shared_process_namespace_is_joined_by_path() {
        let (_dir, root) = root();
        let mut spec = spec();
        patch(&mut spec, &plan(""), Users::Host, &Site::guest(), &root, ProcessNamespace::Pod).unwrap();
        let namespaces = spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
        let pids: Vec<_> = namespaces.iter().filter(|n| n.typ() == LinuxNamespaceType::Pid).collect();
        assert_eq!(pids.len(), 1);
        assert_eq!(pids[0].path().as_deref(), Some(Path::new("/run/pid-namespace")));
    }

    #[test]
    fn an_unknown_user_is_named() {
        let (_dir, root) = root();
        let error = patch(
            &mut spec(),
            &plan("ghost"),
            Users::Host,
            &Site::guest(),
            &root,
            ProcessNamespace::PerContainer,
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "user \"ghost\" is not in the image's /etc/passwd");
    }
}
