//! The exported form is the same image: other programs and this one can read it.

use crate::{MIB, blob, image, import, import_from, inspect, rootfs, some_images};
use magikvm_tests::Host;
use magikvm_tests::images::{Images, unpack};
use magikvm_tests::layout::digest;
use magikvm_tests::tools::{Mounted, assert_same, files, run};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

/// What the store adds to an image that lacks it.
const ADDED: [&str; 8] = ["proc", "dev", "sys", "etc", "tmp", "etc/hosts", "etc/hostname", "etc/resolv.conf"];
/// Every form, with the path behind the colon.
const FORMS: [&str; 5] = ["oci", "oci-archive", "docker-archive", "erofs", "dir"];

/// A host with the image `team/app:1` of two gzip layers, the second of which removes, replaces and links.
fn with_image() -> (Host, Images) {
    let images = Images::new();
    images.empty("empty");
    images.umoci(
        "empty",
        "app",
        &[
            &|root: &Path| {
                fs::create_dir_all(root.join("etc")).unwrap();
                fs::write(root.join("etc/gone"), "gone").unwrap();
                fs::write(root.join("kept"), "kept".repeat(10_000)).unwrap();
            },
            &|root: &Path| {
                fs::remove_file(root.join("etc/gone")).unwrap();
                fs::hard_link(root.join("kept"), root.join("other")).unwrap();
                symlink("kept", root.join("link")).unwrap();
            },
        ],
    );
    let host = Host::bare();
    import_from(&host, &images.source("app"), "team/app:1");
    (host, images)
}

/// `FORM:PATH`, and the files at the path.
fn target(host: &Host, form: &str) -> String {
    format!("{form}:{}", host.file(form).display())
}

fn skopeo(host: &Host, args: &[&str]) -> String {
    host.other("skopeo").arg("--insecure-policy").args(args).ok().stdout
}

/// An image that is imported into another store is the same one.
#[track_caller]
fn assert_comes_back(host: &Host, source: &str, with_manifest: bool) {
    let there = Host::bare();
    import_from(&there, source, "team/app:1");
    image(&there, &["verify", "--all"]).ok();
    let (ours, theirs) = (inspect(host, "team/app:1"), inspect(&there, "team/app:1"));
    for field in ["id", "rootfsSha256", "config", "names"] {
        assert_eq!(ours[field], theirs[field], "{field} of {source}");
    }
    if with_manifest {
        for field in ["manifest", "layers", "digests"] {
            assert_eq!(ours[field], theirs[field], "{field} of {source}");
        }
    }
}

#[test]
fn layouts_and_their_archives_keep_every_byte() {
    let (host, images) = with_image();
    let one = inspect(&host, "team/app:1");
    let manifest = one["manifest"]["digest"].as_str().unwrap();
    for form in ["oci", "oci-archive"] {
        let to = target(&host, form);
        let said = image(&host, &["export", "team/app:1", &to]).ok();
        assert_eq!(said.stdout, format!("{} {to}\n", one["id"].as_str().unwrap()));
        assert_eq!(said.stderr, "");
        let from = format!("{to}:1");
        let seen: Value = serde_json::from_str(&skopeo(&host, &["inspect", &from])).unwrap();
        assert_eq!(seen["Digest"].as_str(), Some(manifest));
        // skopeo checks every blob that it copies.
        let copy = host.file("copy");
        skopeo(&host, &["copy", "-q", "--preserve-digests", &from, &format!("oci:{}:1", copy.display())]);
        let ours = unpack(&copy, "1", &host.file("bundle"));
        let theirs = images.unpack("app", &host.file("expected"));
        assert_same(&theirs, &ours, &[]);
        for dir in [copy, host.file("bundle"), host.file("expected")] {
            fs::remove_dir_all(dir).unwrap();
        }
        assert_comes_back(&host, &to, true);
        assert_comes_back(&host, &from, true);
    }
    let layout = host.file("oci");
    let blobs = files(&layout.join("blobs"));
    assert_eq!(blobs.len(), 4, "configuration, manifest and two layers: {blobs:?}");
    for name in blobs {
        let bytes = fs::read(layout.join("blobs").join(&name)).unwrap();
        assert_eq!(digest(&bytes), name.replace('/', ":"));
    }
    run("umoci", &[&"stat", &"--image", &format!("{}:1", layout.display())]);
}

