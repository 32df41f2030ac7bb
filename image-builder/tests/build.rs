//! `magikvm-image build --kernel` and `inspect`, with the real program and crafted files.

mod common;

use common::{
    FRAGMENT, FRAGMENT_AARCH64, World, arm64_kernel, elf, fail, init, kernel, read, stdout, succeed,
};
use magikvm_proto::GENERATION;
use magikvm_proto::guest_image::Arch;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

const PARTS: [&str; 3] = ["initramfs", "manifest.json", "vmlinux"];

#[test]
fn an_image_is_made_and_inspected() {
    let world = World::new();
    let output = world.build_ready(&["--out", "guest"]);
    succeed(&output);
    assert_eq!(stdout(&output).trim_end(), world.path("guest").canonicalize().unwrap().to_str().unwrap());
    assert_eq!(world.names("guest"), PARTS);
    assert_eq!(read(&world.path("guest/vmlinux")), read(&world.path("vmlinux")));
    let inspected = world.program().args(["inspect", "guest"]).output().unwrap();
    succeed(&inspected);
    let generation = format!("generation {GENERATION}");
    for word in ["Linux 6.12.999", "1.2.3 (sha256 ", &generation, "vsock", "virtio-fs", "x86_64"] {
        assert!(stdout(&inspected).contains(word), "{}", stdout(&inspected));
    }
    let json = world.program().args(["inspect", "guest", "-o", "json"]).output().unwrap();
    succeed(&json);
    assert_eq!(json.stdout, read(&world.path("guest/manifest.json")));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["kernel_version"], "6.12.999");
    assert_eq!(json["init"]["version"], "1.2.3");
}

#[test]
fn the_initramfs_holds_the_init_and_a_console_and_nothing_else() {
    let world = World::new();
    succeed(&world.build_ready(&["--out", "guest"]));
    let listed = Command::new("cpio")
        .args(["-i", "-t", "-v", "-n", "--quiet"])
        .stdin(fs::File::open(world.path("guest/initramfs")).unwrap())
        .env("LC_ALL", "C")
        .output()
        .expect("these tests need the program cpio (Debian package cpio)");
    succeed(&listed);
    let text = stdout(&listed);
    let modes_and_names: Vec<(&str, &str)> =
        text.lines().map(|line| (&line[..10], line.rsplit(' ').next().unwrap())).collect();
    assert_eq!(
        modes_and_names,
        [("drwxr-xr-x", "dev"), ("crw-------", "dev/console"), ("-rwxr-xr-x", "init")]
    );
}

