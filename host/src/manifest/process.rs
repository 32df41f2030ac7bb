//! The process that a container finally runs: manifest and image combined by the rules of Kubernetes.

mod variables;

use super::expand::{TooLong, expand};
use super::facts::PodFacts;
use super::names;
use super::plan::{ContainerSpec, FileKey, LateField, RootUser, Security};
use super::problem::quote;
use crate::image::ImageDefaults;
use magikvm_proto::plan::Stdio;
use magikvm_proto::signal::Signal;
use magikvm_proto::variable::{FileVariable, Missing};
use std::collections::HashMap;
use variables::{Env, json_len};

/// `PATH` when neither image nor manifest has one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of all arguments and variables of one process, written as JSON: they must fit into a `config.json`.
pub const MAX_PROCESS_BYTES: usize = 512 << 10;
/// Longest user field of an image, in bytes.
const MAX_USER_LEN: usize = 256;

/// The process of a container, with every reference expanded and every default applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedProcess {
    /// At least one argument, and the first is not empty.
    pub args: Vec<String>,
    /// `NAME=value`, each name once.
    pub env: Vec<String>,
    pub cwd: String,
    /// In the form of `ContainerPlan::user` in the guest's plan.
    pub user: String,
    /// Variables whose values are in files: placeholders stand for them.
    pub file_variables: Vec<FileVariable>,
    /// The signal by which a stop asks it to end.
    pub stop_signal: Signal,
    /// What the user has to know about the image.
    pub warning: Option<String>,
}

/// Why image and manifest together do not give a process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error(
        "container {container}: neither the manifest (`command`, `args`) nor the image {image} says what to run"
    )]
    NoCommand { container: String, image: String },
    /// The program's name is empty.
    #[error("container {container}: the program to run is an empty string")]
    EmptyProgram { container: String },
    /// A text that cannot be given to a process.
    #[error("container {container}: {what} {source}")]
    TooLong {
        container: String,
        what: String,
        #[source]
        source: TooLong,
    },
    /// A variable of a field that this pod does not have.
    #[error(
        "container {container}: the variable {variable} is {field}, and this pod has none: it has no network"
    )]
    NoField { container: String, variable: String, field: LateField },
    /// The image has a text with a NUL byte.
    #[error("container {container}: {what} of image {image} contains a NUL byte")]
    Nul { container: String, what: &'static str, image: String },
    /// All texts together are too long.
    #[error(
        "container {container}: arguments and environment are {bytes} bytes together, at most {MAX_PROCESS_BYTES} are possible"
    )]
    TooMuch {
        container: String,
        /// The length, or a lower bound of it.
        bytes: usize,
    },
    /// `runAsNonRoot` with user 0.
    #[error(
        "container {container}: runAsNonRoot is set and image {image} runs as root; set securityContext.runAsUser"
    )]
    Root { container: String, image: String },
    /// `runAsNonRoot` with a user name.
    #[error(
        "container {container}: runAsNonRoot is set and the user {user:?} of image {image} is not a number, \
         so it can't be told from root; set securityContext.runAsUser"
    )]
    UnknownUser { container: String, image: String, user: String },
    /// The user of the image is invalid.
    #[error("container {container}: image {image} has an invalid user")]
    InvalidUser { container: String, image: String },
}

/// The process of a container whose image has these defaults, which are untrusted, in this pod.
///
/// Arguments: `command` replaces the image's entrypoint and arguments, `args` only its arguments. Environment, where later ones override
/// earlier ones: `PATH`, `HOSTNAME` and `TERM` (with a terminal), the image's, the manifest's.
pub fn resolve_process(
    spec: &ContainerSpec,
    image: &ImageDefaults,
    pod: &PodFacts,
) -> Result<ResolvedProcess, ResolveError> {
    let resolve = Resolve { spec, pod };
    let own = resolve.own_env()?;
    let args = resolve.args(image, &own.values)?;
    let (env, file_variables) = resolve.env(image, own.order);
    let cwd = resolve.cwd(image)?;
    let user = resolve.user(image)?;
    resolve.check_size(&args, &env)?;
    let (stop_signal, warning) = resolve.stop_signal(image);
    Ok(ResolvedProcess { args, env, cwd, user, file_variables, stop_signal, warning })
}

