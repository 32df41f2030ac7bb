//! The guest's kernel reads a built root file system byte for byte, compressed or not.

use crate::row::{Group, Pods, Row};
use crate::subject::Subject;
use magikvm_tests::Pod;
use magikvm_tests::layout::write_layout;
use magikvm_tests::virtual_machine::busybox;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// Lengths around the sizes of blocks, chunks and inline tails.
const LENGTHS: [usize; 14] =
    [0, 1, 1000, 4000, 4095, 4096, 4097, 8191, 65_535, 65_536, 65_537, 200_000, 1 << 20, (3 << 20) + 17];

pub(crate) static GROUP: Group = Group {
    name: "images",
    title: "Images",
    pods: Pods::Own,
    rows: &[
        Row::code(
            "every_byte_with_and_without_compression",
            "Every byte of an image is read as it was written, whether the image is compressed or not.",
            every_byte_with_and_without_compression,
        )
        .of("`image import --compress`"),
        Row::code(
            "the_device_0_0_is_a_whiteout",
            "A character device 0:0 of an image is a whiteout: it is not there, its name can be used, and its directory can be removed.",
            the_device_0_0_is_a_whiteout,
        )
        .of("`image import`"),
    ],
};

/// Bytes that lz4 makes smaller, bytes that it does not, and both in turns.
fn content(kind: usize, length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32.wrapping_add(u32::try_from(length).unwrap());
    let mut noise = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()[0]
    };
    (0..length)
        .map(|at| match kind {
            0 => b"all work and no play\n"[at % 21],
            1 => noise(),
            _ if at / 30_000 % 2 == 0 => 0,
            _ => noise(),
        })
        .collect()
}

fn the_device_0_0_is_a_whiteout(subject: &Subject) {
    let layer = busybox().dir("d/", 0o755).file("d/kept", 0o644, b"").file("d/over", 0o644, b"");
    let layer = ["d/over", "d/alone"].into_iter().fold(layer, |layer, name| layer.null_device(name));
    let layout = subject.file("whiteout");
    write_layout(&layout, layer, &json!({ "Env": ["PATH=/bin"] }));
    let source = format!("oci:{}:1", layout.display());
    subject.cmd(["image", "import", &source, "--name", "test/whiteout:1"]).ok();
    let script = "ls -A /d; echo new >/d/alone && cat /d/alone; mkdir /d/over; ls -A /d; rm -r /d && ls -d /d 2>&1; true";
    subject.run(&Pod::new("white").container_of("main", "test/whiteout:1", &["sh", "-c", script])).ok();
    let seen = subject.logs("white", "main");
    let lines: Vec<_> = seen.lines().collect();
    assert_eq!(lines[..5], ["kept", "new", "alone", "kept", "over"], "{seen}");
    assert!(lines[5].contains("No such file"), "{seen}");
}

fn every_byte_with_and_without_compression(subject: &Subject) {
    let (mut layer, mut expected) = (busybox().dir("data/", 0o755), Vec::new());
    for kind in 0..3 {
        for length in LENGTHS {
            let (name, bytes) = (format!("data/{kind}-{length}"), content(kind, length));
            let digest: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            layer = layer.file(&name, 0o644, &bytes);
            expected.push(format!("{digest}  /{name}"));
        }
    }
    expected.sort();
    let mut pod = Pod::new("reader");
    for (name, compression) in [("plain", "none"), ("small", "lz4")] {
        let (image, layout) = (format!("test/{name}:1"), subject.file(name));
        // Separate images, because an image is stored in one form only.
        write_layout(&layout, layer.clone(), &json!({ "Env": ["PATH=/bin"], "Labels": { "name": name } }));
        let source = format!("oci:{}:1", layout.display());
        subject.cmd(["image", "import", &source, "--name", &image, "--compress", compression]).ok();
        pod = pod.container_of(name, &image, &["sh", "-c", "sha256sum /data/*"]);
    }
    let size = |image: &str| {
        let text = subject.cmd(["image", "inspect", image]).ok().stdout;
        let value: Value = serde_json::from_str(&text).unwrap();
        (value[0]["rootfs"]["compression"].clone(), value[0]["rootfs"]["sizeBytes"].as_u64().unwrap())
    };
    let (plain, small) = (size("test/plain:1"), size("test/small:1"));
    assert_eq!((plain.0, small.0), (json!("none"), json!("lz4")));
    assert!(small.1 < plain.1 * 3 / 4, "{} of {} bytes", small.1, plain.1);
    subject.run(&pod).ok();
    for container in ["plain", "small"] {
        let mut found: Vec<String> = subject.logs("reader", container).lines().map(str::to_owned).collect();
        found.sort();
        assert_eq!(found, expected, "{container}");
    }
}
