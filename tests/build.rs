//! Compiles the small C programs that tests run in containers and jails: statically, and at build time because the lab compiles slowly.
#![allow(clippy::unwrap_used, reason = "a build script fails by panicking")]

use std::env;
use std::path::Path;
use std::process::Command;

const PROGRAMS: [&str; 5] = ["probe", "inmate", "echo", "client", "escape"];

fn main() {
    let variable = |name: &str| env::var(name).unwrap();
    let compiler = match variable("HOST") == variable("TARGET") {
        true => "gcc".to_owned(),
        false => format!("{}-linux-gnu-gcc", variable("CARGO_CFG_TARGET_ARCH")),
    };
    for name in PROGRAMS {
        let source = format!("programs/{name}.c");
        println!("cargo::rerun-if-changed={source}");
        let program = Path::new(&variable("OUT_DIR")).join(name);
        let done =
            Command::new(&compiler).args(["-static", "-O1", "-s", &source, "-o"]).arg(&program).status();
        let done =
            done.unwrap_or_else(|error| panic!("{compiler} (Debian packages gcc and libc6-dev): {error}"));
        assert!(done.success(), "{compiler} cannot compile {source}");
    }
}
