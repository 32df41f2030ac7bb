//! Loop devices (linux/loop.h): files as block devices. A device frees itself when nobody has it open or mounted any more.
#![allow(unsafe_code, reason = "ioctls take structures by address")]

use nix::errno::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

const LOOP_CTL_GET_FREE: u64 = 0x4c82;
const LOOP_CONFIGURE: u64 = 0x4c0a;
const READ_ONLY: u32 = 1;
const AUTOCLEAR: u32 = 4;
const DIRECT_IO: u32 = 16;
/// Others may take the device that was free a moment ago.
const ATTEMPTS: u32 = 64;

/// `struct loop_config`, with the parts of `struct loop_info64` that are used.
#[repr(C)]
struct Config {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    raw_device: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    names_and_key: [u8; 64 + 64 + 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<Config>() == 304);

/// A device that lasts as long as this value or a mount of it.
#[derive(Debug)]
pub(super) struct LoopDevice {
    pub(super) path: PathBuf,
    _open: File,
}

/// What may be done with a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Read,
    Write,
}

/// Makes a file a block device.
pub(super) fn attach(file: &Path, purpose: Use) -> io::Result<LoopDevice> {
    let writes = purpose == Use::Write;
    let more = if writes { 0 } else { READ_ONLY };
    let backing = OpenOptions::new().read(true).write(writes).open(file)?;
    let control = OpenOptions::new().read(true).write(true).open("/dev/loop-control")?;
    for _ in 0..ATTEMPTS {
        // SAFETY: the request takes no argument and returns a number.
        let number = Errno::result(unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE as _) })?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = OpenOptions::new().read(true).write(writes).open(&path)?;
        match configure(&device, &backing, AUTOCLEAR | DIRECT_IO | more) {
            // Some file systems have no direct input and output.
            Err(Errno::EINVAL) => configure(&device, &backing, AUTOCLEAR | more)?,
            Err(Errno::EBUSY) => continue,
            other => other?,
        }
        return Ok(LoopDevice { path, _open: device });
    }
    Err(Errno::EBUSY.into())
}

fn configure(device: &File, backing: &File, flags: u32) -> Result<(), Errno> {
    let config = Config {
        fd: backing.as_raw_fd().cast_unsigned(),
        block_size: 0,
        device: 0,
        inode: 0,
        raw_device: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags,
        names_and_key: [0; 160],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: the structure is laid out as the kernel's and outlives the call; both descriptors are open.
    Errno::result(unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE as _, &raw const config) })
        .map(drop)
}
