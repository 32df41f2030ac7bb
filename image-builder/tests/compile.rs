//! `magikvm-image build` that compiles, with the real program and a toolchain of shell scripts.

#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

mod common;

use common::{FRAGMENT_AARCH64, Fifo, World, arm64_kernel, fail, init, kernel, read, stderr, succeed};
use magikvm_proto::guest_image::Arch;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::process::{Command, Stdio};

#[test]
fn a_kernel_is_compiled_once_and_then_comes_from_the_cache() {
    let world = World::new();
    let first = world.compile("guest").args(["--jobs", "7"]).output().unwrap();
    succeed(&first);
    assert!(stderr(&first).contains("[7/10] Compiling the kernel …"), "{}", stderr(&first));
    assert_eq!(
        world.text("calls"),
        "-j7 ARCH=x86_64 tinyconfig\n-j7 ARCH=x86_64 olddefconfig\n-j7 ARCH=x86_64 vmlinux\n"
    );
    let second = world.compile("other").output().unwrap();
    succeed(&second);
    assert!(stderr(&second).contains("in the cache"), "{}", stderr(&second));
    assert_eq!(world.compilations(), 1);
    for part in ["initramfs", "manifest.json", "vmlinux"] {
        assert_eq!(read(&world.path("guest").join(part)), read(&world.path("other").join(part)), "{part}");
    }
    // The tree is removed; the log and the configuration are kept.
    let key = world.names("cache/kernel").into_iter().find(|name| !name.ends_with(".lock")).unwrap();
    let entry = format!("cache/kernel/{key}");
    assert_eq!(world.names(&entry), ["build.log", "config", "vmlinux", "vmlinux.sha256"]);
    assert!(world.text(&format!("{entry}/build.log")).contains("making vmlinux"));
    assert!(world.text(&format!("{entry}/config")).starts_with("CONFIG_TINY=y\n"));
}

#[test]
fn a_kernel_for_another_architecture_is_compiled_with_its_cross_compiler_and_has_a_key_of_its_own() {
    let world = World::new();
    succeed(&world.compile("guest").output().unwrap());
    fs::remove_file(world.path("calls")).unwrap();
    fs::write(world.path("vminit"), init(Arch::Aarch64)).unwrap();
    fs::write(world.path("vmlinux"), arm64_kernel(FRAGMENT_AARCH64)).unwrap();
    succeed(&world.compile("other").args(["--jobs", "7"]).output().unwrap());
    let cross = if cfg!(target_arch = "aarch64") { "" } else { " CROSS_COMPILE=aarch64-linux-gnu-" };
    let call = |goal: &str| format!("-j7 ARCH=arm64{cross} {goal}\n");
    assert_eq!(world.text("calls"), ["tinyconfig", "olddefconfig", "Image"].map(call).concat());
    let kernels = world.names("cache/kernel").into_iter().filter(|name| !name.ends_with(".lock")).count();
    assert_eq!(kernels, 2);
    succeed(&world.compile("third").output().unwrap());
    assert_eq!(world.compilations(), 1, "the second one is from the cache");
    // The compiler is part of the key.
    world.tool("aarch64-linux-gnu-gcc", "echo gcc of the test 2.0");
    world.tool("gcc", "echo gcc of the test 2.0");
    succeed(&world.compile("fourth").output().unwrap());
    assert_eq!(world.compilations(), 2);
}

#[test]
fn a_missing_cross_compiler_is_named_with_its_package() {
    let world = World::new();
    let (arch, prefix, package) = if cfg!(target_arch = "aarch64") {
        (Arch::X86_64, "x86_64-linux-gnu-", "x86-64-linux-gnu")
    } else {
        (Arch::Aarch64, "aarch64-linux-gnu-", "aarch64-linux-gnu")
    };
    fs::write(world.path("vminit"), init(arch)).unwrap();
    for tool in ["gcc", "ld"] {
        fs::remove_file(world.path(&format!("tools/{prefix}{tool}"))).unwrap();
    }
    // Without the system's directories, which may contain a compiler.
    let shell =
        "for tool in cat make tar; do [ -e tools/$tool ] || ln -s \"$(command -v $tool)\" tools/$tool; done";
    assert!(Command::new("sh").args(["-c", shell]).current_dir(world.dir.path()).status().unwrap().success());
    let output = world.compile("guest").env("PATH", world.path("tools")).output().unwrap();
    let compiler = format!("the program {prefix}gcc (Debian package gcc-{package})");
    let hint = format!("Hint: Install them with `sudo apt-get install gcc-{package} binutils-{package}`.\n");
    fail(&output, 3, &[&compiler, &hint]);
}