#[test]
fn another_tag_may_be_given_and_an_image_without_a_name_has_none() {
    let (host, _) = with_image();
    let id = inspect(&host, "team/app:1")["id"].as_str().unwrap().to_owned();
    for form in ["oci", "oci-archive"] {
        let to = target(&host, form);
        image(&host, &["export", &id[7..19], &format!("{to}:v2")]).ok();
        skopeo(&host, &["inspect", &format!("{to}:v2")]);
        assert_comes_back(&host, &format!("{to}:v2"), true);
        let there = Host::bare();
        let wrong = image(&there, &["import", &format!("{to}:1"), "--name", "x"]).fails(1);
        wrong.complains("there is no image \"1\" in it; there is v2");
    }
}

#[test]
fn what_docker_loads_has_the_same_id() {
    let (host, _) = with_image();
    let to = target(&host, "docker-archive");
    image(&host, &["export", "team/app:1", &to]).ok();
    let config = skopeo(&host, &["inspect", "--raw", "--config", &to]);
    assert_eq!(inspect(&host, "team/app:1")["id"].as_str(), Some(digest(config.as_bytes()).as_str()));
    let listed = host.other("tar").arg("-xOf").args([host.file("docker-archive")]).arg("manifest.json").ok();
    let listed: Value = serde_json::from_str(&listed.stdout).unwrap();
    assert_eq!(listed[0]["RepoTags"], json!(["team/app:1"]));
    assert_comes_back(&host, &to, false);
    assert_comes_back(&host, &format!("{to}:team/app:1"), false);
    let copy = host.file("copy");
    skopeo(&host, &["copy", "-q", &to, &format!("oci:{}:1", copy.display())]);
    let there = Host::bare();
    import_from(&there, &format!("oci:{}:1", copy.display()), "x");
    assert_eq!(inspect(&there, "x")["rootfsSha256"], inspect(&host, "team/app:1")["rootfsSha256"]);
}

#[test]
fn a_root_file_system_is_written_as_it_is_and_as_files() {
    let (host, images) = with_image();
    image(&host, &["export", "team/app:1", &target(&host, "erofs")]).ok();
    let bytes = fs::read(host.file("erofs")).unwrap();
    assert_eq!(inspect(&host, "team/app:1")["rootfsSha256"].as_str(), Some(digest(&bytes).as_str()));
    let expected = images.unpack("app", &host.file("bundle"));
    assert_same(&expected, Mounted::erofs(&host.file("erofs")).path(), &ADDED);
    image(&host, &["export", "team/app:1", &target(&host, "dir")]).ok();
    assert_same(&expected, &host.file("dir"), &ADDED);
}

/// Layers that are not compressed, one of them twice, and no layer at all.
#[test]
fn odd_images_are_written_too() {
    let host = Host::bare();
    let id = import(&host, "team/app:1", "x");
    let images = Images::new();
    images.empty("none");
    images.noise("none", "one", 1, 1000);
    images.noise("one", "twice", 1, 1000);
    for form in &FORMS[..3] {
        let to = target(&host, form);
        image(&host, &["export", &id, &to]).ok();
        assert_comes_back(&host, &to, *form != "docker-archive");
        for tag in ["none", "twice"] {
            let other = Host::bare();
            import_from(&other, &images.source(tag), "team/app:1");
            let to = target(&other, form);
            image(&other, &["export", "team/app:1", &to]).ok();
            assert_comes_back(&other, &to, *form != "docker-archive");
        }
    }
}

#[test]
fn a_place_may_be_relative_to_where_one_is() {
    let (host, _) = with_image();
    for (number, form) in FORMS.iter().enumerate() {
        for place in [format!("bare-{number}"), format!("files/below-{number}"), format!("./dot-{number}")] {
            image(&host, &["export", "team/app:1", &format!("{form}:{place}")]).ok();
            assert!(host.root().parent().unwrap().join(&place).exists(), "{form}:{place}");
        }
    }
}

#[test]
fn what_is_there_already_is_not_touched() {
    let (host, _) = with_image();
    let place = host.file("taken");
    for form in FORMS {
        let to = format!("{form}:{}", place.display());
        let export = || image(&host, &["export", "team/app:1", &to]).fails(1);
        fs::write(&place, "mine").unwrap();
        export().complains("already exists").complains("Hint: Choose another path, for example `");
        assert_eq!(fs::read_to_string(&place).unwrap(), "mine");
        fs::remove_file(&place).unwrap();

        fs::create_dir(&place).unwrap();
        export().complains("already exists");
        assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
        fs::remove_dir(&place).unwrap();

        symlink(host.file("nowhere"), &place).unwrap();
        export().complains("already exists");
        assert!(place.is_symlink() && !host.file("nowhere").exists());
        fs::remove_file(&place).unwrap();
    }
    assert_eq!(fs::read_dir(host.file("")).unwrap().count(), 0);
}

