//! One store and many users: names, removal, processes at the same time, kills, full disks, other users.

use crate::make::{Layout, Packing, Tar};
use crate::tools::{Mounted, run};
use crate::{Store, chain, files};
use magikvm::image::{
    BringOptions, Cancel, ImageError, ImageStore, Owners, Progress, Removed, RootfsCompression,
};
use magikvm_tests::wait::until;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

const IMPORTER: &str = env!("CARGO_BIN_EXE_import-image");

fn small(content: &str) -> Layout {
    Layout::of(Packing::Gzip, &[Tar::default().file("file", content).end()])
}

/// Some megabytes that do not compress.
fn large(layers: usize) -> Layout {
    let mut state = 1u64;
    let mut noise = || {
        let mut bytes = Vec::with_capacity(3 << 20);
        while bytes.len() < 3 << 20 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bytes.extend(state.to_be_bytes());
        }
        bytes
    };
    let layers: Vec<Vec<u8>> = (0..layers)
        .map(|n| {
            let (name, data) = (format!("noise-{n}"), noise());
            let item = crate::make::Item { name: name.as_bytes(), data: &data, ..Default::default() };
            Tar::default().item(&item).end()
        })
        .collect();
    Layout::of(Packing::Plain, &layers)
}

#[test]
fn names_come_and_go_and_the_image_goes_with_its_last_one() {
    let (store, layout) = (Store::new(), small("a"));
    for name in ["one", "one:2", "ghcr.io/x/two"] {
        store.import(&layout.source(), name).unwrap();
    }
    let remove = |name: &str| store.store.remove(name);
    let list = store.store.list().unwrap();
    assert_eq!(list.len(), 1);
    let names: Vec<_> = list[0].names.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["docker.io/library/one:2", "docker.io/library/one:latest", "ghcr.io/x/two:latest"]);
    assert_eq!(remove("one").unwrap(), Removed::Name);
    assert_eq!(remove("one:2").unwrap(), Removed::Name);

    let missing = remove("one").unwrap_err();
    assert_eq!(missing.to_string(), "there is no image one:latest");
    assert!(missing.hint().unwrap().contains("magikvm image import SOURCE --name one:latest"), "{missing:?}");
    let near = store.store.resolve(&"ghcr.io/x/tow".parse().unwrap()).unwrap_err();
    assert!(near.hint().unwrap().contains("Did you mean ghcr.io/x/two:latest?"), "{near:?}");

    let image = store.resolve("ghcr.io/x/two");
    let error = remove("ghcr.io/x/two").unwrap_err();
    assert!(matches!(error, ImageError::InUse { .. }) && error.hint().is_some(), "{error}");
    assert_eq!(store.resolve("ghcr.io/x/two").id, image.id, "a refused removal changes nothing");
    let size = image.rootfs.size_bytes;
    drop(image);
    assert!(
        matches!(remove("ghcr.io/x/two").unwrap(), Removed::Image { freed_bytes, .. } if freed_bytes > size)
    );
    assert_eq!(files(&store.root()), ["index.json", "lock"]);
    assert!(store.store.list().unwrap().is_empty());
}

#[test]
fn a_name_moves_to_another_image_and_the_old_one_stays_while_it_is_used() {
    let (store, a, b) = (Store::new(), small("a"), small("b"));
    let old = store.import(&a.source(), "name").unwrap();
    let used = store.resolve("name");
    let new = store.import(&b.source(), "name").unwrap();
    assert_ne!(old.id, new.id);
    assert_eq!(store.resolve("name").id, new.id);
    let nameless = store.store.list().unwrap().pop().unwrap();
    assert_eq!((nameless.id, nameless.names.len()), (old.id, 0));
    assert!(used.rootfs.path.exists());
    assert_eq!(store.store.resolve_id(&old.id).unwrap().id, old.id);
    drop(used);
    store.import(&b.source(), "other").unwrap();
    assert_eq!(store.store.list().unwrap().len(), 1, "the nameless one went with the next import");
    assert_eq!(files(&store.root()).len(), 6);
}

