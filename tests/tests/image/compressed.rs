//! Compressed root file systems: the kernel and `fsck.erofs` read the same content as from the uncompressed form.

use crate::make::{Item, Tar};
use crate::tools::{Mounted, assert_same, run};
use magikvm::image::{RootfsCompression, build_in_memory, erofs::read};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

const LIMIT: u64 = 1 << 30;

fn image(layers: &[Vec<u8>], compression: RootfsCompression) -> tempfile::NamedTempFile {
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let bytes = build_in_memory(&layers, compression, LIMIT).unwrap();
    assert_eq!(
        build_in_memory(&layers, compression, LIMIT).unwrap(),
        bytes,
        "the same layers, the same bytes"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), bytes).unwrap();
    file
}

/// Both forms of an image, mounted and compared: the kernel, `fsck.erofs` and our reader agree.
struct Forms {
    plain: Mounted,
    packed: Mounted,
    plain_len: u64,
    packed_len: u64,
}

impl Forms {
    fn of(layers: &[Vec<u8>]) -> Self {
        let plain = image(layers, RootfsCompression::None);
        let packed = image(layers, RootfsCompression::Lz4);
        let summary = |file: &tempfile::NamedTempFile| read::check(file.as_file()).unwrap();
        assert_eq!(summary(&packed), summary(&plain));
        let len = |file: &tempfile::NamedTempFile| file.as_file().metadata().unwrap().len();
        let forms = Self {
            plain: Mounted::erofs(plain.path()),
            packed: Mounted::erofs(packed.path()),
            plain_len: len(&plain),
            packed_len: len(&packed),
        };
        assert_same(forms.plain.path(), forms.packed.path(), &[]);
        extracted_is(packed.path(), forms.plain.path());
        forms
    }
}

/// `fsck.erofs` reads every byte as the kernel does. The mount covers owners, times and attributes.
fn extracted_is(image: &Path, expected: &Path) {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    run("fsck.erofs", &[&format!("--extract={}", out.display()), &"--no-preserve", &image]);
    let diff =
        Command::new("diff").args(["-r", "--no-dereference"]).arg(expected).arg(&out).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
}

/// Bytes that lz4 makes smaller by about half.
fn text(length: usize) -> Vec<u8> {
    let mut state = 7u64;
    let mut bytes = Vec::with_capacity(length + 64);
    while bytes.len() < length {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.extend(format!("line {}: {:x}\n", bytes.len(), state >> 40).as_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn noise(length: usize) -> Vec<u8> {
    let mut state = 3u64;
    let words = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 13).to_le_bytes()[..4].to_vec()
    });
    words.flatten().take(length).collect()
}

fn file(tar: Tar, name: &str, data: &[u8]) -> Tar {
    tar.item(&Item { name: name.as_bytes(), data, ..Item::default() })
}

#[test]
fn every_length_around_blocks_and_chunks() {
    let mut tar = Tar::default();
    for edge in [4096, 8192, 12_288, 61_440, 65_536, 69_632, 131_072, 200_000] {
        for length in edge - 2..=edge + 2 {
            tar = file(tar, &format!("text-{length}"), &text(length));
            tar = file(tar, &format!("zeros-{length}"), &vec![0; length]);
            tar = file(tar, &format!("noise-{length}"), &noise(length));
            let mixed = [text(length / 3), noise(length - length / 3)].concat();
            tar = file(tar, &format!("mixed-{length}"), &mixed);
            let mixed = [noise(66_000), text(length), noise(3000)].concat();
            tar = file(tar, &format!("mixed-too-{length}"), &mixed);
        }
    }
    let forms = Forms::of(&[tar.end()]);
    assert!(forms.packed_len * 10 < forms.plain_len * 8, "{} of {}", forms.packed_len, forms.plain_len);
}

#[test]
fn attributes_before_the_index_of_any_length() {
    let mut tar = Tar::default();
    for length in (0..40).chain([900, 3000, 4000, 5000]) {
        let value = vec![b'v'; length];
        for size in [5000, 300_000] {
            let name = format!("{length}-{size}");
            tar = tar.item(&Item {
                name: name.as_bytes(),
                data: &text(size),
                pax: vec![("SCHILY.xattr.trusted.k", &value)],
                ..Item::default()
            });
        }
    }
    Forms::of(&[tar.end()]);
}

