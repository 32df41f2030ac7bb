//! Archives of other programs, plain and compressed.

use crate::{image, import_from, inspect, names, some_images, store};
use magikvm_tests::Host;
use magikvm_tests::tools::files;
use serde_json::{Value, json};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

fn archive(host: &Host, form: &str, from: &[(&str, &str)]) -> PathBuf {
    let file = host.file(form);
    for (source, name) in from {
        let to = format!("{form}:{}{name}", file.display());
        host.other("skopeo").args(["--insecure-policy", "copy", "-q", source, &to]).ok();
    }
    file
}

/// A file compressed as a whole, beside it.
fn gzipped(file: &Path) -> PathBuf {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&fs::read(file).unwrap()).unwrap();
    let to = file.with_extension("gz");
    fs::write(&to, encoder.finish().unwrap()).unwrap();
    to
}

fn zstd_compressed(file: &Path) -> PathBuf {
    let to = file.with_extension("zst");
    fs::write(&to, zstd::encode_all(&*fs::read(file).unwrap(), 1).unwrap()).unwrap();
    to
}

fn said_id(value: &Value) -> &str {
    value["id"].as_str().unwrap()
}

#[test]
fn archives_give_the_image_of_the_layout() {
    let images = some_images(10_000);
    let host = Host::bare();
    import_from(&host, &images.source("a"), "a");
    let ours = inspect(&host, "a");
    for form in ["oci-archive", "docker-archive"] {
        let file = archive(&host, form, &[(&images.source("a"), ":team/app:1")]);
        let gzip = gzipped(&file);
        let zstd = zstd_compressed(&file);
        for file in [&file, &gzip, &zstd] {
            for choice in ["", ":team/app:1"] {
                let there = Host::bare();
                import_from(&there, &format!("{form}:{}{choice}", file.display()), "x");
                let one = inspect(&there, "x");
                assert_eq!(one["rootfsSha256"], ours["rootfsSha256"], "{}", file.display());
                if form == "oci-archive" {
                    assert_eq!((said_id(&one), &one["manifest"]), (said_id(&ours), &ours["manifest"]));
                    assert_eq!(one["digests"], ours["digests"]);
                }
                image(&there, &["verify", "x"]).ok();
                image(&there, &["rm", "x"]).ok();
                assert_eq!(files(&store(&there)), ["index.json", "lock"], "nothing unpacked is left");
            }
        }
    }
}

/// Without `--name` an image has the names of its archive, and one without a whole name is refused.
#[test]
fn an_archive_says_what_its_image_is_called() {
    let images = some_images(1000);
    let host = Host::bare();
    let file = archive(&host, "docker-archive", &[(&images.source("a"), ":team/app:1")]);
    let output = image(&host, &["import", &format!("docker-archive:{}", file.display()), "-q"]).ok();
    assert!(output.stdout.starts_with("team/app:1 sha256:"), "{}", output.stdout);
    let file = archive(&host, "oci-archive", &[(&images.source("b"), ":ghcr.io/team/other:2")]);
    image(&host, &["import", &format!("oci-archive:{}", file.display()), "-q"]).ok();
    assert_eq!(names(&host), ["ghcr.io/team/other:2", "team/app:1"]);
    // A layout's tag is not a name.
    image(&host, &["import", &images.source("a")])
        .fails(1)
        .complains("does not say what the image is called (it has only \"a\", which is not a whole name)")
        .complains("--name NAME:TAG");
    // `docker save` of an image with several names, and of one with none.
    for (tags, expected) in
        [(json!(["x:1", "y/z:2"]), vec!["x:1", "y/z:2"]), (json!([]), vec![]), (json!(null), vec![])]
    {
        let there = Host::bare();
        let dir = there.file("saved");
        let unpacked = there.file("docker.tar");
        fs::create_dir_all(&dir).unwrap();
        let from = archive(&there, "docker-archive", &[(&images.source("a"), ":team/app:1")]);
        there.other("tar").arg("-xf").arg(&from).arg("-C").arg(&dir).ok();
        let manifest = dir.join("manifest.json");
        let mut saved: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
        saved[0]["RepoTags"] = tags;
        fs::remove_file(&manifest).unwrap();
        fs::write(&manifest, saved.to_string()).unwrap();
        there.other("tar").arg("-cf").arg(&unpacked).arg("-C").arg(&dir).arg(".").ok();
        let import = image(&there, &["import", &format!("docker-archive:{}", unpacked.display()), "-q"]);
        if expected.is_empty() {
            import.fails(1).complains("does not say what the image is called");
        } else {
            import.ok();
        }
        assert_eq!(names(&there), expected);
    }
}

