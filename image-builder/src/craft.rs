//! For tests: small files shaped like a kernel and an init program.
#![allow(dead_code, reason = "the unit tests and the integration tests each use their part")]
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

use flate2::Compression;
use flate2::write::GzEncoder;
use std::io::Write;

/// An x86-64 ELF executable with these program header types, followed by `content`.
pub(crate) fn elf(segments: &[u32], content: &[u8]) -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    file.extend(2_u16.to_le_bytes());
    file.extend(62_u16.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    for half in [64, 56, u16::try_from(segments.len()).unwrap(), 64, 0, 0] {
        file.extend(u16::to_le_bytes(half));
    }
    for segment in segments {
        let start = file.len();
        file.extend(segment.to_le_bytes());
        file.resize(start + 56, 0);
    }
    file.extend(content);
    file
}

/// A raw kernel for aarch64: its header, `content`, and some memory that is not in the file.
pub(crate) fn arm64_image(content: &[u8]) -> Vec<u8> {
    let mut file = vec![0; 56];
    file.extend(b"ARM\x64\0\0\0\0");
    file.extend(content);
    let stated = file.len() as u64 + 24;
    file[16..24].copy_from_slice(&stated.to_le_bytes());
    // Pages of 4 KiB, anywhere in memory.
    file[24] = 0b1010;
    file
}

/// A file that is accepted as an uncompressed kernel with this release and this embedded configuration.
pub(crate) fn kernel(release: &str, config: &str) -> Vec<u8> {
    elf(&[1], &kernel_content(release, config))
}

/// The same for aarch64.
pub(crate) fn arm64_kernel(release: &str, config: &str) -> Vec<u8> {
    arm64_image(&kernel_content(release, config))
}

fn kernel_content(release: &str, config: &str) -> Vec<u8> {
    let mut packed = GzEncoder::new(Vec::new(), Compression::default());
    packed.write_all(config.as_bytes()).unwrap();
    let mut content = format!("\0Linux version {release} (who@where) (gcc) #1 SMP\n\0").into_bytes();
    content.extend(b"IKCFG_ST not the real one ");
    content.extend(b"IKCFG_ST");
    content.extend(packed.finish().unwrap());
    content.extend(b"IKCFG_ED");
    content
}

/// An init program for aarch64.
pub(crate) fn for_aarch64(mut elf: Vec<u8>) -> Vec<u8> {
    elf[18] = 183;
    elf
}

/// A stamped file that is accepted as a static init program.
pub(crate) fn init(version: &str) -> Vec<u8> {
    let mut content = b"some code".to_vec();
    content.extend(magikvm_proto::guest_image::init_stamp(version));
    elf(&[1], &content)
}
