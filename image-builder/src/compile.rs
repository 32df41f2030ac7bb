//! Compiles the guest's kernel from a source archive: unpack, configure, make. The result is stored in the cache.
//!
//! The same archive, options and compiler give the same bytes: the environment is cleared, time, user and host are fixed,
//! and the kernel is compiled inside its own tree, so that every embedded path is relative.

use crate::cache::{CacheError, Entry, Key};
use crate::child::{self, ChildError, Interrupted, Log};
use crate::files::{self, FileError};
use crate::options::{self, Lost, Options};
use crate::progress::Step;
use crate::tools::{self, Tool, Toolchain};
use magikvm_proto::guest_image::Arch;
use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Must be raised when a change below changes the result.
const RECIPE_VERSION: &str = "1";
const MAX_CONFIG: u64 = 4 << 20;

/// Why the kernel could not be compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    #[error(transparent)]
    File(#[from] FileError),
    /// The cache can't be used.
    #[error(transparent)]
    Cache(CacheError),
    /// A program failed.
    #[error(transparent)]
    Child(ChildError),
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    /// A tool does not report its version.
    #[error("`{0} --version` does not work")]
    NoVersion(&'static str),
    /// The archive does not contain a kernel.
    #[error("{} is not a Linux source archive: it has no top-level Makefile and Kconfig", .0.display())]
    NotLinux(PathBuf),
    /// The kernel does not know our options, or has others that exclude them.
    #[error("the kernel source {} does not accept these required options:{}", source_file.display(), list(lost))]
    LostOptions { source_file: PathBuf, lost: Vec<Lost> },
}

fn list(lost: &[Lost]) -> String {
    lost.iter().map(|lost| format!("\n  {lost}")).collect()
}

impl From<ChildError> for CompileError {
    fn from(error: ChildError) -> Self {
        match error {
            ChildError::Interrupted(error) => Self::Interrupted(error),
            error => Self::Child(error),
        }
    }
}

impl From<CacheError> for CompileError {
    fn from(error: CacheError) -> Self {
        match error {
            CacheError::Interrupted(error) => Self::Interrupted(error),
            error => Self::Cache(error),
        }
    }
}

/// Whether a kernel that was compiled earlier may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Yes, if it was made from the same ingredients.
    Allowed,
    /// No: compile it again.
    Forbidden,
}

/// What to compile, and how.
#[derive(Debug, Clone)]
pub struct Recipe {
    pub arch: Arch,
    pub source: PathBuf,
    /// Number of compilers that run at once.
    pub jobs: usize,
    pub cache: PathBuf,
    /// Whether an earlier kernel may be used.
    pub reuse: Reuse,
    pub path: OsString,
}

/// A compiled kernel, or one that still must be compiled.
#[derive(Debug)]
pub enum Source {
    Ready(PathBuf),
    Workshop(Workshop),
}

/// A place where a kernel is compiled. Dropping it leaves only the log and the stored files.
#[derive(Debug)]
pub struct Workshop {
    recipe: Recipe,
    fragment: &'static str,
    entry: Entry,
    tree: PathBuf,
    log: Log,
}

impl Recipe {
    /// What this recipe needs and the host lacks.
    pub fn missing_tools(&self) -> Vec<Tool> {
        let archive = Tool { probe: tools::Probe::File(self.source.clone()), package: "linux-source-6.12" };
        tools::missing(tools::kernel_tools(self.arch).iter().chain([&archive]), &self.path)
    }

    fn key(&self, fragment: &str) -> Result<Key, CompileError> {
        let toolchain = Toolchain::of(self.arch);
        let version = |tool| tools::version_of(tool, &self.path).ok_or(CompileError::NoVersion(tool));
        Ok(Key::of(&[
            ("recipe", RECIPE_VERSION),
            ("arch", self.arch.as_str()),
            ("source", files::sha256_file(&self.source)?.as_str()),
            ("options", fragment),
            ("compiler", &version(toolchain.compiler)?),
            ("linker", &version(toolchain.linker)?),
        ]))
    }

    /// Finds the kernel in the cache, or locks the place to compile it.
    pub fn find(&self, step: &mut Step<'_>) -> Result<Source, CompileError> {
        let fragment = options::fragment(self.arch);
        let key = self.key(fragment)?;
        let stop = step.stop();
        let entry = Entry::lock(&self.cache, &key, &stop, &mut || {
            step.beat(|| "waiting for another magikvm-image that compiles this kernel".to_owned());
        })?;
        if self.reuse == Reuse::Allowed
            && let Some(kernel) = entry.kernel()
        {
            step.note(format!("{} in the cache", kernel.display()));
            return Ok(Source::Ready(kernel));
        }
        let (tree, log) = (entry.path("tree"), Log::create(&entry.path("build.log"))?);
        step.note("none in the cache");
        Ok(Source::Workshop(Workshop { recipe: self.clone(), fragment, entry, tree, log }))
    }
}

impl Source {
    /// Unpacks the archive, unless the kernel exists.
    pub fn unpack(&mut self, step: &mut Step<'_>) -> Result<(), CompileError> {
        match self {
            Self::Ready(_) => not_needed(step),
            Self::Workshop(workshop) => workshop.unpack(step),
        }
    }

