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

/// What a removal that ended with this error comes to: the same error, unless more rights would help and the registered way has them.
pub fn remove(path: &Path, refused: io::Error) -> io::Result<()> {
    match REMOVE.get() {
        Some(remove) if refused.kind() == ErrorKind::PermissionDenied => remove(path).map_err(|_| refused),
        _ => Err(refused),
    }
}
