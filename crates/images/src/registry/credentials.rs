//! Logins: finds the file with a login for a repository, and reads it.
//!
//! Reads the files of containers (`auth.json`) and docker (`config.json`), which have the same format; a [`LoginFile`] is also what a
//! Kubernetes `imagePullSecret` contains. Secrets are in no error and no debug output, so errors about these files never quote them.

use super::foreign::neutral;
use super::helper::{self, HelperError};
use super::login::{BASE64, Login, Secret};
use base64::Engine;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Most bytes of a file of logins.
const MAX_FILE: u64 = 1 << 20;
/// Docker's name for its registry in files and for helpers.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// The sources of logins. Nothing is read before a login is needed.
#[derive(Debug, Clone)]
pub struct Credentials(Origin);

#[derive(Debug, Clone)]
enum Origin {
    Nowhere,
    Environment(Environment),
    File(PathBuf),
    Data(Arc<LoginFile>),
    /// The logins of the first, and of the second where the first has none.
    Both(Arc<LoginFile>, Box<Origin>),
}

/// The environment variables that determine the files.
#[derive(Debug, Clone, Default)]
pub(super) struct Environment {
    pub(super) registry_auth_file: Option<PathBuf>,
    pub(super) xdg_runtime_dir: Option<PathBuf>,
    pub(super) xdg_config_home: Option<PathBuf>,
    pub(super) docker_config: Option<PathBuf>,
    pub(super) home: Option<PathBuf>,
    /// Where helpers are searched, if not in this process's `PATH`.
    pub(super) helper_path: Option<OsString>,
}

/// A file of logins, or the content of a secret.
#[derive(Debug)]
pub struct LoginFile {
    name: PathBuf,
    auths: BTreeMap<String, Entry>,
    helpers: BTreeMap<String, String>,
    store: Option<String>,
}

/// The format of a Kubernetes Secret with logins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum LoginFormat {
    /// The file of docker, as it is today.
    DockerConfigJson,
    /// Docker's older file, which is nothing but `auths`.
    DockerCfg,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFile {
    #[serde(default, deserialize_with = "null_is_default")]
    auths: BTreeMap<String, Entry>,
    #[serde(default, deserialize_with = "null_is_default")]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
struct Entry {
    auth: Option<Secret>,
    username: Option<String>,
    password: Option<Secret>,
    identitytoken: Option<Secret>,
}

/// The result of a search.
#[derive(Debug, Clone)]
pub(super) struct LoginSearch {
    pub(super) login: Option<Login>,
    /// The file or program that had the login; nothing without a login.
    pub(super) place: String,
    /// The existing files.
    pub(super) looked: Vec<PathBuf>,
}

/// Why logins cannot be looked up.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The file cannot be read.
    #[error("cannot read the logins in {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// The file is too large.
    #[error("the file of logins {} is larger than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
    /// The file is not JSON in the known format. Its content is not quoted, since it may be a password.
    #[error("the file of logins {} is not as containers and docker write it: line {line}, column {column}", path.display())]
    Form { path: PathBuf, line: usize, column: usize },
    /// A login is not base64 of `user:password`.
    #[error("{}: `auth` of {key:?} is not base64 of \"user:password\"", path.display())]
    Auth { path: PathBuf, key: String },
    #[error("{}: credential helper of {key:?}", path.display())]
    Helper {
        /// The file that names the helper.
        path: PathBuf,
        key: String,
        #[source]
        source: HelperError,
    },
}

impl CredentialError {
    /// What the user can do about it, when there is something.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Read { path, .. } | Self::Form { path, .. } | Self::TooLarge { path } => Some(format!(
                "Repair or remove {}, or name another file in $REGISTRY_AUTH_FILE.",
                path.display()
            )),
            Self::Auth { key, .. } => Some(format!("Write it anew with `podman login {key}`.")),
            Self::Helper { source: HelperError::Start { program, .. }, .. } => {
                Some(format!("Install {program}, or remove it from the file."))
            }
            Self::Helper { .. } => None,
        }
    }
}

impl Credentials {
    /// The locations of podman and docker: `$REGISTRY_AUTH_FILE`, containers' auth.json, docker's config.json.
    pub fn of_environment() -> Self {
        let path = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        Self(Origin::Environment(Environment {
            registry_auth_file: path("REGISTRY_AUTH_FILE"),
            xdg_runtime_dir: path("XDG_RUNTIME_DIR"),
            xdg_config_home: path("XDG_CONFIG_HOME"),
            docker_config: path("DOCKER_CONFIG"),
            home: path("HOME"),
            helper_path: None,
        }))
    }

