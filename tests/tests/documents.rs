//! Inputs of several documents and files, and the verbs that read them: run, down, validate, explain. With the fake guest.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::command::Cmd;
use magikvm_tests::images::Images;
use magikvm_tests::registry::{Registry, RegistryOptions};
use magikvm_tests::snapshots::assert_golden;
use magikvm_tests::wait::until;
use magikvm_tests::{Host, Pod};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// The texts as documents of one file.
fn joined(pods: &[&Pod]) -> String {
    pods.iter().map(|pod| pod.text()).collect::<Vec<_>>().join("\n---\n")
}

fn write(host: &Host, name: &str, text: &str) -> std::path::PathBuf {
    let path = host.file(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, text).unwrap();
    path
}

/// `run` with the fake VMM, whose containers run until they are stopped.
fn run(host: &Host, detach: bool) -> Cmd {
    let cmd = host.cmd(["run", "--vmm", "fake"]).env("MAGIKVM_FAKE", "run");
    if detach { cmd.arg("-d") } else { cmd }
}

fn listed(host: &Host) -> Vec<String> {
    host.cmd(["ps", "-q"]).ok().stdout.lines().map(str::to_owned).collect()
}

fn map(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "k": "v" } })
}

fn uses(name: &str, map: &str) -> Pod {
    let env = json!([{ "name": "E", "valueFrom": { "configMapKeyRef": { "name": map, "key": "k" } } }]);
    Pod::simple(name).with("env", env)
}

#[test]
fn pods_of_files_directories_and_standard_input_run_in_order_and_go_down_in_reverse() {
    let host = Host::fake();
    let before = host.holdings();
    let two = write(&host, "two.yaml", &joined(&[&Pod::simple("one"), &Pod::simple("two")]));
    write(&host, "dir/b.yml", &uses("four", "shared").text());
    write(&host, "dir/a.json", &Pod::simple("three").text());
    write(&host, "dir/c.yaml", &map("shared").to_string());
    write(&host, "dir/notes.txt", "not a manifest");
    write(&host, "dir/sub/d.yaml", &Pod::simple("five").text());
    let dir = host.file("dir");
    let all = |cmd: Cmd| cmd.arg(&two).arg("-f").arg(&dir).arg("-").input(Pod::simple("six").text());
    let ran = all(run(&host, true)).ok();
    assert_eq!(ran.stdout, "default/one\ndefault/two\ndefault/six\ndefault/three\ndefault/four\n");
    let recursive = run(&host, true).arg("-R").arg(host.file("dir/sub")).ok();
    assert_eq!(recursive.stdout, "default/five\n");
    let down = all(host.cmd(["down"])).ok();
    assert_eq!(down.stdout, "default/four\ndefault/three\ndefault/six\ndefault/two\ndefault/one\n");
    assert_golden("down-again", &host.cmd(["down"]).arg(&two).run().transcript());
    host.cmd(["down", "-R"])
        .arg(&dir)
        .ok()
        .prints("default/five\n")
        .complains("There is no pod default/four.");
    host.assert_as_before(&before);
}

#[test]
fn a_pod_that_fails_leaves_those_before_it_and_what_is_left_is_said() {
    let host = Host::fake();
    let absent =
        Pod::new("two").container_of("web", "not/there:1", &["app"]).with("imagePullPolicy", "Never");
    let text = joined(&[&Pod::simple("one"), &absent, &Pod::simple("three")]);
    let file = write(&host, "pods.yaml", &text);
    let failed = run(&host, true).arg(&file).fails(1);
    assert_golden("several-one-fails", &failed.transcript());
    assert_eq!(listed(&host), ["default/one"]);
    assert_eq!(host.phase("one"), "Running");
    run(&host, false).arg(&file).fails(125).complains("a pod named default/one is running");
    assert_eq!(listed(&host), ["default/one"]);
}

