//! Finds the configuration of a network, and the programs of its plugins, where CNI keeps them.

use super::conf::{self, ConfError, Form, MAX_CONF, NetworkConf, NetworkName};
use crate::store::regular;
use crate::store::text::chain;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Where configurations are unless the command line names another directory.
pub const CONF_DIR: &str = "/etc/cni/net.d";
/// Where plugins are: the place of CNI's own releases, and that of Debian's package.
pub const BIN_DIRS: [&str; 2] = ["/opt/cni/bin", "/usr/lib/cni"];
/// Most files of the directory that are looked at.
const MAX_FILES: usize = 256;
/// Most names of networks in a message.
const MAX_NAMED: usize = 16;

/// The directories of CNI.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Places {
    pub conf: PathBuf,
    pub bin: Vec<PathBuf>,
}

impl Default for Places {
    fn default() -> Self {
        Self { conf: CONF_DIR.into(), bin: BIN_DIRS.map(PathBuf::from).to_vec() }
    }
}

/// Why there is no such network.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("cannot read the directory {} of CNI configurations", dir.display())]
    Dir {
        dir: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("no file in {} configures a network {name}; {there}", dir.display())]
    Unknown { name: NetworkName, dir: PathBuf, there: String },
    #[error("the network configuration {} cannot be used", path.display())]
    Conf {
        path: PathBuf,
        #[source]
        source: ConfError,
    },
    #[error("the CNI plugin {kind} of the network {network} is not in {dirs}")]
    NoPlugin { kind: String, network: NetworkName, dirs: String },
}

/// A file that may be a configuration.
#[derive(Debug)]
pub struct Candidate {
    pub path: PathBuf,
    form: Form,
    /// Its content, or why that cannot be read.
    read: Result<Vec<u8>, String>,
}

impl Candidate {
    pub fn parse(&self) -> Result<NetworkConf, String> {
        let bytes = self.read.as_ref().map_err(Clone::clone)?;
        conf::parse(bytes, self.form).map_err(|error| chain(&error))
    }

    fn name(&self) -> Option<String> {
        conf::name_of(self.read.as_ref().ok()?)
    }
}

impl Places {
    /// The files of the directory: lists, and then single plugins, each in the order of their names.
    pub fn candidates(&self) -> Result<Vec<Candidate>, FindError> {
        let failed = |source| FindError::Dir { dir: self.conf.clone(), source };
        let entries = match fs::read_dir(&self.conf) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed(error)),
        };
        let mut found = Vec::new();
        for entry in entries.take(MAX_FILES) {
            let path = entry.map_err(failed)?.path();
            let form = match path.extension().and_then(|extension| extension.to_str()) {
                Some("conflist") => Form::List,
                Some("conf" | "json") => Form::Single,
                _ => continue,
            };
            found.push((form == Form::Single, path, form));
        }
        found.sort_by(|one, other| (one.0, &one.1).cmp(&(other.0, &other.1)));
        let cap = u64::try_from(MAX_CONF).unwrap_or(u64::MAX);
        let read = |path: &Path| regular::read(path, cap).map_err(|error| chain(&error));
        Ok(found.into_iter().map(|(_, path, form)| Candidate { read: read(&path), path, form }).collect())
    }

    /// The configuration of a network.
    pub fn network(&self, name: &NetworkName) -> Result<NetworkConf, FindError> {
        let candidates = self.candidates()?;
        let found = candidates.iter().find(|one| one.name().as_deref() == Some(name.as_str()));
        let Some(Candidate { path, form, read: Ok(bytes) }) = found else {
            return Err(FindError::Unknown {
                name: name.clone(),
                dir: self.conf.clone(),
                there: named(&candidates),
            });
        };
        conf::parse(bytes, *form).map_err(|source| FindError::Conf { path: path.clone(), source })
    }

    /// The programs of its plugins. That of `ipam` is run by another plugin, and must be there, too.
    pub fn programs(&self, conf: &NetworkConf) -> Result<Vec<PathBuf>, FindError> {
        let program = |kind: &str| {
            let found = self.bin.iter().map(|dir| dir.join(kind)).find(|path| is_program(path));
            found.ok_or_else(|| FindError::NoPlugin {
                kind: kind.to_owned(),
                network: conf.name.clone(),
                dirs: self.bin.iter().map(|dir| dir.display().to_string()).collect::<Vec<_>>().join(", "),
            })
        };
        for plugin in &conf.plugins {
            let of_addresses = plugin.config.get("ipam").and_then(|ipam| ipam.get("type")?.as_str());
            of_addresses.map(program).transpose()?;
        }
        conf.plugins.iter().map(|plugin| program(&plugin.kind)).collect()
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

/// The networks that there are.
fn named(candidates: &[Candidate]) -> String {
    let names: Vec<String> =
        candidates.iter().filter_map(|one| one.parse().ok()).map(|conf| conf.name.to_string()).collect();
    let unusable = candidates.len() - names.len();
    let mut said = match names.len() {
        0 => "it has no configuration that can be used".to_owned(),
        1..=MAX_NAMED => format!("there are {}", names.join(", ")),
        count => format!("there are {} and {} more", names[..MAX_NAMED].join(", "), count - MAX_NAMED),
    };
    if unusable > 0 {
        said += &format!(", and {unusable} that cannot be used (`magikvm doctor` says why)");
    }
    said
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(files: &[(&str, &str)]) -> (tempfile::TempDir, Places) {
        let base = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(base.path().join(name), text).unwrap();
        }
        let places = Places { conf: base.path().to_owned(), bin: vec![base.path().to_owned()] };
        (base, places)
    }

    #[test]
    fn a_network_is_found_by_the_name_in_its_file() {
        let (base, places) = places(&[
            (
                "10-a.conflist",
                r#"{"cniVersion":"1.0.0","name":"web","plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}"#,
            ),
            ("00-b.conf", r#"{"cniVersion":"0.3.1","name":"single","type":"ptp"}"#),
            ("20-broken.conflist", "{"),
            ("notes.txt", "x"),
        ]);
        let web = places.network(&"web".parse().unwrap()).unwrap();
        assert_eq!(web.plugins[0].kind, "bridge");
        assert_eq!(places.network(&"single".parse().unwrap()).unwrap().plugins[0].kind, "ptp");
        let said = places.network(&"other".parse().unwrap()).unwrap_err().to_string();
        assert!(
            said.contains("configures a network other; there are web, single, and 1 that cannot be used"),
            "{said}"
        );
        let program = |name: &str, mode| {
            fs::write(base.path().join(name), "").unwrap();
            fs::set_permissions(base.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
        };
        program("bridge", 0o755);
        let said = places.programs(&web).unwrap_err().to_string();
        assert!(said.contains("the CNI plugin host-local of the network web is not in"), "{said}");
        program("host-local", 0o644);
        assert!(places.programs(&web).is_err());
        program("host-local", 0o755);
        assert_eq!(places.programs(&web).unwrap(), [base.path().join("bridge")]);
    }

    #[test]
    fn without_the_directory_there_is_no_network() {
        let places = Places { conf: "/nonexistent/net.d".into(), bin: Vec::new() };
        let said = places.network(&"web".parse().unwrap()).unwrap_err().to_string();
        assert!(said.ends_with("it has no configuration that can be used"), "{said}");
    }
}
