//! Kills, interruptions and full disks: nothing is damaged, nothing is left, and the next pull works.

use crate::{
    MIB, layers, left, left_but_layers, mounted, pull, pulled, refused, registry_with, rootfs, some_images,
};
use magikvm_tests::proxy::{Action, Proxy, Request};
use magikvm_tests::tools::{Mounted, files, run};
use magikvm_tests::wait::until;
use magikvm_tests::{Host, Running};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

/// Index of no request: none is stalled.
const NONE: usize = usize::MAX;

#[test]
fn an_interruption_ends_it_at_once_and_leaves_nothing() {
    let images = some_images(3 * MIB);
    let registry = registry_with(&images, &["c"]);
    let last = layers(&images, "c").pop().unwrap();
    // Waiting for the manifest, for the configuration, in the middle of a layer.
    let stalls = [("/manifests/c".to_owned(), 0), ("/blobs/".to_owned(), 0), (last, 1_000_000)];
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        for (path, bytes) in stalls.clone() {
            let stalled = path.clone();
            let proxy = Proxy::start(registry.port(), move |request| match request.path.contains(&stalled) {
                true if bytes == 0 => Action::Stall,
                true => Action::StallAfter(bytes),
                false => Action::Forward,
            });
            let host = Host::bare();
            let running = pull(&host, &proxy.name("app:c")).spawn();
            until("the request, and a part of the layer", || {
                let asked = proxy.requests().iter().any(|request| request.path.contains(&path));
                asked && (bytes == 0 || files(&host.root()).len() > 2)
            });
            assert_ends_at(signal, running);
            assert_eq!(left_but_layers(&host.root()), [""; 0]);
            pulled(&host, &registry.name("app:c"));
        }
    }
}

#[track_caller]
fn assert_ends_at(signal: Signal, running: Running) {
    let begun = Instant::now();
    running.signal(signal);
    let output = running.wait();
    assert!([130, 128 + signal as i32].contains(&output.code), "{}", output.transcript());
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(output.stdout, "");
}

/// `nohup` and `trap '' INT` are respected.
#[test]
fn a_signal_that_was_ignored_at_the_start_stays_ignored() {
    let images = some_images(MIB);
    let registry = registry_with(&images, &["a"]);
    for signal in [Signal::SIGHUP, Signal::SIGINT] {
        let (go_on, wait) = mpsc::channel::<()>();
        let wait = Mutex::new(wait);
        let proxy = Proxy::start(registry.port(), move |request| {
            if request.path.contains("/manifests/") {
                // Ends all requests when the sender is dropped.
                wait.lock().unwrap().recv().unwrap_err();
            }
            Action::Forward
        });
        let host = Host::bare();
        let script = format!("trap '' {}; exec \"$@\"", signal as i32);
        let pull = pull(&host, &proxy.name("app:a")).into_command();
        let shell =
            host.other("/bin/sh").args(["-c", &script, "sh"]).arg(pull.get_program()).args(pull.get_args());
        let running = shell.spawn();
        until("the first request", || !proxy.requests().is_empty());
        running.signal(signal);
        drop(go_on);
        running.wait().expect_code(0);
    }
}

/// Waiting for another process can be interrupted too.
#[test]
fn an_interruption_ends_the_wait_for_another_process() {
    let images = some_images(MIB);
    let registry = registry_with(&images, &["a", "b"]);
    let shared = layers(&images, "base").pop().unwrap();
    let proxy = Proxy::start(registry.port(), move |request| match request.path.ends_with(&shared) {
        true => Action::StallAfter(100_000),
        false => Action::Forward,
    });
    let host = Host::bare();
    let first = pull(&host, &proxy.name("app:a")).spawn();
    until("the first has begun", || {
        proxy.requests().iter().any(Request::is_blob) && files(&host.root()).len() > 2
    });
    // One pull of the same image, and one pull of the same layer.
    for name in ["app:a", "app:b"] {
        let mut second = pull(&host, &proxy.name(name)).spawn();
        second.wait_for_stderr("another process");
        assert_ends_at(Signal::SIGINT, second);
    }
    assert_ends_at(Signal::SIGINT, first);
    assert_eq!(left_but_layers(&host.root()), [""; 0]);
}

