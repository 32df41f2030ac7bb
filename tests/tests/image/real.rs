//! Images made by real tools.

use crate::tools::{Mounted, assert_same, run};
use crate::{ADDED, Store};
use magikvm::image::Source;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};
use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::path::Path;

fn mknod(path: &Path, kind: FileType, major: u32, minor: u32) {
    mknodat(CWD, path, kind, Mode::from_raw_mode(0o640), makedev(major, minor)).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// Version 2 of a file capability: effective, permitted cap_net_bind_service.
pub(crate) const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

pub(crate) fn first_layer(root: &Path) {
    write(
        &root.join("bin/busybox"),
        &fs::read("/bin/busybox").expect("/bin/busybox: apt-get install busybox-static"),
    );
    chmod(&root.join("bin/busybox"), 0o4755);
    for name in ["sh", "ls"] {
        fs::hard_link(root.join("bin/busybox"), root.join("bin").join(name)).unwrap();
    }
    symlink("bin/busybox", root.join("link")).unwrap();
    symlink("x".repeat(4000), root.join("long-link")).unwrap();
    lchown(root.join("link"), Some(7), Some(8)).unwrap();
    for size in [0, 1, 4031, 4032, 4033, 4095, 4096, 4097, 8192, 100_000] {
        write(&root.join(format!("sizes/{size}")), &vec![b'a'; size]);
    }
    chown(root.join("sizes/1"), Some(1000), Some(4_000_000_000)).unwrap();
    for number in 0..3000 {
        write(
            &root.join(format!("many/a-file-with-a-name-of-some-length-{number}")),
            number.to_string().as_bytes(),
        );
    }
    lsetxattr(root.join("sizes/4096"), "user.small", b"value", XattrFlags::empty()).unwrap();
    lsetxattr(root.join("sizes/4095"), "user.empty", b"", XattrFlags::empty()).unwrap();
    lsetxattr(root.join("sizes/4095"), "trusted.big", &[0xff; 3000], XattrFlags::empty()).unwrap();
    lsetxattr(root.join("bin/busybox"), "security.capability", &CAPABILITY, XattrFlags::empty()).unwrap();
    lsetxattr(root.join("many"), "user.on-a-directory", b"\x00binary\xff", XattrFlags::empty()).unwrap();
    fs::create_dir(root.join("sticky")).unwrap();
    chmod(&root.join("sticky"), 0o3777);
    mknod(&root.join("dev-null"), FileType::CharacterDevice, 1, 3);
    mknod(&root.join("dev-big"), FileType::BlockDevice, 259, 70_000);
    mknod(&root.join("pipe"), FileType::Fifo, 0, 0);
    let sparse = fs::File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"here", 3_000_000).unwrap();
    sparse.set_len(5_000_000).unwrap();
    write(&root.join("names/with space"), b"");
    write(&root.join("names/ünïcode"), b"");
    write(&root.join(format!("names/{}", "n".repeat(255))), b"");
    write(&root.join(format!("{}/end", "deep/".repeat(100))), b"deep");
    for dir in ["gone", "replaced-by-file", "opaque", "kept"] {
        write(&root.join(dir).join("old"), b"old");
        write(&root.join(dir).join("sub/old"), b"old");
    }
    write(&root.join("replaced-by-dir"), b"old");
    write(&root.join("changed"), b"old");
}

fn second_layer(root: &Path) {
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_dir_all(root.join("replaced-by-file")).unwrap();
    write(&root.join("replaced-by-file"), b"now a file");
    fs::remove_file(root.join("replaced-by-dir")).unwrap();
    write(&root.join("replaced-by-dir/inside"), b"new");
    fs::remove_dir_all(root.join("opaque")).unwrap();
    write(&root.join("opaque/new"), b"new");
    fs::remove_file(root.join("kept/sub/old")).unwrap();
    fs::remove_file(root.join("link")).unwrap();
    fs::remove_file(root.join("bin/ls")).unwrap();
    write(&root.join("changed"), &[b'n'; 20_000]);
    chmod(&root.join("sizes"), 0o700);
    write(&root.join("sizes/8192"), b"shorter");
}

fn third_layer(root: &Path) {
    write(&root.join("gone/again"), b"back");
    write(&root.join("changed"), &[b'm'; 30_000]);
    fs::remove_file(root.join("sparse")).unwrap();
    fs::remove_dir_all(root.join("many")).unwrap();
    write(&root.join("last"), b"last");
}

/// A layout with an image `t` of three layers made by `umoci repack` and one by `umoci insert --opaque`.
fn umoci_image(dir: &Path) {
    let (layout, image, bundle) =
        (dir.join("layout"), format!("{}:t", dir.join("layout").display()), dir.join("bundle"));
    run("umoci", &[&"init", &"--layout", &layout]);
    run("umoci", &[&"new", &"--image", &image]);
    run("umoci", &[&"unpack", &"--image", &image, &bundle]);
    for layer in [first_layer, second_layer, third_layer] {
        layer(&bundle.join("rootfs"));
        run("umoci", &[&"repack", &"--refresh-bundle", &"--image", &image, &bundle]);
    }
    let insert = dir.join("insert");
    write(&insert.join("only"), b"this");
    run("umoci", &[&"insert", &"--image", &image, &"--opaque", &insert, &"/kept"]);
    run(
        "umoci",
        &[
            &"config",
            &"--image",
            &image,
            &"--config.entrypoint",
            &"/bin/sh",
            &"--config.cmd",
            &"-c",
            &"--config.env",
            &"A=b",
            &"--config.user",
            &"1000:1000",
            &"--config.workingdir",
            &"/kept",
            &"--config.exposedports",
            &"80/tcp",
            &"--config.label",
            &"a=b",
        ],
    );
}

