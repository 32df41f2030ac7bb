//! Security contexts, and the limits of a whole pod.

use crate::row::{Difference, Group, NAMESPACES, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::virtual_machine::{Driver, busybox};
use magikvm_tests::wait::until;
use serde_json::json;
use std::fs;

const POD: &str = "secure";
/// The image of Kubernetes' page about supplementary groups.
const GROUPED: &str = "grouped:1";

const NO_PRIVILEGED: &[Difference] = &[Difference {
    drivers: &NAMESPACES,
    why: "a pod in namespaces has no privileged containers",
    says: "privileged",
}];

/// Refuses directories, and the signal 10 however the upper bits of its number are set.
const PROFILE: &str = r#"{
  "defaultAction": "SCMP_ACT_ALLOW",
  "syscalls": [
    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 30, "comment": "EROFS"},
    {"names": ["kill"], "action": "SCMP_ACT_ERRNO",
     "args": [{"index": 1, "value": 255, "valueTwo": 10, "op": "SCMP_CMP_MASKED_EQ"}]}
  ]
}"#;

pub(crate) static GROUP: Group = Group {
    name: "security",
    title: "Security contexts",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::shell(
            "privileged_is_as_on_a_node",
            "A privileged container has all capabilities and no seccomp filter, and mounts file systems; an ordinary one does not.",
            &[
                ("privileged", "grep -h -e CapEff -e Seccomp: /proc/1/status", "CapEff:\t000001ffffffffff\nSeccomp:\t0\n"),
                ("privileged", "mkdir -p /m && mount -t tmpfs none /m && umount /m && echo mounted", "mounted\n"),
                ("plain", "grep -h -e CapEff -e Seccomp: /proc/1/status", "CapEff:\t00000000a80425fb\nSeccomp:\t2\n"),
                ("plain", "mkdir -p /m; mount -t tmpfs none /m 2>/dev/null || echo refused", "refused\n"),
            ],
        )
        .of("`securityContext.privileged` (Pods: Privileged mode for containers)")
        .differs(NO_PRIVILEGED),
        Row::shell(
            "privileged_has_the_devices_of_the_vm",
            "A privileged container finds and reads the devices of the VM; an ordinary one can read them in no way.",
            &[
                ("privileged", "test -b /dev/vda && dd if=/dev/vda bs=512 count=1 2>/dev/null | wc -c", "512\n"),
                ("privileged", "mknod /odd b $(stat -c '%t %T' /dev/vda | { read a b; echo $((0x$a)) $((0x$b)); }) && dd if=/odd bs=512 count=1 2>/dev/null | wc -c; rm /odd", "512\n"),
                ("plain", "ls /dev/vda 2>/dev/null; mknod /odd b 254 0 && dd if=/odd bs=512 count=1 2>/dev/null | wc -c; rm /odd", "0\n"),
            ],
        )
        .of("`securityContext.privileged` (Pods: Privileged mode for containers)")
        .differs(NO_PRIVILEGED),
        Row::shell(
            "privileged_writes_to_sysfs_and_cgroups",
            "In a privileged container /sys, /sys/fs/cgroup and /proc/sys can be written to; in an ordinary one they are read-only.",
            &[
                ("privileged", WRITES, "sys rw\nproc rw\ncgroup rw\n"),
                ("plain", WRITES, "sys ro\nproc ro\ncgroup ro\n"),
            ],
        )
        .of("`securityContext.privileged` (Pods: Privileged mode for containers)")
        .differs(NO_PRIVILEGED),
        Row::shell(
            "unmasked_proc",
            "With `procMount: Unmasked` all of /proc is there and /proc/sys is writable, without other privileges.",
            &[
                ("unmasked", "head -c 4 /proc/interrupts | wc -c; v=$(cat /proc/sys/kernel/panic); echo $v > /proc/sys/kernel/panic && echo written", "4\nwritten\n"),
                ("unmasked", "grep -h -e CapEff -e Seccomp: /proc/1/status", "CapEff:\t00000000a80425fb\nSeccomp:\t2\n"),
                ("plain", "head -c 4 /proc/interrupts | wc -c; echo 0 2>/dev/null > /proc/sys/kernel/panic || echo refused", "0\nrefused\n"),
            ],
        )
        .of("`securityContext.procMount` (Configure a Security Context: Managing access to the /proc filesystem)")
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "the parameters of the kernel belong to the host, whatever is mounted",
            says: "unmasked",
        }]),
        Row::shell(
            "unconfined",
            "A container with the seccomp profile Unconfined has no filter, nor has a command in it; its capabilities stay.",
            &[("open", "grep -h -e CapEff -e Seccomp: /proc/1/status /proc/self/status", "CapEff:\t00000000a80425fb\nSeccomp:\t0\nCapEff:\t00000000a80425fb\nSeccomp:\t0\n")],
        )
        .of("`seccompProfile` (Restrict a Container's Syscalls with seccomp)")
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "a container in namespaces always has a filter",
            says: "open",
        }]),
        Row::shell(
            "a_profile_of_the_host",
            "A profile of the host binds the container and the commands in it, also by masked arguments, and replaces the default one.",
            &[
                ("profiled", "mkdir /d 2>&1; echo; cat /said", "mkdir: can't create directory '/d': Read-only file system\n\nmkdir: can't create directory '/e': Read-only file system\n"),
                ("profiled", "sh -c 'trap \"echo got\" USR2; kill -USR2 $$; kill -USR1 $$ 2>/dev/null || echo refused'", "got\nrefused\n"),
                ("profiled", "unshare -n true 2>/dev/null || echo no capability", "no capability\n"),
            ],
        )
        .of("`seccompProfile.localhostProfile` (Restrict a Container's Syscalls with seccomp)"),
        Row::shell(
            "strict_groups",
            "With `supplementalGroupsPolicy: Strict` a container has only the groups of its manifest.",
            &[("grouped", "id -u; id -G; grep ^Groups /proc/1/status", "1000\n3000 4000\nGroups:\t4000 \n")],
        )
        .of("`supplementalGroupsPolicy` (Configure a Security Context: Configure fine-grained SupplementalGroups control)"),
        Row::shell(
            "limits_of_the_pod_are_told",
            "A container without limits is told those of its pod.",
            &[("plain", "echo $MEMORY $CPU", "300 1500\n")],
        )
        .of("`spec.resources` (Assign Pod-level CPU and memory resources)")
        .differs(&[Difference {
            drivers: &[Driver::ContainersV2, Driver::ContainersUser],
            why: "the lab has one processor",
            says: "300 1000",
        }]),
        Row::code(
            "class_and_size",
            "The limits of the pod make the size of its VM and its QoS class.",
            class_and_size,
        )
        .of("`spec.resources` (Pod Quality of Service Classes)")
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "there is no VM whose size could be shown",
            says: "2cpu",
        }]),
    ],
};

