//! Real chains of plugins that are shell scripts, which record what they are told.

use super::*;
use crate::net::cni::chain::PortMapping;
use crate::net::host::Resolv;
use crate::store::layout::PodDir;
use crate::store::undo::{Scope, Step, Undo, UndoError};
use serde_json::json;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// A directory with plugins, a network of two of them, and the directory of a pod.
struct Place {
    base: tempfile::TempDir,
}

/// Prints a result, and records the command and its configuration.
const FIRST: &str = r#"cat > "$HERE/first.$CNI_COMMAND"; echo "first $CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME" >> "$HERE/calls"
[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/24"}],"dns":{"nameservers":["10.1.0.1"]}}'"#;
const SECOND: &str = r#"cat > "$HERE/second.$CNI_COMMAND"; echo "second $CNI_COMMAND" >> "$HERE/calls"; env > "$HERE/env"; ls /proc/self/fd > "$HERE/fds"
[ "$CNI_COMMAND" = DEL ] || echo '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/24"},{"address":"fd00::2/64"}],"dns":{}}'"#;

impl Place {
    fn new() -> Self {
        let place = Self { base: tempfile::tempdir().unwrap() };
        place.plugin("first", FIRST);
        place.plugin("second", SECOND);
        place.conf("1.0.0");
        fs::create_dir(place.pod_dir()).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn pod_dir(&self) -> PathBuf {
        self.at("default_web")
    }

    fn plugin(&self, name: &str, script: &str) {
        let script = format!("#!/bin/sh\nHERE={}\n{script}\n", self.base.path().display());
        fs::write(self.at(name), script).unwrap();
        fs::set_permissions(self.at(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn conf(&self, version: &str) {
        let conf = json!({"cniVersion": version, "name": "net", "plugins": [
            {"type": "first", "answer": 42}, {"type": "second", "capabilities": {"portMappings": true}}]});
        fs::write(self.at("net.conflist"), conf.to_string()).unwrap();
    }

    fn attachment(&self) -> Attachment {
        let places = Places { conf: self.base.path().to_owned(), bin: vec![self.base.path().to_owned()] };
        let network = Network::find(&"net".parse().unwrap(), &places).unwrap();
        let ports = [PortMapping {
            host_ip: IpAddr::from([127, 0, 0, 1]),
            host_port: 8080,
            container_port: 80,
            protocol: "tcp",
        }];
        let dir = self.pod_dir();
        let pod = Joining { uid: "u-1", namespace: "default", name: "web", ports: &ports, dir: &dir };
        network.attachment(pod, "x").unwrap()
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.at(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.read(name)).unwrap()
    }
}

#[test]
fn plugins_are_run_in_order_and_undone_in_reverse() {
    let place = Place::new();
    let attachment = place.attachment();
    let given = add(&attachment).unwrap();
    let expected = ["10.1.0.2", "fd00::2"].map(|text| text.parse::<IpAddr>().unwrap());
    assert_eq!((given.addresses, given.dns), (expected.to_vec(), Resolv::default()));
    let (first, second) = (place.json("first.ADD"), place.json("second.ADD"));
    assert_eq!(first, json!({"type": "first", "answer": 42, "name": "net", "cniVersion": "1.0.0"}));
    assert_eq!(second["prevResult"]["dns"]["nameservers"][0], "10.1.0.1");
    assert_eq!(
        second["runtimeConfig"]["portMappings"],
        json!([{"hostIP": "127.0.0.1", "hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    );
    // Nothing of this program's environment, and nothing that it has open.
    let env = place.read("env");
    assert!(
        env.contains("CNI_NETNS=\n") && env.contains("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default"),
        "{env}"
    );
    assert!(!env.contains("CARGO"), "{env}");
    let open: Vec<u32> = place.read("fds").lines().map(|line| line.parse().unwrap()).collect();
    assert!(open.iter().all(|fd| *fd <= 3 || *fd == 255 || *fd == 10), "{open:?}");

    // The configuration is gone; the journal has what it needs.
    fs::remove_file(place.at("net.conflist")).unwrap();
    let dir = PodDir::at(place.pod_dir());
    let mut undo = Undo::open(&dir).unwrap();
    undo.plan(Scope::Run, Step::DetachNetwork(Box::new(attachment))).unwrap();
    drop(undo);
    Undo::open(&dir).unwrap().end_run().unwrap();
    assert_eq!(place.read("calls"), "first ADD u-1 eth0\nsecond ADD\nsecond DEL\nfirst DEL u-1 eth0\n");
    assert_eq!(place.json("first.DEL")["prevResult"]["ips"][1]["address"], "fd00::2/64");
    assert!(!place.pod_dir().join("cni-result.json").exists());
    // Done once, although the journal is read again.
    Undo::open(&dir).unwrap().end_run().unwrap();
    assert_eq!(place.read("calls").lines().count(), 4);
}

#[test]
fn old_versions_are_not_told_the_result_at_the_end() {
    let place = Place::new();
    place.conf("0.3.1");
    let attachment = place.attachment();
    add(&attachment).unwrap();
    attachment.detach().unwrap();
    assert_eq!(place.json("first.DEL").get("prevResult"), None);
}

#[test]
fn a_failure_names_its_plugin_and_what_was_made_is_undone_later() {
    let place = Place::new();
    place.plugin(
        "second",
        r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"no route","details":"try \u001b[2Jagain"}'; exit 1"#,
    );
    let attachment = place.attachment();
    let dir = PodDir::at(place.pod_dir());
    let mut undo = Undo::open(&dir).unwrap();
    undo.plan(Scope::Record, Step::RemoveDir { path: place.pod_dir() }).unwrap();
    undo.plan(Scope::Run, Step::DetachNetwork(Box::new(attachment.clone()))).unwrap();
    let CniError::Plugin { source, .. } = add(&attachment).unwrap_err() else { panic!("a plugin failed") };
    let said = source.to_string();
    assert_eq!(said, "the CNI plugin second (ADD) failed: no route: try \u{fffd}[2Jagain (code 11)");
    // It fails again, and the record stays, with what the plugins need.
    let failed = undo.end_run().unwrap_err();
    assert!(matches!(failed, UndoError::Detach { .. }), "{failed}");
    assert!(Undo::open(&dir).unwrap().delete().is_err());
    assert!(place.pod_dir().join("cni-result.json").exists());
    // All plugins were tried nevertheless.
    assert!(place.read("calls").contains("first DEL"));
    place.plugin("second", SECOND);
    Undo::open(&dir).unwrap().delete().unwrap();
    assert!(place.read("calls").contains("second DEL") && !place.pod_dir().exists());
}

#[test]
fn what_is_not_a_result_or_too_long_is_refused() {
    let place = Place::new();
    place.plugin("first", "echo hello");
    let said = crate::store::text::chain(&add(&place.attachment()).unwrap_err());
    assert!(said.contains("the CNI plugin first (ADD) has printed a result that cannot be used"), "{said}");
    place.plugin("first", "exec cat /dev/zero");
    let said = crate::store::text::chain(&add(&place.attachment()).unwrap_err());
    assert!(said.contains("(ADD) has printed more than 1048576 bytes"), "{said}");
    place.plugin("first", "echo 'nothing works' >&2; exit 3");
    let said = crate::store::text::chain(&add(&place.attachment()).unwrap_err());
    assert!(said.contains("exit status: 3: nothing works"), "{said}");
    fs::remove_file(place.at("first")).unwrap();
    let places = Places { conf: place.base.path().to_owned(), bin: vec![place.base.path().to_owned()] };
    let missing = Network::find(&"net".parse().unwrap(), &places).unwrap_err();
    assert!(missing.hint().unwrap().contains("containernetworking-plugins"));
}

#[test]
fn a_journal_does_not_reach_beyond_the_pods() {
    let place = Place::new();
    let dir = PodDir::at(place.pod_dir());
    let mut attachment = place.attachment();
    attachment.namespace = Path::new("/etc/hosts").to_owned();
    let mut undo = Undo::open(&dir).unwrap();
    undo.plan(Scope::Run, Step::DetachNetwork(Box::new(attachment))).unwrap();
    drop(undo);
    let undo = Undo::recover(&dir, &[place.base.path().to_owned()]);
    assert!(matches!(undo.damage(), Some(UndoError::Outside(path)) if path == Path::new("/etc/hosts")));
    undo.delete().unwrap();
    assert!(!place.at("calls").exists());
}

#[test]
fn a_plugin_that_hangs_is_killed_with_what_it_has_started() {
    const CHILD: &str = "43421";
    let place = Place::new();
    place.plugin("first", &format!("echo '{{'; sleep {CHILD} & : > \"$HERE/begun\"; sleep 43422"));
    let attachment = place.attachment();
    let error =
        attachment.run_within(&attachment.plugins[0], Verb::Add, None, Duration::from_secs(2)).unwrap_err();
    assert_eq!(error.to_string(), "the CNI plugin first (ADD) has not ended within 2s and was killed");
    let is_there = || {
        let processes = fs::read_dir("/proc").unwrap().flatten();
        let line =
            |process: fs::DirEntry| fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        processes.map(line).any(|line| line == format!("sleep\0{CHILD}\0"))
    };
    let deadline = Instant::now() + Duration::from_secs(30);
    while is_there() {
        assert!(Instant::now() < deadline, "a child of the plugin is still there");
        std::thread::yield_now();
    }
    assert!(place.at("begun").exists(), "the plugin had no time to begin");
}
