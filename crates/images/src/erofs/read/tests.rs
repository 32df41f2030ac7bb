use super::super::super::digest::Digest;
use super::super::super::tree::{Attributes, Content, EntryPath, Tree};
use super::super::{DataArea, RootfsCompression, compare, finish};
use super::*;
use proptest::prelude::*;
use std::io::Cursor;

/// A file of a future image: a path, and parts of (byte, length); holes where the byte is 0.
type Planned = (Vec<u8>, Vec<(u8, u64)>);

fn write(files: &[Planned], compression: RootfsCompression) -> (Tree, Vec<u8>) {
    let mut tree = Tree::new();
    let mut out = Cursor::new(Vec::new());
    let mut data = DataArea::in_memory(&mut out, 64 << 20, compression);
    for (number, (path, parts)) in files.iter().enumerate() {
        let place = tree.locate(&EntryPath::parse(path).unwrap()).unwrap();
        tree.evict(&place);
        for freed in tree.take_freed() {
            data.release(&freed);
        }
        let mut attributes = Attributes::plain(0o4711);
        if number % 3 == 0 {
            attributes.add_xattr(b"user.number", number.to_string().as_bytes()).unwrap();
            attributes.add_xattr(b"security.capability", &[1; 20]).unwrap();
        }
        attributes.mtime = Timestamp::new(-5, 999_999_999).unwrap();
        let size = parts.iter().map(|(_, length)| length).sum();
        let holes = parts.iter().filter(|(byte, _)| *byte == 0).map(|(_, length)| length).sum();
        let inode_len = format::inode_len(&attributes.xattrs);
        let mut slot = data.begin_sparse(size, holes, inode_len).unwrap();
        for (byte, length) in parts {
            match byte {
                0 => data.skip(&mut slot, *length).unwrap(),
                // Incompressible data.
                255 => {
                    let noise = (1..=*length / 8 + 1)
                        .flat_map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_be_bytes());
                    let noise: Vec<u8> = noise.take(usize::try_from(*length).unwrap()).collect();
                    data.write(&mut slot, &noise).unwrap();
                }
                _ => data.write(&mut slot, &vec![*byte; usize::try_from(*length).unwrap()]).unwrap(),
            }
        }
        let file = data.end(slot).unwrap();
        tree.insert(&place, attributes, Content::File(file)).unwrap();
        for freed in tree.take_freed() {
            data.release(&freed);
        }
    }
    let size = finish(&mut data, &tree, format::uuid(&Digest::of(b""))).unwrap();
    drop(data);
    let mut bytes = out.into_inner();
    bytes.truncate(usize::try_from(size).unwrap());
    (tree, bytes)
}

fn planned() -> impl Strategy<Value = Vec<Planned>> {
    let path = proptest::collection::vec(prop_oneof![Just(b'a'), Just(b'b'), Just(b'\xff')], 1..3)
        .prop_map(|parts| parts.into_iter().flat_map(|part| [b'/', part, b'.']).collect::<Vec<u8>>());
    let byte = prop_oneof![Just(0), Just(1), Just(255), any::<u8>()];
    let length =
        prop_oneof![1u64..20, 4000u64..4200, 65_000u64..66_000, Just(65_536), Just(4096), Just(131_072)];
    // A path may be below another one's file; the first one wins.
    proptest::collection::vec((path, proptest::collection::vec((byte, length), 0..5)), 1..8).prop_map(
        |files| {
            let is_below = |path: &[u8], other: &[u8]| path.starts_with(&[other, b"/"].concat());
            let mut kept: Vec<Planned> = Vec::new();
            for file in files {
                if !kept.iter().any(|(path, _)| is_below(path, &file.0) || is_below(&file.0, path)) {
                    kept.push(file);
                }
            }
            kept
        },
    )
}

proptest! {
    #[test]
    fn what_was_written_is_read(files in planned(), packed in any::<bool>()) {
        let compression = if packed { RootfsCompression::Lz4 } else { RootfsCompression::None };
        let (tree, bytes) = write(&files, compression);
        prop_assert_eq!(compare::image(bytes.as_slice()).unwrap(), compare::tree(&tree));
        let summary = check(bytes.as_slice()).unwrap();
        prop_assert!(summary.inodes > summary.files);
        prop_assert_eq!(write(&files, compression).1, bytes, "the same files give the same bytes");
    }

    #[test]
    fn damage_anywhere_is_no_panic(files in planned(), at in any::<prop::sample::Index>(), byte in any::<u8>(), packed in any::<bool>(), sealed in any::<bool>()) {
        let compression = if packed { RootfsCompression::Lz4 } else { RootfsCompression::None };
        let (_, mut bytes) = write(&files, compression);
        // Metadata: the superblock and the end.
        let interesting = 2048 + bytes.len().min(8192);
        let at = at.index(interesting);
        let at = if at < 2048 { at } else { bytes.len() - (at - 2047) };
        bytes[at] = byte;
        if sealed {
            format::put_checksum(bytes.first_chunk_mut().unwrap());
        }
        drop(check(bytes.as_slice()));
    }
}

