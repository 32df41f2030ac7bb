//! AppArmor for the containers of a pod in namespaces: what the host has of it, which profile a container gets, and loading the default one.
//!
//! The default profile stays in the kernel when the pod ends, as that of other container runtimes does: another pod may use it, and it takes a few
//! kilobytes. Its name contains a digest of its rules, so that a loaded profile is never one of another version, and two pods that load it at once
//! load the same. The kernel loads a profile whole or not at all.
//!
//! Must not know: how a container enters its profile, which is the work of whoever starts its programs.

mod profile;

use crate::manifest::plan::AppArmor;
use crate::manifest::{ContainerSpec, PodPlan};
use crate::process;
use crate::store::sandbox::Role;
use crate::store::text::chain;
use crate::vmm::{Unavailable, find_program};
use magikvm_proto::id::ContainerName;
use nix::unistd::geteuid;
use profile::Profile;
use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

const ENABLED: &str = "sys/module/apparmor/parameters/enabled";
const KERNEL: &str = "sys/kernel/security/apparmor";
/// Where parsers find the files that a profile names.
const PARSER_FILES: &str = "etc/apparmor.d";
/// The program that loads profiles.
pub const PARSER: &str = "apparmor_parser";
/// What gives a host AppArmor.
pub const KERNEL_REMEDY: &str =
    "run a kernel with CONFIG_SECURITY_APPARMOR and with `apparmor` in lsm= on its command line";
/// Modes in which a profile decides what its processes do.
const ENFORCED: [&str; 3] = ["(enforce)", "(kill)", "(mixed)"];
/// Number of CAP_MAC_ADMIN.
const MAC_ADMIN: u32 = 33;
/// How deep profiles contain profiles, at most.
const MAX_DEPTH: usize = 4;
/// How long a parser may take. Old kernels build a profile slowly while others do.
const LOAD_LIMIT: Duration = Duration::from_secs(30);
/// Most bytes of what a parser says that are shown.
const MAX_SAID: u64 = 4096;

/// Whether the host has AppArmor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Support {
    /// Its kernel has none, or it is switched off.
    Absent,
    Enabled(Box<Enabled>),
}

/// The AppArmor of a host that has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enabled {
    /// The names of loaded profiles, if they can be told.
    loaded: Result<BTreeSet<String>, Unavailable>,
    default: Profile,
    /// The program that loads profiles, if this process can load them.
    parser: Result<PathBuf, Unavailable>,
    /// Why containers cannot change to the default profile.
    bound: Option<Unavailable>,
}

/// The process that asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Whether it may change the kernel's policy.
    is_admin: bool,
    /// The program that loads profiles.
    parser: Option<PathBuf>,
    /// Its own label and mode, in the kernel's words.
    label: String,
}

impl Caller {
    /// The calling process.
    pub fn of_process() -> Self {
        Self::of(Path::new("/"), geteuid().is_root(), find_program(PARSER))
    }

    /// The calling process on the host whose files are below `root`.
    pub fn of(root: &Path, is_root: bool, parser: Option<PathBuf>) -> Self {
        let read = |file: &str| fs::read_to_string(root.join("proc/self").join(file)).ok();
        // The second one is that of kernels before 5.8.
        let label = read("attr/apparmor/current").or_else(|| read("attr/current"));
        let capabilities = capabilities(&read("status").unwrap_or_default());
        Self {
            is_admin: is_root && capabilities >> MAC_ADMIN & 1 == 1,
            parser,
            label: label.unwrap_or_default(),
        }
    }

    /// Why its children cannot change to any profile.
    fn bound(&self) -> Option<Unavailable> {
        let is_bound = ENFORCED.iter().any(|mode| self.label.trim_end().ends_with(mode));
        is_bound.then(|| Unavailable {
            reason: format!("magikvm itself runs under the profile {:?}", label_of(&self.label)),
            remedy: "Run magikvm without a profile that is enforced, or leave appArmorProfile out."
                .to_owned(),
        })
    }
}

/// The effective ones in the text of a process's status, one bit for each number.
fn capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

/// The label in `LABEL (MODE)`.
fn label_of(text: &str) -> String {
    let text = text.trim_end_matches(['\n', '\0']);
    let label = text.rsplit_once(" (").map_or(text, |(label, _)| label);
    if label.is_empty() { "unconfined".to_owned() } else { label.to_owned() }
}

impl Support {
    /// That of this host.
    pub fn of_host() -> Self {
        Self::of(Path::new("/"), &Caller::of_process())
    }

