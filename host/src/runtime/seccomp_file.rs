//! Seccomp profiles of the host's administrator (`seccompProfile.type: Localhost`): a file below a directory of the configuration, in the
//! format of the OCI runtime specification, which Kubernetes' runtimes read too.
//!
//! The profile binds a container inside its VM. The file is checked nevertheless, because what it cannot express must not look as if it was
//! in force.

use super::RuntimeError;
use crate::manifest::plan::{ContainerSpec, Seccomp};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use serde::Deserialize;
use serde_json::Value;
use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Most bytes of a profile.
const MAX_FILE: u64 = 256 << 10;
/// Most rules, names of all rules together, and bytes of a name.
const MAX_RULES: usize = 1024;
const MAX_NAMES: usize = 4096;
const MAX_NAME_LEN: usize = 64;
/// Arguments of a system call.
const ARGUMENTS: usize = 6;
/// Largest error number of the kernel.
const MAX_ERRNO: u32 = 4095;

#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    #[error("there is no {}", path.display())]
    Missing { path: PathBuf },
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A link leads to another directory.
    #[error("{} is not below {}", path.display(), dir.display())]
    Outside { path: PathBuf, dir: PathBuf },
    #[error("{} is not a regular file of at most {MAX_FILE} bytes", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} is not a seccomp profile of the OCI runtime specification", path.display())]
    Json {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{}: {problem}", path.display())]
    Content { path: PathBuf, problem: String },
}

/// The host's profile that a container asks for.
pub(super) fn of(container: &ContainerSpec, dirs: &[PathBuf]) -> Result<Option<LinuxSeccomp>, RuntimeError> {
    match &container.security.seccomp {
        Seccomp::Localhost(file) => read(dirs, file)
            .map(Some)
            .map_err(|source| RuntimeError::Profile { container: container.name.clone(), source }),
        Seccomp::RuntimeDefault | Seccomp::Unconfined => Ok(None),
    }
}

/// Reads the profile at this path below the first of these directories that has it.
fn read(dirs: &[PathBuf], file: &str) -> Result<LinuxSeccomp, ProfileError> {
    let there = |dir: &&PathBuf| dir.join(file).symlink_metadata().is_ok();
    let Some(dir) = dirs.iter().find(there) else {
        let path = dirs.first().map(|dir| dir.join(file)).unwrap_or_default();
        return Err(ProfileError::Missing { path });
    };
    let path = dir.join(file);
    let failed = |source| ProfileError::Read { path: path.clone(), source };
    let (real, real_dir) = (path.canonicalize().map_err(failed)?, dir.canonicalize().map_err(failed)?);
    if !real.starts_with(&real_dir) {
        return Err(ProfileError::Outside { path, dir: dir.clone() });
    }
    // Opening a pipe must not wait for a writer.
    let open = OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(&real);
    let open = open.map_err(failed)?;
    if !open.metadata().map_err(failed)?.is_file() {
        return Err(ProfileError::NotAFile { path });
    }
    let mut text = Vec::new();
    open.take(MAX_FILE + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(ProfileError::NotAFile { path });
    }
    parse(&text, &path)
}

