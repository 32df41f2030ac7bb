//! The kernel of the system's libkrunfw, a shared library that holds a kernel in its memory layout. The kernel is written once to a file
//! that boots with our initramfs like any other kernel: an ELF file of one segment on x86-64, and unmodified on ARM.
#![allow(unsafe_code, reason = "a library is loaded, and hands out a pointer")]

use crate::store::atomic::{self, FileError};
use crate::vmm::Unavailable;
use magikvm_proto::guest_image::Arch;
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// The name that libkrun uses.
const LIBRARY: &str = if cfg!(target_os = "macos") { "libkrunfw.5.dylib" } else { "libkrunfw.so.5" };
/// Largest size of a kernel in bytes. The library is trusted like any installed one; the cap finds broken ones.
const MAX_KERNEL: usize = 256 << 20;
const ELF_HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const MACHINE_X86_64: u16 = 62;
/// Offset of the segment in the file, on a page boundary.
const PAGE: usize = 4096;

/// The reasons why libkrunfw offers no kernel.
#[derive(Debug, thiserror::Error)]
pub(super) enum FirmwareError {
    /// The library is missing or cannot be loaded.
    #[error("{LIBRARY} cannot be loaded")]
    Load(#[source] libloading::Error),
    /// The library has no kernel.
    #[error("{LIBRARY} has no kernel that this magikvm can start: {0}")]
    NoKernel(&'static str),
    /// The kernel's file could not be written.
    #[error(transparent)]
    File(#[from] FileError),
}

/// Checks that the library is there.
pub(super) fn probe() -> Result<(), Unavailable> {
    load().map(drop).map_err(|error| Unavailable {
        reason: format!("{LIBRARY} cannot be loaded: {error}"),
        remedy: "Install libkrunfw, or leave out `--kernel libkrunfw`.".to_owned(),
    })
}

fn load() -> Result<libloading::Library, libloading::Error> {
    // SAFETY: the library's initializers are those of an installed system library; it has none.
    unsafe { libloading::Library::new(LIBRARY) }
}

/// The path of its kernel as an ELF file, written into `dir` unless it is there.
pub(super) fn kernel(dir: &Path) -> Result<PathBuf, FirmwareError> {
    let library = load().map_err(FirmwareError::Load)?;
    let (mut address, mut entry, mut size) = (0u64, 0u64, 0usize);
    // SAFETY: libkrunfw's header declares the function so. It returns a pointer to `size` bytes of the library's data, which stay valid while
    // the library is loaded: until the end of this function.
    let image = unsafe {
        type GetKernel = unsafe extern "C" fn(*mut u64, *mut u64, *mut usize) -> *const u8;
        let get: libloading::Symbol<'_, GetKernel> =
            library.get(b"krunfw_get_kernel").map_err(FirmwareError::Load)?;
        let start = get(&raw mut address, &raw mut entry, &raw mut size);
        if start.is_null() || size == 0 || size > MAX_KERNEL {
            return Err(FirmwareError::NoKernel("its size makes no sense"));
        }
        std::slice::from_raw_parts(start, size)
    };
    let header = match Arch::native() {
        // A raw `Image` has its load address in its header.
        Some(Arch::Aarch64) => Vec::new(),
        _ => elf_header(address, entry, image.len())
            .ok_or(FirmwareError::NoKernel("its addresses make no sense"))?,
    };
    let mut digest = Sha256::new();
    digest.update(&header);
    digest.update(image);
    let mut name = String::from("libkrunfw-");
    for byte in &digest.finalize()[..8] {
        // Writing to a String can't fail.
        write!(name, "{byte:02x}").unwrap_or_default();
    }
    let path = dir.join(name);
    if !path.is_file() {
        atomic::create_dir_all(dir, 0o700)?;
        // The VMM, which runs as another user, reads it. The directory keeps others away.
        atomic::write(&path, &[&header, image].concat(), 0o644)?;
    }
    Ok(path)
}

/// The first page of an ELF file with one segment, which is loaded at `address` and entered at `entry`.
fn elf_header(address: u64, entry: u64, size: usize) -> Option<Vec<u8>> {
    let size = u64::try_from(size).ok()?;
    if !(address..address.checked_add(size)?).contains(&entry) {
        return None;
    }
    let mut header = vec![0u8; PAGE];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    // ELF-64 header: executable, machine, version, entry, program headers.
    put(16, &2u16.to_le_bytes());
    put(18, &MACHINE_X86_64.to_le_bytes());
    put(20, &1u32.to_le_bytes());
    put(24, &entry.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &64u16.to_le_bytes());
    put(54, &56u16.to_le_bytes());
    put(56, &1u16.to_le_bytes());
    // Its program header: load, read-write-execute, offset, addresses, sizes, alignment.
    put(ELF_HEADER, &1u32.to_le_bytes());
    put(ELF_HEADER + 4, &7u32.to_le_bytes());
    put(ELF_HEADER + 8, &4096u64.to_le_bytes());
    put(ELF_HEADER + 16, &address.to_le_bytes());
    put(ELF_HEADER + 24, &address.to_le_bytes());
    put(ELF_HEADER + 32, &size.to_le_bytes());
    put(ELF_HEADER + 40, &size.to_le_bytes());
    put(ELF_HEADER + PROGRAM_HEADER - 8, &4096u64.to_le_bytes());
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_reads_the_header_as_it_was_meant() {
        let mut file = elf_header(0x100_0000, 0x100_01d0, 8192).unwrap();
        file.extend([0x90; 8192]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kernel");
        std::fs::write(&path, &file).unwrap();
        let said = std::process::Command::new("readelf")
            .args(["-hlW"])
            .arg(&path)
            .output()
            .expect("readelf (binutils)");
        let said = String::from_utf8(said.stdout).unwrap();
        assert!(said.contains("X86-64") && said.contains("0x10001d0"), "{said}");
        let segment = said.lines().find(|line| line.trim_start().starts_with("LOAD")).expect("a segment");
        let fields: Vec<&str> = segment.split_ascii_whitespace().collect();
        assert_eq!(
            fields[..6],
            ["LOAD", "0x001000", "0x0000000001000000", "0x0000000001000000", "0x002000", "0x002000"]
        );
    }

    #[test]
    fn an_entry_outside_of_the_kernel_is_refused() {
        for (address, entry, size) in
            [(0x1000, 0xfff, 4096), (0x1000, 0x2000, 4096), (u64::MAX, u64::MAX, 4096)]
        {
            assert_eq!(elf_header(address, entry, size), None);
        }
    }
}