const WRITES: &str = "w() { for o in $(awk -v p=$1 '$2 == p { o = $4 } END { print o }' /proc/mounts | tr , ' '); do case $o in rw|ro) echo $2 $o;; esac; done; }; \
    w /sys sys; v=$(cat /proc/sys/kernel/panic); (echo $v > /proc/sys/kernel/panic) 2>/dev/null && echo proc rw || echo proc ro; \
    (mkdir /sys/fs/cgroup/own && rmdir /sys/fs/cgroup/own) 2>/dev/null && echo cgroup rw || echo cgroup ro";

fn start(subject: &Subject) {
    let profiles = subject.root().join("etc/seccomp/profiles");
    fs::create_dir_all(&profiles).unwrap();
    fs::write(profiles.join("odd.json"), PROFILE).unwrap();
    import_grouped(subject);
    let resource = |resource: &str, divisor: &str| json!({ "resourceFieldRef": { "resource": resource, "divisor": divisor } });
    let app_armor = match subject.driver() {
        Driver::Qemu | Driver::Krun | Driver::Containers => json!({ "type": "RuntimeDefault" }),
        // Their host has AppArmor, and no program that loads the profile: tests/lab_apparmor.rs has one.
        Driver::ContainersV2 | Driver::ContainersUser => json!({ "type": "Unconfined" }),
    };
    let pod = Pod::new(POD)
        .set("spec/resources/limits", json!({ "memory": "300Mi", "cpu": "1500m" }))
        .set("spec/securityContext/supplementalGroups", json!([4000]))
        .set("spec/securityContext/supplementalGroupsPolicy", "Strict")
        .set("spec/securityContext/appArmorProfile", app_armor)
        .container("plain", &["sleep", "1000"])
        .with(
            "env",
            json!([
                { "name": "MEMORY", "valueFrom": resource("limits.memory", "1Mi") },
                { "name": "CPU", "valueFrom": resource("limits.cpu", "1m") },
            ]),
        )
        .container("unmasked", &["sleep", "1000"])
        .with("securityContext/procMount", "Unmasked")
        .script("profiled", "mkdir /e 2>/said; exec sleep 1000")
        .with(
            "securityContext/seccompProfile",
            json!({ "type": "Localhost", "localhostProfile": "profiles/odd.json" }),
        )
        .container_of("grouped", GROUPED, &["sleep", "1000"])
        .with("securityContext", json!({ "runAsUser": 1000, "runAsGroup": 3000 }));
    // The kernel of a pod in namespaces is the host's.
    let pod = match subject.driver() {
        Driver::Containers | Driver::ContainersV2 | Driver::ContainersUser => {
            pod.container("more", &["sleep", "1000"]).container("most", &["sleep", "1000"])
        }
        Driver::Qemu | Driver::Krun => pod
            .set("spec/hostUsers", true)
            .container("privileged", &["sleep", "1000"])
            .with("securityContext/privileged", true)
            .container("open", &["sleep", "1000"])
            .with("securityContext/seccompProfile/type", "Unconfined"),
    };
    subject.start(&pod);
}

