//! The files that verbs read manifests from: positional or with `-f`, directories, standard input.

use super::error::{CliError, Kind};
use crate::manifest::ObjectKind;
use crate::manifest::input::{Accepts, Source};
use magikvm_proto::limits::MAX_MANIFEST_SIZE;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// Most files of one input.
const MAX_FILES: usize = 256;
/// Most bytes of all files of one input.
const MAX_INPUT_SIZE: usize = 8 << 20;
/// Deepest nesting of directories that `-R` looks into.
const MAX_DEPTH: usize = 32;
/// Longest chain of links that is followed.
const MAX_LINKS: usize = 40;
/// Ends of the names that are read in a directory.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// Manifests on the command line.
#[derive(Debug, clap::Args)]
pub(super) struct Files {
    /// Manifests in YAML or JSON; of a directory all *.yaml, *.yml and *.json; `-` reads standard input
    #[arg(value_name = "FILE", required_unless_present = "filename")]
    files: Vec<PathBuf>,
    /// Read this manifest or directory too; can be repeated
    #[arg(short, long, value_name = "FILE")]
    filename: Vec<PathBuf>,
    /// Read directories within directories too
    #[arg(short = 'R', long)]
    recursive: bool,
}

/// Objects in files of their own.
#[derive(Debug, clap::Args)]
pub(super) struct Objects {
    /// Let the pods use the ConfigMaps in this file; can be repeated
    #[arg(long, value_name = "FILE")]
    configmap: Vec<PathBuf>,
    /// Let the pods use the Secrets in this file; can be repeated
    #[arg(long, value_name = "FILE")]
    secret: Vec<PathBuf>,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
enum InputError {
    #[error("cannot read the manifest {origin}")]
    Unreadable { origin: String, source: std::io::Error },
    #[error("{0} is a URL, and only files of this host are read")]
    Url(String),
    #[error("the directory {} holds no manifest", .0.display())]
    Empty(PathBuf),
    #[error("more than {MAX_FILES} files are too many for one input")]
    Files,
    #[error("the files hold more than {MAX_INPUT_SIZE} bytes together")]
    Size,
    #[error("directories are nested deeper than {MAX_DEPTH} levels in {}", .0.display())]
    Depth(PathBuf),
    #[error("standard input can be read only once")]
    Twice,
}

impl From<InputError> for CliError {
    fn from(error: InputError) -> Self {
        let hint = match &error {
            InputError::Unreadable { .. } => {
                "Pass the path of a Pod manifest, or `-` for standard input.".to_owned()
            }
            InputError::Url(url) => {
                format!("Look at it first, then pass it on: `curl -fsSL '{url}' | magikvm run -`.")
            }
            InputError::Empty(_) => {
                "Pass a directory with files *.yaml, *.yml or *.json; `-R` also reads the directories in it."
                    .to_owned()
            }
            InputError::Files | InputError::Size => "Run them in several parts.".to_owned(),
            InputError::Depth(_) => "Name the directories one by one.".to_owned(),
            InputError::Twice => "Pass `-` once.".to_owned(),
        };
        let kind = if matches!(error, InputError::Twice) { Kind::Code(2) } else { Kind::User };
        Self::of(kind, &error).hint(hint)
    }
}

impl Files {
    /// Those of a verb that takes no positional ones.
    pub(super) fn of(filename: Vec<PathBuf>, recursive: bool) -> Self {
        Self { files: Vec::new(), filename, recursive }
    }

    /// Reads all of them, the positional ones first.
    pub(super) fn read(&self) -> Result<Vec<Source>, CliError> {
        let mut reader = Reader::default();
        for path in self.files.iter().chain(&self.filename) {
            reader.path(path, self.recursive)?;
        }
        Ok(reader.sources)
    }

    /// The same with objects of other files.
    pub(super) fn read_with(&self, objects: &Objects) -> Result<Vec<Source>, CliError> {
        let mut reader = Reader { sources: self.read()?, ..Reader::default() };
        reader.has_stdin = self.files.iter().chain(&self.filename).any(|path| is_stdin(path));
        reader.bytes = reader.sources.iter().map(|source| source.bytes.len()).sum();
        let lists = [
            (ObjectKind::ConfigMap, "--configmap", &objects.configmap),
            (ObjectKind::Secret, "--secret", &objects.secret),
        ];
        for (kind, option, paths) in lists {
            for path in paths {
                reader.file(path, Accepts::Only { kind, option })?;
            }
        }
        Ok(reader.sources)
    }
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> InputError {
    move |source| InputError::Unreadable { origin: path.display().to_string(), source }
}

#[derive(Debug, Default)]
struct Reader {
    sources: Vec<Source>,
    bytes: usize,
    has_stdin: bool,
}

impl Reader {
    fn path(&mut self, path: &Path, recursive: bool) -> Result<(), InputError> {
        if is_stdin(path) || !path.is_dir() {
            return self.file(path, Accepts::Everything);
        }
        let before = self.sources.len();
        self.directory(path, recursive, 0)?;
        if self.sources.len() == before { Err(InputError::Empty(path.to_owned())) } else { Ok(()) }
    }