    /// That of the host whose files are below `root`.
    pub fn of(root: &Path, caller: &Caller) -> Self {
        if !fs::read_to_string(root.join(ENABLED)).is_ok_and(|value| value.starts_with('Y')) {
            return Self::Absent;
        }
        let kernel = root.join(KERNEL);
        let loaded = match kernel.is_dir() {
            true => loaded(&kernel).map_err(|error| Unavailable {
                reason: format!("the loaded profiles cannot be read: {error}"),
                remedy: "Run magikvm as root.".to_owned(),
            }),
            false => Err(Unavailable {
                reason: format!("/{KERNEL} is not there"),
                remedy: "As root, run `mount -t securityfs securityfs /sys/kernel/security`.".to_owned(),
            }),
        };
        let parser = match (&loaded, caller.is_admin, &caller.parser) {
            (Err(why), ..) => Err(why.clone()),
            (Ok(_), false, _) => Err(Unavailable {
                reason: "only root can load profiles, with CAP_MAC_ADMIN".to_owned(),
                remedy: "Run a pod of the class pod-containers with `sudo` once, which loads the profile until the next boot.".to_owned(),
            }),
            (Ok(_), true, None) => Err(no_parser()),
            (Ok(_), true, Some(parser)) => Ok(parser.clone()),
        };
        let knows_abi = root.join(PARSER_FILES).join(profile::ABI).is_file();
        let default = Profile::new(&label_of(&caller.label), knows_abi);
        Self::Enabled(Box::new(Enabled { loaded, default, parser, bound: caller.bound() }))
    }
}

fn no_parser() -> Unavailable {
    Unavailable {
        reason: format!("{PARSER} is not installed"),
        remedy: "Install it with `apt-get install apparmor`.".to_owned(),
    }
}

/// The names of all profiles that the kernel has.
fn loaded(kernel: &Path) -> io::Result<BTreeSet<String>> {
    // Only root may read the list.
    match fs::read_to_string(kernel.join("profiles")) {
        Ok(list) => Ok(list.lines().map(label_of).collect()),
        Err(_) => {
            let mut names = BTreeSet::new();
            beneath(&kernel.join("policy/profiles"), "", MAX_DEPTH, &mut names)?;
            Ok(names)
        }
    }
}

/// Adds the names of the profiles in a directory of the kernel, and of those in them.
fn beneath(dir: &Path, parent: &str, depth: usize, names: &mut BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let dir = entry?.path();
        // It may be replaced meanwhile.
        let Ok(name) = fs::read_to_string(dir.join("name")) else { continue };
        let name = format!("{parent}{}", name.trim_end());
        let inner = dir.join("profiles");
        if depth > 0 && inner.is_dir() {
            beneath(&inner, &format!("{name}//"), depth - 1, names)?;
        }
        names.insert(name);
    }
    Ok(())
}

