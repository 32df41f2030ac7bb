//! For magikvm's tests: a process with the identity of a file server does what such a server must be able to do in a directory, tries what it
//! must not be able to do, and prints the outcomes.

use crate::jail::{
    self, Access, HostNetwork, Identity, Inside, JailMount, JailSpec, Limits, MountSource, Procfs,
    Requirement, Submounts, SyscallFilter,
};
use crate::store::sandbox::Role;
use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, Uid};
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

/// The hidden verb that starts such a process: `__file_trial DIR`.
pub const STARTER_VERB: &str = "__file_trial";
/// The hidden verb of the process itself.
pub const SERVER_VERB: &str = "__file_trial_inside";
/// Path of the directory in the jail.
const WITHIN: &str = "/shared";

/// Starts the process and returns its output.
pub fn start() -> ExitCode {
    let Some(dir) = std::env::args_os().nth(2).map(PathBuf::from) else { return ExitCode::from(2) };
    match run(&dir) {
        Ok(said) => {
            std::io::stdout().write_all(said.as_bytes()).map_or(ExitCode::from(70), |()| ExitCode::SUCCESS)
        }
        Err(error) => {
            let text = crate::store::text::chain(error.as_ref());
            std::io::stderr().write_all(text.as_bytes()).map_or(ExitCode::from(70), |()| ExitCode::from(3))
        }
    }
}

fn run(dir: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let opened = File::open(dir)?;
    let spec = JailSpec {
        inside: Inside::Verb(SERVER_VERB.to_owned()),
        mounts: vec![JailMount {
            source: MountSource::Fd(opened.as_raw_fd()),
            target: WITHIN.into(),
            access: Access::ReadWrite,
            submounts: Submounts::Without,
        }],
        devices: Vec::new(),
        procfs: Procfs::OwnProcesses,
        working_dir: WITHIN.into(),
        network: HostNetwork::None,
        identity: Identity::FileServer,
        filter: SyscallFilter::FileServer,
        limits: Limits { pids: 64, open_files: 1024 },
        cgroup: Err("a trial has none".to_owned()),
        descriptors: vec![jail::Descriptor { here: opened.as_raw_fd(), there: 9 }],
        requirement: Requirement::Warn,
    };
    let mut command = jail::command()?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut server = jail::spawn_jailed(Role::Trial, "file server", &mut command, &spec, &[])?;
    let mut said = String::new();
    if let Some(mut output) = server.child.stdout.take() {
        output.read_to_string(&mut said)?;
    }
    let ended = server.wait_or_kill(std::time::Duration::from_secs(10));
    let layers = serde_json::to_string(&server.layers)?;
    Ok(format!("{said}ended: {ended:?} {:?}\nlayers: {layers}\n", server.violation()))
}

pub fn serve() -> ExitCode {
    let mut said = String::new();
    let mut tell = |what: &str, result: std::io::Result<()>| {
        let outcome = result.map_or_else(|error| format!("{error}"), |()| "done".to_owned());
        said.push_str(&format!("{what}: {outcome}\n"));
    };
    let made = Path::new("made");
    tell("make a file", fs::write(made, "x"));
    let user = (Some(Uid::from_raw(1000)), Some(Gid::from_raw(1000)));
    tell(
        "give it to 1000",
        rustix::fs::chownat(CWD, made, user.0, user.1, AtFlags::empty()).map_err(Into::into),
    );
    tell(
        "see that it is",
        fs::metadata(made).and_then(|meta| {
            if (meta.uid(), meta.gid()) == (1000, 1000) {
                Ok(())
            } else {
                Err(std::io::Error::other("it is not"))
            }
        }),
    );
    tell("hide it", rustix::fs::chmodat(CWD, made, Mode::empty(), AtFlags::empty()).map_err(Into::into));
    tell("read what is hidden", fs::read(made).map(drop));
    let make =
        |path, kind, device| rustix::fs::mknodat(CWD, path, kind, Mode::RWXU, device).map_err(Into::into);
    tell("make a pipe", make("pipe", FileType::Fifo, 0));
    tell("list /proc/self/fd", fs::read_dir("/proc/self/fd").map(drop));
    tell("use the descriptor", nix::sys::stat::fstat(borrowed()).map(drop).map_err(Into::into));
    tell(
        "list /",
        fs::read_dir("/").and_then(|entries| {
            let mut names: Vec<String> = entries
                .filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()))
                .collect();
            names.sort();
            Err(std::io::Error::other(names.join(" ")))
        }),
    );
    tell("make a device", make("device", FileType::BlockDevice, rustix::fs::makedev(7, 0)));
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status.lines().filter(|line| line.starts_with("CapPrm") || line.starts_with("CapBnd"));
    capabilities.for_each(|line| said.push_str(&format!("{}\n", line.replace('\t', " "))));
    if std::io::stdout().write_all(said.as_bytes()).is_err() {
        return ExitCode::from(1);
    }
    ExitCode::SUCCESS
}

#[allow(unsafe_code, reason = "a descriptor by its number")]
fn borrowed() -> std::os::fd::BorrowedFd<'static> {
    // SAFETY: the parent process passed the descriptor under this number, and nothing closes it.
    unsafe { std::os::fd::BorrowedFd::borrow_raw(9) }
}
