//! Pods whose images are pulled at the start: the requests, the progress shown, and the state after a cancelled start or a killed process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::images::Images;
use magikvm_tests::processes::{self, is_alive};
use magikvm_tests::proxy::{Action, Proxy};
use magikvm_tests::registry::Registry;
use magikvm_tests::tools::files;
use magikvm_tests::wait::{until, wait_for};
use magikvm_tests::{Host, Pod, Running};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: usize = 1 << 20;
/// Time for a cancellation.
const PROMPT: Duration = Duration::from_secs(3);

/// Images of one layer: `one`, `other`.
fn some_images() -> Images {
    let images = Images::new();
    images.empty("empty");
    images.noise("empty", "one", 1, MIB);
    images.noise("empty", "other", 2, MIB);
    images
}

/// A registry with these images as `app:1` and `other:1`.
fn registry_with(images: &Images) -> Registry {
    let registry = Registry::plain();
    registry.push(&images.layout(), "one", "app:1");
    registry.push(&images.layout(), "other", "other:1");
    registry.forget();
    registry
}

/// A host that speaks plain HTTP to these registries.
fn host_of(registries: &[String]) -> Host {
    let host = Host::bare();
    let etc = host.root().join("etc");
    fs::create_dir(&etc).unwrap();
    let tables = registries.iter().map(|name| format!("[registry.\"{name}\"]\nplain-http = true\n"));
    fs::write(etc.join("registries.toml"), tables.collect::<String>()).unwrap();
    // Directories that stay with the first use.
    host.cmd(["image", "ls"]).ok();
    host
}

fn pod(name: &str, image: &str) -> Pod {
    Pod::new(name).container_of("web", image, &["app"])
}

/// The store except the index and the lock, which stay.
fn stored(host: &Host) -> Vec<String> {
    let mut files = files(&host.root().join("data/images"));
    files.retain(|file| !["index.json", "lock"].contains(&file.as_str()));
    files
}

/// The id of the image that a pod's first container runs.
#[track_caller]
fn image_id(host: &Host, pod: &str) -> String {
    host.inspect(pod).unwrap()["status"]["containerStatuses"][0]["imageID"].as_str().unwrap().to_owned()
}

/// Blobs that a pull of both needs.
fn layer(images: &Images, tag: &str) -> String {
    let manifest = magikvm_tests::images::manifest(&images.layout(), tag);
    manifest["layers"][0]["digest"].as_str().unwrap().trim_start_matches("sha256:").to_owned()
}

/// The PID of a process of this host, by its hidden verb.
#[track_caller]
fn process(host: &Host, verb: &str) -> i32 {
    wait_for(&format!("a process {verb}"), Duration::from_secs(20), || {
        let all = processes::of_directory(&host.root());
        all.iter().find(|process| process.command.ends_with(verb)).map(|process| process.pid)
    })
}

fn kill9(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("the process is there");
}

#[test]
fn a_policy_says_when_the_registry_is_asked() {
    let images = some_images();
    let mut registry = registry_with(&images);
    let host = host_of(&[registry.host()]);
    let name = registry.name("app:1");
    let with = |policy: &str| {
        let pod = pod("p", &name).with("imagePullPolicy", policy);
        host.run_fake(&pod, "exit=0").arg("--rm")
    };
    with("Never").fails(125).complains(&format!("container web: the image {name} is not in the store"));
    assert_eq!(registry.requests(), []);

    let said = with("IfNotPresent").ok();
    assert_eq!(said.stdout, "web | hello from web\n");
    assert!(registry.fetched_blobs().contains(&layer(&images, "one")));
    registry.forget();
    for policy in ["IfNotPresent", "Never"] {
        assert_eq!(with(policy).ok().stderr, "");
    }
    assert_eq!(registry.requests(), []);

    // The registry is asked each time, and nothing is pulled that is in the store.
    with("Always").ok();
    assert!(registry.requests().iter().any(|one| one.path == "/v2/app/manifests/1"));
    assert_eq!(registry.fetched_blobs(), [""; 0]);
    registry.push(&images.layout(), "other", "app:1");
    registry.forget();
    with("IfNotPresent").ok();
    assert_eq!(registry.requests(), []);
    with("Always").ok();
    assert!(registry.fetched_blobs().contains(&layer(&images, "other")));

    // Without the registry, pods that need not ask it run.
    registry.stop();
    for policy in ["IfNotPresent", "Never"] {
        with(policy).ok();
    }
    let said = with("Always").fails(125).complains(&format!("cannot pull {name}"));
    said.complains("cannot connect").complains("Hint: ");
    let detached = host.run_fake(&pod("p", &name).with("imagePullPolicy", "Always"), "run").arg("-d");
    detached.fails(1).complains("(stage: image)");
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "");
}

