//! OCI image layouts (image-spec, image-layout.md). Blobs are opened beneath the layout's directory without following symbolic links, so
//! that no layout can refer to other files of the host.

use super::super::digest::Digest;
use super::super::document::{Descriptor, Document, MAX_TOP};
use super::super::platform::Wanted;
use super::walk::{Documents, for_platform, walk};
use super::{LayerPlace, Local, OpenError, OwnNames};
use nix::fcntl::{OFlag, open as open_file, openat};
use nix::sys::stat::Mode;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";
const MAX_MARKER: u64 = 4096;

#[derive(serde::Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

/// Opens one image of a layout.
pub(super) fn open(dir: &Path, tag: Option<&str>, wanted: &Wanted) -> Result<Local, OpenError> {
    choose_and_walk(&Layout::open(dir)?, tag, wanted)
}

/// Opens one image of a layout in a tar file.
pub(super) fn open_archive(
    file: &impl Files,
    tag: Option<&str>,
    wanted: &Wanted,
) -> Result<Local, OpenError> {
    choose_and_walk(file, tag, wanted)
}

/// The files of a layout: those in a directory or in an archive.
pub(super) trait Files {
    /// A regular file by its path's components: its position and length.
    fn find(&self, components: &[&str]) -> Result<(LayerPlace, u64), OpenError>;

    fn path(&self) -> &Path;

    fn bytes(&self, components: &[&str], limit: u64, what: &str) -> Result<Vec<u8>, OpenError> {
        let (part, size) = self.find(components)?;
        if size > limit {
            return Err(OpenError::TooLarge { what: what.to_owned(), size, limit });
        }
        let mut bytes = vec![0; usize::try_from(size).unwrap_or(0)];
        part.file
            .read_exact_at(&mut bytes, part.offset)
            .map_err(|source| OpenError::Read { path: self.path().join(components.join("/")), source })?;
        Ok(bytes)
    }

    fn json<T: DeserializeOwned>(&self, components: &[&str], limit: u64) -> Result<T, OpenError>
    where
        Self: Sized,
    {
        let what = components.join("/");
        let bytes = self.bytes(components, limit, &what)?;
        serde_json::from_slice(&bytes).map_err(|source| OpenError::Json { what, source })
    }
}

fn blob_path(digest: &Digest) -> [String; 3] {
    ["blobs".to_owned(), "sha256".to_owned(), digest.hex()]
}

impl<F: Files> Documents for F {
    fn document(&self, descriptor: &Descriptor, limit: u64, what: &str) -> Result<Vec<u8>, OpenError> {
        if descriptor.size > limit {
            return Err(OpenError::TooLarge { what: what.to_owned(), size: descriptor.size, limit });
        }
        let path = blob_path(&descriptor.digest);
        let bytes = self.bytes(&path.each_ref().map(String::as_str), limit, what)?;
        let (digest, found) = (descriptor.digest, bytes.len() as u64);
        if found != descriptor.size {
            return Err(OpenError::Size { digest, expected: descriptor.size, found });
        }
        match Digest::of(&bytes) {
            found if found == digest => Ok(bytes),
            found => Err(OpenError::Digest { expected: digest, found }),
        }
    }
}

fn choose_and_walk(files: &impl Files, tag: Option<&str>, wanted: &Wanted) -> Result<Local, OpenError> {
    let not_a_layout = || OpenError::NotALayout { path: files.path().to_owned() };
    let marker: Marker = files.json(&["oci-layout"], MAX_MARKER).map_err(|_| not_a_layout())?;
    if marker.version != "1.0.0" {
        return Err(not_a_layout());
    }
    let index: Document = files.json(&["index.json"], MAX_TOP)?;
    let (top, names) = choose(index.manifests.unwrap_or_default(), tag, wanted)?;
    let opened = walk(files, top, wanted)?;
    let parts = opened
        .layers
        .iter()
        .map(|layer| {
            let Some(digest) = layer.digest else { return Err(not_a_layout()) };
            let path = blob_path(&digest);
            let (part, found) = files.find(&path.each_ref().map(String::as_str))?;
            if found != layer.size {
                return Err(OpenError::Size { digest, expected: layer.size, found });
            }
            Ok(part)
        })
        .collect::<Result<_, _>>()?;
    Ok(Local { opened, parts, names })
}

struct Layout {
    dir: PathBuf,
    fd: OwnedFd,
}

impl Layout {
    fn open(dir: &Path) -> Result<Self, OpenError> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open_file(dir, flags, Mode::empty())
            .map_err(|errno| OpenError::Read { path: dir.to_owned(), source: errno.into() })?;
        Ok(Self { dir: dir.to_owned(), fd })
    }
}

impl Files for Layout {
    fn path(&self) -> &Path {
        &self.dir
    }

