//! The floor of the figures: the least that a VM does before a program in a container's root file system runs. A busybox init mounts the image, puts
//! an overlay on it and execs; then the VM ends.

use magikvm::image::{ImageStore, Reference};
use magikvm::store::layout::Layout;
use magikvm::vmm::disk::{self, Part};
use std::error::Error;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The initramfs in the directory of [`make`].
pub const INITRAMFS: &str = "initramfs";
/// The pod's partition, which is nearly empty because the floor does not read it.
const POD_BYTES: usize = 8192;

/// Makes the initramfs and the composite disk of a floor that prints `mark` from an image of the store, in a new directory in `work`.
pub fn make(work: &Path, layout: &Layout, image: &str, mark: &str) -> Result<PathBuf, Box<dyn Error>> {
    let dir = work.join("floor");
    let tree = work.join("floor-tree");
    for sub in ["bin", "dev", "proc", "ro", "rw", "root"] {
        fs::create_dir_all(tree.join(sub))?;
    }
    fs::create_dir_all(&dir)?;
    fs::copy("/bin/busybox", tree.join("bin/busybox"))?;
    let init = format!(
        "#!/bin/busybox sh\n\
         b=/bin/busybox\n\
         $b mount -t devtmpfs dev /dev\n\
         $b mount -t proc proc /proc\n\
         $b mount -t erofs -o ro /dev/vda2 /ro\n\
         $b mount -t tmpfs rw /rw\n\
         $b mkdir /rw/u /rw/w\n\
         $b mount -t overlay -o lowerdir=/ro,upperdir=/rw/u,workdir=/rw/w o /root\n\
         $b chroot /root /bin/sh -c 'echo {mark}'\n\
         $b reboot -f\n"
    );
    let path = tree.join("init");
    fs::write(&path, init)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    // The init's standard output is the console, which must exist before the init can mount anything.
    archive(&tree, "{ [ -e dev/console ] || mknod dev/console c 5 1; }", &dir.join(INITRAMFS))?;
    let image = ImageStore::open(&layout.images())?.resolve(&image.parse::<Reference>()?)?;
    let rootfs = Part { path: image.rootfs.path.clone(), size: image.rootfs.size_bytes };
    let pod = dir.join("pod.erofs");
    fs::write(&pod, vec![0u8; POD_BYTES])?;
    let pod = Part { path: pod, size: u64::try_from(POD_BYTES)? };
    disk::compose(&dir, &[pod, rootfs])?;
    Ok(dir)
}

/// Packs a directory as an initramfs, after a shell command in it. The same files give the same bytes.
pub fn archive(tree: &Path, prepare: &str, to: &Path) -> Result<(), Box<dyn Error>> {
    let script = format!(
        "cd \"$1\" && {prepare} && find . -exec touch -h -d @0 {{}} + && find . | LC_ALL=C sort | cpio -o -H newc -R 0:0 --reproducible --quiet > \"$2\""
    );
    let made = Command::new("sh").args(["-c", &script, "sh"]).arg(tree).arg(to).status()?;
    if made.success() { Ok(()) } else { Err("cpio (needs root for /dev/console)".into()) }
}
