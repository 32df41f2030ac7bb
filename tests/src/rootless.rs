//! The life of a pod that an ordinary user runs, from the import of its image to its removal. What the host grants the user differs, and what
//! the pod must see differs with it.

use crate::layout::{goarch, write_layout_for};
use crate::manifest::Pod;
use crate::net::{HERE_4, Wire};
use crate::user::{NO_ACCOUNT, Ordinary, SUBORDINATE};
use crate::virtual_machine::busybox;
use serde_json::json;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// The user whose container is user 1000, if there are subordinate ids: root of the container is the user, and the others follow from 1.
pub const SECOND: u32 = SUBORDINATE.0 + 999;
/// A user of the host with whom the ordinary user has nothing to do.
const STRANGER: u32 = NO_ACCOUNT + 1;
const IMAGE: &str = "mine/app:1";
/// A host port that nobody else has in the test's network namespace.
const PORT: u16 = 18_080;

/// The ids that a user's containers can have on hostPath volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// The user's, as root.
    One,
    /// The subordinate ids too.
    Subordinate,
}

fn pod(user: &Ordinary) -> Pod {
    let shared = user.file("shared").to_string_lossy().into_owned();
    let script = "echo begun; while :; do echo from the pod | nc -l -p 8000 >/dev/null; done";
    Pod::new("web")
        .volume("host", json!({ "hostPath": { "path": shared, "type": "Directory" } }))
        .volume("empty", json!({ "emptyDir": {} }))
        .volume("config", json!({ "configMap": { "name": "settings" } }))
        .container_of("web", IMAGE, &["sh", "-c", script])
        .with("ports", json!([{ "containerPort": 8000, "hostPort": PORT }]))
        .mount("host", "/host", json!({}))
        .mount("empty", "/empty", json!({}))
        .mount("config", "/config", json!({}))
        .container_of("second", IMAGE, &["sleep", "1000"])
        .with("securityContext", json!({ "runAsUser": 1000 }))
        .mount("host", "/host", json!({}))
        .mount("empty", "/empty", json!({}))
        .beside(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" },
            "data": { "text": "hello\n" } }))
}

/// Everything that a user does with a pod, who may have `owners` on volumes. Nothing of it is left afterwards.
#[track_caller]
pub fn whole_life(user: &Ordinary, owners: Owners) {
    let wire = Wire::new();
    let before = user.holdings();
    let layout = user.file("layout");
    write_layout_for(goarch(), &layout, busybox(), &json!({ "Env": ["PATH=/bin"], "Cmd": ["sh"] }));
    user.cmd(["image", "import", &format!("oci:{}:1", layout.display()), "--name", IMAGE]).ok();
    user.make("shared", user.uid(), None);
    user.make("shared/mine", user.uid(), Some("mine\n"));
    user.make("shared/theirs", STRANGER, Some("theirs\n"));
    user.make("shared/second", SECOND, None);

    let manifest = user.manifest(&user.of_class(pod(user)));
    user.cmd_in(&wire.here, ["run", "-d"]).arg(&manifest).ok().prints("default/web");
    volumes(user, owners);

    // The default network, and a published port.
    let never = "mkfifo /tmp/never; exec 3<>/tmp/never; timeout 20 nc 203.0.113.5 8080 <&3";
    assert_eq!(sh(user, "web", never), "203.0.113.5:8080\n");
    assert_eq!(wire.there.tcp_answer(&format!("{HERE_4}:{PORT}")).as_deref(), Some("from the pod\n"));
    let low = Pod::simple("low").with("ports", json!([{ "containerPort": 80, "hostPort": 80 }]));
    let low = user.cmd_in(&wire.here, ["run", "-d"]).arg(user.manifest(&user.of_class(low))).fails(3);
    low.complains("spec.containers[0].ports[0].hostPort: cannot listen on ")
        .complains("Hint: Only root may bind ports below 1024; choose a higher one");

    assert_eq!(user.cmd(["logs", "web", "-c", "web"]).ok().stdout, "begun\n");
    user.cmd(["ps"]).ok().prints("default/web");
    user.cmd(["stop", "web"]).ok();
    user.cmd(["rm", "web"]).ok();
    user.assert_as_before(&before);
    assert_eq!(fs::read_to_string(user.file("shared/new")).expect("it stays"), "new\n");
}

#[track_caller]
fn sh(user: &Ordinary, container: &str, script: &str) -> String {
    let script = format!("{{ {script}; }} 2>&1");
    user.cmd(["exec", "web", "-c", container, "--", "sh", "-c", &script]).run().stdout
}

#[track_caller]
fn volumes(user: &Ordinary, owners: Owners) {
    let seen =
        sh(user, "web", "cd /host; stat -c '%n %u:%g' mine theirs second; cat mine theirs /config/text");
    let second = if owners == Owners::Subordinate { "1000:1000" } else { "65534:65534" };
    let expected = format!("mine 0:0\ntheirs 65534:65534\nsecond {second}\nmine\ntheirs\nhello\n");
    assert_eq!(seen, expected);
    // What root of a container makes is the user's. No container writes to what is somebody else's.
    let tries = "cd /host; echo new > new; echo changed > mine; (echo x >> theirs) 2>/dev/null || echo refused; \
        echo shared > /empty/file";
    assert_eq!(sh(user, "web", tries), "refused\n");
    let owner = |name: &str| {
        let meta = fs::metadata(user.file("shared").join(name)).expect(name);
        (meta.uid(), meta.gid())
    };
    assert_eq!(owner("new"), (user.uid(), user.uid()));
    assert_eq!(fs::read_to_string(user.file("shared/mine")).expect("a file"), "changed\n");
    let tries = "(echo x > /host/other) 2>/dev/null || echo refused; cat /empty/file; echo x > /host/second/file && echo done";
    let told = sh(user, "second", tries);
    match owners {
        Owners::Subordinate => {
            assert_eq!(told, "refused\nshared\ndone\n");
            assert_eq!(owner("second/file").0, SECOND);
            assert_eq!(
                sh(user, "web", "cd /host; touch given; chown 1000:1000 given && stat -c %u:%g given"),
                "1000:1000\n"
            );
            assert_eq!(owner("given"), (SECOND, SECOND));
        }
        Owners::One => {
            assert!(told.starts_with("refused\nshared\n") && !told.contains("done"), "{told}");
            let given = sh(user, "web", "cd /host; touch given; chown 1000:1000 given || echo not given");
            assert!(given.ends_with("not given\n"), "{given}");
            assert_eq!(owner("given"), (user.uid(), user.uid()));
        }
    }
}
