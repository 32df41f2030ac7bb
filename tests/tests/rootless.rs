//! Pods of an ordinary user on the host: without an account, subordinate ids or a delegated control group. `lab_rootless.rs` has the rest.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::Pod;
use magikvm_tests::rootless::{Owners, whole_life};
use magikvm_tests::user::{NO_ACCOUNT, Ordinary};
use magikvm_tests::virtual_machine::Driver;
use serde_json::json;

#[test]
fn an_ordinary_user_runs_a_pod_from_import_to_removal() {
    whole_life(&Ordinary::new(Driver::Qemu, NO_ACCOUNT), Owners::One);
}

#[test]
fn what_an_ordinary_user_lacks_is_said_with_what_mends_it() {
    let user = Ordinary::new(Driver::Qemu, NO_ACCOUNT);
    let before = user.holdings();
    let shared = user.make("shared", NO_ACCOUNT, None).to_string_lossy().into_owned();
    let pod = Pod::simple("web").volume("host", json!({ "hostPath": { "path": shared } })).mount(
        "host",
        "/host",
        json!({}),
    );
    user.run(&pod).arg("-d").ok();
    let layers = user.layers("web");
    let why = "/etc/subuid has no ids of this user; `magikvm doctor` says how to get subordinate ids";
    assert_eq!(layers["virtiofs"]["fewerIds"], why, "{layers}");
    let events = user.cmd(["events", "web"]).ok().stdout;
    assert!(
        events.contains(&format!("files of other users on hostPath volumes belong to nobody: {why}")),
        "{events}"
    );
    let missing = layers["qemu"]["missing"].as_array().cloned().unwrap_or_default();
    let group = missing.iter().find(|missing| missing["layer"] == "cgroup");
    let doctor = user.cmd(["doctor"]).run().stdout;
    assert!(doctor.contains("subordinate ids") && doctor.contains("usermod --add-subuids"), "{doctor}");
    user.cmd(["rm", "-f", "web"]).ok();
    if let Some(group) = group {
        let why = group["why"].as_str().unwrap();
        assert!(doctor.contains("jail: cgroup") && doctor.contains(why), "{doctor}");
        let refused = user.run(&pod).args(["-d", "--require-jail"]).fails(3);
        refused.complains("--require-jail: the host does not provide the layer `cgroup`").complains(why);
    }
    user.assert_as_before(&before);
}

fn in_namespaces() -> Ordinary {
    Ordinary::new(Driver::Containers, NO_ACCOUNT)
}

#[test]
fn an_ordinary_user_runs_a_pod_in_namespaces_from_import_to_removal() {
    whole_life(&in_namespaces().with_subordinate_ids().with_interfaces("666"), Owners::Subordinate);
}

