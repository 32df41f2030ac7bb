//! Entry points of the fuzz targets that need more than the public interface. They are not in a release. Each function panics when a
//! guarantee is broken.

use super::digest::Digest;
use super::document::{ArchiveImage, Descriptor};
use super::erofs::{self, RootfsCompression, compare};
use super::open::{Documents, OpenError, walk};
use super::platform::Wanted;
use super::rootfs::build_with_tree;
use std::cell::RefCell;
use std::vec::IntoIter;

/// Largest image that is built, in bytes.
const LIMIT: u64 = 8 << 20;
const BLOCK: usize = 512;

/// Layers, bottom first: the image built of them, read back, must equal their merge, compressed or not. The first five bytes say where
/// they begin; checksums of headers are corrected, which a fuzzer would not manage.
pub fn layers(bytes: &[u8]) {
    let Some((&[count, a, b, c, d], rest)) = bytes.split_first_chunk() else { return };
    let mut rest = rest.to_vec();
    let mut parts: Vec<&[u8]> = Vec::new();
    let mut left = rest.as_mut_slice();
    for length in [[a, b], [c, d]].iter().take(usize::from(count % 3)) {
        let cut = usize::from(u16::from_le_bytes(*length)).min(left.len());
        let (part, behind) = std::mem::take(&mut left).split_at_mut(cut);
        put_sums_right(part);
        parts.push(part);
        left = behind;
    }
    put_sums_right(left);
    parts.push(left);
    let listing = |compression| {
        let (tree, image) = build_with_tree(&parts, compression, LIMIT).ok()?;
        let listing = compare::tree(&tree);
        assert_eq!(compare::image(image.as_slice()).expect("what was written can be read"), listing);
        erofs::read::check(image.as_slice()).expect("what was written is whole");
        Some(listing)
    };
    if let (Some(plain), Some(packed)) = (listing(RootfsCompression::None), listing(RootfsCompression::Lz4)) {
        assert_eq!(plain, packed);
    }
}

/// Walks over a tar stream like a reader, and corrects the checksum of every header.
fn put_sums_right(tar: &mut [u8]) {
    let mut at = 0;
    while let Some(block) = tar.get_mut(at..).and_then(<[u8]>::first_chunk_mut::<BLOCK>) {
        at += BLOCK;
        if block.iter().all(|byte| *byte == 0) {
            continue;
        }
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        if matches!(block[156], 0 | b'0' | b'7' | b'S' | b'x' | b'g' | b'L' | b'K') {
            let digits = block[124..136].iter().filter(|byte| byte.is_ascii_digit() && **byte < b'8');
            let size = digits.fold(0usize, |size, digit| size.saturating_mul(8) + usize::from(digit - b'0'));
            at = at.saturating_add(size.next_multiple_of(BLOCK).min(tar.len()));
        }
    }
}

/// An image is intact or refused, and never holds more than it could. The checksum of the superblock is corrected.
pub fn erofs(bytes: &[u8]) {
    let mut image = bytes.to_vec();
    if let Some(block) = image.first_chunk_mut() {
        erofs::format::put_checksum(block);
    }
    if let Ok(summary) = erofs::read::check(image.as_slice()) {
        assert!(summary.bytes <= image.len() as u64 * 16);
        assert!(compare::image(image.as_slice()).is_ok());
    }
}

/// Index, manifest and configuration, separated by NUL: the result is an image or an error.
pub fn documents(bytes: &[u8]) {
    for media_type in [
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    ] {
        let descriptor = serde_json::json!({ "mediaType": media_type, "digest": Digest::of(b""), "size": 0 });
        let top: Descriptor = serde_json::from_value(descriptor).expect("a descriptor");
        let parts: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
        let parts = Parts(RefCell::new(parts.into_iter()));
        match walk(&parts, top, &Wanted::host()) {
            Ok(opened) => assert_eq!(opened.layers.len(), opened.config.rootfs.diff_ids.len()),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    drop(serde_json::from_slice::<Vec<ArchiveImage>>(bytes));
}

/// Documents in the order in which they are requested.
struct Parts<'a>(RefCell<IntoIter<&'a [u8]>>);

impl Documents for Parts<'_> {
    fn document(&self, _: &Descriptor, limit: u64, what: &str) -> Result<Vec<u8>, OpenError> {
        let what = what.to_owned();
        match self.0.borrow_mut().next() {
            Some(part) if part.len() as u64 <= limit => Ok(part.to_vec()),
            _ => Err(OpenError::Document { what, problem: "it is not there" }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    fn seeds(target: &str) -> Vec<Vec<u8>> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let seeds: Vec<_> =
            fs::read_dir(dir).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap()).collect();
        assert!(!seeds.is_empty());
        seeds
    }

    #[test]
    fn the_seeds_of_the_fuzz_targets_keep_their_promises() {
        seeds("layers").iter().for_each(|seed| super::layers(seed));
        seeds("erofs").iter().for_each(|seed| super::erofs(seed));
        seeds("image_json").iter().for_each(|seed| super::documents(seed));
    }
}