#[test]
fn images_with_the_same_layers_share_one_file() {
    let (store, a) = (Store::new(), small("a"));
    let mut b = small("a");
    b.config["config"]["User"] = "1000".into();
    b.save();
    let reused = AtomicUsize::new(0);
    store.import(&a.source(), "a").unwrap();
    store
        .store
        .import(&b.source(), &"b".parse().unwrap(), &BringOptions::default(), &|p| {
            reused.fetch_add(usize::from(p == Progress::Reused), Ordering::SeqCst);
        })
        .unwrap();
    assert_eq!(reused.load(Ordering::SeqCst), 1);
    let (a, b) = (store.resolve("a"), store.resolve("b"));
    assert_ne!(a.id, b.id);
    assert_eq!((a.rootfs.key, &a.rootfs.path), (b.rootfs.key, &b.rootfs.path));
    assert_eq!(b.config.user, "1000");
    let rootfs = fs::metadata(&b.rootfs.path).unwrap().len();
    assert!(matches!(store.store.remove("a"), Err(ImageError::InUse { .. })));
    drop(a);
    assert!(
        matches!(store.store.remove("a").unwrap(), Removed::Image { freed_bytes, .. } if freed_bytes < rootfs)
    );
    assert!(b.rootfs.path.exists());
}

#[test]
fn many_at_once_build_once() {
    let (store, layout) = (Store::new(), large(2));
    let baked = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for n in 0..8 {
            let (root, layout, baked, results) = (store.root(), &layout, &baked, &results);
            scope.spawn(move || {
                let own = ImageStore::open(&root).unwrap();
                let name = format!("name-{}", n % 4).parse().unwrap();
                let record = own.import(&layout.source(), &name, &BringOptions::default(), &|p| {
                    baked.fetch_add(usize::from(p == Progress::Finishing), Ordering::SeqCst);
                });
                results.lock().unwrap().push(record.unwrap().rootfs_sha256);
            });
        }
    });
    let results = results.into_inner().unwrap();
    assert_eq!(results.len(), 8);
    assert!(results.iter().all(|one| *one == results[0]));
    assert_eq!(baked.load(Ordering::SeqCst), 1);
    assert_eq!(store.store.list().unwrap()[0].names.len(), 4);
    assert_eq!(files(&store.root()).len(), 7, "{:?}", files(&store.root()));
}

/// Imports, removals, look-ups and openings of the same names from many threads.
#[test]
fn the_store_survives_everybody_doing_everything() {
    let store = Store::new();
    let layouts = [small("a"), small("b"), small("c")];
    std::thread::scope(|scope| {
        for n in 0..6 {
            let (root, layouts) = (store.root(), &layouts);
            scope.spawn(move || {
                for round in 0..15 {
                    let own = ImageStore::open(&root).unwrap();
                    let name = format!("n{}", (n + round) % 2).parse().unwrap();
                    own.import(&layouts[(n * round) % 3].source(), &name, &BringOptions::default(), &|_| {})
                        .unwrap();
                    match own.resolve(&name) {
                        Ok(image) => assert!(
                            magikvm::image::Digest::of(&fs::read(&image.rootfs.path).unwrap())
                                == image.record.rootfs_sha256
                        ),
                        Err(ImageError::NotFound { .. }) => {}
                        Err(error) => panic!("{}", chain(&error)),
                    }
                    match own.remove(&name.to_string()) {
                        Ok(_) | Err(ImageError::NotFound { .. } | ImageError::InUse { .. }) => {}
                        Err(error) => panic!("{}", chain(&error)),
                    }
                }
            });
        }
    });
    let own = ImageStore::open(&store.root()).unwrap();
    for record in own.list().unwrap() {
        for name in record.names {
            own.remove(&name.to_string()).unwrap();
        }
    }
    own.import(&layouts[0].source(), &"x".parse().unwrap(), &BringOptions::default(), &|_| {}).unwrap();
    own.remove("x").unwrap();
    assert_eq!(files(&store.root()), ["index.json", "lock"]);
}