#[test]
fn without_subordinate_ids_root_is_the_only_user_of_a_pod_in_namespaces() {
    let user = in_namespaces().with_interfaces("600");
    let before = user.holdings();
    let shared = user.make("shared", NO_ACCOUNT, None);
    user.make("shared/mine", NO_ACCOUNT, Some("mine\n"));
    let pod = Pod::new("web")
        .volume("host", json!({ "hostPath": { "path": shared.to_string_lossy() } }))
        .script("web", "trap 'echo bye; exit 7' TERM; echo begun; while :; do sleep 0.1; done")
        .mount("host", "/host", json!({}))
        .container("other", &["sleep", "1000"]);
    user.run(&pod).arg("-d").ok();
    let sh = |script: &str| user.cmd(["exec", "web", "-c", "web", "--", "sh", "-c", script]).run().stdout;
    assert_eq!(sh("id -u; stat -c %u:%g /bin/busybox /host/mine; cat /host/mine"), "0\n0:0\n0:0\nmine\n");
    // Writable, and nobody else: ids of the image and of the host do not exist.
    assert_eq!(sh("echo x > /new && cat /new; chown 5 /new 2>/dev/null || echo not given"), "x\nnot given\n");
    // Each container has processes of its own, and what it leaves ends with it.
    assert_eq!(sh("ps | grep -c '[s]leep 1000'"), "0\n");
    user.cmd(["pause", "web"]).ok();
    user.cmd(["ps"]).ok().prints("Paused");
    user.cmd(["resume", "web"]).ok();
    assert_eq!(sh("echo again"), "again\n");
    user.cmd(["stop", "web"]).ok();
    assert_eq!(user.cmd(["logs", "web", "-c", "web"]).ok().stdout, "begun\nbye\n");
    user.cmd(["rm", "web"]).ok();
    user.assert_as_before(&before);

    let refused = |pod: Pod| user.run(&pod).arg("-d").fails(1);
    let other = Pod::simple("other").with("securityContext", json!({ "runAsUser": 1000 }));
    user.run(&other)
        .arg("-d")
        .fails(3)
        .complains("container web: user 1000 does not exist in the pod: /etc/subuid has no ids of this user")
        .complains("usermod --add-subuids");
    let limited = || Pod::simple("limited").with("resources", json!({ "limits": { "memory": "64Mi" } }));
    refused(limited())
        .complains("container web: resources.limits.memory cannot be enforced: ")
        .complains("`magikvm.dev/limits: best-effort`");
    user.run(&limited().annotated("magikvm.dev/limits", "best-effort"))
        .arg("-d")
        .env("MAGIKVM_QUIET", "")
        .ok()
        .complains("container web: resources.limits.memory is not enforced: ");
    user.cmd(["rm", "-f", "limited"]).ok();
    let disk =
        refused(Pod::simple("disk").with("resources", json!({ "limits": { "ephemeral-storage": "64Mi" } })));
    disk.complains("resources.limits.ephemeral-storage cannot be enforced: only root can mount the disk");
    let wired = user.manifest(&user.of_class(Pod::simple("wired")));
    user.cmd(["run", "-d"])
        .arg(wired)
        .fails(3)
        .complains("the pod needs a network interface, and /dev/net/tun cannot be used")
        .complains("`magikvm.dev/network: none`");
    refused(Pod::simple("shares").set("spec/shareProcessNamespace", true))
        .complains("spec.shareProcessNamespace is not possible without a control group: ");
    user.assert_as_before(&before);
}

#[test]
fn what_users_of_a_rootless_pod_leave_is_removed() {
    let user = in_namespaces().with_subordinate_ids();
    let before = user.holdings();
    let fill =
        "mkdir -p /a/b && echo x > /a/b/c && chown -R 77:88 /a && chmod 700 /a /a/b && stat -c %u:%g /a/b/c";
    let pod = Pod::new("leaves")
        .script("web", fill)
        .volume("data", json!({ "persistentVolumeClaim": { "claimName": "data" } }))
        .mount("data", "/data", json!({}))
        .script("writer", "mkdir /data/d && echo x > /data/d/f && chown -R 77:88 /data/d && chmod 700 /data/d")
        .mount("data", "/data", json!({}))
        .beside(json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": "data" },
            "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Mi" } } } }));
    user.run(&pod).ok().prints("web    | 77:88\n");
    user.cmd(["rm", "leaves"]).ok();
    // A pod whose processes are all killed.
    user.run(&Pod::new("killed").script("web", &format!("{fill}; exec sleep 1000"))).arg("-d").ok();
    user.cmd(["logs", "killed"]).ok();
    for process in ["sandbox", "supervisor"] {
        let pid = nix::unistd::Pid::from_raw(user.process("killed", process));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).ok();
    }
    user.wait_for_monitor_end("killed");
    user.cmd(["rm", "-f", "killed"]).ok();
    user.cmd(["volume", "rm", "data"]).ok();
    user.cmd(["image", "prune", "--all"]).ok();
    user.assert_as_before(&before);
}