#[test]
fn blocks_of_replaced_files_are_used_again() {
    let mut layers = Vec::new();
    for round in 0..5 {
        let mut tar = Tar::default();
        for number in 0..30 {
            if (number + round) % 3 == 0 {
                tar = file(tar, &format!("f{number}"), &text(20_000 + number * 7000 + round * 3001));
            } else if (number + round) % 7 == 0 {
                tar = file(tar, &format!("f{number}"), &noise(15_000 + number * 5000));
            } else if (number + round) % 5 == 0 {
                tar = tar.file(&format!(".wh.f{number}"), "");
            }
        }
        layers.push(tar.end());
    }
    let forms = Forms::of(&layers);
    let alone = Forms::of(&[[text(20_000), text(220_000)]
        .iter()
        .fold(Tar::default(), |tar, data| file(tar, "f", data))
        .end()]);
    assert!(alone.packed_len < 200_000, "{}", alone.packed_len);
    assert!(forms.packed_len < forms.plain_len);
}

#[test]
fn single_bytes_anywhere_are_right() {
    let data = [text(300_000), noise(100_000), vec![0; 200_000], text(77_777)].concat();
    let forms = Forms::of(&[file(Tar::default(), "f", &data).end()]);
    let file = fs::File::open(forms.packed.path().join("f")).unwrap();
    run("sh", &[&"-c", &"echo 3 >/proc/sys/vm/drop_caches"]);
    let mut at = 1u64;
    for _ in 0..2000 {
        at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = (at >> 20) % data.len() as u64;
        let mut byte = [0; 3];
        let got = file.read_at(&mut byte, offset).unwrap();
        let start = usize::try_from(offset).unwrap();
        assert_eq!(byte[..got], data[start..(start + 3).min(data.len())], "{offset}");
    }
}

#[test]
fn programs_of_this_system() {
    let tar = tempfile::NamedTempFile::new().unwrap();
    run("tar", &[&"-C", &"/", &"--xattrs", &"-cf", &tar.path(), &"usr/sbin", &"etc"]);
    let forms = Forms::of(&[fs::read(tar.path()).unwrap()]);
    assert!(forms.packed_len * 4 < forms.plain_len * 3, "{} of {}", forms.packed_len, forms.plain_len);
}

#[test]
fn a_hole_of_gigabytes_costs_nothing_in_either_form() {
    let sparse = |size: &str, hole: usize| {
        let map = format!("2\n0\n4\n{hole}\n4\n");
        let data = [map.as_bytes(), &vec![0; 512 - map.len()], b"headtail"].concat();
        let pax: Vec<(&str, &[u8])> = vec![
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", size.as_bytes()),
        ];
        Tar::default().item(&Item { name: b"x", data: &data, pax, ..Item::default() }).end()
    };
    let began = std::time::Instant::now();
    let layer = sparse("300000004", 300_000_000);
    let bytes = build_in_memory(&[&layer], RootfsCompression::Lz4, LIMIT).unwrap();
    let summary = read::check(bytes.as_slice()).unwrap();
    assert_eq!(summary.bytes, 300_000_004);
    assert!(began.elapsed().as_secs() < 60, "{:?}", began.elapsed());
    let layer = sparse("4000000004", 4_000_000_000);
    for compression in [RootfsCompression::None, RootfsCompression::Lz4] {
        let error = build_in_memory(&[&layer], compression, LIMIT).unwrap_err();
        assert!(crate::chain(&error).contains("larger than 1073741824 bytes"), "{error:?}");
    }
}

#[test]
fn files_have_no_more_bytes_than_the_limit_whatever_they_become() {
    let layer = (0..9).fold(Tar::default(), |tar, n| file(tar, &n.to_string(), &vec![0; 1 << 20])).end();
    let error = build_in_memory(&[&layer], RootfsCompression::Lz4, 8 << 20).unwrap_err();
    assert!(crate::chain(&error).contains("larger than 8388608 bytes"), "{error:?}");
    assert!(build_in_memory(&[&layer], RootfsCompression::Lz4, 10 << 20).unwrap().len() < 1 << 20);
}