#[test]
fn several_pods_in_the_foreground_show_their_logs_until_all_have_ended() {
    let host = Host::fake();
    let before = host.holdings();
    let text = joined(&[&Pod::simple("one"), &Pod::simple("two-pods")]);
    let file = write(&host, "pods.yaml", &text);
    let ended = host.cmd(["run", "--vmm", "fake", "--rm"]).arg(&file).env("MAGIKVM_FAKE", "exit=3").fails(3);
    let mut lines: Vec<&str> = ended.stdout.lines().chain(ended.stderr.lines()).collect();
    lines.sort_unstable();
    assert!(lines.iter().any(|line| line.starts_with("one/web      | ")), "{lines:#?}");
    assert!(lines.iter().any(|line| line.starts_with("two-pods/web | ")), "{lines:#?}");
    ended
        .complains("Pod default/one ended with exit code 3.")
        .complains("Pod default/two-pods ended with exit code 3.");
    host.assert_as_before(&before);

    let mut running = run(&host, false).arg(&file).spawn();
    running.wait_for_stdout("two-pods/web | ");
    until("both run", || host.phase("one") == "Running" && host.phase("two-pods") == "Running");
    running.signal(Signal::SIGINT);
    let output = running.wait();
    output.complains("Stopping 2 pods; interrupt again to kill them.");
    for name in ["one", "two-pods"] {
        assert!(["Failed", "Succeeded"].contains(&host.phase(name).as_str()), "{name}: {}", host.phase(name));
    }
    host.cmd(["down"]).arg(&file).ok();
    host.assert_as_before(&before);
}

#[test]
fn an_interrupt_during_a_start_starts_no_further_pod() {
    let host = Host::fake();
    let file = write(
        &host,
        "pods.yaml",
        &joined(&[&Pod::simple("one"), &Pod::simple("two"), &Pod::simple("three")]),
    );
    let hold = host.file("hold");
    fs::write(&hold, "").unwrap();
    let running =
        run(&host, true).arg(&file).env("MAGIKVM_FAULT", "reserve=hold").env("MAGIKVM_HOLD", &hold).spawn();
    until("the first pod is held", || hold.with_extension("reached").exists());
    running.signal(Signal::SIGINT);
    fs::remove_file(&hold).unwrap();
    let output = running.wait().expect_code(130);
    output.complains("Failed: default/one.").complains("Not started: default/two, default/three.");
    assert_eq!(listed(&host), Vec::<String>::new());
}

#[test]
fn what_replaces_a_pod_is_checked_before_that_pod_is_removed() {
    let host = Host::fake();
    let uid = || host.inspect("web").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let file = write(&host, "web.yaml", &Pod::simple("web").text());
    // Without an older pod it is an ordinary run.
    run(&host, true).arg("--replace").arg(&file).ok();
    let first = uid();
    let absent =
        Pod::new("web").container_of("web", "not/there:1", &["app"]).with("imagePullPolicy", "Never");
    let absent = write(&host, "absent.yaml", &absent.text());
    run(&host, true).arg("--replace").arg(&absent).fails(1).complains("not/there:1");
    let wasm = Pod::simple("web").set("spec/runtimeClassName", "pod-wasm");
    run(&host, true).arg("--replace").arg(write(&host, "wasm.yaml", &wasm.text())).run();
    assert_eq!((uid(), host.phase("web")), (first.clone(), "Running".to_owned()), "the older pod still runs");
    let replaced = run(&host, true).arg("--replace").arg(&file).ok();
    assert_eq!(
        (replaced.stdout.as_str(), replaced.stderr.as_str()),
        ("default/web\n", "Replacing pod default/web.\n")
    );
    assert_ne!(uid(), first);
    host.cmd(["stop", "web"]).ok();
    run(&host, true).arg("--replace").arg(&file).ok();
    assert_eq!(host.phase("web"), "Running");
}

