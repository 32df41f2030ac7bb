//! Pods with a network, between two network namespaces.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::net::{Wire, at};
use magikvm_tests::wait::until;
use serde_json::json;

pub(crate) static GROUP: Group = Group {
    name: "network",
    title: "A pod reaches the outside, and nothing of its host",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "the_world",
            "It reaches others by IPv4, IPv6 and the names that its host knows, in both directions of a stream, large packets pass, and variables can have its addresses.",
            the_world,
        )
        .of("`magikvm.dev/network`"),
        Row::code(
            "not_the_host",
            "It reaches neither the host's loopback, nor the host's addresses, nor a cloud's metadata, and its events report the refusals.",
            not_the_host,
        ),
        Row::code(
            "a_list",
            "With an allow-list it reaches only what the list contains; the addresses of a name open after a DNS query.",
            a_list,
        )
        .of("`magikvm.dev/egress-allow`"),
        Row::code(
            "its_own_flows",
            "Each half of a connection ends for itself, name servers answer over TCP, the UDP ports that it uses are not taken on its host, and packets of others do not reach it.",
            its_own_flows,
        ),
        Row::code("none", "Without a network it has only its loopback.", none).of("`magikvm.dev/network`"),
    ],
};

/// An endless input, so that the server ends the connection.
const NEVER: &str = "test -p /tmp/never || mkfifo /tmp/never; exec 3<>/tmp/never;";

fn sh(subject: &Subject, script: &str) -> String {
    subject.sh("net", "web", &format!("{{ {NEVER} {script}; }} 2>&1 || true"))
}

fn connect(subject: &Subject, to: &str) -> String {
    sh(subject, &format!("timeout {} nc {to} 8080 <&3", subject.seconds(20).as_secs()))
}

fn reaches(subject: &Subject, to: &str, server: &str) {
    assert_eq!(connect(subject, to), format!("{}\n", at(server, 8080)), "{to}");
}

fn is_refused(subject: &Subject, to: &str) {
    let said = connect(subject, to);
    assert!(said.contains("Connection refused"), "{to}: {said}");
}

fn is_told(subject: &Subject, words: &str) {
    until(words, || subject.cmd(["events", "net"]).ok().stdout.contains(words));
}

fn the_world(subject: &Subject) {
    let wire = Wire::new();
    let _names = wire
        .there
        .serve_names("192.0.2.1", &[("four.example", "203.0.113.5"), ("six.example", "2001:db8:1::5")]);
    wire.here.set_resolv("nameserver 192.0.2.1\n");
    let field = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    let variables = json!([
        { "name": "POD_IP", "valueFrom": field("status.podIP") },
        { "name": "POD_IPS", "valueFrom": field("status.podIPs") },
    ]);
    wire.here.start(subject, &Pod::simple("net").with("env", variables));
    let address =
        sh(subject, "ip -4 -o address show dev eth0 scope global | awk '{ print $4 }' | cut -d/ -f1");
    assert!(sh(subject, "echo $POD_IP") == address && address.contains('.'), "{address}");
    assert!(sh(subject, "echo $POD_IPS").starts_with(&format!("{},", address.trim())));
    for (to, server) in [
        ("203.0.113.5", "203.0.113.5"),
        ("2001:db8:1::5", "2001:db8:1::5"),
        ("four.example", "203.0.113.5"),
        ("six.example", "2001:db8:1::5"),
    ] {
        reaches(subject, to, server);
    }
    assert_eq!(sh(subject, "cat /sys/class/net/eth0/mtu"), "65520\n");
    let sent = sh(subject, "echo send 5000000 >&3; timeout 100 nc 203.0.113.5 8090 <&3 | wc -c");
    assert_eq!(sent, format!("{}\n", 5_000_000 + "203.0.113.5:8090\n".len()));
    let take =
        "{ echo take 5000000; head -c 5000000 /dev/zero; } >&3 & timeout 100 nc 2001:db8:1::5 8090 <&3";
    assert_eq!(sh(subject, take), "[2001:db8:1::5]:8090\n5000000 bytes\n");
}

