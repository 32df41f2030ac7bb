//! Real VMs: behaviour of QEMU only. The conformance list has the behaviour of every driver.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::Pod;
use magikvm_tests::guest::BadGuest;
use magikvm_tests::virtual_machine::{VmHost, guest_image};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
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
        .complains("Hint: make one with `magikvm-image build`");
    assert_eq!(output.stdout, "");
    host.assert_as_before(&before);

    // A part of the right size that is not a kernel: the VMM reports it.
    bad.damage("vmlinux", &vec![0; whole.len()]);
    let output = run().expect_code(3).complains("(stage: boot)").complains("The VM's console, last lines:");
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

/// Not a row of the conformance list: the emulator under the lab stands still when a guest of libkrun sees the extension.
#[test]
fn a_pod_that_asks_for_nested_virtualization_sees_the_processor_s_extension() {
    let host = VmHost::new();
    let pod = Pod::new("nested")
        .annotated("magikvm.dev/nested-virtualization", "true")
        .script("web", "grep -cwE 'vmx|svm' /proc/cpuinfo");
    let printed = host.run(&pod).ok().stdout;
    assert_ne!(printed, "web | 0\n");
    host.cmd(["rm", "nested"]).ok();
}
