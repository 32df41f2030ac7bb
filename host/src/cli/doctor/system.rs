//! Checks of what the kernel and the administrator allow this user: namespaces, ids, cgroups. VMs run without any of it, less isolated.

use super::check::Check;
use super::host::{Host, Package, User};

const BY_USERS: &str = "the isolation of VMs of ordinary users (the layers user, files, processes, ipc, hostname and network of the jail)";
const OWNERS: &str = "owners of files on hostPath volumes of ordinary users, apart from the user";
const LIMITS: &str = "limits of what the processes of a VM take from the host (the layer cgroup of the jail)";
/// Controllers that limits need.
const WANTED: [&str; 3] = ["cpu", "memory", "pids"];
/// Ids that a container may have.
const IDS: u64 = 65_536;
/// Where the ids of users usually begin.
const FIRST_ID: u64 = 100_000;
const UIDMAP: Package = Package {
    name: "uidmap",
    debian: Some("uidmap"),
    fedora: Some("shadow-utils"),
    arch: Some("shadow"),
    source: "newuidmap and newgidmap of https://github.com/shadow-maint/shadow",
};

/// Whether this user may create user namespaces, which VMs need for their isolation.
pub(super) fn user_namespaces(host: &Host) -> Check {
    user_namespaces_for(host, "user namespaces", BY_USERS)
}

/// The same for another purpose.
pub(super) fn user_namespaces_for(host: &Host, name: &'static str, needed_for: &'static str) -> Check {
    let number = |path| host.read(path).and_then(|text| text.parse::<u64>().ok());
    let sudo = host.sudo();
    let missing = |found: &str, remedy: String| Check::missing(name, needed_for, found, remedy);
    let setting = |key: &str, value: u32| format!("run `{sudo}sysctl -w {key}={value}`");
    let Some(max) = number("/proc/sys/user/max_user_namespaces") else {
        return missing("this kernel has no user namespaces", "run a kernel with CONFIG_USER_NS".to_owned());
    };
    if max == 0 {
        return missing("user.max_user_namespaces is 0", setting("user.max_user_namespaces", 15_000));
    }
    if host.user == User::Root {
        return Check::ok(name, format!("up to {max}; root may create them"));
    }
    if number("/proc/sys/kernel/unprivileged_userns_clone") == Some(0) {
        let key = "kernel.unprivileged_userns_clone";
        return missing(&format!("only root may create them ({key} is 0)"), setting(key, 1));
    }
    if number("/proc/sys/kernel/apparmor_restrict_unprivileged_userns").is_some_and(|value| value != 0) {
        let program = host.program.display();
        return missing(
            "AppArmor allows ordinary users to create them only in programs with a profile (kernel.apparmor_restrict_unprivileged_userns is 1)",
            format!(
                "give magikvm a profile: run `printf 'abi <abi/4.0>,\\nprofile magikvm \"{program}\" flags=(unconfined) {{\\n  userns,\\n}}\\n' | \
                 sudo tee /etc/apparmor.d/magikvm && sudo apparmor_parser -r /etc/apparmor.d/magikvm`"
            ),
        );
    }
    Check::ok(name, format!("up to {max}; ordinary users may create them"))
}

/// Whether this user has ids for the users of containers.
pub(super) fn subordinate_ids(host: &Host) -> Check {
    let name = "subordinate ids";
    let User::Ordinary { uid, name: user } = &host.user else {
        return Check::ok(name, "root does not need them");
    };
    // If a directory service provides the ids, only that service knows them.
    let service = host.read("/etc/nsswitch.conf").and_then(|text| {
        let value = text
            .lines()
            .find_map(|line| line.trim().strip_prefix("subid:").map(str::trim).map(str::to_owned));
        value.filter(|value| value != "files")
    });
    if let Some(service) = service {
        return Check::ok(name, format!("provided by {service} (/etc/nsswitch.conf)"));
    }
    let [uids, gids] = ["/etc/subuid", "/etc/subgid"].map(|path| Ids::of(host, path, *uid, user));
    if uids.own < IDS || gids.own < IDS {
        let (first, last) = (uids.free.max(gids.free), uids.free.max(gids.free) + IDS - 1);
        return Check::missing(
            name,
            OWNERS,
            format!("{user} has {} in /etc/subuid and {} in /etc/subgid, not {IDS} each", uids.own, gids.own),
            format!("run `sudo usermod --add-subuids {first}-{last} --add-subgids {first}-{last} {user}`"),
        );
    }
    match ["newuidmap", "newgidmap"].iter().find(|program| host.find(program).is_none()) {
        Some(program) => {
            Check::missing(name, OWNERS, format!("{program} is not in PATH"), host.install(&UIDMAP))
        }
        None => Check::ok(name, format!("{user} has {} for users and {} for groups", uids.own, gids.own)),
    }
}

