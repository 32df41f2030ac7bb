//! Real VMs: what a container finds around itself.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::layout::Tar;
use magikvm_tests::programs::compile;
use magikvm_tests::virtual_machine::{VmHost, busybox};
use magikvm_tests::wait::until;
use magikvm_tests::{Pod, wait_for};
use serde_json::json;
use std::time::Duration;

const WEB: &str = "mkdir /www && echo 'hello from web' > /www/index.html && exec httpd -f -p 8080 -h /www";
const CLIENT: &str = "until wget -qO- localhost:8080; do sleep 0.1; done; exec sleep 1000";

#[test]
fn containers_of_a_pod_share_network_and_name_but_not_processes_and_files() {
    let host = VmHost::new();
    let before = host.holdings();
    let pod = Pod::new("shop").set("spec/hostname", "corner").script("web", WEB).script("client", CLIENT);
    host.start(&pod);
    until("the client has its page", || {
        host.cmd(["logs", "shop", "-c", "client"]).ok().stdout == "hello from web\n"
    });
    for container in ["web", "client"] {
        let (hosts, name) =
            (host.sh("shop", container, "cat /etc/hosts"), host.sh("shop", container, "hostname"));
        assert_eq!(name, "corner\n");
        assert!(hosts.contains("127.0.0.1") && hosts.contains("corner"), "{hosts}");
    }
    assert_eq!(
        host.sh("shop", "client", "cat /proc/1/comm; ls -d /www 2>/dev/null || echo none"),
        "sleep\nnone\n"
    );
    assert_eq!(host.sh("shop", "web", "cat /proc/1/comm; ps | grep -c '[s]leep'; true"), "httpd\n0\n");
    let namespaces = |container| {
        host.sh("shop", container, "for n in net ipc uts pid mnt cgroup; do readlink /proc/1/ns/$n; done")
    };
    let (web, client) = (namespaces("web"), namespaces("client"));
    let shared: Vec<bool> = web.lines().zip(client.lines()).map(|(one, other)| one == other).collect();
    assert_eq!(shared[..5], [true, true, true, false, false], "{web}{client}");
    let stats = host.cmd(["stats", "shop", "-o", "json"]).ok().stdout;
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    for container in stats["containers"].as_array().unwrap() {
        assert!(
            container["pids"].as_u64() > Some(0) && container["memory_bytes"].as_u64() > Some(0),
            "{container}"
        );
    }
    host.cmd(["stop", "--grace", "0", "shop"]).ok();
    assert_eq!(host.cmd(["logs", "shop", "-c", "client"]).ok().stdout, "hello from web\n");
    host.cmd(["rm", "shop"]).ok();
    host.assert_as_before(&before);
}

