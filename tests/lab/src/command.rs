//! A command to run in the lab. The lab's init receives it as a shell script in which every word is quoted.

use crate::LabError;
use crate::run::OUT;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// Default memory of a lab. At most half of it is for files in `/tmp`.
pub const MEMORY_MIB: u32 = 3072;
const LIMIT: Duration = Duration::from_secs(180);
/// What tests need to know about their environment. No other variable of the caller goes into the lab.
const PASSED: [&str; 14] = [
    "MAGIKVM_BIN",
    "MAGIKVM_EVERY_ROW",
    "MAGIKVM_TEST_APPARMOR",
    "MAGIKVM_TEST_GUEST",
    "MAGIKVM_TEST_SMALL_WRITES",
    "MAGIKVM_TEST_STOPPED_SECONDS",
    "MAGIKVM_TEST_USERLAND",
    "MAGIKVM_VHOST_DEVICE_VSOCK",
    "PATH",
    "PROPTEST_CASES",
    "RUST_BACKTRACE",
    "RUST_LIB_BACKTRACE",
    "RUST_TEST_TIME_UNIT",
    "TERM",
];
const PROFILE: &str = "LLVM_PROFILE_FILE";

/// A command for the lab. It runs as root with empty standard input.
#[derive(Debug, Clone)]
pub struct LabCommand {
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<OsString>,
    pub(crate) env: BTreeMap<OsString, OsString>,
    pub(crate) cwd: PathBuf,
    pub(crate) memory_mib: u32,
    pub(crate) limit: Duration,
    pub(crate) profiles: Option<PathBuf>,
    needs: Vec<PathBuf>,
}

