//! The directory form: the unpacked files equal those of the mounted image.

use crate::make::{Item, Tar};
use crate::tools::{Mounted, Seen, assert_same, look, run};
use crate::{chain, real};
use magikvm::image::{
    Cancel, DirectoryError, Owners, RootfsCompression, UnpackedSummary, build_in_memory, clear_unpacked,
    unpack,
};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const UNPACKER: &str = env!("CARGO_BIN_EXE_unpack-image");
const COMPRESSIONS: [RootfsCompression; 2] = [RootfsCompression::None, RootfsCompression::Lz4];

fn image(layer: &[u8], compression: RootfsCompression) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&build_in_memory(&[layer], compression, 1 << 30).unwrap()).unwrap();
    file
}

fn unpacked(image: &tempfile::NamedTempFile, owners: Owners) -> (tempfile::TempDir, UnpackedSummary) {
    let dir = tempfile::tempdir().unwrap();
    let summary = unpack(image.as_file(), dir.path(), owners, &Cancel::new())
        .unwrap_or_else(|error| panic!("{}", chain(&error)));
    (dir, summary)
}

/// The form that an unprivileged user gets.
fn as_mine(tree: BTreeMap<PathBuf, Seen>, owner: (u32, u32)) -> BTreeMap<PathBuf, Seen> {
    let is_device = |seen: &Seen| matches!(seen.mode & 0o170_000, 0o020_000 | 0o060_000);
    let mine = |mut seen: Seen| {
        seen.owner = owner;
        seen.mode &= !0o6000;
        seen.xattrs.retain(|name, _| name.to_string_lossy().starts_with("user."));
        seen
    };
    tree.into_iter().filter(|(_, seen)| !is_device(seen)).map(|(path, seen)| (path, mine(seen))).collect()
}

#[test]
fn a_tree_with_everything_in_it_is_what_the_kernel_shows() {
    let source = tempfile::tempdir().unwrap();
    real::first_layer(source.path());
    let tar = tempfile::NamedTempFile::new().unwrap();
    run("tar", &[&"-C", &source.path(), &"--xattrs", &"--xattrs-include=*", &"-Scf", &tar.path(), &"."]);
    for compression in COMPRESSIONS {
        let image = image(&fs::read(tar.path()).unwrap(), compression);
        let mounted = Mounted::erofs(image.path());
        let (dir, summary) = unpacked(&image, Owners::AsInImage);
        assert_same(mounted.path(), dir.path(), &[]);
        assert_eq!((summary.skipped_devices, summary.skipped_xattrs), (0, 0));
        let inodes: std::collections::BTreeSet<_> =
            look(dir.path()).into_values().map(|seen| seen.first).collect();
        assert_eq!(summary.inodes, inodes.len() as u64);
        let sparse = fs::metadata(dir.path().join("sparse")).unwrap();
        assert!(sparse.size() == 5_000_000 && sparse.blocks() <= 64, "{} blocks", sparse.blocks());

        let (dir, summary) = unpacked(&image, Owners::Mine);
        let mut expected = as_mine(look(mounted.path()), (0, 0));
        let mut found = look(dir.path());
        // Root can set more attributes than others, but never capabilities.
        for seen in found.values_mut() {
            assert!(!seen.xattrs.contains_key("security.capability".as_ref() as &std::ffi::OsStr));
            seen.xattrs.retain(|name, _| name.to_string_lossy().starts_with("user."));
        }
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (path, seen) in &found {
            assert_eq!(Some(seen), expected.remove(path).as_ref(), "{}", path.display());
        }
        assert_eq!((summary.skipped_devices, summary.skipped_xattrs), (2, 1));
    }
}

/// Runs the unpacker as a user without privileges, in `dir`.
fn as_nobody(image: &tempfile::NamedTempFile, dir: &Path, owners: &str) -> Output {
    // In a directory that the other user can reach.
    let place = tempfile::tempdir().unwrap();
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let unpacker = place.path().join("unpacker");
    // Copied by another process: otherwise a child of another test could have the file open for writing.
    run("cp", &[&UNPACKER, &unpacker]);
    chown(dir, Some(65_534), Some(65_534)).unwrap();
    let stdin = Stdio::from(File::open(image.path()).unwrap());
    Command::new(unpacker).arg(dir).arg(owners).uid(65_534).gid(65_534).stdin(stdin).output().unwrap()
}

