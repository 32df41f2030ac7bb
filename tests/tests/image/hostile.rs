//! Hostile images: each one is an error with its reason, and leaves nothing in the store or elsewhere.

use crate::make::{Item, Layout, Packing, Tar, gzip};
use crate::{Store, chain, files};
use magikvm::image::{Digest, Source};
use serde_json::json;
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

/// The import fails with `expected` and leaves nothing.
fn refused(layout: &Layout, expected: &str) {
    let store = Store::new();
    match store.import(&layout.source(), "hostile") {
        Ok(_) => panic!("an image was taken that should give: {expected}"),
        Err(error) => {
            let error = chain(&error);
            assert!(error.contains(expected), "expected {expected:?}, got: {error}");
        }
    }
    assert_eq!(files(&store.root()), ["lock"], "{expected}");
}

fn layer(tar: Tar, expected: &str) {
    layers(&[tar.end()], expected);
}

fn layers(layers: &[Vec<u8>], expected: &str) {
    refused(&Layout::of(Packing::Gzip, layers), expected);
}

#[test]
fn paths_that_lead_out() {
    for path in ["../escape", "a/../../escape", "/../escape", "a/..", ".."] {
        layer(Tar::default().file(path, ""), "contains \"..\"");
        layer(Tar::default().hardlink("ok", path), "contains \"..\"");
    }
    layer(Tar::default().hardlink("passwd", "/etc/passwd"), "which is not in the image");
    layer(Tar::default().symlink("s", "/etc").hardlink("passwd", "s/passwd"), "which is not in the image");
    layer(Tar::default().dir("d", 0o755).hardlink("h", "d"), "leads to the directory");
    layer(Tar::default().file("/.", ""), "replaces the root");
    layer(Tar::default().symlink(".", "/"), "replaces the root");
    layer(Tar::default().file("f", "").file("f/below", ""), "not a directory");
    layer(Tar::default().file("d/.wh.", ""), "whiteout that names no file");
    layer(Tar::default().file("d/.wh...", ""), "whiteout that names no file");
}

#[test]
fn circles_of_links() {
    layer(Tar::default().symlink("a", "b").symlink("b", "a").file("a/x", ""), "symbolic links");
    let chain = (0..42).fold(Tar::default(), |tar, n| tar.symlink(&format!("l{n}"), &format!("l{}", n + 1)));
    layer(chain.file("l0/x", ""), "more than 40 symbolic links");
}

#[test]
fn names_that_no_file_has() {
    layer(Tar::default().item(&Item { pax: vec![("path", b"a\0b")], ..Item::default() }), "malformed record");
    layer(
        Tar::default().item(&Item { pax: vec![("path", &[b'n'; 256])], ..Item::default() }),
        "longer than 255 bytes",
    );
    let deep = "d/".repeat(2100);
    layer(
        Tar::default().item(&Item { pax: vec![("path", deep.as_bytes())], ..Item::default() }),
        "longer than 4095 bytes",
    );
    let deep = "d/".repeat(1100);
    layer(
        Tar::default().item(&Item { pax: vec![("path", deep.as_bytes())], ..Item::default() }),
        "nested more than",
    );
    layer(Tar::default().item(&Item { name: b"", ..Item::default() }), "empty path");
    layer(Tar::default().symlink("s", ""), "target is empty");
    let long = vec![b't'; 5000];
    layer(
        Tar::default().item(&Item { kind: b'2', pax: vec![("linkpath", &long)], ..Item::default() }),
        "longer than 4095",
    );
}

#[test]
fn entries_that_no_file_system_holds() {
    layer(
        Tar::default().item(&Item { kind: b'3', device: (5000, 0), ..Item::default() }),
        "device number 5000:0",
    );
    layer(Tar::default().item(&Item { kind: b'V', ..Item::default() }), "unknown type 'V'");
    let big = vec![0; 70_000];
    layer(
        Tar::default().item(&Item { pax: vec![("SCHILY.xattr.user.x", &big)], ..Item::default() }),
        "extended attribute",
    );
    let huge = vec![0; 2 << 20];
    layer(
        Tar::default().item(&Item { kind: b'x', data: &huge, ..Item::default() }),
        "larger than 1048576 bytes",
    );
    layer(
        Tar::default().item(&Item { pax: vec![("uid", b"4294967296")], ..Item::default() }),
        "the uid 4294967296, which no file can have",
    );
    layer(
        Tar::default().item(&Item { pax: vec![("gid", b"-1")], ..Item::default() }),
        "the gid -1, which no file can have",
    );
    layer(
        Tar::default().item(&Item { pax: vec![("mtime", b"soon")], ..Item::default() }),
        "malformed record",
    );
}