/// Killed while the first, second, … request is unanswered or half answered.
#[test]
fn a_killed_pull_leaves_nothing_that_stays() {
    let images = some_images(3 * MIB);
    let registry = registry_with(&images, &["c"]);
    let (stall_at, asked) = (Arc::new(AtomicUsize::new(NONE)), Arc::new(AtomicUsize::new(0)));
    let (of_rule, counted) = (Arc::clone(&stall_at), Arc::clone(&asked));
    let after = Arc::new(AtomicUsize::new(0));
    let bytes = Arc::clone(&after);
    let proxy = Proxy::start(registry.port(), move |_| {
        match counted.fetch_add(1, Ordering::SeqCst) == of_rule.load(Ordering::SeqCst) {
            true => Action::StallAfter(bytes.load(Ordering::SeqCst) as u64),
            false => Action::Forward,
        }
    });
    let name = proxy.name("app:c");
    let pristine = Host::bare();
    pulled(&pristine, &name);
    let requests = asked.load(Ordering::SeqCst);
    let (expected, content) = (files(&pristine.root()), fs::read(rootfs(&pristine.root())).unwrap());

    for half in [0, 2_000_000] {
        for stalled in 0..requests {
            let host = Host::bare();
            after.store(half, Ordering::SeqCst);
            asked.store(0, Ordering::SeqCst);
            stall_at.store(stalled, Ordering::SeqCst);
            let running = pull(&host, &name).spawn();
            until("the request", || asked.load(Ordering::SeqCst) > stalled);
            running.signal(Signal::SIGKILL);
            running.wait();
            stall_at.store(NONE, Ordering::SeqCst);
            let what = format!("killed in request {stalled} after {half} bytes");
            if stalled % 2 == 0 {
                host.cmd(["image", "prune"]).ok();
                assert_eq!(without_index(&host), [""; 0], "{what}");
            }
            pulled(&host, &name);
            assert_eq!(files(&host.root()), expected, "{what}");
            assert!(fs::read(rootfs(&host.root())).unwrap() == content, "{what}");
            host.cmd(["image", "verify", "--all"]).ok();
        }
    }
}

/// Files that stay, except the index, which an empty store may have.
fn without_index(host: &Host) -> Vec<String> {
    left(&host.root()).into_iter().filter(|file| file != "data/images/index.json").collect()
}