    /// Writes the configuration, unless the kernel exists.
    pub fn configure(&mut self, step: &mut Step<'_>) -> Result<(), CompileError> {
        match self {
            Self::Ready(_) => not_needed(step),
            Self::Workshop(workshop) => workshop.configure(step),
        }
    }

    /// Compiles, unless the kernel exists, and returns its path.
    pub fn compile(self, step: &mut Step<'_>) -> Result<PathBuf, CompileError> {
        match self {
            Self::Ready(kernel) => not_needed(step).map(|()| kernel),
            Self::Workshop(mut workshop) => workshop.compile(step),
        }
    }
}

/// The make target of an architecture.
struct Product {
    /// The architecture's name in the kernel's source.
    arch: &'static str,
    goal: &'static str,
    /// Path of the compiled kernel in the tree.
    path: &'static str,
    /// Approximate number of lines that make prints for our options. It affects only the percentage shown.
    lines: usize,
}

fn product(arch: Arch) -> Product {
    match arch {
        Arch::X86_64 => Product { arch: "x86_64", goal: "vmlinux", path: "vmlinux", lines: 2240 },
        Arch::Aarch64 => Product { arch: "arm64", goal: "Image", path: "arch/arm64/boot/Image", lines: 1740 },
    }
}

fn not_needed(step: &mut Step<'_>) -> Result<(), CompileError> {
    step.note("not needed");
    Ok(())
}

impl Workshop {
    fn unpack(&mut self, step: &mut Step<'_>) -> Result<(), CompileError> {
        // A killed builder may have left its tree.
        remove_tree(&self.tree)?;
        fs::create_dir(&self.tree).map_err(FileError::at("create directory", &self.tree))?;
        let mut tar = self.command("tar")?;
        tar.arg("-xf").arg(&self.recipe.source).args(["--strip-components=1", "--no-same-owner"]);
        let stop = step.stop();
        child::run(tar, &mut self.log, &stop, &mut |_| step.beat(|| "unpacking".to_owned()))?;
        let linux = ["Makefile", "Kconfig"].iter().all(|name| self.tree.join(name).is_file());
        if linux { Ok(()) } else { Err(CompileError::NotLinux(self.recipe.source.clone())) }
    }

    fn configure(&mut self, step: &mut Step<'_>) -> Result<(), CompileError> {
        self.make("tinyconfig", step)?;
        let path = self.tree.join(".config");
        OpenOptions::new()
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(self.fragment.as_bytes()))
            .map_err(FileError::at("append to", &path))?;
        self.make("olddefconfig", step)?;
        let config = files::read(&path, MAX_CONFIG)?;
        let lost = options::lost(self.fragment, &Options::parse(&String::from_utf8_lossy(&config)));
        if lost.is_empty() {
            return Ok(());
        }
        Err(CompileError::LostOptions { source_file: self.recipe.source.clone(), lost })
    }

    fn compile(&mut self, step: &mut Step<'_>) -> Result<PathBuf, CompileError> {
        step.note(format!("log in {}", self.entry.path("build.log").display()));
        let Product { goal, path, .. } = product(self.recipe.arch);
        self.make(goal, step)?;
        Ok(self.entry.store(&self.tree.join(path), &self.tree.join(".config"))?)
    }

    fn make(&mut self, goal: &str, step: &mut Step<'_>) -> Result<(), CompileError> {
        let mut make = self.command("make")?;
        let Product { arch, lines: expected, .. } = product(self.recipe.arch);
        make.arg(format!("-j{}", self.recipe.jobs)).arg(format!("ARCH={arch}"));
        let prefix = Toolchain::of(self.recipe.arch).prefix;
        if !prefix.is_empty() {
            make.arg(format!("CROSS_COMPILE={prefix}"));
        }
        make.arg(goal);
        let stop = step.stop();
        let mut lines = 0_usize;
        child::run(make, &mut self.log, &stop, &mut |line| {
            lines += usize::from(line.is_some());
            step.beat(|| format!("{} %", (lines * 100 / expected).min(99)));
        })?;
        Ok(())
    }

    /// A command inside the tree, isolated from the user's environment.
    fn command(&self, program: &str) -> Result<Command, CompileError> {
        let program =
            tools::find_program(program, &self.recipe.path).unwrap_or_else(|| PathBuf::from(program));
        let mut command = Command::new(program);
        command
            .stdin(self.entry.stdin()?)
            .current_dir(&self.tree)
            .env_clear()
            .env("PATH", &self.recipe.path)
            .envs([
                ("LC_ALL", "C"),
                ("TZ", "UTC"),
                ("SOURCE_DATE_EPOCH", "0"),
                ("KBUILD_BUILD_TIMESTAMP", "Thu Jan 1 00:00:00 UTC 1970"),
                ("KBUILD_BUILD_VERSION", "1"),
                ("KBUILD_BUILD_USER", "magikvm"),
                ("KBUILD_BUILD_HOST", "magikvm"),
                ("LOCALVERSION", ""),
            ]);
        Ok(command)
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        // An error can't be reported here; the next builder tries again.
        let _removed = remove_tree(&self.tree).is_ok();
    }
}

fn remove_tree(tree: &Path) -> Result<(), FileError> {
    match fs::remove_dir_all(tree) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(FileError::at("remove", tree)),
    }
}
