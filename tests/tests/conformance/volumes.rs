//! Volumes of every kind as containers see them.

use crate::row::{Difference, Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::virtual_machine::Driver;
use serde_json::json;
use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};

const POD: &str = "volumes";
/// Each call that a file server has to make for its guest.
const EVERY_CALL: &str = "set -e; cd /host; mkdir -p d/e; echo one > d/f; ln d/f d/hard; ln -s f d/soft; mkfifo d/pipe; \
    cp -p d/f d/copy; echo two >> d/f; truncate -s 100000 d/f; fallocate -l 4096 d/room; chmod 640 d/f; chown 12:34 d/f; \
    touch -d 2001-02-03 d/f; mv d/copy d/e/moved; mv d/e/moved d/copy; dd if=d/f of=d/g bs=4k conv=fsync 2>/dev/null; \
    stat -c '%s %a %u:%g %h %F' d/f d/soft d/pipe d/e; readlink d/soft; ls d | wc -l; head -c 8 d/hard; find d | sort | sha256sum | head -c 4; echo; \
    df . > /dev/null; sync; tar c d | wc -c | grep -q '[0-9]'; rm -r d; ls -d d 2>/dev/null || echo gone";

pub(crate) static GROUP: Group = Group {
    name: "volumes",
    title: "What containers see of volumes",
    pods: Pods::Shared { name: POD, start },
    rows: &[
        Row::shell(
            "config_map",
            "Each key of a ConfigMap is a read-only file with the requested permissions.",
            &[
                ("one", "cd /config; grep . *; stat -c %a:%u:%g text", "bytes:\u{1}\ntext:hello\n444:0:4000\n"),
                ("one", "cd /config; (echo x > text) 2>/dev/null || echo refused; touch new 2>/dev/null || echo refused", "refused\nrefused\n"),
                ("one", "ls -A /none | wc -l", "0\n"),
            ],
        )
        .of("`volumes[].configMap` (Volumes: configMap)"),
        Row::shell(
            "secret",
            "Exactly the requested keys of a Secret are at their paths; the group of the volumes may read them.",
            &[
                ("one", "cd /secret; find . -type f | sort | xargs stat -c '%n %a'; cat deep/a", "./b 640\n./deep/a 440\ntop secret"),
                ("one", "cat /file; stat -c '%F %a' /file; echo $PASSWORD $BOTH_password", "top secretregular file 640\ntop secret top secret\n"),
                ("one", "dmesg 2>/dev/null | grep -c 'top secret'; true", "0\n"),
            ],
        )
        .of("`volumes[].secret`, `env[].valueFrom`, `envFrom` (Secrets: Using Secrets as files from a Pod)"),
        Row::shell(
            "empty_directories",
            "An emptyDir is a directory that everybody may write to, on disk or in memory, the same for all containers.",
            &[
                ("one", "ls -A /disk /memory | tr '\\n' ' '; stat -c '%a %u:%g' /disk /memory", "/disk: from  /memory: 2777 0:4000\n2777 0:4000\n"),
                ("two", "id -u; umask 022; echo disk > /disk/from/two; echo memory > /memory/two; stat -c '%u:%g' /memory/two", "1000\n1000:4000\n"),
                ("one", "cat /disk/from/two /memory/two; rm /disk/from/two /memory/two; df /memory | grep -c tmpfs; mount | grep ' /disk ' | grep -o ext4", "disk\nmemory\n0\next4\n"),
            ],
        )
        .of("`volumes[].emptyDir`, `fsGroup` (Volumes: emptyDir)")
        .differs(&[Difference {
            drivers: &[Driver::ContainersUser],
            why: "an ordinary user can mount no disk, so that it is a directory of the host's file system",
            says: "disk\nmemory\n0\n",
        }]),
        Row::shell(
            "groups",
            "Containers have the supplemental groups and the group of the volumes, in addition to those of their users.",
            &[("two", "id -G | tr ' ' '\\n' | sort -n | tr '\\n' ' '", "0 3000 4000 ")],
        )
        .of("`fsGroup`, `supplementalGroups` (Configure a Security Context: Set the security context for a Pod)"),
        Row::shell(
            "limits_of_empty_directories",
            "An emptyDir holds exactly as much as its limit allows.",
            &[
                ("one", "dd if=/dev/zero of=/small/x bs=4k 2>&1 | grep -o 'No space.*'; stat -c %s /small/x; rm /small/x", "No space left on device\n1048576\n"),
                ("one", "dd if=/dev/zero of=/limited/x bs=4k count=4096 2>&1 | grep -o 'No space.*'; sync; s=$(stat -c %s /limited/x); \
                 [ $s -ge 8388608 -a $s -le 8519680 ] || echo $s; rm /limited/x; dd if=/dev/zero of=/disk/x bs=1M count=9 2>/dev/null; \
                 stat -c %s /disk/x; rm /disk/x", "No space left on device\n9437184\n"),
            ],
        )
        .of("`volumes[].emptyDir.sizeLimit` (Volumes: emptyDir)")
        .differs(&[Difference {
            drivers: &[Driver::ContainersUser],
            why: "an ordinary user can mount no disk, so that a limit of one on disk is refused, or accepted to be without effect",
            says: "16777216",
        }]),
        Row::code(
            "host_directory",
            "A hostPath shows the host's files with their owners and permissions, and changes reach the host.",
            host_directory,
        )
        .of("`volumes[].hostPath` (Volumes: hostPath)"),
        Row::code(
            "every_call",
            "Links, pipes, permissions, times, renames and syncs work on a hostPath as on any file system.",
            every_call,
        )
        .of("`volumes[].hostPath` (Volumes: hostPath)"),
        Row::code("host_read_only", "A container cannot change a hostPath that is read-only for it, but others can.", host_read_only)
            .of("`volumeMounts[].readOnly` (Volumes: Read-only mounts)"),
        Row::shell(
            "host_files_and_parts",
            "A hostPath may be a file, and a subPath a directory or a file; missing ones are created.",
            &[
                ("one", "cat /single; stat -c %F /single; cat /part; ls -A /made | wc -l; stat -c %F /made", "alone\nregular file\nowned\n0\ndirectory\n"),
                ("one", "echo changed > /single; cat /single; echo alone > /single", "changed\n"),
                ("two", "stat -c '%a %F' /expanded; ls /disk", "2777 directory\nfrom\n"),
            ],
        )
        .of("`volumeMounts[].subPath`, `subPathExpr` (Volumes: Using subPath)"),
        Row::shell(
            "an_ordinary_user",
            "On a hostPath a container's user has the permissions of the host's user with the same id.",
            &[("two", "cd /host; (echo x > owned) 2>/dev/null || echo refused; echo mine > open/mine; stat -c %u:%g open/mine; cat owned; rm open/mine", "refused\n1000:0\nowned\n")],
        )
        .of("`volumes[].hostPath` (Volumes: hostPath)"),
        Row::shell(
            "no_devices",
            "A device file on a volume is not a device, and a link out of a volume leads to the container's own files.",
            &[
                ("one", "mknod /disk/null c 1 3 && (echo x > /disk/null) 2>/dev/null || echo refused; rm -f /disk/null", "refused\n"),
                ("one", "cat /host/passwd | head -1", "root:x:0:0:root:/root:/bin/sh\n"),
            ],
        ),
    ],
};