/// Content of /etc/subuid or /etc/subgid.
struct Ids {
    /// How many this user has.
    own: u64,
    /// From here on nobody has any.
    free: u64,
}

impl Ids {
    fn of(host: &Host, path: &str, uid: u32, user: &str) -> Self {
        let text = host.read(path).unwrap_or_default();
        let ranges = text.lines().filter_map(|line| {
            let mut fields = line.trim().split(':');
            let (owner, first, count) = (fields.next()?, fields.next()?, fields.next()?);
            Some((owner, first.parse::<u64>().ok()?, count.parse::<u64>().ok()?))
        });
        let mut ids = Self { own: 0, free: FIRST_ID };
        for (owner, first, count) in ranges {
            if owner == user || owner == uid.to_string() {
                ids.own = ids.own.saturating_add(count);
            }
            ids.free = ids.free.max(first.saturating_add(count)).min(u64::from(u32::MAX) - IDS);
        }
        ids
    }
}

/// The hierarchies that are mounted.
#[derive(Debug, Default)]
pub(super) struct Cgroups {
    /// Version 2.
    pub(super) unified: Option<String>,
    /// Controllers of version 1.
    pub(super) old: Vec<String>,
}

impl Cgroups {
    /// Looks for these controllers.
    pub(super) fn of(host: &Host, controllers: &[&str]) -> Self {
        let mut found = Self::default();
        for line in host.read("/proc/self/mounts").unwrap_or_default().lines() {
            let fields: Vec<&str> = line.split_whitespace().collect();
            match fields[..] {
                [_, point, "cgroup2", ..] if found.unified.is_none() => {
                    found.unified = Some(point.to_owned())
                }
                [_, _, "cgroup", options, ..] => {
                    let wanted = options.split(',').filter(|option| controllers.contains(option));
                    found.old.extend(wanted.map(str::to_owned));
                }
                _ => {}
            }
        }
        found
    }
}

/// Which of them are not in this list.
fn lacking(controllers: &[String]) -> Vec<&'static str> {
    WANTED.into_iter().filter(|wanted| !controllers.iter().any(|there| there == wanted)).collect()
}

/// Whether this user may limit what pods use.
pub(super) fn cgroups(host: &Host) -> Check {
    let name = "cgroups";
    let found = Cgroups::of(host, &WANTED);
    let is_root = host.user == User::Root;
    let missing = |text: String, remedy: String| Check::missing(name, LIMITS, text, remedy);
    let boot = || "boot with systemd.unified_cgroup_hierarchy=1 on the kernel's command line".to_owned();
    match (&found.unified, found.old.is_empty()) {
        (None, true) => missing(
            "no cgroup file system is mounted".to_owned(),
            format!("run `{}mount -t cgroup2 none /sys/fs/cgroup`", host.sudo()),
        ),
        (Some(point), true) => unified(host, point),
        (unified, false) => {
            let form = if unified.is_some() { "hybrid" } else { "version 1 only" };
            let lacking = lacking(&found.old);
            if !lacking.is_empty() {
                missing(format!("{form}, without {}", lacking.join(", ")), boot())
            } else if is_root {
                Check::ok(name, format!("{form} ({} are version 1, for root only)", WANTED.join(", ")))
            } else {
                let text = format!(
                    "{form}: {} are version 1, which cannot be delegated to users",
                    WANTED.join(", ")
                );
                missing(text, boot())
            }
        }
    }
}