#[test]
fn whatever_a_kernel_is_made_from_is_in_its_key_and_a_damaged_one_is_made_again() {
    let world = World::new();
    succeed(&world.compile("guest").output().unwrap());
    succeed(&world.compile("guest").arg("--rebuild-kernel").output().unwrap());
    assert_eq!(world.compilations(), 2);
    world.tool("gcc", "echo gcc of the test 2.0");
    succeed(&world.compile("guest").output().unwrap());
    assert_eq!(world.compilations(), 3);
    fs::write(world.path("linux/Makefile"), "# patched").unwrap();
    let tar = Command::new("tar")
        .args(["-cf", "linux.tar", "linux"])
        .current_dir(world.dir.path())
        .status()
        .unwrap();
    assert!(tar.success());
    succeed(&world.compile("guest").output().unwrap());
    assert_eq!(world.compilations(), 4);
    for name in world.names("cache/kernel").iter().filter(|name| !name.ends_with(".lock")) {
        fs::write(world.path(&format!("cache/kernel/{name}/vmlinux")), b"rot").unwrap();
    }
    succeed(&world.compile("guest").output().unwrap());
    assert_eq!(world.compilations(), 5);
}

#[test]
fn nothing_of_the_users_environment_gets_into_the_kernel_and_time_and_names_are_fixed() {
    let world = World::new();
    let mut command = world.compile("guest");
    command
        .env("KCFLAGS", "-g")
        .env("MAKEFLAGS", "-k")
        .env("LOCALVERSION", "-mine")
        .env("ARCH", "arm")
        .env("LC_ALL", "tr_TR");
    succeed(&command.output().unwrap());
    let environment = world.text("env");
    let mut names: Vec<&str> = environment.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    names.sort();
    // The shell itself sets PWD and a few others.
    names.retain(|name| !["PWD", "OLDPWD", "SHLVL", "_"].contains(name));
    let expected = "KBUILD_BUILD_HOST KBUILD_BUILD_TIMESTAMP KBUILD_BUILD_USER KBUILD_BUILD_VERSION LC_ALL LOCALVERSION PATH SOURCE_DATE_EPOCH TZ";
    assert_eq!(names.join(" "), expected);
    assert!(
        environment.contains("\nLOCALVERSION=\n") || environment.starts_with("LOCALVERSION=\n"),
        "{environment}"
    );
}

#[test]
fn every_missing_tool_is_named_with_its_package_at_once() {
    let world = World::new();
    let path = world.path("bin");
    fs::create_dir(&path).unwrap();
    for tool in ["make", "gcc"] {
        fs::rename(world.path("tools").join(tool), path.join(tool)).unwrap();
    }
    let output = world.compile("guest").env("PATH", &path).output().unwrap();
    fail(
        &output,
        3,
        &[
            "the program flex (Debian package flex)",
            "the program bc (Debian package bc)",
            "the program xz (Debian package xz-utils)",
            "the program ld (Debian package binutils)",
            "Hint: Install them with `sudo apt-get install binutils flex bison bc tar xz-utils`.\n",
        ],
    );
    assert!(!stderr(&output).contains("program gcc"), "{}", stderr(&output));
    assert!(!world.path("guest").exists() && !world.path("cache").exists());
}

#[test]
fn a_missing_source_is_named_with_its_package() {
    let world = World::new();
    fs::remove_file(world.path("linux.tar")).unwrap();
    let output = world.compile("guest").output().unwrap();
    fail(&output, 3, &["linux.tar (Debian package linux-source-6.12)", "apt-get install linux-source-6.12"]);
}

#[test]
fn an_archive_of_something_else_is_told() {
    let world = World::new();
    fs::remove_file(world.path("linux/Kconfig")).unwrap();
    let tar = Command::new("tar")
        .args(["-cf", "linux.tar", "linux"])
        .current_dir(world.dir.path())
        .status()
        .unwrap();
    assert!(tar.success());
    fail(&world.compile("guest").output().unwrap(), 1, &["is not a Linux source archive"]);
    fs::write(world.path("linux.tar"), "no archive at all").unwrap();
    fail(&world.compile("guest").output().unwrap(), 3, &["tar -xf", "failed"]);
}

