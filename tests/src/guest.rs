//! Damaged guest images.

use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// A copy of the guest image under test.
#[derive(Debug)]
pub struct BadGuest {
    dir: PathBuf,
}

impl BadGuest {
    /// An undamaged copy in a new directory.
    pub fn copy(good: &Path, dir: &Path) -> Self {
        fs::create_dir(dir).expect("a new directory");
        for part in ["manifest.json", "vmlinux", "initramfs"] {
            fs::copy(good.join(part), dir.join(part)).expect("a guest image");
        }
        Self { dir: dir.to_owned() }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A part's bytes.
    pub fn part(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.join(name)).expect("a part")
    }

    /// Replaces a part and its entry in the manifest.
    pub fn replace(&self, name: &str, bytes: &[u8]) {
        fs::write(self.dir.join(name), bytes).expect("a part");
        let path = self.dir.join("manifest.json");
        let mut manifest: Value =
            serde_json::from_slice(&fs::read(&path).expect("a manifest")).expect("JSON");
        manifest["parts"][name]["size"] = bytes.len().into();
        fs::write(&path, manifest.to_string()).expect("a manifest");
    }

    /// Replaces a part without a change of the manifest.
    pub fn damage(&self, name: &str, bytes: &[u8]) {
        fs::write(self.dir.join(name), bytes).expect("a part");
    }
}

/// An initramfs whose init is this script of busybox's shell.
pub fn initramfs(dir: &Path, busybox: &Path, script: &str) -> Vec<u8> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(dir.join("bin")).expect("a directory");
    fs::copy(busybox, dir.join("bin/busybox")).expect("busybox");
    fs::write(dir.join("init"), format!("#!/bin/busybox sh\n{script}")).expect("a script");
    fs::set_permissions(dir.join("init"), fs::Permissions::from_mode(0o755)).expect("its mode");
    let packed = dir.with_extension("cpio");
    crate::floor::archive(dir, "true", &packed).expect("a shell, find and cpio");
    let bytes = fs::read(&packed).expect("the archive");
    fs::remove_file(&packed).expect("the archive");
    bytes
}

/// A kernel whose first instruction is invalid, entered by PVH and by the 64-bit Linux boot protocol. Nothing handles that exception, the one
/// that it raises, or the next one.
pub fn kernel_of_one_fault() -> Vec<u8> {
    const ENTRY: u64 = 0x100_0000;
    const NOTE_AT: u64 = 64 + 2 * 56;
    let mut file = vec![0u8; 4096];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(24, &ENTRY.to_le_bytes());
    put(32, &64u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 2, 0]);
    // PT_LOAD of the second page, and PT_NOTE with XEN_ELFNOTE_PHYS32_ENTRY.
    let segments = [(1u32, 4096u64, ENTRY, 4096u64, 4096u64), (4, NOTE_AT, 0, 24, 4)];
    for (number, (kind, offset, address, size, align)) in segments.into_iter().enumerate() {
        let at = 64 + number * 56;
        put(at, &kind.to_le_bytes());
        put(at + 4, &7u32.to_le_bytes());
        for (field, value) in [(8, offset), (16, address), (24, address), (32, size), (40, size), (48, align)]
        {
            put(at + field, &value.to_le_bytes());
        }
    }
    let note = usize::try_from(NOTE_AT).expect("a small number");
    put(note, &[4, 0, 0, 0, 8, 0, 0, 0, 18, 0, 0, 0]);
    put(note + 12, b"Xen\0");
    put(note + 16, &ENTRY.to_le_bytes());
    // Clears the descriptor table with `lidt` of ten zeros. There is no stack, so that the zeros are in this page: the operand is relative to the
    // next instruction in 64-bit mode and absolute in 32-bit mode, and both addresses lie in zeros.
    let mut code = vec![0u8; 4096];
    code[..7].copy_from_slice(&[0x0f, 0x01, 0x1d, 0x00, 0x08, 0x00, 0x00]);
    // ud2, again and again.
    for pair in code[7..507].chunks_exact_mut(2) {
        pair.copy_from_slice(&[0x0f, 0x0b]);
    }
    file.extend(code);
    file
}
