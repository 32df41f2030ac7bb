//! Layers written by hand: cases that the tools never write, and the store's promises about them.

use crate::make::{Item, Layout, Packing, Tar};
use crate::tools::{Mounted, assert_same, look, run};
use crate::{ADDED, Store};
use magikvm::image::Source;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn paths(root: &Path) -> Vec<String> {
    let seen = look(root);
    let shown = seen.keys().map(|path| path.display().to_string()).filter(|path| !path.is_empty());
    shown.filter(|path| !ADDED.contains(&path.as_str())).collect()
}

fn mounted(layers: &[Vec<u8>]) -> Mounted {
    let layout = Layout::of(Packing::Gzip, layers);
    Store::new().mounted(&layout.source(), "x")
}

/// Layers that umoci reads as well. The results must be equal.
#[test]
fn layers_in_every_dialect_are_what_umoci_unpacks() {
    let long = format!("long/{}/{}", "d".repeat(200), "f".repeat(200));
    let base = Tar::default()
        .item(&Item { name: b"./", kind: b'5', mode: 0o711, owner: (5, 6), ..Item::default() })
        .dir("./a/", 0o2775)
        .file("./a/one", "1")
        .hardlink("a/two", "./a/one")
        .symlink("a/sym", "/a/one")
        .hardlink("a/sym2", "a/sym")
        .item(&Item {
            name: b"short",
            data: b"named by pax",
            pax: vec![
                ("path", long.as_bytes()),
                ("mtime", b"1234567890.123456789"),
                ("uid", b"3000000000"),
                ("gid", b"3000000001"),
                ("SCHILY.xattr.user.k", b"v\n=\x00"),
            ],
            ..Item::default()
        })
        .item(&Item { name: b"early", mtime: 0, pax: vec![("mtime", b"-1.5")], ..Item::default() })
        .item(&Item { name: b"old-style/", kind: 0, mode: 0o755, ..Item::default() })
        .item(&Item { name: b"odd-\xff\xfe", data: b"bytes", ..Item::default() })
        .item(&Item { name: b"char", kind: b'3', device: (1, 5), mode: 0o666, ..Item::default() })
        .dir("low", 0o755)
        .file("low/x", "x")
        .file("low/y", "y")
        .dir("lib", 0o755)
        .symlink("to-lib", "lib")
        .end();
    let upper = Tar::default()
        .file("low/.wh.x", "")
        .file("low/z", "z")
        .file("a/one", "replaced: two keeps the old content")
        .file("twice", "first")
        .file("twice", "second")
        .file("to-lib/through", "a link of a lower layer")
        .end();
    let layout = Layout::of(Packing::Gzip, &[base, upper]);
    let unpacked = tempfile::tempdir().unwrap();
    let bundle = unpacked.path().join("bundle");
    run("umoci", &[&"unpack", &"--image", &format!("{}:t", layout.dir.path().display()), &bundle]);
    let mounted = Store::new().mounted(&layout.source(), "x");
    assert_eq!(fs::read(mounted.path().join("lib/through")).unwrap(), b"a link of a lower layer");
    assert_eq!(fs::read(mounted.path().join("twice")).unwrap(), b"second");
    // A directory that no layer lists has no time of its own here; umoci gives it, and the one it is made in, the time of
    // unpacking.
    let long = format!("long/{}", "d".repeat(200));
    for (path, seconds) in [(long.as_str(), 0), ("long", 0), ("", 1_600_000_000)] {
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
        fs::File::open(bundle.join("rootfs").join(path)).unwrap().set_modified(time).unwrap();
    }
    assert_same(&bundle.join("rootfs"), mounted.path(), &ADDED);
}

/// Layers that other tools write or read, and umoci does not.
#[test]
fn global_headers_are_left_out_and_contiguous_files_are_files() {
    let tar = Tar::default()
        .item(&Item { name: b"comment", kind: b'g', data: b"20 comment=whatever\n", ..Item::default() })
        .item(&Item { name: b"contiguous", kind: b'7', data: b"7", ..Item::default() })
        .end();
    let root = mounted(&[tar]);
    assert_eq!(paths(root.path()), ["contiguous"]);
    assert_eq!(fs::read(root.path().join("contiguous")).unwrap(), b"7");
}

