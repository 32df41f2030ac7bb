//! The few facts about an ELF64 file that decide whether it can be a guest's kernel or init. The input is untrusted.

use magikvm_proto::guest_image::Arch;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Why a file can't be used for its purpose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// A kernel in the form for boot loaders.
    #[error(
        "is a compressed kernel image (bzImage); the guest needs the uncompressed ELF file `vmlinux` of the same build"
    )]
    BzImage,
    /// A file that is compressed as a whole.
    #[error("is compressed ({0}); unpack it first")]
    Compressed(&'static str),
    #[error("is not an ELF file")]
    NotElf,
    /// 32 bits or big-endian.
    #[error("is not a 64-bit little-endian ELF file")]
    NotElf64,
    #[error("is for another processor (ELF machine {found}), not for {wanted}")]
    Machine {
        /// `e_machine` of the file.
        found: u16,
        wanted: Arch,
    },
    /// An object file, a core dump…
    #[error("is not an executable ELF file (ELF type {found})")]
    NotExecutable {
        /// `e_type` of the file.
        found: u16,
    },
    /// Its headers point outside the file.
    #[error("is a truncated or broken ELF file")]
    Broken,
    /// It has nothing to load.
    #[error("has no loadable segment")]
    NothingToLoad,
    /// It needs a dynamic linker, which the initramfs does not have.
    #[error("is dynamically linked; the initramfs holds no dynamic linker and no libraries")]
    Dynamic,
}

/// Whether a file carries debug information.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DebugInfo {
    /// It has none that needs stripping.
    Absent,
    /// It has `.debug_*` sections.
    Present,
}

pub(crate) const MAGIC: &[u8] = b"\x7fELF";
const HEADER_LEN: usize = 64;
const ET_EXEC: u16 = 2;
const ET_DYN: u16 = 3;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;

/// Values of the ELF specification's `e_machine`.
pub fn machine(arch: Arch) -> u16 {
    match arch {
        Arch::X86_64 => 62,
        Arch::Aarch64 => 183,
    }
}

/// The architecture of an ELF file; `None` for other files and other architectures.
pub fn arch_of_file(path: &Path) -> Option<Arch> {
    let mut header = [0; 20];
    File::open(path).and_then(|mut file| file.read_exact(&mut header)).ok()?;
    let found = Elf { bytes: &header }.u16_at(18).ok()?;
    let known = Arch::ALL.into_iter().find(|&arch| machine(arch) == found);
    header.starts_with(MAGIC).then_some(known).flatten()
}

/// Checks that the bytes are an uncompressed ELF kernel for this architecture.
pub fn check_kernel(bytes: &[u8], arch: Arch) -> Result<DebugInfo, ElfError> {
    let file = Elf::parse(bytes, arch)?;
    if !file.segment_types()?.contains(&PT_LOAD) {
        return Err(ElfError::NothingToLoad);
    }
    Ok(file.debug_info())
}

/// Checks that the bytes are a program for this architecture that needs no dynamic linker.
pub fn check_static_program(bytes: &[u8], arch: Arch) -> Result<(), ElfError> {
    let types = Elf::parse(bytes, arch)?.segment_types()?;
    if types.contains(&PT_INTERP) {
        return Err(ElfError::Dynamic);
    }
    if !types.contains(&PT_LOAD) {
        return Err(ElfError::NothingToLoad);
    }
    Ok(())
}

/// An ELF64 executable with a checked header. Offsets are those of the ELF-64 object file format.
struct Elf<'a> {
    bytes: &'a [u8],
}

impl<'a> Elf<'a> {
    fn parse(bytes: &'a [u8], arch: Arch) -> Result<Self, ElfError> {
        if !bytes.starts_with(MAGIC) {
            return Err(what_else(bytes));
        }
        if bytes.len() < HEADER_LEN {
            return Err(ElfError::Broken);
        }
        if bytes.get(4..6) != Some(&[2, 1]) {
            return Err(ElfError::NotElf64);
        }
        let file = Self { bytes };
        let found = file.u16_at(18)?;
        if found != machine(arch) {
            return Err(ElfError::Machine { found, wanted: arch });
        }
        match file.u16_at(16)? {
            ET_EXEC | ET_DYN => Ok(file),
            found => Err(ElfError::NotExecutable { found }),
        }
    }

