//! Checks of what pods of the class pod-containers need: the user, the program, control groups, and what a trial of the sandbox's program finds. None of
//! it is needed by pods in VMs.

use super::check::Check;
use super::host::{Host, Package, User};
use super::system::{Cgroups, controllers, user_namespaces_for};
use crate::runtime::containers::apparmor::{self, Caller, Support};
use crate::runtime::containers::program;
use crate::runtime::containers::trial::{self, Tried};
use crate::store::text::chain;
use crate::vmm::Unavailable;
use magikvm_proto::sandbox::Feature;
use std::path::{Path, PathBuf};

const CLASS: &str = "pods of the class pod-containers, which run without a VM";
const CGROUPS: &str = "pod-containers: cgroups";
const APPARMOR: &str = "pod-containers: AppArmor";
const PROFILES: &str = "AppArmor profiles of containers in pods of the class pod-containers";
const PARSER: Package = Package {
    name: apparmor::PARSER,
    debian: Some("apparmor"),
    fedora: None,
    arch: Some("apparmor"),
    source: "https://gitlab.com/apparmor/apparmor",
};
/// Without these of version 1, no pod is made: what it uses has no limit, or it could use any device.
const REQUIRED: [&str; 2] = ["memory", "devices"];
/// Without these, limits of processors and processes fail, and pods cannot be paused.
const USEFUL: [&str; 3] = ["cpu", "pids", "freezer"];
/// Those that version 2 has as controllers. Its groups can be frozen and have rules for devices anyway.
const UNIFIED: [&str; 3] = ["memory", "cpu", "pids"];

/// All checks of this host. `images` is the directory of the image store.
pub(super) fn of_machine(host: &Host, images: &Path) -> Vec<Check> {
    let program = program::find();
    let tried = match (&host.user, &program) {
        (User::Root, Ok(_)) => Some(trial::run(images).map_err(|error| chain(&error))),
        _ => None,
    };
    checks(host, program, tried.as_ref())
}

/// The checks. `tried` is the outcome of a trial, unless there was none.
fn checks(
    host: &Host,
    program: Result<PathBuf, Unavailable>,
    tried: Option<&Result<Vec<Tried>, String>>,
) -> Vec<Check> {
    let is_root = host.user == User::Root;
    let caller = Caller::of(&host.root, is_root, host.find(apparmor::PARSER));
    let app_armor = of_app_armor(host, &Support::of(&host.root, &caller));
    if !is_root {
        return vec![user(host), of_program(program), namespaces_of_user(host), app_armor];
    }
    let mut all = vec![user(host), of_program(program), cgroups(host)];
    all.extend(Feature::ALL.map(|feature| {
        let outcome = match tried {
            None => Outcome::Untried,
            Some(Err(why)) => Outcome::Failed(why),
            Some(Ok(tried)) => match tried.iter().find(|one| one.feature == feature) {
                Some(Tried { error: None, .. }) => Outcome::There,
                Some(Tried { error: Some(why), .. }) => Outcome::Failed(why),
                None => Outcome::Untried,
            },
        };
        of_feature(host, feature, outcome)
    }));
    all.push(app_armor);
    all
}

fn user(host: &Host) -> Check {
    let name = "pod-containers: user";
    match &host.user {
        User::Root => Check::ok(name, "root"),
        User::Ordinary { name: user, .. } => Check::ok(name, format!("{user}, who is root of such pods")),
    }
}

/// An ordinary user's pods have directories in place of mounted images. What they lack of users and limits is told by the checks of subordinate ids
/// and control groups.
fn namespaces_of_user(host: &Host) -> Check {
    let name = name(Feature::Namespaces);
    let check = user_namespaces_for(host, name, CLASS);
    if check.is_ok() { Check::ok(name, "ordinary users may make them") } else { check.required() }
}

fn of_program(program: Result<PathBuf, Unavailable>) -> Check {
    let name = "pod-containers: program";
    match program {
        Ok(path) => Check::ok(name, path.display().to_string()),
        Err(why) => Check::unavailable(name, CLASS, why).required(),
    }
}