impl LabCommand {
    /// A program by its path or by a name in PATH, in the caller's working directory, with the caller's variables that tests need.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let mut env: BTreeMap<OsString, OsString> = [
            ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
            ("HOME", "/root"),
            ("LC_ALL", "C.UTF-8"),
            ("TMPDIR", "/tmp"),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into();
        env.extend(PASSED.iter().filter_map(|name| Some(((*name).into(), std::env::var_os(name)?))));
        let mut command = Self {
            program: program.into(),
            args: Vec::new(),
            env,
            cwd: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            memory_mib: MEMORY_MIB,
            limit: LIMIT,
            profiles: None,
            needs: Vec::new(),
        };
        if let Some(pattern) = std::env::var_os(PROFILE) {
            let parent = Path::new(&pattern).parent().map(Path::to_owned).unwrap_or_default();
            let dir = command.cwd.join(parent);
            command = command.profiles(dir);
        }
        command
    }

    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    #[must_use]
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    #[must_use]
    pub fn cwd(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cwd = dir.into();
        self
    }

    /// Sets another memory size than [`MEMORY_MIB`].
    #[must_use]
    pub fn memory_mib(mut self, memory_mib: u32) -> Self {
        self.memory_mib = memory_mib;
        self
    }

    /// Sets the time limit, including the boot, after which the command is killed.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Makes a path below `/tmp` visible. Paths in the program, its arguments, variables and working directory are visible anyway.
    #[must_use]
    pub fn needs(mut self, path: impl Into<PathBuf>) -> Self {
        self.needs.push(path.into());
        self
    }

    /// Sets the host directory for coverage profiles. The default is that of `LLVM_PROFILE_FILE`, if it is set.
    #[must_use]
    pub fn profiles(mut self, dir: impl Into<PathBuf>) -> Self {
        self.profiles = Some(dir.into());
        self.env.insert(PROFILE.into(), format!("{OUT}/profiles/%p-%m.profraw").into());
        self
    }

    /// The command as a script. It must not be run by busybox's `env`, which prefers its own `sh`, `ls` and so on to those of the host.
    pub(crate) fn script(&self) -> Result<Vec<u8>, LabError> {
        let mut script = b"cd ".to_vec();
        quote(self.cwd.as_os_str(), &mut script)?;
        script.extend(b" || exit 126\nexec /usr/bin/env -i MAGIKVM_INSIDE_LAB=1 MAGIKVM_LAB_OUT=");
        script.extend(OUT.as_bytes());
        for (name, value) in &self.env {
            let bad = |why| LabError::BadCommand { what: format!("the variable {name:?}"), why };
            if name.is_empty() || name.as_bytes().contains(&b'=') {
                return Err(bad("a name must not be empty or hold `=`"));
            }
            let mut word = name.clone();
            word.push("=");
            word.push(value);
            script.push(b' ');
            quote(&word, &mut script)?;
        }
        if self.program.as_os_str().as_bytes().contains(&b'=') {
            let what = format!("the program {}", self.program.display());
            return Err(LabError::BadCommand { what, why: "`env` takes a word with `=` for a variable" });
        }
        for word in std::iter::once(self.program.as_os_str()).chain(self.args.iter().map(OsString::as_os_str))
        {
            script.push(b' ');
            quote(word, &mut script)?;
        }
        script.push(b'\n');
        Ok(script)
    }

    /// The entries of the host's `/tmp` that this command names. The lab sees nothing else of `/tmp`.
    pub(crate) fn temporary_names(&self, more: &[&Path]) -> Result<BTreeSet<OsString>, LabError> {
        let mut words: Vec<&OsStr> = vec![self.program.as_os_str(), self.cwd.as_os_str()];
        words.extend(self.args.iter().map(OsString::as_os_str));
        words.extend(self.needs.iter().map(|path| path.as_os_str()));
        words.extend(more.iter().map(|path| path.as_os_str()));
        let lists = self.env.values().flat_map(|value| value.as_bytes().split(|&byte| byte == b':'));
        words.extend(lists.map(OsStr::from_bytes));
        let mut names = BTreeSet::new();
        for word in words {
            let Ok(below) = Path::new(word).strip_prefix("/tmp") else { continue };
            let Some(Component::Normal(name)) = below.components().next() else { continue };
            if name.as_bytes().contains(&b'\n') {
                let what = format!("the path {}", Path::new(word).display());
                return Err(LabError::BadCommand { what, why: "a name in /tmp must not hold a line break" });
            }
            if Path::new("/tmp").join(name).symlink_metadata().is_ok() {
                names.insert(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// Quotes a word for the shell.
pub(crate) fn quote(word: &OsStr, into: &mut Vec<u8>) -> Result<(), LabError> {
    if word.as_bytes().contains(&0) {
        return Err(LabError::BadCommand { what: format!("{word:?}"), why: "it holds a zero byte" });
    }
    into.push(b'\'');
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => into.extend(b"'\\''"),
            _ => into.push(byte),
        }
    }
    into.push(b'\'');
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// The words that a real shell reads from a script.
    fn run(command: &LabCommand) -> std::process::Output {
        let script = String::from_utf8(command.script().unwrap()).unwrap();
        Command::new("sh").arg("-c").arg(script).env_clear().output().unwrap()
    }

    #[test]
    fn a_shell_reads_every_word_as_it_was() {
        let words = ["", " ", "it's", "$HOME `id` \\ \"x\" ;&|", "a\nb\t*", "'", "--"];
        let command = LabCommand::new("/usr/bin/printf").cwd("/").arg("%s\\0").args(words);
        let printed = run(&command);
        assert!(printed.status.success(), "{printed:?}");
        let read: Vec<&str> =
            std::str::from_utf8(&printed.stdout).unwrap().trim_end_matches('\0').split('\0').collect();
        assert_eq!(read, ["", " ", "it's", "$HOME `id` \\ \"x\" ;&|", "a\nb\t*", "'", "--"]);
    }

    #[test]
    fn variables_arrive_and_no_others() {
        let command = LabCommand::new("/usr/bin/env").cwd("/").env("A", "1 '2'\n3");
        let printed = String::from_utf8(run(&command).stdout).unwrap();
        assert!(printed.contains("A=1 '2'\n3\n") && printed.contains("MAGIKVM_INSIDE_LAB=1\n"), "{printed}");
        assert!(!printed.contains("CARGO_MANIFEST_DIR") && !printed.contains("USER="), "{printed}");
    }

    #[test]
    fn what_the_shell_would_misread_is_refused() {
        for command in [
            LabCommand::new("a=b"),
            LabCommand::new("true").arg("a\0b"),
            LabCommand::new("true").env("A=B", ""),
            LabCommand::new("true").env("", "1"),
        ] {
            assert!(matches!(command.script(), Err(LabError::BadCommand { .. })), "{command:?}");
        }
    }

    #[test]
    fn only_named_entries_of_tmp_are_visible() {
        let dir = tempfile::Builder::new().prefix("named-").tempdir_in("/tmp").unwrap();
        let other = tempfile::Builder::new().prefix("other-").tempdir_in("/tmp").unwrap();
        let command =
            LabCommand::new("true").cwd("/").env("PATH", format!("/bin:{}/bin", dir.path().display()));
        let names = command.arg("/tmp/this-is-not-there/x").temporary_names(&[]).unwrap();
        assert!(names.contains(dir.path().file_name().unwrap()), "{names:?}");
        assert!(!names.contains(other.path().file_name().unwrap()), "{names:?}");
        assert!(!names.contains(OsStr::new("this-is-not-there")), "{names:?}");
    }
}