struct OwnEnv {
    /// In the order written, with duplicates.
    order: Vec<(String, String)>,
    values: HashMap<String, String>,
}

struct Resolve<'a> {
    spec: &'a ContainerSpec,
    pod: &'a PodFacts,
}

impl Resolve<'_> {
    fn container(&self) -> String {
        self.spec.name.to_string()
    }

    fn image(&self) -> String {
        self.spec.image_text.clone()
    }

    fn too_long(&self, what: String) -> impl FnOnce(TooLong) -> ResolveError {
        let container = self.container();
        move |source| ResolveError::TooLong { container, what, source }
    }

    fn check_total(&self, bytes: usize) -> Result<(), ResolveError> {
        if bytes > MAX_PROCESS_BYTES {
            return Err(ResolveError::TooMuch { container: self.container(), bytes });
        }
        Ok(())
    }

    /// The variables of the manifest, each of which sees those above it.
    fn own_env(&self) -> Result<OwnEnv, ResolveError> {
        let mut own = OwnEnv { order: Vec::new(), values: HashMap::new() };
        let mut bytes = 0;
        for (index, variable) in self.spec.env.iter().enumerate() {
            let value = match variable.field {
                None if variable.file.is_some() => self.placeholder(index),
                Some(field) => self.pod.value(field).ok_or_else(|| ResolveError::NoField {
                    container: self.container(),
                    variable: variable.name.clone(),
                    field,
                })?,
                None => expand(&variable.value, &own.values)
                    .map_err(self.too_long(format!("the variable {}", variable.name)))?,
            };
            bytes += variable.name.len() + value.len();
            self.check_total(bytes)?;
            own.order.push((variable.name.clone(), value.clone()));
            own.values.insert(variable.name.clone(), value);
        }
        Ok(own)
    }

    /// What stands for the value of this variable, which no image and no manifest can know before.
    fn placeholder(&self, index: usize) -> String {
        format!("{}:{index}", self.pod.uid)
    }

    fn args(
        &self,
        image: &ImageDefaults,
        known: &HashMap<String, String>,
    ) -> Result<Vec<String>, ResolveError> {
        let mut args = Vec::new();
        let mut bytes = 0;
        for (what, written) in [("command", &self.spec.command), ("args", &self.spec.args)] {
            let from_image = match what {
                "command" => &image.entrypoint,
                _ if self.spec.command.is_empty() => &image.cmd,
                _ => const { &Vec::new() },
            };
            // A Dockerfile removes the entrypoint of its base by setting it to one empty string.
            let from_image = if from_image.iter().all(String::is_empty) && what == "command" {
                &[]
            } else {
                &from_image[..]
            };
            if written.is_empty() {
                if from_image.iter().any(|text| text.contains('\0')) {
                    let (container, image) = (self.container(), self.image());
                    return Err(ResolveError::Nul { container, what: "the command", image });
                }
                args.extend_from_slice(from_image);
            }
            for (index, text) in written.iter().enumerate() {
                let text = expand(text, known).map_err(self.too_long(format!("{what}[{index}]")))?;
                bytes += text.len();
                self.check_total(bytes)?;
                args.push(text);
            }
        }
        match args.first().map(|program| program.is_empty()) {
            None => Err(ResolveError::NoCommand { container: self.container(), image: self.image() }),
            Some(true) => Err(ResolveError::EmptyProgram { container: self.container() }),
            Some(false) => Ok(args),
        }
    }

    fn env(&self, image: &ImageDefaults, own: Vec<(String, String)>) -> (Vec<String>, Vec<FileVariable>) {
        let mut env = Env::default();
        env.set("PATH", DEFAULT_PATH);
        env.set("HOSTNAME", &self.pod.hostname);
        if self.spec.stdio == Stdio::Terminal {
            env.set("TERM", "xterm");
        }
        for variable in &image.env {
            // Without a name or with a NUL it is not a variable that a process could see.
            if let Some((name, value)) = variable.split_once('=').filter(|(name, _)| !name.is_empty())
                && names::no_nul(variable).is_ok()
            {
                env.set(name, value);
            }
        }
        let mut files = Vec::new();
        for (index, ((name, value), written)) in own.into_iter().zip(&self.spec.env).enumerate() {
            if let Some(FileKey { volume, path, key, optional }) = &written.file {
                let instead = || env.get(&name).map(str::to_owned);
                files.push(FileVariable {
                    name: name.clone(),
                    placeholder: self.placeholder(index),
                    volume: u32::try_from(*volume).unwrap_or(u32::MAX),
                    path: path.clone(),
                    key: key.clone(),
                    missing: if *optional { Missing::Instead(instead()) } else { Missing::Fails },
                });
            }
            env.set(&name, &value);
        }
        (env.list, files)
    }

    fn cwd(&self, image: &ImageDefaults) -> Result<String, ResolveError> {
        if let Some(dir) = &self.spec.working_dir {
            return Ok(dir.clone());
        }
        if names::no_nul(&image.working_dir).is_err() {
            let (container, image) = (self.container(), self.image());
            return Err(ResolveError::Nul { container, what: "the working directory", image });
        }
        // As in other runtimes, a relative directory is relative to the root.
        Ok(format!("/{}", image.working_dir.trim_start_matches('/')))
    }

    fn user(&self, image: &ImageDefaults) -> Result<String, ResolveError> {
        let from_image = image.user.trim();
        if from_image.len() > MAX_USER_LEN
            || from_image.contains(|c: char| c.is_control() || c.is_whitespace())
        {
            return Err(ResolveError::InvalidUser { container: self.container(), image: self.image() });
        }
        let Security { run_as_user, run_as_group, root_user, .. } = self.spec.security;
        let user = match (run_as_user, run_as_group) {
            (Some(user), Some(group)) => format!("{user}:{group}"),
            (Some(user), None) => user.to_string(),
            (None, None) => from_image.to_owned(),
            (None, Some(group)) => {
                let user = from_image.split(':').next().unwrap_or_default();
                format!("{}:{group}", if user.is_empty() { "0" } else { user })
            }
        };
        if root_user == RootUser::Refused {
            self.refuse_root(&user)?;
        }
        Ok(user)
    }

    /// The signal of a stop, and a warning if the image names an unknown one. As in Docker, that image gets TERM.
    fn stop_signal(&self, image: &ImageDefaults) -> (Signal, Option<String>) {
        if let Some(signal) = self.spec.stop_signal {
            return (signal, None);
        }
        let named = image.stop_signal.as_deref().unwrap_or_default().trim();
        match named.parse() {
            _ if named.is_empty() => (Signal::TERM, None),
            Ok(signal) => (signal, None),
            Err(_) => {
                let warning = format!(
                    "container {}: the stop signal {} of image {} is not a signal; a stop sends TERM",
                    self.container(),
                    quote(named),
                    self.image()
                );
                (Signal::TERM, Some(warning))
            }
        }
    }

    fn refuse_root(&self, user: &str) -> Result<(), ResolveError> {
        let name = user.split(':').next().unwrap_or_default();
        let unknown = || ResolveError::UnknownUser {
            container: self.container(),
            image: self.image(),
            user: name.to_owned(),
        };
        // A sign is not a digit: `+5` is a name, which the guest might resolve to anybody.
        let digits = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_digit());
        match name.parse::<u32>() {
            Ok(_) if !digits => Err(unknown()),
            Ok(id) if id != 0 => Ok(()),
            Err(_) if !(name.is_empty() || name == "root") => Err(unknown()),
            _ => Err(ResolveError::Root { container: self.container(), image: self.image() }),
        }
    }

    fn check_size(&self, args: &[String], env: &[String]) -> Result<(), ResolveError> {
        let texts =
            || args.iter().map(|arg| ("an argument", arg)).chain(env.iter().map(|var| ("a variable", var)));
        if let Some((what, _)) = texts().find(|(_, text)| text.len() > super::expand::MAX_EXPANDED_LEN) {
            return Err(self.too_long(what.to_owned())(TooLong));
        }
        self.check_total(texts().map(|(_, text)| json_len(text)).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::super::expand::MAX_EXPANDED_LEN;
    use super::super::plan::{EnvVar, PullPolicy, Resources};
    use super::*;
    use magikvm_proto::lifecycle::{Hooks, Probes, Restarts, Role, TerminationMessage};
    use magikvm_proto::plan::Stdin;
    use proptest::prelude::*;

    fn spec() -> ContainerSpec {
        ContainerSpec {
            name: "main".parse().unwrap(),
            image: "img".parse().unwrap(),
            image_text: "img".to_owned(),
            pull_policy: PullPolicy::Never,
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            working_dir: None,
            resources: Resources::default(),
            ports: Vec::new(),
            security: Security::default(),
            stdio: Stdio::Pipes,
            stdin: Stdin::Closed,
            mounts: Vec::new(),
            role: Role::Main,
            restarts: Restarts::default(),
            probes: Probes::default(),
            hooks: Hooks::default(),
            stop_signal: None,
            termination_message: TerminationMessage::default(),
        }
    }

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|&text| text.to_owned()).collect()
    }

    fn vars(list: &[(&str, &str)]) -> Vec<EnvVar> {
        list.iter()
            .map(|&(name, value)| EnvVar {
                name: name.to_owned(),
                value: value.to_owned(),
                field: None,
                file: None,
            })
            .collect()
    }

    fn named(hostname: &str) -> PodFacts {
        PodFacts { hostname: hostname.to_owned(), ..PodFacts::default() }
    }

    fn image() -> ImageDefaults {
        ImageDefaults { entrypoint: texts(&["ep"]), cmd: texts(&["c1", "c2"]), ..ImageDefaults::default() }
    }

    #[test]
    fn command_and_args_follow_the_table_of_kubernetes() {
        // Columns: entrypoint, cmd, command, args -> process.
        let table: [[&[&str]; 5]; 10] = [
            [&["ep"], &["c"], &[], &[], &["ep", "c"]],
            [&["ep"], &["c"], &["x"], &[], &["x"]],
            [&["ep"], &["c"], &[], &["a", "b"], &["ep", "a", "b"]],
            [&["ep"], &["c"], &["x", "y"], &["a"], &["x", "y", "a"]],
            [&[], &["c"], &[], &[], &["c"]],
            [&[], &["c"], &[], &["a"], &["a"]],
            [&["ep"], &[], &[], &[], &["ep"]],
            [&[], &[], &["x"], &["a"], &["x", "a"]],
            [&[], &[], &[], &["a"], &["a"]],
            [&[""], &["c"], &[], &[], &["c"]],
        ];
        for [entrypoint, cmd, command, args, runs] in table {
            let image =
                ImageDefaults { entrypoint: texts(entrypoint), cmd: texts(cmd), ..ImageDefaults::default() };
            let spec = ContainerSpec { command: texts(command), args: texts(args), ..spec() };
            assert_eq!(
                resolve_process(&spec, &image, &named("h")).unwrap().args,
                runs,
                "{entrypoint:?} {cmd:?} {command:?} {args:?}"
            );
        }
        let nothing = resolve_process(&spec(), &ImageDefaults::default(), &named("h"));
        assert!(matches!(nothing, Err(ResolveError::NoCommand { .. })), "{nothing:?}");
        let empty = resolve_process(
            &ContainerSpec { args: texts(&[""]), ..spec() },
            &ImageDefaults::default(),
            &named("h"),
        );
        assert!(matches!(empty, Err(ResolveError::EmptyProgram { .. })), "{empty:?}");
    }

    #[test]
    fn references_see_the_variables_of_the_manifest_only() {
        let spec = ContainerSpec {
            env: vars(&[
                ("A", "1"),
                ("B", "$(A)$(C)"),
                ("C", "3"),
                ("A", "$(A)$(A)"),
                ("D", "$(A) $$(A) $(PATH) $(HOSTNAME)"),
            ]),
            command: texts(&["$(A)", "$(B)", "$(FROM_IMAGE)", "$$(A)"]),
            ..spec()
        };
        let image = ImageDefaults { env: texts(&["FROM_IMAGE=x", "B=image"]), ..image() };
        let process = resolve_process(&spec, &image, &named("web")).unwrap();
        assert_eq!(process.args, ["11", "1$(C)", "$(FROM_IMAGE)", "$(A)"]);
        assert_eq!(
            process.env,
            [
                &format!("PATH={DEFAULT_PATH}"),
                "HOSTNAME=web",
                "FROM_IMAGE=x",
                "B=1$(C)",
                "A=11",
                "C=3",
                "D=11 $(A) $(PATH) $(HOSTNAME)"
            ]
        );
    }

    #[test]
    fn the_environment_has_its_defaults_and_image_and_manifest_override_them() {
        let tty = ContainerSpec { stdio: Stdio::Terminal, ..spec() };
        let env = |spec: &ContainerSpec, env: &[&str]| {
            resolve_process(spec, &ImageDefaults { env: texts(env), ..image() }, &named("web")).unwrap().env
        };
        assert_eq!(env(&tty, &["PATH=/x", "HOSTNAME=y"]), ["PATH=/x", "HOSTNAME=y", "TERM=xterm"]);
        assert_eq!(env(&spec(), &["", "novalue", "=x", "N=a\0b", "E="])[2..], ["E="]);
        let own = ContainerSpec { env: vars(&[("TERM", "vt100"), ("PATH", "/mine")]), ..tty };
        assert_eq!(env(&own, &["PATH=/x"]), ["PATH=/mine", "HOSTNAME=web", "TERM=vt100"]);
    }

    #[test]
    fn the_image_names_the_signal_of_a_stop() {
        let stop = |signal: Option<&str>| {
            let image = ImageDefaults { stop_signal: signal.map(str::to_owned), ..image() };
            let process = resolve_process(&spec(), &image, &named("h")).unwrap();
            (process.stop_signal.number(), process.warning)
        };
        for (named, number) in
            [(None, 15), (Some(""), 15), (Some("SIGQUIT"), 3), (Some("28"), 28), (Some("SIGRTMIN+3"), 37)]
        {
            assert_eq!(stop(named), (number, None), "{named:?}");
        }
        let (number, warning) = stop(Some("SIGNOPE\u{1b}"));
        let warning = warning.unwrap();
        assert_eq!(number, 15);
        assert!(warning.contains("container main") && warning.contains("SIGNOPE"), "{warning}");
        assert!(!warning.contains('\u{1b}'), "{warning:?}");
    }

    #[test]
    fn the_working_directory_is_absolute() {
        let cwd = |own: Option<&str>, image_dir: &str| {
            let spec = ContainerSpec { working_dir: own.map(str::to_owned), ..spec() };
            resolve_process(
                &spec,
                &ImageDefaults { working_dir: image_dir.to_owned(), ..image() },
                &named("h"),
            )
            .map(|p| p.cwd)
        };
        assert_eq!(cwd(None, "").unwrap(), "/");
        assert_eq!(cwd(None, "/srv").unwrap(), "/srv");
        assert_eq!(cwd(None, "srv").unwrap(), "/srv");
        assert_eq!(cwd(Some("/own"), "/srv").unwrap(), "/own");
        assert!(matches!(cwd(None, "/a\0"), Err(ResolveError::Nul { .. })));
    }

    #[test]
    fn the_user_is_the_images_unless_the_manifest_says() {
        let user = |user, group, image_user: &str| {
            let security = Security { run_as_user: user, run_as_group: group, ..Security::default() };
            let image = ImageDefaults { user: image_user.to_owned(), ..image() };
            resolve_process(&ContainerSpec { security, ..spec() }, &image, &named("h"))
                .map(|process| process.user)
        };
        let table = [
            (None, None, "", ""),
            (None, None, "www:web", "www:web"),
            (Some(5), None, "www:web", "5"),
            (Some(5), Some(6), "www", "5:6"),
            (None, Some(6), "www:web", "www:6"),
            (None, Some(6), "", "0:6"),
        ];
        for (uid, gid, image_user, resolved) in table {
            assert_eq!(user(uid, gid, image_user).unwrap(), resolved);
        }
        for bad in ["a b", "a\nb", "\u{1b}", &"x".repeat(300)] {
            assert!(matches!(user(None, None, bad), Err(ResolveError::InvalidUser { .. })), "{bad}");
        }
    }

    #[test]
    fn run_as_non_root_refuses_root_and_whoever_may_be_root() {
        let check = |uid: Option<u32>, image_user: &str| {
            let security = Security { run_as_user: uid, root_user: RootUser::Refused, ..Security::default() };
            let image = ImageDefaults { user: image_user.to_owned(), ..image() };
            resolve_process(&ContainerSpec { security, ..spec() }, &image, &named("h"))
                .map(|process| process.user)
        };
        for root in ["", "0", "0:5", "root", "root:x", "00", ":5"] {
            assert!(matches!(check(None, root), Err(ResolveError::Root { .. })), "{root}");
        }
        assert!(matches!(check(Some(0), "5"), Err(ResolveError::Root { .. })));
        for unknown in ["www", "4294967296", "+5", "-1"] {
            assert!(matches!(check(None, unknown), Err(ResolveError::UnknownUser { .. })), "{unknown}");
        }
        assert_eq!(check(None, "7:0").unwrap(), "7:0");
        assert_eq!(check(Some(7), "").unwrap(), "7");
    }

    #[test]
    fn what_no_process_can_be_given_is_refused_before_it_grows() {
        let mut env = vec![("V0".to_owned(), "x".repeat(1000))];
        for n in 1..64 {
            env.push((format!("V{n}"), format!("$(V{0})$(V{0})", n - 1)));
        }
        let env: Vec<EnvVar> =
            env.into_iter().map(|(name, value)| EnvVar { name, value, field: None, file: None }).collect();
        let doubled = resolve_process(&ContainerSpec { env, ..spec() }, &image(), &named("h"));
        assert!(matches!(doubled, Err(ResolveError::TooLong { .. })), "{doubled:?}");

        let big = "x".repeat(100_000);
        let many = ContainerSpec { env: vars(&[("A", &big)]), args: texts(&["$(A)"; 10]), ..spec() };
        assert!(matches!(resolve_process(&many, &image(), &named("h")), Err(ResolveError::TooMuch { .. })));

        let huge = ImageDefaults { cmd: vec!["x".repeat(MAX_EXPANDED_LEN + 1)], ..image() };
        assert!(matches!(resolve_process(&spec(), &huge, &named("h")), Err(ResolveError::TooLong { .. })));
        let lots = ImageDefaults { env: (0..100_000).map(|n| format!("V{n}=xxxxxx")).collect(), ..image() };
        assert!(matches!(resolve_process(&spec(), &lots, &named("h")), Err(ResolveError::TooMuch { .. })));
        let escaped = ImageDefaults { cmd: vec!["\u{1}".repeat(100_000)], ..image() };
        assert!(matches!(resolve_process(&spec(), &escaped, &named("h")), Err(ResolveError::TooMuch { .. })));
        let nul = ImageDefaults { cmd: texts(&["a\0b"]), ..image() };
        assert!(matches!(resolve_process(&spec(), &nul, &named("h")), Err(ResolveError::Nul { .. })));
    }

    proptest! {
        #[test]
        fn hostile_images_make_a_valid_process_or_an_error(
            entrypoint in proptest::collection::vec(".{0,10}", 0..3),
            cmd in proptest::collection::vec(".{0,10}", 0..3),
            env in proptest::collection::vec("[A-C\0=ä$()]{0,8}", 0..6),
            working_dir in "[/a.\0]{0,6}",
            user in "[0-9a:\n ]{0,6}",
        ) {
            let image = ImageDefaults { entrypoint, cmd, env, working_dir, user, ..ImageDefaults::default() };
            if let Ok(process) = resolve_process(&spec(), &image, &named("h")) {
                prop_assert!(!process.args.is_empty() && !process.args[0].is_empty());
                prop_assert!(process.cwd.starts_with('/'));
                for text in &process.args {
                    prop_assert!(serde_json::to_string(text).unwrap().len() < json_len(text));
                }
                let texts = process.args.iter().chain(&process.env).chain([&process.cwd, &process.user]);
                for text in texts {
                    prop_assert!(!text.contains('\0'));
                }
                let names: std::collections::HashSet<_> = process.env.iter().map(|var| var.split('=').next()).collect();
                prop_assert_eq!(names.len(), process.env.len());
            }
        }
    }
}
