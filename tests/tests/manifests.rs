//! What `run` makes of manifests that programs write, and the limits that an administrator can raise; with the fake guest.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::{Host, Pod};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Writes the host's limits.toml.
fn limits(host: &Host, text: &str) -> PathBuf {
    let dir = host.root().join("etc");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("limits.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    path
}

#[test]
fn what_is_ignored_is_said_once_for_each_reason() {
    let host = Host::fake();
    let pod = Pod::simple("web")
        .set("spec/nodeName", "worker-1")
        .set("spec/priority", 1000)
        .set("spec/tolerations", json!([{ "operator": "Exists" }]))
        .set("spec/schedulerName", "default-scheduler")
        .with("resizePolicy", json!([{ "resourceName": "cpu", "restartPolicy": "NotRequired" }]))
        .container("side", &["app"])
        .with("resizePolicy", json!([{ "resourceName": "cpu", "restartPolicy": "NotRequired" }]));
    let output = host.run_fake(&pod, "run").args(["-d", "-v"]).env("MAGIKVM_QUIET", "").ok();
    let lines: Vec<&str> = output.stderr.lines().collect();
    let expected = [
        "Warning: ignored spec.nodeName, spec.priority, spec.tolerations: there is no scheduler and there are no nodes to choose from.",
        "Warning: ignored spec.containers[].resizePolicy: containers are not resized while they run.",
    ];
    assert!(lines.len() == 2 && expected.iter().all(|line| lines.contains(line)), "{lines:#?}");
}

#[test]
fn what_inspect_shows_can_be_run_again() {
    let host = Host::fake();
    host.start_fake(
        &Pod::simple("web").with("ports", json!([{ "containerPort": 80, "hostPort": 0 }])),
        "run",
    );
    let shown = host.cmd(["inspect", "web", "-o", "json"]).ok().stdout;
    host.cmd(["rm", "-f", "web"]).ok();
    let again = host.cmd(["run", "--vmm", "fake", "-d", "-"]).input(shown.as_str()).ok();
    assert_eq!(again.stdout, "default/web\n");
    let uid = |text: &str| serde_json::from_str::<Value>(text).unwrap()["metadata"]["uid"].clone();
    assert_ne!(uid(&host.cmd(["inspect", "web", "-o", "json"]).ok().stdout), uid(&shown));
}

#[test]
fn the_number_of_pods_is_limited() {
    let host = Host::fake();
    for number in 0..1024 {
        fs::create_dir_all(host.pod_dir(&format!("p{number}"))).unwrap();
    }
    let refused = host.run_fake(&Pod::simple("one-more"), "run").arg("-d").fails(1).stderr;
    let expected = "there are 1024 pods already, at most 1024 are possible";
    assert!(refused.contains(expected) && refused.contains("can raise `pods` in "), "{refused}");
    limits(&host, "pods = 1025\n");
    host.start_fake(&Pod::simple("one-more"), "run");
    let refused = host.run_fake(&Pod::simple("another"), "run").arg("-d").fails(1).stderr;
    assert!(refused.contains("there are 1025 pods already, at most 1025 are possible"), "{refused}");
}

#[test]
fn limits_are_raised_in_one_place_and_errors_name_it() {
    let host = Host::fake();
    let big = |name: &str| {
        let variables: Vec<Value> = (0..300).map(|number| json!({ "name": format!("V{number}") })).collect();
        Pod::simple(name)
            .set("spec/terminationGracePeriodSeconds", 900)
            .annotated("magikvm.dev/memory-mib", "8192")
            .annotated("magikvm.dev/vcpus", "16")
            .with("env", variables)
    };
    let place = host.root().join("etc/limits.toml").display().to_string();
    let refused = host.run_fake(&big("big"), "run").arg("-d").fails(1).stderr;
    for key in ["grace-secs", "env-vars", "vm-memory-mib", "vcpus"] {
        assert!(
            refused.contains(&format!("an administrator can raise `{key}` in {place}")),
            "{key}: {refused}"
        );
    }
    limits(&host, "grace-secs = 900\nenv-vars = 300\nvm-memory-mib = 8192\nvcpus = 16\n");
    host.start_fake(&big("big"), "run");
    // A stop has the same longest grace period.
    let refused = host.cmd(["stop", "--grace", "901", "big"]).fails(2);
    refused
        .complains("--grace: 901s is longer than 15m")
        .complains(&format!("raise `grace-secs` in {place}"));
    host.cmd(["stop", "--grace", "900", "big"]).ok();
    host.cmd(["rm", "-f", "big"]).ok();
}

#[test]
fn a_file_of_limits_with_a_mistake_runs_nothing_and_hinders_no_removal() {
    let host = Host::fake();
    host.start_fake(&Pod::simple("web"), "run");
    let path = limits(&host, "\nlayers = many\n");
    let refused = host.run_fake(&Pod::simple("other"), "run").arg("-d").fails(3).stderr;
    assert!(refused.contains("limits.toml:2: "), "{refused}");
    fs::write(&path, "layers = 200").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let refused = host.cmd(["image", "ls"]).fails(3).stderr;
    assert!(
        refused.contains("can be written by others (mode 0666)") && refused.contains("chmod go-w"),
        "{refused}"
    );
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "default/web\n");
    host.cmd(["rm", "-f", "web"]).ok();
}