    fn directory(&mut self, path: &Path, recursive: bool, depth: usize) -> Result<(), InputError> {
        if depth > MAX_DEPTH {
            return Err(InputError::Depth(path.to_owned()));
        }
        let entries = std::fs::read_dir(path).map_err(unreadable(path))?;
        let mut paths: Vec<PathBuf> = entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<_, _>>()
            .map_err(unreadable(path))?;
        paths.sort();
        for path in paths {
            // Links to directories may lead in circles; links to files are how ConfigMaps are mounted.
            let is_directory = path.symlink_metadata().is_ok_and(|there| there.is_dir());
            let ending = path.extension().and_then(|ending| ending.to_str());
            if is_directory && recursive {
                self.directory(&path, recursive, depth + 1)?;
            } else if ending.is_some_and(|ending| ENDINGS.contains(&ending)) && !path.is_dir() {
                self.file(&path, Accepts::Everything)?;
            }
        }
        Ok(())
    }

    /// Reads a file. One byte over the limit is read, no more, so that the parser can say so.
    fn file(&mut self, path: &Path, accepts: Accepts) -> Result<(), InputError> {
        let text = path.to_string_lossy();
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        if scheme.is_some_and(|scheme| matches!(scheme.as_str(), "http" | "https")) {
            return Err(InputError::Url(text.into_owned()));
        }
        if self.sources.len() == MAX_FILES {
            return Err(InputError::Files);
        }
        let limit = u64::try_from(MAX_MANIFEST_SIZE).unwrap_or(u64::MAX) + 1;
        let mut bytes = Vec::new();
        let origin = if is_stdin(path) {
            if std::mem::replace(&mut self.has_stdin, true) {
                return Err(InputError::Twice);
            }
            let origin = "standard input".to_owned();
            let read = std::io::stdin().take(limit).read_to_end(&mut bytes);
            read.map_err(|source| InputError::Unreadable { origin: origin.clone(), source })?;
            origin
        } else {
            if is_named_fifo(path) {
                let message = "it is a FIFO, and nothing may ever be written to it";
                let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, message);
                return Err(unreadable(path)(error));
            }
            let file = File::open(path).map_err(unreadable(path))?;
            file.take(limit).read_to_end(&mut bytes).map_err(unreadable(path))?;
            path.display().to_string()
        };
        self.bytes += bytes.len();
        if self.bytes > MAX_INPUT_SIZE {
            return Err(InputError::Size);
        }
        self.sources.push(Source { origin, bytes, accepts });
        Ok(())
    }
}

/// Whether a path leads to a FIFO that has yet to be opened. A descriptor of this process (`/dev/stdin`, `<(command)` of a shell) is open
/// already.
fn is_named_fifo(path: &Path) -> bool {
    let mut place = path.to_owned();
    for _ in 0..MAX_LINKS {
        let is_descriptor = place == Path::new("/dev/stdin")
            || place.parent().is_some_and(|dir| {
                dir == Path::new("/dev/fd") || (dir.starts_with("/proc") && dir.ends_with("fd"))
            });
        if is_descriptor {
            return false;
        }
        let Ok(target) = std::fs::read_link(&place) else { break };
        place = place.parent().map_or_else(|| target.clone(), |parent| parent.join(&target));
    }
    std::fs::metadata(path).is_ok_and(|there| there.file_type().is_fifo())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(dir: &Path, recursive: bool) -> Vec<String> {
        let files = Files { files: vec![dir.to_owned()], filename: Vec::new(), recursive };
        let sources = files.read().unwrap();
        let below =
            |source: Source| Path::new(&source.origin).strip_prefix(dir).unwrap().display().to_string();
        sources.into_iter().map(below).collect()
    }

    #[test]
    fn directories_are_read_in_order_and_not_beyond() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("sub/deep")).unwrap();
        std::fs::create_dir(dir.path().join("not-a-file.yaml")).unwrap();
        for name in ["b.yaml", "a.yml", "c.json", "README.md", "x.yaml.bak", "sub/d.yaml", "sub/deep/e.json"]
        {
            std::fs::write(dir.path().join(name), "").unwrap();
        }
        std::os::unix::fs::symlink(dir.path(), dir.path().join("sub/loop")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("b.yaml"), dir.path().join("z.yaml")).unwrap();
        assert_eq!(origins(dir.path(), false), ["a.yml", "b.yaml", "c.json", "z.yaml"]);
        let all = ["a.yml", "b.yaml", "c.json", "sub/d.yaml", "sub/deep/e.json", "z.yaml"];
        assert_eq!(origins(dir.path(), true), all);
    }

    #[test]
    fn an_input_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let large = vec![b'#'; MAX_MANIFEST_SIZE];
        for number in 0..9 {
            std::fs::write(dir.path().join(format!("{number}.yaml")), &large).unwrap();
        }
        let mut reader = Reader::default();
        assert!(matches!(reader.path(dir.path(), false), Err(InputError::Size)));
        let many = tempfile::tempdir().unwrap();
        for number in 0..=MAX_FILES {
            std::fs::write(many.path().join(format!("{number}.yaml")), "").unwrap();
        }
        assert!(matches!(Reader::default().path(many.path(), false), Err(InputError::Files)));
    }
}
