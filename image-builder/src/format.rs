//! The form in which virtual machine monitors load a kernel: an ELF file on x86_64, a raw `Image` on aarch64. The input is untrusted.

use crate::elf::{self, DebugInfo, ElfError};
use magikvm_proto::guest_image::Arch;

/// Why a file can't be a guest's kernel.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It is not a suitable ELF file, or another known format.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The other file of an aarch64 kernel's build.
    #[error("is an ELF file; the guest needs the raw `arch/arm64/boot/Image` of the same build")]
    NotRaw,
    /// A kernel that unpacks itself when UEFI starts it.
    #[error(
        "is a compressed UEFI kernel (vmlinuz.efi); the guest needs the raw `arch/arm64/boot/Image` of the same build"
    )]
    Zboot,
    /// It is not a kernel for aarch64.
    #[error("is not a raw kernel `Image` for aarch64")]
    NotImage,
    /// For processors in big-endian mode.
    #[error("is a big-endian kernel")]
    BigEndian,
    /// The file ends too early.
    #[error("is a truncated or broken kernel `Image`: {len} bytes of {stated}")]
    Truncated {
        /// Bytes of the file.
        len: u64,
        /// Bytes of memory that the kernel needs according to its header.
        stated: u64,
    },
}

/// Length of an `Image`'s header; layout as in the kernel's `Documentation/arch/arm64/booting.rst`.
const HEADER_LEN: usize = 64;
const IMAGE_SIZE: usize = 16;
const FLAGS: usize = 24;
const MAGIC: usize = 56;
const ARM64_MAGIC: &[u8] = b"ARM\x64";
const FLAG_BIG_ENDIAN: u64 = 1;

/// Checks that the bytes are an uncompressed kernel for this architecture.
pub fn check_kernel(bytes: &[u8], arch: Arch) -> Result<DebugInfo, FormatError> {
    match arch {
        Arch::X86_64 if has_arm64_magic(bytes) => {
            Err(ElfError::Machine { found: elf::machine(Arch::Aarch64), wanted: arch }.into())
        }
        Arch::X86_64 => Ok(elf::check_kernel(bytes, arch)?),
        Arch::Aarch64 => check_arm64(bytes).map(|()| DebugInfo::Absent),
    }
}

fn has_arm64_magic(bytes: &[u8]) -> bool {
    bytes.get(MAGIC..HEADER_LEN).is_some_and(|rest| rest.starts_with(ARM64_MAGIC))
}

fn check_arm64(bytes: &[u8]) -> Result<(), FormatError> {
    if !has_arm64_magic(bytes) {
        return Err(what_else(bytes));
    }
    let (stated, flags) = (u64_at(bytes, IMAGE_SIZE), u64_at(bytes, FLAGS));
    if flags & FLAG_BIG_ENDIAN != 0 {
        return Err(FormatError::BigEndian);
    }
    // The header states how much memory the kernel takes, not how long the file is: the file omits what starts as zeros. That part is smaller than
    // the rest, so a file of less than half the size is truncated. The manifest's digest detects a file that lacks only its end.
    let len = bytes.len() as u64;
    if len > stated || len < stated / 2 {
        return Err(FormatError::Truncated { len, stated });
    }
    Ok(())
}

fn what_else(bytes: &[u8]) -> FormatError {
    if bytes.starts_with(elf::MAGIC) {
        return FormatError::NotRaw;
    }
    // A PE file with "zimg" behind its first word (`drivers/firmware/efi/libstub/zboot-header.S`).
    if bytes.starts_with(b"MZ") && bytes.get(4..8) == Some(b"zimg") {
        return FormatError::Zboot;
    }
    match elf::what_else(bytes) {
        known @ ElfError::Compressed(_) => known.into(),
        ElfError::BzImage => {
            ElfError::Machine { found: elf::machine(Arch::X86_64), wanted: Arch::Aarch64 }.into()
        }
        _ => FormatError::NotImage,
    }
}

/// 0 beyond the end, which can't happen: every caller has checked the header's length.
fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..at + 8).and_then(|field| field.try_into().ok());
    field.map_or(0, u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::craft;

    fn check(bytes: &[u8]) -> Result<DebugInfo, FormatError> {
        check_kernel(bytes, Arch::Aarch64)
    }

    #[test]
    fn an_image_passes_for_its_own_architecture_only() {
        let image = craft::arm64_image(b"code and data");
        assert_eq!(check(&image), Ok(DebugInfo::Absent));
        let wanted = Arch::X86_64;
        assert_eq!(
            check_kernel(&image, wanted),
            Err(FormatError::Elf(ElfError::Machine { found: 183, wanted }))
        );
        assert_eq!(check_kernel(&craft::elf(&[1], b""), Arch::X86_64), Ok(DebugInfo::Absent));
    }

    #[test]
    fn every_wrong_file_is_told_by_its_kind() {
        let mut bzimage = vec![0; 0x400];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        let mut big_endian = craft::arm64_image(b"code");
        big_endian[FLAGS] |= 1;
        let mut zboot = b"MZ\0\0zimg".to_vec();
        zboot.resize(200, 0);
        let for_x86 = ElfError::Machine { found: 62, wanted: Arch::Aarch64 };
        let cases: [(&[u8], FormatError); 8] = [
            (b"", FormatError::NotImage),
            (b"#!/bin/sh\n", FormatError::NotImage),
            (&[0; 64], FormatError::NotImage),
            (b"\x1f\x8b\x08rest", ElfError::Compressed("gzip").into()),
            (&bzimage, for_x86.into()),
            (&craft::elf(&[1], b""), FormatError::NotRaw),
            (&zboot, FormatError::Zboot),
            (&big_endian, FormatError::BigEndian),
        ];
        for (bytes, error) in cases {
            assert_eq!(check(bytes), Err(error));
        }
    }

    #[test]
    fn an_image_of_which_much_is_missing_or_that_is_longer_than_it_says_is_broken() {
        let image = craft::arm64_image(&[7; 1000]);
        let stated = u64_at(&image, IMAGE_SIZE);
        for len in [HEADER_LEN, usize::try_from(stated / 2).unwrap() - 1] {
            assert_eq!(check(&image[..len]), Err(FormatError::Truncated { len: len as u64, stated }));
        }
        let mut long = image;
        long.resize(usize::try_from(stated).unwrap() + 1, 0);
        assert_eq!(check(&long), Err(FormatError::Truncated { len: stated + 1, stated }));
    }

    #[test]
    fn no_truncation_and_no_flipped_byte_makes_the_reader_panic() {
        let good = craft::arm64_image(b"tail");
        for at in 0..good.len() {
            let _cut = check(&good[..at]).is_ok();
            let mut flipped = good.clone();
            flipped[at] = 0xff;
            let _flipped = check(&flipped).is_ok();
        }
    }
}