#[test]
fn an_option_that_the_kernel_does_not_take_is_an_error_that_names_it() {
    let world = World::new();
    fs::write(world.path("poor"), "").unwrap();
    let output = world.compile("guest").output().unwrap();
    fail(&output, 1, &["CONFIG_VSOCKETS=y (it is not set)"]);
    assert!(!stderr(&output).contains("CONFIG_INET"), "{}", stderr(&output));
    assert_eq!(world.compilations(), 0);
}

#[test]
fn a_compilation_that_fails_shows_the_end_of_its_log_and_keeps_it_and_the_old_image() {
    let world = World::new();
    succeed(&world.build_ready(&["--out", "guest"]));
    let old = read(&world.path("guest/manifest.json"));
    fs::write(world.path("broken"), "").unwrap();
    let output = world.compile("guest").output().unwrap();
    fail(&output, 3, &["make", "vmlinux` failed", "error: no forks today", "build.log"]);
    assert_eq!(read(&world.path("guest/manifest.json")), old);
    let key = world.names("cache/kernel").into_iter().find(|name| !name.ends_with(".lock")).unwrap();
    assert_eq!(world.names(&format!("cache/kernel/{key}")), ["build.log"], "the tree is gone");
    fs::remove_file(world.path("broken")).unwrap();
    succeed(&world.compile("guest").output().unwrap());
}

#[test]
fn a_kernel_that_comes_out_wrong_is_not_put_into_an_image() {
    let world = World::new();
    fs::write(world.path("vmlinux"), kernel("CONFIG_TINY=y\n")).unwrap();
    fail(&world.compile("guest").output().unwrap(), 1, &["lacks options"]);
    assert!(!world.path("guest").exists());
}

#[test]
fn an_interrupted_build_ends_its_compiler_and_leaves_nothing_half_done() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let world = World::new();
        fs::write(world.path("slow"), "").unwrap();
        let (started, _go) = (Fifo::new(&world, "started"), Fifo::new(&world, "go"));
        let builder = world.compile("guest").stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        started.wait();
        kill(Pid::from_raw(i32::try_from(builder.id()).unwrap()), signal).unwrap();
        let output = builder.wait_with_output().unwrap();
        fail(&output, 130, &["Error: interrupted"]);
        let pid = world.text("pid");
        assert!(!is_running(pid.trim()), "make (process {pid}) is still there");
        assert!(!world.path("guest").exists());
        assert!(world.names(".").iter().all(|name| !name.contains("staging")), "{:?}", world.names("."));
        let key = world.names("cache/kernel").into_iter().find(|name| !name.ends_with(".lock")).unwrap();
        assert_eq!(world.names(&format!("cache/kernel/{key}")), ["build.log"]);
    }
}

/// A zombie that is not reaped yet does not run.
fn is_running(pid: &str) -> bool {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => !stat.rsplit(')').next().unwrap_or_default().trim_start().starts_with('Z'),
        Err(_) => false,
    }
}

#[test]
fn what_a_killed_builder_left_is_cleared_by_the_next_one() {
    let world = World::new();
    fs::write(world.path("slow"), "").unwrap();
    let (started, go) = (Fifo::new(&world, "started"), Fifo::new(&world, "go"));
    let mut builder = world.compile("guest").stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    started.wait();
    builder.kill().unwrap();
    builder.wait().unwrap();
    assert!(world.names(".").iter().any(|name| name.contains("staging")));
    fs::remove_file(world.path("slow")).unwrap();
    let next = world.compile("guest").stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // The compiler of the killed builder continues until it notices, and the next builder waits for it.
    go.tell();
    succeed(&next.wait_with_output().unwrap());
    assert!(world.names(".").iter().all(|name| !name.contains("staging")), "{:?}", world.names("."));
    let key = world.names("cache/kernel").into_iter().find(|name| !name.ends_with(".lock")).unwrap();
    assert_eq!(
        world.names(&format!("cache/kernel/{key}")),
        ["build.log", "config", "vmlinux", "vmlinux.sha256"]
    );
}

#[test]
fn two_builders_at_once_compile_one_kernel() {
    let world = World::new();
    fs::write(world.path("slow"), "").unwrap();
    let (started, go) = (Fifo::new(&world, "started"), Fifo::new(&world, "go"));
    let spawn = |out: &str| world.compile(out).stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let first = spawn("one");
    started.wait();
    let second = spawn("two");
    go.tell();
    succeed(&first.wait_with_output().unwrap());
    succeed(&second.wait_with_output().unwrap());
    assert_eq!(world.compilations(), 1);
    for part in ["initramfs", "manifest.json", "vmlinux"] {
        assert_eq!(read(&world.path("one").join(part)), read(&world.path("two").join(part)), "{part}");
    }
}
