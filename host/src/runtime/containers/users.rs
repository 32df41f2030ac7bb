//! Who a pod's users are on the host. Root gives each pod a range of ids of its own. A pod of an ordinary user has that user as its root, and as its
//! other users the subordinate ids that the host grants to him, or none.

use super::super::RuntimeError;
use super::ContainersError;
use super::errand::{Errand, run};
use super::ids::PodIds;
use crate::image::{Cancel, Image, ImageError, ImageStore, Owners, RootfsDirectory, UnpackedSummary};
use crate::jail::{self, SubordinateIds};
use crate::manifest::PodPlan;
use crate::manifest::plan;
use crate::store::layout::PodDir;
use crate::store::undo::Undo;
use crate::vmm::{Unavailable, find_program};
use magikvm_proto::sandbox::Users;
use nix::unistd::{User, geteuid};
use std::fs::File;
use std::io;
use std::path::Path;

/// Where the ids of a pod come from.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// Root, who can map any id.
    Root,
    /// The ids that the host grants to an ordinary user.
    Subordinate(SubordinateIds),
    /// The only id of an ordinary user, because of this.
    Single(String),
}

impl Source {
    pub(super) fn find() -> Self {
        if geteuid().is_root() {
            return Self::Root;
        }
        if let Some(missing) = SubordinateIds::PROGRAMS.into_iter().find(|name| find_program(name).is_none())
        {
            return Self::Single(format!("{missing} is not installed"));
        }
        match SubordinateIds::granted() {
            Ok(granted) => Self::Subordinate(granted),
            Err(why) => Self::Single(why),
        }
    }

    /// What gives an ordinary user more ids.
    pub(super) fn remedy() -> String {
        let user =
            User::from_uid(geteuid()).ok().flatten().map_or_else(|| "USER".to_owned(), |user| user.name);
        format!(
            "As root, install newuidmap with `apt-get install uidmap`, and grant ids with `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {user}`."
        )
    }

    /// Checks that the users and groups that the plan names exist in the pod.
    pub(super) fn check(&self, plan: &PodPlan, users: &[(String, u32)]) -> Result<(), ContainersError> {
        let (most_users, most_groups, why) = match self {
            Self::Root => return Ok(()),
            Self::Subordinate(granted) => {
                let (users, groups) = granted.counts();
                (users, groups, None)
            }
            Self::Single(why) => (1, 1, Some(why.as_str())),
        };
        let missing = |what: String, id: u32| ContainersError::NoSuchId {
            what,
            id,
            why: why.unwrap_or("the host grants fewer ids").to_owned(),
        };
        for (container, user) in users {
            if *user >= most_users {
                return Err(missing(format!("container {container}: user"), *user));
            }
        }
        for container in &plan.containers {
            if let Some(group) = container.security.run_as_group.filter(|group| *group >= most_groups) {
                return Err(missing(format!("container {}: group", container.name), group));
            }
        }
        let groups = plan.further_groups.iter().chain(&plan.volume_group);
        match groups.copied().find(|group| *group >= most_groups) {
            Some(group) => Err(missing("spec.securityContext: group".to_owned(), group)),
            None => Ok(()),
        }
    }
}

/// The setting that forbids everybody to make user namespaces: its file, the value that does so, and what sets another one.
const FOR_ALL: (&str, &str, &str) =
    ("/proc/sys/user/max_user_namespaces", "0", "user.max_user_namespaces=15000");

fn forbids((file, value, _): (&str, &str, &str)) -> bool {
    std::fs::read_to_string(file).is_ok_and(|found| found.trim() == value)
}

/// Checks that the kernel lets root make namespaces for pods with users of their own.
pub(super) fn probe_root() -> Result<(), Unavailable> {
    let (file, value, sets) = FOR_ALL;
    if !forbids(FOR_ALL) {
        return Ok(());
    }
    Err(Unavailable {
        reason: format!(
            "the host forbids user namespaces ({file} is {value}), and the pod has users of its own"
        ),
        remedy: format!("Run `sysctl -w {sets}`, or run the pod in a VM."),
    })
}

