//! Volumes that are projections, images or claims, and what the downward API tells.

use crate::row::{Difference, Group, NAMESPACES, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::layout::{Tar, write_artifact};
use magikvm_tests::virtual_machine::busybox;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

const POD: &str = "volumes-more";
const TOOLS: &str = "test/tools:1";
const ARTIFACT: &str = "test/artifact:1";

pub(crate) static GROUP: Group = Group {
    name: "volumes_more",
    title: "Projections, images, claims, and the downward API",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::shell(
            "projected",
            "A projected volume has the files of all its sources, each with its mode; of equal keys the later one wins.",
            &[
                ("one", "cd /all; find . -type f | sort | xargs stat -c '%n %a %g'", "./deep/key 440 4000\n./labels 640 4000\n./same 640 4000\n./text 640 4000\n"),
                ("one", "cd /all; cat same text deep/key; (echo x > text) 2>/dev/null || echo refused", "second\nhello\ntop secretrefused\n"),
                ("two", "cat /all/deep/key; ls /empty | wc -l", "top secret0\n"),
            ],
        )
        .of("`volumes[].projected` (Projected Volumes)"),
        Row::shell(
            "downward_api_files",
            "Fields of the pod are files; labels and annotations are lines of `key=\"value\"` in Go's escapes, sorted by key.",
            &[
                ("one", "cat /about/labels; echo; grep example.com /about/notes; cat /about/deep/name /about/label", "app=\"shop\"\ntier=\"back\"\nexample.com/note=\"one\\n\\\"two\\\"\"\nvolumes-moreshop"),
                ("one", "[ \"$(cat /about/uid)\" = \"$POD_UID\" ] && [ ${#POD_UID} = 36 ] && echo same; cat /about/cpu; echo; m=$(cat /about/memory); t=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo); \
                    [ $m -ge $t ] && [ $m -le $((t + 1)) ] && echo node || echo $m", "same\n500\n256\n"),
                ("one", "stat -c '%a %g' /about/uid /about/labels", "444 4000\n640 4000\n"),
            ],
        )
        .of("`volumes[].downwardAPI` (Downward API: Available fields)")
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "the pod has as much memory as the host",
            says: "node",
        }]),
        Row::shell(
            "resources_in_variables",
            "A resourceFieldRef is a limit or request in its unit, rounded up; without a limit, it is what the VM has.",
            &[
                ("one", "t=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo); [ $CPU = $(nproc) ] && [ $MEMORY -ge $t ] && [ $MEMORY -le $((t + 1)) ] && CPU=node MEMORY=node; \
                    echo $CPU $MEMORY $DISK $REQUEST $OTHER", "1 256 10 0 500\n"),
                ("two", "echo $CPU $MEMORY $DISK $REQUEST", "1 64 1 500\n"),
            ],
        )
        .of("`env[].valueFrom.resourceFieldRef` (Downward API: Fallback information for resource limits)")
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "the pod has the processors and the memory of the host",
            says: "node node 10 0 500",
        }]),
        Row::shell(
            "image_volume",
            "The root file system of an image is a volume that nobody can change and whose programs can't be executed.",
            &[
                ("one", "cd /tools; cat share/hello; ls -d bin; (echo x > new) 2>/dev/null || echo read-only; ./bin/busybox true 2>/dev/null || echo noexec", "hello from the image\nbin\nread-only\nnoexec\n"),
                ("two", "cat /part/hello; stat -c %u:%g /part/hello; mount | grep ' /part ' | grep -o 'ro,[a-z,]*noexec'", "hello from the image\n0:0\nro,nodev,noexec\n"),
            ],
        )
        .of("`volumes[].image` (Use an Image Volume With a Pod)"),
        Row::shell(
            "claim",
            "A claim is one empty directory for all containers, in which everybody may write and which belongs to the pod's group.",
            &[
                ("two", "ls -A /data; id -u; echo two > /data/two; stat -c '%u:%g' /data/two; stat -c '%a %g' /data", "made\n1000\n1000:4000\n2777 4000\n"),
                ("one", "cat /data/two /look/two; (echo x > /look/x) 2>/dev/null || echo refused; cat /sub/two 2>/dev/null; ls -d /sub; rm /data/two", "two\ntwo\nrefused\n/sub\n"),
            ],
        )
        .of("`volumes[].persistentVolumeClaim` (Persistent Volumes: Claims As Volumes)"),
        Row::shell(
            "claim_of_a_size",
            "A claim for one node holds what it requests, and not much more.",
            &[("two", "mount | grep ' /data ' | grep -o ext4; dd if=/dev/zero of=/data/x bs=4k count=8192 2>&1 | grep -o 'No space.*'; s=$(stat -c %s /data/x); \
                [ $s -ge 16777216 -a $s -le 27262976 ] || echo $s; rm /data/x; echo again > /data/x && rm /data/x", "ext4\nNo space left on device\n")],
        )
        .of("`persistentVolumeClaim.spec.resources` (Persistent Volumes: Resources)")
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "a claim is a directory, whose size nothing limits",
            says: "33554432",
        }]),
        Row::shell(
            "shared_claim",
            "A claim that many nodes may share is a directory of the host, also for a pod that is not root there.",
            &[("two", "echo two > /shared/two; mount | grep -q ' /shared type virtiofs ' && echo shared; rm /shared/two", "shared\n")],
        )
        .of("`persistentVolumeClaim.spec.accessModes` (Persistent Volumes: Access Modes)")
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "no file server is between the container and the claim",
            says: "virtiofs",
        }]),
        Row::shell(
            "artifact_volume",
            "The blobs of an OCI artifact are files by their titles, as they are; nobody can change or execute them.",
            &[
                ("one", "cd /artifact; find . | sort | xargs stat -c '%n %F %a'; cat model/weights.txt; (echo x > new) 2>/dev/null || echo read-only",
                    ". directory 755\n./model directory 755\n./model/weights.txt regular file 644\n./packed.tar.gz regular file 644\n./unpacked regular file 640\nweights\nread-only\n"),
                ("one", "cd /artifact; head -c 2 packed.tar.gz | od -An -tx1; cat unpacked; mount | grep ' /artifact ' | grep -o 'ro,[a-z,]*noexec'", " 1f 8b\nfrom an archive\nro,nodev,noexec\n"),
                ("two", "cat /weights", "weights\n"),
            ],
        )
        .of("`volumes[].image` (Volumes: image)"),
        Row::shell(
            "expanded_sub_path",
            "A subPathExpr is expanded with the container's variables, also with those of the downward API, and made if it is missing.",
            &[("one", "echo mine > /log/file; cat /room/logs/volumes-more/file; rm -r /room/logs/volumes-more/file", "mine\n")],
        )
        .of("`volumeMounts[].subPathExpr` (Volumes: Using subPath with expanded environment variables)"),
        Row::shell(
            "optional_keys",
            "What is optional and missing is left out, key by key or as a whole; what is there has the mode of its volume, and its group may read it.",
            &[("one", "cd /optional; find . -type f | sort | xargs stat -c '%n %a'; cat map/a; ls -A missing | wc -l; ls -A gone | wc -l", "./fields/name 440\n./map/a 440\n./secret/p 444\nhello\n0\n0\n")],
        )
        .of("`optional`, `items`, `defaultMode` (API reference: Volume, ConfigMapVolumeSource)"),
        Row::shell(
            "recursive_read_only",
            "What is mounted beneath a volume that is recursively read-only can't be changed either.",
            &[("one", "cat /rro/below/kept; for f in /rro/x /rro/below/x; do (echo x > $f) 2>/dev/null || echo refused; done", "kept\nrefused\nrefused\n")],
        )
        .of("`volumeMounts[].recursiveReadOnly` (Volumes: Recursive read-only mounts)"),
        Row::shell(
            "claims_that_are_read_only",
            "A claim with `readOnly`, or for ReadOnlyMany alone, can't be changed whatever its mount says.",
            &[("one", "for d in /locked /many; do (echo x > $d/x) 2>/dev/null || echo refused; done", "refused\nrefused\n")],
        )
        .of("`persistentVolumeClaim.readOnly`, `accessModes` (Persistent Volumes: Access Modes)"),
        Row::shell(
            "ephemeral_volume",
            "A volume of a claim template holds what it requests.",
            &[("one", "mount | grep ' /mine ' | grep -o ext4; dd if=/dev/zero of=/mine/x bs=4k 2>&1 | grep -o 'No space.*'; s=$(stat -c %s /mine/x); \
                [ $s -ge 8388608 -a $s -le 8519680 ] || echo $s; rm /mine/x", "ext4\nNo space left on device\n")],
        )
        .of("`volumes[].ephemeral` (Ephemeral Volumes: Generic ephemeral volumes)"),
        Row::shell(
            "init_containers",
            "An init container has the pod's volumes and variables as the others have them.",
            &[("one", "cat /room/key /room/hello /room/cpu; stat -c %g /room/claim; cat /room/claim", "top secrethello from the image\n250\n4000\nwritten\n")],
        )
        .of("`initContainers[].volumeMounts` (Init Containers: Detailed behavior)"),
        Row::code(
            "claim_on_the_host",
            "What containers write to a claim is in the state directory, which nobody else can enter; `volume` shows who uses it.",
            claim_on_the_host,
        )
        .of("`magikvm volume`")
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "a claim is a directory",
            says: "NotFound",
        }]),
    ],
};

