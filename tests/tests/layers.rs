//! Arrows between the host's modules point down only.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// From the top. A module may use those below it.
const LAYERS: [&str; 15] = [
    "cli", "monitor", "pod", "runtime", "manifest", "vmm", "net", "volume", "jail", "process", "agent",
    "image", "store", "signals", "os",
];

fn row(module: &str) -> usize {
    LAYERS
        .iter()
        .position(|layer| *layer == module)
        .unwrap_or_else(|| panic!("module {module} is in no layer; give it one here and in host/src/lib.rs"))
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

#[test]
fn arrows_point_down() {
    let base = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../host/src"));
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
            if other != module && row(&other) <= row(&module) {
                wrong.push(format!("{}:{line}: {module} uses {other}", below.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "arrows that point up or sideways:\n{}", wrong.join("\n"));
}

/// Each side of the contract builds without the other, and the contract knows neither files nor an async runtime.
#[test]
fn crates_depend_as_promised() {
    let dependencies = |name: &str| {
        let path = format!("{}/../{name}/Cargo.toml", env!("CARGO_MANIFEST_DIR"));
        let text = fs::read_to_string(path).unwrap();
        let section = text
            .split("[dependencies]")
            .nth(1)
            .unwrap_or_default()
            .split("\n[")
            .next()
            .unwrap_or_default()
            .to_owned();
        let names = section.lines().filter_map(|line| line.split(['.', ' ', '=']).next()).map(str::to_owned);
        names.filter(|name| !name.is_empty() && !name.starts_with('#')).collect::<Vec<_>>()
    };
    assert!(!dependencies("guest").contains(&"magikvm".to_owned()), "vminit must not depend on the host");
    for name in dependencies("proto") {
        assert!(["serde", "serde_json", "thiserror"].contains(&name.as_str()), "proto depends on {name}");
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