fn not_the_host(subject: &Subject) {
    let wire = Wire::new();
    wire.here.start(subject, &Pod::simple("net"));
    for to in ["169.254.169.254", "10.0.2.2", "192.0.2.2", "2001:db8::2", "fd6d:616b:766d::2"] {
        is_refused(subject, to);
    }
    is_told(subject, "refused tcp to 169.254.169.254:8080: a cloud's metadata");
    is_told(subject, "refused tcp to [2001:db8::2]:8080: an address of the host");
}

fn a_list(subject: &Subject) {
    let wire = Wire::new();
    let names =
        [("good.example", "203.0.113.5"), ("bad.example", "203.0.113.6"), ("in.good.example", "127.0.0.1")];
    let _names = wire.there.serve_names("192.0.2.1", &names);
    wire.here.set_resolv("nameserver 192.0.2.1\n");
    let list = "good.example:8080,*.good.example,2001:db8:1::/48";
    wire.here.start(subject, &Pod::simple("net").annotated("magikvm.dev/egress-allow", list));
    is_refused(subject, "203.0.113.5");
    reaches(subject, "good.example", "203.0.113.5");
    reaches(subject, "203.0.113.5", "203.0.113.5");
    reaches(subject, "2001:db8:1::5", "2001:db8:1::5");
    is_refused(subject, "203.0.113.6");
    assert!(connect(subject, "bad.example").contains("bad address"));
    assert!(!sh(subject, "nslookup in.good.example").contains("127.0.0.1"));
    is_told(subject, "refused name to bad.example: not in egress-allow");
    is_told(subject, "in.good.example: it stands for 127.0.0.1: the host's loopback");
}

fn its_own_flows(subject: &Subject) {
    let wire = Wire::new();
    let _names = wire.there.serve_names("192.0.2.1", &[("four.example", "203.0.113.5")]);
    wire.here.set_resolv("nameserver 192.0.2.1\n");
    wire.here.start(subject, &Pod::simple("net"));
    // The client ends its half first, and then sees the server's end.
    let halves = "printf 'send 1000\\n' | timeout 60 nc 203.0.113.5 8090 | wc -c";
    assert_eq!(sh(subject, halves), format!("{}\n", 1000 + "203.0.113.5:8090\n".len()));
    // A query for A of four.example after its length; the answer ends with the address.
    let query = r"\0\036\0\7\1\0\0\1\0\0\0\0\0\0\4four\7example\0\0\1\0\1";
    let over_tcp = format!("printf '{query}' | timeout 60 nc 10.0.2.3 53 | tail -c 4 | od -An -tu1");
    assert_eq!(sh(subject, &over_tcp).split_whitespace().collect::<Vec<_>>(), ["203", "0", "113", "5"]);
    let over_udp = sh(subject, "nslookup four.example");
    assert!(over_udp.contains("203.0.113.5"), "{over_udp}");

    let flows: Vec<_> = wire.here.udp_sockets().into_iter().filter(|(_, peer)| peer.port() == 53).collect();
    assert!(!flows.is_empty(), "the query's socket is there for a while");
    let open: Vec<_> = wire.here.udp_sockets().into_iter().filter(|(_, peer)| peer.port() == 0).collect();
    assert!(open.iter().all(|(own, _)| [8080, 8090].contains(&own.port())), "{open:?}");
    // What arrives for a closed port is counted there.
    let strangers = "awk '/^Udp: [0-9]/ { print $3 }' /proc/net/snmp";
    let before = sh(subject, strangers);
    for (own, _) in &flows {
        wire.there.send_udp(&at("192.0.2.2", own.port()), "attack");
    }
    // Whatever was sent before this answer has arrived.
    reaches(subject, "203.0.113.5", "203.0.113.5");
    assert_eq!(sh(subject, strangers), before);
}

fn none(subject: &Subject) {
    subject.start(&Pod::simple("net"));
    let seen = sh(subject, "ls /sys/class/net | grep -v sit; ip route; cat /etc/resolv.conf");
    assert_eq!(seen, "lo\n");
}
