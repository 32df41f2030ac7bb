//! The `manifest.json` of a guest image: what the image builder writes and the host checks before it boots one.
//!
//! Owns: the manifest's types, its pure checks, and the stamp by which a guest init states its version.
//! Must not know: where a guest image is stored, how its files are read or hashed.

use crate::GENERATION;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

/// Name of the manifest in a guest image's directory.
pub const MANIFEST: &str = "manifest.json";
/// The part with the uncompressed kernel, in the form that virtual machine monitors load on its architecture: an ELF file on x86_64, the
/// raw `Image` on aarch64. The name is the same for both, so that only the code that loads it must know the difference.
pub const KERNEL: &str = "vmlinux";
/// The part with the initial root file system: a newc cpio archive.
pub const INITRAMFS: &str = "initramfs";
/// The feature of kernels that have the file system of scratch disks.
pub const FEATURE_SCRATCH: &str = "ext4";
/// Version of the manifest's structure. Any other number is refused, so that the meaning of a field can change.
pub const SCHEMA: u32 = 1;
/// Most bytes of a `manifest.json`.
pub const MAX_GUEST_MANIFEST_SIZE: usize = 64 << 10;
/// Most bytes of one part.
pub const MAX_PART_SIZE: u64 = 512 << 20;

/// Processor architecture of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Arch {
    /// 64-bit x86.
    #[serde(rename = "x86_64")]
    X86_64,
    /// 64-bit ARM.
    #[serde(rename = "aarch64")]
    Aarch64,
}

impl Arch {
    /// All architectures.
    pub const ALL: [Self; 2] = [Self::X86_64, Self::Aarch64];

    /// The architecture that this program was compiled for; `None` if no guest can be built for it.
    pub fn native() -> Option<Self> {
        Self::ALL.into_iter().find(|arch| arch.as_str() == std::env::consts::ARCH)
    }

    /// The name as in Rust's `std::env::consts::ARCH` and `uname -m`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }
}

impl fmt::Display for Arch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A SHA-256 digest: 64 lowercase hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Hex(String);

/// The text is not 64 lowercase hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("is not a SHA-256 digest (64 lowercase hexadecimal digits)")]
pub struct NotSha256;

impl Sha256Hex {
    /// Builds a digest from the 32 bytes that a hash function returns.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        use fmt::Write;
        Self(bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
            // Writing to a String can't fail.
            let _infallible = write!(text, "{byte:02x}");
            text
        }))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for Sha256Hex {
    type Error = NotSha256;
    fn try_from(text: String) -> Result<Self, NotSha256> {
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        if text.len() == 64 && text.bytes().all(hexadecimal) { Ok(Self(text)) } else { Err(NotSha256) }
    }
}

impl FromStr for Sha256Hex {
    type Err = NotSha256;
    fn from_str(text: &str) -> Result<Self, NotSha256> {
        text.to_owned().try_into()
    }
}

impl From<Sha256Hex> for String {
    fn from(digest: Sha256Hex) -> Self {
        digest.0
    }
}

impl fmt::Display for Sha256Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One file of a guest image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestFile {
    /// Digest of its content.
    pub sha256: Sha256Hex,
    /// Its length in bytes.
    pub size: u64,
}

/// The init program inside the initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Init {
    /// Its version, if it carries a stamp ([`init_stamp`]).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Digest of the program.
    pub sha256: Sha256Hex,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestManifest {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Architecture of kernel and init.
    pub arch: Arch,
    /// Generation of the wire and the plan that the init speaks ([`GENERATION`]).
    pub generation: u32,
    /// The kernel's release, as `uname -r` prints it in the guest.
    pub kernel_version: String,
    /// What the kernel supports, by the names of the image builder's feature table: "vsock", "virtio-fs"…
    pub features: BTreeSet<String>,
    pub init: Init,
    /// The image's files by name.
    pub parts: BTreeMap<String, GuestFile>,
}