/// Which control groups there are, and what of them is missing.
fn cgroups(host: &Host) -> Check {
    let all: Vec<&str> = REQUIRED.into_iter().chain(USEFUL).collect();
    let found = Cgroups::of(host, &all);
    // As for the sandbox, a memory controller of version 1 decides.
    let is_old = found.old.iter().any(|controller| controller == "memory");
    let (form, there, wanted) = match (&found.unified, is_old) {
        (None, false) => {
            let remedy = format!("run `{}mount -t cgroup2 none /sys/fs/cgroup`", host.sudo());
            return Check::missing(CGROUPS, CLASS, "no memory controller is mounted", remedy).required();
        }
        (Some(point), false) => ("version 2", controllers(host, point), UNIFIED.to_vec()),
        (Some(_), true) => ("hybrid, used as version 1", found.old, all),
        (None, true) => ("version 1", found.old, all),
    };
    let is_there = |wanted: &&str| there.iter().any(|one| one == wanted);
    let (has, lacks): (Vec<&str>, Vec<&str>) = wanted.into_iter().partition(is_there);
    if lacks.is_empty() {
        let more = if is_old { "" } else { "; freezing and rules for devices are part of it" };
        return Check::ok(CGROUPS, format!("{form}, with {}{more}", has.join(", ")));
    }
    let text = format!("{form}, without {}", lacks.join(", "));
    let remedy =
        "mount these controllers, or run a kernel that has them; if this is a container, delegate them to it";
    if lacks.iter().any(|controller| REQUIRED.contains(controller)) {
        Check::missing(CGROUPS, CLASS, text, remedy).required()
    } else {
        let needed_for =
            "limits of processors and processes, and pauses, of pods of the class pod-containers";
        Check::missing(CGROUPS, needed_for, text, remedy)
    }
}

/// Whether containers have AppArmor profiles. Without one they are confined by everything else.
fn of_app_armor(host: &Host, support: &Support) -> Check {
    let enabled = match support {
        Support::Absent => {
            let found = "the kernel has none, or it is switched off";
            return Check::missing(APPARMOR, PROFILES, found, apparmor::KERNEL_REMEDY);
        }
        Support::Enabled(enabled) => enabled,
    };
    match enabled.check_default() {
        Ok(()) if enabled.has_default() => {
            Check::ok(APPARMOR, format!("the default profile {} is loaded", enabled.default_name()))
        }
        Ok(()) => Check::ok(APPARMOR, "the default profile is loaded with the first pod that has it"),
        Err(why) if enabled.lacks_parser() => {
            Check::missing(APPARMOR, PROFILES, why.reason, host.install(&PARSER))
        }
        Err(why) => Check::unavailable(APPARMOR, PROFILES, why),
    }
}

/// What is known of a feature.
#[derive(Debug, Clone, Copy)]
enum Outcome<'a> {
    There,
    Failed(&'a str),
    /// This user cannot try it, or there is no program to try it with.
    Untried,
}

fn of_feature(host: &Host, feature: Feature, outcome: Outcome<'_>) -> Check {
    let name = name(feature);
    // What the administrator has forbidden has a remedy of its own.
    if feature == Feature::Namespaces {
        let check = user_namespaces_for(host, name, CLASS);
        if !check.is_ok() {
            return check.required();
        }
    }
    match outcome {
        Outcome::There => Check::ok(name, found(feature)),
        Outcome::Failed(why) => {
            let check = Check::missing(name, needed_for(feature), why, remedy(feature));
            if needed_for(feature) == CLASS { check.required() } else { check }
        }
        Outcome::Untried => Check::missing(
            name,
            needed_for(feature),
            "it was not tried, which takes root and the program magikvm-containers",
            "run `magikvm doctor` as root",
        ),
    }
}

fn name(feature: Feature) -> &'static str {
    match feature {
        Feature::Namespaces => "pod-containers: user namespaces",
        Feature::Images => "pod-containers: images",
        Feature::Owners => "pod-containers: owners",
        Feature::Overlays => "pod-containers: overlays",
        Feature::LoopDevices => "pod-containers: storage limits",
        Feature::Interface => "pod-containers: network",
    }
}