    pub fn none() -> Self {
        Self(Origin::Nowhere)
    }

    /// The logins of one file, which must exist when a login is needed.
    pub fn in_file(path: &Path) -> Self {
        Self(Origin::File(path.to_owned()))
    }

    /// Logins that were already read.
    pub fn in_data(file: LoginFile) -> Self {
        Self(Origin::Data(Arc::new(file)))
    }

    /// The logins of these files in their order, and then these.
    #[must_use]
    pub fn after(self, files: impl DoubleEndedIterator<Item = LoginFile>) -> Self {
        let Self(origin) = self;
        Self(files.rev().fold(origin, |rest, file| Origin::Both(Arc::new(file), Box::new(rest))))
    }

    #[cfg(test)]
    pub(super) fn of(environment: Environment) -> Self {
        Self(Origin::Environment(environment))
    }

    /// The login for a repository of a registry (`registry.example:5000`, `team/app`).
    pub(super) async fn lookup(
        &self,
        domain: &str,
        repository: &str,
    ) -> Result<LoginSearch, CredentialError> {
        let mut found = LoginSearch { login: None, place: String::new(), looked: Vec::new() };
        let mut origin = &self.0;
        while let Origin::Both(file, rest) = origin {
            found.looked.push(file.name.clone());
            if file.look(domain, repository, &HelperPath(None), &mut found).await? {
                return Ok(found);
            }
            origin = rest;
        }
        let path = match origin {
            Origin::Environment(environment) => environment.helper_path.clone(),
            _ => None,
        };
        let helper = HelperPath(path);
        match origin {
            Origin::Nowhere | Origin::Both(..) => {}
            Origin::Data(file) => {
                found.looked.push(file.name.clone());
                file.look(domain, repository, &helper, &mut found).await?;
            }
            Origin::File(path) => {
                found.looked.push(path.clone());
                LoginFile::load(path)?.look(domain, repository, &helper, &mut found).await?;
            }
            Origin::Environment(environment) => {
                for (path, need) in environment.files() {
                    let file = match LoginFile::load(&path) {
                        Err(CredentialError::Read { source, .. })
                            if need == Need::MayBeMissing && is_missing(&source) =>
                        {
                            continue;
                        }
                        file => file?,
                    };
                    found.looked.push(path);
                    if file.look(domain, repository, &helper, &mut found).await? {
                        break;
                    }
                }
            }
        }
        Ok(found)
    }
}

fn is_missing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

struct HelperPath(Option<OsString>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    MustBeThere,
    MayBeMissing,
}

impl Environment {
    /// The files in order of precedence.
    fn files(&self) -> Vec<(PathBuf, Need)> {
        let mut files = Vec::new();
        if let Some(file) = &self.registry_auth_file {
            files.push((file.clone(), Need::MustBeThere));
        }
        let config = self.xdg_config_home.clone().or(self.home.as_ref().map(|home| home.join(".config")));
        for dir in [self.xdg_runtime_dir.clone(), config].into_iter().flatten() {
            files.push((dir.join("containers/auth.json"), Need::MayBeMissing));
        }
        if let Some(dir) = self.docker_config.clone().or(self.home.as_ref().map(|home| home.join(".docker")))
        {
            files.push((dir.join("config.json"), Need::MayBeMissing));
        }
        files
    }
}