#[test]
fn damaged_archives() {
    layers(&[b"this is no tar archive".repeat(100)], "wrong checksum");
    layers(
        &[Tar::default().item(&Item { data: b"x", size: Some(100_000), ..Item::default() }).end()],
        "truncated",
    );
    let mut cut = Tar::default().file("a", "b").end();
    cut.truncate(100);
    layers(&[cut], "truncated");
    let sparse = vec![
        ("GNU.sparse.major", b"1".as_slice()),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.realsize", b"10"),
    ];
    layer(
        Tar::default().item(&Item { data: b"1\n5\n9\n", pax: sparse, ..Item::default() }),
        "map of a sparse file",
    );
}

#[test]
fn damaged_blobs() {
    let tar = Tar::default().file("a", &"random enough 0123456789".repeat(1000)).end();
    let packed = gzip(&tar);
    let stored = |media: &str, bytes: &[u8], diff_id: &Digest, expected: &str| {
        let mut layout = Layout::new();
        layout.add_stored(&format!("application/vnd.oci.image.layer.v1.{media}"), bytes, diff_id);
        layout.save();
        refused(&layout, expected);
    };
    let diff_id = Digest::of(&tar);
    stored("tar+gzip", &packed[..packed.len() / 2], &diff_id, "not gzip data, or is damaged");
    stored("tar+gzip", b"neither", &diff_id, "not gzip data");
    stored("tar+gzip", b"", &diff_id, "the image's configuration says");
    stored("tar+gzip", b"BZh91AY&SY", &diff_id, "compressed with bzip2");
    stored("tar+gzip", &[&packed, b"trailing".as_slice()].concat(), &diff_id, "not gzip data, or is damaged");
    let zstd = zstd::encode_all(tar.as_slice(), 3).unwrap();
    stored("tar+zstd", &zstd[..zstd.len() - 5], &diff_id, "not zstd data, or is damaged");
    stored("tar", &packed, &Digest::of(&packed), "the image's configuration says");
    stored("tar+gzip", &packed, &Digest::of(b"other"), "the image's configuration says");
    stored("tar+xz", &packed, &diff_id, "media type");

    let mut layout = Layout::of(Packing::Gzip, std::slice::from_ref(&tar));
    let digest: Digest = layout.layers[0]["digest"].as_str().unwrap().parse().unwrap();
    let mut other = fs::read(layout.blob_path(&digest)).unwrap();
    let middle = other.len() / 2;
    other[middle] ^= 1;
    fs::write(layout.blob_path(&digest), &other).unwrap();
    refused(&layout, "");
    // Still gzip of the same tar, but not the blob of the digest.
    let mut other = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    other.write_all(&tar).unwrap();
    let other = other.finish().unwrap();
    fs::write(layout.blob_path(&digest), &other).unwrap();
    refused(&layout, "its descriptor says");
    layout.layers[0]["size"] = other.len().into();
    layout.save();
    refused(&layout, "has the digest");
    fs::remove_file(layout.blob_path(&digest)).unwrap();
    refused(&layout, "No such file");
}

#[test]
fn blobs_that_are_no_files() {
    let layout = Layout::of(Packing::Gzip, &[Tar::default().file("a", "b").end()]);
    let digest: Digest = layout.layers[0]["digest"].as_str().unwrap().parse().unwrap();
    let blob = layout.blob_path(&digest);
    let elsewhere = layout.dir.path().join("elsewhere");
    fs::rename(&blob, &elsewhere).unwrap();
    symlink(&elsewhere, &blob).unwrap();
    refused(&layout, "cannot read");
    fs::remove_file(&blob).unwrap();
    crate::tools::run("mkfifo", &[&blob]);
    refused(&layout, "not a regular file");
    fs::remove_file(&blob).unwrap();
    fs::create_dir(&blob).unwrap();
    refused(&layout, "not a regular file");
    let index = layout.dir.path().join("index.json");
    fs::remove_file(&index).unwrap();
    symlink("/etc/passwd", &index).unwrap();
    refused(&layout, "cannot read");
}