fn found(feature: Feature) -> &'static str {
    match feature {
        Feature::Namespaces => "with users that are none of the host's",
        Feature::Images => "EROFS files can be mounted",
        Feature::Owners => "id-mapped mounts of images",
        Feature::Overlays => "mounted by the pod's root",
        Feature::LoopDevices => "loop devices",
        Feature::Interface => "/dev/net/tun makes interfaces",
    }
}

fn needed_for(feature: Feature) -> &'static str {
    match feature {
        Feature::Namespaces | Feature::Owners | Feature::Overlays => CLASS,
        Feature::Images => "pods of the class pod-containers whose images are not unpacked into directories",
        Feature::LoopDevices => {
            "limits.ephemeral-storage and emptyDir.sizeLimit in pods of the class pod-containers"
        }
        Feature::Interface => "pods of the class pod-containers with a network",
    }
}

fn remedy(feature: Feature) -> &'static str {
    match feature {
        Feature::Namespaces => "run magikvm as root of the host, with all capabilities and all user ids",
        Feature::Images => {
            "run `modprobe erofs`, or Linux 6.12 or later with CONFIG_EROFS_FS and CONFIG_EROFS_FS_BACKED_BY_FILE"
        }
        Feature::Owners => "run Linux 6.12 or later, which maps the owners of files of EROFS",
        Feature::Overlays => "run `modprobe overlay`, or Linux 5.11 or later with CONFIG_OVERLAY_FS",
        Feature::LoopDevices => {
            "run `modprobe loop`; if this is a container, give it /dev/loop-control and loop devices"
        }
        Feature::Interface => "run `modprobe tun`; if this is a container, give it /dev/net/tun",
    }
}

#[cfg(test)]
mod tests {
    use super::super::check::State;
    use super::super::host::tests::Fake;
    use super::*;

    const USERS: (&str, &str) = ("/proc/sys/user/max_user_namespaces", "63432\n");

    fn tried(error: impl Fn(Feature) -> Option<String>) -> Option<Result<Vec<Tried>, String>> {
        Some(Ok(Feature::ALL.map(|feature| Tried { feature, error: error(feature) }).to_vec()))
    }

    fn program() -> Result<PathBuf, Unavailable> {
        Ok(PathBuf::from("/usr/libexec/magikvm/magikvm-containers"))
    }

    /// A host that has AppArmor, whose root may load profiles.
    const ENABLED: [(&str, &str); 3] = [
        ("/sys/module/apparmor/parameters/enabled", "Y\n"),
        ("/sys/kernel/security/apparmor/profiles", "docker-default (enforce)\n"),
        ("/proc/self/status", "CapEff:\t000001ffffffffff\n"),
    ];

    fn host(files: &[(&str, &str)]) -> Fake {
        let fake = Fake::new(&[files, &ENABLED].concat());
        fake.program(apparmor::PARSER);
        fake
    }

    fn state(checks: &[Check], name: &str) -> State {
        checks.iter().find(|check| check.name == name).unwrap().state
    }

    #[test]
    fn what_stops_every_pod_fails_and_the_rest_is_a_warning() {
        let fake = host(&[USERS]);
        for feature in Feature::ALL {
            let outcome = |one| (one == feature).then(|| "Function not implemented".to_owned());
            let checks = checks(&fake.host, program(), tried(outcome).as_ref());
            let expected = match feature {
                Feature::Images | Feature::LoopDevices | Feature::Interface => State::Warn,
                _ => State::Fail,
            };
            assert_eq!(state(&checks, name(feature)), expected);
            let bad = checks.iter().filter(|check| check.name != CGROUPS && !check.is_ok()).count();
            assert_eq!(bad, 1, "{checks:?}");
        }
        let failed =
            checks(&fake.host, program(), Some(&Err("the sandbox did not answer in time".to_owned())));
        assert_eq!(state(&failed, "pod-containers: owners"), State::Fail);
    }