#[test]
fn the_same_inputs_give_the_same_bytes_wherever_and_whenever_they_are_used() {
    let (one, other) = (World::new(), World::new());
    succeed(&one.build_ready(&["--out", "guest"]));
    // Another place, another umask, other times, another mode of the init.
    fs::set_permissions(other.path("vminit"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::File::options()
        .append(true)
        .open(other.path("vminit"))
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    let script = "umask 077; exec \"$0\" build --kernel vmlinux --init vminit --out deep/er/guest";
    let mut shell = Command::new("sh");
    shell.args(["-c", script, env!("CARGO_BIN_EXE_magikvm-image")]).current_dir(other.dir.path());
    succeed(&shell.env("TZ", "Asia/Tokyo").output().unwrap());
    for part in PARTS {
        assert_eq!(
            read(&one.path("guest").join(part)),
            read(&other.path("deep/er/guest").join(part)),
            "{part}"
        );
        let mode = fs::metadata(other.path("deep/er/guest").join(part)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644, "{part}");
    }
}

#[test]
fn inspect_finds_every_way_a_part_can_be_wrong() {
    let world = World::new();
    let inspect = |words: &[&str]| {
        fail(&world.program().args(["inspect", "guest"]).output().unwrap(), 1, words);
        succeed(&world.build_ready(&["--out", "guest"]));
    };
    succeed(&world.build_ready(&["--out", "guest"]));
    let mut bytes = read(&world.path("guest/vmlinux"));
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(world.path("guest/vmlinux"), &bytes).unwrap();
    inspect(&["vmlinux does not match the manifest", "Hint: Build a new one with `magikvm-image build`"]);
    fs::write(world.path("guest/initramfs"), b"").unwrap();
    fs::remove_file(world.path("guest/vmlinux")).unwrap();
    inspect(&["initramfs has 0 bytes", "cannot read vmlinux"]);
    let manifest = world.text("guest/manifest.json");
    let stated = format!("\"generation\": {GENERATION}");
    assert!(manifest.contains(&stated), "{manifest}");
    fs::write(world.path("guest/manifest.json"), manifest.replace(&stated, "\"generation\": 77")).unwrap();
    inspect(&["wire generation 77"]);
    fs::write(world.path("guest/manifest.json"), "{").unwrap();
    inspect(&["is not a guest image manifest", "Caused by"]);
    fs::remove_file(world.path("guest/manifest.json")).unwrap();
    fail(&world.program().args(["inspect", "guest"]).output().unwrap(), 1, &["has no manifest.json"]);
    fail(&world.program().args(["inspect", "nothing"]).output().unwrap(), 1, &["is not a guest image"]);
}

#[test]
fn a_manifest_that_lists_a_wrong_kernel_does_not_pass_even_with_the_right_digest() {
    let world = World::new();
    succeed(&world.build_ready(&["--out", "guest"]));
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&read(&world.path("guest/manifest.json"))).unwrap();
    fs::write(world.path("guest/vmlinux"), b"abc").unwrap();
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    manifest["parts"]["vmlinux"] = serde_json::json!({ "size": 3, "sha256": abc });
    fs::write(world.path("guest/manifest.json"), manifest.to_string()).unwrap();
    fail(&world.program().args(["inspect", "guest"]).output().unwrap(), 1, &["vmlinux is not an ELF file"]);
}

#[test]
fn a_kernel_that_the_guest_can_not_use_is_refused_with_the_reason() {
    let world = World::new();
    let try_with = |kernel: &[u8], words: &[&str]| {
        fs::write(world.path("vmlinux"), kernel).unwrap();
        fail(&world.build_ready(&["--out", "guest"]), 1, words);
        assert!(!world.path("guest").exists());
        assert!(world.names(".").iter().all(|name| !name.contains("staging")), "{:?}", world.names("."));
    };
    try_with(b"#!/bin/sh", &["vmlinux is not an ELF file", "Hint:"]);
    try_with(
        &elf(&[1]),
        &["cannot check the options", "does not contain its configuration", "CONFIG_IKCONFIG=y"],
    );
    let poor = FRAGMENT
        .replace("CONFIG_EROFS_FS=y\n", "CONFIG_EROFS_FS=m\n")
        .replace("CONFIG_SECCOMP_FILTER=y\n", "");
    try_with(
        &kernel(&poor),
        &["lacks options", "CONFIG_EROFS_FS=y: ", "module", "CONFIG_SECCOMP_FILTER=y: "],
    );
    fs::remove_file(world.path("vmlinux")).unwrap();
    fail(&world.build_ready(&["--out", "guest"]), 1, &["cannot open vmlinux", "No such file"]);
}

#[test]
fn an_init_that_the_guest_can_not_run_is_refused() {
    let world = World::new();
    let try_with = |init: &[u8], words: &[&str]| {
        fs::write(world.path("vminit"), init).unwrap();
        fail(&world.build_ready(&["--out", "guest"]), 1, words);
    };
    try_with(&elf(&[1, 3]), &["vminit is dynamically linked", "crt-static"]);
    try_with(b"text", &["vminit is not an ELF file"]);
    let mut old = magikvm_proto::guest_image::init_stamp("0.0.1");
    old[24..28].copy_from_slice(&99_u32.to_le_bytes());
    try_with(&[elf(&[1]), old.to_vec()].concat(), &["has wire generation 99"]);
    fs::remove_file(world.path("vminit")).unwrap();
    fail(
        &world.build_ready(&["--out", "guest"]),
        1,
        &["the init program vminit does not exist", "Hint: Build it with"],
    );
}

#[test]
fn an_init_without_a_stamp_is_taken_and_has_no_version() {
    let world = World::new();
    fs::write(world.path("vminit"), elf(&[1])).unwrap();
    succeed(&world.build_ready(&["--out", "guest"]));
    assert!(!world.text("guest/manifest.json").contains("version\": \"1.2.3"));
}

#[test]
fn an_old_image_is_replaced_only_by_a_complete_new_one_and_nothing_else_ever() {
    let world = World::new();
    succeed(&world.build_ready(&["--out", "guest"]));
    let old = read(&world.path("guest/manifest.json"));
    fs::write(world.path("vmlinux"), b"broken").unwrap();
    fail(&world.build_ready(&["--out", "guest"]), 1, &["is not an ELF file"]);
    assert_eq!(read(&world.path("guest/manifest.json")), old);
    fs::write(world.path("vmlinux"), kernel(&FRAGMENT.replace("CONFIG_EXT4_FS=y\n", ""))).unwrap();
    succeed(&world.build_ready(&["--out", "guest"]));
    assert_ne!(read(&world.path("guest/manifest.json")), old);
    fs::create_dir(world.path("letters")).unwrap();
    fs::write(world.path("letters/dear"), b"you").unwrap();
    fail(&world.build_ready(&["--out", "letters"]), 1, &["is not a guest image", "--out"]);
    assert_eq!(world.names("letters"), ["dear"]);
}

#[test]
fn without_out_the_image_goes_to_the_data_directory_of_a_user() {
    let world = World::new();
    // As root, the test runs as another user, who must have access to the program and the test's files.
    let program = world.path("magikvm-image");
    // Copied by another process, for the reason given at `World::tool`.
    assert!(
        Command::new("cp").arg(env!("CARGO_BIN_EXE_magikvm-image")).arg(&program).status().unwrap().success()
    );
    fs::set_permissions(world.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut build = Command::new(program);
    build.args(["build", "--kernel", "vmlinux", "--init", "vminit"]).current_dir(world.dir.path());
    build.env_clear().env("HOME", world.path("home"));
    if nix::unistd::geteuid().is_root() {
        build.uid(65534).gid(65534);
    }
    succeed(&build.output().unwrap());
    assert!(world.path("home/.local/share/magikvm/guest/manifest.json").is_file());
}

#[test]
fn an_image_for_aarch64_is_made_when_the_init_is_for_it_and_holds_a_raw_kernel() {
    let world = World::new();
    fs::write(world.path("vminit"), init(Arch::Aarch64)).unwrap();
    fail(&world.build_ready(&["--out", "guest"]), 1, &["vmlinux is an ELF file", "arch/arm64/boot/Image"]);
    let kernel = arm64_kernel(FRAGMENT_AARCH64);
    fs::write(world.path("vmlinux"), &kernel).unwrap();
    succeed(&world.build_ready(&["--out", "guest"]));
    assert_eq!(world.names("guest"), PARTS);
    assert_eq!(read(&world.path("guest/vmlinux")), kernel);
    let inspected = world.program().args(["inspect", "guest"]).output().unwrap();
    succeed(&inspected);
    for word in ["Linux 6.12.999", "aarch64", "1.2.3 (sha256 ", "psci", "vsock"] {
        assert!(stdout(&inspected).contains(word), "{}", stdout(&inspected));
    }
    let poor = FRAGMENT_AARCH64.replace("CONFIG_ARM_PSCI_FW=y\n", "");
    fs::write(world.path("vmlinux"), arm64_kernel(&poor)).unwrap();
    fail(&world.build_ready(&["--out", "guest"]), 1, &["lacks options", "CONFIG_ARM_PSCI_FW=y: "]);
    fs::write(world.path("vmlinux"), &kernel[..100]).unwrap();
    fail(&world.build_ready(&["--out", "guest"]), 1, &["truncated", "Hint:"]);
}

#[test]
fn an_architecture_that_is_named_must_be_that_of_init_and_kernel() {
    let world = World::new();
    fail(
        &world.build_ready(&["--arch", "aarch64", "--out", "guest"]),
        1,
        &["the init program vminit is for another processor", "not for aarch64"],
    );
    fs::write(world.path("vmlinux"), arm64_kernel(FRAGMENT_AARCH64)).unwrap();
    fail(
        &world.build_ready(&["--out", "guest"]),
        1,
        &["vmlinux is for another processor (ELF machine 183), not for x86_64"],
    );
    assert!(!world.path("guest").exists());
}

#[test]
fn wrong_usage_is_told_apart_from_other_errors() {
    let world = World::new();
    fail(&world.build_ready(&["--arch", "m68k"]), 2, &["m68k"]);
    fail(&world.build_ready(&["--kernel-source", "x"]), 2, &["cannot be used with"]);
    fail(&world.program().output().unwrap(), 2, &["Usage"]);
}
