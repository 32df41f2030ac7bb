//! The whole flow from an order to a finished guest image.

use crate::child::{self, ChildError, Interrupted, Log};
use crate::compile::{CompileError, Recipe, Source};
use crate::cpio::{Archive, CpioError};
use crate::elf::{self, DebugInfo, ElfError};
use crate::files::{self, FileError};
use crate::image::{GuestImage, ImageError};
use crate::kernel::{Kernel, KernelError};
use crate::progress::{Step, Steps};
use crate::stage::{StageError, StagedDirectory};
use crate::tools::{self, Tool, Toolchain};
use magikvm_proto::GENERATION;
use magikvm_proto::guest_image::{Arch, GuestManifest, INITRAMFS, Init, InitStamp, KERNEL, MANIFEST, SCHEMA};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Steps of [`build`].
pub const STEPS: usize = 10;
/// Most bytes of an init program.
const MAX_INIT: u64 = 64 << 20;

/// Why the guest image could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The user asked to stop.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
    #[error("required programs or packages are missing:{}", list(.0))]
    MissingTools(Vec<Tool>),
    #[error("the init program {} does not exist", .0.display())]
    NoInit(PathBuf),
    #[error("the init program {} {source}", path.display())]
    Init {
        path: PathBuf,
        /// Why the program is refused.
        source: ElfError,
    },
    /// The init program and this builder speak different generations of the wire.
    #[error("the init program {} has wire generation {found}, but this magikvm-image builds images of generation {GENERATION}", path.display())]
    InitGeneration { path: PathBuf, found: u32 },
    /// The kernel can't be compiled.
    #[error(transparent)]
    Compile(CompileError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel can't be stripped.
    #[error(transparent)]
    Strip(ChildError),
    /// The initramfs can't be written.
    #[error(transparent)]
    Cpio(#[from] CpioError),
    #[error(transparent)]
    File(#[from] FileError),
    /// The image can't be put at its destination.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The image read back differs from the one written.
    #[error("the check of the new image failed")]
    Check(#[source] ImageError),
}

fn list(tools: &[Tool]) -> String {
    tools.iter().map(|tool| format!("\n  {tool}")).collect()
}

impl From<CompileError> for BuildError {
    fn from(error: CompileError) -> Self {
        match error {
            CompileError::Interrupted(error) => Self::Interrupted(error),
            error => Self::Compile(error),
        }
    }
}

impl From<ChildError> for BuildError {
    fn from(error: ChildError) -> Self {
        match error {
            ChildError::Interrupted(error) => Self::Interrupted(error),
            error => Self::Strip(error),
        }
    }
}

/// Where the kernel comes from.
#[derive(Debug, Clone)]
pub enum KernelOrder {
    /// A kernel given by the user.
    Ready(PathBuf),
    Compile(Recipe),
}

/// A request to build a guest image.
#[derive(Debug, Clone)]
pub struct Order {
    pub arch: Arch,
    pub out: PathBuf,
    /// The program that becomes `/init`.
    pub init: PathBuf,
    pub kernel: KernelOrder,
    pub path: OsString,
}

/// Builds a guest image. Each line is a step that the user sees.
pub fn build(order: &Order, steps: &mut Steps) -> Result<GuestImage, BuildError> {
    steps.run("Checking the tools", |step| check_tools(order, step))?;
    let init =
        steps.run("Checking the init program", |step| InitProgram::read(&order.init, order.arch, step))?;
    let stage = steps
        .run("Making a place for the image", |_| Ok::<_, BuildError>(StagedDirectory::new(&order.out)?))?;
    let mut source = steps.run("Looking for the kernel", |step| find_kernel(order, step))?;
    steps.run("Unpacking the kernel source", |step| source.unpack(step))?;
    steps.run("Configuring the kernel", |step| source.configure(step))?;
    let file = steps.run("Compiling the kernel", |step| source.compile(step))?;
    let kernel = steps.run("Checking the kernel", |step| take_kernel(&file, order, &stage, step))?;
    let initramfs = steps.run("Packing the initramfs", |_| Ok::<_, BuildError>(init.initramfs()?))?;
    steps.run("Putting the image at its place", |_| finish(order.arch, &kernel, &init, &initramfs, stage))
}

fn check_tools(order: &Order, step: &mut Step<'_>) -> Result<(), BuildError> {
    let missing = match &order.kernel {
        KernelOrder::Ready(_) => {
            step.note("none needed");
            Vec::new()
        }
        KernelOrder::Compile(recipe) => recipe.missing_tools(),
    };
    if missing.is_empty() { Ok(()) } else { Err(BuildError::MissingTools(missing)) }
}

fn find_kernel(order: &Order, step: &mut Step<'_>) -> Result<Source, BuildError> {
    match &order.kernel {
        KernelOrder::Ready(path) => {
            step.note(format!("given as {}", path.display()));
            Ok(Source::Ready(path.clone()))
        }
        KernelOrder::Compile(recipe) => Ok(recipe.find(step)?),
    }
}

/// A program that can be the guest's `/init`.
#[derive(Debug)]
struct InitProgram {
    bytes: Vec<u8>,
    version: Option<String>,
}

impl InitProgram {
    fn read(path: &Path, arch: Arch, step: &mut Step<'_>) -> Result<Self, BuildError> {
        let bytes = files::read(path, MAX_INIT).map_err(|error| {
            if error.is_not_found() { BuildError::NoInit(path.to_owned()) } else { error.into() }
        })?;
        elf::check_static_program(&bytes, arch)
            .map_err(|source| BuildError::Init { path: path.to_owned(), source })?;
        let stamp = InitStamp::find(&bytes);
        match &stamp {
            Some(stamp) if stamp.generation != GENERATION => {
                return Err(BuildError::InitGeneration { path: path.to_owned(), found: stamp.generation });
            }
            Some(stamp) => step.note(format!("version {}, {} KiB", stamp.version, bytes.len() >> 10)),
            None => step.note("not a stamped vminit: its wire generation cannot be checked"),
        }
        Ok(Self { bytes, version: stamp.map(|stamp| stamp.version) })
    }

    /// The initramfs contains the init program, and the console that the kernel opens for it before anything is mounted.
    fn initramfs(&self) -> Result<Vec<u8>, CpioError> {
        Archive::new()
            .directory("dev", 0o755)
            .char_device("dev/console", 0o600, 5, 1)
            .file("init", 0o755, self.bytes.clone())
            .to_bytes()
    }

    fn described(&self) -> Init {
        Init { version: self.version.clone(), sha256: files::sha256(&self.bytes) }
    }
}

/// Checks the kernel, strips it if necessary, and writes it to the stage.
fn take_kernel(
    file: &Path,
    order: &Order,
    stage: &StagedDirectory,
    step: &mut Step<'_>,
) -> Result<Kernel, BuildError> {
    let mut kernel = Kernel::read(file, order.arch)?;
    let target = stage.dir().join(KERNEL);
    if kernel.debug_info == DebugInfo::Present {
        let missing = tools::missing([&Toolchain::of(order.arch).strip_tool()], &order.path);
        if !missing.is_empty() {
            return Err(BuildError::MissingTools(missing));
        }
        strip(file, &target, order, stage, step)?;
        kernel = Kernel::read(&target, order.arch)?;
    }
    files::write(&target, &kernel.bytes, 0o644)?;
    step.note(format!("Linux {} with {} features", kernel.version, kernel.features.len()));
    Ok(kernel)
}

fn strip(
    from: &Path,
    to: &Path,
    order: &Order,
    stage: &StagedDirectory,
    step: &mut Step<'_>,
) -> Result<(), BuildError> {
    let strip = Toolchain::of(order.arch).strip;
    let mut command = Command::new(tools::find_program(strip, &order.path).unwrap_or_else(|| strip.into()));
    command.arg("--strip-debug").arg("-o").arg(to).arg(from).env("LC_ALL", "C").stdin(Stdio::null());
    let path = stage.dir().join(".strip.log");
    child::run(command, &mut Log::create(&path)?, &step.stop(), &mut |_| {
        step.beat(|| "stripping".to_owned())
    })?;
    Ok(std::fs::remove_file(&path).map_err(FileError::at("remove", &path))?)
}

fn finish(
    arch: Arch,
    kernel: &Kernel,
    init: &InitProgram,
    initramfs: &[u8],
    stage: StagedDirectory,
) -> Result<GuestImage, BuildError> {
    files::write(&stage.dir().join(INITRAMFS), initramfs, 0o644)?;
    let manifest = GuestManifest {
        schema: SCHEMA,
        arch,
        generation: GENERATION,
        kernel_version: kernel.version.clone(),
        features: kernel.features.clone(),
        init: init.described(),
        parts: [
            (KERNEL.to_owned(), files::part_of(&kernel.bytes)),
            (INITRAMFS.to_owned(), files::part_of(initramfs)),
        ]
        .into(),
    };
    files::write(&stage.dir().join(MANIFEST), &manifest.to_json(), 0o644)?;
    // Read back, to prove that what is installed is what was written.
    let image = GuestImage::open(stage.dir()).map_err(BuildError::Check)?;
    image.verify().map_err(BuildError::Check)?;
    Ok(GuestImage { dir: stage.commit()?, manifest: image.manifest })
}