    #[test]
    fn a_missing_program_is_named_and_nothing_is_tried() {
        let missing = || Unavailable { reason: "it is missing".to_owned(), remedy: "Install it.".to_owned() };
        let untried = checks(&Fake::new(&[USERS]).host, Err(missing()), None);
        assert_eq!(state(&untried, "pod-containers: program"), State::Fail);
        let count = untried.iter().filter(|check| check.found.starts_with("it was not tried")).count();
        assert_eq!(count, Feature::ALL.len());
        assert!(untried.iter().all(|check| check.is_ok() || check.remedy.is_some()));
    }

    #[test]
    fn an_ordinary_user_needs_namespaces_and_the_program_only() {
        let of = |limit: &str| {
            let settings = [("/proc/sys/user/max_user_namespaces", limit)];
            let all = checks(&Fake::of_user(&settings).host, program(), None);
            all.into_iter().filter(|check| check.name != APPARMOR).collect::<Vec<_>>()
        };
        assert!(of("63432\n").iter().all(Check::is_ok), "{:?}", of("63432\n"));
        let forbidden = of("0\n");
        assert_eq!(state(&forbidden, "pod-containers: user namespaces"), State::Fail);
        assert_eq!(forbidden.iter().filter(|check| !check.is_ok()).count(), 1);
    }

    #[test]
    fn apparmor_is_there_or_has_a_remedy() {
        let of = |host: &Host| {
            let all = checks(host, program(), None);
            all.into_iter().find(|check| check.name == APPARMOR).unwrap()
        };
        assert!(of(&host(&[]).host).is_ok());
        let remedy = |host: &Host, says: &str| {
            let check = of(host);
            assert_eq!(check.state, State::Warn);
            assert!(check.remedy.as_deref().is_some_and(|remedy| remedy.contains(says)), "{check:?}");
        };
        remedy(&Fake::new(&[]).host, "lsm=");
        let debian = ("/etc/os-release", "ID=debian");
        remedy(&Fake::new(&[&ENABLED[..], &[debian]].concat()).host, "run `apt-get install apparmor`");
        remedy(&Fake::new(&ENABLED[..1]).host, "mount -t securityfs");
        remedy(&Fake::of_user(&ENABLED).host, "with `sudo` once");
        // Root of a container that has all ids and lacks rights.
        let weak = host(&[]);
        weak.put("/proc/self/status", "CapEff:\t00000000a80425fb\n");
        remedy(&weak.host, "with `sudo` once");
    }

    #[test]
    fn forbidden_namespaces_have_the_remedy_of_their_setting() {
        let fake = Fake::new(&[("/proc/sys/user/max_user_namespaces", "0\n")]);
        let check = of_feature(&fake.host, Feature::Namespaces, Outcome::Failed("No space left on device"));
        assert_eq!(check.remedy.as_deref(), Some("run `sysctl -w user.max_user_namespaces=15000`"));
    }

    #[test]
    fn control_groups_are_told_apart_and_what_is_missing_is_named() {
        let line = |kind: &str| format!("cgroup /sys/fs/cgroup/{kind} cgroup rw,relatime,{kind} 0 0\n");
        let of = |mounts: &str, controllers: &str| {
            let list = ("/sys/fs/cgroup/cgroup.controllers", controllers);
            cgroups(&Fake::new(&[("/proc/self/mounts", mounts), list]).host)
        };
        let old: String = REQUIRED.into_iter().chain(USEFUL).map(line).collect();
        let unified = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        assert_eq!(of(&old, "").found, "version 1, with memory, devices, cpu, pids, freezer");
        let hybrid = of(&format!("{old}{unified}"), "");
        assert!(hybrid.is_ok() && hybrid.found.starts_with("hybrid, used as version 1"), "{hybrid:?}");
        assert!(of(unified, "cpu memory pids io").found.starts_with("version 2, with memory, cpu, pids;"));
        let few = of(unified, "memory pids");
        assert_eq!((few.state, few.found.as_str()), (State::Warn, "version 2, without cpu"));
        let poor = of(&(line("memory") + &line("cpu")), "");
        assert_eq!(
            (poor.state, poor.found.as_str()),
            (State::Fail, "version 1, without devices, pids, freezer")
        );
        assert_eq!(of("tmpfs /tmp tmpfs rw 0 0\n", "").state, State::Fail);
    }
}
