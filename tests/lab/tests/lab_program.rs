//! Tests the program `magikvm-lab`, and what remains when it is killed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_magikvm-lab");

fn until(what: &str, mut ask: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !ask() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processes whose standard error is a file below a directory, as that of the lab's processes is.
fn logging_to(dir: &Path) -> Vec<PathBuf> {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok).map(|entry| entry.path());
    let logs = |process: &PathBuf| fs::read_link(process.join("fd/2")).is_ok_and(|log| log.starts_with(dir));
    processes.filter(logs).collect()
}

#[test]
fn a_command_s_output_code_and_files_are_passed_on() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(PROGRAM)
        .args(["--memory", "1024", "--limit", "60", "--timings", "--keep"])
        .arg(dir.path())
        .args([
            "--",
            "sh",
            "-c",
            "echo out; echo err >&2; mkdir $MAGIKVM_LAB_OUT/a; echo kept >$MAGIKVM_LAB_OUT/a/b; exit 9",
        ])
        .output()
        .unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(9), b"out\n".as_slice()), "{stderr}");
    assert!(stderr.starts_with("err\nlab: booted in "), "{stderr}");
    assert_eq!(fs::read_to_string(dir.path().join("a/b")).unwrap(), "kept\n");
}

#[test]
fn without_a_lab_it_says_how_to_make_one() {
    let output = Command::new(PROGRAM).arg("true").env_remove("MAGIKVM_LAB_DIR").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(125), "{stderr}");
    assert!(stderr.contains("ci/lab.sh"), "{stderr}");
}

/// However the program ends, even without cleanup or by Ctrl-C, none of its processes and files remain.
#[test]
fn nothing_is_left_of_a_run_that_is_killed() {
    for signal in [Signal::SIGKILL, Signal::SIGINT] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(PROGRAM)
            .args(["--memory", "1024", "--", "sh", "-c", "echo >$MAGIKVM_LAB_OUT/begun; sleep 1000"])
            .env("TMPDIR", dir.path())
            .current_dir("/")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let runs = || {
            let entries = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().path());
            entries.filter(|path| path.is_dir()).collect::<Vec<_>>()
        };
        until("the command runs", || runs().iter().any(|run| run.join("shared/out/begun").exists()));
        assert_eq!(logging_to(dir.path()).len(), 2, "QEMU and virtiofsd");
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        child.wait().unwrap();
        until("its processes are gone", || logging_to(dir.path()).is_empty());
        until("its files are gone", || runs().is_empty());
    }
}
