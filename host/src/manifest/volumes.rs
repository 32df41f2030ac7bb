//! Volumes and their mounts as meant. The files of the host are not looked at here.

use super::checks::Build;
use super::expand::expand;
use super::k8s;
use super::objects::{Content, Object, ObjectKind, Objects};
use super::plan::{EnvVar, HostPathKind, MountSpec, VolumeFile, VolumeSource, VolumeSpec};
use super::problem::quote;
use super::quantity::Quantity;
use magikvm_proto::id::Namespace;
use magikvm_proto::limits::{MAX_MOUNTS_PER_CONTAINER, MAX_VOLUMES_PER_POD};
use magikvm_proto::volume::{Access, PathError, check_destination, check_sub_path, names};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;

/// Default permissions of the files of a ConfigMap or Secret.
const DEFAULT_MODE: u16 = 0o644;
/// Least size of an emptyDir, in bytes. A smaller one is a missing suffix.
pub(super) const MIN_SIZE_LIMIT: u64 = 1 << 20;
/// Largest size of an emptyDir, in bytes.
const MAX_SIZE_LIMIT: u64 = 1 << 40;

/// A pod's volumes by name: the index, and whether it can be changed if that is known.
pub(super) type Known = HashMap<String, (usize, Option<Changes>)>;

/// Whether a volume can be changed at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changes {
    Possible,
    Never,
}

impl<'a> Build<'a> {
    /// The pod's volumes. Some are missing only after a problem was reported.
    pub(super) fn volumes(&mut self) -> (Vec<VolumeSpec>, Known) {
        let written: &'a [k8s::Volume] = &self.written.pod.spec.volumes;
        self.count("spec.volumes", written.len(), MAX_VOLUMES_PER_POD);
        let (mut volumes, mut known): (Vec<VolumeSpec>, _) = (Vec::new(), Known::new());
        let mut seen = HashMap::new();
        for (index, volume) in written.iter().enumerate() {
            if self.written.is_injected(volume.name.as_deref()) {
                continue;
            }
            let at = format!("spec.volumes[{index}]");
            let path = format!("{at}.name");
            let name = self.required(&path, volume.name.as_deref());
            let valid = name.and_then(|name| self.parsed::<Namespace>(&path, name));
            let source = self.source(&at, volume);
            let Some(name) = name else { continue };
            let changes = source.as_ref().map(|source| match source {
                VolumeSource::Files(_) => Changes::Never,
                _ => Changes::Possible,
            });
            known.insert(name.to_owned(), (volumes.len(), changes));
            if let Some(first) = seen.insert(name, index) {
                let message = format!("{} is also the name of spec.volumes[{first}]", quote(name));
                self.problem(&path, message, "names are unique within a pod");
            }
            volumes.extend(
                valid.zip(source).map(|(name, source)| VolumeSpec { name: name.to_string(), source }),
            );
        }
        (volumes, known)
    }

    fn source(&mut self, at: &str, written: &k8s::Volume) -> Option<VolumeSource> {
        let k8s::Volume { host_path, empty_dir, config_map, secret, name: _ } = written;
        match (host_path, empty_dir, config_map, secret) {
            (Some(written), None, None, None) => self.host_path(&format!("{at}.hostPath"), written),
            (None, Some(written), None, None) => self.empty_dir(&format!("{at}.emptyDir"), written),
            (None, None, Some(written), None) => {
                self.files(&format!("{at}.configMap"), "name", ObjectKind::ConfigMap, written)
            }
            (None, None, None, Some(written)) => {
                self.files(&format!("{at}.secret"), "secretName", ObjectKind::Secret, written)
            }
            (None, None, None, None) => {
                // The default of an API server, unless it is only that its source is not supported.
                let refused = self.report.is_about(at);
                (!refused).then_some(VolumeSource::Disk { size_bytes: None })
            }
            _ => {
                self.problem(at, "has more than one source", "keep one of them");
                None
            }
        }
    }

    fn host_path(&mut self, at: &str, written: &k8s::HostPath) -> Option<VolumeSource> {
        let path_at = format!("{at}.path");
        let path = self.required(&path_at, written.path.as_deref())?;
        let checked = match check_destination(path) {
            // Paths that are reserved in a container are not reserved on the host.
            Ok(()) | Err(PathError::Reserved) => Ok(()),
            Err(error) => Err(format!("{} {error}", quote(path))),
        };
        self.check(&path_at, checked);
        let type_at = format!("{at}.type");
        if let Some(kind @ ("Socket" | "CharDevice" | "BlockDevice")) = written.kind.as_deref() {
            let message = format!("{kind} is not supported: a VM can't use the host's sockets and devices");
            self.problem(&type_at, message, "");
            return None;
        }
        let table = [
            ("", HostPathKind::Any),
            ("Directory", HostPathKind::Directory),
            ("DirectoryOrCreate", HostPathKind::DirectoryOrCreate),
            ("File", HostPathKind::File),
            ("FileOrCreate", HostPathKind::FileOrCreate),
        ];
        let kind = self.one_of(&type_at, written.kind.as_deref(), HostPathKind::Any, &table);
        Some(VolumeSource::HostPath { path: PathBuf::from(path), kind })
    }

