use super::*;
use proptest::prelude::*;
use std::process::Command;

/// A header block with a correct checksum.
fn block(name: &str, typeflag: u8, size: u64, link: &str) -> Vec<u8> {
    let mut block = vec![0u8; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0004755");
    block[108..115].copy_from_slice(b"0001750");
    block[116..123].copy_from_slice(b"0001751");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000017");
    block[156] = typeflag;
    block[157..157 + link.len()].copy_from_slice(link.as_bytes());
    block[257..265].copy_from_slice(b"ustar\x0000");
    seal(&mut block);
    block
}

fn seal(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

fn padded(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn data(reader: &mut TarReader<&[u8]>) -> Vec<u8> {
    let mut out = Vec::new();
    loop {
        let chunk = reader.data().unwrap().to_vec();
        if chunk.is_empty() {
            return out;
        }
        reader.consume(chunk.len());
        out.extend(chunk);
    }
}

#[test]
fn entries_and_their_data_in_order() {
    let archive = [
        block("a", b'0', 3, ""),
        padded(b"abc"),
        block("d/", b'5', 99, ""),
        block("l", b'2', 0, "a"),
        vec![0; 1024],
    ]
    .concat();
    let mut reader = TarReader::new(archive.as_slice());
    let a = reader.next().unwrap().unwrap();
    assert_eq!((a.path.as_slice(), a.mode, a.uid, a.gid, a.size), (b"a".as_slice(), 0o4755, 1000, 1001, 3));
    assert_eq!(a.mtime, Timestamp { seconds: 15, nanoseconds: 0 });
    assert_eq!(reader.position(), 512);
    assert_eq!(data(&mut reader), b"abc");
    assert_eq!(reader.next().unwrap().unwrap().kind, EntryKind::Directory);
    let link = reader.next().unwrap().unwrap();
    assert_eq!((link.kind, link.link.as_slice()), (EntryKind::Symlink, b"a".as_slice()));
    assert_eq!(reader.next().unwrap(), None);
}

#[test]
fn data_that_is_not_read_is_left_out() {
    let archive = [block("a", b'0', 600, ""), vec![7; 1024], block("b", b'0', 0, "")].concat();
    let mut reader = TarReader::new(archive.as_slice());
    reader.next().unwrap();
    assert_eq!(reader.next().unwrap().unwrap().path, b"b");
    assert_eq!(reader.next().unwrap(), None, "an archive may end without zeros");
}

#[test]
fn an_archive_may_end_right_behind_its_last_byte() {
    let archive = [block("a", b'0', 3, ""), b"abc".to_vec()].concat();
    let mut reader = TarReader::new(archive.as_slice());
    reader.next().unwrap();
    assert_eq!(data(&mut reader), b"abc");
    assert_eq!(reader.next().unwrap(), None);
}

#[test]
fn long_names_of_both_dialects() {
    let long = "x/".repeat(200) + "end";
    let gnu = [
        block("././@LongLink", b'L', long.len() as u64 + 1, ""),
        padded(&[long.as_bytes(), b"\0"].concat()),
        block("short", b'0', 0, ""),
    ]
    .concat();
    assert_eq!(TarReader::new(gnu.as_slice()).next().unwrap().unwrap().path, long.as_bytes());
    let record = format!("{} path={long}\n", long.len() + 10);
    let pax =
        [block("pax", b'x', record.len() as u64, ""), padded(record.as_bytes()), block("short", b'0', 0, "")]
            .concat();
    assert_eq!(TarReader::new(pax.as_slice()).next().unwrap().unwrap().path, long.as_bytes());
    let mut prefixed = block("name", b'0', 0, "");
    prefixed[345..351].copy_from_slice(b"prefix");
    seal(&mut prefixed);
    assert_eq!(TarReader::new(prefixed.as_slice()).next().unwrap().unwrap().path, b"prefix/name");
}

#[test]
fn the_size_of_pax_counts_for_the_position_of_the_next_entry() {
    let record = b"12 size=600\n";
    let archive = [
        block("pax", b'x', 12, ""),
        padded(record),
        block("a", b'0', 0, ""),
        vec![1; 1024],
        block("b", b'0', 0, ""),
    ]
    .concat();
    let mut reader = TarReader::new(archive.as_slice());
    assert_eq!(reader.next().unwrap().unwrap().size, 600);
    assert_eq!(reader.next().unwrap().unwrap().path, b"b");
}

#[test]
fn extended_headers_are_capped_for_an_entry_and_not_each() {
    let long = |typeflag| [block("long", typeflag, 600_000, ""), padded(&vec![b'n'; 600_000])].concat();
    let archive = [long(b'L'), long(b'K'), block("f", b'0', 0, "")].concat();
    assert!(matches!(TarReader::new(archive.as_slice()).next(), Err(TarError::ExtendedTooLarge)));
    let archive = [long(b'L'), block("f", b'0', 0, ""), long(b'K'), block("f", b'0', 0, "")].concat();
    let mut reader = TarReader::new(archive.as_slice());
    assert!(reader.next().is_ok() && reader.next().is_ok());
    let many: String = (100..357).map(|n| format!("27 SCHILY.xattr.user.{n}=v\n")).collect();
    let archive =
        [block("pax", b'x', many.len() as u64, ""), padded(many.as_bytes()), block("f", b'0', 0, "")]
            .concat();
    assert!(matches!(TarReader::new(archive.as_slice()).next(), Err(TarError::TooManyXattrs)));
}

#[test]
fn damage_is_an_error_of_its_kind() {
    let next = |archive: &[u8]| TarReader::new(archive).next().unwrap_err();
    let good = block("a", b'0', 3, "");
    let mut wrong = good.clone();
    wrong[0] = b'b';
    assert!(matches!(next(&wrong), TarError::Checksum));
    assert!(matches!(next(&good[..100]), TarError::Truncated));
    assert!(matches!(next(b"hello"), TarError::Truncated));
    assert!(
        matches!(next(&[&[0; 512], good.as_slice()].concat()), TarError::Checksum),
        "one zero block, then more"
    );
    assert!(matches!(next(&block("a", b'Z', 0, "")), TarError::Type { typeflag: 'Z' }));
    assert!(matches!(next(&block("a", b'x', 2 << 20, "")), TarError::ExtendedTooLarge));
    assert!(matches!(next(&[block("a", b'x', 6, ""), padded(b"6 a=b\n")].concat()), TarError::Dangling));
    let mut reader = TarReader::new(good.as_slice());
    reader.next().unwrap();
    assert!(matches!(reader.data(), Err(TarError::Truncated)));
    assert!(matches!(reader.next(), Err(TarError::Truncated)));
}

/// Reads back GNU tar's four ways to write a sparse file.
#[test]
fn sparse_files_as_gnu_tar_writes_them() {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::File::create(dir.path().join("s")).unwrap();
    for (at, byte) in [(0u64, 1u8), (200_000, 2), (900_000, 3)] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[byte; 4096], at).unwrap();
    }
    for part in 0..30 {
        std::os::unix::fs::FileExt::write_all_at(&file, &[9; 100], 1_000_000 + part * 20_000).unwrap();
    }
    file.set_len(3_000_000).unwrap();
    let expected = std::fs::read(dir.path().join("s")).unwrap();
    let formats: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ];
    for format in formats {
        let output = Command::new("tar")
            .args(["-S", "-c", "-C"])
            .arg(dir.path())
            .args(format)
            .arg("s")
            .output()
            .unwrap();
        assert!(output.status.success());
        assert!(output.stdout.len() < 600_000, "not written sparse");
        let mut reader = TarReader::new(output.stdout.as_slice());
        let entry = reader.next().unwrap().unwrap();
        assert_eq!((entry.path.as_slice(), entry.size), (b"s".as_slice(), 3_000_000), "{format:?}");
        let EntryKind::File(Some(map)) = entry.kind else { panic!("{format:?} has no map") };
        let stored = data(&mut reader);
        let mut content = vec![0; 3_000_000];
        let mut at = 0;
        for segment in map {
            let [offset, length] = [segment.offset, segment.length].map(|n| usize::try_from(n).unwrap());
            content[offset..offset + length].copy_from_slice(&stored[at..at + length]);
            at += length;
        }
        assert!(content == expected, "{format:?}");
        assert_eq!(reader.next().unwrap(), None);
    }
}

proptest! {
    #[test]
    fn no_stream_makes_it_panic_or_run_for_ever(mut bytes in proptest::collection::vec(any::<u8>(), 0..4096), typeflag in prop_oneof![Just(b'x'), Just(b'S'), Just(b'L'), Just(b'0')], size in 0u64..3000) {
        let mut archive = block("start", typeflag, size, "");
        archive.append(&mut bytes);
        let mut reader = TarReader::new(archive.as_slice());
        while let Ok(Some(_)) = reader.next() {}
    }
}
