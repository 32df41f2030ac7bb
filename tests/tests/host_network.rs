//! Pods with the network of the host, which here is a network namespace of the test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::net::Namespace;
use magikvm_tests::user::{NO_ACCOUNT, Ordinary};
use magikvm_tests::virtual_machine::{Driver, VmHost};
use magikvm_tests::wait::until;
use magikvm_tests::{Cmd, Pod};
use serde_json::json;

const CLASS: &str = "spec/runtimeClassName";
const ADDRESS: &str = "192.0.2.77";

/// A host with one interface besides loopback.
fn network() -> Namespace {
    let here = Namespace::new();
    here.run("ip link add name outside type veth peer name beside");
    here.run(&format!("ip address add {ADDRESS}/24 dev outside"));
    here.run("ip link set outside up");
    here.run("ip link set beside up");
    here.set_resolv("nameserver 192.0.2.53\nsearch lan\n");
    here
}

fn pod(name: &str, script: &str) -> Pod {
    Pod::new(name).script("web", script).set(CLASS, "pod-containers").set("spec/hostNetwork", true)
}

fn run(here: &Namespace, host: &VmHost, pod: &Pod) -> Cmd {
    here.cmd(host, ["run", "-d", "--allow-host-network"]).arg(host.manifest(pod))
}

#[test]
fn a_pod_shares_the_network_of_the_host_on_request() {
    shares_on_request(&VmHost::with(Driver::Containers));
}

#[test]
fn an_ordinary_users_pod_shares_the_network_of_the_host_on_request() {
    shares_on_request(&Ordinary::new(Driver::Containers, NO_ACCOUNT).with_subordinate_ids().into_host());
}

fn shares_on_request(host: &VmHost) {
    let here = network();
    let before = host.holdings();
    let script = "mkdir -p /www && echo hello > /www/index.html && exec httpd -f -p 8080 -h /www";
    let shared = pod("shared", script)
        .with("ports", json!([{ "containerPort": 8080, "hostPort": 8080 }]))
        .with("env", json!([{ "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }]))
        .with(
            "readinessProbe",
            json!({ "httpGet": { "port": 8080, "path": "/index.html" }, "periodSeconds": 1 }),
        )
        .set("spec/dnsPolicy", "ClusterFirstWithHostNet");
    let refused = here.cmd(host, ["run", "-d"]).arg(host.manifest(&shared)).fails(1);
    refused.complains("spec.hostNetwork: the pod would share").complains("`--allow-host-network`");
    run(&here, host, &shared)
        .arg("--wait-ready")
        .env("MAGIKVM_QUIET", "")
        .ok()
        .complains("the pod shares the network of the host");
    // Its port is the host's, with nobody in between.
    let asked = here
        .enter(Cmd::new("nsenter"))
        .args(["curl", "-sS", "--max-time", "10", "http://192.0.2.77:8080/index.html"])
        .ok();
    assert_eq!(asked.stdout, "hello\n");
    let sh = |script: &str| here.cmd(host, ["exec", "shared", "--", "sh", "-c", script]).ok().stdout;
    assert!(sh("ip link show outside").contains("outside"));
    assert!(sh("ls /sys/class/net").contains("lo"));
    assert_eq!(sh("cat /etc/resolv.conf"), "search lan\nnameserver 192.0.2.53\n");
    assert_eq!(sh("hostname"), nix::unistd::gethostname().unwrap().to_string_lossy().into_owned() + "\n");
    assert_eq!(sh("echo $IP"), format!("{ADDRESS}\n"));
    let status = host.inspect("shared").unwrap()["status"].clone();
    assert_eq!((&status["podIP"], &status["hostIP"]), (&json!(ADDRESS), &json!(ADDRESS)), "{status}");
    // A forwarded port leads to the same server.
    let forward = here.cmd(host, ["port-forward", "shared", "18080:8080"]).spawn();
    until("the port is forwarded", || forward.stdout().contains("18080"));
    let asked = here
        .enter(Cmd::new("nsenter"))
        .args(["curl", "-sS", "--max-time", "10", "http://127.0.0.1:18080/index.html"])
        .ok();
    assert_eq!(asked.stdout, "hello\n");
    here.cmd(host, ["cp", "shared:/www/index.html"]).arg(host.file("copied")).ok();
    assert_eq!(std::fs::read_to_string(host.file("copied")).unwrap(), "hello\n");
    drop(forward);
    here.cmd(host, ["rm", "-f", "shared"]).ok();
    std::fs::remove_file(host.file("copied")).unwrap();
    host.assert_as_before(&before);
}

/// Its root has no rights in a network that is not its own, nor over the host's devices.
#[test]
fn a_hostile_pod_changes_nothing_of_the_network_of_the_host() {
    let (host, here) = (VmHost::with(Driver::Containers), network());
    let before = host.holdings();
    run(
        &here,
        &host,
        &pod("evil", "mkdir -p /mnt; exec sleep 43281")
            .with("securityContext/capabilities/add", json!(["NET_ADMIN", "SYS_ADMIN"])),
    )
    .ok();
    let tries = [
        "ip link set outside down",
        "ip address add 192.0.2.78/24 dev outside",
        "ip link add name mine type bridge",
        "echo 1 > /proc/sys/net/ipv4/ip_forward",
        "echo 1 > /sys/class/net/outside/mtu",
        "echo x > /sys/kernel/uevent_helper",
        "nc -l -p 80 < /dev/null",
        "mount -o remount,rw /sys",
        "mount -t sysfs none /mnt",
    ];
    for script in tries {
        let output = here.cmd(&host, ["exec", "evil", "--", "timeout", "5", "sh", "-c", script]).run();
        assert!(output.code != 0 && output.code != 143 && output.code != 124, "{script}: {output:?}");
    }
    let sh = |script: &str| here.cmd(&host, ["exec", "evil", "--", "sh", "-c", script]).ok().stdout;
    // The groups that it sees are its own.
    let tasks = sh("cat /sys/fs/cgroup/pids/cgroup.procs 2>/dev/null || cat /sys/fs/cgroup/cgroup.procs");
    assert!(tasks.lines().all(|pid| pid.parse::<i32>().is_ok_and(|pid| pid < 1000)), "{tasks}");
    let options = sh("awk '$5 == \"/sys\" { print $6 }' /proc/self/mountinfo");
    assert!(options.starts_with("ro,nosuid,nodev,noexec"), "{options}");
    // Nothing is mounted beneath it but the groups.
    let beneath = sh("awk '$5 ~ \"^/sys/\" { print $5 }' /proc/self/mountinfo");
    let known = |place: &str| place.starts_with("/sys/fs/cgroup") || place == "/sys/firmware";
    assert!(beneath.lines().all(known), "{beneath}");
    here.cmd(&host, ["rm", "-f", "evil"]).ok();
    host.assert_as_before(&before);
}
