//! Real VMs: behaviour of QEMU only. The conformance list has the behaviour of every driver.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::Pod;
use magikvm_tests::guest::BadGuest;
use magikvm_tests::mounts::Tmpfs;
use magikvm_tests::virtual_machine::{VmHost, guest_image};
use magikvm_tests::wait::until;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::fs;
use std::path::Path;
use std::time::Duration;

#[test]
fn a_pod_whose_vsock_was_killed_has_failed_and_can_be_removed() {
    let host = VmHost::new();
    let before = host.holdings();
    host.start(&Pod::simple("victim"));
    let vsock = host.process("victim", "vhost-device-vsock");
    kill(Pid::from_raw(vsock), Signal::SIGKILL).unwrap();
    host.wait_for_phase("victim", "Failed");
    let why = host.inspect("victim").unwrap()["status"]["message"].clone();
    assert!(why.as_str().unwrap().contains("vhost-device-vsock was killed by SIGKILL"), "{why}");
    host.cmd(["rm", "victim"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_guest_that_does_not_boot_says_why() {
    let host = VmHost::new();
    let before = host.holdings();
    let bad = BadGuest::copy(Path::new(&guest_image()), &host.file("guest"));
    let run = || {
        host.run(&Pod::simple("bad"))
            .arg("-d")
            .arg("--guest")
            .arg(bad.dir())
            .limit(Duration::from_secs(90))
            .run()
    };
    let whole = bad.part("vmlinux");

    bad.damage("vmlinux", &whole[..whole.len() / 2]);
    let output = run()
        .expect_code(3)
        .complains("its part vmlinux is missing or damaged")
        .complains("Hint: Make one with `magikvm-image build`");
    assert_eq!(output.stdout, "");
    host.assert_as_before(&before);

    // A part of the right size that is not a kernel: the VMM reports it.
    bad.damage("vmlinux", &vec![0; whole.len()]);
    let output = run().expect_code(3).complains("(stage: boot)").complains("The pod's console, last lines:");
    assert!(output.stderr.contains("kernel"), "{}", output.stderr);
    host.assert_as_before(&before);

    // A kernel without an init: its last messages are shown.
    bad.damage("vmlinux", &whole);
    bad.damage("initramfs", &vec![0x55; bad.part("initramfs").len()]);
    let output = run().expect_code(70).complains("(stage: boot)").complains("Kernel panic");
    assert!(output.took < Duration::from_secs(60), "{:?}", output.took);
    host.assert_as_before(&before);
}

/// No pod runs without hardware virtualization unless that is requested. If the host has it, it is used.
#[test]
fn a_class_is_never_swapped_for_a_weaker_one() {
    let host = VmHost::new();
    let found: Value =
        serde_json::from_str(&host.cmd(["doctor", "-o", "json"]).run().expect_code(0).stdout).unwrap();
    assert_eq!(found["emulation"], true, "{found}");
    let strict = host.cmd(["doctor", "--hardware"]).run();
    assert_eq!(strict.code == 0, found["hardware"] == true, "{}", strict.transcript());
    let run = host.run(&Pod::new("strict").script("web", "echo ran")).args(["--accel", "kvm", "--rm"]).run();
    if found["hardware"] == true {
        run.expect_code(0).prints("ran");
    } else {
        run.expect_code(125).complains("the host cannot run the pod").complains("--accel tcg");
    }
}

/// The fake VM's tests meet every limit; here is what QEMU, its vsock device and passt do about them.
#[test]
fn a_limit_that_is_too_low_is_said_and_leaves_nothing() {
    let host = VmHost::new();
    let before = host.holdings();
    for (limit, hint) in
        [("ulimit -n 100", "`ulimit -n 1024`"), ("ulimit -v 500000", "`ulimit -v unlimited`")]
    {
        let run = host.run(&Pod::simple("limited")).arg("-d").into_command();
        let script = format!("{limit}; exec \"$0\" \"$@\"");
        let mut shell = std::process::Command::new("/bin/bash");
        shell.args(["-c", &script]).arg(run.get_program()).args(run.get_args()).env_clear();
        shell.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?))));
        let output = shell.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{limit}: {said}");
        assert!(said.contains(hint), "{limit}: {said}");
        host.assert_as_before(&before);
    }
}