#[test]
fn the_tag_latest_is_asked_for_each_time_and_others_once() {
    let images = some_images();
    let registry = registry_with(&images);
    registry.push(&images.layout(), "one", "app:latest");
    let host = host_of(&[registry.host()]);
    let run = |image: &str| {
        host.start_fake_quietly(&pod("p", image));
        let id = image_id(&host, "p");
        host.cmd(["rm", "-f", "p"]).ok();
        id
    };
    let (latest, one) = (registry.name("app"), registry.name("app:1"));
    let old = run(&latest);
    assert_eq!(run(&one), old);
    for tag in ["app:latest", "app:1"] {
        registry.push(&images.layout(), "other", tag);
    }
    assert_ne!(run(&latest), old);
    assert_ne!(run(&format!("{latest}:latest")), old);
    assert_eq!(run(&one), old);
    // A pinned image cannot change and is never requested again.
    let host = host_of(&[registry.host()]);
    let digest = registry.push(&images.layout(), "one", "app:2");
    let pinned = pod("p", &registry.name(&format!("app@{digest}"))).with("imagePullPolicy", "Always");
    host.run_fake(&pinned, "exit=0").arg("--rm").ok();
    registry.forget();
    host.run_fake(&pinned, "exit=0").arg("--rm").ok();
    assert_eq!(registry.requests(), []);
}

#[test]
fn containers_share_what_is_pulled() {
    let images = some_images();
    let registry = registry_with(&images);
    let host = host_of(&[registry.host()]);
    let (app, other) = (registry.name("app:1"), registry.name("other:1"));
    let pod = Pod::new("several")
        .container_of("a", &app, &["app"])
        .with("imagePullPolicy", "Always")
        .container_of("b", &other, &["app"])
        .container_of("c", &app, &["app"]);
    let said = host.run_fake(&pod, "exit=0").ok();
    for image in [&app, &other] {
        assert_eq!(said.stderr.matches(&format!("Pulling {image}\n")).count(), 1, "{}", said.stderr);
    }
    let fetched = registry.fetched_blobs();
    let times = |blob: &str| fetched.iter().filter(|one| *one == blob).count();
    assert_eq!([times(&layer(&images, "one")), times(&layer(&images, "other"))], [1, 1], "{fetched:?}");
    assert_eq!(fetched.len(), 4, "two layers and two configurations: {fetched:?}");
    let manifests = registry.requests().iter().filter(|one| one.path.contains("/manifests/")).count();
    assert_eq!(manifests, 2);
    host.cmd(["image", "verify", "--all"]).ok();
}

/// An incomplete image is pulled again, but only its missing layers.
#[test]
fn a_root_file_system_that_is_gone_is_made_again() {
    let images = some_images();
    let registry = registry_with(&images);
    let host = host_of(&[registry.host()]);
    let pod = pod("p", &registry.name("app:1"));
    let run = || host.run_fake(&pod, "exit=0").arg("--rm");
    run().ok();
    let whole = stored(&host);
    for cut in [None, Some(4096)] {
        let rootfs = host.root().join("data/images/rootfs");
        let file = rootfs.join(files(&rootfs).pop().unwrap());
        match cut {
            None => fs::remove_file(&file).unwrap(),
            Some(length) => fs::File::options().write(true).open(&file).unwrap().set_len(length).unwrap(),
        }
        registry.forget();
        run().ok();
        assert!(!registry.fetched_blobs().contains(&layer(&images, "one")));
        assert_eq!(stored(&host), whole);
        host.cmd(["image", "verify", "--all"]).ok();
    }
}

#[test]
fn what_is_pulled_is_told_line_by_line() {
    let images = some_images();
    let registry = registry_with(&images);
    let host = host_of(&[registry.host()]);
    let name = registry.name("app:1");
    let said = host.run_fake(&pod("p", &name), "exit=0").ok();
    assert_eq!(said.stdout, "web | hello from web\n");
    let lines: Vec<&str> = said.stderr.lines().collect();
    assert_eq!(lines[0], format!("Pulling {name}"));
    assert!((3..20).contains(&lines.len()), "{}", said.stderr);
    assert!(lines.iter().any(|line| line.starts_with("1 layer, ")), "{}", said.stderr);
    assert!(!said.stderr.contains(['\r', '\x1b']), "{:?}", said.stderr);
    host.cmd(["rm", "p"]).ok();
    assert_eq!(host.run_fake(&pod("p", &name), "exit=0").ok().stderr, "", "nothing is pulled");
}

