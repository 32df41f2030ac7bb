//! Volumes that are files with known content: ConfigMaps, Secrets, the downward API, and projections of several of them.

use super::checks::Build;
use super::downward::{Told, Use};
use super::k8s;
use super::objects::{Content, ObjectKind};
use super::plan::{LateField, VolumeFile, VolumeSource};
use super::problem::quote;
use magikvm_proto::volume::{check_sub_path, names};
use std::collections::{BTreeMap, HashSet};

/// Default permissions of a file.
const DEFAULT_MODE: u16 = 0o644;

/// The files of a volume while they are collected from its sources, by the parts of their paths.
#[derive(Default)]
struct Collected {
    files: BTreeMap<Vec<String>, VolumeFile>,
    /// Paths that the manifest names, unlike those that are only keys.
    named: HashSet<Vec<String>>,
}

/// How a file gets its path.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// The manifest names it.
    Named,
    /// It is a key of an object.
    Key,
}

impl Collected {
    /// Adds a file, or returns false if its path is that of another one, or leads through one. A file whose path is only a key gives way to a
    /// later one, as in Kubernetes.
    fn add(&mut self, file: VolumeFile, origin: Origin) -> bool {
        let parts: Vec<String> = names(&file.path).map(str::to_owned).collect();
        let within = |other: &Vec<String>| other.starts_with(&parts) || parts.starts_with(other);
        let clashes = self.files.keys().filter(|other| **other != parts).any(within)
            || (origin == Origin::Named && self.named.contains(&parts));
        if clashes || parts.is_empty() {
            return false;
        }
        if origin == Origin::Named {
            self.named.insert(parts.clone());
        }
        self.files.insert(parts.clone(), VolumeFile { path: parts.join("/"), ..file });
        true
    }

    fn source(self) -> VolumeSource {
        VolumeSource::Files(self.files.into_values().collect())
    }
}

/// An object that is a source of files.
struct Source<'a> {
    at: &'a str,
    name_field: &'static str,
    kind: ObjectKind,
    written: &'a k8s::ObjectVolume,
}