#[test]
fn a_killed_import_leaves_nothing_that_is_not_swept() {
    let layout = large(3);
    let reference = Store::new();
    let expected = reference.import(&layout.source(), "x").unwrap().rootfs_sha256;
    for (killed, step) in (1..12).chain((12..1000).step_by(9)).enumerate() {
        let store = Store::new();
        store.import(&small("kept").source(), "kept").unwrap();
        let before = files(&store.root());
        let status = Command::new(IMPORTER)
            .args([
                store.root().as_os_str(),
                layout.source().to_string().as_ref(),
                "x".as_ref(),
                step.to_string().as_ref(),
            ])
            .status()
            .unwrap();
        if status.success() {
            assert!(killed >= 5, "{killed}");
            return;
        }
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9), "{status}");
        let again = ImageStore::open(&store.root()).unwrap();
        again.sweep().unwrap();
        assert_eq!(files(&store.root()), before, "step {step}");
        assert_eq!(again.list().unwrap().len(), 1);
        assert_eq!(store.import(&layout.source(), "x").unwrap().rootfs_sha256, expected, "step {step}");
    }
    panic!("the import never came to its end");
}

#[test]
fn a_sweep_leaves_what_is_being_made() {
    let (store, layout) = (Store::new(), large(3));
    let swept = AtomicUsize::new(0);
    store
        .store
        .import(&layout.source(), &"x".parse().unwrap(), &BringOptions::default(), &|_| {
            ImageStore::open(&store.root()).unwrap().sweep().unwrap();
            swept.fetch_add(1, Ordering::SeqCst);
        })
        .unwrap();
    assert!(swept.load(Ordering::SeqCst) > 3);
    drop(Mounted::erofs(&store.resolve("x").rootfs.path));
}

/// Remains of a kill between two renames: a root file system, a configuration or a lock that the index does not list.
#[test]
fn orphans_are_swept_and_damage_is_told() {
    let store = Store::new();
    let record = store.import(&small("a").source(), "a").unwrap();
    let before = files(&store.root());
    let name = "0".repeat(64);
    for orphan in [
        format!("rootfs/{name}.erofs"),
        format!("configs/{name}.json"),
        format!("locks/{name}.lock"),
        format!("locks/blob-{name}.lock"),
        format!("blobs/{name}"),
        "blobs/.tmp-abc".into(),
        "rootfs/.tmp-abc".into(),
    ] {
        fs::write(store.root().join(orphan), "x").unwrap();
    }
    ImageStore::open(&store.root()).unwrap().sweep().unwrap();
    assert_eq!(files(&store.root()), before);

    let config = store.root().join(format!("configs/{}.json", record.id.hex()));
    fs::write(config, "{}").unwrap();
    let error = store.store.resolve(&"a".parse().unwrap()).unwrap_err();
    assert!(error.to_string().contains("is damaged"), "{error}");
    store.import(&small("a").source(), "a").unwrap();
    let rootfs = store.resolve("a").rootfs.path;
    fs::OpenOptions::new().append(true).open(&rootfs).unwrap().set_len(4096).unwrap();
    assert!(
        store.store.resolve(&"a".parse().unwrap()).unwrap_err().to_string().contains("its size has changed")
    );
    store.import(&small("a").source(), "a").unwrap();
    drop(Mounted::erofs(&store.resolve("a").rootfs.path));
    fs::write(store.root().join("index.json"), r#"{"schema":99}"#).unwrap();
    assert!(store.store.list().unwrap_err().to_string().contains("newer magikvm"));
    fs::write(store.root().join("index.json"), "{").unwrap();
    assert!(store.store.list().unwrap_err().to_string().contains("cannot be read"));
}

#[test]
fn a_full_disk_is_an_error_and_leaves_nothing() {
    let disk = Mounted::tmpfs("5m");
    let store = ImageStore::open(&disk.path().join("images")).unwrap();
    store.import(&small("a").source(), &"small".parse().unwrap(), &BringOptions::default(), &|_| {}).unwrap();
    let before = files(disk.path());
    let error = chain(
        &store
            .import(&large(3).source(), &"large".parse().unwrap(), &BringOptions::default(), &|_| {})
            .unwrap_err(),
    );
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(files(disk.path()), before);
    assert_eq!(store.list().unwrap().len(), 1);
}

/// Importing owners, devices and capabilities needs no privileges.
#[test]
fn another_user_builds_the_same_bytes() {
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let item =
        |name: &'static [u8]| crate::make::Item { name, owner: (0, 5), mode: 0o4755, ..Default::default() };
    let tar = Tar::default()
        .item(&crate::make::Item { kind: b'3', device: (1, 3), ..item(b"null") })
        .item(&crate::make::Item {
            pax: vec![("SCHILY.xattr.security.capability", &capability)],
            ..item(b"capable")
        })
        .end();
    let layout = Layout::of(Packing::Zstd, &[tar]);
    let expected = Store::new().import(&layout.source(), "x").unwrap().rootfs_sha256.to_string();

    // Everything in a directory that the other user can reach.
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path(), layout.dir.path()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let importer = dir.path().join("importer");
    fs::copy(IMPORTER, &importer).unwrap();
    let home = dir.path().join("home");
    fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(65_534), Some(65_534)).unwrap();
    let output = Command::new(&importer)
        .args([home.join("images").as_os_str(), layout.source().to_string().as_ref(), "x".as_ref()])
        .uid(65_534)
        .gid(65_534)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), expected);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&home.join("images")), 0o700);
    let rootfs = fs::read_dir(home.join("images/rootfs")).unwrap().next().unwrap().unwrap().path();
    assert_eq!(mode(&rootfs), 0o644);
    run("fsck.erofs", &[&rootfs]);
}