pub(crate) static OWN: Group = Group {
    name: "claims",
    title: "Volumes that survive their pods",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "after_the_pod",
            "A claim keeps its content when its pod is removed; `export` and `import` copy it; `rm` removes it once no pod uses it.",
            after_the_pod,
        )
        .of("`volumes[].persistentVolumeClaim`, `magikvm volume` (Persistent Volumes: Lifecycle of a volume and claim)"),
        Row::code(
            "disk_after_the_pod",
            "A claim of a size is left in order when its pod ends, grows when more is requested, and has what was synced before the VM was killed.",
            disk_after_the_pod,
        )
        .of("`persistentVolumeClaim` (Persistent Volumes: Expanding Persistent Volumes Claims)")
        .differs(&[Difference {
            drivers: &NAMESPACES,
            why: "a claim is a directory, whose size nothing limits",
            says: "small",
        }])
        .within(Duration::from_secs(180)),
        Row::code(
            "disk_of_a_group",
            "Everything in a claim gets the group of the pod, however deep it is, unless only the root decides and has it.",
            disk_of_a_group,
        )
        .of("`fsGroup`, `fsGroupChangePolicy` (Configure a Security Context: Configure volume permission and ownership change policy for Pods)"),
    ],
};

/// Checks the file system of a disk without changing it. Nobody uses it.
fn assert_in_order(subject: &Subject, claim: &str) {
    let image = subject.root().join(format!("data/volumes/default_{claim}/disk/image"));
    let check =
        subject.other("e2fsck").args(["-f", "-n"]).arg(format!("{}?offset={}", image.display(), 1 << 20));
    check.ok();
}