#[test]
fn an_image_of_umoci_is_what_umoci_unpacks_and_the_same_from_every_transport() {
    let dir = tempfile::tempdir().unwrap();
    umoci_image(dir.path());
    let layout = dir.path().join("layout");
    run("umoci", &[&"unpack", &"--image", &format!("{}:t", layout.display()), &dir.path().join("unpacked")]);
    let store = Store::new();
    let source: Source = format!("oci:{}:t", layout.display()).parse().unwrap();
    let mounted = store.mounted(&source, "made/by-umoci:1");
    assert_same(&dir.path().join("unpacked/rootfs"), mounted.path(), &ADDED);

    let image = store.resolve("made/by-umoci:1");
    assert_eq!(
        (image.config.entrypoint, image.config.cmd),
        (vec!["/bin/sh".to_owned()], vec!["-c".to_owned()])
    );
    assert!(image.config.env.contains(&"A=b".to_owned()), "{:?}", image.config.env);
    assert_eq!((image.config.user.as_str(), image.config.working_dir.as_str()), ("1000:1000", "/kept"));
    assert!(image.config.exposed_ports.contains("80/tcp") && image.config.labels["a"] == "b");
    let expected = fs::read(&image.rootfs.path).unwrap();
    assert_eq!(image.rootfs.size_bytes, expected.len() as u64);
    assert_eq!(image.record.rootfs_sha256, magikvm::image::Digest::of(&expected));

    // The same layers give the same bytes, whatever their transport.
    let from = format!("oci:{}:t", layout.display());
    let archive = format!("docker-archive:{}", dir.path().join("a.tar").display());
    run("skopeo", &[&"--insecure-policy", &"copy", &from, &format!("{archive}:some/name:1")]);
    let zstd = format!("oci:{}:t", dir.path().join("zstd").display());
    run(
        "skopeo",
        &[
            &"--insecure-policy",
            &"copy",
            &"--dest-compress-format",
            &"zstd",
            &"--dest-compress",
            &from,
            &zstd,
        ],
    );
    for (number, source) in
        [archive.clone(), format!("{archive}:some/name:1"), format!("{archive}:@0"), zstd, from]
            .iter()
            .enumerate()
    {
        let other = Store::new();
        other
            .import(&source.parse().unwrap(), "x")
            .unwrap_or_else(|error| panic!("{source}: {}", crate::chain(&error)));
        assert!(
            fs::read(other.resolve("x").rootfs.path).unwrap() == expected,
            "{number}: {source} gives other bytes"
        );
    }
    let index = fs::read_to_string(dir.path().join("zstd/index.json")).unwrap();
    let manifest = index.split("sha256:").nth(1).unwrap()[..64].to_owned();
    let manifest = fs::read_to_string(dir.path().join("zstd/blobs/sha256").join(manifest)).unwrap();
    assert!(manifest.contains("tar+zstd"), "skopeo made no zstd layers: {manifest}");
}

#[test]
fn an_archive_with_several_images_needs_a_choice() {
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    run("umoci", &[&"init", &"--layout", &layout]);
    for tag in ["a", "b"] {
        let image = format!("{}:{tag}", layout.display());
        run("umoci", &[&"new", &"--image", &image]);
        write(&dir.path().join(tag), tag.as_bytes());
        run("umoci", &[&"insert", &"--image", &image, &dir.path().join(tag), &"/file"]);
    }
    let store = Store::new();
    let import =
        |choice: &str| store.import(&format!("oci:{}{choice}", layout.display()).parse().unwrap(), "x");
    let error = crate::chain(&import("").unwrap_err());
    assert!(error.contains("choose one") && error.contains("a, b"), "{error}");
    let error = crate::chain(&import(":c").unwrap_err());
    assert!(error.contains("no image \"c\"") && error.contains("a, b"), "{error}");
    import(":b").unwrap();
    let mounted = Mounted::erofs(&store.resolve("x").rootfs.path);
    assert_eq!(fs::read(mounted.path().join("file")).unwrap(), b"b");
}

/// A file system of the pod's private files, as the kernel sees it.
#[test]
fn small_file_systems_mount() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("small.erofs");
    let mut files: Vec<(String, Vec<u8>)> =
        (0..2000).map(|n| (format!("many/file-{n}"), n.to_string().into_bytes())).collect();
    files.push(("pod/spec.json".into(), vec![b'x'; 70_000]));
    files.push(("empty".into(), Vec::new()));
    let size =
        magikvm::image::erofs::write_small(files.clone(), &mut fs::File::create(&path).unwrap()).unwrap();
    assert_eq!(size, fs::metadata(&path).unwrap().len());
    let mounted = Mounted::erofs(&path);
    let seen = crate::tools::look(mounted.path());
    assert_eq!(seen.len(), files.len() + 3);
    for (path, bytes) in files {
        let one = &seen[Path::new(&path)];
        assert_eq!((one.mode, one.owner, one.mtime, one.nlink), (0o100_644, (0, 0), (0, 0), 1));
        assert!(one.content == bytes, "{path}");
    }
    assert_eq!(seen[Path::new("pod")].mode, 0o040_755);
}
