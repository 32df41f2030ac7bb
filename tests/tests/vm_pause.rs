//! A real VM as the host of another magikvm: the behaviour when a host's clock is set.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::layout::Tar;
use magikvm_tests::virtual_machine::{VmHost, busybox};
use magikvm_tests::{Cmd, Pod};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The program under test, its libraries, and a state directory, as files of an image.
fn with_magikvm(mut layer: Tar, root: &Path) -> Tar {
    let program = magikvm_tests::host::program();
    let listed = Cmd::new("ldd").env("PATH", "/usr/bin:/bin").arg(program).ok().stdout;
    let libraries = listed.split_ascii_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from);
    let mut dirs = std::collections::BTreeSet::new();
    for library in libraries {
        let name = library.to_str().unwrap().trim_start_matches('/').to_owned();
        let above: Vec<&Path> = Path::new(&name).ancestors().skip(1).collect();
        for dir in above.into_iter().rev().filter(|dir| !dir.as_os_str().is_empty()) {
            if dirs.insert(dir.to_owned()) {
                layer = layer.dir(&format!("{}/", dir.display()), 0o755);
            }
        }
        layer = layer.file(&name, 0o755, &fs::read(&library).unwrap());
    }
    layer = layer.file("bin/magikvm", 0o755, &fs::read(program).unwrap());
    tree(layer, "state", root)
}

fn tree(mut layer: Tar, name: &str, path: &Path) -> Tar {
    layer = layer.dir(&format!("{name}/"), 0o700);
    for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
        let below = format!("{name}/{}", entry.file_name().to_str().unwrap());
        layer = if entry.path().is_dir() {
            tree(layer, &below, &entry.path())
        } else {
            layer.file(&below, 0o600, &fs::read(entry.path()).unwrap())
        };
    }
    layer
}

/// The host of this test is a container, whose clock can be set without harm. magikvm runs in it with the fake guest.
#[test]
fn when_the_hosts_clock_is_set_guests_are_told() {
    let host = VmHost::new();
    let inner = Pod::simple("inner").text();
    let layer = with_magikvm(busybox(), &host.root()).file("inner.json", 0o644, inner.as_bytes());
    host.import("test/magikvm:1", layer, &serde_json::json!({ "Env": ["PATH=/bin", "MAGIKVM_ROOT=/state"] }));
    let outer = Pod::new("outer")
        .container_of("host", "test/magikvm:1", &["sleep", "1000"])
        .with("securityContext/capabilities/add", serde_json::json!(["SYS_TIME"]))
        .with("resources/limits/memory", "256Mi");
    host.start(&outer);
    let script = "magikvm run --vmm fake -d /inner.json && magikvm events inner | grep -c clock
        date -s @4000000000 && until magikvm events inner | grep clock; do sleep 0.1; done
        magikvm events --json inner; magikvm rm -f inner";
    let run = host.cmd(["exec", "outer", "--", "sh", "-c", script]).limit(Duration::from_secs(120));
    run.ok()
        .prints("default/inner\n0\n")
        .prints("2096-10-02T")
        .prints(r#""host":"clock","after":"host_clock","offset_ms":0}"#);
}