fn disk_after_the_pod(subject: &Subject) {
    let pod = |name: &str, script: &str| {
        Pod::new(name).volume("v", used("grown")).script("web", script).mount("v", "/v", json!({}))
    };
    let room = "df -k /v | tail -1 | awk '{ print ($2 > 100000) ? \"large\" : \"small\" }'";
    let first = pod("first", &format!("echo one > /v/one; {room}"));
    let first = subject.run(&first.beside(claim("grown", "ReadWriteOnce", "16Mi"))).arg("--rm").ok();
    assert_eq!(first.stdout, "web | small\n");
    assert_in_order(subject, "grown");
    let second = pod(
        "second",
        &format!("{room}; cat /v/one; echo two > /v/two; sync; echo lost > /v/lost; sleep 1000"),
    );
    subject.start(&second.beside(claim("grown", "ReadWriteOnce", "256Mi")));
    magikvm_tests::wait::until("the file is written", || subject.logs("second", "web") == "large\none\n");
    subject.sh("second", "web", "until [ -e /v/lost ]; do :; done");
    let third = subject.run(&pod("third", "true")).fails(125);
    third.complains(
        "volume default/grown is a disk, which one pod at a time can have, and pod default/second uses it",
    );
    kill(Pid::from_raw(subject.process("second", subject.vm_process())), Signal::SIGKILL).unwrap();
    subject.wait_for_monitor_end("second");
    let fourth =
        subject.run(&pod("fourth", &format!("{room}; cat /v/one /v/two; rm /v/two"))).arg("--rm").ok();
    assert_eq!(fourth.stdout, "web | large\nweb | one\nweb | two\n");
    assert_in_order(subject, "grown");
    let image = subject.file("grown.img");
    subject.cmd(["volume", "export", "--disk", "grown", "-o", image.to_str().unwrap()]).ok();
    subject.cmd(["volume", "import", "--disk", "copied", image.to_str().unwrap()]).ok();
    let copied = Pod::new("fifth").volume("v", used("copied")).script("web", "cat /v/one; ls -A /v | wc -l");
    let fifth = subject.run(&copied.mount("v", "/v", json!({ "readOnly": true }))).arg("--rm").ok();
    assert_eq!(fifth.stdout.lines().next(), Some("web | one"));
}