#[test]
fn whiteouts_hide_lower_layers_wherever_they_stand() {
    let base = Tar::default()
        .file("d/old", "")
        .file("d/sub/old", "")
        .file("e/old", "")
        .file("f", "")
        .file("g/old", "")
        .end();
    let upper = Tar::default()
        .file("d/new", "")
        .file("d/sub/new", "")
        .file("d/.wh..wh..opq", "")
        .file("f", "back")
        .file(".wh.f", "")
        .file(".wh.nothing", "")
        .file("no/where/.wh.nothing", "")
        .file(".wh..wh.plnk", "AUFS")
        .dir("g", 0o700)
        .file(".wh.g", "")
        .end();
    let root = mounted(&[base.clone(), upper]);
    assert_eq!(paths(root.path()), ["d", "d/new", "d/sub", "d/sub/new", "e", "e/old", "f", "g"]);
    let everything = Tar::default().file(".wh..wh..opq", "").file("only", "").end();
    assert_eq!(paths(mounted(&[base, everything]).path()), ["only"]);
}

#[test]
fn links_of_lower_layers_never_lead_out() {
    let base = Tar::default()
        .symlink("up", "../../../../../..")
        .symlink("abs", "/inside")
        .symlink("dangling", "made/here")
        .end();
    let upper = Tar::default().file("up/a", "").file("abs/b", "").file("dangling/c", "").end();
    let root = mounted(&[base, upper]);
    assert_eq!(
        paths(root.path()),
        ["a", "abs", "dangling", "inside", "inside/b", "made", "made/here", "made/here/c", "up"]
    );
}

#[test]
fn absolute_paths_lose_their_slash() {
    let root = mounted(&[Tar::default().file("/etc/passwd", "x").file("//opt//./y", "y").end()]);
    assert_eq!(paths(root.path()), ["etc/passwd", "opt", "opt/y"]);
}

#[test]
fn an_image_of_one_file_gets_its_mount_points_and_one_that_has_them_keeps_its_own() {
    let root = mounted(&[Tar::default().file("app", "static").end()]);
    let seen = look(root.path());
    for (path, mode) in
        [("proc", 0o40_755), ("dev", 0o40_755), ("sys", 0o40_755), ("etc", 0o40_755), ("tmp", 0o41_777)]
    {
        assert_eq!(seen[Path::new(path)].mode, mode, "{path}");
    }
    assert_eq!(seen[Path::new("etc/hosts")].mode, 0o100_644);
    assert_eq!(seen.len(), ADDED.len() + 2);

    let own = Tar::default()
        .dir("tmp", 0o700)
        .symlink("etc", "usr/etc")
        .file("usr/etc/hosts", "own")
        .symlink("usr/etc/resolv.conf", "/run/none")
        .file("proc", "a file")
        .end();
    let root = mounted(&[own]);
    let seen = look(root.path());
    assert_eq!(seen[Path::new("tmp")].mode, 0o40_700);
    assert_eq!(seen[Path::new("proc")].content, b"a file");
    assert_eq!(seen[Path::new("usr/etc/hosts")].content, b"own");
    assert_eq!(seen[Path::new("usr/etc/hostname")].content, b"");
    assert_eq!(seen[Path::new("usr/etc/resolv.conf")].content, b"/run/none");
    assert!(mounted(&[]).path().join("proc").is_dir(), "an image without layers");
}

#[test]
fn attributes_that_would_command_the_overlay_are_left_out() {
    let pax = vec![
        ("SCHILY.xattr.trusted.overlay.opaque", b"y".as_slice()),
        ("SCHILY.xattr.trusted.mine", b"y"),
        ("LIBARCHIVE.xattr.user.%41", b"AQI"),
    ];
    let root =
        mounted(&[Tar::default().item(&Item { name: b"d", kind: b'5', pax, ..Item::default() }).end()]);
    let seen = look(root.path());
    let xattrs: BTreeMap<_, _> =
        seen[Path::new("d")].xattrs.iter().map(|(k, v)| (k.to_str().unwrap(), v.as_slice())).collect();
    assert_eq!(xattrs, BTreeMap::from([("trusted.mine", b"y".as_slice()), ("user.A", &[1, 2])]));
}

