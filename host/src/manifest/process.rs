//! What a container finally runs: manifest and image together, by the rules of Kubernetes.

use super::expand::{TooLong, expand};
use super::names;
use super::plan::{ContainerSpec, RootUser, Security};
use magikvm_proto::plan::Stdio;
use std::collections::HashMap;

/// `PATH` when neither image nor manifest has one.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bytes of all arguments and variables of one process together; what fits into a `config.json` even when escaped.
pub const MAX_PROCESS_BYTES: usize = 512 << 10;
/// Longest user of an image, in bytes.
const MAX_USER_LEN: usize = 256;

/// What an image says about the process to run (OCI image configuration). Written by a stranger.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageDefaults {
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`: `NAME=value` each.
    pub env: Vec<String>,
    /// `WorkingDir`; empty for `/`.
    pub working_dir: String,
    /// `User`; empty for root.
    pub user: String,
}

/// The process of a container, with every reference expanded and every default applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedProcess {
    /// At least one, and the first is not empty.
    pub args: Vec<String>,
    /// `NAME=value`, each name once.
    pub env: Vec<String>,
    /// An absolute path.
    pub cwd: String,
    /// As in `ContainerPlan::user` of the guest's plan.
    pub user: String,
}

/// Why image and manifest together make no process.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// Nothing to run.
    #[error(
        "container {container}: neither the manifest (`command`, `args`) nor the image {image} says what to run"
    )]
    NoCommand {
        /// Name of the container.
        container: String,
        /// Its image as written.
        image: String,
    },
    /// The program's name is empty.
    #[error("container {container}: the program to run is an empty string")]
    EmptyProgram {
        /// Name of the container.
        container: String,
    },
    /// A text that a process can't be given.
    #[error("container {container}: {what} {source}")]
    TooLong {
        /// Name of the container.
        container: String,
        /// Which text.
        what: String,
        /// How long it may be.
        #[source]
        source: TooLong,
    },
    /// A text of the image with a NUL byte.
    #[error("container {container}: {what} of image {image} contains a NUL byte")]
    Nul {
        /// Name of the container.
        container: String,
        /// Which text.
        what: &'static str,
        /// Its image as written.
        image: String,
    },
    /// All texts together are too long.
    #[error(
        "container {container}: arguments and environment are {bytes} bytes together, at most {MAX_PROCESS_BYTES} are possible"
    )]
    TooMuch {
        /// Name of the container.
        container: String,
        /// Bytes found, or a lower bound of them.
        bytes: usize,
    },
    /// `runAsNonRoot` and user 0.
    #[error(
        "container {container}: runAsNonRoot is set and image {image} runs as root; set securityContext.runAsUser"
    )]
    Root {
        /// Name of the container.
        container: String,
        /// Its image as written.
        image: String,
    },
    /// `runAsNonRoot` and a user that is a name.
    #[error(
        "container {container}: runAsNonRoot is set and the user {user:?} of image {image} is no number, \
         so it can't be told from root; set securityContext.runAsUser"
    )]
    UnknownUser {
        /// Name of the container.
        container: String,
        /// Its image as written.
        image: String,
        /// The user.
        user: String,
    },
    /// The image's user is no user.
    #[error("container {container}: image {image} has an invalid user")]
    InvalidUser {
        /// Name of the container.
        container: String,
        /// Its image as written.
        image: String,
    },
}

/// What the container runs when its image has these defaults and the pod has this host name.
///
/// Arguments: `command` replaces the image's entrypoint and arguments, `args` alone only its arguments. Environment, each
/// overriding those before: `PATH`, `HOSTNAME` and `TERM` (with a terminal), the image's, the manifest's.
pub fn resolve_process(
    spec: &ContainerSpec,
    image: &ImageDefaults,
    hostname: &str,
) -> Result<ResolvedProcess, ResolveError> {
    let resolve = Resolve { spec };
    let own = resolve.own_env()?;
    let args = resolve.args(image, &own.values)?;
    let env = resolve.env(image, hostname, own.order);
    let cwd = resolve.cwd(image)?;
    let user = resolve.user(image)?;
    resolve.check_size(&args, &env)?;
    Ok(ResolvedProcess { args, env, cwd, user })
}

/// The manifest's variables, expanded.
struct OwnEnv {
    /// In the order written, with duplicates.
    order: Vec<(String, String)>,
    values: HashMap<String, String>,
}

struct Resolve<'a> {
    spec: &'a ContainerSpec,
}

impl Resolve<'_> {
    fn container(&self) -> String {
        self.spec.name.to_string()
    }

    fn image(&self) -> String {
        self.spec.image.clone()
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

    /// A variable sees those above it.
    fn own_env(&self) -> Result<OwnEnv, ResolveError> {
        let mut own = OwnEnv { order: Vec::new(), values: HashMap::new() };
        let mut bytes = 0;
        for variable in &self.spec.env {
            let value = expand(&variable.value, &own.values)
                .map_err(self.too_long(format!("the variable {}", variable.name)))?;
            bytes += variable.name.len() + value.len();
            self.check_total(bytes)?;
            own.order.push((variable.name.clone(), value.clone()));
            own.values.insert(variable.name.clone(), value);
        }
        Ok(own)
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
            // An entrypoint of one empty string is how a Dockerfile takes the entrypoint of its base away.
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

    fn env(&self, image: &ImageDefaults, hostname: &str, own: Vec<(String, String)>) -> Vec<String> {
        let mut env = Env::default();
        env.set("PATH", DEFAULT_PATH);
        env.set("HOSTNAME", hostname);
        if self.spec.stdio == Stdio::Terminal {
            env.set("TERM", "xterm");
        }
        for variable in &image.env {
            // Without a name or with a NUL it is no variable that a process could see.
            if let Some((name, value)) = variable.split_once('=').filter(|(name, _)| !name.is_empty())
                && names::no_nul(variable).is_ok()
            {
                env.set(name, value);
            }
        }
        for (name, value) in own {
            env.set(&name, &value);
        }
        env.list
    }

    fn cwd(&self, image: &ImageDefaults) -> Result<String, ResolveError> {
        if let Some(dir) = &self.spec.working_dir {
            return Ok(dir.clone());
        }
        if names::no_nul(&image.working_dir).is_err() {
            let (container, image) = (self.container(), self.image());
            return Err(ResolveError::Nul { container, what: "the working directory", image });
        }
        // As in other runtimes, a relative one is relative to the root.
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

    fn refuse_root(&self, user: &str) -> Result<(), ResolveError> {
        let name = user.split(':').next().unwrap_or_default();
        match name.parse::<u32>() {
            Ok(id) if id != 0 => Ok(()),
            Err(_) if !(name.is_empty() || name == "root") => Err(ResolveError::UnknownUser {
                container: self.container(),
                image: self.image(),
                user: name.to_owned(),
            }),
            _ => Err(ResolveError::Root { container: self.container(), image: self.image() }),
        }
    }

    fn check_size(&self, args: &[String], env: &[String]) -> Result<(), ResolveError> {
        let texts =
            || args.iter().map(|arg| ("an argument", arg)).chain(env.iter().map(|var| ("a variable", var)));
        if let Some((what, _)) = texts().find(|(_, text)| text.len() > super::expand::MAX_EXPANDED_LEN) {
            return Err(self.too_long(what.to_owned())(TooLong));
        }
        self.check_total(texts().map(|(_, text)| text.len() + 1).sum())
    }
}

/// Variables in the order of their first mention, each with its last value.
#[derive(Default)]
struct Env {
    list: Vec<String>,
    index: HashMap<String, usize>,
}

impl Env {
    fn set(&mut self, name: &str, value: &str) {
        let text = format!("{name}={value}");
        match self.index.get(name) {
            Some(&index) => self.list[index] = text,
            None => {
                self.index.insert(name.to_owned(), self.list.len());
                self.list.push(text);
            }
        }
    }
}