/// Volumes, files and ports are looked at before the older pod is stopped, too.
#[test]
fn what_a_replacement_needs_of_the_host_is_checked_before() {
    let host = Host::fake();
    let claim = |mode: &str| {
        json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "data" },
            "spec": { "accessModes": [mode], "storageClassName": "directory",
                "resources": { "requests": { "storage": "1Mi" } } } })
    };
    let with_claim = |name: &str| {
        Pod::simple(name).volume("v", json!({ "persistentVolumeClaim": { "claimName": "data" } })).mount(
            "v",
            "/v",
            json!({}),
        )
    };
    host.start_fake(&with_claim("other").beside(claim("ReadWriteOncePod")), "run");
    run(&host, true).arg(write(&host, "web.yaml", &Pod::simple("web").text())).ok();
    let uid = || host.inspect("web").unwrap()["metadata"]["uid"].clone();
    let first = uid();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().port();
    let on_host = |path: &str, kind: &str| {
        Pod::simple("web").volume("h", json!({ "hostPath": { "path": path, "type": kind } })).mount(
            "h",
            "/h",
            json!({}),
        )
    };
    let made = host.file("made");
    let bad = [
        (with_claim("web"), "volume default/data is for one pod at a time"),
        (with_claim("web").beside(claim("ReadWriteMany")), "exists with the access modes"),
        (on_host("/nowhere/at/all", "Directory"), "cannot use hostPath /nowhere/at/all"),
        (on_host("/etc", "File"), "hostPath /etc is a directory, not a regular file"),
        (
            Pod::simple("web")
                .with("ports", json!([{ "containerPort": 80, "hostPort": taken, "hostIP": "127.0.0.1" }])),
            "cannot listen on",
        ),
        (
            on_host(made.to_str().unwrap(), "DirectoryOrCreate")
                .with("securityContext", json!({ "runAsNonRoot": true })),
            "container web cannot run",
        ),
    ];
    for (pod, message) in bad {
        let file = write(&host, "bad.yaml", &pod.text());
        run(&host, true).arg("--replace").arg(&file).run().complains(message);
        assert_eq!((uid(), host.phase("web")), (first.clone(), "Running".to_owned()), "{message}");
    }
    assert!(!made.exists(), "a check makes nothing");
    // What the older pod has itself is free by then.
    let port = json!([{ "containerPort": 80, "hostPort": taken, "hostIP": "127.0.0.1" }]);
    drop(listener);
    host.cmd(["rm", "-f", "other"]).ok();
    let good = write(&host, "good.yaml", &with_claim("web").with("ports", port).text());
    for _ in 0..2 {
        run(&host, true).arg("--replace").arg(&good).ok();
    }
    assert_ne!(uid(), first);
}

/// A name is not enough: somebody else may have given it to another pod.
#[test]
fn down_removes_what_its_input_has_made() {
    let host = Host::fake();
    let mine = write(&host, "mine.yaml", &Pod::simple("web").text());
    let theirs = write(&host, "theirs.yaml", &Pod::simple("web").set("metadata/labels/by", "them").text());
    run(&host, true).arg(&theirs).ok();
    host.cmd(["down"])
        .arg(&mine)
        .fails(1)
        .complains(&format!("pod default/web was made from {}", theirs.canonicalize().unwrap().display()))
        .complains("Hint: Remove it with `magikvm rm -f default/web`");
    assert_eq!(listed(&host), ["default/web"]);
    // The file counts, whatever is in it by now.
    fs::write(&theirs, Pod::simple("web").set("metadata/labels/by", "them, later").text()).unwrap();
    assert_eq!(host.cmd(["down"]).arg(&theirs).ok().stdout, "default/web\n");
    // And so does the manifest, wherever it is.
    let text = fs::read(&mine).unwrap();
    run(&host, true).arg("-").input(text.clone()).ok();
    host.cmd(["down"]).arg(&theirs).fails(1).complains("from another manifest than the one in this input");
    assert_eq!(host.cmd(["down", "-"]).input(text.clone()).ok().stdout, "default/web\n");
    run(&host, true).arg("-").input(text).ok();
    assert_eq!(host.cmd(["down"]).arg(&mine).ok().stdout, "default/web\n");
    run(&host, true).arg(&mine).ok();
    let copy = host.file("copy.yaml");
    fs::copy(&mine, &copy).unwrap();
    assert_eq!(host.cmd(["down"]).arg(&copy).ok().stdout, "default/web\n");
}