/// The profile of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice<'a> {
    /// None: it has the label of its supervisor.
    Unconfined,
    Default(&'a Enabled),
    /// The same, or none if it cannot be loaded.
    DefaultIfPossible(&'a Enabled),
    /// One that is loaded.
    Named(&'a str),
}

/// A profile cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("container {container}: securityContext.appArmorProfile.{field}: {}", .why.reason)]
pub struct NoProfile {
    container: ContainerName,
    field: &'static str,
    pub why: Unavailable,
}

/// A field that asks for too much, and why.
type Refused = (&'static str, Unavailable);

/// Which profile a container gets that asks for this.
fn choose<'a>(asked: &'a AppArmor, support: &'a Support) -> Result<Choice<'a>, Refused> {
    match (asked, support) {
        (AppArmor::Localhost(name), Support::Absent) => Err(("localhostProfile", not_here(name))),
        (_, Support::Absent) | (AppArmor::Unconfined, _) => Ok(Choice::Unconfined),
        (AppArmor::Localhost(name), Support::Enabled(host)) => match host.check_named(name) {
            Ok(()) => Ok(Choice::Named(name)),
            Err(why) => Err(("localhostProfile", why)),
        },
        (AppArmor::RuntimeDefault, Support::Enabled(host)) => match host.check_default() {
            Ok(()) => Ok(Choice::Default(host)),
            Err(why) => Err(no_default(why)),
        },
        (AppArmor::Unset, Support::Enabled(host)) => match host.check_default() {
            Ok(()) => Ok(Choice::DefaultIfPossible(host)),
            Err(_) => Ok(Choice::Unconfined),
        },
    }
}

fn not_here(name: &str) -> Unavailable {
    Unavailable {
        reason: format!(
            "the profile {name:?} cannot be used: the kernel of the host has no AppArmor, or it is switched off"
        ),
        remedy: format!("Leave it out, or {KERNEL_REMEDY}."),
    }
}

fn no_default(why: Unavailable) -> Refused {
    let reason = format!("the default profile cannot be had: {}", why.reason);
    ("type", Unavailable { reason, ..why })
}

fn choices<'a>(
    plan: &'a PodPlan,
    support: &'a Support,
) -> impl Iterator<Item = (&'a ContainerName, Result<Choice<'a>, Refused>)> {
    let of = |container: &'a ContainerSpec| (&container.name, choose(&container.security.app_armor, support));
    plan.containers.iter().map(of)
}

fn refused(container: &ContainerName) -> impl FnOnce(Refused) -> NoProfile {
    let container = container.clone();
    move |(field, why)| NoProfile { container, field, why }
}

/// Checks that the containers of a pod can have the profiles that they ask for, as far as that can be told without loading one.
pub fn check(plan: &PodPlan, support: &Support) -> Result<(), NoProfile> {
    choices(plan, support).try_for_each(|(container, choice)| choice.map(drop).map_err(refused(container)))
}

/// The profiles of a pod's containers, all of which are loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profiles {
    /// In the order of the containers; without a name a container has none.
    pub names: Vec<Option<String>>,
    /// Why containers that ask for nothing have none, unless it was clear before.
    pub warning: Option<String>,
}

/// Loads the default profile if a container has it.
pub fn prepare(plan: &PodPlan, support: &Support) -> Result<Profiles, NoProfile> {
    prepare_by(plan, support, &Enabled::load)
}

fn prepare_by(
    plan: &PodPlan,
    support: &Support,
    load: &dyn Fn(&Enabled) -> Result<(), Unavailable>,
) -> Result<Profiles, NoProfile> {
    let mut loaded: Option<Result<(), Unavailable>> = None;
    let mut profiles = Profiles { names: Vec::new(), warning: None };
    for (container, choice) in choices(plan, support) {
        let name = match choice.map_err(refused(container))? {
            Choice::Unconfined => None,
            Choice::Named(name) => Some(name.to_owned()),
            Choice::Default(host) => {
                let outcome = loaded.get_or_insert_with(|| load(host)).clone();
                outcome.map_err(|why| refused(container)(no_default(why)))?;
                Some(host.default.name.clone())
            }
            Choice::DefaultIfPossible(host) => match loaded.get_or_insert_with(|| load(host)) {
                Ok(()) => Some(host.default.name.clone()),
                Err(why) => {
                    let warning = format!("containers run without an AppArmor profile: {}", why.reason);
                    profiles.warning = Some(warning);
                    None
                }
            },
        };
        profiles.names.push(name);
    }
    Ok(profiles)
}

impl Enabled {
    /// The name of the default profile.
    pub fn default_name(&self) -> &str {
        &self.default.name
    }

    /// Whether the default profile is loaded.
    pub fn has_default(&self) -> bool {
        self.loaded.as_ref().is_ok_and(|loaded| loaded.contains(&self.default.name))
    }

    /// Whether a process that could load profiles lacks only the program for it.
    pub fn lacks_parser(&self) -> bool {
        self.parser == Err(no_parser())
    }

    /// Why the default profile can be neither used nor loaded.
    pub fn check_default(&self) -> Result<(), Unavailable> {
        match (&self.bound, &self.parser) {
            (Some(why), _) => Err(why.clone()),
            (None, Err(why)) if !self.has_default() => Err(why.clone()),
            (None, _) => Ok(()),
        }
    }

    fn check_named(&self, name: &str) -> Result<(), Unavailable> {
        match &self.loaded {
            Ok(loaded) if loaded.contains(name) => Ok(()),
            Ok(_) => Err(Unavailable {
                reason: format!("the host has not loaded a profile {name:?}"),
                remedy: format!("As root, load it with `{PARSER} -r FILE`."),
            }),
            Err(why) => Err(Unavailable {
                reason: format!("the profile {name:?} cannot be used: {}", why.reason),
                remedy: why.remedy.clone(),
            }),
        }
    }

    /// Loads the default profile unless it is loaded.
    fn load(&self) -> Result<(), Unavailable> {
        if self.has_default() {
            return Ok(());
        }
        let parser = self.parser.as_ref().map_err(Unavailable::clone)?;
        let failed = |why: String| Unavailable {
            reason: format!("{PARSER} failed: {why}"),
            remedy: "Run the container without a profile, with `appArmorProfile: {type: Unconfined}`."
                .to_owned(),
        };
        parse(parser, &self.default.text).map_err(|error| failed(chain(&error)))?;
        match loaded(&Path::new("/").join(KERNEL)) {
            Ok(loaded) if loaded.contains(&self.default.name) => Ok(()),
            _ => Err(failed("the kernel does not have the profile afterwards".to_owned())),
        }
    }
}

/// Has the parser load a profile, in place of one of its name.
fn parse(parser: &Path, text: &str) -> io::Result<()> {
    let mut command = Command::new(parser);
    // From its standard input.
    command.args(["--replace", "--skip-cache", "--quiet"]).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut process =
        process::spawn_with(Role::Loader, PARSER, &mut command, &[]).map_err(io::Error::other)?;
    process::tell(&mut process, text.as_bytes())?;
    // What it says fits into the pipe.
    if process.wait_or_kill(LOAD_LIMIT).is_some_and(|status| status.success()) {
        return Ok(());
    }
    let mut said = Vec::new();
    if let Some(stderr) = process.child.stderr.take() {
        stderr.take(MAX_SAID).read_to_end(&mut said)?;
    }
    let said = String::from_utf8_lossy(&said).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(io::Error::other(if said.is_empty() { "it said nothing".to_owned() } else { said }))
}

#[cfg(test)]
mod tests;