    /// The types of the segments. Each segment must lie within the file: a truncated file is found here, not at boot.
    fn segment_types(&self) -> Result<Vec<u32>, ElfError> {
        let (offset, size, count) = (self.u64_at(32)?, self.u16_at(54)?, self.u16_at(56)?);
        let segment_type = |index: u16| {
            let at = offset.checked_add(u64::from(index) * u64::from(size))?;
            let at = usize::try_from(at).ok()?;
            let end =
                self.u64_at(at.checked_add(8)?).ok()?.checked_add(self.u64_at(at.checked_add(32)?).ok()?)?;
            let kind = self.u32_at(at).ok()?;
            (end <= self.bytes.len() as u64).then_some(kind)
        };
        (0..count).map(|index| segment_type(index).ok_or(ElfError::Broken)).collect()
    }

    /// Broken section headers count as "no debug information", since sections are never loaded.
    fn debug_info(&self) -> DebugInfo {
        match self.section_names() {
            Some(names) if contains(names, b".debug_info\0") || contains(names, b".zdebug_info\0") => {
                DebugInfo::Present
            }
            _ => DebugInfo::Absent,
        }
    }

    fn section_names(&self) -> Option<&'a [u8]> {
        let (table, size, index) = (self.u64_at(40).ok()?, self.u16_at(58).ok()?, self.u16_at(62).ok()?);
        let header = table.checked_add(u64::from(size) * u64::from(index))?;
        let header = usize::try_from(header).ok()?;
        let start = usize::try_from(self.u64_at(header.checked_add(24)?).ok()?).ok()?;
        let len = usize::try_from(self.u64_at(header.checked_add(32)?).ok()?).ok()?;
        self.bytes.get(start..start.checked_add(len)?)
    }

    fn array<const N: usize>(&self, at: usize) -> Result<[u8; N], ElfError> {
        let end = at.checked_add(N).ok_or(ElfError::Broken)?;
        self.bytes.get(at..end).and_then(|bytes| bytes.try_into().ok()).ok_or(ElfError::Broken)
    }

    fn u16_at(&self, at: usize) -> Result<u16, ElfError> {
        self.array(at).map(u16::from_le_bytes)
    }

    fn u32_at(&self, at: usize) -> Result<u32, ElfError> {
        self.array(at).map(u32::from_le_bytes)
    }

    fn u64_at(&self, at: usize) -> Result<u64, ElfError> {
        self.array(at).map(u64::from_le_bytes)
    }
}