/// Inodes that are longer than a block with their attributes, of every type.
#[test]
fn attributes_larger_than_a_block() {
    let big = vec![b'v'; 60_000];
    let pax: Vec<(&str, &[u8])> =
        vec![("SCHILY.xattr.trusted.big", &big), ("SCHILY.xattr.trusted.small", b"s")];
    let item = |name: &'static [u8], kind: u8| Item {
        name,
        kind,
        link: b"somewhere",
        pax: pax.clone(),
        ..Item::default()
    };
    let tar = Tar::default()
        .item(&item(b"./", b'5'))
        .item(&Item { data: b"tail", ..item(b"file", b'0') })
        .item(&item(b"dir", b'5'))
        .item(&item(b"link", b'2'))
        .item(&item(b"pipe", b'6'))
        .end();
    let root = mounted(&[tar]);
    let seen = look(root.path());
    for path in ["", "file", "dir", "link", "pipe"] {
        let xattrs = &seen[Path::new(path)].xattrs;
        assert_eq!((xattrs.len(), xattrs[std::ffi::OsStr::new("trusted.big")].len()), (2, 60_000), "{path}");
    }
    assert_eq!(seen[Path::new("file")].content, b"tail");
    assert_eq!(seen[Path::new("link")].content, b"somewhere");
}

/// The space of replaced files is reused, and nothing of them can be found in the image.
#[test]
fn nothing_of_a_replaced_file_is_left_in_the_image() {
    let secret = "SECRET-".repeat(100_000);
    let layers = [
        Tar::default().file("a", &secret).file("b", "small").end(),
        Tar::default().file("a", "gone").file("c", &"c".repeat(300_000)).end(),
        Tar::default().file(".wh.c", "").end(),
    ];
    let layout = Layout::of(Packing::Plain, &layers);
    let store = Store::new();
    let mounted = store.mounted(&layout.source(), "x");
    assert_eq!(fs::read(mounted.path().join("a")).unwrap(), b"gone");
    let image = fs::read(store.resolve("x").rootfs.path).unwrap();
    assert!(!image.windows(14).any(|window| window == b"SECRET-SECRET-"));
    assert!(image.len() < 100_000, "{} bytes", image.len());
}

#[test]
fn a_sparse_file_of_gnu_tar_is_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create(dir.path().join("s")).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 20_000_000).unwrap();
    file.set_len(50_000_001).unwrap();
    for format in ["gnu", "pax"] {
        let tar = dir.path().join("tar");
        run("tar", &[&"-S", &format!("--format={format}"), &"-C", &dir.path(), &"-cf", &tar, &"s"]);
        let layout = Layout::of(Packing::Plain, &[fs::read(&tar).unwrap()]);
        let store = Store::new();
        let mounted = store.mounted(&layout.source(), "x");
        assert!(fs::read(mounted.path().join("s")).unwrap() == fs::read(dir.path().join("s")).unwrap());
        let blocks =
            std::os::unix::fs::MetadataExt::blocks(&fs::metadata(store.resolve("x").rootfs.path).unwrap());
        assert!(blocks * 512 < 1 << 20, "the holes take {blocks} blocks on disk");
    }
}

#[test]
fn names_are_bytes() {
    let names: Vec<Vec<u8>> =
        (1..=255u8).filter(|byte| !b"/.".contains(byte)).map(|byte| vec![b'n', byte, byte]).collect();
    let tar = names
        .iter()
        .fold(Tar::default(), |tar, name| tar.item(&Item { name, data: name, ..Item::default() }));
    let root = mounted(&[tar.end()]);
    for name in names {
        assert_eq!(fs::read(root.path().join(std::ffi::OsStr::from_bytes(&name))).unwrap(), name);
    }
}