    fn empty_dir(&mut self, at: &str, written: &k8s::EmptyDir) -> Option<VolumeSource> {
        let size_bytes =
            written.size_limit.as_deref().and_then(|text| self.size_limit(&format!("{at}.sizeLimit"), text));
        match written.medium.as_deref() {
            None | Some("") => Some(VolumeSource::Disk { size_bytes }),
            Some("Memory") => Some(VolumeSource::Memory { size_bytes }),
            Some(other) => {
                let message = format!("{} is not supported", quote(other));
                self.problem(&format!("{at}.medium"), message, "write Memory or leave it out");
                None
            }
        }
    }

    /// Zero means no limit, as in Kubernetes.
    pub(super) fn size_limit(&mut self, path: &str, text: &str) -> Option<u64> {
        let bytes = match Quantity::parse(text).and_then(Quantity::units) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.problem(path, format!("{} {error}", quote(text)), "");
                return None;
            }
        };
        if bytes != 0 && !(MIN_SIZE_LIMIT..=MAX_SIZE_LIMIT).contains(&bytes) {
            self.problem(path, format!("{} is {bytes} bytes, 1Mi to 1Ti are possible", quote(text)), "");
        }
        Some(bytes).filter(|&bytes| bytes != 0)
    }

    /// The object with this name. A missing one is reported unless it is optional.
    pub(super) fn object(
        &mut self,
        path: &str,
        kind: ObjectKind,
        name: &str,
        optional: bool,
    ) -> Option<&'a Object> {
        let objects: &'a Objects = self.objects;
        let found = objects.get(kind, name);
        if found.is_none() && !optional {
            let hint = format!(
                "add the {kind} as another document, after a line of three dashes, or set `optional: true`"
            );
            self.problem(path, format!("there is no {kind} {} in this file", quote(name)), hint);
        }
        found
    }

    fn files(
        &mut self,
        at: &str,
        name_field: &str,
        kind: ObjectKind,
        written: &k8s::ObjectVolume,
    ) -> Option<VolumeSource> {
        let default = self.mode(&format!("{at}.defaultMode"), written.default_mode).unwrap_or(DEFAULT_MODE);
        let path = format!("{at}.{name_field}");
        let name = self.required(&path, written.name.as_deref())?;
        let Some(object) = self.object(&path, kind, name, written.optional) else {
            return written.optional.then(|| VolumeSource::Files(Vec::new()));
        };
        let all = || {
            let file = |(key, content): (&String, &Content)| VolumeFile {
                path: key.clone(),
                mode: default,
                content: content.clone(),
            };
            object.data.iter().map(file).collect()
        };
        if !self.written.has(&format!("{at}.items")) {
            return Some(VolumeSource::Files(all()));
        }
        let mut files: BTreeMap<Vec<&str>, VolumeFile> = BTreeMap::new();
        for (index, item) in written.items.iter().enumerate() {
            let at = format!("{at}.items[{index}]");
            let mode = self.mode(&format!("{at}.mode"), item.mode).unwrap_or(default);
            let key = self.required(&format!("{at}.key"), item.key.as_deref());
            let path_at = format!("{at}.path");
            let file = self.required(&path_at, item.path.as_deref());
            let (Some(key), Some(file)) = (key, file) else { continue };
            self.check(&path_at, check_sub_path(file).map_err(|error| format!("{} {error}", quote(file))));
            let content = match object.data.get(key) {
                Some(content) => content.clone(),
                None if written.optional => continue,
                None => {
                    self.problem(
                        &format!("{at}.key"),
                        format!("{kind} {} has no key {}", quote(name), quote(key)),
                        "",
                    );
                    continue;
                }
            };
            let parts: Vec<&str> = names(file).collect();
            let clashes = files.keys().any(|other| other.starts_with(&parts) || parts.starts_with(other));
            if clashes || parts.is_empty() {
                self.problem(&path_at, format!("{} is not a separate path in this volume", quote(file)), "");
                continue;
            }
            files.insert(parts.clone(), VolumeFile { path: parts.join("/"), mode, content });
        }
        Some(VolumeSource::Files(files.into_values().collect()))
    }

    fn mode(&mut self, path: &str, mode: Option<i64>) -> Option<u16> {
        let mode = mode?;
        match u16::try_from(mode).ok().filter(|&mode| mode <= 0o777) {
            Some(mode) => Some(mode),
            None => {
                self.problem(
                    path,
                    format!("must be 0000 to 0777, not {mode}"),
                    "octal modes begin with a zero",
                );
                None
            }
        }
    }

    /// The volume mounts of the container at this path.
    pub(super) fn mounts(
        &mut self,
        at: &str,
        written: &[k8s::VolumeMount],
        known: &Known,
        env: &[EnvVar],
    ) -> Vec<MountSpec> {
        let list = format!("{at}.volumeMounts");
        self.count(&list, written.len(), MAX_MOUNTS_PER_CONTAINER);
        let mut seen: HashMap<Vec<&str>, usize> = HashMap::new();
        let mut mounts = Vec::new();
        for (index, mount) in written.iter().enumerate() {
            if self.written.is_injected(mount.name.as_deref()) {
                continue;
            }
            let at = format!("{list}[{index}]");
            let path_at = format!("{at}.mountPath");
            let path = self.required(&path_at, mount.mount_path.as_deref());
            if let Some(path) = path {
                let checked = check_destination(path).map_err(|error| error.to_string());
                let colon = if path.contains(':') { Err("must not contain ':'".to_owned()) } else { Ok(()) };
                self.check(&path_at, checked.and(colon).map_err(|error| format!("{} {error}", quote(path))));
                if let Some(first) = seen.insert(names(path).collect(), index) {
                    self.problem(&path_at, format!("is also that of {list}[{first}]"), "");
                }
            }
            let sub_path = self.sub_path(&at, mount, env);
            let name_at = format!("{at}.name");
            let Some(name) = self.required(&name_at, mount.name.as_deref()) else { continue };
            let Some(&(volume, changes)) = known.get(name) else {
                self.problem(
                    &name_at,
                    format!("there is no volume {}", quote(name)),
                    "volumes are in spec.volumes",
                );
                continue;
            };
            let Some(path) = path else { continue };
            let access = match (mount.read_only, changes) {
                (true, _) | (_, Some(Changes::Never)) => Access::ReadOnly,
                (false, _) => Access::ReadWrite,
            };
            mounts.push(MountSpec { volume, path: path.to_owned(), sub_path, access });
        }
        mounts
    }

    fn sub_path(&mut self, at: &str, mount: &k8s::VolumeMount, env: &[EnvVar]) -> Option<String> {
        let plain = mount.sub_path.as_deref().filter(|path| !path.is_empty());
        let (path, field) = match (plain, mount.sub_path_expr.as_deref().filter(|path| !path.is_empty())) {
            (Some(_), Some(_)) => {
                self.problem(&format!("{at}.subPathExpr"), "can't be beside `subPath`", "keep one of them");
                return None;
            }
            (Some(path), None) => (path.to_owned(), "subPath"),
            (None, Some(expression)) => {
                (self.expanded(&format!("{at}.subPathExpr"), expression, env)?, "subPathExpr")
            }
            (None, None) => return None,
        };
        let checked = check_sub_path(&path).map_err(|error| format!("{} {error}", quote(&path)));
        self.check(&format!("{at}.{field}"), checked);
        // `.` is the whole volume.
        Some(names(&path).collect::<Vec<_>>().join("/")).filter(|path| !path.is_empty())
    }

    /// Expands an expression. As in Kubernetes, an unknown variable is an error here, unlike in arguments.
    fn expanded(&mut self, path: &str, expression: &str, env: &[EnvVar]) -> Option<String> {
        let mut known: HashMap<String, String> = HashMap::new();
        let mut late: HashSet<&str> = HashSet::new();
        for variable in env {
            if variable.field.is_some() {
                late.insert(&variable.name);
            } else if let Ok(value) = expand(&variable.value, &known) {
                known.insert(variable.name.clone(), value);
                late.remove(variable.name.as_str());
            }
        }
        // Text that names no variable stays unchanged.
        let references = expression.split("$(").skip(1).filter_map(|rest| rest.split_once(')'));
        for (name, _) in references {
            if late.contains(name) {
                let message = format!("the variable {} has its value only when the VM is made", quote(name));
                self.problem(path, message, "name another variable");
                return None;
            }
            if !known.contains_key(name) && !expression.contains(&format!("$$({name})")) {
                self.problem(path, format!("there is no variable {} in `env`", quote(name)), "");
                return None;
            }
        }
        expand(expression, &known).map_err(|error| self.problem(path, error.to_string(), "")).ok()
    }
}
