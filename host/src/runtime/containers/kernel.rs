//! File systems that the kernel must know. A module of one is loaded when it is first asked for.

use crate::os;
use crate::vmm::Unavailable;

/// Whether it knows the file system of the images' files. For root.
pub(super) fn has_erofs() -> bool {
    os::knows_file_system(c"erofs")
}

/// Checks that it has what the roots of containers are made of.
pub(super) fn probe() -> Result<(), Unavailable> {
    // Only root can have its module loaded; what an ordinary user sees may still come.
    if nix::unistd::geteuid().is_root() && !os::knows_file_system(c"overlay") {
        return Err(Unavailable {
            reason: "the kernel has no overlay file system, which the root of each container needs"
                .to_owned(),
            remedy: "Load it with `modprobe overlay`, or run a kernel with CONFIG_OVERLAY_FS.".to_owned(),
        });
    }
    Ok(())
}
