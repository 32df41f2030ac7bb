//! The programs and headers that compiling a kernel needs, each with its Debian package. All missing ones are reported together.

use magikvm_proto::guest_image::Arch;
use std::ffi::OsStr;
use std::fmt;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// How to detect a tool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// An executable file in one of the directories of `PATH`.
    Program(&'static str),
    /// A header that the C compiler finds.
    Header(&'static str),
    File(PathBuf),
}

/// A required tool and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    /// How to detect it.
    pub probe: Probe,
    /// The Debian package that contains it.
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

/// The host's C compiler: it compiles the programs that the kernel's build runs, and finds the headers.
const HOST_COMPILER: &str = "gcc";

/// The programs that compile and change code for one architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Toolchain {
    /// Prefix of the names of its programs; empty for the host's architecture.
    pub prefix: &'static str,
    /// The C compiler; its version is one of a kernel's ingredients.
    pub compiler: &'static str,
    pub linker: &'static str,
    /// The program that removes debug information.
    pub strip: &'static str,
    compiler_package: &'static str,
    binutils_package: &'static str,
}

const NATIVE: Toolchain = Toolchain {
    prefix: "",
    compiler: HOST_COMPILER,
    linker: "ld",
    strip: "strip",
    compiler_package: "gcc",
    binutils_package: "binutils",
};
const CROSS_X86_64: Toolchain = Toolchain {
    prefix: "x86_64-linux-gnu-",
    compiler: "x86_64-linux-gnu-gcc",
    linker: "x86_64-linux-gnu-ld",
    strip: "x86_64-linux-gnu-strip",
    compiler_package: "gcc-x86-64-linux-gnu",
    binutils_package: "binutils-x86-64-linux-gnu",
};
const CROSS_AARCH64: Toolchain = Toolchain {
    prefix: "aarch64-linux-gnu-",
    compiler: "aarch64-linux-gnu-gcc",
    linker: "aarch64-linux-gnu-ld",
    strip: "aarch64-linux-gnu-strip",
    compiler_package: "gcc-aarch64-linux-gnu",
    binutils_package: "binutils-aarch64-linux-gnu",
};

impl Toolchain {
    /// The toolchain of this host for `arch`: the native one, or Debian's cross compiler.
    pub fn of(arch: Arch) -> Self {
        match arch {
            arch if Some(arch) == Arch::native() => NATIVE,
            Arch::X86_64 => CROSS_X86_64,
            Arch::Aarch64 => CROSS_AARCH64,
        }
    }

    /// The program that removes debug information from a given kernel.
    pub fn strip_tool(self) -> Tool {
        program(self.strip, self.binutils_package)
    }
}

/// The programs for unpacking and compiling our kernel. No OpenSSL, no perl: no module is signed and no code is generated.
pub fn kernel_tools(arch: Arch) -> Vec<Tool> {
    let (host, target) = (NATIVE, Toolchain::of(arch));
    let mut tools = BUILD_TOOLS.to_vec();
    let mut compilers =
        vec![program(host.compiler, host.compiler_package), program(host.linker, host.binutils_package)];
    if target != host {
        compilers.push(program(target.compiler, target.compiler_package));
        compilers.push(program(target.linker, target.binutils_package));
    }
    tools.splice(1..1, compilers);
    if arch == Arch::X86_64 {
        // tools/objtool, which the x86 kernel's build requires.
        tools.push(header("libelf.h", "libelf-dev"));
    }
    tools
}

const BUILD_TOOLS: &[Tool] = &[
    program("make", "make"),
    program("flex", "flex"),
    program("bison", "bison"),
    // kernel/time/timeconst.bc.
    program("bc", "bc"),
    program("tar", "tar"),
    program("xz", "xz-utils"),
    header("stdio.h", "libc6-dev"),
];

/// Those of `tools` that the host lacks, in the same order.
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

/// Finds a program in the directories of `path`.
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
        Probe::Header(name) => match find_program(HOST_COMPILER, path) {
            Some(compiler) => compiler_finds(&compiler, name, path),
            // Without a compiler the search path is unknown; the usual place is a good guess.
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
    // A compiler that does not read its input has ended with an error, which its status reports.
    let _written = child.stdin.take().is_some_and(|mut pipe| writeln!(pipe, "#include <{header}>").is_ok());
    child.wait().is_ok_and(|status| status.success())
}

/// The first line of a program's version output.
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
    fn another_architecture_needs_its_cross_compiler_beside_that_of_the_host() {
        for arch in Arch::ALL {
            let packages = packages(&kernel_tools(arch));
            let prefix = Toolchain::of(arch).prefix;
            let native = Some(arch) == Arch::native();
            assert_eq!(prefix.is_empty(), native);
            let cross = format!(" gcc-{} ", arch.as_str().replace('_', "-") + "-linux-gnu");
            assert_eq!(packages.contains(&cross), !native, "{packages}");
            assert!(packages.starts_with("make gcc binutils "), "{packages}");
            assert_eq!(packages.contains("libelf-dev"), arch == Arch::X86_64, "{packages}");
        }
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