pub(crate) fn what_else(bytes: &[u8]) -> ElfError {
    // "HdrS" of the Linux x86 boot protocol, documented at this offset of every bzImage.
    if bytes.get(0x202..0x206) == Some(b"HdrS") {
        return ElfError::BzImage;
    }
    let known: [(&[u8], &str); 4] =
        [(b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"BZh", "bzip2")];
    match known.iter().find(|(magic, _)| bytes.starts_with(magic)) {
        Some((_, name)) => ElfError::Compressed(name),
        None => ElfError::NotElf,
    }
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::craft;

    #[test]
    fn a_kernel_and_a_static_program_pass() {
        assert_eq!(check_kernel(&craft::elf(&[PT_LOAD], b""), Arch::X86_64), Ok(DebugInfo::Absent));
        assert_eq!(check_static_program(&craft::elf(&[PT_LOAD], b""), Arch::X86_64), Ok(()));
    }

    #[test]
    fn this_very_test_program_is_dynamically_linked_and_told_so() {
        let me = std::fs::read("/proc/self/exe").unwrap();
        assert_eq!(check_static_program(&me, Arch::native().unwrap()), Err(ElfError::Dynamic));
        assert_eq!(arch_of_file(Path::new("/proc/self/exe")), Arch::native());
    }

    #[test]
    fn the_architecture_of_a_file_is_that_of_its_header() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let program = craft::elf(&[PT_LOAD], b"");
        let mut foreign = program.clone();
        foreign[18] = 183;
        let mut unknown = program.clone();
        unknown[18] = 2;
        let mut not_elf = program.clone();
        not_elf[0] = b'x';
        let cases: [(&[u8], Option<Arch>); 5] = [
            (&program, Some(Arch::X86_64)),
            (&foreign, Some(Arch::Aarch64)),
            (&unknown, None),
            (&not_elf, None),
            (&program[..19], None),
        ];
        for (bytes, arch) in cases {
            crate::files::write(&path, bytes, 0o644).unwrap();
            assert_eq!(arch_of_file(&path), arch);
        }
        assert_eq!(arch_of_file(&dir.path().join("none")), None);
    }

    #[test]
    fn debug_information_is_seen_by_its_section_name() {
        let names = b"\0.text\0.debug_info\0";
        let mut kernel = craft::elf(&[PT_LOAD], names);
        let names_at = kernel.len() - names.len();
        let header_at = kernel.len();
        kernel.resize(header_at + 64, 0);
        for (at, value) in [(40, header_at), (header_at + 24, names_at), (header_at + 32, names.len())] {
            kernel[at..at + 8].copy_from_slice(&(value as u64).to_le_bytes());
        }
        assert_eq!(check_kernel(&kernel, Arch::X86_64), Ok(DebugInfo::Present));
        kernel[names_at + 8] = b'g';
        assert_eq!(check_kernel(&kernel, Arch::X86_64), Ok(DebugInfo::Absent));
    }

    #[test]
    fn every_wrong_file_is_told_by_its_kind() {
        let good = craft::elf(&[PT_LOAD], b"");
        let mut object = good.clone();
        object[16] = 1;
        let mut narrow = good.clone();
        narrow[4] = 1;
        let mut bzimage = vec![0; 0x400];
        bzimage[0x202..0x206].copy_from_slice(b"HdrS");
        let cases: [(&[u8], ElfError); 8] = [
            (b"", ElfError::NotElf),
            (b"#!/bin/sh\n", ElfError::NotElf),
            (b"\x1f\x8b\x08rest", ElfError::Compressed("gzip")),
            (&bzimage, ElfError::BzImage),
            (b"\x7fELF\x02\x01", ElfError::Broken),
            (&narrow, ElfError::NotElf64),
            (&object, ElfError::NotExecutable { found: 1 }),
            (&good[..100], ElfError::Broken),
        ];
        for (bytes, error) in cases {
            assert_eq!(check_kernel(bytes, Arch::X86_64), Err(error));
        }
        let wanted = Arch::Aarch64;
        assert_eq!(check_kernel(&good, wanted), Err(ElfError::Machine { found: 62, wanted }));
        assert_eq!(check_kernel(&craft::elf(&[4], b""), Arch::X86_64), Err(ElfError::NothingToLoad));
    }

    #[test]
    fn a_kernel_that_was_cut_short_is_broken() {
        let mut kernel = craft::elf(&[PT_LOAD], b"code");
        let len = kernel.len() as u64;
        kernel[64 + 32..64 + 40].copy_from_slice(&len.to_le_bytes());
        assert_eq!(check_kernel(&kernel, Arch::X86_64), Ok(DebugInfo::Absent));
        kernel.pop();
        assert_eq!(check_kernel(&kernel, Arch::X86_64), Err(ElfError::Broken));
    }

    #[test]
    fn no_truncation_and_no_flipped_byte_makes_the_reader_panic() {
        let good = craft::elf(&[PT_LOAD, PT_INTERP], b"tail");
        for at in 0..good.len() {
            let _cut = check_kernel(&good[..at], Arch::X86_64).is_ok();
            let mut flipped = good.clone();
            flipped[at] = 0xff;
            let _flipped = check_kernel(&flipped, Arch::X86_64).is_ok();
        }
    }
}