    /// No component may be a symbolic link.
    fn find(&self, components: &[&str]) -> Result<(LayerPlace, u64), OpenError> {
        let path = components.iter().fold(self.dir.clone(), |path, component| path.join(component));
        let failed = |source: std::io::Error| OpenError::Read { path: path.clone(), source };
        let mut at: Option<OwnedFd> = None;
        for (index, component) in components.iter().enumerate() {
            let last = index + 1 == components.len();
            // Non-blocking: opening a named pipe must not hang.
            let kind = if last { OFlag::O_NONBLOCK } else { OFlag::O_DIRECTORY };
            let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | kind;
            let parent = at.as_ref().map_or(self.fd.as_fd(), AsFd::as_fd);
            let next =
                openat(parent, *component, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
            at = Some(next);
        }
        let Some(fd) = at else { return Err(OpenError::NotAFile { path }) };
        let file = File::from(fd);
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(OpenError::NotAFile { path });
        }
        Ok((LayerPlace { file: Arc::new(file), offset: 0 }, metadata.len()))
    }
}

fn name(descriptor: &Descriptor) -> Option<&str> {
    [REF_NAME, CONTAINERD_NAME].iter().find_map(|key| descriptor.annotations.get(*key)).map(String::as_str)
}

/// The names of the entries of one image. A reference name is often only a tag; a whole name has a repository in front of it.
fn own_names(manifests: &[Descriptor], digest: &Digest) -> OwnNames {
    let entries = || manifests.iter().filter(|descriptor| descriptor.digest == *digest);
    let of = |key: &'static str| entries().filter_map(move |entry| entry.annotations.get(key).cloned());
    let mut own = OwnNames::of(of(CONTAINERD_NAME), |_| true);
    let others = OwnNames::of(of(REF_NAME), |text| text.contains([':', '/']));
    // A tool that writes both means the same name.
    if own.names.is_empty() {
        own.names = others.names;
    }
    own.marks.extend(others.marks);
    own
}

/// The requested image: by its name, or the only one. With its names.
fn choose(
    manifests: Vec<Descriptor>,
    tag: Option<&str>,
    wanted: &Wanted,
) -> Result<(Descriptor, OwnNames), OpenError> {
    let available: BTreeSet<String> = manifests.iter().filter_map(name).map(str::to_owned).collect();
    let available: Vec<String> = available.into_iter().collect();
    let named = |descriptor: &Descriptor, wanted: &str| {
        [REF_NAME, CONTAINERD_NAME]
            .iter()
            .any(|key| descriptor.annotations.get(*key).is_some_and(|name| name == wanted))
    };
    let mut found: Vec<Descriptor> = match tag {
        Some(tag) => manifests.into_iter().filter(|descriptor| named(descriptor, tag)).collect(),
        None => manifests,
    };
    let all = found.clone();
    found.dedup_by(|a, b| a.digest == b.digest);
    let chosen = match found.len() {
        0 => Err(OpenError::NoSuchImage { wanted: tag.unwrap_or("").to_owned(), available }),
        1 => Ok(found.remove(0)),
        // Several images under one name (or none): one for each platform, or an ambiguous choice.
        _ if available.len() <= 1 && found.iter().all(|descriptor| descriptor.platform.is_some()) => {
            for_platform(found, wanted)
        }
        _ => Err(OpenError::Ambiguous { available }),
    }?;
    let names = own_names(&all, &chosen.digest);
    Ok((chosen, names))
}

#[cfg(test)]
mod tests {
    use super::super::super::reference::Reference;
    use super::*;

    #[test]
    fn an_entry_says_what_it_is_called() {
        let digest = Digest::of(b"x");
        let of = |annotations: serde_json::Value| {
            let entry = serde_json::json!({ "digest": digest, "size": 1, "annotations": annotations });
            let own = own_names(&[serde_json::from_value(entry).unwrap()], &digest);
            (own.names.iter().map(Reference::familiar).collect::<Vec<_>>(), own.marks)
        };
        let name = |text: &str| (vec![text.to_owned()], Vec::new());
        assert_eq!(of(serde_json::json!({ REF_NAME: "ghcr.io/a/b:1" })), name("ghcr.io/a/b:1"));
        assert_eq!(of(serde_json::json!({ REF_NAME: "busybox:1.36" })), name("busybox:1.36"));
        let both = serde_json::json!({ REF_NAME: "1.36", CONTAINERD_NAME: "docker.io/library/busybox:1.36" });
        assert_eq!(of(both), (vec!["busybox:1.36".to_owned()], vec!["1.36".to_owned()]));
        for mark in ["1.36", "latest", "Not A Name:1"] {
            assert_eq!(of(serde_json::json!({ REF_NAME: mark })), (Vec::new(), vec![mark.to_owned()]));
        }
        assert_eq!(of(serde_json::json!({})), (Vec::new(), Vec::new()));
    }
}
