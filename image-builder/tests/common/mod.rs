//! A small environment for the real program: crafted kernels and inits, and a toolchain of shell scripts.
#![allow(dead_code, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, reason = "a test's helpers may panic")]

#[path = "../../src/craft.rs"]
mod craft;

use magikvm_proto::guest_image::Arch;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

pub(crate) const FRAGMENT: &str = include_str!("../../kernel/x86_64.config");
pub(crate) const FRAGMENT_AARCH64: &str = include_str!("../../kernel/aarch64.config");
pub(crate) const RELEASE: &str = "6.12.999";

pub(crate) fn kernel(config: &str) -> Vec<u8> {
    craft::kernel(RELEASE, config)
}

pub(crate) fn arm64_kernel(config: &str) -> Vec<u8> {
    craft::arm64_kernel(RELEASE, config)
}

pub(crate) fn init(arch: Arch) -> Vec<u8> {
    let init = craft::init("1.2.3");
    match arch {
        Arch::X86_64 => init,
        Arch::Aarch64 => craft::for_aarch64(init),
    }
}

pub(crate) fn elf(segments: &[u32]) -> Vec<u8> {
    craft::elf(segments, b"")
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    /// An environment with a good kernel (`vmlinux`), a good init (`vminit`) and scripts for every tool that compiling needs.
    pub(crate) fn new() -> Self {
        let world = Self { dir: tempfile::tempdir().unwrap() };
        fs::write(world.path("vmlinux"), kernel(FRAGMENT)).unwrap();
        fs::write(world.path("vminit"), init(Arch::X86_64)).unwrap();
        world.make_source();
        world.make_tools();
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    pub(crate) fn names(&self, name: &str) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.path(name))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The program, isolated from the test's own environment.
    pub(crate) fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_magikvm-image"));
        command.current_dir(self.dir.path()).env_clear();
        command
            .env("PATH", format!("{}:/usr/bin:/bin", self.path("tools").display()))
            .env("HOME", self.path("home"));
        command
    }

    /// A build with the given kernel.
    pub(crate) fn build_ready(&self, arguments: &[&str]) -> Output {
        self.program()
            .args(["build", "--kernel", "vmlinux", "--init", "vminit"])
            .args(arguments)
            .output()
            .unwrap()
    }

    /// A build that compiles with the scripts.
    pub(crate) fn compile(&self, out: &str) -> Command {
        let mut command = self.program();
        command.args([
            "build",
            "--init",
            "vminit",
            "--kernel-source",
            "linux.tar",
            "--cache",
            "cache",
            "--out",
            out,
        ]);
        command
    }

    /// How often the kernel was compiled.
    pub(crate) fn compilations(&self) -> usize {
        fs::read_to_string(self.path("calls"))
            .unwrap_or_default()
            .lines()
            .filter(|line| line.ends_with(" vmlinux") || line.ends_with(" Image"))
            .count()
    }

    fn make_source(&self) {
        let tree = self.path("linux");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("Makefile"), "").unwrap();
        fs::write(tree.join("Kconfig"), "").unwrap();
        let status =
            Command::new("tar").args(["-cf", "linux.tar", "linux"]).current_dir(self.dir.path()).status();
        assert!(status.unwrap().success());
    }

    fn make_tools(&self) {
        fs::create_dir(self.path("tools")).unwrap();
        for tool in ["flex", "bison", "bc", "xz"] {
            self.tool(tool, "exit 0");
        }
        for prefix in ["", "x86_64-linux-gnu-", "aarch64-linux-gnu-"] {
            self.tool(&format!("{prefix}gcc"), "echo gcc of the test 1.0");
            self.tool(&format!("{prefix}ld"), "echo ld of the test 1.0");
        }
        let dir = self.dir.path().display();
        // `slow` makes it stop in the middle and wait for a line; `poor` makes it forget an option; `broken` makes it fail.
        let make = format!(
            r#"
            world={dir}
            echo "$@" >>$world/calls
            for goal; do :; done
            echo "making $goal"
            case $goal in
            tinyconfig) echo CONFIG_TINY=y >.config ;;
            olddefconfig) [ ! -e $world/poor ] || {{ grep -v CONFIG_VSOCKETS= .config >new; mv new .config; }} ;;
            vmlinux)
                env >$world/env
                echo $$ >$world/pid
                [ ! -e $world/broken ] || {{ echo "kernel/fork.c:1: error: no forks today"; exit 2; }}
                [ ! -e $world/slow ] || {{ echo >$world/started; read word <$world/go; }}
                cp $world/vmlinux vmlinux ;;
            Image)
                mkdir -p arch/arm64/boot
                cp $world/vmlinux arch/arm64/boot/Image ;;
            esac
            "#
        );
        self.tool("make", &make);
    }

    /// Replaces a tool by a script. Another process writes it: a child that another test is just starting may hold open a file that
    /// this process has open for writing, and such a file can't be executed.
    pub(crate) fn tool(&self, name: &str, script: &str) {
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "cat >\"$0\" && chmod 755 \"$0\""])
            .arg(self.path("tools").join(name))
            .stdin(Stdio::piped());
        let mut child = shell.spawn().unwrap();
        child.stdin.take().unwrap().write_all(format!("#!/bin/sh\n{script}\n").as_bytes()).unwrap();
        assert!(child.wait().unwrap().success());
    }
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn succeed(output: &Output) {
    assert!(output.status.success(), "{}\n{}", output.status, stderr(output));
}

/// Checks that the command failed with this code and printed all of these texts.
pub(crate) fn fail(output: &Output, code: i32, words: &[&str]) {
    let text = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in:\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

pub(crate) fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap()
}

/// A named pipe, by which a script sends a line to the test or waits for one.
pub(crate) struct Fifo(fs::File);

impl Fifo {
    pub(crate) fn new(world: &World, name: &str) -> Self {
        let path = world.path(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // Open at both ends, so that opening it never waits for the other end.
        Self(fs::File::options().read(true).write(true).open(path).unwrap())
    }

    /// Waits until a line is written.
    pub(crate) fn wait(&self) {
        let mut file = self.0.try_clone().unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || sender.send(file.read(&mut [0]).unwrap()));
        receiver.recv_timeout(Duration::from_secs(60)).expect("nobody wrote into the pipe for a minute");
    }

    /// Writes a line for the reader.
    pub(crate) fn tell(&self) {
        (&self.0).write_all(b"go\n").unwrap();
    }
}
