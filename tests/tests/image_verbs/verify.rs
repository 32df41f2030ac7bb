//! Every damage to a file of the store is found and reported with the file's name.

use crate::{blob, image, import, inspect, rootfs, some_images, store};
use magikvm_tests::tools::files;
use magikvm_tests::{Host, Pod};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

#[derive(Debug, Clone, Copy)]
enum Blow {
    FirstBit,
    LastBit,
    Shorter,
    Longer,
    Empty,
    Gone,
}

impl Blow {
    const ALL: [Self; 6] =
        [Self::FirstBit, Self::LastBit, Self::Shorter, Self::Longer, Self::Empty, Self::Gone];

    fn strike(self, path: &Path) {
        let mut bytes = fs::read(path).unwrap();
        match self {
            Self::FirstBit => bytes[0] ^= 1,
            Self::LastBit => *bytes.last_mut().unwrap() ^= 0x80,
            Self::Shorter => drop(bytes.pop()),
            Self::Longer => bytes.push(0),
            Self::Empty => bytes.clear(),
            Self::Gone => return fs::remove_file(path).unwrap(),
        }
        fs::write(path, bytes).unwrap();
    }
}

/// Every file of an image: configuration, manifest, layers, root file system.
fn parts(host: &Host, name: &str) -> Vec<PathBuf> {
    let one = inspect(host, name);
    let id = one["id"].as_str().unwrap().trim_start_matches("sha256:").to_owned();
    let mut parts = vec![store(host).join("configs").join(id + ".json"), rootfs(host, name)];
    let blobs = one["layers"].as_array().unwrap().iter().chain([&one["manifest"]]);
    parts.extend(blobs.map(|part| blob(host, part["digest"].as_str().unwrap())));
    parts
}