#[test]
fn names_are_generated_and_said() {
    let host = Host::fake();
    let mut pod: Value = serde_json::from_str(&Pod::simple("x").text()).unwrap();
    pod["metadata"] = json!({ "generateName": "web-" });
    let file = write(&host, "web.yaml", &pod.to_string());
    for _ in 0..2 {
        let output = run(&host, true).arg(&file).ok();
        let name = output.stdout.trim().strip_prefix("default/web-").unwrap().to_owned();
        assert!(name.len() == 5 && name.chars().all(|c| "bcdfghjklmnpqrstvwxz2456789".contains(c)), "{name}");
        output.complains(&format!("The name of the pod is default/web-{name}."));
    }
    assert_eq!(listed(&host).len(), 2);
    assert_golden("down-generated", &host.cmd(["down"]).arg(&file).run().transcript());
}

#[test]
fn objects_come_from_files_of_their_own() {
    let host = Host::fake();
    let pod = write(&host, "pod.yaml", &uses("web", "conf").text());
    let conf = write(&host, "conf.yaml", &map("conf").to_string());
    run(&host, true).arg(&pod).fails(1).complains("there is no ConfigMap \"conf\"");
    run(&host, true).arg(&pod).arg("--configmap").arg(&conf).ok();
    host.cmd(["rm", "-f", "web"]).ok();
    let wrong = run(&host, true).arg(&pod).arg("--secret").arg(&conf).fails(1);
    wrong
        .complains("kind: must be Secret; ConfigMap \"conf\" is not one (pass this file without `--secret`)");
    let twice = run(&host, true).arg(&pod).arg(&conf).arg("--configmap").arg(&conf).fails(1);
    twice.complains("there is another ConfigMap \"conf\" (the other one is at ");
}

#[test]
fn what_cannot_be_an_input_is_refused() {
    let host = Host::fake();
    for url in ["https://example.com/pod.yaml", "HTTP://example.com/pod.yaml"] {
        run(&host, true).arg(url).fails(1).complains("is a URL, and only files of this host are read");
    }
    run(&host, true).args(["-", "-f", "-"]).fails(2).complains("standard input can be read only once");
    run(&host, true).fails(2);
    fs::create_dir(host.file("empty")).unwrap();
    run(&host, true).arg(host.file("empty")).fails(1).complains("holds no manifest");
    run(&host, true).arg(host.file("nothing.yaml")).fails(1).complains("cannot read the manifest");
    let service = write(&host, "service.yaml", "apiVersion: v1\nkind: Service\nmetadata: {name: web}\n");
    run(&host, true).arg(&service).fails(1).complains("holds no Pod: it has only Service \"web\"");
    let two = joined(&[&Pod::simple("one"), &Pod::simple("two")]);
    run(&host, true)
        .args(["-", "-p", "80:80"])
        .input(two)
        .fails(2)
        .complains("--publish is for a single pod");
    assert_eq!(listed(&host), Vec::<String>::new());
}

#[test]
fn a_plan_that_is_too_large_names_its_largest_part() {
    let host = Host::fake();
    // Each character is six of the plan, which every container has a copy of.
    let value = "\\x01".repeat(200_000);
    let large =
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: large}}\ndata: {{k: \"{value}\"}}\n");
    let map = write(&host, "large.yaml", &large);
    let mut pod = Pod::new("greedy");
    for number in 0..16 {
        let env = json!([{ "configMapRef": { "name": "large" } }]);
        pod = pod.container(&format!("c{number:02}"), &["sleep", "1000"]).with("envFrom", env);
    }
    let file = write(&host, "pod.yaml", &pod.text());
    let failed = run(&host, true).arg(&file).arg("--configmap").arg(&map).run().expect_code(1);
    let failed = failed.complains("the pod's plan has ").complains("at most 16777216 are possible");
    failed.complains("most of it are the variables and arguments of container c15 (200009 bytes)");
    assert_eq!(listed(&host), Vec::<String>::new());
}

