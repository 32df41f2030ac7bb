//! Kills, interruptions and full disks: nothing is damaged, nothing is left, and the next pull works.

use crate::{MIB, layers, left, mounted, pull, pulled, registry_with, rootfs, some_images};
use magikvm_tests::Host;
use magikvm_tests::proxy::{Action, Proxy};
use magikvm_tests::tools::{Mounted, files, run};
use magikvm_tests::wait::until;
use nix::sys::signal::Signal;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// No request is stalled.
const NONE: usize = usize::MAX;

#[test]
fn an_interruption_ends_it_at_once_and_leaves_nothing() {
    let images = some_images(3 * MIB);
    let registry = registry_with(&images, &["c"]);
    let last = layers(&images, "c").pop().unwrap();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let stalled = last.clone();
        let proxy = Proxy::start(registry.port(), move |request| match request.path.ends_with(&stalled) {
            true => Action::StallAfter(1_000_000),
            false => Action::Forward,
        });
        let host = Host::bare();
        let running = pull(&host, &proxy.name("app:c")).spawn();
        until("a part of the last layer", || {
            let asked = proxy.requests().iter().any(|request| request.path.ends_with(&last));
            asked && files(&host.root()).len() > 2
        });
        let begun = Instant::now();
        running.signal(signal);
        let output = running.wait().expect_code(128 + signal as i32);
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
        assert_eq!(output.stdout, "");
        assert_eq!(left(&host.root()), [""; 0]);
        pulled(&host, &registry.name("app:c"));
    }
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

/// Files that stay but for the index, which an empty store may have.
fn without_index(host: &Host) -> Vec<String> {
    left(&host.root()).into_iter().filter(|file| file != "data/images/index.json").collect()
}

/// Killed at moments spread over the whole pull: between requests, in the bake, in the writing of the index.
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
    let (expected, list) = (files(&pristine.root()), pristine.cmd(["image", "ls"]).ok().stdout);
    let mut killed = 0;
    for moment in 0..30 {
        let host = Host::bare();
        pulled(&host, &registry.name("app:alone"));
        let mut running = pull(&host, &name).into_command();
        let mut child =
            running.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap();
        // Not a wait for anything: the moment is what is varied.
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
        assert_eq!(host.cmd(["image", "ls"]).ok().stdout, list);
        host.cmd(["image", "verify", "--all"]).ok();
    }
    assert!(killed >= 10, "{killed}");
}

/// From a disk that holds nothing up to one that holds the image.
#[test]
fn a_full_disk_is_said_so_and_leaves_nothing() {
    let images = some_images(2 * MIB);
    let registry = registry_with(&images, &["a"]);
    let name = registry.name("app:a");
    let host = Host::bare();
    for (failed, size_kib) in (64..20_000).step_by(384).enumerate() {
        let disk = Mounted::tmpfs(&format!("{size_kib}k"));
        let at = |args: &[&str]| host.cmd(["--root"]).arg(disk.path()).args(args);
        let output = at(&["image", "pull", "--plain-http", &name]).run();
        if output.code == 0 {
            assert!(failed > 10, "{failed}");
            at(&["image", "verify", "--all"]).ok();
            return;
        }
        let output = output.expect_code(3).complains("No space left");
        assert_eq!(left(disk.path()), [""; 0], "{size_kib} KiB\n{}", output.stderr);
        run("mount", &[&"-o", &"remount,size=64m", &disk.path()]);
        at(&["image", "pull", "--plain-http", &name]).ok();
        drop(Mounted::erofs(&rootfs(disk.path())));
    }
    panic!("the image never had room");
}

/// A full disk takes nothing of what was there before.
#[test]
fn a_full_disk_keeps_what_it_has() {
    let images = some_images(2 * MIB);
    let registry = registry_with(&images, &["alone", "c"]);
    let disk = Mounted::tmpfs("9m");
    let host = Host::bare();
    let at = |args: &[&str]| host.cmd(["--root"]).arg(disk.path()).args(args);
    at(&["image", "pull", "--plain-http", &registry.name("app:alone")]).ok();
    let (before, list) = (files(disk.path()), at(&["image", "ls"]).ok().stdout);
    at(&["image", "pull", "--plain-http", &registry.name("app:c")]).fails(3).complains("No space left");
    assert_eq!((files(disk.path()), at(&["image", "ls"]).ok().stdout), (before, list));
    at(&["image", "verify", "--all"]).ok();
}

/// What was brought before the connection was lost for good does not have to come again, or is gone: never half of it.
#[test]
fn a_pull_that_failed_in_the_last_layer_can_be_done_again() {
    let images = some_images(MIB);
    let registry = registry_with(&images, &["c"]);
    let last = layers(&images, "c").pop().unwrap();
    let broken = Arc::new(AtomicUsize::new(1));
    let (of_rule, digest) = (Arc::clone(&broken), last);
    let proxy = Proxy::start(registry.port(), move |request| {
        match request.path.ends_with(&digest) && of_rule.load(Ordering::SeqCst) == 1 {
            true => Action::status(404),
            false => Action::Forward,
        }
    });
    let host = Host::bare();
    let name = proxy.name("app:c");
    crate::refused(pull(&host, &name), &["layer 3 of 3"]);
    assert_eq!(left(&host.root()), [""; 0]);
    broken.store(0, Ordering::SeqCst);
    pulled(&host, &name);
    drop(mounted(&host));
}