#[test]
fn an_index_leads_to_the_image_for_the_host() {
    let mut layout = Layout::new();
    layout.add(Packing::Zstd, &Tar::default().file("right", "").end());
    let mut right = layout.manifest();
    let architecture = layout.config["architecture"].clone();
    right["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
    let mut wrong = layout.blob(b"{}");
    wrong["mediaType"] = right["mediaType"].clone();
    let mut attestation = wrong.clone();
    wrong["platform"] = serde_json::json!({"os": "linux", "architecture": "s390x"});
    attestation["platform"] = serde_json::json!({"os": "unknown", "architecture": "unknown"});
    let inner = layout.index(&[wrong.clone(), attestation.clone(), right.clone()]);
    layout.save_index(inner.clone());
    let store = Store::new();
    let record = store.import(&layout.source(), "x").unwrap();
    let digests: Vec<String> = record.digests.iter().map(ToString::to_string).collect();
    assert!(digests.contains(&inner["digest"].as_str().unwrap().to_owned()) && digests.len() == 2);
    // Pinned by either digest, under any tag.
    for digest in &digests {
        assert_eq!(store.resolve(&format!("x@{digest}")).id, record.id);
        store.import(&layout.source(), &format!("pinned@{digest}")).unwrap();
    }
    let other = format!("pinned@{}", magikvm::image::Digest::of(b"other"));
    assert!(store.import(&layout.source(), &other).unwrap_err().to_string().contains("pins a digest"));
    // Without a tag, a layout with one entry for each platform is one image.
    layout.save_top(&[wrong.clone(), right]);
    let source = Source::OciLayout { dir: layout.dir.path().to_owned(), tag: None };
    assert_eq!(store.import(&source, "y").unwrap().id, record.id);
    layout.save_index(layout.index(&[wrong, attestation]));
    let error = crate::chain(&store.import(&layout.source(), "x").unwrap_err());
    assert!(error.contains("is for linux/s390x, not for linux/"), "{error}");
}

/// Media types and bytes differ in images of some tools, and configurations of 2016 have no type of their own.
#[test]
fn the_bytes_decide_whatever_the_types_say() {
    let tar = Tar::default().file("marker", "M").end();
    let gzip = crate::make::gzip(&tar);
    let zstd = zstd::encode_all(tar.as_slice(), 3).unwrap();
    // A skippable frame in front.
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4], zstd.as_slice()].concat();
    let types = ["tar", "tar+gzip", "tar+zstd"];
    for (number, bytes) in [&tar, &gzip, &zstd, &skippable].into_iter().enumerate() {
        for media in types {
            let mut layout = Layout::new();
            let diff_id = magikvm::image::Digest::of(&tar);
            layout.add_stored(&format!("application/vnd.oci.image.layer.v1.{media}"), bytes, &diff_id);
            layout.save();
            let root = Store::new().mounted(&layout.source(), "x");
            assert_eq!(fs::read(root.path().join("marker")).unwrap(), b"M", "{number} as {media}");
        }
    }
    for config in ["application/octet-stream", "application/json", "text/html"] {
        let layout = Layout::of(Packing::Gzip, std::slice::from_ref(&tar));
        let mut manifest: serde_json::Value = {
            let digest: magikvm::image::Digest =
                layout.manifest()["digest"].as_str().unwrap().parse().unwrap();
            serde_json::from_slice(&fs::read(layout.blob_path(&digest)).unwrap()).unwrap()
        };
        let docker = "application/vnd.docker.distribution.manifest.v2+json";
        manifest["mediaType"] = docker.into();
        manifest["config"]["mediaType"] = config.into();
        layout.save_index(layout.typed(docker, manifest.to_string().as_bytes()));
        Store::new().mounted(&layout.source(), "x");
    }
}