#[test]
fn ignored_fields_are_counted_and_listed_on_request() {
    let host = Host::fake();
    let pod = Pod::simple("web").set("spec/nodeName", "worker-1").set("spec/priorityClassName", "high");
    let service = json!({ "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" } });
    let file = write(&host, "web.yaml", &pod.beside(service).text());
    let said = |args: &[&str]| {
        let output = run(&host, true).arg(&file).args(args).env("MAGIKVM_QUIET", "").ok();
        host.cmd(["rm", "-f", "web"]).ok();
        output.stderr
    };
    let service = "Warning: ignored Service \"web\": only Pods run here, with ConfigMaps, Secrets and PersistentVolumeClaims beside them, and nothing but a cluster has a use for the rest.\n";
    assert_eq!(said(&[]), format!("{service}Warning: 2 fields are ignored; -v lists them.\n"));
    let listed = "Warning: ignored spec.nodeName, spec.priorityClassName: there is no scheduler and there are no nodes to choose from.\n";
    assert_eq!(said(&["-v"]), format!("{service}{listed}"));
}

#[test]
fn validate_reports_every_problem_of_every_file() {
    let host = Host::bare();
    let good =
        write(&host, "good.yaml", &uses("web", "conf").set("spec/nodeName", "n").beside(map("conf")).text());
    let bad = write(
        &host,
        "bad.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: bad}\nspec:\n  containers:\n  - name: a\n    imagee: b\n    tty: 5\n---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d}\nspec:\n  template: {}\n",
    );
    let validate = |args: &[&Path]| host.cmd(["validate"]).args(args);
    assert_golden("validate-good", &validate(&[&good]).ok().transcript());
    assert_golden("validate-verbose", &validate(&[&good]).arg("-v").ok().transcript());
    assert_golden("validate-bad", &validate(&[&good, &bad]).fails(1).transcript());
    assert_golden("validate-json", &validate(&[&good, &bad]).args(["-o", "json"]).fails(1).transcript());
    let maps = write(&host, "maps.yaml", &map("other").to_string());
    assert_golden("validate-no-pod", &validate(&[&maps]).fails(1).transcript());
    validate(&[&maps, &good]).ok().prints("maps.yaml: OK: ConfigMap \"other\"");
    // What validate accepts, run accepts, and it has run nothing.
    assert_eq!(listed(&host), Vec::<String>::new());
}

#[test]
fn validate_says_what_the_host_lacks() {
    let host = Host::fake();
    let profile = json!({ "type": "Localhost", "localhostProfile": "audit.json" });
    let pod = Pod::simple("web")
        .with("securityContext/seccompProfile", profile)
        .volume("data", json!({ "persistentVolumeClaim": { "claimName": "data" } }));
    let file = write(&host, "web.yaml", &pod.text());
    let profile = host.root().join("etc/seccomp/audit.json");
    let validate = || host.cmd(["validate"]).arg(&file).ok();
    let missing = "Warning: this host would not run it now: Pod default/web: ";
    let said = validate().prints("web.yaml: OK: Pod default/web\n");
    let said =
        said.prints(&format!("{missing}volume data cannot be provided: there is no volume default/data\n"));
    said.prints(&format!("cannot be used: there is no {}\n", profile.display()));
    // A run says the same, and leaves nothing. Here it would make the claim.
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "data" },
        "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } },
    });
    run(&host, true).arg(&file).fails(1).complains("there is no volume default/data");
    let file = write(&host, "claim.yaml", &pod.beside(claim).text());
    run(&host, true).arg(&file).fails(1).complains(&format!("there is no {}", profile.display()));
    assert_eq!(listed(&host), Vec::<String>::new());
    fs::create_dir_all(profile.parent().unwrap()).unwrap();
    fs::write(&profile, "{\"defaultAction\": \"SCMP_ACT_LOG\", \"archMap\": []}").unwrap();
    let said = run(&host, true).arg(&file).fails(1);
    said.complains(
        "container web: the profile of securityContext.seccompProfile.localhostProfile cannot be used",
    )
    .complains("archMap");
    fs::write(&profile, "{\"defaultAction\": \"SCMP_ACT_LOG\"}").unwrap();
    assert_eq!(host.cmd(["validate"]).arg(&file).ok().stdout.lines().count(), 1);
}