fn names_and_ids(host: &Host) -> Vec<String> {
    let list = host.cmd(["image", "ls"]).ok().stdout;
    list.lines().map(|line| line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")).collect()
}

/// Killed at moments spread over the whole pull: between requests, while the root file system is built, and while the index is written.
#[test]
fn a_pull_killed_at_any_moment_can_be_done_again() {
    let images = some_images(2 * MIB);
    let registry = registry_with(&images, &["c", "alone"]);
    let name = registry.name("app:c");
    let pristine = Host::bare();
    pulled(&pristine, &registry.name("app:alone"));
    let kept = files(&pristine.root());
    let begun = Instant::now();
    pulled(&pristine, &name);
    let whole = begun.elapsed();
    let (expected, list) = (files(&pristine.root()), names_and_ids(&pristine));
    let mut killed = 0;
    for moment in 0..30 {
        let host = Host::bare();
        pulled(&host, &registry.name("app:alone"));
        let mut running = pull(&host, &name).into_command();
        let mut child =
            running.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        // This is not a wait for an event: the moment is the variable.
        std::thread::sleep(whole * moment / 30);
        child.kill().unwrap();
        killed += u32::from(!child.wait().unwrap().success());
        match moment % 2 {
            0 => {
                host.cmd(["image", "prune"]).ok();
                let files = files(&host.root());
                assert!(files == kept || files == expected, "moment {moment}: {files:?}");
            }
            _ => drop(host.cmd(["image", "verify", "--all"]).ok()),
        }
        pulled(&host, &name);
        assert_eq!(files(&host.root()), expected, "moment {moment}");
        assert_eq!(names_and_ids(&host), list);
        host.cmd(["image", "verify", "--all"]).ok();
    }
    assert!(killed >= 10, "{killed}");
}

/// From a disk without room up to one with room for the image.
#[test]
fn a_full_disk_is_said_so_and_leaves_nothing() {
    let images = some_images(2 * MIB);
    let registry = registry_with(&images, &["a"]);
    let name = registry.name("app:a");
    let host = Host::bare();
    let mut codes = BTreeSet::new();
    for (failed, size_kib) in (64..20_000).step_by(384).enumerate() {
        let disk = Mounted::tmpfs(&format!("{size_kib}k"));
        let at = |args: &[&str]| host.cmd(["--root"]).arg(disk.path()).args(args);
        let output = at(&["image", "pull", "--plain-http", &name]).run();
        if output.code == 0 {
            assert!(failed > 10, "{failed}");
            at(&["image", "verify", "--all"]).ok();
            assert_eq!(codes, BTreeSet::from([3]), "a full disk is a fault of the environment");
            return;
        }
        let output = output.complains("No space left");
        codes.insert(output.code);
        assert_eq!(left(disk.path()), [""; 0], "{size_kib} KiB\n{}", output.stderr);
        run("mount", &[&"-o", &"remount,size=64m", &disk.path()]);
        at(&["image", "pull", "--plain-http", &name]).ok();
        drop(Mounted::erofs(&rootfs(disk.path())));
    }
    panic!("the image never had room");
}

/// A full disk does not affect existing images.
#[test]
fn a_full_disk_keeps_what_it_has() {
    let images = some_images(2 * MIB);
    let registry = registry_with(&images, &["alone", "c"]);
    let disk = Mounted::tmpfs("9m");
    let host = Host::bare();
    let at = |args: &[&str]| host.cmd(["--root"]).arg(disk.path()).args(args);
    at(&["image", "pull", "--plain-http", &registry.name("app:alone")]).ok();
    let (before, list) = (files(disk.path()), at(&["image", "ls", "-q"]).ok().stdout);
    refused(at(&["image", "pull", "--plain-http", &registry.name("app:c")]), &["No space left"]);
    assert_eq!((files(disk.path()), at(&["image", "ls", "-q"]).ok().stdout), (before, list));
    at(&["image", "verify", "--all"]).ok();
}

/// Layers that were pulled before the connection was lost are not pulled again.
#[test]
fn layers_of_a_pull_that_failed_need_not_come_again() {
    let images = some_images(MIB);
    let registry = registry_with(&images, &["c"]);
    let all = layers(&images, "c");
    let host = Host::bare();
    let (is_broken, blobs) = (Arc::new(AtomicBool::new(true)), host.root().join("data/images/blobs"));
    let (of_rule, last) = (Arc::clone(&is_broken), all[2].clone());
    let proxy = Proxy::start(registry.port(), move |request| {
        if !request.path.ends_with(&last) || !of_rule.load(Ordering::SeqCst) {
            return Action::Forward;
        }
        until("the other layers", || files(&blobs).iter().filter(|name| !name.starts_with('.')).count() == 2);
        Action::CutAfter(0)
    });
    let name = proxy.name("app:c");
    refused(pull(&host, &name), &["layer 3 of 3", &all[2]]);
    let mut here = [&all[0], &all[1]].map(|digest| format!("data/images/blobs/{digest}"));
    here.sort();
    assert_eq!(left(&host.root()), here);
    is_broken.store(false, Ordering::SeqCst);
    registry.forget();
    pulled(&host, &name);
    let fetched = registry.fetched_blobs();
    assert!(fetched.contains(&all[2]) && !fetched.contains(&all[0]) && !fetched.contains(&all[1]));
    drop(mounted(&host));
}