fn disk_of_a_group(subject: &Subject) {
    let pod = |name: &str, group: u32, change: &str, script: &str| {
        Pod::new(name)
            .set("spec/securityContext", json!({ "fsGroup": group, "fsGroupChangePolicy": change }))
            .volume("v", used("grouped"))
            .script("web", script)
            .mount("v", "/v", json!({}))
    };
    let run = |pod: &Pod| subject.run(pod).arg("--rm").limit(subject.seconds(120)).ok().stdout;
    let deep = "d=/v; for i in $(seq 400); do d=$d/d; done";
    let make = format!(
        "umask 077; {deep}; mkdir -p $d; echo x > $d/file; ln -s /etc/passwd /v/link; stat -c %g $d/file"
    );
    let first = pod("first", 3000, "Always", &make).beside(claim("grouped", "ReadWriteOnce", "16Mi"));
    assert_eq!(run(&first), "web | 3000\n");
    let look = format!("{deep}; stat -c '%g %a' $d/file $d /v; stat -c %g /etc/passwd; chmod 600 $d/file");
    let second = run(&pod("second", 4000, "Always", &look));
    assert_eq!(second, "web | 4000 660\nweb | 4000 2770\nweb | 4000 2777\nweb | 0\n");
    let look = format!("{deep}; stat -c '%g %a' $d/file");
    assert_eq!(run(&pod("third", 4000, "OnRootMismatch", &look)), "web | 4000 600\n");
}

fn claim(name: &str, mode: &str, storage: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": { "name": name },
        "spec": { "accessModes": [mode], "resources": { "requests": { "storage": storage } } } })
}

fn used(name: &str) -> Value {
    json!({ "persistentVolumeClaim": { "claimName": name } })
}

/// Variables that tell resources.
fn variables() -> Vec<Value> {
    let of = |name: &str, resource: &str, divisor: &str| json!({ "name": name, "valueFrom": { "resourceFieldRef": { "resource": resource, "divisor": divisor } } });
    vec![
        of("CPU", "limits.cpu", "1"),
        of("MEMORY", "limits.memory", "1Mi"),
        of("DISK", "limits.ephemeral-storage", "1Gi"),
        of("REQUEST", "requests.cpu", "1m"),
    ]
}

