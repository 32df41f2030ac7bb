//! `magikvm cp` with the fake guest, whose containers are directories, and which sends what a test wants it to send.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_proto::files::{Entry, Item, ItemWriter};
use magikvm_tests::terminal::Terminal;
use magikvm_tests::{Cmd, Host, Pod};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

/// A host with a pod `web` and the directory that stands for its container.
fn copying() -> (Host, PathBuf) {
    let host = Host::fake();
    let inside = host.file("inside");
    fs::create_dir(&inside).unwrap();
    host.run_fake(&Pod::simple("web"), "run").arg("-d").env("MAGIKVM_FAKE_FILES", &inside).ok();
    (host, inside)
}

fn cp(host: &Host, from: &str, to: &str) -> Cmd {
    host.cmd(["cp", from, to]).current_dir(host.file(""))
}

fn tree(root: &Path) {
    fs::create_dir_all(root.join("sub/empty")).unwrap();
    fs::write(root.join("file"), "text").unwrap();
    fs::write(root.join("sub/large"), (0..700_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>())
        .unwrap();
    fs::set_permissions(root.join("file"), Permissions::from_mode(0o751)).unwrap();
    symlink("sub/large", root.join("link")).unwrap();
}

fn assert_same(one: &Path, other: &Path) {
    assert_eq!(fs::read(one.join("sub/large")).unwrap(), fs::read(other.join("sub/large")).unwrap());
    assert_eq!(fs::read_to_string(other.join("file")).unwrap(), "text");
    assert_eq!(fs::metadata(other.join("file")).unwrap().permissions().mode() & 0o7777, 0o751);
    assert_eq!(fs::read_link(other.join("link")).unwrap(), Path::new("sub/large"));
    assert!(other.join("sub/empty").is_dir());
    let times = [one, other].map(|root| fs::metadata(root.join("file")).unwrap().modified().unwrap());
    let [earlier, later] = if times[0] < times[1] { times } else { [times[1], times[0]] };
    assert!(later.duration_since(earlier).unwrap() < std::time::Duration::from_secs(1));
}

#[test]
fn trees_are_copied_both_ways() {
    let (host, inside) = copying();
    let here = host.file("here");
    tree(&here);
    let up = cp(&host, "here", "web:/up").ok();
    assert_eq!((up.stdout.as_str(), up.stderr.as_str()), ("", ""));
    assert_same(&here, &inside.join("up"));
    cp(&host, "here", "web:/up").ok();
    assert_same(&here, &inside.join("up/here"));
    cp(&host, "here/.", "default/web:/content/").ok();
    assert_same(&here, &inside.join("content"));
    cp(&host, "web:/up", "down").ok();
    assert_same(&here, &host.file("down"));
    cp(&host, "web:/content", "down").args(["-c", "web"]).ok();
    assert_same(&here, &host.file("down/content"));
    cp(&host, "web:/content/.", "new").ok();
    assert_same(&here, &host.file("new"));
    // Files: into a directory, to a new name, in the place of another one.
    cp(&host, "web:/up/file", ".").ok();
    assert_eq!(fs::read_to_string(host.file("file")).unwrap(), "text");
    fs::write(host.file("other"), "x".repeat(1000)).unwrap();
    cp(&host, "other", "web:/up/file").ok();
    assert_eq!(fs::metadata(inside.join("up/file")).unwrap().len(), 1000);
    cp(&host, "web:up/file", "./file:1").ok();
    assert_eq!(fs::metadata(host.file("file:1")).unwrap().len(), 1000);
    fs::write(host.file("empty"), "").unwrap();
    cp(&host, "empty", "web:/").ok();
    assert_eq!(fs::metadata(inside.join("empty")).unwrap().len(), 0);
}

#[test]
fn what_cannot_be_copied_is_named() {
    let (host, inside) = copying();
    cp(&host, "web:/nothing", ".").fails(1).complains("in the container: cannot read /nothing");
    cp(&host, "nothing", "web:/").fails(1).complains("cannot read nothing");
    cp(&host, "nobody:/x", ".").fails(1).complains("there is no pod default/nobody");
    cp(&host, "a", "b").fails(2).complains("neither the source nor the target is in a pod");
    cp(&host, "web:/a", "web:/b").fails(2).complains("both in a pod");
    cp(&host, "web:", ".").fails(2).complains("the path behind the colon is missing");
    cp(&host, "web:/x", ".").args(["-c", "db"]).fails(1).complains("has no container db");
    fs::write(host.file("file"), "text").unwrap();
    cp(&host, "file", "web:/no/such/place")
        .fails(1)
        .complains("in the container: cannot write /no/such/place");
    cp(&host, "file", "web:/dir/").fails(1).complains("cannot write /dir");
    fs::write(inside.join("file"), "text").unwrap();
    cp(&host, "web:/file", "no/such/place").fails(1).complains("cannot write no/such");
    cp(&host, "web:/file", "dir/").fails(1).complains("cannot write dir/");
    // What is left out does not keep the rest from being copied.
    fs::create_dir(host.file("mixed")).unwrap();
    fs::write(host.file("mixed/file"), "text").unwrap();
    host.other("mkfifo").arg(host.file("mixed/fifo")).ok();
    let mixed = cp(&host, "mixed", "web:/mixed").env("MAGIKVM_QUIET", "").fails(1);
    mixed.complains("left out mixed/fifo: a FIFO is not copied");
    assert_eq!(fs::read_to_string(inside.join("mixed/file")).unwrap(), "text");
    host.other("mkfifo").arg(inside.join("mixed/fifo")).ok();
    let mixed = cp(&host, "web:/mixed", "back").env("MAGIKVM_QUIET", "").fails(1);
    mixed.complains("a FIFO is not copied");
    assert_eq!(fs::read_to_string(host.file("back/file")).unwrap(), "text");
    host.cmd(["stop", "web"]).ok();
    cp(&host, "web:/file", ".").fails(1).complains("is not running");
}

fn entry(name: &str) -> Entry {
    Entry { name: name.into(), mode: 0o777, modified: 0 }
}

/// What a hostile guest sends.
fn hostile(inside: &Path, items: &[Item]) {
    let mut bytes = Vec::new();
    let mut writer = ItemWriter::new(&mut bytes);
    for item in items {
        writer.item(item).unwrap();
        if let Item::File { .. } = item {
            writer.piece(b"evil").unwrap();
            writer.piece(b"").unwrap();
        }
    }
    fs::write(inside.join("stream"), bytes).unwrap();
}

#[test]
fn a_hostile_guest_writes_nothing_outside_the_destination() {
    let (host, inside) = copying();
    let outside = host.file("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    let to = host.file("to");
    fs::create_dir(&to).unwrap();
    let directory = |name: &str| Item::Directory(entry(name));
    let file = |name: &str| Item::File { entry: entry(name), size: 4 };
    let link = |name: &str, target: &str| Item::Link { name: name.into(), target: target.into() };
    let absolute = outside.to_str().unwrap();
    let attacks: Vec<Vec<Item>> = vec![
        vec![directory("../outside"), file("kept"), Item::Up, Item::End],
        vec![directory(".."), file("kept"), Item::Up, Item::End],
        vec![directory(absolute), file("kept"), Item::Up, Item::End],
        vec![directory("a"), file("../../outside/kept"), Item::Up, Item::End],
        vec![directory("a"), file("/etc/evil"), Item::Up, Item::End],
        vec![directory("a"), Item::Up, Item::Up, Item::End],
        vec![link("a", absolute), Item::End],
        vec![
            directory("b"),
            link("l", absolute),
            directory("l"),
            file("kept"),
            Item::Up,
            Item::Up,
            Item::End,
        ],
        vec![
            directory("c"),
            link("l", "../../outside"),
            directory("l"),
            file("kept"),
            Item::Up,
            Item::Up,
            Item::End,
        ],
        vec![directory("d"), link("kept", "../../outside/kept"), file("kept"), Item::Up, Item::End],
        vec![directory("e"), file("x")],
    ];
    for attack in attacks {
        hostile(&inside, &attack);
        let said = cp(&host, "web:/hostile", "to").run();
        assert_ne!(said.code, 0, "{attack:?}: {}", said.transcript());
        assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept", "{attack:?}");
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 1, "{attack:?}");
        assert!(!Path::new("/etc/evil").exists());
    }
    // Nor through links that the user has there.
    fs::remove_dir_all(to.join("hostile")).unwrap();
    symlink(&outside, to.join("hostile")).unwrap();
    hostile(&inside, &[directory("f"), file("kept"), Item::Up, Item::End]);
    cp(&host, "web:/hostile", "to").fails(1).complains("cannot write to/hostile");
    assert_eq!(fs::read_to_string(outside.join("kept")).unwrap(), "kept");
    // The guest does not choose the name of what is copied.
    fs::remove_file(to.join("hostile")).unwrap();
    fs::write(to.join(".profile"), "mine").unwrap();
    fs::write(inside.join("stream"), {
        let mut bytes = Vec::new();
        let mut writer = ItemWriter::new(&mut bytes);
        writer.item(&file(".profile")).unwrap();
        writer.piece(b"evil").unwrap();
        writer.piece(b"").unwrap();
        writer.item(&Item::End).unwrap();
        bytes
    })
    .unwrap();
    cp(&host, "web:/hostile", "to").ok();
    assert_eq!(fs::read_to_string(to.join(".profile")).unwrap(), "mine");
    assert_eq!(fs::read_to_string(to.join("hostile")).unwrap(), "evil");
    // Neither garbage nor text for the terminal.
    fs::write(inside.join("stream"), b"\x1b[2Jgarbage").unwrap();
    cp(&host, "web:/hostile", "to").fails(70).complains("the other end has sent an unknown item");
    hostile(&inside, &[directory("g"), Item::Problem("\x1b[2J\n\u{202e}x".to_owned()), Item::Up, Item::End]);
    let said = cp(&host, "web:/hostile", "to").env("MAGIKVM_QUIET", "").fails(1);
    assert!(!said.stderr.contains(['\x1b', '\u{202e}']), "{:?}", said.stderr);
}

#[test]
fn a_copy_is_bounded() {
    let (host, inside) = copying();
    fs::write(inside.join("large"), vec![0; 1 << 20]).unwrap();
    let large = cp(&host, "web:/large", "large").args(["--max-size", "64Ki"]).fails(1);
    large.complains("the copy has more than 65536 bytes").complains("--max-size");
    assert!(!host.file("large").exists(), "no half file");
    let left = fs::read_dir(host.file(""))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".magikvm-cp"));
    assert_eq!(left.count(), 0);
    // A terminal changes nothing but the sign of life.
    let target = host.file("large");
    let mut terminal = Terminal::start(cp(&host, "web:/large", target.to_str().unwrap()), 24, 80);
    assert_eq!(terminal.wait(), 0);
    assert_eq!(fs::metadata(host.file("large")).unwrap().len(), 1 << 20);
}
