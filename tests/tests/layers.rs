//! Dependencies between the host's modules point down only.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// From top to bottom. A module may use those below it.
const LAYERS: [&str; 16] = [
    "cli", "monitor", "pod", "runtime", "manifest", "vmm", "nested", "net", "volume", "jail", "process",
    "agent", "image", "store", "signals", "os",
];

fn row(layers: &[&str], module: &str) -> usize {
    layers
        .iter()
        .position(|layer| *layer == module)
        .unwrap_or_else(|| panic!("module {module} is in no layer; give it one here"))
}

fn sources(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory of ours").map(|entry| entry.expect("an entry")) {
        if entry.path().is_dir() {
            sources(&entry.path(), into);
        } else if entry.path().extension().is_some_and(|extension| extension == "rs") {
            into.push(entry.path());
        }
    }
}

/// Modules named by `crate::x` in a source, outside of comments; `crate::{a, b::c}` names `a` and `b`.
fn named(source: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in source.lines().enumerate() {
        let code = line.split("//").next().unwrap_or_default();
        for (at, _) in code.match_indices("crate::") {
            let rest = &code[at + "crate::".len()..];
            let word = |text: &str| {
                text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
            };
            match rest.strip_prefix('{') {
                Some(list) => found.extend(list.split(',').map(|item| (number + 1, word(item.trim())))),
                None => found.push((number + 1, word(rest))),
            }
        }
    }
    found
}

/// Dependencies between the modules of the smaller crates point down as well. Each list goes from top to bottom.
const CRATE_LAYERS: [(&str, &[&str]); 3] = [
    (
        "crates/platform/src",
        &["tree", "lock", "regular", "atomic", "signals", "os", "thread", "text", "helper"],
    ),
    (
        "crates/supervisor/src",
        &[
            "reactor",
            "service_directory",
            "extension",
            "agent",
            "handler",
            "create",
            "forward",
            "pod",
            "message",
            "machine",
            "output",
            "events",
            "files",
            "interface",
            "sync",
            "sys",
            "text",
        ],
    ),
    (
        "crates/containers/src",
        &[
            "sandbox",
            "containers",
            "spawner",
            "bundle",
            "env_file",
            "devices",
            "reaper",
            "mounts",
            "cgroup",
            "volumes",
            "mount_point",
            "pod",
            "layer",
            "message",
            "user",
            "stats",
            "mount_table",
            "rootfs",
            "sys",
        ],
    ),
];

/// Uses of a module that the order of `layers` forbids.
fn wrong_arrows(base: &Path, layers: &[&str]) -> Vec<String> {
    let mut files = Vec::new();
    sources(base, &mut files);
    let mut wrong = Vec::new();
    for file in files {
        let below = file.strip_prefix(base).unwrap();
        let first = below.components().next().unwrap().as_os_str().to_string_lossy();
        let module = first.trim_end_matches(".rs").to_owned();
        if ["main", "lib"].contains(&module.as_str()) {
            continue;
        }
        for (line, other) in named(&fs::read_to_string(&file).unwrap()) {
            if other != module && row(layers, &other) <= row(layers, &module) {
                wrong.push(format!("{}:{line}: {module} uses {other}", below.display()));
            }
        }
    }
    wrong
}

#[test]
fn arrows_point_down() {
    let mut wrong = wrong_arrows(&root().join("host/src"), &LAYERS);
    for (sources, layers) in CRATE_LAYERS {
        wrong.extend(wrong_arrows(&root().join(sources), layers));
    }
    assert!(wrong.is_empty(), "arrows that point up or sideways:\n{}", wrong.join("\n"));
}

/// Packages of this workspace, and which others of it each may depend on.
const CRATES: [(&str, &[&str]); 8] = [
    ("crates/proto", &[]),
    ("crates/platform", &["magikvm-proto"]),
    ("crates/images", &["magikvm-platform", "magikvm-proto"]),
    ("crates/supervisor", &["magikvm-platform", "magikvm-proto"]),
    ("crates/containers", &["magikvm-proto", "magikvm-supervisor"]),
    ("guest", &["magikvm-containers", "magikvm-proto", "magikvm-supervisor"]),
    ("host", &["magikvm-images", "magikvm-platform", "magikvm-proto", "magikvm-supervisor"]),
    ("image-builder", &["magikvm-proto"]),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Names in the `[dependencies]` of a package, those of single systems included.
fn dependencies(package: &str) -> Vec<String> {
    let text = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
    let mut names = Vec::new();
    let mut counts = false;
    for line in text.lines() {
        if line.starts_with('[') {
            counts = line.ends_with("dependencies]") && !line.contains("dev-");
        } else if counts && line.starts_with(|c: char| c.is_ascii_alphabetic()) {
            names.extend(line.split(['.', ' ', '=']).next().map(str::to_owned));
        }
    }
    names
}

/// Each side of the wire builds without the other, and the wire's crate knows neither files nor an async runtime.
#[test]
fn crates_depend_as_promised() {
    for (package, allowed) in CRATES {
        for name in dependencies(package).iter().filter(|name| name.starts_with("magikvm")) {
            assert!(allowed.contains(&name.as_str()), "{package} depends on {name}");
        }
    }
    for name in dependencies("crates/proto") {
        assert!(["serde", "serde_json", "thiserror"].contains(&name.as_str()), "proto depends on {name}");
    }
}

/// All packages that a program's crate depends on, directly or indirectly, in a normal build for the host.
fn ingredients(package: &str) -> Vec<String> {
    let tree = std::process::Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--locked",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--package",
            package,
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let text = String::from_utf8(tree.stdout).unwrap();
    text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned).collect()
}

/// A program does not contain what only others need: the guest has no registry client, the host has no container runtime.
#[test]
fn programs_hold_what_they_need() {
    for (program, foreign) in [
        ("vminit", &["reqwest", "tokio", "clap", "magikvm", "magikvm-images", "libkrun"][..]),
        ("magikvm", &["libcontainer", "magikvm-containers", "vminit"][..]),
        ("magikvm-image", &["libcontainer", "reqwest", "magikvm", "libkrun"][..]),
    ] {
        let made_of = ingredients(program);
        assert!(made_of.contains(&"magikvm-proto".to_owned()), "{program}: {made_of:?}");
        for name in foreign {
            assert!(made_of[1..].iter().all(|other| other != name), "{program} holds {name}");
        }
    }
}

/// Only `cli/ui.rs` prints.
#[test]
fn one_place_prints() {
    let base = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../host/src"));
    let mut files = Vec::new();
    sources(base, &mut files);
    for file in files {
        let source = fs::read_to_string(&file).unwrap();
        for printing in ["println!(", "print!(", "eprintln!(", "eprint!("] {
            assert!(!source.contains(printing), "{} has {printing}", file.display());
        }
    }
}