fn start(subject: &Subject) {
    subject.import(
        TOOLS,
        busybox().dir("share/", 0o755).file("share/hello", 0o644, b"hello from the image\n"),
        &json!({ "Env": ["PATH=/bin"] }),
    );
    let source = subject.file("artifact");
    // A file in a directory, a compressed archive that stays one, and an archive that is unpacked.
    let archive = Tar::default().file("unpacked", 0o640, b"from an archive\n").finish();
    let layers: [(&str, Option<&str>, &[u8]); 3] = [
        ("text/plain", Some("model/weights.txt"), b"weights\n"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", Some("packed.tar.gz"), b"\x1f\x8bnot unpacked"),
        ("application/vnd.oci.image.layer.v1.tar", None, &archive),
    ];
    write_artifact(&source, &layers);
    subject.cmd(["image", "import", &format!("oci:{}:1", source.display()), "--name", ARTIFACT]).ok();
    let below = subject.file("host/below");
    fs::create_dir_all(&below).unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("below"), &below, Some("tmpfs"), flags, None::<&str>).unwrap();
    fs::write(below.join("kept"), "kept\n").unwrap();
    let field = |path: &str, field: &str| json!({ "path": path, "fieldRef": { "fieldPath": field } });
    let resource = |path: &str, resource: &str, divisor: &str| json!({ "path": path, "resourceFieldRef": { "containerName": "two", "resource": resource, "divisor": divisor } });
    let all = json!({ "defaultMode": 0o640, "sources": [
        { "configMap": { "name": "settings" } },
        { "configMap": { "name": "more" } },
        { "configMap": { "name": "nowhere", "optional": true } },
        { "secret": { "name": "keys", "items": [{ "key": "password", "path": "deep/key", "mode": 0o400 }] } },
        { "downwardAPI": { "items": [field("labels", "metadata.labels")] } },
    ] });
    let about = json!({ "defaultMode": 0o640, "items": [
        field("labels", "metadata.labels"),
        field("notes", "metadata.annotations"),
        field("deep/name", "metadata.name"),
        field("label", "metadata.labels['app']"),
        { "path": "uid", "mode": 0o444, "fieldRef": { "fieldPath": "metadata.uid" } },
        resource("cpu", "requests.cpu", "1m"),
        json!({ "path": "memory", "resourceFieldRef": { "containerName": "one", "resource": "limits.memory", "divisor": "1Mi" } }),
    ] });
    let mut one = variables();
    one.push(json!({ "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }));
    one.push(json!({ "name": "POD_UID", "valueFrom": { "fieldRef": { "fieldPath": "metadata.uid" } } }));
    one.push(json!({ "name": "OTHER", "valueFrom": { "resourceFieldRef": {
        "containerName": "two", "resource": "limits.cpu", "divisor": "1m" } } }));
    let template = json!({ "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "8Mi" } } } });
    let config = |name: &str, data: Value| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": data });
    let mount = |name: &str| json!({ "name": name, "mountPath": format!("/{name}") });
    let mounts = ["all", "tools", "data", "room"].map(mount);
    let first = json!({
        "name": "first",
        "image": magikvm_tests::host::IMAGE,
        "command": ["sh", "-c", "cat /all/deep/key > /room/key; cat /tools/share/hello > /room/hello; echo $CPU > /room/cpu; \
            echo written > /data/init; cat /data/init > /room/claim; rm /data/init"],
        "env": [{ "name": "CPU", "valueFrom": { "resourceFieldRef": { "resource": "limits.cpu", "divisor": "1m" } } }],
        "resources": { "limits": { "cpu": "250m" } },
        "volumeMounts": mounts,
    });
    let pod = Pod::new(POD)
        .set("spec/initContainers", json!([first]))
        .set("metadata/labels", json!({ "tier": "back", "app": "shop" }))
        .set("metadata/annotations", json!({ "example.com/note": "one\n\"two\"" }))
        .set("spec/securityContext", json!({ "fsGroup": 4000 }))
        .volume("all", json!({ "projected": all }))
        .volume("empty", json!({ "projected": { "sources": [] } }))
        .volume("about", json!({ "downwardAPI": about }))
        .volume("tools", json!({ "image": { "reference": TOOLS } }))
        .volume(
            "map",
            json!({ "configMap": { "name": "settings", "optional": true, "defaultMode": 0o440,
            "items": [{ "key": "text", "path": "a" }, { "key": "none", "path": "b" }] } }),
        )
        .volume(
            "key",
            json!({ "secret": { "secretName": "keys", "optional": true, "defaultMode": 0o404,
            "items": [{ "key": "password", "path": "p" }, { "key": "none", "path": "q" }] } }),
        )
        .volume(
            "fields",
            json!({ "downwardAPI": { "defaultMode": 0o400, "items": [field("name", "metadata.name")] } }),
        )
        .volume("missing", json!({ "configMap": { "name": "nowhere", "optional": true } }))
        .volume(
            "gone",
            json!({ "projected": { "sources": [{ "secret": { "name": "nowhere", "optional": true } }] } }),
        )
        .volume("artifact", json!({ "image": { "reference": ARTIFACT, "pullPolicy": "Never" } }))
        .volume("host", json!({ "hostPath": { "path": subject.file("host") } }))
        .volume("data", used("data"))
        .volume("shared", used("shared"))
        .volume("locked", json!({ "persistentVolumeClaim": { "claimName": "data", "readOnly": true } }))
        .volume("many", used("many"))
        .volume("mine", json!({ "ephemeral": { "volumeClaimTemplate": template } }))
        .volume("room", json!({ "emptyDir": {} }))
        .container("one", &["sleep", "1000"])
        .with("env", Value::from(one))
        .mount("room", "/room", json!({}))
        .mount("all", "/all", json!({}))
        .mount("about", "/about", json!({}))
        .mount("tools", "/tools", json!({}))
        .mount("artifact", "/artifact", json!({}))
        .mount("map", "/optional/map", json!({}))
        .mount("key", "/optional/secret", json!({}))
        .mount("fields", "/optional/fields", json!({}))
        .mount("missing", "/optional/missing", json!({}))
        .mount("gone", "/optional/gone", json!({}))
        .mount("room", "/log", json!({ "subPathExpr": "logs/$(POD_NAME)" }))
        .mount(
            "host",
            "/rro",
            json!({ "readOnly": true, "recursiveReadOnly": "Enabled", "mountPropagation": "None" }),
        )
        .mount("shared", "/shared", json!({}))
        .mount("data", "/data", json!({}))
        .mount("data", "/look", json!({ "readOnly": true }))
        .mount("data", "/sub", json!({ "subPath": "made/here" }))
        .mount("locked", "/locked", json!({}))
        .mount("many", "/many", json!({}))
        .mount("mine", "/mine", json!({}))
        .container("two", &["sleep", "1000"])
        .with("securityContext", json!({ "runAsUser": 1000 }))
        .with(
            "resources",
            json!({ "limits": { "cpu": "500m", "memory": "64Mi", "ephemeral-storage": "1Gi" } }),
        )
        .with("env", Value::from(variables()))
        .mount("all", "/all", json!({}))
        .mount("empty", "/empty", json!({}))
        .mount("tools", "/part", json!({ "subPath": "share" }))
        .mount("artifact", "/weights", json!({ "subPath": "model/weights.txt" }))
        .mount("shared", "/shared", json!({}))
        .mount("data", "/data", json!({}))
        .annotated("magikvm.dev/memory-mib", "256")
        .annotated("magikvm.dev/vcpus", "1")
        .beside(claim("data", "ReadWriteOnce", "16Mi"))
        .beside(claim("shared", "ReadWriteMany", "1Gi"))
        .beside(claim("many", "ReadOnlyMany", "1Gi"))
        .beside(config("settings", json!({ "text": "hello\n", "same": "first\n" })))
        .beside(config("more", json!({ "same": "second\n" })))
        .beside(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "keys" },
            "stringData": { "password": "top secret" } }));
    subject.start_with_disks(pod);
    // The pod has its own mounts of what was there when it started.
    nix::mount::umount2(&below, nix::mount::MntFlags::MNT_DETACH).unwrap();
}

fn claim_on_the_host(subject: &Subject) {
    let data = subject.root().join("data/volumes/default_shared");
    subject.sh(POD, "one", "umask 027; echo text > /shared/new; chown 7:8 /shared/new");
    let new = fs::metadata(data.join("data/new")).unwrap();
    assert_eq!((new.uid(), new.gid(), new.mode() & 0o7777), (7, 8, 0o640));
    for private in [data.clone(), subject.root().join("data/volumes")] {
        assert_eq!(fs::metadata(private).unwrap().mode() & 0o777, 0o700);
    }
    assert_eq!(fs::metadata(data.join("volume.json")).unwrap().mode() & 0o777, 0o600);
    let shown: Value =
        serde_json::from_str(&subject.cmd(["volume", "inspect", "shared"]).ok().stdout).unwrap();
    assert_eq!(shown[0]["status"]["usedBy"], json!(["default/volumes-more"]));
    assert_eq!(shown[0]["spec"]["resources"]["requests"]["storage"], "1073741824");
    subject.sh(POD, "one", "rm /shared/new");
    let disk = subject.root().join("data/volumes/default_data/disk/image");
    assert_eq!(fs::metadata(disk).unwrap().mode() & 0o777, 0o600);
}

fn after_the_pod(subject: &Subject) {
    let pod = |name: &str, script: &str| {
        Pod::new(name).volume("v", used("kept")).script("web", script).mount("v", "/v", json!({}))
    };
    let first = pod(
        "first",
        "umask 022; mkdir /v/dir; echo kept > /v/dir/file; ln /v/dir/file /v/hard; ln -s dir /v/soft; sync",
    );
    let mut kept = claim("kept", "ReadWriteOncePod", "1Gi");
    kept["spec"]["storageClassName"] = json!("directory");
    subject.run(&first.beside(kept)).arg("--rm").ok();
    assert!(subject.cmd(["volume", "ls"]).ok().stdout.contains("ReadWriteOncePod"));
    let archive = subject.cmd(["volume", "export", "kept", "-o", subject.file("kept.tar").to_str().unwrap()]);
    archive.ok();
    let file = subject.file("kept.tar");
    subject.cmd(["volume", "import", "copy", file.to_str().unwrap()]).ok();
    // The claim is in the store, so the file need not have it.
    let second =
        pod("second", "cat /v/hard /v/soft/file; stat -c %h /v/hard; cat /copy/dir/file; exec sleep 1000")
            .volume("copy", used("copy"))
            .mount("copy", "/copy", json!({}));
    subject.start(&second);
    magikvm_tests::wait::until("the files are read", || {
        subject.logs("second", "web") == "kept\nkept\n2\nkept\n"
    });
    let third = subject.run(&pod("third", "true")).fails(125);
    third
        .complains(
            "volume default/kept is for one pod at a time (ReadWriteOncePod), and pod default/second uses it",
        )
        .complains("Hint: Stop the pod first with `magikvm stop default/second`");
    subject
        .cmd(["volume", "rm", "kept"])
        .fails(1)
        .complains("volume default/kept is used by pod default/second");
    subject.cmd(["rm", "-f", "second"]).ok();
    subject.cmd(["volume", "rm", "kept", "copy"]).ok();
    assert_eq!(subject.cmd(["volume", "ls", "-q"]).ok().stdout, "");
    let none = subject.run(&pod("fourth", "true")).fails(125);
    none.complains("there is no volume default/kept");
    assert_eq!(subject.cmd(["volume", "ls", "-q"]).ok().stdout, "");
}
