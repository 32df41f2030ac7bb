//! A container matches its manifest and may do no more.

use crate::row::{Difference, Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::virtual_machine::Driver;
use magikvm_tests::wait::until;
use serde_json::json;

const POD: &str = "spec";
const CAPABILITIES: &str = "grep -E 'Cap(Eff|Bnd)|NoNewPrivs' /proc/1/status | tr -s '\\t\\n' '  '";
const READ_ONLY: &str = "touch /x 2>/dev/null || echo refused; touch /dev/shm/x && echo shared; mount -o remount,rw / 2>/dev/null || echo no";

pub(crate) static GROUP: Group = Group {
    name: "manifest",
    title: "A container matches its manifest",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::shell(
            "a_container_that_says_nothing",
            "By default it is root in /, may write there, and has the image's variables.",
            &[(
                "plain",
                "id -u; id -g; echo $FROM; pwd; touch /x && echo written",
                "0\n0\nimage\n/\nwritten\n",
            )],
        )
        .of("`image`, `command`"),
        Row::shell(
            "a_user_and_a_group_by_number",
            "It runs as the requested user and group, and has their permissions.",
            &[("user", "id -u; id -g; touch /x 2>/dev/null || echo refused", "1234\n2345\nrefused\n")],
        )
        .of("`securityContext.runAsUser`, `runAsGroup`"),
        Row::shell(
            "a_root_that_is_read_only",
            "It can neither write to nor remount a read-only root; it can write to /dev/shm.",
            &[("readonly", READ_ONLY, "refused\nshared\nno\n")],
        )
        .of("`securityContext.readOnlyRootFilesystem`"),
        Row::shell(
            "capabilities_as_usual",
            "By default it has the same capabilities as in other runtimes.",
            &[("plain", CAPABILITIES, "CapEff: 00000000a80425fb CapBnd: 00000000a80425fb NoNewPrivs: 0 ")],
        )
        .of("`securityContext.capabilities`"),
        Row::shell(
            "capabilities_all_dropped",
            "All capabilities can be dropped, and new privileges forbidden.",
            &[("bare", CAPABILITIES, "CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1 ")],
        )
        .of("`securityContext.capabilities.drop`, `allowPrivilegeEscalation`"),
        Row::shell(
            "capabilities_one_added",
            "If all capabilities are dropped and one is added, it has only that one.",
            &[("one", CAPABILITIES, "CapEff: 0000000000001000 CapBnd: 0000000000001000 NoNewPrivs: 0 ")],
        )
        .of("`securityContext.capabilities.add`"),
        Row::code(
            "variables_and_working_directory",
            "Variables are expanded in variables and arguments, and a missing working directory is created.",
            variables_and_working_directory,
        )
        .of("`env`, `command`, `workingDir`"),
        Row::shell(
            "limits_are_those_of_its_control_group",
            "Its control group has its limits of memory and processor time.",
            &[("limits", "cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max", "50331648\n50000 100000\n")],
        )
        .of("`resources.limits`")
        .differs(&[Difference {
            drivers: &[Driver::Containers],
            why: "the host has cgroup v1",
            says: "memory.max",
        }]),
        Row::code(
            "devices_and_files_of_the_vm_are_hidden",
            "It sees neither the VM's devices nor the pod's files.",
            devices_and_files_of_the_vm_are_hidden,
        ),
        Row::shell(
            "no_vm_within_the_vm",
            "It does not see the processor's extension for VMs.",
            &[("plain", "grep -cwE 'vmx|svm' /proc/cpuinfo; true", "0\n")],
        )
        .of("`magikvm.dev/nested-virtualization`"),
        Row::code(
            "a_pod_as_an_api_server_shows_it",
            "A Pod with everything that an API server adds to it runs.",
            a_pod_as_an_api_server_shows_it,
        )
        .of("`kubectl get pod -o yaml`"),
        Row::code(
            "what_no_container_may_do",
            "It cannot mount, change the host name, read the kernel's log or memory, set kernel parameters, restart the VM, open a disk, or relax its limits.",
            what_no_container_may_do,
        ),
    ],
};