#[test]
fn an_image_that_is_not_there_leaves_nothing() {
    let registry = registry_with(&some_images());
    let host = host_of(&[registry.host()]);
    let before = host.holdings();
    for (image, text) in [
        (registry.name("app:missing"), "not found"),
        (registry.name("nothing:1"), "not found"),
        ("127.0.0.1:1/app:1".to_owned(), "127.0.0.1:1"),
    ] {
        let pod = pod("p", &image);
        let said = host.run_fake(&pod, "run").arg("-d").fails(1).complains(text).complains(&image);
        assert_eq!(said.stdout, "");
        host.run_fake(&pod, "run").fails(125).complains("(stage: image)").complains("Hint: ");
        host.assert_as_before(&before);
    }
    // One image that is in the store, and one that is not.
    let both = pod("p", &registry.name("app:1")).container_of("b", &registry.name("app:missing"), &["app"]);
    host.run_fake(&both, "run").arg("-d").fails(1);
    host.assert_as_before(&before);
    host.cmd(["image", "verify", "--all"]).ok();
}

/// A registry whose layers stall before their end.
struct Stalled {
    _registry: Registry,
    proxy: Proxy,
    host: Host,
}

impl Stalled {
    fn new() -> Self {
        let registry = registry_with(&some_images());
        let proxy = Proxy::start(registry.port(), |request| match request.is_blob() {
            true => Action::StallAfter(100_000),
            false => Action::Forward,
        });
        let host = host_of(&[proxy.host(), registry.host()]);
        Self { _registry: registry, proxy, host }
    }

    /// Starts a pod and waits until a part of its image's layer is in the store.
    fn start(&self, options: &[&str]) -> Running {
        self.proxy.forget();
        let running = self.host.run_fake(&pod("p", &self.proxy.name("app:1")), "run").args(options).spawn();
        until("a part of the layer", || {
            let dir = self.host.root().join("data/images/blobs");
            let temporary = |name: &String| name.starts_with(".tmp-");
            files(&dir)
                .iter()
                .filter(|name| temporary(name))
                .any(|name| fs::metadata(dir.join(name)).is_ok_and(|metadata| metadata.len() > 0))
        });
        running
    }
}

#[test]
fn giving_up_is_prompt_and_leaves_nothing() {
    let stalled = Stalled::new();
    let host = &stalled.host;
    let before = host.holdings();
    for (signal, options, code) in [
        (Signal::SIGINT, &["-d"][..], 130),
        (Signal::SIGTERM, &["-d"], 143),
        (Signal::SIGINT, &["--rm"], 130),
    ] {
        let running = stalled.start(options);
        let begun = Instant::now();
        running.signal(signal);
        let said = running.wait().expect_code(code).complains("the start was cancelled (stage: cancelled)");
        assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
        assert_eq!(said.stdout, "");
        host.assert_as_before(&before);
        assert_eq!(stored(host), [""; 0]);
    }
}

#[test]
fn a_pull_takes_no_longer_than_it_may() {
    let stalled = Stalled::new();
    let host = &stalled.host;
    let before = host.holdings();
    let begun = Instant::now();
    let said = stalled.start(&["-d", "--pull-timeout", "1"]).wait().expect_code(1);
    said.complains("it took longer than 1 s").complains("Hint: ");
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    host.assert_as_before(&before);
    assert_eq!(stored(host), [""; 0]);
}

/// A pod exists while its image is pulled: it has its name, is shown, and can be stopped and removed.
#[test]
fn a_pod_that_pulls_can_be_seen_stopped_and_removed() {
    let stalled = Stalled::new();
    let host = &stalled.host;
    let before = host.holdings();
    for verb in [&["stop", "p"][..], &["rm", "-f", "p"]] {
        let running = stalled.start(&["-d"]);
        assert_eq!(host.phase("p"), "Pending");
        host.cmd(["rm", "p"])
            .fails(1)
            .complains("pod default/p is being started")
            .complains("`magikvm rm -f default/p`");
        let second = host.run_fake(&pod("p", &stalled.proxy.name("app:1")), "run").arg("-d").fails(1);
        second.complains("a pod named default/p is running");
        let begun = Instant::now();
        host.cmd(verb).ok();
        running.wait().expect_code(1).complains("cancelled");
        assert!(begun.elapsed() < PROMPT, "{verb:?}: {:?}", begun.elapsed());
        host.assert_as_before(&before);
        assert_eq!(stored(host), [""; 0], "{verb:?}");
    }
}

