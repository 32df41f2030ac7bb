//! Pods with a network, between network namespaces with real servers.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::layout::Tar;
use magikvm_tests::net::{Namespace, Wire, at};
use magikvm_tests::programs::ECHO;
use magikvm_tests::virtual_machine::{NETWORK, VmHost};
use magikvm_tests::wait::wait_for;
use magikvm_tests::{Pod, processes};
use serde_json::Value;
use std::fs;
use std::time::Duration;

const ALLOW: &str = "magikvm.dev/egress-allow";
const REACH: &str = "magikvm.dev/egress-reach";

/// The output of a script in the pod's container, with any exit code.
#[track_caller]
fn sh(host: &VmHost, pod: &str, script: &str) -> String {
    host.sh(pod, "web", &format!("{{ {script}; }} 2>&1 || true"))
}

/// The answer of the server at an address to the pod, or the pod's error.
#[track_caller]
fn connect(host: &VmHost, pod: &str, to: &str, port: u16) -> String {
    sh(host, pod, &format!("{NEVER} timeout 20 nc {to} {port} <&3"))
}

/// An endless input, so that the server ends the connection first.
const NEVER: &str = "test -p /tmp/never || mkfifo /tmp/never; exec 3<>/tmp/never;";

#[track_caller]
fn assert_reached(host: &VmHost, pod: &str, to: &str, server: &str) {
    assert_eq!(connect(host, pod, to, 8080), format!("{}\n", at(server, 8080)), "{to}");
}

#[track_caller]
fn assert_refused(host: &VmHost, pod: &str, to: &str, port: u16) {
    let said = connect(host, pod, to, port);
    assert!(said.contains("Connection refused"), "{to}: {said}");
}

#[track_caller]
fn events(host: &VmHost, pod: &str) -> String {
    host.cmd(["events", pod]).ok().stdout
}

/// Waits for an event, because the filter's reports reach the log through the monitor.
#[track_caller]
fn assert_told(host: &VmHost, pod: &str, words: &str) {
    let told = || events(host, pod).contains(words).then_some(());
    wait_for(words, Duration::from_secs(20), told);
}

fn state(host: &VmHost, pod: &str) -> Value {
    serde_json::from_slice(&fs::read(host.pod_dir(pod).join("state.json")).unwrap()).unwrap()
}

/// PIDs of the pod's processes, by name.
fn pids(host: &VmHost, pod: &str) -> Vec<(String, i32)> {
    let state = state(host, pod);
    let of = |process: &Value| {
        (
            process["name"].as_str().unwrap().to_owned(),
            i32::try_from(process["pid"].as_i64().unwrap()).unwrap(),
        )
    };
    state["processes"].as_array().unwrap().iter().map(of).collect()
}

#[track_caller]
fn assert_gone(pids: &[(String, i32)]) {
    for (name, pid) in pids {
        wait_for(&format!("{name} ends"), Duration::from_secs(10), || {
            (!processes::is_alive(*pid)).then_some(())
        });
    }
}