#[test]
fn a_place_that_cannot_be_is_said_so() {
    let (host, _) = with_image();
    fs::write(host.file("file"), "").unwrap();
    for form in FORMS {
        for place in ["missing/x", "file/x"] {
            let to = format!("{form}:{}", host.file(place).display());
            let said = image(&host, &["export", "team/app:1", &to]).run();
            assert!(matches!(said.code, 1 | 3), "{}", said.transcript());
            said.complains(&to).complains(host.file(place).parent().unwrap().to_str().unwrap());
        }
        image(&host, &["export", "nothing", &target(&host, form)]).fails(1).complains("no image nothing");
    }
    assert_eq!(files(&host.file("")), ["file"]);
}

/// Interrupted at moments spread over the whole export: either everything is there or nothing.
#[test]
fn an_interruption_leaves_all_or_nothing() {
    let images = some_images(8 * MIB);
    let host = Host::bare();
    import_from(&host, &images.source("a"), "a");
    let mut interrupted = 0;
    for form in FORMS {
        let to = target(&host, form);
        let place = host.file(form);
        let begun = Instant::now();
        image(&host, &["export", "a", &to]).ok();
        let whole = begun.elapsed();
        for moment in 1..8 {
            remove(&place);
            let running = image(&host, &["export", "a", &to]).spawn();
            // This is not a wait for an event: the moment is the variable.
            std::thread::sleep(whole * moment / 8);
            running.signal(Signal::SIGINT);
            let said = running.wait();
            match said.code {
                0 => assert!(place.exists()),
                130 => {
                    interrupted += 1;
                    assert_eq!(fs::read_dir(host.file("")).unwrap().count(), 0, "{form}, moment {moment}");
                }
                _ => panic!("{form}, moment {moment}: {}", said.transcript()),
            }
        }
        remove(&place);
    }
    assert!(interrupted >= 5, "{interrupted}");
    image(&host, &["verify", "--all"]).ok();
    assert!(files(&crate::store(&host)).iter().all(|name| !name.contains("tmp")));
}

fn remove(place: &Path) {
    match place.is_dir() {
        true => fs::remove_dir_all(place).unwrap(),
        false => drop(fs::remove_file(place)),
    }
}

#[test]
fn a_full_disk_is_said_so_and_leaves_nothing() {
    let images = some_images(2 * MIB);
    let host = Host::bare();
    import_from(&host, &images.source("a"), "a");
    for form in FORMS {
        for size in ["64k", "1m", "3m"] {
            let disk = Mounted::tmpfs(size);
            let to = format!("{form}:{}", disk.path().join("x").display());
            let said = image(&host, &["export", "a", &to]).fails(3).complains("No space left on device");
            said.complains(&to);
            assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0, "{form} {size}");
        }
        let disk = Mounted::tmpfs("16m");
        image(&host, &["export", "a", &format!("{form}:{}", disk.path().join("x").display())]).ok();
    }
}

/// A damaged image is not exported.
#[test]
fn a_damaged_layer_is_not_written_out() {
    let (host, _) = with_image();
    let one = inspect(&host, "team/app:1");
    let path = blob(&host, one["layers"][1]["digest"].as_str().unwrap());
    let good = fs::read(&path).unwrap();
    let mut flipped = good.clone();
    flipped[good.len() / 2] ^= 1;
    for damaged in [Some(flipped), Some(good[..good.len() - 1].to_vec()), None] {
        fs::remove_file(&path).unwrap();
        if let Some(bytes) = &damaged {
            fs::write(&path, bytes).unwrap();
        }
        for form in &FORMS[..3] {
            let said = image(&host, &["export", "team/app:1", &target(&host, form)]).run();
            assert!(matches!(said.code, 1 | 3), "{form}: {}", said.transcript());
            said.complains(path.file_name().unwrap().to_str().unwrap()).complains("Hint");
            assert_eq!(fs::read_dir(host.file("")).unwrap().count(), 0, "{form}");
        }
        fs::write(&path, &good).unwrap();
    }
    let path = rootfs(&host, "team/app:1");
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, bytes).unwrap();
    let said = image(&host, &["export", "team/app:1", &target(&host, "erofs")]).fails(3);
    said.complains(path.to_str().unwrap()).complains("Hint");
    assert_eq!(fs::read_dir(host.file("")).unwrap().count(), 0);
}