#[test]
fn explain_prints_the_table() {
    let host = Host::bare();
    let explain = |args: &[&str]| host.cmd(["explain"]).args(args);
    assert_golden("explain-field", &explain(&["pod.spec.containers.image"]).ok().transcript());
    assert_golden("explain-subtree", &explain(&["spec.dnsConfig"]).ok().transcript());
    assert_golden("explain-json", &explain(&["spec.os", "-o", "json"]).ok().transcript());
    assert_golden("explain-unknown", &explain(&["spec.containers[].imagee"]).fails(1).transcript());
    assert_golden("explain-inside", &explain(&["spec.affinity.nodeAffinity"]).ok().transcript());
    let all = explain(&[]).ok().stdout;
    assert!(
        all.contains("spec.containers[].image ") && all.contains("metadata.annotations.magikvm.dev/vcpus")
    );
}

#[test]
fn a_pod_pulls_with_its_own_logins_which_are_kept_nowhere() {
    let images = Images::new();
    images.empty("empty");
    images.noise("empty", "one", 1, 1 << 16);
    let auth = Some(("pod".to_owned(), "hunter2hunter2".to_owned()));
    let registry = Registry::start(RegistryOptions { auth, ..RegistryOptions::default() });
    registry.push(&images.layout(), "one", "app:1");
    let host = Host::bare();
    write_registries(&host, &registry);
    let pod = |name: &str, password: Option<&str>| {
        let pod = Pod::new(name).container_of("web", &registry.name("app:1"), &["app"]);
        let pod = pod.set("spec/imagePullSecrets", json!([{ "name": "login" }]));
        match password {
            None => pod,
            Some(password) => pod.beside(json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "login" },
                "type": "kubernetes.io/dockerconfigjson",
                "stringData": { ".dockerconfigjson": registry.auth_json(password) },
            })),
        }
    };
    host.run_fake(&pod("nobody", None), "run").arg("-d").fails(1);
    host.run_fake(&pod("wrong", Some("guess")), "run").arg("-d").fails(1);
    host.start_fake_quietly(&pod("right", Some("hunter2hunter2")));
    let shown = host.inspect("right").unwrap();
    assert_eq!(shown["spec"]["imagePullSecrets"][0]["name"], "login");
    let secret = registry.auth_json("hunter2hunter2");
    let encoded = serde_json::from_str::<Value>(&secret).unwrap()["auths"][registry.host()]["auth"].clone();
    let encoded = encoded.as_str().unwrap();
    let grep = host.other("grep").args(["-rlsF", "-e", "hunter2", "-e", encoded]).arg(host.root()).run();
    assert_eq!(grep.stdout, "", "the login is in a file");
    let log = host.cmd(["events", "right", "-o", "json"]).ok().stdout;
    assert!(!log.contains("hunter2") && !log.contains(encoded), "{log}");
    // Another pod does not get the login of the first.
    let other = Pod::new("other").container_of("web", &registry.name("app:1"), &["app"]);
    host.run_fake(&other.with("imagePullPolicy", "Always"), "run").arg("-d").fails(1);
}

fn write_registries(host: &Host, registry: &Registry) {
    let etc = host.root().join("etc");
    fs::create_dir(&etc).unwrap();
    let text = format!("[registry.\"{}\"]\nplain-http = true\n", registry.host());
    fs::write(etc.join("registries.toml"), text).unwrap();
    // Directories that stay with the first use.
    host.cmd(["image", "ls"]).ok();
}