/// Without the basic variant the best one that runs is taken. Index entries that do not say what they are for are looked at.
#[test]
fn variants_and_nested_indexes_lead_to_an_image() {
    use serde_json::{Value, json};
    let mut layout = Layout::new();
    layout.add(Packing::Zstd, &Tar::default().file("marker", "M").end());
    let mut entry = |architecture: &str, variant: &str| -> Value {
        layout.config["architecture"] = architecture.into();
        // Images of their own with the same layers.
        layout.config["comment"] = variant.into();
        let mut entry = layout.manifest();
        entry["platform"] = json!({ "os": "linux", "architecture": architecture, "variant": variant });
        entry
    };
    let entries =
        [("amd64", "v2"), ("amd64", "v1"), ("amd64", "v4"), ("arm", "v7"), ("arm", "v6"), ("s390x", "")];
    let entries = entries.map(|(architecture, variant)| entry(architecture, variant));
    let bare = entries.clone().map(|mut entry| {
        entry.as_object_mut().unwrap().remove("platform");
        entry
    });
    let [v2, v1, v4, arm_7, arm_6, other] = &entries;
    let nested = layout
        .index(&[layout.index(std::slice::from_ref(other)), layout.index(&[bare[5].clone(), v2.clone()])]);
    let attested = json!({ "os": "unknown", "architecture": "unknown" });
    let mut attestation = bare[5].clone();
    attestation["platform"] = attested;
    let (intel, arm) = ("linux/amd64/v3", "linux/arm");
    let variant = |index: &[Value], wanted: &str| {
        layout.save_index(layout.index(index));
        let store = Store::new();
        let platform: magikvm::image::Platform = wanted.parse().unwrap();
        let options = magikvm::image::BringOptions { platform: platform.into(), ..Default::default() };
        let name = "x".parse().unwrap();
        let brought = store.store.import(&layout.source(), &name, &options, &|_| {});
        brought.map(|record| record.variant).map_err(|error| crate::chain(&error))
    };
    let is = |text: &str| Ok(Some(text.to_owned()));
    assert_eq!(variant(&[v1.clone(), v2.clone(), v4.clone()], intel), is("v2"));
    assert_eq!(variant(&[v4.clone(), v1.clone()], intel), is("v1"));
    assert_eq!(variant(&[arm_6.clone(), arm_7.clone()], arm), is("v7"));
    assert_eq!(variant(&[arm_6.clone(), v2.clone()], arm), is("v6"));
    assert_eq!(variant(&[other.clone(), nested], intel), is("v2"));
    assert_eq!(variant(&[attestation, bare[1].clone()], intel), Ok(None));
    let error = variant(&[v4.clone(), arm_7.clone()], intel).unwrap_err();
    assert!(error.contains("is for linux/amd64/v4, linux/arm/v7, not for linux/amd64/v3"), "{error}");
}

/// Archives as old `docker save` wrote them: a directory for each layer, shared ones as links; and with layout blobs.
#[test]
fn docker_archives_old_and_new() {
    let (one, two) = (Tar::default().file("one", "1").end(), Tar::default().file("two", "2").end());
    let digest = |bytes: &[u8]| magikvm::image::Digest::of(bytes);
    let config = serde_json::json!({"os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest(&one), digest(&two)]}}).to_string();
    let item = |name: &str, data: &[u8], tar: Tar| {
        tar.item(&Item { name: name.as_bytes(), data, ..Item::default() })
    };
    let id = digest(config.as_bytes()).hex();
    let save = |tar: Tar| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), tar.end()).unwrap();
        file
    };
    let old = serde_json::json!([{"Config": format!("{id}.json"), "RepoTags": ["old:1"], "Layers": ["aa/layer.tar", "bb/layer.tar"]}]);
    let tar = item("aa/layer.tar", &one, Tar::default());
    let tar = item("cc/layer.tar", &two, tar).symlink("bb/layer.tar", "../cc/layer.tar");
    let tar = item(&format!("{id}.json"), config.as_bytes(), tar);
    let old = save(item("manifest.json", old.to_string().as_bytes(), tar));

    let gzipped = crate::make::gzip(&two);
    let blob = |bytes: &[u8]| format!("blobs/sha256/{}", digest(bytes).hex());
    let new = serde_json::json!([{"Config": blob(config.as_bytes()), "RepoTags": null, "Layers": [blob(&one), blob(&gzipped)]}]);
    let tar = item(&blob(&one), &one, Tar::default());
    let tar = item(&blob(config.as_bytes()), config.as_bytes(), item(&blob(&gzipped), &gzipped, tar));
    let new = save(item("manifest.json", new.to_string().as_bytes(), tar));

    let store = Store::new();
    for file in [&old, &new] {
        let mounted =
            store.mounted(&Source::DockerArchive { file: file.path().to_owned(), image: None }, "x");
        assert_eq!(paths(mounted.path()), ["one", "two"]);
    }
    for file in [&old, &new] {
        let compressed = tempfile::NamedTempFile::new().unwrap();
        fs::write(compressed.path(), crate::make::gzip(&fs::read(file.path()).unwrap())).unwrap();
        let source = Source::DockerArchive { file: compressed.path().to_owned(), image: None };
        assert_eq!(store.import(&source, "x").unwrap().id, digest(config.as_bytes()));
    }
    let other = tempfile::NamedTempFile::new().unwrap();
    fs::write(other.path(), b"BZh91AY&SY").unwrap();
    let source = Source::DockerArchive { file: other.path().to_owned(), image: None };
    let error = crate::chain(&store.import(&source, "y").unwrap_err());
    assert!(error.contains("bzip2; decompress it first: bunzip2 FILE"), "{error}");
}
