//! Volumes and their mounts as meant. The files of the host are not looked at here.

use super::checks::Build;
use super::expand::expand;
use super::k8s;
use super::objects::{AccessMode, Claim, Object, ObjectKind, Objects, VolumeMode};
use super::plan::{EnvVar, GroupChange, HostPathKind, MountSpec, VolumeSource, VolumeSpec};
use super::problem::quote;
use super::quantity::Quantity;
use magikvm_proto::id::{Namespace, PodName};
use magikvm_proto::limits::{MAX_MOUNTS_PER_CONTAINER, MAX_VOLUMES_PER_POD};
use magikvm_proto::volume::{Access, PathError, check_destination, check_sub_path, names};
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

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
                VolumeSource::Files(_)
                | VolumeSource::Image { .. }
                | VolumeSource::Claim { access: Access::ReadOnly, .. } => Changes::Never,
                VolumeSource::HostPath { .. }
                | VolumeSource::Memory { .. }
                | VolumeSource::Disk { .. }
                | VolumeSource::Claim { .. } => Changes::Possible,
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
        let path = |field: &str| format!("{at}.{field}");
        let mut given: Vec<Option<VolumeSource>> = Vec::new();
        if let Some(written) = &written.host_path {
            given.push(self.host_path(&path("hostPath"), written));
        }
        if let Some(written) = &written.empty_dir {
            given.push(self.empty_dir(&path("emptyDir"), written));
        }
        if let Some(written) = &written.config_map {
            given.push(self.config_map(&path("configMap"), written));
        }
        if let Some(written) = &written.secret {
            given.push(self.secret(&path("secret"), written));
        }
        if let Some(written) = &written.projected {
            given.push(self.projected(&path("projected"), written));
        }
        if let Some(written) = &written.downward_api {
            given.push(self.downward_api(&path("downwardAPI"), written));
        }
        if let Some(written) = &written.image {
            given.push(self.image_volume(&path("image"), written));
        }
        if let Some(written) = &written.persistent_volume_claim {
            given.push(self.claim(&path("persistentVolumeClaim"), written));
        }
        if let Some(written) = &written.ephemeral {
            given.push(self.ephemeral(&path("ephemeral"), written));
        }
        if given.len() > 1 {
            self.problem(at, "has more than one source", "keep one of them");
            return None;
        }
        given.pop().unwrap_or_else(|| {
            // The default of an API server, unless it is only that its source is not supported.
            let refused = self.report.is_about(at);
            (!refused).then_some(VolumeSource::Disk { size_bytes: None })
        })
    }

    fn image_volume(&mut self, at: &str, written: &k8s::ImageVolume) -> Option<VolumeSource> {
        let path = format!("{at}.reference");
        let image_text = self.required(&path, written.reference.as_deref())?;
        let image = self.reference(&path, image_text);
        let policy = written.pull_policy.as_deref();
        let pull_policy = self.pull_policy(&format!("{at}.pullPolicy"), policy, image.as_ref());
        Some(VolumeSource::Image { image: image?, image_text: image_text.to_owned(), pull_policy })
    }

    /// A claim of the file, or one that the host may have.
    fn claim(&mut self, at: &str, written: &k8s::ClaimVolume) -> Option<VolumeSource> {
        let path = format!("{at}.claimName");
        let name = self.required(&path, written.claim_name.as_deref())?;
        let name = self.parsed::<PodName>(&path, name)?;
        let objects: &Objects = self.objects;
        let object = objects.get(ObjectKind::PersistentVolumeClaim, name.as_str());
        let make = object.and_then(|object| object.claim.clone());
        if make.as_ref().is_some_and(|claim| claim.volume_mode == VolumeMode::Block) {
            let message = format!("{name} has `volumeMode: Block`, and block devices are not given to pods");
            self.problem(&path, message, "leave volumeMode out of the claim");
        }
        let only_reads =
            |claim: &Claim| claim.access_modes.iter().all(|mode| *mode == AccessMode::ReadOnlyMany);
        let access = match written.read_only || make.as_ref().is_some_and(only_reads) {
            true => Access::ReadOnly,
            false => Access::ReadWrite,
        };
        Some(VolumeSource::Claim { name, make, access })
    }

    /// A volume that lives as long as its pod: nothing else distinguishes it from an emptyDir with a limit.
    fn ephemeral(&mut self, at: &str, written: &k8s::Ephemeral) -> Option<VolumeSource> {
        let path = |field: &str| format!("{at}.volumeClaimTemplate.spec.{field}");
        let spec = written.volume_claim_template.as_ref().and_then(|template| template.spec.as_ref());
        let modes: &[String] = spec.map_or(&[], |spec| &spec.access_modes);
        if modes.is_empty() {
            self.problem(&path("accessModes"), "is missing", "write `accessModes: [ReadWriteOnce]`");
        }
        for (index, mode) in modes.iter().enumerate() {
            let at = format!("{}[{index}]", path("accessModes"));
            self.one_of(&at, Some(mode), AccessMode::ReadWriteOnce, &AccessMode::ALL);
        }
        let storage = spec.and_then(|spec| spec.resources.requests.storage.as_deref());
        let at = path("resources.requests.storage");
        let text = self.required(&at, storage)?;
        match self.size_limit(&at, text) {
            Some(bytes) => Some(VolumeSource::Disk { size_bytes: Some(bytes) }),
            None => {
                self.problem(&at, format!("{} is no size", quote(text)), "");
                None
            }
        }
    }

    pub(super) fn group_change(&mut self, spec: &k8s::Spec) -> GroupChange {
        let table = [("Always", GroupChange::Always), ("OnRootMismatch", GroupChange::OnRootMismatch)];
        let written = spec.security_context.fs_group_change_policy.as_deref();
        self.one_of("spec.securityContext.fsGroupChangePolicy", written, GroupChange::Always, &table)
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
            let message = format!("{kind} is not supported: a pod can't use the host's sockets and devices");
            let hint = match kind {
                "Socket" => {
                    "reach a server of the host by its port, with the annotation magikvm.dev/egress-reach"
                }
                _ => {
                    "leave the volume out: a privileged container of a pod with a VM has the devices of that VM"
                }
            };
            self.problem(&type_at, message, hint);
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
            Some(other) if other.starts_with("HugePages") => {
                let message = format!(
                    "{} is not supported: a container uses huge pages by mmap(2) with MAP_HUGETLB",
                    quote(other)
                );
                self.problem(&format!("{at}.medium"), message, "write Memory or leave it out");
                None
            }
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
            let message = format!("there is no {kind} {} in {}", quote(name), objects.place());
            self.problem(path, message, hint);
        }
        found
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
            self.recursive_read_only(&at, mount);
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

    /// What is mounted beneath a read-only volume is read-only in any case, so that only Kubernetes' rule is left.
    fn recursive_read_only(&mut self, at: &str, mount: &k8s::VolumeMount) {
        if let Some(mode @ ("IfPossible" | "Enabled")) = mount.recursive_read_only.as_deref()
            && !mount.read_only
        {
            let message = format!("{mode} is only possible for a mount that is read-only");
            self.problem(&format!("{at}.recursiveReadOnly"), message, "set `readOnly: true`");
        }
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
        let checked = check_sub_path(&path).map_err(|error| match mount.sub_path_expr.as_deref() {
            // The values of its variables may be those of a Secret.
            Some(expression) if plain.is_none() => {
                format!("{} stands for a path that {error}", quote(expression))
            }
            _ => format!("{} {error}", quote(&path)),
        });
        self.check(&format!("{at}.{field}"), checked);
        // `.` is the whole volume.
        Some(names(&path).collect::<Vec<_>>().join("/")).filter(|path| !path.is_empty())
    }

    /// Expands an expression. As in Kubernetes, an unknown variable is an error here, unlike in arguments.
    fn expanded(&mut self, path: &str, expression: &str, env: &[EnvVar]) -> Option<String> {
        let mut known: HashMap<String, String> = HashMap::new();
        let mut late: HashSet<&str> = HashSet::new();
        for variable in env {
            if variable.field.is_some() || variable.file.is_some() {
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
                let message = format!(
                    "the variable {} has its value only when the pod or the container is made",
                    quote(name)
                );
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