/// A FIFO without a writer or a device without an end in the place of any file hangs nothing.
#[test]
fn what_is_not_a_file_is_damage_and_hangs_nothing() {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let images = some_images(10_000);
    let host = Host::bare();
    let bring = || crate::import_from(&host, &images.source("a"), "a");
    bring();
    let parts = parts(&host, "a");
    let device = |path: &Path| mknod(path, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap();
    let fifo = |path: &Path| nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap();
    let socket = |path: &Path| mknod(path, SFlag::S_IFSOCK, Mode::S_IRWXU, 0).unwrap();
    let directory = |path: &Path| fs::create_dir(path).unwrap();
    let others: [&dyn Fn(&Path); 4] = [&fifo, &device, &socket, &directory];
    for part in &parts {
        for other in others {
            fs::remove_file(part).unwrap();
            other(part);
            image(&host, &["verify", "a"])
                .fails(1)
                .prints(&format!("{}: it is not a regular file", part.display()));
            if part.is_dir() {
                fs::remove_dir(part).unwrap();
            }
            bring();
            image(&host, &["verify", "a"]).ok();
        }
    }
    fs::remove_file(&parts[1]).unwrap();
    fifo(&parts[1]);
    let leftover = store(&host).join("blobs/.tmp-x");
    fifo(&leftover);
    image(&host, &["export", "a", &format!("erofs:{}", host.file("out").display())])
        .fails(3)
        .complains("it is not a regular file");
    image(&host, &["df"]).ok();
    image(&host, &["prune", "--all"]).ok();
    assert!(!leftover.exists());
    let place = host.file("fifo");
    fifo(&place);
    for form in ["oci", "oci-archive", "docker-archive"] {
        image(&host, &["import", &format!("{form}:{}", place.display()), "--name", "x"]).fails(1);
    }
    let index = store(&host).join("index.json");
    fs::remove_file(&index).unwrap();
    fifo(&index);
    image(&host, &["ls"]).fails(3).complains("it is not a regular file");
}

#[test]
fn damage_is_found_in_every_part_and_can_be_mended() {
    let images = some_images(10_000);
    let host = Host::bare();
    let bring = || crate::import_from(&host, &images.source("a"), "a");
    let id = bring();
    let good = import(&host, "good", "unharmed");
    let whole = files(&store(&host));
    assert_eq!(parts(&host, "a").len(), 5);
    for part in 0..5 {
        for blow in Blow::ALL {
            let path = parts(&host, "a")[part].clone();
            blow.strike(&path);
            let what = format!("{blow:?} of {}", path.display());
            let said = image(&host, &["verify", "a"]).fails(1).complains("Hint: Remove a damaged image");
            assert_eq!(said.stdout.lines().count(), 1, "{what}: {}", said.stdout);
            assert!(
                said.stdout.starts_with(&format!("a: {}: it ", path.display())),
                "{what}: {}",
                said.stdout
            );

            let said = image(&host, &["verify", "--all", "-o", "json"]).fails(1);
            let found: Value = serde_json::from_str(&said.stdout).unwrap();
            let of = |name: &str| found.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
            assert_eq!(of("a:latest")["damages"][0]["path"].as_str(), path.to_str(), "{what}");
            assert_eq!(of("a:latest")["id"], id.as_str());
            assert_eq!(of("good:latest")["damages"].as_array().unwrap().len(), 0, "{what}");
            image(&host, &["verify", "good"]).ok().prints(&format!("good: unmodified ({good})\n"));

            // The hint's command.
            image(&host, &["rm", "a"]).ok();
            assert_eq!(bring(), id);
            image(&host, &["verify", "--all"]).ok();
            assert_eq!(files(&store(&host)), whole, "{what}");
        }
    }
}

/// Damage that only another pull repairs, without removing the image first.
#[test]
fn bringing_an_image_again_replaces_damaged_layers() {
    let images = some_images(10_000);
    let host = Host::bare();
    let bring = || crate::import_from(&host, &images.source("a"), "a");
    bring();
    let layers = &parts(&host, "a")[2..];
    for path in layers {
        Blow::LastBit.strike(path);
        bring();
        image(&host, &["verify", "a"]).ok();
    }
}

#[test]
fn what_is_not_there_is_said_beside_the_others() {
    let host = Host::bare();
    import(&host, "a", "a");
    let said = image(&host, &["verify", "missing", "a"]).fails(1).complains("there is no image missing");
    assert!(said.stdout.starts_with("a: unmodified ("), "{}", said.stdout);
    let said = image(&host, &["verify", "missing", "a", "-o", "json"]).fails(1);
    assert_eq!(serde_json::from_str::<Value>(&said.stdout).unwrap().as_array().unwrap().len(), 1);
    let empty = Host::bare();
    assert_eq!(image(&empty, &["verify", "--all"]).ok().stdout, "");
}

#[test]
fn an_image_that_cannot_be_looked_at_does_not_keep_others_from_it() {
    let host = Host::bare();
    let id = import(&host, "bad", "bad");
    import(&host, "good", "good");
    let config = parts(&host, "bad")[0].clone();
    fs::remove_file(&config).unwrap();
    // Not even root can open a symlink loop.
    std::os::unix::fs::symlink(&config, &config).unwrap();
    for args in [&["verify", "--all"][..], &["verify", "bad", "good"], &["verify", "good", &id]] {
        let said = image(&host, args).fails(3).complains(config.to_str().unwrap());
        assert!(said.stdout.starts_with("good") && said.stdout.lines().count() == 1, "{}", said.stdout);
    }
}

/// A damaged image is not run.
#[test]
fn a_shortened_root_file_system_and_a_changed_configuration_are_not_used() {
    let host = Host::fake();
    let pod = Pod::simple("victim").with("imagePullPolicy", "Never");
    for part in [0, 1] {
        let path = parts(&host, "test/app:1")[part].clone();
        let good = fs::read(&path).unwrap();
        Blow::Shorter.strike(&path);
        let said = host.run_fake(&pod, "run").arg("-d");
        match part {
            0 => drop(said.fails(3).complains("damaged").complains(path.to_str().unwrap())),
            // It can be pulled again.
            _ => drop(
                said.fails(1).complains("is in the store, but files of it are missing").complains("Hint: "),
            ),
        }
        fs::write(&path, good).unwrap();
    }
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "");
    host.start_fake(&pod, "run");
}