/// QEMU stops a VM whose host has no room for its writes. Nothing of them may be lost, and the user has to see why the pod stands still.
#[test]
fn a_vm_waits_for_room_on_the_hosts_disk_and_loses_nothing() {
    let mut host = VmHost::new();
    let disk = Tmpfs::at(&host.file("small"), "size=192m,mode=0700");
    let root = host.file("small/root");
    host.other("/bin/cp").arg("-a").arg(host.root()).arg(&root).ok();
    host.set_env("MAGIKVM_ROOT", root.to_string_lossy());
    let claim = json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "data" },
        "spec": { "accessModes": ["ReadWriteOncePod"], "storageClassName": "directory",
            "resources": { "requests": { "storage": "1Mi" } } } });
    let pod = Pod::new("full")
        .script("web", "trap 'exit 0' TERM; sleep 1000000 & wait")
        .volume("v", json!({ "persistentVolumeClaim": { "claimName": "data" } }))
        .mount("v", "/v", json!({}))
        .beside(claim);
    host.start(&pod);
    let status = || host.inspect("full").unwrap()["status"].clone();
    // Whoever reaches the claim keeps its lock.
    let state: Value =
        serde_json::from_slice(&fs::read(root.join("run/pods/default_full/state.json")).unwrap()).unwrap();
    for name in ["qemu", "virtiofs"] {
        let process = state["processes"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
        let held = fs::read_link(format!("/proc/{}/fd/12", process["pid"])).unwrap();
        assert_eq!(held.parent(), Some(root.join("data/volumes/default_data/users").as_path()), "{name}");
    }

    // 16 MiB of different lines, written while the disk is full.
    let filler = disk.fill();
    let script = "i=0; while [ $i -lt 4096 ]; do printf '%04095d\\n' $i; i=$((i+1)); done > /big; sync; sha256sum < /big";
    let writes = host.cmd(["exec", "full", "--", "sh", "-c", script]).limit(Duration::from_secs(300)).spawn();
    until("the VM stands still", || status()["reason"] == "HostDiskFull");
    assert!(host.cmd(["ps"]).ok().stdout.contains(" HostDiskFull "));
    host.cmd(["exec", "full", "--", "true"]).run().complains("stands still because the host's disk is full");
    drop(filler);
    until("it goes on", || status()["reason"].is_null());
    let expected = (0..4096).fold(Sha256::new(), |hash, line| hash.chain_update(format!("{line:04095}\n")));
    let expected: String = expected.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let written = writes.wait();
    assert_eq!(written.code, 0, "{}", written.transcript());
    assert_eq!(written.stdout, format!("{expected}  -\n"));
    let events = host.cmd(["events", "full"]).ok().stdout;
    assert!(
        events.contains("the VM stands still until there is room") && events.contains("has room again"),
        "{events}"
    );

    // A pod whose disk stays full can be stopped all the same. The first file has its room already.
    let filler = disk.fill();
    let script = script.replace("/big", "/more");
    let writes =
        host.cmd(["exec", "full", "--", "sh", "-c", &script]).limit(Duration::from_secs(300)).spawn();
    until("the VM stands still again", || status()["reason"] == "HostDiskFull");
    let stopped = host.cmd(["stop", "full", "--grace", "1"]).ok();
    assert!(stopped.took < Duration::from_secs(35), "{:?}", stopped.took);
    assert_eq!((host.phase("full").as_str(), &status()["reason"]), ("Failed", &json!("HostDiskFull")));
    assert_ne!(writes.wait().code, 0);
    drop(filler);
    host.cmd(["rm", "full"]).ok();
    host.cmd(["volume", "rm", "data"]).ok();
    assert!(!root.join("run/pods/default_full").exists());
    assert_eq!(fs::read_dir(root.join("data/scratch")).unwrap().count(), 0);
}
