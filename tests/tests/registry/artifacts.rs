//! Artifacts that are not images: pulled as files, and refused by name where they cannot be.

use crate::{id, pull, refused};
use magikvm_tests::layout::{Tar, write_artifact};
use magikvm_tests::registry::Registry;
use magikvm_tests::{Host, Pod};
use serde_json::{Value, json};
use std::fs;

const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

type Layer<'a> = (&'a str, Option<&'a str>, &'a [u8]);

fn pushed(registry: &Registry, host: &Host, name: &str, layers: &[Layer<'_>]) -> String {
    let layout = host.file(&format!("layout-{name}"));
    write_artifact(&layout, layers);
    registry.push(&layout, "1", &format!("{name}:1"));
    registry.name(&format!("{name}:1"))
}

#[test]
fn an_artifact_of_a_registry_is_its_files() {
    let (registry, host) = (Registry::plain(), Host::fake());
    let archive = Tar::default().file("sub/unpacked", 0o600, b"two").finish();
    // As `tar czf` makes it, under a title that keeps it whole.
    let packed = b"\x1f\x8b\x08\x00 not really gzip";
    let layers: [Layer<'_>; 3] = [
        ("text/plain", Some("model/one.txt"), b"one"),
        (LAYER, None, &archive),
        (LAYER, Some("two.tgz"), packed),
    ];
    let name = pushed(&registry, &host, "model", &layers);
    let first = id(&pull(&host, &name).ok());
    // The same blobs with other titles are other files.
    let renamed: [Layer<'_>; 1] = [("text/plain", Some("other.txt"), b"one")];
    let other = pushed(&registry, &host, "other", &renamed);
    assert_ne!(id(&pull(&host, &other).ok()), first);
    host.cmd(["image", "verify", "--all"]).ok();
    for (name, files) in [
        (&name, &[("model/one.txt", &b"one"[..]), ("sub/unpacked", b"two"), ("two.tgz", packed)][..]),
        (&other, &[("other.txt", b"one")]),
    ] {
        let out = host.file(&format!("out-{}", files.len()));
        host.cmd(["image", "export", name, &format!("dir:{}", out.display())]).ok();
        for (file, bytes) in files {
            assert_eq!(fs::read(out.join(file)).unwrap(), *bytes, "{file}");
        }
        assert!(!out.join("etc").exists(), "it has its own files only");
    }
    let layout = format!("oci:{}", host.file("again").display());
    host.cmd(["image", "export", &name, &layout])
        .fails(1)
        .complains("it is an artifact, not a container image")
        .complains("Export its files with the target `dir:DIRECTORY`");
    let shown: Value = serde_json::from_str(&host.cmd(["image", "ls", "-o", "json"]).ok().stdout).unwrap();
    assert!(shown.to_string().contains("\"artifact\":true"), "{shown}");
    // Nothing is fetched again, and nothing can be run.
    registry.forget();
    pull(&host, &name).ok();
    assert_eq!(registry.fetched_blobs(), [""; 0]);
    let pod = Pod::new("one").container_of("web", &name, &["true"]).with("imagePullPolicy", "Never");
    host.run_fake(&pod, "run")
        .arg("-d")
        .fails(1)
        .complains("container web cannot run: its image is an artifact, not a container image")
        .complains("Hint: Mount an artifact as a volume");
    let volume = json!({ "image": { "reference": name, "pullPolicy": "Never" } });
    let pod = Pod::simple("two").volume("v", volume).mount("v", "/v", json!({}));
    host.run_fake(&pod, "exit=0").arg("--rm").ok();
    host.cmd(["image", "rm", &name, &other]).ok();
    host.cmd(["image", "verify", "--all"]).ok();
}

#[test]
fn an_artifact_that_is_no_files_is_refused_by_name() {
    let (registry, host) = (Registry::plain(), Host::bare());
    let mut number = 0;
    let mut refuse = |layers: &[Layer<'_>], text: &str| {
        number += 1;
        let name = pushed(&registry, &host, &format!("bad{number}"), layers);
        refused(pull(&host, &name), &["application/vnd.example.model", text]);
    };
    refuse(&[("text/plain", Some("../escaped"), b"x")], "must not contain '..'");
    refuse(&[("text/plain", Some("/etc/passwd"), b"x")], "must be a relative path");
    refuse(
        &[("text/plain", Some("a"), b"x"), ("text/plain", Some("a/b"), b"y")],
        "of a file and of a directory",
    );
    refuse(
        &[("text/plain", Some("a"), b"x"), ("text/plain", Some("a"), b"y")],
        "two of its layers have the title",
    );
    refuse(
        &[("application/vnd.cncf.helm.chart.content.v1.tar+gzip", None, b"x")],
        "has no annotation `org.opencontainers.image.title`",
    );
    refuse(&[], "it has no files");
    assert_eq!(host.cmd(["image", "ls", "-q"]).ok().stdout, "");
}