#[test]
fn of_several_images_one_is_chosen() {
    let images = some_images(1000);
    let host = Host::bare();
    let layout = images.layout();
    let file = host.file("both.tar");
    host.other("tar").arg("-cf").arg(&file).arg("-C").arg(&layout).arg(".").ok();
    let from = |choice: &str| format!("oci-archive:{}{choice}", file.display());
    let said = image(&host, &["import", &from(""), "--name", "x"]).fails(1);
    said.complains("choose one by adding \":NAME\" to the source: a, b, base, empty");
    import_from(&host, &from(":b"), "from-archive");
    import_from(&host, &images.source("b"), "from-layout");
    assert_eq!(inspect(&host, "from-archive")["id"], inspect(&host, "from-layout")["id"]);
    let said = image(&host, &["import", &from(":nothing"), "--name", "x"]).fails(1);
    said.complains("there is no image \"nothing\" in it; there is a, b, base, empty");
    assert_eq!(names(&host), ["from-archive:latest", "from-layout:latest"]);
}

#[test]
fn what_is_no_archive_is_said_so_and_leaves_nothing() {
    let images = some_images(10_000);
    let host = Host::bare();
    // skopeo's order of files varies, so that the half of an archive varies too.
    let file = host.file("archive");
    host.other("tar").args(["--sort=name", "-cf"]).arg(&file).arg("-C").arg(images.layout()).arg(".").ok();
    let tar = fs::read(&file).unwrap();
    let gzip = fs::read(gzipped(&file)).unwrap();
    let zstd = fs::read(zstd_compressed(&file)).unwrap();
    let half = |bytes: &[u8]| bytes[..bytes.len() / 2].to_vec();
    let mut turned = gzip.clone();
    let middle = turned.len() / 2;
    turned[middle] ^= 0x10;
    let cases: [(&str, Vec<u8>, &str); 9] = [
        ("half a tar", half(&tar), "is not a readable archive"),
        ("half a gzip", half(&gzip), "cannot be decompressed"),
        ("half a zstd", half(&zstd), "cannot be decompressed"),
        ("a flipped gzip", turned, "cannot be decompressed"),
        ("bzip2", b"BZh91AY&SY".to_vec(), "decompress it first: bunzip2 FILE"),
        ("xz", b"\xfd7zXZ\0\0\0".to_vec(), "decompress it first: unxz FILE"),
        ("text", b"not an archive".repeat(100), "is not a readable archive"),
        ("nothing", Vec::new(), "not an OCI image layout"),
        ("an empty tar", vec![0; 10_240], "not an OCI image layout"),
    ];
    for (what, bytes, problem) in cases {
        let place = host.file("broken");
        fs::write(&place, bytes).unwrap();
        let from = format!("oci-archive:{}", place.display());
        let said = image(&host, &["import", &from, "--name", "x"]).run();
        assert_eq!((said.code, said.stdout.as_str()), (1, ""), "{what}: {}", said.transcript());
        said.complains(problem).complains(place.to_str().unwrap());
        let left = files(&store(&host));
        assert!(left.iter().all(|name| ["lock", "index.json"].contains(&name.as_str())), "{what}: {left:?}");
    }
    for (place, problem) in [(host.file("missing"), "No such file"), (host.file(""), "is not a regular file")]
    {
        let from = format!("docker-archive:{}", place.display());
        image(&host, &["import", &from, "--name", "x"]).fails(1).complains(problem);
    }
}