/// Why a `manifest.json` can't be used.
#[derive(Debug, thiserror::Error)]
pub enum GuestManifestError {
    /// The manifest is longer than allowed.
    #[error("is {len} bytes long, at most {MAX_GUEST_MANIFEST_SIZE} are allowed")]
    TooLong {
        /// Bytes found.
        len: usize,
    },
    /// The manifest is not valid JSON of the expected type.
    #[error("is not a guest image manifest")]
    Syntax(#[source] serde_json::Error),
    /// The manifest has another schema.
    #[error(
        "has schema {found}, this program reads schema {SCHEMA}; rebuild the guest image with `magikvm-image build`"
    )]
    Schema { found: u32 },
    /// The init speaks another generation of the wire.
    #[error(
        "is of wire generation {found}, this program speaks generation {GENERATION}; rebuild the guest image with `magikvm-image build`"
    )]
    Generation { found: u32 },
    /// The manifest lacks a part that every guest image has.
    #[error("does not list the part {0:?}")]
    PartMissing(&'static str),
    /// A part's name is not a plain file name.
    #[error("lists a part {0:?}, which is not a plain file name")]
    PartName(String),
    /// A part is longer than allowed.
    #[error("lists {name:?} with {size} bytes, at most {MAX_PART_SIZE} are allowed")]
    PartTooLong {
        name: String,
        /// Stated size in bytes.
        size: u64,
    },
}

impl GuestManifest {
    /// Reads and checks a `manifest.json`. The schema is checked first: with another schema the other fields have no meaning.
    pub fn parse(bytes: &[u8]) -> Result<Self, GuestManifestError> {
        #[derive(Deserialize)]
        struct OnlySchema {
            schema: u32,
        }
        if bytes.len() > MAX_GUEST_MANIFEST_SIZE {
            return Err(GuestManifestError::TooLong { len: bytes.len() });
        }
        let OnlySchema { schema } = serde_json::from_slice(bytes).map_err(GuestManifestError::Syntax)?;
        if schema != SCHEMA {
            return Err(GuestManifestError::Schema { found: schema });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(GuestManifestError::Syntax)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), GuestManifestError> {
        if self.generation != GENERATION {
            return Err(GuestManifestError::Generation { found: self.generation });
        }
        for (name, part) in &self.parts {
            if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) || name == MANIFEST {
                return Err(GuestManifestError::PartName(name.clone()));
            }
            if part.size > MAX_PART_SIZE {
                return Err(GuestManifestError::PartTooLong { name: name.clone(), size: part.size });
            }
        }
        match [KERNEL, INITRAMFS].into_iter().find(|&name| !self.parts.contains_key(name)) {
            Some(name) => Err(GuestManifestError::PartMissing(name)),
            None => Ok(()),
        }
    }

    /// The manifest as it is stored: equal manifests give equal bytes.
    pub fn to_json(&self) -> Vec<u8> {
        // The manifest consists of maps with text keys, texts and integers, which serde_json always accepts.
        let mut json = serde_json::to_vec_pretty(self).unwrap_or_default();
        json.push(b'\n');
        json
    }
}

/// Length of an init's stamp in bytes.
pub const INIT_STAMP_LEN: usize = 64;
const STAMP_MAGIC: &[u8; 24] = b"@(#) magikvm init stamp\0";
const STAMP_VERSION: usize = STAMP_MAGIC.len() + 4;

