//! The source of an import: `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]` or `docker-archive:FILE[:REF]`.

use super::digest::shorten;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// An image outside the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A directory in OCI's image layout.
    OciLayout {
        dir: PathBuf,
        /// The image's `org.opencontainers.image.ref.name`; optional when there is one image.
        tag: Option<String>,
    },
    /// A tar file of such a directory.
    OciArchive { file: PathBuf, tag: Option<String> },
    /// A file written by `docker save` or `skopeo copy … docker-archive:`.
    DockerArchive {
        file: PathBuf,
        /// One of its `RepoTags`, or `@0`, `@1`…; optional when there is one image.
        image: Option<String>,
    },
}

/// The text is not a source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    #[error(
        "{text:?} is not an image source; the forms are oci:DIR[:TAG], oci-archive:FILE[:TAG] and docker-archive:FILE[:REF]"
    )]
    Transport { text: String },
    /// There is no path after the transport.
    #[error("the image source {text:?} names no {what}; the form is {form}")]
    NoPath { text: String, what: &'static str, form: &'static str },
    /// Nothing follows the last colon.
    #[error("the image source {text:?} ends in \":\"; the form is {form} (a path cannot contain \":\")")]
    EmptyChoice { text: String, form: &'static str },
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        let (transport, rest) = text.split_once(':').unwrap_or((text, ""));
        let (form, what) = match transport {
            "oci" => ("oci:DIR[:TAG]", "directory"),
            "oci-archive" => ("oci-archive:FILE[:TAG]", "file"),
            "docker-archive" => ("docker-archive:FILE[:REF]", "file"),
            _ => return Err(SourceError::Transport { text: shorten(text) }),
        };
        // As in skopeo, the path ends at the first colon: the rest may contain colons (`oci:dir:docker.io/a:1`).
        let (path, choice) = rest.split_once(':').map_or((rest, None), |(path, choice)| (path, Some(choice)));
        if path.is_empty() {
            return Err(SourceError::NoPath { text: shorten(text), what, form });
        }
        if choice == Some("") {
            return Err(SourceError::EmptyChoice { text: shorten(text), form });
        }
        let (path, choice) = (PathBuf::from(path), choice.map(str::to_owned));
        Ok(match transport {
            "oci" => Self::OciLayout { dir: path, tag: choice },
            "oci-archive" => Self::OciArchive { file: path, tag: choice },
            _ => Self::DockerArchive { file: path, image: choice },
        })
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, choice) = match self {
            Self::OciLayout { dir, tag } => ("oci", dir, tag),
            Self::OciArchive { file, tag } => ("oci-archive", file, tag),
            Self::DockerArchive { file, image } => ("docker-archive", file, image),
        };
        write!(f, "{transport}:{}", path.display())?;
        choice.as_ref().map_or(Ok(()), |choice| write!(f, ":{choice}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn all_forms_with_and_without_a_choice() {
        let oci =
            |dir: &str, tag: Option<&str>| Source::OciLayout { dir: dir.into(), tag: tag.map(str::to_owned) };
        assert_eq!("oci:/tmp/x".parse(), Ok(oci("/tmp/x", None)));
        assert_eq!("oci:x:latest".parse(), Ok(oci("x", Some("latest"))));
        assert_eq!("oci:x:docker.io/a/b:1".parse(), Ok(oci("x", Some("docker.io/a/b:1"))));
        let archive = Source::DockerArchive { file: "a.tar".into(), image: Some("busybox:1".into()) };
        assert_eq!("docker-archive:a.tar:busybox:1".parse(), Ok(archive));
        let archive = Source::OciArchive { file: "a.tar".into(), tag: Some("1".into()) };
        assert_eq!("oci-archive:a.tar:1".parse(), Ok(archive));
    }

    #[test]
    fn errors_say_what_forms_exist() {
        for text in ["", "busybox", "docker://busybox", "dir:x"] {
            let error = text.parse::<Source>().unwrap_err().to_string();
            assert!(error.contains("oci:DIR[:TAG]") && error.contains("docker-archive:FILE"), "{error}");
        }
        assert!("oci:".parse::<Source>().unwrap_err().to_string().contains("names no directory"));
        assert!("docker-archive::x".parse::<Source>().unwrap_err().to_string().contains("names no file"));
        assert!(matches!("oci:x:".parse::<Source>(), Err(SourceError::EmptyChoice { .. })));
    }

    proptest! {
        #[test]
        fn what_is_shown_reads_back(text in "(oci|oci-archive|docker-archive):[a-z/.]{1,10}(:[a-z:/@0-9]{1,10})?") {
            let source: Source = text.parse().unwrap();
            prop_assert_eq!(source.to_string(), text);
        }
    }
}
