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
