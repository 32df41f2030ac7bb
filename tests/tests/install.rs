//! What `ci/install.sh` installs works from where it is, and goes again without a trace.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::virtual_machine::{NETWORK, VmHost, guest_image, in_path};
use magikvm_tests::{Cmd, Pod, host::program};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::Duration;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// What a build leaves: the programs and the guest image in one directory.
fn built(dir: &Path) {
    fs::create_dir(dir).unwrap();
    let beside = |name: &str| program().with_file_name(name);
    let programs = [
        ("magikvm", program().to_owned()),
        ("magikvm-image", beside("magikvm-image")),
        ("magikvm-containers", beside("magikvm-containers")),
        ("vhost-device-vsock", in_path("vhost-device-vsock")),
        ("guest", guest_image().into()),
    ];
    for (name, path) in programs {
        assert!(path.exists(), "{} is not there: run the tests with ci/test.sh", path.display());
        symlink(path, dir.join(name)).unwrap();
    }
}

/// Every file and directory beneath this one, itself included if it is there.
fn tree(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = dir.exists().then(|| dir.to_owned()).into_iter().collect();
    if let Ok(entries) = fs::read_dir(dir) {
        found.extend(entries.flat_map(|entry| tree(&entry.unwrap().path())));
    }
    found.sort();
    found
}

#[test]
fn an_installation_is_complete_by_itself_and_its_removal_too() {
    let host = VmHost::new();
    let (from, prefix) = (host.file("built"), host.file("usr"));
    built(&from);
    let install = |options: &[&str]| {
        let script = host.other(repository().join("ci/install.sh")).args(["--prefix"]).arg(&prefix);
        script.args(options).limit(Duration::from_secs(120))
    };
    // Somebody else's files, beside which and in whose directories ours come.
    let foreign = prefix.join("share/man/other");
    fs::create_dir_all(&foreign).unwrap();
    let before = tree(&prefix);
    let from = from.display().to_string();
    install(&["--from", &from]).ok();
    let installed = tree(&prefix);
    // Once more: the second installation owns what the first one has made.
    install(&["--from", &from]).ok();
    assert_eq!(tree(&prefix), installed);
    for name in [
        "bin/magikvm-image",
        "libexec/magikvm/vhost-device-vsock",
        "libexec/magikvm/magikvm-containers",
        "share/magikvm/guest/vmlinux",
        "share/man/man1/magikvm.1",
        "share/man/man1/magikvm-run.1",
        "share/bash-completion/completions/magikvm",
        "share/zsh/site-functions/_magikvm",
        "share/fish/vendor_completions.d/magikvm.fish",
    ] {
        assert!(fs::metadata(prefix.join(name)).is_ok_and(|found| found.len() > 0), "{name}");
    }

    // Neither PATH nor the environment leads to the helper or to the guest image.
    let clean = |args: &[&str]| {
        Cmd::new(prefix.join("bin/magikvm"))
            .args(args)
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("MAGIKVM_ROOT", host.root().display().to_string())
            .env("TMPDIR", host.file("").display().to_string())
            .limit(Duration::from_secs(120))
    };
    let pod = Pod::new("installed").script("web", "echo from the prefix").annotated(NETWORK, "none");
    let manifest = host.manifest(&pod).display().to_string();
    let run = clean(&["run", "--rm", "--vmm", "qemu", "--accel", "tcg", &manifest]).ok();
    assert_eq!(run.stdout, "web | from the prefix\n");
    let doctor = clean(&["doctor"]).run().stdout;
    assert!(doctor.contains(&format!("guest image: {}/share/magikvm/guest ", prefix.display())), "{doctor}");

    // A list that leads out of the prefix removes nothing.
    let list = prefix.join("share/magikvm/installed");
    let lines = fs::read_to_string(&list).unwrap();
    for line in ["../../escape", "/etc/passwd", "bin/../../x", "../"] {
        fs::write(&list, format!("{lines}{line}\n")).unwrap();
        install(&["--uninstall"]).fails(1).complains("nothing was removed");
    }
    fs::write(&list, lines).unwrap();
    assert_eq!(tree(&prefix), installed);
    install(&["--uninstall"]).ok();
    assert_eq!(tree(&prefix), before);
    install(&["--uninstall"]).fails(1).complains("is not installed beneath");

    // Where nothing was, nothing stays.
    fs::remove_dir_all(&prefix).unwrap();
    install(&["--from", &from]).ok();
    install(&["--uninstall"]).ok();
    assert_eq!(tree(&prefix), Vec::<PathBuf>::new());
}