/// The controllers of a group of version 2.
pub(super) fn controllers(host: &Host, group: &str) -> Vec<String> {
    let text = host.read(&format!("{group}/cgroup.controllers")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// Version 2 alone.
fn unified(host: &Host, point: &str) -> Check {
    let name = "cgroups";
    let controllers = |path: &str| controllers(host, path);
    let User::Ordinary { uid, name: user } = &host.user else {
        let lacking = lacking(&controllers(point));
        return if lacking.is_empty() {
            Check::ok(name, format!("version 2, with {}", WANTED.join(", ")))
        } else {
            let found = format!("version 2, without {}", lacking.join(", "));
            Check::missing(
                name,
                LIMITS,
                found,
                "run a kernel that has them; if this is a container, delegate them to it",
            )
        };
    };
    let own = host.read("/proc/self/cgroup").unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    let of_manager = format!("{point}/user.slice/user-{uid}.slice/user@{uid}.service");
    let own = format!("{point}{}", own.trim_end_matches('/'));
    let owns = |dir: &str| host.owns(&format!("{dir}/cgroup.procs"));
    let delegated = [own, of_manager].into_iter().find(|dir| owns(dir)).map(|mut dir| {
        // A group within what is delegated has only the controllers that somebody has enabled for it.
        while let Some((above, _)) = dir.rsplit_once('/') {
            if above.len() <= point.len() || !owns(above) {
                break;
            }
            dir.truncate(above.len());
        }
        dir
    });
    let found = match delegated.map(|dir| lacking(&controllers(&dir))) {
        None => format!("version 2, but no cgroup is delegated to {user}"),
        Some(lacking) if !lacking.is_empty() => {
            format!("version 2, but these controllers are not delegated to {user}: {}", lacking.join(", "))
        }
        Some(_) => {
            return Check::ok(name, format!("version 2, with {} delegated to {user}", WANTED.join(", ")));
        }
    };
    let remedy = if host.exists("/run/systemd/system") {
        "run `sudo mkdir -p /etc/systemd/system/user@.service.d && printf '[Service]\\nDelegate=cpu cpuset io memory pids\\n' | \
         sudo tee /etc/systemd/system/user@.service.d/delegate.conf && sudo systemctl daemon-reload`, then log in again"
            .to_owned()
    } else {
        format!(
            "run as root `mkdir -p {point}/{user}/shell && chown {user} {point}/{user}{{,/shell}}{{,/cgroup.procs,/cgroup.subtree_control}}`, move a shell of {user} there with `echo PID >{point}/{user}/shell/cgroup.procs`, and start magikvm in it"
        )
    };
    Check::missing(name, LIMITS, found, remedy)
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::super::host::tests::Fake;
    use super::*;

    const MAX: (&str, &str) = ("/proc/sys/user/max_user_namespaces", "63432\n");
    const UNIFIED: (&str, &str) = ("/proc/self/mounts", "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid 0 0\n");

    fn remedy(check: Check) -> String {
        assert_eq!(check.state, State::Warn, "{check:?}");
        check.remedy.unwrap()
    }

    #[test]
    fn ubuntus_apparmor_keeps_users_from_namespaces_and_not_root() {
        let files = [
            MAX,
            ("/proc/sys/kernel/unprivileged_userns_clone", "1"),
            ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n"),
        ];
        let check = user_namespaces(&Fake::of_user(&files).host);
        assert!(check.found.contains("AppArmor"), "{check:?}");
        let remedy = remedy(check);
        assert!(
            remedy.contains(r#"profile magikvm "/usr/bin/magikvm" flags=(unconfined) {\n  userns,\n}"#),
            "{remedy}"
        );
        assert!(user_namespaces(&Fake::new(&files).host).is_ok());
    }

    #[test]
    fn each_way_to_forbid_namespaces_has_its_own_way_back() {
        let user = |files: &[(&str, &str)]| user_namespaces(&Fake::of_user(files).host);
        assert!(user(&[MAX]).is_ok());
        assert!(user(&[MAX, ("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "0")]).is_ok());
        let debian = user(&[MAX, ("/proc/sys/kernel/unprivileged_userns_clone", "0\n")]);
        assert_eq!(remedy(debian), "run `sudo sysctl -w kernel.unprivileged_userns_clone=1`");
        let off = [("/proc/sys/user/max_user_namespaces", "0\n")];
        assert_eq!(remedy(user(&off)), "run `sudo sysctl -w user.max_user_namespaces=15000`");
        assert_eq!(
            remedy(user_namespaces(&Fake::new(&off).host)),
            "run `sysctl -w user.max_user_namespaces=15000`"
        );
        assert!(remedy(user(&[])).contains("CONFIG_USER_NS"));
    }

    #[test]
    fn a_user_needs_as_many_ids_as_a_container_has() {
        let of = |subuid: &str, subgid: &str| {
            let fake = Fake::of_user(&[("/etc/subuid", subuid), ("/etc/subgid", subgid)]);
            fake.program("newuidmap");
            fake.program("newgidmap");
            subordinate_ids(&fake.host)
        };
        assert!(of("ada:100000:65536\n", "bob:1:1\nada:165536:65536\n").is_ok());
        assert!(of("ada:100000:32768\nada:200000:32768\n", "ada:100000:65536").is_ok());
        // Nobody's ids are given twice, and the ranges are the same for both.
        assert_eq!(
            remedy(of("bob:100000:65536\n", "bob:100000:65536\neve:165536:65536\n")),
            "run `sudo usermod --add-subuids 231072-296607 --add-subgids 231072-296607 ada`"
        );
        let few = of("ada:100000:1000", "ada:100000:65536");
        assert!(few.found.contains("ada has 1000 in /etc/subuid and 65536 in /etc/subgid"), "{few:?}");
        assert!(
            remedy(of("nonsense\nada:x:y\nada:18446744073709551615:18446744073709551615", ""))
                .contains("usermod")
        );
    }

    #[test]
    fn ids_need_programs_or_come_from_a_service_and_root_needs_none() {
        let files = [("/etc/subuid", "ada:100000:65536"), ("/etc/subgid", "ada:100000:65536")];
        let mut fake = Fake::of_user(&files);
        fake.put("/etc/os-release", "ID=debian");
        assert_eq!(remedy(subordinate_ids(&fake.host)), "run `sudo apt-get install uidmap`");
        fake.put("/etc/nsswitch.conf", "passwd: files sss\nsubid: sss\n");
        assert!(subordinate_ids(&fake.host).found.contains("provided by sss"));
        fake.host.user = User::Root;
        assert_eq!(subordinate_ids(&fake.host).found, "root does not need them");
    }

    #[test]
    fn a_users_own_id_stands_for_its_name() {
        let uid = nix::unistd::geteuid();
        let line = format!("{uid}:100000:65536");
        let fake = Fake::of_user(&[("/etc/subuid", &line), ("/etc/subgid", &line)]);
        fake.program("newuidmap");
        fake.program("newgidmap");
        assert!(subordinate_ids(&fake.host).is_ok());
    }

    #[test]
    fn version_2_belongs_to_root_and_to_users_who_were_given_it() {
        let top = ("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory hugetlb pids rdma misc\n");
        assert!(cgroups(&Fake::new(&[UNIFIED, top]).host).is_ok());
        let poor = Fake::new(&[UNIFIED, ("/sys/fs/cgroup/cgroup.controllers", "hugetlb cpu")]);
        assert!(cgroups(&poor.host).found.ends_with("without memory, pids"));

        let uid = nix::unistd::geteuid();
        let manager = format!("/sys/fs/cgroup/user.slice/user-{uid}.slice/user@{uid}.service");
        let (procs, list) = (format!("{manager}/cgroup.procs"), format!("{manager}/cgroup.controllers"));
        let session = ("/proc/self/cgroup", "0::/user.slice/user-1000.slice/session-2.scope\n");
        let files =
            [UNIFIED, top, session, ("/run/systemd/system/x", ""), (&procs, ""), (&list, "memory pids\n")];
        let fake = Fake::of_user(&files);
        let some = cgroups(&fake.host);
        assert!(some.found.ends_with("not delegated to ada: cpu"), "{some:?}");
        assert!(remedy(some).contains("Delegate=cpu cpuset io memory pids"));
        fake.put(&list, "cpu memory pids\n");
        assert!(cgroups(&fake.host).is_ok());
        assert!(cgroups(&Fake::of_other_user(&files).host).found.ends_with("no cgroup is delegated to ada"));
    }

    #[test]
    fn a_cgroup_of_ones_own_counts_and_without_systemd_root_must_give_it() {
        let files = [
            UNIFIED,
            ("/proc/self/cgroup", "0::/mine\n"),
            ("/sys/fs/cgroup/mine/cgroup.procs", ""),
            ("/sys/fs/cgroup/mine/cgroup.controllers", "cpu memory pids"),
        ];
        assert!(cgroups(&Fake::of_user(&files).host).is_ok());
        assert!(
            remedy(cgroups(&Fake::of_other_user(&files).host))
                .contains("chown ada /sys/fs/cgroup/ada{,/shell}{,/cgroup.procs")
        );
    }

    #[test]
    fn version_1_and_hybrids_are_for_root() {
        let line = |kind: &str| format!("cgroup /sys/fs/cgroup/{kind} cgroup rw,relatime,{kind} 0 0\n");
        let old: String = ["cpu", "memory", "pids", "devices"].iter().map(|kind| line(kind)).collect();
        let hybrid = format!("{old}cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n");
        let root = |mounts: &str| cgroups(&Fake::new(&[("/proc/self/mounts", mounts)]).host);
        assert!(root(&hybrid).is_ok() && root(&hybrid).found.starts_with("hybrid"));
        assert!(root(&old).is_ok() && root(&old).found.starts_with("version 1 only"));
        let user = cgroups(&Fake::of_user(&[("/proc/self/mounts", &hybrid)]).host);
        assert!(remedy(user).contains("systemd.unified_cgroup_hierarchy=1"));
        let poor = root(&line("cpu"));
        assert_eq!(poor.found, "version 1 only, without memory, pids");
        assert!(remedy(root("tmpfs /tmp tmpfs rw 0 0\n")).starts_with("run `mount -t cgroup2"));
    }
}
