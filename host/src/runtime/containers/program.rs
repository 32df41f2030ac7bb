//! Where the sandbox's program is, and how a container is kept from changing it.

use crate::os;
use crate::process::FIRST_COPY;
use crate::store::layout;
use crate::vmm::Unavailable;
use nix::unistd::{AccessFlags, access};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

const NAME: &str = "magikvm-containers";
const VARIABLE: &str = "MAGIKVM_CONTAINERS";

/// The program that the variable names, or the installed one, or the one beside this program.
pub fn find() -> Result<PathBuf, Unavailable> {
    let named = std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from);
    if let Some(path) = named.as_ref().filter(|path| !path.is_file()) {
        return Err(Unavailable {
            reason: format!("{VARIABLE} names {}, which is not a file", path.display()),
            remedy: format!("Name the program {NAME} with {VARIABLE}, or unset it."),
        });
    }
    let beside = || Some(std::env::current_exe().ok()?.with_file_name(NAME));
    let found = named.or_else(|| layout::helper(NAME)).or_else(beside).filter(|path| path.is_file());
    found.ok_or_else(|| Unavailable {
        reason: format!("the program {NAME} is missing, which makes the namespaces of a pod"),
        remedy: format!("Install it beside `magikvm`, or name it with {VARIABLE}."),
    })
}

/// The program as a sandbox is to execute it. A container can have it executed in its own mounts, with `/proc/self/exe`, and may then open its file
/// (CVE-2019-5736). Where the pod's root could write to that file, a copy in memory is executed that nobody can.
#[derive(Debug)]
pub(super) struct Executable {
    pub(super) path: PathBuf,
    /// The copy, which exists until the sandbox has been started.
    _copy: Option<OwnedFd>,
}

impl Executable {
    /// `root` is the host's id of the pod's root.
    pub(super) fn of(program: &Path, root: u32) -> io::Result<Self> {
        let can_write = root == 0
            || program.metadata()?.uid() == root
            || nix::unistd::geteuid().as_raw() == root && access(program, AccessFlags::W_OK).is_ok();
        if !can_write {
            return Ok(Self { path: program.to_owned(), _copy: None });
        }
        let copy = os::sealed_copy(program, FIRST_COPY)?;
        Ok(Self { path: PathBuf::from(format!("/proc/self/fd/{}", copy.as_raw_fd())), _copy: Some(copy) })
    }
}