fn start(subject: &Subject) {
    let host = subject.file("host");
    for dir in ["", "open", "sub"] {
        fs::create_dir(host.join(dir)).unwrap();
    }
    fs::write(host.join("owned"), "owned\n").unwrap();
    chown(host.join("owned"), Some(1001), Some(1002)).unwrap();
    fs::set_permissions(host.join("open"), Permissions::from_mode(0o777)).unwrap();
    symlink("/etc/passwd", host.join("passwd")).unwrap();
    subject.give(&host);
    subject.give(&host.join("sub"));
    let single = subject.file("single");
    let path = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    let secret = json!({ "secretName": "keys", "defaultMode": 0o600, "items": [
        { "key": "password", "path": "deep/a", "mode": 0o400 }, { "key": "password", "path": "b" },
    ] });
    let key =
        json!({ "name": "PASSWORD", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "password" } } });
    let user = json!({ "runAsUser": 1000 });
    let expanded = json!({ "name": "NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } });
    let pod = Pod::new(POD)
        .set("spec/securityContext", json!({ "fsGroup": 4000, "supplementalGroups": [3000] }))
        .volume("config", json!({ "configMap": { "name": "settings", "defaultMode": 0o444 } }))
        .volume("none", json!({ "configMap": { "name": "nowhere", "optional": true } }))
        .volume("secret", json!({ "secret": secret }))
        .volume("disk", json!({ "emptyDir": {} }))
        .volume("limited", json!({ "emptyDir": { "sizeLimit": "8Mi" } }))
        .volume("memory", json!({ "emptyDir": { "medium": "Memory" } }))
        .volume("small", json!({ "emptyDir": { "medium": "Memory", "sizeLimit": "1Mi" } }))
        .volume("host", json!({ "hostPath": { "path": path(&host), "type": "Directory" } }))
        .volume("single", json!({ "hostPath": { "path": path(&single), "type": "FileOrCreate" } }))
        .container("one", &["sleep", "1000"])
        .with("env", json!([key]))
        .with("envFrom", json!([{ "prefix": "BOTH_", "secretRef": { "name": "keys" } }]))
        .mount("config", "/config", json!({}))
        .mount("none", "/none", json!({}))
        .mount("secret", "/secret", json!({}))
        .mount("secret", "/file", json!({ "subPath": "b" }))
        .mount("disk", "/disk", json!({}))
        .mount("limited", "/limited", json!({}))
        .mount("memory", "/memory", json!({}))
        .mount("small", "/small", json!({}))
        .mount("host", "/host", json!({}))
        .mount("host", "/look", json!({ "readOnly": true }))
        .mount("host", "/part", json!({ "subPath": "owned" }))
        .mount("host", "/made", json!({ "subPath": "sub/deep/new" }))
        .mount("single", "/single", json!({}))
        .container("two", &["sleep", "1000"])
        .with("securityContext", user)
        .with("env", json!([expanded]))
        .mount("disk", "/disk", json!({}))
        .mount("disk", "/expanded", json!({ "subPathExpr": "from" }))
        .mount("memory", "/memory", json!({}))
        .mount("host", "/host", json!({}))
        .beside(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "settings" },
            "data": { "text": "hello\n" }, "binaryData": { "bytes": "AQ==" } }))
        .beside(json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "keys" },
            "stringData": { "password": "top secret" } }));
    subject.start_with_disks(pod);
    subject.sh(POD, "one", "echo alone > /single");
}