impl LoginFile {
    fn load(path: &Path) -> Result<Self, CredentialError> {
        let read = |source| CredentialError::Read { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        File::open(path).map_err(read)?.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(read)?;
        Self::parse(&bytes, path)
    }

    /// Parses such a file, or the `.dockerconfigjson` of a secret; `name` stands for it in errors.
    pub fn parse(bytes: &[u8], name: &Path) -> Result<Self, CredentialError> {
        if bytes.len() as u64 > MAX_FILE {
            return Err(CredentialError::TooLarge { path: name.to_owned() });
        }
        // podman creates the file empty.
        let bytes = if bytes.iter().all(u8::is_ascii_whitespace) { b"{}" } else { bytes };
        let raw: RawFile = parse_json(bytes, name)?;
        let store = raw.creds_store.filter(|store| !store.is_empty());
        Ok(Self { name: name.to_owned(), auths: raw.auths, helpers: raw.cred_helpers, store })
    }

    /// Parses the content of a Secret. Only logins in it count: it comes with a manifest, which may start no program of the host.
    pub fn of_secret(bytes: &[u8], format: LoginFormat, name: &Path) -> Result<Self, CredentialError> {
        if bytes.len() as u64 > MAX_FILE {
            return Err(CredentialError::TooLarge { path: name.to_owned() });
        }
        let auths = match format {
            LoginFormat::DockerConfigJson => parse_json::<RawFile>(bytes, name)?.auths,
            LoginFormat::DockerCfg => parse_json(bytes, name)?,
        };
        Ok(Self { name: name.to_owned(), auths, helpers: BTreeMap::new(), store: None })
    }

    /// Looks for a login: the helper of this registry, the closest entry, then the helper of all registries.
    async fn look(
        &self,
        domain: &str,
        repository: &str,
        path: &HelperPath,
        found: &mut LoginSearch,
    ) -> Result<bool, CredentialError> {
        let of_registry = self.helpers.iter().find(|(key, _)| host_of_key(key) == canonical(domain));
        if let Some((key, name)) = of_registry
            && self.ask(name, key, path, found).await?
        {
            return Ok(true);
        }
        if let Some(login) = self.stored(domain, repository)? {
            found.login = Some(login);
            found.place = self.name.display().to_string();
            return Ok(true);
        }
        if let Some(name) = &self.store {
            let servers: &[&str] =
                if canonical(domain) == "docker.io" { &[DOCKER_KEY, "docker.io"] } else { &[domain] };
            for server in servers {
                if self.ask(name, server, path, found).await? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    async fn ask(
        &self,
        name: &str,
        server: &str,
        path: &HelperPath,
        found: &mut LoginSearch,
    ) -> Result<bool, CredentialError> {
        let answer = helper::get(name, server, path.0.as_deref(), helper::TIMEOUT).await;
        found.login = answer.map_err(|source| CredentialError::Helper {
            path: self.name.clone(),
            key: server.to_owned(),
            source,
        })?;
        found.place = format!("docker-credential-{name}");
        Ok(found.login.is_some())
    }

    /// The entry for the longest part of `domain/repository` that has one.
    fn stored(&self, domain: &str, repository: &str) -> Result<Option<Login>, CredentialError> {
        let whole = format!("{}/{repository}", canonical(domain));
        let mut key = whole.as_str();
        loop {
            let is_host = !key.contains('/');
            for (written, entry) in &self.auths {
                let fits = match is_host {
                    true => host_of_key(written) == key,
                    // An address with a scheme names only a host, whatever follows.
                    false => !written.contains("://") && namespace_of_key(written) == key,
                };
                if fits && let Some(login) = self.login(written, entry)? {
                    return Ok(Some(login));
                }
            }
            match key.rsplit_once('/') {
                Some((shorter, _)) => key = shorter,
                None => return Ok(None),
            }
        }
    }

    fn login(&self, key: &str, entry: &Entry) -> Result<Option<Login>, CredentialError> {
        let some = |secret: &Option<Secret>| secret.clone().filter(|secret| !secret.reveal().is_empty());
        if let Some(token) = some(&entry.identitytoken) {
            return Ok(Some(Login::IdentityToken(token)));
        }
        if let Some(auth) = some(&entry.auth) {
            let wrong = || CredentialError::Auth { path: self.name.clone(), key: neutral(key) };
            let bytes = BASE64.decode(auth.reveal().trim()).map_err(|_| wrong())?;
            let text = String::from_utf8(bytes).map_err(|_| wrong())?;
            let (user, password) = text.split_once(':').ok_or_else(wrong)?;
            let password = Secret::new(password.trim_end_matches('\0').to_owned());
            return Ok(Some(Login::Password { user: user.to_owned(), password }));
        }
        match (&entry.username, some(&entry.password)) {
            (Some(user), Some(password)) if !user.is_empty() => {
                Ok(Some(Login::Password { user: user.clone(), password }))
            }
            _ => Ok(None),
        }
    }
}

/// The error of serde_json may quote the wrong value, so only its position is kept.
fn parse_json<T: DeserializeOwned>(bytes: &[u8], name: &Path) -> Result<T, CredentialError> {
    serde_json::from_slice(bytes).map_err(|error| CredentialError::Form {
        path: name.to_owned(),
        line: error.line(),
        column: error.column(),
    })
}

/// Maps the names of docker's registry to one, and hosts to lower case.
fn canonical(host: &str) -> String {
    match host.to_ascii_lowercase() {
        host if matches!(host.as_str(), "index.docker.io" | "registry-1.docker.io") => "docker.io".to_owned(),
        host => host,
    }
}

/// The host of a key: docker writes `https://host/v1/` or `host`; a key with a path and without a scheme names no host.
fn host_of_key(key: &str) -> String {
    match key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")) {
        Some(address) => canonical(address.split('/').next().unwrap_or(address)),
        None => canonical(key.trim_end_matches('/')),
    }
}

fn namespace_of_key(key: &str) -> String {
    let key = key.trim_end_matches('/');
    match key.split_once('/') {
        Some((host, path)) => format!("{}/{path}", canonical(host)),
        None => canonical(key),
    }
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::tests::block_on;
    use proptest::prelude::*;

    fn file(json: &str) -> LoginFile {
        LoginFile::parse(json.as_bytes(), Path::new("auth.json")).unwrap()
    }

    fn user(file: &LoginFile, domain: &str, repository: &str) -> Option<String> {
        file.stored(domain, repository).unwrap().map(|login| match login {
            Login::Password { user, .. } => user,
            Login::IdentityToken(token) => format!("token {}", token.reveal()),
        })
    }

    fn auth(user: &str) -> String {
        format!(r#"{{"auth":"{}"}}"#, BASE64.encode(format!("{user}:pass:word")))
    }

    #[test]
    fn the_longest_match_wins() {
        let file = file(&format!(
            r#"{{"auths":{{"r.example:5000":{},"r.example:5000/team":{},"r.example:5000/team/app":{},"r.example":{}}}}}"#,
            auth("host"),
            auth("team"),
            auth("app"),
            auth("other port")
        ));
        assert_eq!(user(&file, "r.example:5000", "team/app").unwrap(), "app");
        assert_eq!(user(&file, "R.example:5000", "team/app2").unwrap(), "team");
        assert_eq!(user(&file, "r.example:5000", "teams/app").unwrap(), "host");
        assert_eq!(user(&file, "r.example", "team/app").unwrap(), "other port");
        assert_eq!(user(&file, "r.example:5001", "team/app"), None);
        let login = file.stored("r.example", "x").unwrap().unwrap();
        assert_eq!(BASE64.decode(login.basic().unwrap().reveal()).unwrap(), b"other port:pass:word");
    }

    #[test]
    fn old_keys_of_docker_are_hosts() {
        let file = file(&format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{},"https://r.example/v1/":{},"http://p.example:5000/v2/":{},"t.example":{{"identitytoken":"abc","auth":""}},"e.example":{{}}}}}}"#,
            auth("docker"),
            auth("legacy"),
            auth("plain")
        ));
        assert_eq!(user(&file, "docker.io", "library/busybox").unwrap(), "docker");
        assert_eq!(user(&file, "r.example", "a").unwrap(), "legacy");
        assert_eq!(user(&file, "p.example:5000", "a").unwrap(), "plain");
        assert_eq!(user(&file, "t.example", "a").unwrap(), "token abc");
        assert_eq!(user(&file, "e.example", "a"), None);
    }

    #[test]
    fn secrets_are_in_no_error_and_in_no_debug_output() {
        let secret = "hunter2hunter2";
        let full = BASE64.encode(format!("me:{secret}"));
        let parsed = file(&format!(
            r#"{{"auths":{{"r.example":{{"auth":"{full}"}},"k.example":{{"username":"me","password":"{secret}"}}}}}}"#
        ));
        let login = parsed.stored("k.example", "a").unwrap();
        for text in
            [format!("{parsed:?}"), format!("{login:?}"), format!("{:?}", Credentials::in_data(parsed))]
        {
            assert!(!text.contains(secret) && !text.contains(&full), "{text}");
        }
        for broken in [
            format!(r#"{{"auths":{{"r.example":"{secret}"}}}}"#),
            format!(r#"{{"auths":{{"r.example":{{"auth":["{secret}"]}}}}}}"#),
            format!(r#"{{"auths": "{secret}""#),
        ] {
            let error = LoginFile::parse(broken.as_bytes(), Path::new("auth.json")).unwrap_err();
            let text = format!("{error} {error:?}");
            assert!(text.contains("auth.json") && !text.contains(secret), "{text}");
        }
        let no_base64 = file(&format!(r#"{{"auths":{{"r.example":{{"auth":"!{secret}"}}}}}}"#));
        let error = no_base64.stored("r.example", "a").unwrap_err();
        assert!(matches!(&error, CredentialError::Auth { key, .. } if key == "r.example"));
        assert!(!format!("{error} {error:?}").contains(secret));
    }

    #[test]
    fn files_are_asked_in_order_and_missing_ones_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let entry = |host: &str, user: &str| format!(r#"{{"auths":{{"{host}":{}}}}}"#, auth(user));
        let runtime = write("run/containers/auth.json", &entry("a.example", "runtime"));
        write("home/.config/containers/auth.json", "");
        let docker = write("home/.docker/config.json", &entry("b.example", "docker"));
        let environment = Environment {
            xdg_runtime_dir: Some(dir.path().join("run")),
            home: Some(dir.path().join("home")),
            ..Environment::default()
        };
        let place = |environment: &Environment, host: &str| {
            block_on(Credentials::of(environment.clone()).lookup(host, "x")).map(|found| found.place)
        };
        assert_eq!(place(&environment, "a.example").unwrap(), runtime.display().to_string());
        assert_eq!(place(&environment, "b.example").unwrap(), docker.display().to_string());
        let nothing = block_on(Credentials::of(environment.clone()).lookup("c.example", "x")).unwrap();
        assert!(nothing.login.is_none() && nothing.looked.len() == 3, "{nothing:?}");
        let named = Environment { registry_auth_file: Some(dir.path().join("none")), ..environment.clone() };
        assert!(matches!(place(&named, "a.example"), Err(CredentialError::Read { .. })));
        std::fs::write(&docker, "{").unwrap();
        assert_eq!(place(&environment, "a.example").unwrap(), runtime.display().to_string());
        let error = place(&environment, "b.example").unwrap_err();
        assert!(error.to_string().contains("config.json") && error.hint().is_some(), "{error}");
    }

    #[test]
    fn secrets_of_a_pod_come_first_and_start_no_program() {
        let secret = |json: &str, format| LoginFile::of_secret(json.as_bytes(), format, Path::new("login"));
        let config = format!(
            r#"{{"auths":{{"a.example":{}}},"credsStore":"evil","credHelpers":{{"c.example":"evil"}}}}"#,
            auth("pod")
        );
        let one = || secret(&config, LoginFormat::DockerConfigJson).unwrap();
        assert!(one().helpers.is_empty() && one().store.is_none());
        let old = format!(r#"{{"https://b.example/v1/":{}}}"#, auth("old"));
        let two = || secret(&old, LoginFormat::DockerCfg).unwrap();
        let own = file(&format!(r#"{{"auths":{{"a.example":{0},"c.example":{0}}}}}"#, auth("own")));
        let all = Credentials::in_data(own).after([one(), two()].into_iter());
        let user = |host: &str| match block_on(all.lookup(host, "x")).unwrap().login {
            Some(Login::Password { user, .. }) => Some(user),
            _ => None,
        };
        let found = ["a.example", "b.example", "c.example", "d.example"].map(user);
        assert_eq!(found.each_ref().map(Option::as_deref), [Some("pod"), Some("old"), Some("own"), None]);
        for (wrong, format) in [
            ("[]", LoginFormat::DockerCfg),
            ("hunter2", LoginFormat::DockerConfigJson),
            ("", LoginFormat::DockerCfg),
        ] {
            let error = secret(wrong, format).unwrap_err().to_string();
            assert!(error.contains("login") && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn large_files_are_refused() {
        let text = format!("{{}}{}", " ".repeat(1 << 20));
        let error = LoginFile::parse(text.as_bytes(), Path::new("auth.json")).unwrap_err();
        assert!(matches!(error, CredentialError::TooLarge { .. }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), key in ".{0,20}", auth in ".{0,20}") {
            drop(LoginFile::parse(&bytes, Path::new("x")));
            let json = serde_json::json!({"auths": {key: {"auth": auth}}}).to_string();
            let file = LoginFile::parse(json.as_bytes(), Path::new("x")).unwrap();
            drop(file.stored("r.example", "a/b"));
        }
    }
}