fn start(subject: &Subject) {
    let idle = ["sleep", "1000"];
    let pod = Pod::new(POD)
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
    subject.start(&pod);
}

fn a_pod_as_an_api_server_shows_it(subject: &Subject) {
    const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
    let field = |path: &str| json!({ "fieldRef": { "apiVersion": "v1", "fieldPath": path } });
    let script = format!("echo $UID_OF_POD; echo $ACCOUNT; ls {TOKEN} 2>/dev/null; ls -d /cache");
    let token = json!({ "projected": { "defaultMode": 420, "sources": [
        { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
        { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
    ] } });
    let pod = Pod::new("shown")
        .set("metadata/uid", "5f2c1e0a-7a43-4c84-8d0c-1e7a0f6f9b21")
        .set("metadata/resourceVersion", "184467")
        .set("metadata/creationTimestamp", "2026-10-01T09:00:01Z")
        .set(
            "metadata/ownerReferences",
            json!([{ "kind": "ReplicaSet", "name": "shown", "apiVersion": "apps/v1" }]),
        )
        .set("metadata/managedFields", json!([{ "manager": "kubectl", "fieldsV1": { "f:spec": {} } }]))
        .set("status", json!({ "phase": "Running", "podIP": "192.168.24.71" }))
        .set("spec/nodeName", "worker-1")
        .set("spec/serviceAccountName", "shop")
        .set("spec/priority", 0)
        .set("spec/enableServiceLinks", true)
        .set("spec/dnsPolicy", "ClusterFirst")
        .set("spec/schedulerName", "default-scheduler")
        .set("spec/securityContext", json!({}))
        .set("spec/tolerations", json!([{ "key": "node.kubernetes.io/not-ready", "operator": "Exists" }]))
        .script("web", &script)
        .with("terminationMessagePath", "/dev/termination-log")
        .with("terminationMessagePolicy", "File")
        .with("resources", json!({}))
        .with(
            "env",
            json!([
                { "name": "UID_OF_POD", "valueFrom": field("metadata.uid") },
                { "name": "ACCOUNT", "valueFrom": field("spec.serviceAccountName") },
            ]),
        )
        .volume("kube-api-access-9xk2p", token)
        .mount("kube-api-access-9xk2p", TOKEN, json!({ "readOnly": true }))
        .volume("cache", json!({}))
        .mount("cache", "/cache", json!({}));
    let output = subject.run(&pod).arg("-v").env("MAGIKVM_QUIET", "").ok();
    let uid = subject.inspect("shown").unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    assert_eq!(output.stdout, format!("web | {uid}\nweb | shop\nweb | /cache\n"));
    let warnings: Vec<&str> = output.stderr.lines().filter(|line| line.contains("ignored ")).collect();
    assert_eq!(warnings.len(), 4, "{}", output.stderr);
    subject.cmd(["rm", "shown"]).ok();
}

fn variables_and_working_directory(subject: &Subject) {
    until("it has printed", || !subject.logs(POD, "env").is_empty());
    assert_eq!(subject.logs(POD, "env"), "1 <1> pod 1-$(A)-$(NONE) /made/for/me\n");
}

fn devices_and_files_of_the_vm_are_hidden(subject: &Subject) {
    for container in ["plain", "one"] {
        let hidden =
            subject.sh(POD, container, "ls /dev /pod /containers /proc/1/root/pod 2>/dev/null; true");
        for name in ["vda", "vda1", "vsock", "kmsg", "mem", "spec.json", "ttyS0", "fuse"] {
            assert!(!hidden.lines().any(|line| line == name), "{container} sees {name}: {hidden}");
        }
    }
}

/// A device may be made, but not opened.
fn what_no_container_may_do(subject: &Subject) {
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
    let script: String =
        tried.iter().map(|command| format!("{command} >/dev/null 2>&1 && echo \"{command}\"; ")).collect();
    for container in ["plain", "one"] {
        let worked = subject.sh(POD, container, &format!("mknod /tmp/disk b 254 0; {script} true"));
        assert_eq!(worked, "", "{container}");
    }
}