#[test]
fn compression_makes_an_image_smaller_and_says_so_only_then() {
    let files = [(b"zeros".to_vec(), vec![(1, 1 << 20)]), (b"noise".to_vec(), vec![(255, 100_000)])];
    let plain = write(&files, RootfsCompression::None).1;
    let packed = write(&files, RootfsCompression::Lz4).1;
    assert!(plain.len() > 1 << 20 && packed.len() < 300_000, "{} {}", plain.len(), packed.len());
    let incompat = |bytes: &[u8]| u32_at(bytes, SUPER_OFFSET + 80);
    assert_eq!((incompat(&plain), incompat(&packed)), (0, 3));
    let noise = write(&files[1..], RootfsCompression::Lz4).1;
    assert_eq!(incompat(&noise), 0, "any kernel reads it");
}

#[test]
fn an_image_in_another_place_or_cut_off_is_refused() {
    let (_, bytes) = write(&[(b"a".to_vec(), vec![(1, 5000)])], RootfsCompression::None);
    assert!(matches!(Reader::open(&bytes[..bytes.len() - 4096]), Err(ReadError::Super { .. })));
    assert!(matches!(Reader::open(&bytes[..4095]), Err(ReadError::NotErofs)));
    assert!(matches!(Reader::open(&bytes[4096..]), Err(ReadError::NotErofs)));
    let mut damaged = bytes;
    damaged[SUPER_OFFSET + 48] ^= 1;
    assert!(matches!(Reader::open(damaged.as_slice()), Err(ReadError::Checksum)));
}

/// An image of one file of 5000 bytes, changed by its inode's offset and sealed again.
fn changed(change: impl FnOnce(&mut [u8], usize)) -> Result<Summary, ReadError> {
    let (_, mut bytes) = write(&[(b"a".to_vec(), vec![(1, 50_000)])], RootfsCompression::Lz4);
    let mut nid = None;
    let image = Reader::open(bytes.as_slice()).unwrap();
    for name in image.names(&image.inode(image.root()).unwrap(), 0).unwrap().unwrap() {
        if &*name.name == b"a" {
            nid = Some(name.nid);
        }
    }
    let at = usize::try_from(image.meta_start + u64::from(nid.unwrap()) * SLOT).unwrap();
    change(&mut bytes, at);
    check(bytes.as_slice())
}

#[test]
fn lies_of_an_inode_are_found() {
    assert!(changed(|_, _| {}).is_ok());
    let says = |expected: &str, change: fn(&mut [u8], usize)| {
        let error = changed(change).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected:?}, but: {error}");
    };
    says("its form is unknown", |bytes, at| bytes[at] = 7);
    says("its type is unknown", |bytes, at| bytes[at + 5] = 0xc0);
    says("its type is not that of its name", |bytes, at| {
        bytes[at + 5] = 0x19;
        bytes[at + 8..at + 16].fill(0);
    });
    says("outside of the file", |bytes, at| bytes[at + 2..at + 4].fill(0xff));
    says("outside of the file", |bytes, at| bytes[at + 8..at + 16].fill(0xff));
    says("a compressed piece is wrong", |bytes, at| bytes[at + 9] = 0x33);
    says("fewer names", |bytes, at| bytes[at + 44] = 2);
    says("no name", |bytes, at| bytes[at + 44] = 0);
    says("its time is impossible", |bytes, at| bytes[at + 40..at + 44].fill(0xff));
    says("form of its index", |bytes, at| bytes[index(bytes, at) - 10] = 1);
    says("unknown form", |bytes, at| bytes[index(bytes, at)] = 9);
    says("outside of the file", |bytes, at| bytes[index(bytes, at) + 7] = 9);
    says("a compressed piece is wrong", |bytes, at| bytes[index(bytes, at) + 13] = 0);
    says("a compressed piece is wrong", |bytes, at| bytes[index(bytes, at) + 22] = 9);
    says("no beginning", |bytes, at| bytes[index(bytes, at)] = 2);
    says("data is damaged", |bytes, at| {
        let block = u32_at(bytes, index(bytes, at) + 4) as usize;
        bytes[block * 4096..(block + 1) * 4096].fill(0);
    });
}

fn index(bytes: &[u8], at: usize) -> usize {
    let xattrs = match u16_at(bytes, at + 2) {
        0 => 0,
        count => 12 + 4 * (usize::from(count) - 1),
    };
    (64 + xattrs).next_multiple_of(8) + 16 + at
}

#[test]
fn a_directory_that_is_below_itself_or_in_two_places_is_refused() {
    let files = [(b"d/a".to_vec(), vec![(1, 10)]), (b"e/b".to_vec(), vec![(1, 10)])];
    let (_, bytes) = write(&files, RootfsCompression::None);
    let image = Reader::open(bytes.as_slice()).unwrap();
    let root = image.inode(image.root()).unwrap();
    let names = image.names(&root, 0).unwrap().unwrap();
    let nid = |wanted: &[u8]| names.iter().find(|name| &*name.name == wanted).unwrap().nid;
    let entries = usize::try_from(root.end()).unwrap();
    for leads_to in [nid(b"."), nid(b"e")] {
        let mut bytes = bytes.clone();
        let in_order = names.iter().position(|name| &*name.name == b"d").unwrap();
        let at = entries + in_order * format::DIRENT_LEN;
        assert_eq!(u32_at(&bytes, at), nid(b"d"));
        bytes[at..at + 4].copy_from_slice(&leads_to.to_le_bytes());
        let error = check(bytes.as_slice()).unwrap_err().to_string();
        assert!(error.contains("in two places") || error.contains("wrong \".\" or \"..\""), "{error}");
    }
}
