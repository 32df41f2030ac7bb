//! Pods in VMs of aarch64 on any host: software emulation runs them slowly.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::images::Images;
use magikvm_tests::registry::Registry;
use magikvm_tests::virtual_machine::{VmHost, busybox};
use magikvm_tests::{Pod, wait_for};
use serde_json::json;
use std::ffi::OsStr;
use std::fs;
use std::time::Duration;

/// On a busy host an emulated foreign processor is slow.
const LONG: Duration = Duration::from_secs(90);

#[test]
fn a_pod_of_two_containers_runs_on_aarch64() {
    let host = VmHost::aarch64();
    let before = host.holdings();
    let pod = Pod::new("arm")
        .script("asks", "until wget -qO- localhost:8080; do sleep 0.1; done; uname -m; exit 7")
        .script("answers", "mkdir /www && echo 'from the other' >/www/index.html && httpd -p 8080 -h /www && exec sleep 1000");
    host.start(&pod);
    assert!(host.process("arm", "qemu") > 0);
    let logs = || {
        let logs = host.cmd(["logs", "arm", "-c", "asks"]).ok().stdout;
        logs.contains("aarch64").then_some(logs)
    };
    assert_eq!(wait_for("the page and the architecture", LONG, logs), "from the other\naarch64\n");
    assert_eq!(
        host.sh("arm", "answers", "uname -m; cat /proc/1/comm; echo $FROM"),
        "aarch64\nsleep\nimage\n"
    );
    // The filter of system calls is for the guest's architecture, whose calls have other numbers.
    let filtered = "grep Seccomp: /proc/self/status; unshare -n true 2>&1 || true";
    let seen = host.sh("arm", "answers", filtered);
    assert!(seen.contains("Seccomp:\t2") && seen.contains("not permitted"), "{seen}");
    host.cmd(["exec", "arm", "-c", "answers", "--", "sh", "-c", "exit 9"]).fails(9);
    host.cmd(["stop", "--grace", "1", "arm"]).ok();
    host.cmd(["wait", "arm"]).ok().prints("7");
    host.cmd(["rm", "arm"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_foreground_run_on_aarch64_prints_logs_and_passes_the_exit_code_on() {
    let host = VmHost::aarch64();
    let before = host.holdings();
    let pod = Pod::new("code").script("one", "uname -m; exit 5");
    let output = host.run(&pod).arg("--rm").limit(LONG).fails(5);
    assert_eq!(output.stdout, "one | aarch64\n");
    host.assert_as_before(&before);
}

#[test]
fn the_pods_architecture_is_pulled_of_an_image_for_several() {
    let arm = std::env::var_os("MAGIKVM_TEST_BUSYBOX_AARCH64").expect("ci/test.sh sets it");
    let images = Images::new();
    images.empty("empty");
    for (tag, program) in [("amd64", OsStr::new("/bin/true")), ("arm64", &arm)] {
        images.umoci("empty", tag, &[&|root| assert!(fs::copy(program, root.join("busybox")).unwrap() > 0)]);
        images.set_architecture(tag, tag);
    }
    images.index("both", &["amd64", "arm64"]);
    let registry = Registry::plain();
    registry.push(&images.layout(), "both", "app:1");
    let host = VmHost::aarch64();
    let etc = host.root().join("etc");
    fs::create_dir_all(&etc).unwrap();
    let address = registry.host();
    fs::write(etc.join("registries.toml"), format!("[registry.\"{address}\"]\nplain-http = true\n")).unwrap();
    let pod = Pod::new("pulled").container_of("web", &registry.name("app:1"), &["/busybox", "uname", "-m"]);
    assert_eq!(host.run(&pod).arg("--rm").limit(LONG).ok().stdout, "web | aarch64\n");
}

#[test]
fn an_image_for_another_architecture_than_the_vms_is_refused() {
    let host = VmHost::aarch64();
    let before = host.holdings();
    let config = json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] });
    host.import_for("amd64", "test/intel:1", busybox(), &config);
    let pod = Pod::new("mixed")
        .container("good", &["true"])
        .container_of("bad", "test/intel:1", &["true"])
        .with("imagePullPolicy", "Never");
    host.run(&pod)
        .fails(125)
        .complains("container bad: ")
        .complains("it is for linux/amd64, not for linux/arm64");
    assert_eq!(host.cmd(["ps", "-q"]).ok().stdout, "");
    host.assert_as_before(&before);
}

#[test]
#[cfg(not(target_arch = "aarch64"))]
fn without_software_emulation_a_guest_of_another_processor_is_refused() {
    let host = VmHost::aarch64();
    let before = host.holdings();
    host.run(&Pod::simple("hard"))
        .args(["--accel", "kvm"])
        .fails(125)
        .complains("is for aarch64, the host's processor is x86_64; --accel tcg emulates it")
        .complains("Hint: Name a guest image for x86_64");
    host.assert_as_before(&before);
    let doctor = host.cmd(["doctor", "--hardware"]).fails(3);
    doctor.prints("QEMU emulator version").prints("not this host's architecture, for --accel tcg only");
    host.cmd(["doctor"]).ok().prints("Pods run on this host by software emulation only");
}
