//! limits.toml: the limits of the product that an administrator has raised or lowered.
//!
//! Whoever can write it can make the host spend memory and disk, so that it must belong to root or to the user who runs the pods, and nobody
//! else may write to it.

use magikvm_proto::raised::{self, Raised};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use toml::Spanned;

/// Most bytes of limits.toml.
const MAX_FILE: u64 = 64 << 10;

/// A limit of the file.
pub struct Limit {
    pub key: &'static str,
    /// The value without the file.
    pub default: u64,
    /// The largest value that the programs are made for.
    pub bound: u64,
    pub about: &'static str,
    set: fn(&mut Raised, u64),
}

const fn limit(
    key: &'static str,
    default: u64,
    bound: u64,
    about: &'static str,
    set: fn(&mut Raised, u64),
) -> Limit {
    Limit { key, default, bound, about, set }
}

fn size(value: u64) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

/// Every limit of the file, in the order of the documentation.
pub const LIMITS: &[Limit] = &[
    limit(
        "layer-mib",
        512,
        65_536,
        "MiB of one layer of an image, as stored and as unpacked",
        |all, value| all.layer_bytes = value << 20,
    ),
    limit("rootfs-mib", 4096, 1 << 20, "MiB of one image's root file system", |all, value| {
        all.rootfs_bytes = value << 20;
    }),
    limit("layers", 128, 1024, "layers of one image", |all, value| all.layers = size(value)),
    limit("files-per-layer", 100_000, 2_000_000, "entries of one layer", |all, value| {
        all.files_per_layer = size(value);
    }),
    limit("env-vars", 256, 4096, "environment variables of one container", |all, value| {
        all.env_vars = size(value);
    }),
    limit(
        "grace-secs",
        300,
        magikvm_proto::limits::GRACE_PERIOD_BOUND_SECS,
        "seconds of the longest `terminationGracePeriodSeconds`",
        |all, value| all.grace_secs = value,
    ),
    limit(
        "vm-memory-mib",
        4096,
        magikvm_proto::limits::VM_MEMORY_BOUND_MIB,
        "MiB of memory of the containers of one VM, or of the VM with the annotation `magikvm.dev/memory-mib`",
        |all, value| all.vm_memory_mib = value,
    ),
    limit("vcpus", 8, magikvm_proto::limits::VCPUS_BOUND as u64, "processors of one VM", |all, value| {
        all.vcpus = u32::try_from(value).unwrap_or(u32::MAX);
    }),
    limit("pods", 1024, 16_384, "pods of one state directory", |all, value| all.pods = size(value)),
];

/// Why a limits.toml cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LimitsError {
    #[error("cannot read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A directory, a pipe or a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} is larger than {MAX_FILE} bytes", path.display())]
    TooLarge { path: PathBuf },
    #[error("{} belongs to user {owner}, who is neither root nor the user of this program", path.display())]
    Owner { path: PathBuf, owner: u32 },
    #[error("{} can be written by others (mode {mode:04o})", path.display())]
    Mode { path: PathBuf, mode: u32 },
    /// It is not TOML, or has an unknown key or a wrong value.
    #[error("{}:{line}: {problem}", path.display())]
    Line { path: PathBuf, line: usize, problem: String },
}

impl LimitsError {
    /// What to do about it, as a whole sentence.
    pub fn hint(&self) -> String {
        match self {
            Self::Owner { path, .. } => format!("Give it to root with `chown root {}`.", path.display()),
            Self::Mode { path, .. } => {
                format!("Take the permission away with `chmod go-w {}`.", path.display())
            }
            Self::Read { path, .. } | Self::NotAFile { path } | Self::TooLarge { path } => {
                format!("Look at it with `ls -l {}`; without it the defaults are in force.", path.display())
            }
            Self::Line { .. } => {
                let keys: Vec<&str> = LIMITS.iter().map(|limit| limit.key).collect();
                format!("Its lines are `KEY = NUMBER`; the keys are {}.", keys.join(", "))
            }
        }
    }
}

/// Reads the file, if it is there, and puts its limits in force in this process.
pub fn put_in_force(path: &Path) -> Result<(), LimitsError> {
    let limits = read(path)?.unwrap_or_default();
    raised::put_in_force(limits, path.display().to_string());
    Ok(())
}

fn read(path: &Path) -> Result<Option<Raised>, LimitsError> {
    let failed = |source| LimitsError::Read { path: path.to_owned(), source };
    // Opening a pipe must not wait for a writer.
    let file = match OpenOptions::new().read(true).custom_flags(nix::libc::O_NONBLOCK).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    check(path, &file)?;
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(LimitsError::TooLarge { path: path.to_owned() });
    }
    parse(&text, path).map(Some)
}

/// Checks whose file it is, by the open file.
fn check(path: &Path, file: &File) -> Result<(), LimitsError> {
    let path = path.to_owned();
    let found = match file.metadata() {
        Ok(found) => found,
        Err(source) => return Err(LimitsError::Read { path, source }),
    };
    let (owner, mode) = (found.uid(), found.mode() & 0o7777);
    if !found.is_file() {
        return Err(LimitsError::NotAFile { path });
    }
    if owner != 0 && owner != nix::unistd::geteuid().as_raw() {
        return Err(LimitsError::Owner { path, owner });
    }
    if mode & 0o022 != 0 {
        return Err(LimitsError::Mode { path, mode });
    }
    Ok(())
}

#[derive(Deserialize)]
struct Lines(BTreeMap<Spanned<String>, Spanned<toml::Value>>);