#[test]
fn without_its_monitor_a_pull_ends() {
    let stalled = Stalled::new();
    let host = &stalled.host;
    let before = host.holdings();
    for (options, code) in [(&["-d"][..], 70), (&[], 125)] {
        for clean in ["rm", "run"] {
            let running = stalled.start(options);
            let (monitor, puller) = (process(host, "__monitor"), process(host, "__pull"));
            kill9(monitor);
            let said =
                running.wait().expect_code(code).complains("the pod's monitor ended before the pod ran");
            said.complains("Hint: ");
            until("the puller has ended with its monitor", || !is_alive(puller));
            assert_eq!(host.phase("p"), "Lost");
            match clean {
                "rm" => drop(host.cmd(["rm", "-f", "p"]).ok()),
                _ => {
                    let pod = pod("p", &stalled._registry.name("app:1"));
                    host.run_fake(&pod, "exit=0").arg("--rm").ok();
                    host.cmd(["image", "rm", &stalled._registry.name("app:1")]).ok();
                }
            }
            host.assert_as_before(&before);
            host.cmd(["image", "prune"]).ok();
            assert_eq!(stored(host), [""; 0], "{clean}");
        }
    }
}

#[test]
fn without_its_puller_a_run_fails_and_leaves_nothing() {
    let stalled = Stalled::new();
    let host = &stalled.host;
    let before = host.holdings();
    for (options, code) in [(&["-d"][..], 3), (&["--rm"], 125)] {
        let running = stalled.start(options);
        kill9(process(host, "__pull"));
        let said = running.wait().expect_code(code);
        said.complains("the process that pulls the pod's images was killed").complains("Hint: ");
        host.assert_as_before(&before);
        host.cmd(["image", "prune"]).ok();
        assert_eq!(stored(host), [""; 0]);
    }
}

/// An unforced end of the puller is an internal error, and its last messages are reported.
#[test]
fn what_a_puller_says_before_it_ends_is_told() {
    let registry = registry_with(&some_images());
    let host = host_of(&[registry.host()]);
    let before = host.holdings();
    let run = host.run_fake(&pod("p", &registry.name("app:1")), "exit=0").env("MAGIKVM_FAULT", "puller");
    let said =
        run.arg("-d").fails(70).complains("pulls the pod's images ended without a word (exit code 101)");
    said.complains("fault injected in the puller");
    host.assert_as_before(&before);
}

#[test]
fn without_its_command_line_a_pull_goes_on() {
    let registry = registry_with(&some_images());
    let goes_on = Arc::new(AtomicBool::new(false));
    let of_rule = Arc::clone(&goes_on);
    let proxy = Proxy::start(registry.port(), move |request| {
        if request.is_blob() {
            until("leave to go on", || of_rule.load(Ordering::SeqCst));
        }
        Action::Forward
    });
    let host = host_of(&[proxy.host()]);
    let before = host.holdings();
    let running = host.run_fake(&pod("p", &proxy.name("app:1")), "run").arg("-d").spawn();
    process(&host, "__pull");
    until("a blob is asked for", || proxy.requests().iter().any(|request| request.is_blob()));
    running.signal(Signal::SIGKILL);
    running.wait().expect_code(137);
    assert_eq!(host.phase("p"), "Pending");
    goes_on.store(true, Ordering::SeqCst);
    host.wait_for_phase("p", "Running");
    host.cmd(["rm", "-f", "p"]).ok();
    host.assert_as_before(&before);
    host.cmd(["image", "verify", "--all"]).ok();
}

/// Two runs at once pull an image once, and a kill of one run does not affect the other.
#[test]
fn runs_at_once_share_a_pull() {
    let images = some_images();
    let registry = registry_with(&images);
    let host = host_of(&[registry.host()]);
    let running: Vec<Running> = (0..4)
        .map(|number| {
            let pod = pod(&format!("p{number}"), &registry.name("app:1"));
            host.run_fake(&pod, "exit=0").arg("--rm").spawn()
        })
        .collect();
    for one in running {
        one.wait().expect_code(0);
    }
    let fetched = registry.fetched_blobs();
    assert_eq!(fetched.iter().filter(|blob| **blob == layer(&images, "one")).count(), 1, "{fetched:?}");
}
