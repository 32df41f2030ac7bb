//! A way to remove what this process may not: files of the subordinate ids of an ordinary user, whose owner only a process in a user namespace
//! can be. The program that knows such a way registers it once, before its first removal.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::OnceLock;

/// Removes a file or a directory with everything in it, and succeeds when it is gone.
pub type Remove = fn(&Path) -> io::Result<()>;

static REMOVE: OnceLock<Remove> = OnceLock::new();

/// Registers the way. Only the first call counts.
pub fn register(remove: Remove) {
    REMOVE.get_or_init(|| remove);
}

/// Whether something is gone after all that could not be removed for this reason: more rights help, and the registered way has them.
pub fn removes(path: &Path, refused: &io::Error) -> bool {
    match REMOVE.get() {
        Some(remove) if refused.kind() == ErrorKind::PermissionDenied => remove(path).is_ok(),
        _ => false,
    }
}