fn parse(text: &str, path: &Path) -> Result<Raised, LimitsError> {
    let problem = |at: usize, problem: String| {
        let line = text.get(..at).map_or(1, |before| before.matches('\n').count() + 1);
        LimitsError::Line { path: path.to_owned(), line, problem }
    };
    let Lines(lines) = toml::from_str(text).map_err(|error| {
        problem(
            error.span().map_or(0, |span| span.start),
            error.message().lines().next().unwrap_or_default().to_owned(),
        )
    })?;
    let mut limits = Raised::default();
    for (key, value) in lines {
        let at = key.span().start;
        let name = key.into_inner();
        let Some(limit) = LIMITS.iter().find(|limit| limit.key == name) else {
            return Err(problem(at, format!("{name:?} is not a limit")));
        };
        let number = value.get_ref().as_integer().and_then(|number| u64::try_from(number).ok());
        match number.filter(|number| (1..=limit.bound).contains(number)) {
            Some(number) => (limit.set)(&mut limits, number),
            None => {
                return Err(problem(at, format!("{name} must be a whole number from 1 to {}", limit.bound)));
            }
        }
    }
    Ok(limits)
}

/// The table as a page of documentation.
pub fn markdown() -> String {
    let mut page = String::from(
        "# Limits\n\n\
         Generated from the table in `host/src/store/limits.rs`.\n\n\
         Everything that an image or a manifest can make large has a limit, which is checked before memory or disk is used.\n\
         The limits below are defaults of the product: where a real image or pod exceeds one, an administrator raises it in\n\
         `limits.toml`, and the error names that file. It is `/etc/magikvm/limits.toml`; for an ordinary user\n\
         `~/.config/magikvm/limits.toml` (`$XDG_CONFIG_HOME`) comes first, and with `--root DIR` it is\n\
         `DIR/etc/limits.toml`. It must belong to root or to the user who runs the pods, and nobody else may write to it.\n\
         A file with a mistake is refused as a whole, with its line. A pod that runs keeps the limits that it was started\n\
         with.\n\n\
         ```toml\nlayer-mib = 4096\nrootfs-mib = 16384\n```\n\n\
         | Key | Default | At most | What it limits |\n|---|---|---|---|\n",
    );
    for limit in LIMITS {
        page += &format!("| `{}` | {} | {} | {} |\n", limit.key, limit.default, limit.bound, limit.about);
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn parsed(text: &str) -> Result<Raised, String> {
        parse(text, Path::new("/etc/magikvm/limits.toml")).map_err(|error| error.to_string())
    }

    #[test]
    fn the_defaults_are_those_of_the_product() {
        let mut limits = Raised { layers: 1, pods: 1, ..Raised::default() };
        LIMITS.iter().for_each(|limit| (limit.set)(&mut limits, limit.default));
        assert_eq!(limits, Raised::default());
        assert!(LIMITS.iter().all(|limit| limit.default <= limit.bound));
    }

    #[test]
    fn each_limit_can_be_raised_to_its_bound_and_no_further() {
        assert_eq!(parsed(""), Ok(Raised::default()));
        assert_eq!(
            parsed("layer-mib = 4_096\n# more\npods = 2000").map(|all| (all.layer_bytes, all.pods)),
            Ok((4 << 30, 2000))
        );
        for limit in LIMITS {
            assert_ne!(
                parsed(&format!("{} = {}", limit.key, limit.bound)),
                Ok(Raised::default()),
                "{}",
                limit.key
            );
            for wrong in [
                (limit.bound + 1).to_string(),
                "0".to_owned(),
                "-1".to_owned(),
                "'1'".to_owned(),
                "1.5".to_owned(),
                "[1]".to_owned(),
            ] {
                let said = parsed(&format!("\n{} = {wrong}", limit.key)).unwrap_err();
                let expected = format!(
                    "/etc/magikvm/limits.toml:2: {} must be a whole number from 1 to {}",
                    limit.key, limit.bound
                );
                assert_eq!(said, expected);
            }
        }
    }

    #[test]
    fn what_is_no_limit_is_refused_with_its_line() {
        assert_eq!(
            parsed("layers = 9\nlayer = 3").unwrap_err(),
            "/etc/magikvm/limits.toml:2: \"layer\" is not a limit"
        );
        assert!(parsed("layers = 9\nlayers = 9").unwrap_err().starts_with("/etc/magikvm/limits.toml:2: "));
        assert!(parsed("[images]\nlayers = 9").unwrap_err().contains(":1: \"images\" is not a limit"));
        assert!(parsed("layers 9").unwrap_err().starts_with("/etc/magikvm/limits.toml:1: "));
    }

    #[test]
    fn a_file_that_others_can_write_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("limits.toml");
        assert!(matches!(read(&path), Ok(None)));
        std::fs::write(&path, "layers = 9").unwrap();
        for (mode, fine) in [(0o644, true), (0o600, true), (0o664, false), (0o646, false)] {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(read(&path).is_ok(), fine, "{mode:o}");
        }
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(read(&path), Err(LimitsError::NotAFile { .. })));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "#".repeat(70_000)).unwrap();
        assert!(matches!(read(&path), Err(LimitsError::TooLarge { .. })));
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert!(matches!(read(&path), Err(LimitsError::Owner { owner: 12345, .. })));
        }
    }

    #[test]
    fn the_documentation_is_the_table() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/limits.md");
        if std::env::var_os("MAGIKVM_BLESS").is_some() {
            std::fs::write(&path, markdown()).unwrap();
        }
        let page = std::fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(page, markdown(), "docs/limits.md is not current: run the test with MAGIKVM_BLESS=1");
    }
}
