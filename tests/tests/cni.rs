//! Pods in networks of CNI, with the plugins of the CNI project, in a network namespace of the test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::net::Namespace;
use magikvm_tests::processes::is_alive;
use magikvm_tests::virtual_machine::{Driver, VmHost};
use magikvm_tests::wait::until;
use magikvm_tests::{Cmd, Pod};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::PermissionsExt;

const CNI: &str = "magikvm.dev/cni";
/// Where Debian's package containernetworking-plugins has them.
const PLUGINS: &str = "/usr/lib/cni";

struct Place {
    host: VmHost,
    here: Namespace,
}

impl Place {
    /// A host with the network `web`: a bridge, addresses, and ports of the host.
    fn new() -> Self {
        let place = Self { host: VmHost::with(Driver::Containers), here: Namespace::new() };
        place.here.set_resolv("nameserver 127.0.0.53\nnameserver 192.0.2.53\n");
        fs::create_dir(place.host.file("net.d")).unwrap();
        place.conf("web", "bridge", "host-local");
        place
    }

    fn conf(&self, name: &str, plugin: &str, ipam: &str) {
        let conf = json!({ "cniVersion": "1.0.0", "name": name, "plugins": [
            { "type": plugin, "bridge": "cni0", "isGateway": true, "ipMasq": true, "ipam": {
                "type": ipam, "dataDir": self.host.file("leases"), "ranges": [[{ "subnet": "10.88.0.0/24" }]],
                "routes": [{ "dst": "0.0.0.0/0" }] } },
            { "type": "portmap", "capabilities": { "portMappings": true } } ] });
        fs::write(self.host.file(&format!("net.d/{name}.conflist")), conf.to_string()).unwrap();
    }

    fn run(&self, pod: &Pod) -> Cmd {
        self.here
            .cmd(
                &self.host,
                ["run", "-d", "--class", "pod-containers", "--cni-bin-dir", PLUGINS, "--cni-conf-dir"],
            )
            .arg(self.host.file("net.d"))
            .arg(self.host.manifest(&pod.clone().set("spec/runtimeClassName", "pod-containers")))
    }

    fn sh(&self, pod: &str, script: &str) -> String {
        self.here.cmd(&self.host, ["exec", pod, "--", "sh", "-c", script]).ok().stdout
    }

    /// A program in the namespace.
    fn tool(&self, words: &str) -> String {
        self.here.enter(Cmd::new("nsenter")).args(words.split_ascii_whitespace()).ok().stdout
    }

    fn ip(&self, pod: &str) -> String {
        self.host.inspect(pod).unwrap()["status"]["podIP"].as_str().unwrap_or_default().to_owned()
    }

    /// Everything that plugins have made for pods.
    fn traces(&self) -> Vec<String> {
        let leases = fs::read_dir(self.host.file("leases/web")).into_iter().flatten().flatten();
        let leases = leases.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let links = self.tool("ip -o link show type veth");
        let rules = self.tool("iptables-save -t nat");
        let mounts = self.tool("cat /proc/self/mountinfo");
        let of_pods = |line: &&str| line.contains("10.88.0.") || line.contains("cni-namespace");
        leases
            .filter(|name| name.starts_with("10.88."))
            .chain(links.lines().map(str::to_owned))
            .chain(rules.lines().chain(mounts.lines()).filter(of_pods).map(str::to_owned))
            .collect()
    }
}

/// Serves its own name.
fn server(name: &str) -> Pod {
    let script = format!("mkdir /www && echo {name} > /www/index.html && exec httpd -f -p 80 -h /www");
    Pod::new(name).script("web", &script).annotated(CNI, "web").with(
        "readinessProbe",
        json!({ "httpGet": { "port": 80, "path": "/index.html" }, "periodSeconds": 1 }),
    )
}