#[test]
fn a_directory_is_made_once_stays_while_it_is_used_and_goes_with_its_image() {
    let (store, layout) = (Store::new(), large(2));
    store.import(&layout.source(), "x").unwrap();
    let image = store.resolve("x");
    let cancel = Cancel::new();
    let directory = || store.store.directory(&image, Owners::AsInImage, &cancel, &|_| {}).unwrap();
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(directory)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert_eq!(made.iter().filter(|one| one.summary.is_some()).count(), 1);
    let path = made[0].path.clone();
    assert!(made.iter().all(|one| one.path == path));
    let mounted = Mounted::erofs(&image.rootfs.path);
    assert_eq!(crate::tools::look(&path).len(), crate::tools::look(mounted.path()).len());
    drop((mounted, image));

    let orphan = store.root().join("dirs").join(format!("{}-mine", "0".repeat(64)));
    let staged = store.root().join("dirs/.tmp-dead");
    for dir in [&orphan, &staged] {
        fs::create_dir_all(dir.join("rootfs/a")).unwrap();
    }
    store.store.sweep().unwrap();
    assert!(path.exists() && !orphan.exists() && !staged.exists());

    assert!(matches!(store.store.remove("x"), Err(ImageError::InUse { .. })));
    drop(made);
    // An earlier removal by another process is not in the way.
    let name = path.parent().unwrap().file_name().unwrap().to_str().unwrap();
    let doomed = store.root().join("dirs").join(format!(".tmp-{name}"));
    fs::create_dir_all(doomed.join("rootfs/a")).unwrap();
    let removing = fs::File::open(&doomed).unwrap();
    removing.lock().unwrap();
    store.store.remove("x").unwrap();
    assert!(!path.exists());
    drop(removing);
    store.store.sweep().unwrap();
    assert_eq!(files(&store.root()), ["index.json", "lock"]);
}

/// A sweep between two steps of a process that makes a directory removes nothing of that process.
#[test]
fn directories_are_made_beside_sweeps() {
    let (store, layout) = (Store::new(), small("a"));
    store.import(&layout.source(), "x").unwrap();
    let image = store.resolve("x");
    let over = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while over.load(Ordering::Relaxed) == 0 {
                    store.store.sweep().unwrap();
                }
            });
        }
        for _ in 0..100 {
            let made = store.store.directory(&image, Owners::AsInImage, &Cancel::new(), &|_| {}).unwrap();
            let path = made.path.clone();
            drop(made);
            fs::remove_dir_all(path.parent().unwrap()).unwrap();
        }
        over.store(1, Ordering::Relaxed);
    });
}