impl Build<'_> {
    pub(super) fn config_map(&mut self, at: &str, written: &k8s::ObjectVolume) -> Option<VolumeSource> {
        self.object_volume(&Source { at, name_field: "name", kind: ObjectKind::ConfigMap, written })
    }

    pub(super) fn secret(&mut self, at: &str, written: &k8s::ObjectVolume) -> Option<VolumeSource> {
        self.object_volume(&Source { at, name_field: "secretName", kind: ObjectKind::Secret, written })
    }

    fn object_volume(&mut self, source: &Source<'_>) -> Option<VolumeSource> {
        let mut files = Collected::default();
        let mode = self.default_mode(source.at, source.written.default_mode);
        self.object_files(source, mode, &mut files)?;
        Some(files.source())
    }

    pub(super) fn projected(&mut self, at: &str, written: &k8s::Projected) -> Option<VolumeSource> {
        let mut files = Collected::default();
        let mode = self.default_mode(at, written.default_mode);
        for (index, source) in written.sources.iter().enumerate() {
            let at = format!("{at}.sources[{index}]");
            let name_field = "name";
            match (&source.config_map, &source.secret, &source.downward_api) {
                (Some(written), None, None) => {
                    let at = &format!("{at}.configMap");
                    let source = Source { at, name_field, kind: ObjectKind::ConfigMap, written };
                    self.object_files(&source, mode, &mut files);
                }
                (None, Some(written), None) => {
                    let at = &format!("{at}.secret");
                    let source = Source { at, name_field, kind: ObjectKind::Secret, written };
                    self.object_files(&source, mode, &mut files);
                }
                (None, None, Some(written)) => {
                    self.downward_files(&format!("{at}.downwardAPI"), written, mode, &mut files);
                }
                // A source that is not supported was reported.
                (None, None, None) if self.report.is_about(&at) => {}
                _ => self.problem(&at, "must have one of configMap, secret and downwardAPI", ""),
            }
        }
        Some(files.source())
    }

    pub(super) fn downward_api(&mut self, at: &str, written: &k8s::DownwardApi) -> Option<VolumeSource> {
        let mut files = Collected::default();
        let mode = self.default_mode(at, written.default_mode);
        self.downward_files(at, written, mode, &mut files);
        Some(files.source())
    }

    fn downward_files(&mut self, at: &str, written: &k8s::DownwardApi, mode: u16, files: &mut Collected) {
        for (index, item) in written.items.iter().enumerate() {
            let at = format!("{at}.items[{index}]");
            let told = match (&item.field_ref, &item.resource_field_ref) {
                (Some(field), None) => self.field_ref(&format!("{at}.fieldRef"), field, Use::File),
                (None, Some(resource)) => {
                    self.resource_ref(&format!("{at}.resourceFieldRef"), resource, None)
                }
                _ => {
                    self.problem(&at, "must have one of fieldRef and resourceFieldRef", "");
                    None
                }
            };
            let (content, late) = match told {
                Some(Told::Late(field)) => (Vec::new(), Some(field)),
                Some(Told::Text(text)) => (text.into_bytes(), None),
                None => (Vec::new(), None),
            };
            let mode = self.mode(&format!("{at}.mode"), item.mode).unwrap_or(mode);
            self.named_file(&at, item.path.as_deref(), (mode, content.into(), late), files);
        }
    }

    /// The files of an object. `None`: it is not there, which was reported.
    fn object_files(&mut self, source: &Source<'_>, default: u16, files: &mut Collected) -> Option<()> {
        let Source { at, name_field, kind, written } = source;
        let path = format!("{at}.{name_field}");
        let name = self.required(&path, written.name.as_deref())?;
        let Some(object) = self.object(&path, *kind, name, written.optional) else {
            return written.optional.then_some(());
        };
        if !self.written.has(&format!("{at}.items")) {
            for (key, content) in &object.data {
                self.copy(at, content.bytes().len(), ())?;
                let file =
                    VolumeFile { path: key.clone(), mode: default, content: content.clone(), late: None };
                if !files.add(file, Origin::Key) {
                    let message = format!("its key {} leads through another file of this volume", quote(key));
                    self.problem(at, message, "name the keys in `items`");
                }
            }
            return Some(());
        }
        for (index, item) in written.items.iter().enumerate() {
            let at = format!("{at}.items[{index}]");
            let mode = self.mode(&format!("{at}.mode"), item.mode).unwrap_or(default);
            let Some(key) = self.required(&format!("{at}.key"), item.key.as_deref()) else {
                self.required(&format!("{at}.path"), item.path.as_deref());
                continue;
            };
            match object.data.get(key) {
                Some(content) => {
                    self.named_file(&at, item.path.as_deref(), (mode, content.clone(), None), files);
                }
                None if written.optional => {}
                None => {
                    let message = format!("{kind} {} has no key {}", quote(name), quote(key));
                    self.problem(&format!("{at}.key"), message, "");
                }
            }
        }
        Some(())
    }

    /// A file whose path the item at `at` names.
    fn named_file(
        &mut self,
        at: &str,
        path: Option<&str>,
        (mode, content, late): (u16, Content, Option<LateField>),
        files: &mut Collected,
    ) {
        let path_at = format!("{at}.path");
        let Some(path) = self.required(&path_at, path) else { return };
        if let Err(error) = check_sub_path(path) {
            return self.problem(&path_at, format!("{} {error}", quote(path)), "");
        }
        let bytes = content.bytes().len();
        let file = VolumeFile { path: path.to_owned(), mode, content, late };
        let Some(file) = self.copy(&path_at, bytes, file) else { return };
        if !files.add(file, Origin::Named) {
            let message = format!("{} is not a separate path in this volume", quote(path));
            self.problem(&path_at, message, "");
        }
    }

    fn default_mode(&mut self, at: &str, mode: Option<i64>) -> u16 {
        self.mode(&format!("{at}.defaultMode"), mode).unwrap_or(DEFAULT_MODE)
    }

    fn mode(&mut self, path: &str, mode: Option<i64>) -> Option<u16> {
        let mode = mode?;
        let found = u16::try_from(mode).ok().filter(|&mode| mode <= 0o777);
        if found.is_none() {
            let message = format!("must be 0000 to 0777, not {mode}");
            self.problem(path, message, "octal modes begin with a zero");
        }
        found
    }
}