/// Checks that the kernel lets an ordinary user make namespaces.
pub(super) fn probe() -> Result<(), Unavailable> {
    const SETTINGS: [(&str, &str, &str); 3] = [
        FOR_ALL,
        ("/proc/sys/kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    for setting in SETTINGS {
        let (file, value, sets) = setting;
        if forbids(setting) {
            return Err(Unavailable {
                reason: format!(
                    "the host forbids ordinary users to make user namespaces ({file} is {value})"
                ),
                remedy: format!(
                    "As root, run `sysctl -w {sets}`, run the pod with `sudo`, or run it in a VM."
                ),
            });
        }
    }
    Ok(())
}

/// The users of one pod.
#[derive(Debug, Clone)]
pub(super) enum PodUsers {
    /// Those of the host.
    Host,
    Range(PodIds),
    Subordinate(SubordinateIds),
    Single,
}

impl PodUsers {
    /// `ids` is the directory in which root takes ranges.
    pub(super) fn reserve(
        source: &Source,
        wanted: plan::PodUsers,
        ids: &Path,
        pod: &PodDir,
        undo: &mut Undo,
    ) -> Result<Self, RuntimeError> {
        Ok(match (source, wanted) {
            (Source::Root, plan::PodUsers::Host) => Self::Host,
            (Source::Root, plan::PodUsers::Own) => Self::Range(PodIds::reserve(ids, pod.path(), undo)?),
            (Source::Subordinate(granted), _) => Self::Subordinate(*granted),
            (Source::Single(_), _) => Self::Single,
        })
    }

    pub(super) fn told(&self) -> Users {
        match self {
            Self::Host => Users::Host,
            Self::Range(ids) => Users::Own { root: ids.root() },
            Self::Subordinate(_) | Self::Single => Users::Caller,
        }
    }

    /// The host's id of the pod's root, where this process can give files to it.
    pub(super) fn root(&self) -> Option<u32> {
        match self {
            Self::Host => Some(0),
            Self::Range(ids) => Some(ids.root()),
            Self::Subordinate(_) | Self::Single => None,
        }
    }

    /// Maps the ids of a process that has just made a user namespace.
    pub(super) fn map(&self, pid: i32) -> Result<(), String> {
        match self {
            Self::Host => Err("the pod has the users of the host".to_owned()),
            Self::Range(ids) => ids.map(pid),
            Self::Subordinate(granted) => granted.map(pid),
            Self::Single => jail::map_caller(pid),
        }
    }

    /// The directory form of an image, with the owners that these users are to see, for those who cannot mount its EROFS file.
    pub(super) fn directory(
        &self,
        store: &ImageStore,
        image: &Image,
    ) -> Result<RootfsDirectory, RuntimeError> {
        let (cancel, quiet) = (Cancel::new(), |_| ());
        let made = match self {
            // The sandbox maps them to the range.
            Self::Host | Self::Range(_) => store.directory(image, Owners::AsInImage, &cancel, &quiet),
            Self::Single => store.directory(image, Owners::Mine, &cancel, &quiet),
            Self::Subordinate(granted) => {
                let unpack = |content: &Path| {
                    let errand =
                        Errand::Unpack { image: image.rootfs.path.clone(), into: content.to_owned() };
                    run(&errand, granted)
                        .map(|()| UnpackedSummary::default())
                        .map_err(|source| ImageError::Helper { path: content.to_owned(), source })
                };
                store.directory_made_by(image, &granted.name(), (&cancel, &quiet), &unpack)
            }
        };
        Ok(made.map_err(ContainersError::Unpack)?)
    }
}

/// Unpacks an image as root of a user namespace.
pub(super) fn unpack(image: &Path, into: &Path) -> io::Result<()> {
    let file = File::open(image)?;
    crate::image::unpack(&file, into, Owners::AsInImage, &Cancel::new()).map(drop).map_err(io::Error::other)
}