#[test]
fn a_pod_reaches_the_world_and_nothing_of_its_host() {
    let (host, wire) = (VmHost::new(), Wire::new());
    let _names = wire.there.serve_names(
        "192.0.2.1",
        &[
            ("four.example", "203.0.113.5"),
            ("six.example", "2001:db8:1::5"),
            ("alias.example", "four.example"),
        ],
    );
    let _others = wire.there.serve_names("203.0.113.6", &[("own.example", "203.0.113.5")]);
    wire.here.set_resolv("nameserver 192.0.2.1\nsearch example\n");
    wire.here.start(
        &host,
        &Pod::simple("one").set(
            "spec/hostAliases",
            serde_json::json!([
                { "ip": "203.0.113.6", "hostnames": ["other"] }
            ]),
        ),
    );
    for (to, server) in [
        ("203.0.113.5", "203.0.113.5"),
        ("2001:db8:1::5", "2001:db8:1::5"),
        ("four.example", "203.0.113.5"),
        ("six.example", "2001:db8:1::5"),
        ("alias.example", "203.0.113.5"),
        ("four", "203.0.113.5"),
        ("other", "203.0.113.6"),
    ] {
        assert_reached(&host, "one", to, server);
    }
    let direct = sh(&host, "one", "nslookup own.example 203.0.113.6");
    assert!(direct.contains("203.0.113.6:53") && direct.contains("203.0.113.5"), "{direct}");
    for to in ["169.254.169.254", "10.0.2.2", "192.0.2.2", "2001:db8::2", "fd6d:616b:766d::2", "10.0.2.3"] {
        assert_refused(&host, "one", to, 8080);
    }
    assert_told(&host, "one", "refused tcp to 169.254.169.254:8080: a cloud's metadata");
    assert_told(&host, "one", "refused tcp to 192.0.2.2:8080: an address of the host");
    assert_told(&host, "one", "refused tcp to 10.0.2.2:8080: the host's loopback");

    // Large packets within, small ones without; much in both directions.
    assert_eq!(sh(&host, "one", "cat /sys/class/net/eth0/mtu"), "65520\n");
    let much = |script: &str| sh(&host, "one", &format!("{NEVER} {script}"));
    let sent = much("echo send 30000000 >&3; timeout 60 nc 203.0.113.5 8090 <&3 | wc -c");
    assert_eq!(sent, format!("{}\n", 30_000_000 + "203.0.113.5:8090\n".len()));
    let take =
        "{ echo take 30000000; head -c 30000000 /dev/zero; } >&3 & timeout 60 nc 2001:db8:1::5 8090 <&3";
    assert_eq!(much(take), "[2001:db8:1::5]:8090\n30000000 bytes\n");

    // Another pod is not in the same network, although it has the same addresses. It can query any DNS server, including the host's.
    let own = serde_json::json!({ "nameservers": ["192.0.2.1", "203.0.113.6"] });
    wire.here.start(&host, &Pod::simple("two").set("spec/dnsPolicy", "None").set("spec/dnsConfig", own));
    assert_reached(&host, "two", "four.example", "203.0.113.5");
    let resolv = sh(&host, "two", "cat /etc/resolv.conf");
    assert_eq!(resolv, "nameserver 10.0.2.3\nnameserver 203.0.113.6\n");
    host.cmd(["exec", "one", "--", "sh", "-c", "nc -l -p 9000 </dev/null >/dev/null 2>&1 & sleep 0.1"]).ok();
    assert_refused(&host, "two", "10.0.2.15", 9000);

    let shown = host.inspect("one").unwrap();
    assert_eq!(shown["status"]["podIP"], "10.0.2.15");
    assert_eq!(shown["status"]["podIPs"][1]["ip"], "fd6d:616b:766d::15");
    assert_eq!(shown["status"]["hostIP"], "192.0.2.2");
    let all: Vec<_> = ["one", "two"].iter().flat_map(|pod| pids(&host, pod)).collect();
    assert_eq!(all.iter().filter(|(name, _)| name == "nat" || name == "net-filter").count(), 4, "{all:?}");
    host.cmd(["rm", "-f", "one", "two"]).ok();
    assert_gone(&all);
}