#[test]
fn bombs() {
    // 600 MiB of zeros are 600 KiB of gzip.
    let mut bomb = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    bomb.write_all(&Tar::default().item(&Item { size: Some(500 << 20), ..Item::default() }).end()[..512])
        .unwrap();
    for _ in 0..600 {
        bomb.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let mut layout = Layout::new();
    layout.add_stored(
        "application/vnd.oci.image.layer.v1.tar+gzip",
        &bomb.finish().unwrap(),
        &Digest::of(b""),
    );
    layout.save();
    refused(&layout, "larger than 536870912 bytes");

    // A few bytes that stand for a file of 5 GiB.
    let sparse = vec![
        ("GNU.sparse.size", b"5368709120".as_slice()),
        ("GNU.sparse.numblocks", b"1"),
        ("GNU.sparse.map", b"0,1"),
    ];
    layer(
        Tar::default().item(&Item { data: b"x", pax: sparse, ..Item::default() }),
        "larger than 4294967296 bytes",
    );
    let three = vec![("GNU.sparse.size", b"1500000000".as_slice()), ("GNU.sparse.map", b"0,1")];
    let tar = ["a", "b", "c"].iter().fold(Tar::default(), |tar, name| {
        tar.item(&Item { name: name.as_bytes(), data: b"x", pax: three.clone(), ..Item::default() })
    });
    layer(tar, "larger than 4294967296 bytes");
    layer(
        Tar::default().item(&Item { size: Some(0o77_777_777_777), ..Item::default() }),
        "larger than 4294967296 bytes",
    );
}

/// Holes cost nothing, also where a file was before.
#[test]
fn a_hole_of_gigabytes_is_quick_however_often_it_comes() {
    let pax = vec![("GNU.sparse.size", b"4000000000".as_slice()), ("GNU.sparse.map", b"0,1")];
    let tar = (0..300)
        .fold(Tar::default(), |tar, _| tar.item(&Item { data: b"x", pax: pax.clone(), ..Item::default() }));
    let (store, started) = (Store::new(), std::time::Instant::now());
    store.import(&Layout::of(Packing::Gzip, &[tar.end()]).source(), "x").unwrap();
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn too_many_entries_and_layers() {
    let mut many = Tar::default();
    for n in 0..100_001 {
        many = many.item(&Item { name: format!("f{n}").as_bytes(), ..Item::default() });
    }
    layer(many, "more than 100000 entries");
    let tar = Tar::default().file("a", "").end();
    layers(&vec![tar.clone(); 129], "129 layers; the limit is 128");
    let store = Store::new();
    store.import(&Layout::of(Packing::Gzip, &vec![tar; 128]).source(), "x").unwrap();
}

/// Whiteouts and links that are expensive to follow must not take long.
#[test]
fn no_layer_takes_quadratic_time() {
    let mut base = Tar::default();
    for n in 0..50_000 {
        base = base.item(&Item { name: format!("d/{n}").as_bytes(), ..Item::default() });
    }
    let opaque = (0..45_000).fold(base.clone(), |tar, _| tar.file("d/.wh..wh..opq", ""));
    let hidden = (0..45_000).fold(base.clone(), |tar, _| tar.file(".wh.d", ""));
    let started = std::time::Instant::now();
    let store = Store::new();
    for (name, tar) in [("opaque", opaque), ("hidden", hidden)] {
        store.import(&Layout::of(Packing::Gzip, &[base.clone().end(), tar.end()]).source(), name).unwrap();
    }
    assert!(started.elapsed().as_secs() < 60, "{:?}", started.elapsed());
}

#[test]
fn documents() {
    let tar = || Tar::default().file("a", "").end();
    let fresh = || Layout::of(Packing::Gzip, &[tar()]);

    let layout = fresh();
    let manifest = layout.manifest();
    let mut wrong = manifest.clone();
    wrong["size"] = 1.into();
    layout.save_index(wrong);
    refused(&layout, "its descriptor says");
    let mut wrong = manifest.clone();
    wrong["size"] = (2 << 20).into();
    layout.save_index(wrong);
    refused(&layout, "the limit is 1048576");
    let mut wrong = manifest.clone();
    wrong["mediaType"] = "application/vnd.oci.image.index.v1+json".into();
    layout.save_index(wrong);
    refused(&layout, "mediaType is not the one of its descriptor");
    let mut wrong = manifest.clone();
    wrong["mediaType"] = "application/vnd.docker.distribution.manifest.v1+json".into();
    layout.save_index(wrong);
    refused(&layout, "docker's schema 1");
    let mut wrong = manifest.clone();
    wrong["digest"] = format!("sha512:{}", "0".repeat(128)).into();
    layout.save_index(wrong);
    refused(&layout, "sha256");
    let mut wrong = manifest.clone();
    wrong["digest"] = "sha256:../../../../../../etc/passwd".into();
    layout.save_index(wrong);
    refused(&layout, "not \"sha256:\" and 64");

    let both = json!({"schemaVersion": 2, "manifests": [manifest], "layers": [], "config": manifest});
    layout
        .save_index(layout.typed("application/vnd.oci.image.manifest.v1+json", both.to_string().as_bytes()));
    refused(&layout, "index or manifest");
    let nested = (0..5).fold(manifest, |inner, _| layout.index(&[inner]));
    layout.save_index(nested);
    refused(&layout, "nested more than");
    layout.save_index(layout.typed("application/vnd.oci.image.manifest.v1+json", b"[1"));
    refused(&layout, "not valid");
    layout.save_index(
        layout.typed("application/vnd.oci.image.manifest.v1+json", "[".repeat(200_000).as_bytes()),
    );
    refused(&layout, "not valid");
    layout.save_index(layout.typed("application/vnd.oci.image.manifest.v1+json", &vec![b' '; (1 << 20) + 1]));
    refused(&layout, "the limit is 1048576");
    fs::write(layout.dir.path().join("index.json"), vec![b' '; 5 << 20]).unwrap();
    refused(&layout, "the limit is 4194304");
    fs::write(layout.dir.path().join("oci-layout"), r#"{"imageLayoutVersion":"9.0.0"}"#).unwrap();
    refused(&layout, "not an OCI image layout");

    let mut layout = fresh();
    layout.config["architecture"] = "s390x".into();
    layout.save();
    refused(&layout, "is for linux/s390x");
    let mut layout = fresh();
    layout.config["os"] = "windows".into();
    layout.save();
    refused(&layout, "is for windows/");
    let mut layout = fresh();
    layout.config["rootfs"]["diff_ids"] = json!([]);
    layout.save();
    refused(&layout, "1 layers, but its configuration lists 0");
    let mut layout = fresh();
    layout.config["padding"] = "x".repeat(5 << 20).into();
    layout.save();
    refused(&layout, "the limit is 4194304");
}

#[test]
fn docker_archives() {
    let store = Store::new();
    let refused = |tar: Tar, expected: &str| {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), tar.end()).unwrap();
        let error = chain(
            &store
                .import(&Source::DockerArchive { file: file.path().to_owned(), image: None }, "x")
                .unwrap_err(),
        );
        assert!(error.contains(expected), "expected {expected:?}, got: {error}");
    };
    let manifest = |value: serde_json::Value| Tar::default().file("manifest.json", &value.to_string());
    let image =
        |config: &str, layers: &[&str]| json!([{"Config": config, "RepoTags": ["a:1"], "Layers": layers}]);
    refused(Tar::default().file("other", ""), "has no file \"manifest.json\"");
    refused(manifest(image("/etc/passwd", &[])), "has no file \"/etc/passwd\"");
    refused(manifest(image("../c", &[])), "has no file \"../c\"");
    refused(manifest(image("c", &[])).symlink("c", "/etc/passwd"), "has no file");
    refused(manifest(image("c", &[])).symlink("c", "d").symlink("d", "c"), "has no file");
    refused(manifest(image("c", &["l"])).file("c", r#"{"rootfs":{"diff_ids":[]}}"#), "1 layers, but");
    let named = format!("{}.json", Digest::of(b"other").hex());
    refused(manifest(image(&named, &[])).file(&named, r#"{"rootfs":{}}"#), "has the digest");
    let two = json!([{"Config": "c", "RepoTags": ["a:1"]}, {"Config": "d", "RepoTags": null}]);
    refused(manifest(two), "choose one by adding \":NAME\" to the source: a:1, @1");
    refused(manifest(json!({})), "not valid");
    assert_eq!(files(&store.root()), ["lock"]);
}
