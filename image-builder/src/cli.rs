//! The command line: arguments in, text and an exit code out. The only place that prints results and errors.

use crate::build::{self, BuildError, KernelOrder, Order};
use crate::child::Stop;
use crate::compile::{CompileError, Recipe, Reuse};
use crate::elf;
use crate::files::FileError;
use crate::image::{GuestImage, ImageError};
use crate::kernel::KernelError;
use crate::paths::{NoHome, Surroundings};
use crate::progress::Steps;
use crate::stage::StageError;
use crate::tools;
use clap::{Args, Parser, Subcommand, ValueEnum};
use magikvm_proto::guest_image::{Arch, GuestManifest};
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

const DEFAULT_SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";

/// Build and check magikvm guest images: kernel, initramfs and manifest.
#[derive(Debug, Parser)]
#[command(name = "magikvm-image", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Build a guest image; the first build compiles a kernel, which takes some minutes
    Build(BuildArgs),
    /// Verify a guest image and describe it
    Inspect(InspectArgs),
}

#[derive(Debug, Args)]
struct BuildArgs {
    /// Architecture of the guest; one other than the host's needs a cross compiler [default: the init program's]
    #[arg(long, value_enum)]
    arch: Option<ArchArg>,
    /// Output directory; an existing guest image is replaced when the new one is complete [default: the state directory,
    /// where magikvm looks for it]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Init program, a static vminit [default: vminit beside this program]
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    /// Use this kernel instead of compiling one: an uncompressed vmlinux (x86_64) or Image (aarch64) that contains its configuration
    /// (CONFIG_IKCONFIG)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["kernel_source", "rebuild_kernel"])]
    kernel: Option<PathBuf>,
    /// Archive with the kernel's source
    #[arg(long, value_name = "FILE", default_value = DEFAULT_SOURCE)]
    kernel_source: PathBuf,
    /// Compile the kernel even if it is in the cache
    #[arg(long)]
    rebuild_kernel: bool,
    /// Number of compilers that run at once [default: one for each processor]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Directory that keeps compiled kernels [default: magikvm in the user's cache directory]
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct InspectArgs {
    /// Directory of the guest image
    dir: PathBuf,
    /// Output format
    #[arg(short, long, value_enum, default_value = "text")]
    output: OutputArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputArg {
    Text,
    Json,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArchArg {
    #[value(name = "x86_64")]
    X86_64,
    #[value(name = "aarch64")]
    Aarch64,
}

impl From<ArchArg> for Arch {
    fn from(arch: ArchArg) -> Self {
        match arch {
            ArchArg::X86_64 => Self::X86_64,
            ArchArg::Aarch64 => Self::Aarch64,
        }
    }
}

/// Why a subcommand failed.
#[derive(Debug, thiserror::Error)]
enum CliError {
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    NoHome(#[from] NoHome),
    #[error("cannot watch for signals")]
    Signals(#[source] io::Error),
    #[error("cannot find the path of this program")]
    WhereAmI(#[source] io::Error),
    #[error("cannot print the result")]
    Print(#[source] io::Error),
}

/// Runs the program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // A panic is a bug. Its exit code differs from those of errors that the user can fix.
    match std::panic::catch_unwind(|| run(&cli)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            report(&error);
            ExitCode::from(exit_code(&error))
        }
        Err(_) => ExitCode::from(INTERNAL),
    }
}

fn run(cli: &Cli) -> Result<(), CliError> {
    match &cli.verb {
        Verb::Build(args) => {
            let stop = Stop::on_signals().map_err(CliError::Signals)?;
            let order = order(args)?;
            let image = build::build(&order, &mut Steps::on_stderr(build::STEPS, stop))?;
            print(&format!("{}\n", image.dir.display()))
        }
        Verb::Inspect(args) => {
            let image = GuestImage::open(&args.dir)?;
            image.verify()?;
            match args.output {
                OutputArg::Json => print(&String::from_utf8_lossy(&image.manifest.to_json())),
                OutputArg::Text => print(&text(&image)),
            }
        }
    }
}

fn order(args: &BuildArgs) -> Result<Order, CliError> {
    let here = Surroundings::of_this_process();
    let init = match &args.init {
        Some(init) => init.clone(),
        None => std::env::current_exe().map_err(CliError::WhereAmI)?.with_file_name("vminit"),
    };
    // A later step reports an init program that cannot be read.
    let arch = args.arch.map(Arch::from).or_else(|| elf::arch_of_file(&init));
    let arch = arch.or_else(Arch::native).unwrap_or(Arch::X86_64);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let kernel = match &args.kernel {
        Some(file) => KernelOrder::Ready(file.clone()),
        None => KernelOrder::Compile(Recipe {
            arch,
            source: std::path::absolute(&args.kernel_source).unwrap_or_else(|_| args.kernel_source.clone()),
            jobs: args
                .jobs
                .or_else(|| std::thread::available_parallelism().ok())
                .map_or(1, NonZeroUsize::get),
            cache: args.cache.clone().map_or_else(|| here.cache(), Ok)?,
            reuse: if args.rebuild_kernel { Reuse::Forbidden } else { Reuse::Allowed },
            path: path.clone(),
        }),
    };
    Ok(Order { arch, out: args.out.clone().map_or_else(|| here.guest_image(), Ok)?, init, kernel, path })
}

fn print(text: &str) -> Result<(), CliError> {
    io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush()).map_err(CliError::Print)
}

fn text(image: &GuestImage) -> String {
    let GuestManifest { arch, generation, kernel_version, features, init, parts, .. } = &image.manifest;
    let features: Vec<&str> = features.iter().map(String::as_str).collect();
    let mut rows = vec![
        ("Guest image", image.dir.display().to_string()),
        ("Architecture", arch.to_string()),
        ("Kernel", format!("Linux {kernel_version}")),
        ("Features", features.join(" ")),
        (
            "Init",
            format!("{} (sha256 {})", init.version.as_deref().unwrap_or("of unknown version"), init.sha256),
        ),
        ("Wire", format!("generation {generation}")),
    ];
    rows.extend(
        parts
            .iter()
            .map(|(name, part)| (name.as_str(), format!("{} bytes, sha256 {}", part.size, part.sha256))),
    );
    rows.push(("Verified", "every part matches the manifest".to_owned()));
    rows.iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect()
}

const USER: u8 = 1;
const ENVIRONMENT: u8 = 3;
const INTERNAL: u8 = 70;
/// 128 + SIGINT, as shells report it.
const INTERRUPTED: u8 = 130;

fn exit_code(error: &CliError) -> u8 {
    match error {
        CliError::Build(BuildError::Interrupted(_)) => INTERRUPTED,
        CliError::Build(
            BuildError::MissingTools(_)
            | BuildError::Strip(_)
            | BuildError::Compile(CompileError::NoVersion(_)),
        )
        | CliError::NoHome(_) => ENVIRONMENT,
        CliError::Build(BuildError::Compile(CompileError::Child(_) | CompileError::Cache(_))) => ENVIRONMENT,
        CliError::Build(BuildError::Check(_) | BuildError::Compile(CompileError::Interrupted(_)))
        | CliError::Signals(_)
        | CliError::WhereAmI(_) => INTERNAL,
        CliError::Build(
            BuildError::File(error)
            | BuildError::Stage(StageError::File(error))
            | BuildError::Kernel(KernelError::File(error))
            | BuildError::Compile(CompileError::File(error)),
        )
        | CliError::Image(ImageError::File(error)) => of_file(error),
        CliError::Build(_) | CliError::Image(_) | CliError::Print(_) => USER,
    }
}

/// The user chose a missing path or a file that is too long, but not a full disk or a missing permission.
fn of_file(error: &FileError) -> u8 {
    match error {
        FileError::TooLong { .. } => USER,
        error if error.is_not_found() => USER,
        FileError::Io { .. } => ENVIRONMENT,
    }
}

fn hint(error: &CliError) -> Option<String> {
    let text = match error {
        CliError::Build(BuildError::MissingTools(missing)) => {
            return Some(format!("Install them with `sudo apt-get install {}`.", tools::packages(missing)));
        }
        CliError::Build(
            BuildError::NoInit(_) | BuildError::Init { .. } | BuildError::InitGeneration { .. },
        ) => {
            "Build it with `RUSTFLAGS=\"-C target-feature=+crt-static\" cargo build --release -p vminit \
             --target x86_64-unknown-linux-gnu` (or aarch64-unknown-linux-gnu; `ci/test.sh` does all of this), and pass it with `--init FILE`."
        }
        CliError::Build(BuildError::Kernel(KernelError::Config { .. })) => {
            "Compile the kernel with CONFIG_IKCONFIG=y, or omit `--kernel` to let magikvm-image compile one."
        }
        CliError::Build(BuildError::Kernel(KernelError::Lacks { .. } | KernelError::Format { .. })) => {
            "Omit `--kernel` to let magikvm-image compile one."
        }
        CliError::Build(BuildError::Compile(CompileError::LostOptions { .. })) => {
            "Use the source of Debian's package linux-source-6.12."
        }
        CliError::Build(BuildError::Stage(StageError::NotAnImage(_))) => {
            "Choose another directory with `--out DIR`."
        }
        CliError::Image(_) => "Build a new one with `magikvm-image build`.",
        CliError::NoHome(_) => "Choose the directories with `--out DIR` and `--cache DIR`.",
        _ => return None,
    };
    Some(text.to_owned())
}

fn report(error: &CliError) {
    let mut text = format!("Error: {error}\n");
    let mut cause = std::error::Error::source(error);
    let mut said = error.to_string();
    while let Some(error) = cause {
        // The message of some errors already contains the cause; it is not printed twice.
        if !said.contains(&error.to_string()) {
            said = error.to_string();
            text.push_str(&format!("Caused by: {said}\n"));
        }
        cause = error.source();
    }
    if let Some(hint) = hint(error) {
        text.push_str(&format!("Hint: {hint}\n"));
    }
    // If standard error is closed, the error can't be shown.
    let _told = io::stderr().write_all(text.as_bytes()).is_ok();
}