#[test]
fn a_list_leaves_nothing_else() {
    let (host, wire) = (VmHost::new(), Wire::new());
    let _names = wire.there.serve_names(
        "192.0.2.1",
        &[
            ("good.example", "203.0.113.5"),
            ("a.wide.example", "2001:db8:1::5"),
            ("bad.example", "203.0.113.6"),
            ("inside.wide.example", "169.254.169.254"),
            ("loop.wide.example", "127.0.0.1"),
        ],
    );
    wire.here.set_resolv("nameserver 192.0.2.1\n");
    let list = "good.example:8080,*.wide.example,203.0.113.6/32:8081,192.0.2.0/24:8080";
    wire.here.start(&host, &Pod::simple("listed").annotated(ALLOW, list));
    wire.there.serve(&at("203.0.113.5", 8081));
    wire.there.serve(&at("203.0.113.6", 8081));
    let pod = "listed";

    // An address is closed before a DNS query for its name.
    assert_refused(&host, pod, "203.0.113.5", 8080);
    assert_reached(&host, pod, "good.example", "203.0.113.5");
    assert_reached(&host, pod, "203.0.113.5", "203.0.113.5");
    assert_refused(&host, pod, "203.0.113.5", 8081);
    assert_reached(&host, pod, "a.wide.example", "2001:db8:1::5");
    assert_reached(&host, pod, "192.0.2.1", "192.0.2.1");
    assert_refused(&host, pod, "203.0.113.6", 8080);
    assert!(connect(&host, pod, "203.0.113.6", 8081).starts_with("203.0.113.6:8081\n"));

    let refused = sh(&host, pod, "nslookup bad.example");
    assert!(refused.contains("REFUSED"), "{refused}");
    let direct = sh(&host, pod, "nslookup good.example 203.0.113.6");
    assert!(!direct.contains("203.0.113.5"), "{direct}");
    for inside in ["inside.wide.example", "loop.wide.example"] {
        let answer = sh(&host, pod, &format!("nslookup {inside}"));
        assert!(!answer.contains("169.254") && !answer.contains("127.0.0.1"), "{answer}");
    }
    assert_told(&host, pod, "refused name to bad.example: not in egress-allow");
    assert_told(&host, pod, "inside.wide.example: it stands for 169.254.169.254: a cloud's metadata");
    assert_told(&host, pod, "refused tcp to 203.0.113.5:8081: not in egress-allow");
    assert_told(&host, pod, "refused udp to 203.0.113.6:53: not in egress-allow");
}

#[test]
fn what_is_closed_by_default_can_be_opened() {
    let (host, wire) = (VmHost::new(), Wire::new());
    wire.here.start(&host, &Pod::simple("open").annotated(REACH, "loopback,host,metadata"));
    assert_reached(&host, "open", "10.0.2.2", "127.0.0.1");
    assert_reached(&host, "open", "192.0.2.2", "192.0.2.2");
    assert_reached(&host, "open", "2001:db8::2", "2001:db8::2");
    assert_reached(&host, "open", "169.254.169.254", "169.254.169.254");
    assert_refused(&host, "open", "169.254.1.1", 8080);
}

#[test]
fn without_a_way_out_there_is_none_and_it_is_said() {
    let (host, wire) = (VmHost::new(), Wire::new());
    let seen = "ls /sys/class/net; ip route; cat /etc/resolv.conf";
    let run = |namespace: &Namespace, pod: &Pod| namespace.cmd(&host, ["run", "-d"]).arg(host.manifest(pod));
    let asked = |mode: &str| Pod::simple("asked").annotated(NETWORK, mode);
    // A namespace with only a loopback device.
    let alone = Namespace::new();
    run(&alone, &Pod::simple("alone")).ok();
    assert_told(&host, "alone", "warning: the pod has no network, since the host has no default route");
    assert_eq!(sh(&host, "alone", seen), "lo\nsit0\n");
    run(&alone, &asked("passt")).fails(3).complains("passt needs a default route");
    run(&alone, &asked("nat")).fails(3).complains("nat needs a default route");

    let without = |pod: &Pod| run(&wire.here, pod).env("MAGIKVM_PASST", "/nowhere/passt");
    without(&asked("passt")).fails(3).complains("passt cannot be used: install it");
    without(&Pod::simple("none").annotated(NETWORK, "none")).ok();
    assert!(!events(&host, "none").contains("warning"));
    run(&wire.here, &Pod::simple("tsi").annotated(NETWORK, "tsi"))
        .fails(1)
        .complains("tsi needs the kernel of libkrunfw");
}

