//! What compiling a kernel needs from the system, each with the Debian package that has it. All that is missing is told at once.

use std::ffi::OsStr;
use std::fmt;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How the system shows that it has something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// An executable file in one of the directories of `PATH`.
    Program(&'static str),
    /// A header that the C compiler finds.
    Header(&'static str),
    /// A file.
    File(PathBuf),
}

/// Something that is needed, and where it is from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// How to tell whether it is there.
    pub probe: Probe,
    /// The Debian package that has it.
    pub package: &'static str,
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.probe {
            Probe::Program(name) => write!(f, "the program {name}")?,
            Probe::Header(name) => write!(f, "the C header {name}")?,
            Probe::File(path) => write!(f, "the file {}", path.display())?,
        }
        write!(f, " (Debian package {})", self.package)
    }
}

const fn program(name: &'static str, package: &'static str) -> Tool {
    Tool { probe: Probe::Program(name), package }
}

const fn header(name: &'static str, package: &'static str) -> Tool {
    Tool { probe: Probe::Header(name), package }
}

/// The C compiler; also what the headers are looked for with.
pub const COMPILER: &str = "gcc";
/// The linker; its version is part of what a kernel is made from.
pub const LINKER: &str = "ld";

/// What unpacking and compiling our kernel runs. No OpenSSL, no perl: there are no modules to sign and no generated code.
pub const KERNEL_TOOLS: &[Tool] = &[
    program("make", "make"),
    program(COMPILER, "gcc"),
    program(LINKER, "binutils"),
    program("flex", "flex"),
    program("bison", "bison"),
    // kernel/time/timeconst.bc.
    program("bc", "bc"),
    program("tar", "tar"),
    program("xz", "xz-utils"),
    header("stdio.h", "libc6-dev"),
    // tools/objtool, which the x86 kernel can't be built without.
    header("libelf.h", "libelf-dev"),
];

/// Takes debug information out of a kernel that was given with some.
pub const STRIP: Tool = program("strip", "binutils");

/// Those of `tools` that this system lacks, in the same order.
pub fn missing<'a>(tools: impl IntoIterator<Item = &'a Tool>, path: &OsStr) -> Vec<Tool> {
    tools.into_iter().filter(|tool| !is_there(&tool.probe, path)).cloned().collect()
}

/// The packages of these tools, as the arguments of `apt-get install`.
pub fn packages(tools: &[Tool]) -> String {
    let mut packages: Vec<&str> = Vec::new();
    for tool in tools {
        if !packages.contains(&tool.package) {
            packages.push(tool.package);
        }
    }
    packages.join(" ")
}

/// Where a program is, by the directories of `path`.
pub fn find_program(name: &str, path: &OsStr) -> Option<PathBuf> {
    let executable = |file: &PathBuf| {
        file.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(path).map(|dir| dir.join(name)).find(executable)
}

fn is_there(probe: &Probe, path: &OsStr) -> bool {
    match probe {
        Probe::Program(name) => find_program(name, path).is_some(),
        Probe::File(file) => file.is_file(),
        Probe::Header(name) => match find_program(COMPILER, path) {
            Some(compiler) => compiler_finds(&compiler, name, path),
            // Without a compiler nobody can tell; the usual place is a good guess.
            None => Path::new("/usr/include").join(name).is_file(),
        },
    }
}

fn compiler_finds(compiler: &Path, header: &str, path: &OsStr) -> bool {
    let child = Command::new(compiler)
        .args(["-E", "-x", "c", "-", "-o", "/dev/null"])
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    // A compiler that does not read this has ended with an error, and its status says so.
    let _written = child.stdin.take().is_some_and(|mut pipe| writeln!(pipe, "#include <{header}>").is_ok());
    child.wait().is_ok_and(|status| status.success())
}

/// The first line that a program says about its version.
pub fn version_of(name: &str, path: &OsStr) -> Option<String> {
    let output = Command::new(find_program(name, path)?).arg("--version").env("LC_ALL", "C").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_missing_is_named_with_its_package() {
        let tools = [
            program("no-such-program", "some-package"),
            program("sh", "dash"),
            header("no/such/header.h", "some-dev"),
            header("stdio.h", "libc6-dev"),
            program("no-other-program", "some-package"),
        ];
        let path = std::env::var_os("PATH").unwrap();
        let missing = missing(&tools, &path);
        let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
        assert_eq!(
            names,
            [
                "the program no-such-program (Debian package some-package)",
                "the C header no/such/header.h (Debian package some-dev)",
                "the program no-other-program (Debian package some-package)",
            ]
        );
        assert_eq!(packages(&missing), "some-package some-dev");
    }

    #[test]
    fn a_file_that_is_not_executable_is_no_program() {
        let dir = tempfile::tempdir().unwrap();
        crate::files::write(&dir.path().join("tool"), b"", 0o644).unwrap();
        assert_eq!(find_program("tool", dir.path().as_os_str()), None);
        crate::files::write(&dir.path().join("tool"), b"", 0o755).unwrap();
        assert_eq!(find_program("tool", dir.path().as_os_str()), Some(dir.path().join("tool")));
    }
}