#[test]
fn a_user_without_privileges_gets_all_that_he_can_have() {
    let tar = Tar::default()
        .item(&Item { name: b"./", kind: b'5', mode: 0o500, ..Item::default() })
        .dir("locked", 0)
        .dir("locked/in", 0o555)
        .item(&Item {
            name: b"locked/in/file",
            data: &[b'x'; 70_000],
            mode: 0,
            owner: (1, 2),
            ..Item::default()
        })
        .hardlink("locked/in/other-name", "locked/in/file")
        .hardlink("top-name", "locked/in/file")
        .item(&Item { name: b"setuid", mode: 0o6755, ..Item::default() })
        .item(&Item { name: b"null", kind: b'3', device: (1, 3), ..Item::default() })
        .hardlink("null-too", "null")
        .item(&Item { name: b"pipe", kind: b'6', mode: 0o600, ..Item::default() })
        .symlink("dangling", "/nowhere")
        .hardlink("dangling-too", "dangling")
        .item(&Item {
            name: b"attributes",
            pax: vec![
                ("SCHILY.xattr.user.k", b"v"),
                ("SCHILY.xattr.trusted.k", b"v"),
                ("SCHILY.xattr.security.capability", &real::CAPABILITY),
            ],
            ..Item::default()
        })
        .end();
    for compression in COMPRESSIONS {
        let image = image(&tar, compression);
        let mounted = Mounted::erofs(image.path());
        let dir = tempfile::tempdir().unwrap();
        let output = as_nobody(&image, dir.path(), "mine");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (mut expected, found) = (as_mine(look(mounted.path()), (65_534, 65_534)), look(dir.path()));
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        for (path, seen) in &found {
            assert_eq!(Some(seen), expected.remove(path).as_ref(), "{}", path.display());
        }
        // Three directories and five of the store's; file, setuid, pipe, dangling, attributes, three files of the store's.
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "16 1 2");

        let output = as_nobody(&image, dir.path(), "clear");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);

        let output = as_nobody(&image, dir.path(), "image");
        assert!(!output.status.success());
        assert!(String::from_utf8_lossy(&output.stderr).contains("set the owner of"));
    }
}

#[test]
fn paths_longer_than_the_kernel_takes_and_few_open_files() {
    // A thousand nested directories, and longer names below them through a link.
    let mut tar = Tar::default();
    let deep = "ab/".repeat(1000);
    tar = tar.item(&Item {
        pax: vec![("path", format!("{deep}end").as_bytes())],
        data: b"deep",
        ..Item::default()
    });
    tar = tar.item(&Item {
        name: b"jump",
        kind: b'2',
        pax: vec![("linkpath", deep.as_bytes())],
        ..Item::default()
    });
    let name = "n".repeat(150);
    let further = format!("jump/{}", format!("{name}/").repeat(23));
    tar = tar.item(&Item {
        pax: vec![("path", format!("{further}end2").as_bytes())],
        data: b"deeper",
        ..Item::default()
    });
    let image = image(&tar.end(), RootfsCompression::None);
    let dir = tempfile::tempdir().unwrap();
    let command = format!("ulimit -n 10; exec {UNPACKER} {} image", dir.path().display());
    let stdin = Stdio::from(File::open(image.path()).unwrap());
    let output = Command::new("sh").args(["-c", &command]).stdin(stdin).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let inodes = 1 + 1000 + 1 + 1 + 23 + 1 + 8;
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), format!("{inodes} 0 0"));
    let found = run("find", &[&dir.path(), &"-name", &"end2", &"-execdir", &"cat", &"{}", &";"]);
    assert_eq!(found, "deeper");
    clear_unpacked(dir.path()).unwrap();
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn errors_name_the_file_and_leave_nothing_open() {
    let disk = Mounted::tmpfs("1m");
    let room = disk.path().join("room");
    let noise: Vec<u8> = (0..300_000u32).flat_map(|n| n.wrapping_mul(2_654_435_769).to_le_bytes()).collect();
    let tar = Tar::default().item(&Item { name: b"d/large", data: &noise, ..Item::default() }).end();
    for compression in COMPRESSIONS {
        fs::create_dir(&room).unwrap();
        let error =
            unpack(image(&tar, compression).as_file(), &room, Owners::AsInImage, &Cancel::new()).unwrap_err();
        assert!(
            chain(&error).contains("cannot write the file \"d/large\": No space left"),
            "{}",
            chain(&error)
        );
        fs::remove_dir_all(&room).unwrap();
    }
    // No file in it is open to others.
    run("umount", &[&disk.path()]);

    let tar = Tar::default().file("f", "x").end();
    let damaged = image(&tar, RootfsCompression::None);
    let length = damaged.as_file().metadata().unwrap().len();
    damaged.as_file().write_all_at(&[0xff; 2000], length - 4096).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let error = unpack(damaged.as_file(), dir.path(), Owners::AsInImage, &Cancel::new()).unwrap_err();
    assert!(matches!(error, DirectoryError::Read(_)), "{error}");
}

#[test]
fn links_in_the_image_lead_nowhere_while_it_is_unpacked() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().display().to_string();
    let tar = Tar::default()
        .symlink("way-out", &target)
        .hardlink("another-way-out", "way-out")
        .dir("d", 0o755)
        .symlink("d/up", "../../../../../../../..")
        .end();
    let file = image(&tar, RootfsCompression::None);
    let before = fs::metadata(outside.path()).unwrap();
    let (dir, _) = unpacked(&file, Owners::AsInImage);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let after = fs::metadata(outside.path()).unwrap();
    assert_eq!(
        (before.mtime_nsec(), before.mode(), before.uid()),
        (after.mtime_nsec(), after.mode(), after.uid())
    );
    assert_eq!(fs::read_link(dir.path().join("way-out")).unwrap(), outside.path());
}