#[test]
fn the_end_of_the_network_is_the_end_of_the_pod() {
    let (host, wire) = (VmHost::new(), Wire::new());
    for (victim, mode) in [("passt", "passt"), ("nat", "nat"), ("net-filter", "nat")] {
        wire.here.start(&host, &Pod::simple(victim).annotated(NETWORK, mode));
        assert_reached(&host, victim, "203.0.113.5", "203.0.113.5");
        let pids = pids(&host, victim);
        let (_, pid) = pids.iter().find(|(name, _)| name == victim).unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(*pid), nix::sys::signal::Signal::SIGKILL).unwrap();
        wait_for("the pod ends", Duration::from_secs(20), || (host.phase(victim) == "Failed").then_some(()));
        let status = host.inspect(victim).unwrap()["status"].clone();
        assert_eq!(status["reason"], "NetworkFailed", "{status}");
        assert_gone(&pids);
    }
}

#[test]
fn qemus_own_network_works_when_asked_for() {
    let (host, wire) = (VmHost::new(), Wire::new());
    wire.here.start(&host, &Pod::simple("user").annotated(NETWORK, "user"));
    assert_reached(&host, "user", "203.0.113.5", "203.0.113.5");
    assert_told(&host, "user", "QEMU's own network has no filter");
}

#[test]
fn a_paused_pods_network_is_paused_too() {
    let (host, wire) = (VmHost::new(), Wire::new());
    wire.here.start(&host, &Pod::simple("still"));
    host.cmd(["pause", "still"]).ok();
    for (name, pid) in pids(&host, "still").iter().filter(|(name, _)| name != "monitor") {
        assert!(processes::is_stopped(*pid), "{name}");
    }
    host.cmd(["resume", "still"]).ok();
    assert_reached(&host, "still", "203.0.113.5", "203.0.113.5");
}

#[test]
fn udp_packets_come_in_by_ports_of_the_host() {
    let (host, wire) = (VmHost::new(), Wire::new());
    let port = |number: u16, address: &str| serde_json::json!({ "containerPort": number, "hostPort": number, "hostIP": address, "protocol": "UDP" });
    host.import("echo:1", Tar::default().file("echo", 0o755, ECHO), &serde_json::json!({}));
    let pod = |name: &str| {
        Pod::new(name)
            .container_of("web", "echo:1", &["/echo", "7000", "7001"])
            .with("ports", serde_json::json!([port(7000, "0.0.0.0"), port(7001, "127.0.0.1")]))
    };
    wire.here.start(&host, &pod("echo"));
    assert_eq!(wire.there.udp_answer("192.0.2.2:7000", "from afar").as_deref(), Some("from afar"));
    assert_eq!(wire.here.udp_answer("127.0.0.1:7000", "from here").as_deref(), Some("from here"));
    assert_eq!(wire.here.udp_answer("127.0.0.1:7001", "within").as_deref(), Some("within"));
    let pod_now = host.inspect("echo").unwrap();
    assert_eq!(
        pod_now["metadata"]["annotations"]["magikvm.dev/ports"],
        "0.0.0.0:7000->7000/udp,127.0.0.1:7001->7001/udp"
    );
    let taken = wire.here.cmd(&host, ["run", "-d"]).arg(host.manifest(&pod("late"))).fails(3);
    taken
        .complains("spec.containers[0].ports[0].hostPort: cannot listen on 0.0.0.0:7000")
        .complains("Pod default/echo uses it");
    // What the pod sends takes none of the host's ports for everybody, and a bounded number of sockets.
    host.cmd(["exec", "echo", "--", "/echo", "flows", "203.0.113.5", "8080", "1200"]).ok();
    let flows = || wire.here.udp_sockets().into_iter().filter(|(_, peer)| peer.port() == 8080).count();
    wait_for("1024 flows", Duration::from_secs(20), || (flows() == 1024).then_some(()));
    assert_eq!(wire.there.udp_answer("192.0.2.2:7000", "still").as_deref(), Some("still"));
    let none = pod("none").annotated(NETWORK, "none");
    host.cmd(["rm", "-f", "echo"]).ok();
    let refused = wire.here.cmd(&host, ["run", "-d"]).arg(host.manifest(&none)).fails(1);
    refused.complains("spec.containers[0].ports[0].hostPort: only the networks nat and passt carry UDP ports, and the pod has the network none");
}