/// A profile as it may be written. Other keys are refused: Docker's `includes` and `excludes`, for example, would be without effect.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Profile {
    default_action: LinuxSeccompAction,
    default_errno_ret: Option<u32>,
    #[serde(default)]
    architectures: Vec<Arch>,
    #[serde(default)]
    flags: Vec<LinuxSeccompFilterFlag>,
    #[serde(default)]
    syscalls: Vec<Rule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rule {
    names: Vec<String>,
    action: LinuxSeccompAction,
    errno_ret: Option<u32>,
    #[serde(default)]
    args: Vec<Argument>,
    #[serde(rename = "comment")]
    _comment: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Argument {
    index: usize,
    #[serde(rename = "value")]
    _value: u64,
    #[serde(rename = "valueTwo")]
    _value_two: Option<u64>,
    #[serde(rename = "op")]
    _op: LinuxSeccompOperator,
}

fn parse(text: &[u8], path: &Path) -> Result<LinuxSeccomp, ProfileError> {
    let json = |source| ProfileError::Json { path: path.to_owned(), source };
    let written: Profile = serde_json::from_slice(text).map_err(json)?;
    if let Some(problem) = problem(&written) {
        return Err(ProfileError::Content { path: path.to_owned(), problem });
    }
    let mut profile = serde_json::from_slice(text).map_err(json)?;
    exchange_masks(&mut profile);
    serde_json::from_value(profile).map_err(json)
}

/// Exchanges mask and value of each masked comparison. libcontainer takes them in the other order than the specification's `value` (the mask)
/// and `valueTwo`.
fn exchange_masks(profile: &mut Value) {
    let rules = profile.get_mut("syscalls").and_then(Value::as_array_mut).into_iter().flatten();
    let arguments = rules.filter_map(|rule| rule.get_mut("args")?.as_array_mut()).flatten();
    for argument in arguments.filter(|argument| argument["op"] == "SCMP_CMP_MASKED_EQ") {
        let mask = argument["value"].take();
        argument["value"] = match argument["valueTwo"].take() {
            Value::Null => Value::from(0),
            value => value,
        };
        argument["valueTwo"] = mask;
    }
}

fn problem(profile: &Profile) -> Option<String> {
    let notifies = |action: LinuxSeccompAction| action == LinuxSeccompAction::ScmpActNotify;
    if notifies(profile.default_action) || profile.syscalls.iter().any(|rule| notifies(rule.action)) {
        return Some("SCMP_ACT_NOTIFY needs a listener, and there is none".to_owned());
    }
    let errors = profile.syscalls.iter().map(|rule| rule.errno_ret).chain([profile.default_errno_ret]);
    if let Some(error) = errors.flatten().find(|&error| error > MAX_ERRNO) {
        return Some(format!("{error} is not an error number"));
    }
    let names: usize = profile.syscalls.iter().map(|rule| rule.names.len()).sum();
    if profile.syscalls.len() > MAX_RULES || names > MAX_NAMES || profile.architectures.len() > MAX_RULES {
        return Some(format!("it has more than {MAX_RULES} rules or {MAX_NAMES} names of system calls"));
    }
    if profile.flags.len() > MAX_RULES {
        return Some("it has too many flags".to_owned());
    }
    let is_name = |name: &str| {
        (1..=MAX_NAME_LEN).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    };
    for (index, rule) in profile.syscalls.iter().enumerate() {
        if let Some(name) = rule.names.iter().find(|name| !is_name(name)) {
            let name: String = name.chars().take(MAX_NAME_LEN).collect();
            return Some(format!("syscalls[{index}].names: {name:?} is not the name of a system call"));
        }
        if rule.names.is_empty() {
            return Some(format!("syscalls[{index}].names: is empty"));
        }
        if rule.args.len() > ARGUMENTS || rule.args.iter().any(|argument| argument.index >= ARGUMENTS) {
            return Some(format!("syscalls[{index}].args: a system call has {ARGUMENTS} arguments, from 0"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    const AUDIT: &str = r#"{"defaultAction": "SCMP_ACT_LOG"}"#;

    fn problem_of(text: &str) -> String {
        let error = parse(text.as_bytes(), Path::new("p.json")).unwrap_err();
        crate::store::text::chain(&error)
    }

    #[test]
    fn profiles_of_kubernetes_documentation_are_read() {
        for text in [
            AUDIT,
            r#"{"defaultAction": "SCMP_ACT_ERRNO"}"#,
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
                "syscalls": [{"names": ["accept4", "epoll_wait"], "action": "SCMP_ACT_ALLOW", "comment": "needed",
                "args": [{"index": 0, "value": 5, "op": "SCMP_CMP_EQ"}]}]}"#,
        ] {
            let profile = parse(text.as_bytes(), Path::new("p.json")).unwrap();
            assert!(profile.listener_path().is_none());
        }
    }

    #[test]
    fn what_would_have_no_effect_is_refused_by_name() {
        let rule = |rest: &str| {
            format!(
                r#"{{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{{"action": "SCMP_ACT_ERRNO", {rest}}}]}}"#
            )
        };
        for (text, expected) in [
            ("{}".to_owned(), "defaultAction"),
            (r#"{"defaultAction": "SCMP_ACT_NOTIFY"}"#.to_owned(), "listener"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/x"}"#.to_owned(), "listenerPath"),
            (r#"{"defaultAction": "SCMP_ACT_ALLOW", "archMap": []}"#.to_owned(), "archMap"),
            (r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 99999}"#.to_owned(), "99999 is not"),
            (rule(r#""names": ["a"], "includes": {"caps": ["CAP_SYS_ADMIN"]}"#), "includes"),
            (rule(r#""names": []"#), "syscalls[0].names: is empty"),
            (rule(r#""names": ["a b"]"#), "\"a b\" is not the name"),
            (
                rule(r#""names": ["a"], "args": [{"index": 6, "value": 1, "op": "SCMP_CMP_EQ"}]"#),
                "6 arguments",
            ),
        ] {
            let found = problem_of(&text);
            assert!(found.contains(expected) && found.contains("p.json"), "{text}: {found}");
        }
        let many = format!(r#""names": [{}]"#, vec!["\"a\""; MAX_NAMES + 1].join(","));
        assert!(problem_of(&rule(&many)).contains("more than"));
    }

    #[test]
    fn mask_and_value_are_in_libcontainers_order() {
        let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["socket"], "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 1, "value": 15, "valueTwo": 3, "op": "SCMP_CMP_MASKED_EQ"}, {"index": 0, "value": 7, "op": "SCMP_CMP_EQ"}]}]}"#;
        let profile = parse(text.as_bytes(), Path::new("p.json")).unwrap();
        let rules = profile.syscalls().clone().unwrap();
        let arguments: Vec<_> =
            rules[0].args().iter().flatten().map(|one| (one.value(), one.value_two())).collect();
        assert_eq!(arguments, [(3, Some(15)), (7, None)]);
    }

    #[test]
    fn only_a_file_below_the_directory_is_a_profile() {
        let dir = tempfile::tempdir().unwrap();
        let (own, system) = (dir.path().join("own/seccomp"), dir.path().join("etc/seccomp"));
        fs::create_dir_all(system.join("profiles")).unwrap();
        fs::write(system.join("profiles/audit.json"), AUDIT).unwrap();
        fs::write(dir.path().join("outside.json"), AUDIT).unwrap();
        std::os::unix::fs::symlink("../../outside.json", system.join("link.json")).unwrap();
        fs::write(system.join("large.json"), " ".repeat(1 + usize::try_from(MAX_FILE).unwrap())).unwrap();
        nix::unistd::mkfifo(&system.join("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let dirs = [own.clone(), system];
        let error = |file: &str| read(&dirs, file).unwrap_err().to_string();
        read(&dirs, "profiles/audit.json").unwrap();
        assert!(error("gone.json").contains(&format!("there is no {}", own.join("gone.json").display())));
        assert!(error("link.json").contains("is not below"));
        for file in ["large.json", "pipe", "profiles"] {
            assert!(error(file).contains("is not a regular file"), "{file}: {}", error(file));
        }
        // The user's own directory comes first.
        fs::create_dir_all(own.join("profiles")).unwrap();
        fs::write(own.join("profiles/audit.json"), "x").unwrap();
        assert!(error("profiles/audit.json").contains("own/seccomp/profiles/audit.json"));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in any::<Vec<u8>>()) {
            parse(&text, Path::new("p")).ok();
        }
    }
}