#[test]
fn two_pods_meet_on_a_bridge_and_leave_nothing() {
    let place = Place::new();
    let before = place.host.holdings();
    place
        .run(&server("one").with("ports", json!([{ "containerPort": 80, "hostPort": 8080 }])))
        .arg("--wait-ready")
        .ok();
    place.run(&server("two")).arg("--wait-ready").ok();
    let (one, two) = (place.ip("one"), place.ip("two"));
    assert!(one.starts_with("10.88.0.") && two.starts_with("10.88.0.") && one != two, "{one} {two}");
    assert_eq!(
        place.sh("one", &format!("ping -c 1 -W 5 {two} > /dev/null && wget -qO- http://{two}/")),
        "two\n"
    );
    assert_eq!(place.sh("two", &format!("wget -qO- http://{one}/")), "one\n");
    // What the pod is told of itself, and of the host's name servers that it can reach.
    assert_eq!(place.sh("one", "grep ^10.88 /etc/hosts"), format!("{one}\tone\n"));
    assert_eq!(place.sh("one", "cat /etc/resolv.conf"), "nameserver 192.0.2.53\n");
    // The host reaches it, also by its port.
    assert_eq!(place.tool(&format!("curl -sS --max-time 10 http://{one}/")), "one\n");
    assert_eq!(place.tool("curl -sS --max-time 10 http://10.88.0.1:8080/"), "one\n");
    let taken = place.run(&server("three").with("ports", json!([{ "containerPort": 80, "hostPort": 8080 }])));
    taken.fails(3).complains("another pod has the port 0.0.0.0:8080 of the host").complains("default/one");
    assert_eq!(place.traces().iter().filter(|trace| trace.contains("cni-namespace")).count(), 2);
    // Doctor has the plugins look at what they have made.
    let doctor = |says: &str| {
        let output = place.here.cmd(&place.host, ["doctor", "-o", "json"]).run();
        let report: Value = serde_json::from_str(&output.stdout).unwrap();
        let checks = report["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["name"] == "CNI connections").expect("the check");
        assert!(check["found"].as_str().unwrap().contains(says), "{check}");
        check["state"].as_str().unwrap().to_owned()
    };
    // The plugin portmap of Debian 12 wants to find rules for IPv6, which it makes only for pods with such an address.
    place.here.cmd(&place.host, ["rm", "-f", "one"]).ok();
    assert_eq!(doctor("1 connection of running pods checked by its plugins"), "ok");
    let network =
        place.host.inspect("two").unwrap()["metadata"]["annotations"]["magikvm.dev/namespaces"].clone();
    let network: Value = serde_json::from_str(network.as_str().unwrap()).unwrap();
    let own = format!("--net={}", network["network"].as_str().unwrap());
    let address = format!("{two}/24");
    let change = |what| Cmd::new("nsenter").args([&own, "ip", "address", what, &address, "dev", "eth0"]).ok();
    change("del");
    assert_eq!(doctor("pod default/two, network web: the CNI plugin bridge (CHECK) failed: "), "warn");
    // By the address the plugin finds the rules that it removes.
    change("add");
    // The journal needs no configuration.
    fs::remove_dir_all(place.host.file("net.d")).unwrap();
    place.here.cmd(&place.host, ["rm", "-f", "two"]).ok();
    assert_eq!(place.traces(), Vec::<String>::new());
    fs::remove_dir_all(place.host.file("leases")).unwrap();
    place.host.assert_as_before(&before);
}

#[test]
fn nothing_is_left_of_a_pod_whose_monitor_was_killed_or_that_failed() {
    let place = Place::new();
    let before = place.host.holdings();
    let pod = || server("web").with("ports", json!([{ "containerPort": 80, "hostPort": 8080 }]));
    place.run(&pod()).ok();
    let (monitor, sandbox) = (place.host.process("web", "monitor"), place.host.process("web", "sandbox"));
    assert!(!place.traces().is_empty());
    kill(Pid::from_raw(monitor), Signal::SIGKILL).unwrap();
    until("the pod ends with its monitor", || !is_alive(sandbox));
    place.here.cmd(&place.host, ["rm", "web"]).ok();
    assert_eq!(place.traces(), Vec::<String>::new());
    for point in ["prepare", "start", "ready"] {
        place.run(&pod()).env("MAGIKVM_FAULT", point).fails(70);
        assert_eq!(place.traces(), Vec::<String>::new(), "{point}");
        place.run(&pod()).env("MAGIKVM_FAULT", format!("{point}=kill")).fails(70);
        place.here.cmd(&place.host, ["rm", "-f", "web"]).ok();
        assert_eq!(place.traces(), Vec::<String>::new(), "{point}=kill");
    }
    fs::remove_dir_all(place.host.file("leases")).unwrap();
    place.host.assert_as_before(&before);
}

#[test]
fn what_cannot_be_is_refused_with_a_hint() {
    let place = Place::new();
    let before = place.host.holdings();
    let asks = |network: &str| Pod::new("asks").script("web", "true").annotated(CNI, network);
    place
        .run(&asks("other"))
        .fails(1)
        .complains("configures a network other; there are web")
        .complains("Hint:");
    place.conf("missing", "no-such-plugin", "host-local");
    place
        .run(&asks("missing"))
        .fails(3)
        .complains("the CNI plugin no-such-plugin of the network missing is not in");
    place.conf("dynamic", "bridge", "dhcp");
    place.run(&asks("dynamic")).fails(3).complains("the plugin dhcp needs a daemon");
    let vm = asks("web").set("spec/runtimeClassName", "pod-microvm-containers");
    let refused = place.host.cmd(["run", "-d"]).arg(place.host.manifest(&vm)).fails(1);
    refused.complains("is not possible for pods of the class pod-microvm-containers");
    let filtered = asks("web").annotated("magikvm.dev/egress-allow", "a.example");
    place.run(&filtered).fails(1).complains("has no effect with magikvm.dev/cni");
    assert_eq!(place.traces(), Vec::<String>::new());
    place.host.assert_as_before(&before);
}

/// A plugin that fails when it shall undo its work.
#[test]
fn a_plugin_that_fails_at_the_end_is_asked_again() {
    let place = Place::new();
    let before = place.host.holdings();
    let (dir, flag) = (place.host.file("plugins"), place.host.file("works"));
    fs::create_dir(&dir).unwrap();
    let script = format!(
        "#!/bin/sh\nconfig=$(cat)\n[ \"$CNI_COMMAND\" = ADD ] && echo '{}' && exit\n[ -e {} ] || {{ echo '{}'; exit 1; }}\n",
        json!({ "cniVersion": "1.0.0", "ips": [{ "address": "10.89.0.2/24" }] }),
        flag.display(),
        json!({ "code": 7, "msg": "not today" }),
    );
    fs::write(dir.join("stubborn"), script).unwrap();
    fs::set_permissions(dir.join("stubborn"), fs::Permissions::from_mode(0o755)).unwrap();
    let conf: Value = json!({ "cniVersion": "1.0.0", "name": "hard", "plugins": [{ "type": "stubborn" }] });
    fs::write(place.host.file("net.d/hard.conflist"), conf.to_string()).unwrap();
    place
        .run(&Pod::new("kept").script("web", "exec sleep 43291").annotated(CNI, "hard"))
        .arg("--cni-bin-dir")
        .arg(&dir)
        .ok();
    assert_eq!(place.ip("kept"), "10.89.0.2");
    let failed = place.here.cmd(&place.host, ["rm", "-f", "kept"]).run();
    assert_ne!(failed.code, 0, "{failed:?}");
    failed.complains("the CNI plugin stubborn (DEL) failed: not today (code 7)");
    fs::write(&flag, "").unwrap();
    place.here.cmd(&place.host, ["rm", "-f", "kept"]).ok();
    assert_eq!(place.traces(), Vec::<String>::new());
    place.host.assert_as_before(&before);
}