#[test]
fn what_is_removed_while_it_is_verified_is_not_damaged() {
    let (store, layout) = (Store::new(), small("a"));
    let id = store.import(&layout.source(), "x").unwrap().id;
    let mut seen = 0;
    let damages = store.store.verify(&id, &Cancel::new(), &mut |_| {
        seen += 1;
        if seen == 1 {
            assert!(matches!(store.store.remove("x"), Ok(Removed::Image { .. })));
        }
    });
    assert_eq!((damages.unwrap(), seen), (Vec::new(), 5));
    assert_eq!(files(&store.root()), ["index.json", "lock"]);
}

/// An image with the configuration of another one, but with a layer that differs from the configuration.
#[test]
fn layers_are_checked_also_when_their_root_file_system_is_here() {
    let store = Store::new();
    let tar = Tar::default().file("f", "content").end();
    let with = |stored: &[u8]| {
        let mut layout = Layout::new();
        layout.add_stored(
            "application/vnd.oci.image.layer.v1.tar+gzip",
            stored,
            &magikvm::image::Digest::of(&tar),
        );
        layout.save();
        layout
    };
    let record = store.import(&with(&crate::make::gzip(&tar)).source(), "good").unwrap();
    let before = files(&store.root());
    let evil = with(&crate::make::gzip(b"junk"));
    let error = chain(&store.import(&evil.source(), "evil").unwrap_err());
    assert!(error.contains("has the digest"), "{error}");
    assert_eq!(files(&store.root()), before);
    // The same layer, compressed in another way, is good.
    let other = with(&[crate::make::gzip(&tar[..512]), crate::make::gzip(&tar[512..])].concat());
    let again = store.import(&other.source(), "other").unwrap();
    assert_eq!((again.id, again.names.len()), (record.id, 2));
    assert!(store.store.verify(&record.id, &Cancel::new(), &mut |_| {}).unwrap().is_empty());
}

#[test]
fn a_pinned_name_is_given_only_to_the_image_that_it_pins() {
    let store = Store::new();
    let record = store.import(&small("a").source(), "a").unwrap();
    let pin = |digest: &str| format!("other@{digest}").parse().unwrap();
    let wrong = format!("sha256:{}", "1".repeat(64));
    assert!(matches!(store.store.tag("a", &pin(&wrong)), Err(ImageError::Pinned { .. })));
    store.store.tag("a", &pin(&record.digests[0].to_string())).unwrap();
}

#[test]
fn a_full_disk_does_not_keep_an_image_from_being_removed() {
    let disk = Mounted::tmpfs("16m");
    let store = ImageStore::open(&disk.path().join("images")).unwrap();
    store.import(&large(2).source(), &"x".parse().unwrap(), &BringOptions::default(), &|_| {}).unwrap();
    let filler = disk.path().join("filler");
    let mut file = fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    assert!(matches!(store.remove("x").unwrap(), Removed::Image { .. }));
    // A process that another test has just forked holds what this one had open, until it executes its program.
    let left = ["filler", "images/index.json", "images/lock"];
    until("the image's files are removed", || {
        store.sweep().unwrap();
        files(disk.path()) == left
    });
    fs::remove_file(filler).unwrap();
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn another_form_of_an_image_takes_the_place_of_the_former_one_when_nobody_uses_it() {
    let (store, layout) = (Store::new(), large(1));
    let import = |compression| {
        let options = BringOptions { compression: Some(compression), ..BringOptions::default() };
        store.store.import(&layout.source(), &"x".parse().unwrap(), &options, &|_| {}).unwrap()
    };
    let rootfs = || fs::read_dir(store.root().join("rootfs")).unwrap().count();
    import(RootfsCompression::None);
    import(RootfsCompression::Lz4);
    assert_eq!(rootfs(), 1);
    let used = store.resolve("x");
    import(RootfsCompression::None);
    assert_eq!(rootfs(), 2);
    assert!(used.rootfs.path.exists());
    drop(used);
    store.store.sweep().unwrap();
    assert_eq!(rootfs(), 1);
}