fn host_directory(subject: &Subject) {
    let host = subject.file("host");
    let seen =
        subject.sh(POD, "one", "stat -c '%u:%g %a' /host/owned; cat /host/owned; stat -c %a /host/open");
    assert_eq!(seen, "1001:1002 644\nowned\n777\n");
    subject.sh(POD, "one", "cd /host/open; umask 027; echo text > new; chown 7:8 new; mkdir dir");
    let new = fs::metadata(host.join("open/new")).unwrap();
    assert_eq!((new.uid(), new.gid(), new.mode() & 0o7777), (7, 8, 0o640));
    assert_eq!(fs::read_to_string(host.join("open/new")).unwrap(), "text\n");
    assert_eq!(fs::metadata(host.join("open/dir")).unwrap().mode() & 0o7777, 0o750);
    fs::write(host.join("open/later"), "later").unwrap();
    assert_eq!(subject.sh(POD, "one", "cat /host/open/later; rm -r /host/open/*"), "later");
    assert_eq!(fs::read_dir(host.join("open")).unwrap().count(), 0);
}

fn every_call(subject: &Subject) {
    let said = subject.sh(POD, "one", EVERY_CALL);
    let expected = "100000 640 12:34 2 regular file\n1 777 0:0 1 symbolic link\n0 644 0:0 1 fifo\n";
    let lines: Vec<&str> = said.lines().collect();
    assert!(said.starts_with(expected), "{said}");
    assert!(
        lines[3].starts_with("4096 ") && lines[3].ends_with(" directory") || lines[3].ends_with("directory"),
        "{said}"
    );
    assert_eq!(lines[4..7], ["f", "8", "one"], "{said}");
    assert!(said.ends_with("gone\n"), "{said}");
}

fn host_read_only(subject: &Subject) {
    let tries = "for c in 'touch /look/x' 'rm /look/owned' 'chmod 777 /look/owned' 'mkdir /look/d' 'ln /look/owned /look/l' \
         'mount -o remount,rw /look'; do $c 2>/dev/null && echo \"$c worked\"; done; echo tried; cat /look/owned";
    assert_eq!(subject.sh(POD, "one", tries), "tried\nowned\n");
    assert_eq!(subject.sh(POD, "one", "echo x > /host/open/x; cat /look/open/x; rm /host/open/x"), "x\n");
}