#[test]
fn a_container_is_what_its_manifest_says() {
    let host = VmHost::new();
    let idle = ["sleep", "1000"];
    let pod = Pod::new("spec")
        .container("plain", &idle)
        .container("user", &idle)
        .with("securityContext", json!({ "runAsUser": 1234, "runAsGroup": 2345 }))
        .container("readonly", &idle)
        .with("securityContext", json!({ "readOnlyRootFilesystem": true }))
        .container("bare", &idle)
        .with("securityContext", json!({ "capabilities": { "drop": ["ALL"] }, "allowPrivilegeEscalation": false }))
        .container("one", &idle)
        .with("securityContext", json!({ "capabilities": { "drop": ["ALL"], "add": ["NET_ADMIN"] } }))
        .container("env", &["sh", "-c", "echo $A $B $(C) $FROM \"$0\" \"$PWD\"; exec sleep 1000", "$(A)-$$(A)-$(NONE)"])
        .with("env", json!([{ "name": "A", "value": "1" }, { "name": "B", "value": "<$(A)>" }, { "name": "FROM", "value": "pod" }]))
        .with("workingDir", "/made/for/me")
        .container("limits", &idle)
        .with("resources/limits", json!({ "memory": "48Mi", "cpu": "500m" }));
    host.start(&pod);
    let sh = |container: &str, script: &str| host.sh("spec", container, script);

    assert_eq!(
        sh("plain", "id -u; id -g; echo $FROM; pwd; touch /x && echo written"),
        "0\n0\nimage\n/\nwritten\n"
    );
    assert_eq!(sh("user", "id -u; id -g; touch /x 2>/dev/null || echo refused"), "1234\n2345\nrefused\n");
    let readonly = "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo shared; mount -o remount,rw / 2>/dev/null || echo no";
    assert_eq!(sh("readonly", readonly), "refused\nshared\nno\n");
    let capabilities = "grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/1/status | tr -s '\\t\\n' '  '";
    let of = |container| sh(container, capabilities).trim().to_owned();
    assert_eq!(of("plain"), "CapEff: 00000000a80425fb CapBnd: 00000000a80425fb NoNewPrivs: 0");
    assert_eq!(of("bare"), "CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1");
    assert_eq!(of("one"), "CapEff: 0000000000001000 CapBnd: 0000000000001000 NoNewPrivs: 0");
    until("it has printed", || !host.cmd(["logs", "spec", "-c", "env"]).ok().stdout.is_empty());
    let printed = host.cmd(["logs", "spec", "-c", "env"]).ok().stdout;
    assert_eq!(printed, "1 <1> pod 1-$(A)-$(NONE) /made/for/me\n");
    assert_eq!(
        sh("limits", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max"),
        "50331648\n50000 100000\n"
    );

    // What no container may do, whatever it is. A device may be made, but not opened.
    for container in ["plain", "one"] {
        let hidden = sh(container, "ls /dev /pod /containers /proc/1/root/pod 2>/dev/null; true");
        for name in ["vda", "vda1", "vsock", "kmsg", "mem", "spec.json", "ttyS0", "fuse"] {
            assert!(!hidden.lines().any(|line| line == name), "{container} sees {name}: {hidden}");
        }
        let tried = [
            "mount -t tmpfs x /tmp",
            "umount /etc/hosts",
            "hostname x",
            "dmesg",
            "sysctl -w kernel.panic=1",
            "nsenter -t 1 -n -u -i -m true",
            "chroot /proc/1/root reboot -f",
            "head -c 1 /tmp/disk",
            "head -c 1 /proc/kcore",
            "sh -c 'echo c > /proc/sysrq-trigger'",
            "sh -c 'echo 1 > /sys/fs/cgroup/pids.max'",
        ];
        let script: String = tried
            .iter()
            .map(|command| format!("{command} >/dev/null 2>&1 && echo \"{command}\"; "))
            .collect();
        let worked = sh(container, &format!("mknod /tmp/disk b 254 0; {script} true"));
        assert_eq!(worked, "", "{container}");
    }
}

/// Tries what needs a system call of its own to be tried. Prints a line for each.
const PROBE: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>
static void say(const char *what, long result) {
    printf("%s: %s\n", what, result >= 0 ? "works" : strerrorname_np(errno));
}
int main(void) {
    say("inet", socket(AF_INET, SOCK_STREAM, 0));
    say("unix", socket(AF_UNIX, SOCK_STREAM, 0));
    say("vsock stream", socket(AF_VSOCK, SOCK_STREAM, 0));
    say("vsock seqpacket", socket(AF_VSOCK, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    say("vsock high bits", syscall(SYS_socket, (1L << 32) | AF_VSOCK, SOCK_STREAM, 0));
    int pair[2];
    say("vsock pair", socketpair(AF_VSOCK, SOCK_STREAM, 0, pair));
    say("io_uring", syscall(SYS_io_uring_setup, 1, 0));
    say("bpf", syscall(SYS_bpf, 0, 0, 0));
    say("kexec_load", syscall(SYS_kexec_load, 0, 0, 0, 0));
    say("no such call", syscall(999999));
    fflush(stdout);
    return 0;
}
"#;

#[test]
fn containers_cannot_reach_the_agent_nor_the_kernel() {
    let host = VmHost::new();
    let layer = Tar::default().file("probe", 0o755, &compile(PROBE));
    // An image with one program: no PATH, no /etc, no /proc, no /dev.
    host.import("probe:1", layer, &json!({ "Cmd": ["/probe"] }));
    let every = json!({ "capabilities": { "add": ["ALL"] } });
    for context in [json!({}), every] {
        let pod =
            Pod::new("probe").container_of("c", "probe:1", &["/probe"]).with("securityContext", context);
        let said = host.run(&pod).args(["--rm", "--no-prefix"]).ok().stdout;
        let lines: Vec<&str> = said.lines().collect();
        assert_eq!(lines[..2], ["inet: works", "unix: works"], "{said}");
        for line in &lines[2..6] {
            assert!(line.starts_with("vsock") && !line.ends_with("works"), "{said}");
        }
        assert!(!lines[6].ends_with("works") && !lines[8].ends_with("works"), "{said}");
        assert_eq!(lines[9], "no such call: ENOSYS", "{said}");
    }
}

#[test]
fn sixteen_containers_of_sixteen_images() {
    let host = VmHost::new();
    let before = host.holdings();
    let mut pod = Pod::new("crowd");
    for number in 0..16 {
        let image = format!("crowd/app-{number}:1");
        host.import(
            &image,
            busybox().file("etc/which", 0o644, format!("image {number}\n").as_bytes()),
            &json!({}),
        );
        pod = pod
            .container_of(&format!("c{number:02}"), &image, &["sh", "-c", "cat /etc/which"])
            .with("resources/limits/memory", "32Mi");
    }
    let output = host.run(&pod).ok();
    let mut lines: Vec<&str> = output.stdout.lines().collect();
    lines.sort_unstable();
    let expected: Vec<String> = (0..16).map(|number| format!("c{number:02} | image {number}")).collect();
    assert_eq!(lines, expected);
    assert_eq!(host.phase("crowd"), "Succeeded");
    host.cmd(["rm", "crowd"]).ok();
    host.assert_as_before(&before);
}

const MAKE_ORPHANS: &str = "i=0; while [ $i -lt 1000 ]; do (true & ); i=$((i+1)); done; echo done";

/// Process numbers of zombies that a container sees.
fn zombies(host: &VmHost, pod: &str, container: &str) -> usize {
    host.sh(pod, container, "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l")
        .trim()
        .parse()
        .unwrap()
}

#[test]
fn orphans_are_reaped() {
    let host = VmHost::new();
    let before = host.holdings();
    let pod = Pod::new("shared")
        .set("spec/shareProcessNamespace", true)
        .script("maker", &format!("{MAKE_ORPHANS}; exec sleep 1000"))
        .container("other", &["sleep", "77"]);
    host.start(&pod);
    wait_for("a thousand orphans", Duration::from_secs(60), || {
        host.cmd(["logs", "shared", "-c", "maker"]).ok().stdout.contains("done").then_some(())
    });
    until("all of them are reaped", || zombies(&host, "shared", "other") == 0);
    let seen = host.sh("shared", "maker", "ps -o args");
    assert!(seen.contains("sleep 1000") && seen.contains("sleep 77"), "they see each other: {seen}");
    host.cmd(["rm", "-f", "shared"]).ok();

    // Process 1 of a namespace of its own has to reap its orphans itself. That this one does not must harm nobody else, and its end takes all.
    // A child makes them, so that they become children of `sleep`.
    let script = format!("{{ {MAKE_ORPHANS}; }} & exec sleep 1000");
    let pod = Pod::new("own").script("maker", &script).container("other", &["sleep", "1000"]);
    host.start(&pod);
    wait_for("a thousand orphans", Duration::from_secs(60), || {
        host.cmd(["logs", "own", "-c", "maker"]).ok().stdout.contains("done").then_some(())
    });
    until("they are zombies", || zombies(&host, "own", "maker") > 900);
    assert_eq!(zombies(&host, "own", "other"), 0);
    host.cmd(["kill", "own", "-c", "maker"]).ok();
    until("the container has ended", || {
        host.inspect("own").unwrap()["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"]
            == 137
    });
    assert_eq!(host.sh("own", "other", "echo alive"), "alive\n");
    host.cmd(["rm", "-f", "own"]).ok();
    host.assert_as_before(&before);
}