/// The stamp that an init program carries in its read-only data, so that the image builder can tell its version and generation
/// without running it: 24 bytes of magic, [`GENERATION`] as little-endian u32, the version padded with zeros.
///
/// ```
/// static STAMP: [u8; magikvm_proto::guest_image::INIT_STAMP_LEN] =
///     magikvm_proto::guest_image::init_stamp(env!("CARGO_PKG_VERSION"));
/// // In main, so that the linker keeps it:
/// std::hint::black_box(&STAMP);
/// ```
pub const fn init_stamp(version: &str) -> [u8; INIT_STAMP_LEN] {
    let mut stamp = [0; INIT_STAMP_LEN];
    let (magic, rest) = stamp.split_at_mut(STAMP_MAGIC.len());
    magic.copy_from_slice(STAMP_MAGIC);
    let (generation, text) = rest.split_at_mut(4);
    generation.copy_from_slice(&GENERATION.to_le_bytes());
    let version = version.as_bytes();
    assert!(version.len() < text.len(), "the version does not fit into the stamp");
    text.split_at_mut(version.len()).0.copy_from_slice(version);
    stamp
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InitStamp {
    /// Generation of the wire and of the plan.
    pub generation: u32,
    /// Version of the init program.
    pub version: String,
}

impl InitStamp {
    /// Finds the stamp in a program's bytes. Only printable ASCII followed by zeros counts as a version.
    pub fn find(program: &[u8]) -> Option<Self> {
        let candidates = magic_positions(program);
        candidates.filter_map(|at| program.get(at..at + INIT_STAMP_LEN)).find_map(|stamp| {
            let generation = stamp.get(STAMP_MAGIC.len()..STAMP_VERSION)?.try_into().ok()?;
            let text = std::str::from_utf8(stamp.get(STAMP_VERSION..)?).ok()?;
            let version = text.trim_end_matches('\0');
            let shown = version.bytes().all(|byte| byte.is_ascii_graphic());
            (shown && !version.is_empty() && version.len() < text.len())
                .then(|| Self { generation: u32::from_le_bytes(generation), version: version.to_owned() })
        })
    }
}

fn magic_positions(program: &[u8]) -> impl Iterator<Item = usize> {
    program
        .windows(STAMP_MAGIC.len())
        .enumerate()
        .filter(|(_, window)| window == STAMP_MAGIC)
        .map(|(at, _)| at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn example() -> GuestManifest {
        let part = GuestFile { sha256: Sha256Hex::from_bytes([0xab; 32]), size: 3 };
        GuestManifest {
            schema: SCHEMA,
            arch: Arch::X86_64,
            generation: GENERATION,
            kernel_version: "6.12.117".to_owned(),
            features: ["vsock".to_owned(), "erofs".to_owned()].into(),
            init: Init { version: Some("0.1.0".to_owned()), sha256: Sha256Hex::from_bytes([1; 32]) },
            parts: [(KERNEL.to_owned(), part.clone()), (INITRAMFS.to_owned(), part)].into(),
        }
    }

    #[test]
    fn a_manifest_survives_its_own_json_and_is_sorted() {
        let json = example().to_json();
        assert_eq!(GuestManifest::parse(&json).unwrap(), example());
        let text = String::from_utf8(json).unwrap();
        assert!(text.find("erofs").unwrap() < text.find("vsock").unwrap());
        assert!(text.ends_with("}\n"), "{text}");
    }

    #[test]
    fn another_schema_is_told_before_anything_else_is_looked_at() {
        let error = GuestManifest::parse(br#"{"schema": 7, "arch": "m68k"}"#).unwrap_err();
        assert!(matches!(error, GuestManifestError::Schema { found: 7 }), "{error}");
    }

    #[test]
    fn another_generation_is_refused() {
        let manifest = GuestManifest { generation: GENERATION + 1, ..example() };
        let error = GuestManifest::parse(&manifest.to_json()).unwrap_err();
        assert!(error.to_string().contains("magikvm-image build"), "{error}");
    }

    #[test]
    fn parts_are_plain_names_of_honest_size_and_the_two_that_every_image_has_are_there() {
        for bad in ["../vmlinux", "a/b", "", ".hidden", "manifest.json", "a\0b"] {
            let mut manifest = example();
            let part = manifest.parts[KERNEL].clone();
            manifest.parts.insert(bad.to_owned(), part);
            assert!(
                matches!(GuestManifest::parse(&manifest.to_json()), Err(GuestManifestError::PartName(_))),
                "{bad}"
            );
        }
        let mut manifest = example();
        manifest.parts.remove(INITRAMFS);
        assert!(matches!(
            GuestManifest::parse(&manifest.to_json()),
            Err(GuestManifestError::PartMissing(INITRAMFS))
        ));
        let mut manifest = example();
        manifest.parts.get_mut(KERNEL).unwrap().size = MAX_PART_SIZE + 1;
        assert!(matches!(
            GuestManifest::parse(&manifest.to_json()),
            Err(GuestManifestError::PartTooLong { .. })
        ));
        assert!(matches!(
            GuestManifest::parse(&vec![b' '; MAX_GUEST_MANIFEST_SIZE + 1]),
            Err(GuestManifestError::TooLong { .. })
        ));
    }

    #[test]
    fn digests_are_64_lowercase_hexadecimal_digits() {
        assert_eq!(Sha256Hex::from_bytes([0x0f; 32]).as_str(), "0f".repeat(32));
        for bad in ["", "0f", &"0F".repeat(32), &"0g".repeat(32), &"é".repeat(32)] {
            assert_eq!(bad.parse::<Sha256Hex>(), Err(NotSha256), "{bad}");
        }
    }

    #[test]
    fn a_stamp_is_found_in_a_program_behind_a_look_alike() {
        let mut program = b"\x7fELF something @(#) magikvm init stamp\0\x01".to_vec();
        program.extend([0xff; 70]);
        program.extend(init_stamp("1.2.3-rc.1"));
        program.extend(b"more");
        let stamp = InitStamp::find(&program).unwrap();
        assert_eq!(stamp, InitStamp { generation: GENERATION, version: "1.2.3-rc.1".to_owned() });
        assert_eq!(InitStamp::find(&program[..program.len() - 5]), None, "a truncated stamp is none");
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _either = GuestManifest::parse(&bytes).is_ok();
            prop_assert_eq!(InitStamp::find(&bytes), None);
        }
    }
}
