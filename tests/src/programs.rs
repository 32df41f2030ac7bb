//! Small static programs for containers, compiled from C when the tests run.

use std::fs;
use std::process::Command;

/// Compiles a C program and returns it.
#[track_caller]
pub fn compile(source: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let (code, program) = (dir.path().join("program.c"), dir.path().join("program"));
    fs::write(&code, source).unwrap();
    let done = Command::new("gcc").args(["-static", "-O1", "-s", "-o"]).arg(&program).arg(&code).output();
    let done = done.expect("run gcc (Debian packages gcc and libc6-dev)");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    fs::read(&program).unwrap()
}
