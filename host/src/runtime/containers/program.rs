//! Where the sandbox's program is.

use crate::store::layout;
use crate::vmm::Unavailable;
use std::path::PathBuf;

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