fn import_grouped(subject: &Subject) {
    let image = busybox()
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\ntester:x:1000:1000::/tmp:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\nin-image:x:50000:tester\n");
    subject.import(GROUPED, image, &json!({}));
}

fn class_and_size(subject: &Subject) {
    let pod = subject.inspect(POD).unwrap();
    // Requests that are not written are the limits.
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
    // 96 MiB for the VM and 8 for each container.
    subject.cmd(["ps"]).ok().prints(&format!("2cpu {}MiB", 300 + 96 + 6 * 8));
}

pub(crate) static OWN: Group = Group {
    name: "security_own",
    title: "Security contexts and limits of pods of their own",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "merged_groups",
            "By default a container has the groups that the image gives its user, beside those of its manifest.",
            merged_groups,
        )
        .of("`supplementalGroupsPolicy` (Configure a Security Context: Implicit group memberships)"),
        Row::code(
            "variables_of_a_file",
            "A variable has the value that an init container has written to a file, also in arguments and in commands; without the file an \
             optional one is not there, and a required one fails the pod.",
            variables_of_a_file,
        )
        .of("`fileKeyRef` (Define Environment Variable Values Using An Init Container)"),
        Row::code(
            "the_pods_memory",
            "Containers that together exceed the memory limit of their pod are killed, although the VM has more.",
            the_pods_memory,
        )
        .of("`spec.resources.limits.memory` (Assign Pod-level CPU and memory resources)"),
    ],
};

/// The pod of Kubernetes' page, with the output that the page shows.
fn merged_groups(subject: &Subject) {
    import_grouped(subject);
    let pod = Pod::new("merged")
        .set(
            "spec/securityContext",
            json!({ "runAsUser": 1000, "runAsGroup": 3000, "supplementalGroups": [4000] }),
        )
        .container_of("main", GROUPED, &["sh", "-c", "id -u; id -G"]);
    let output = subject.run(&pod).ok();
    assert_eq!(output.stdout, "main | 1000\nmain | 3000 4000 50000\n");
}

fn the_pods_memory(subject: &Subject) {
    // The buffer of `dd` is as large as the pod may be, and far smaller than the VM.
    let pod = Pod::new("limited")
        .annotated("magikvm.dev/memory-mib", "384")
        .set("spec/resources/limits/memory", "64Mi")
        .script("eater", "exec dd if=/dev/zero of=/dev/null bs=128M count=1")
        .container("other", &["sleep", "1000"]);
    subject.start(&pod);
    until("it is killed", || subject.statuses("limited")[0]["state"]["terminated"]["reason"] == "OOMKilled");
    assert_eq!(subject.sh("limited", "other", "echo alive"), "alive\n");
}

/// The pod of Kubernetes' page, whose main container does not mount the volume.
fn variables_of_a_file(subject: &Subject) {
    let file = |key: &str, optional: bool| json!({ "fileKeyRef": { "volumeName": "config", "path": "config.env", "key": key, "optional": optional } });
    let pod = |optional: bool| {
        let mut setup = Pod::new("env-file")
            .init_script(
                "setup",
                "printf \"# comment\\nDB_ADDRESS='address'\\nLINES='a\\nb'\\n\" > /data/config.env",
                None,
            )
            .with_init("volumeMounts", json!([{ "name": "config", "mountPath": "/data" }]))
            .volume("config", json!({ "emptyDir": {} }));
        setup = setup.container("use", &["sh", "-c", "echo $(DB_ADDRESS) and $URL; exec sleep 1000"]);
        setup.with(
            "env",
            json!([
                { "name": "DB_ADDRESS", "valueFrom": file("DB_ADDRESS", false) },
                { "name": "URL", "value": "http://$(DB_ADDRESS)/" },
                { "name": "LINES", "valueFrom": file("LINES", true) },
                { "name": "GONE", "valueFrom": file("GONE", optional) },
                { "name": "TEXT", "value": "$(GONE)" },
            ]),
        )
    };
    subject.start(&pod(true));
    until("it has said so", || subject.logs("env-file", "use") == "address and http://address/\n");
    let seen = subject.sh("env-file", "use", "echo \"$LINES $TEXT ${GONE-none}\"");
    assert_eq!(seen, "a\nb $(GONE) none\n");
    subject.cmd(["rm", "-f", "env-file"]).ok();
    subject
        .run(&pod(false))
        .arg("-d")
        .fails(1)
        .complains("variable GONE: the file \"config.env\" of its volume has no variable \"GONE\"");
}
