//! The output of pods in namespaces while the host's disk is full. Needs root (mounts).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use magikvm_tests::Pod;
use magikvm_tests::mounts::Tmpfs;
use magikvm_tests::virtual_machine::{Driver, VmHost};
use magikvm_tests::wait::until;
use serde_json::json;
use std::fs;

#[test]
fn the_terminal_misses_nothing_and_the_gap_in_the_log_is_told_once() {
    let mut host = VmHost::with(Driver::Containers);
    let disk = Tmpfs::at(&host.file("small"), "size=256m,mode=0700");
    let root = host.file("small/root");
    host.other("/bin/cp").arg("-a").arg(host.root()).arg(&root).ok();
    host.set_env("MAGIKVM_ROOT", root.to_string_lossy());
    let flags = host.file("flags");
    fs::create_dir(&flags).unwrap();
    let script = "await() { until test -e /flags/$1; do sleep 0.05; done; }; echo begun; await full; \
                  i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done; await end; echo end";
    let pod = Pod::new("prints")
        .volume("flags", json!({ "hostPath": { "path": flags } }))
        .script("web", script)
        .mount("flags", "/flags", json!({}));
    let mut run = host.run(&pod).arg("--no-prefix").env("MAGIKVM_QUIET", "").spawn();
    run.wait_for_stdout("begun");
    let filler = disk.fill();
    fs::write(flags.join("full"), "").unwrap();
    run.wait_for_stdout("line 2999\n");
    drop(filler);
    fs::write(flags.join("end"), "").unwrap();
    let output = run.wait().expect_code(0);
    let lines: String = (0..3000).map(|n| format!("line {n}\n")).collect();
    assert_eq!(output.stdout, format!("begun\n{lines}end\n"));
    let told = "container web: output is missing in its log, which could not be written: ";
    assert_eq!(output.stderr.matches(told).count(), 1, "{}", output.stderr);
    assert!(output.stderr.contains("No space left on device"), "{}", output.stderr);

    let events = host.cmd(["events", "prints"]).ok().stdout;
    assert_eq!(events.matches(told).count(), 1, "{events}");
    let described = host.cmd(["describe", "prints"]).ok().stdout;
    assert!(described.lines().any(|line| line.contains("Warning") && line.contains(told)), "{described}");
    // The log has what there was room for, without pieces, and what came after.
    let logs = host.cmd(["logs", "prints"]).ok().stdout;
    let whole = |line: &str| line == "begun" || line == "end" || lines.lines().any(|one| one == line);
    assert!(logs.lines().all(whole), "{logs}");
    assert!(logs.ends_with("end\n") && logs.lines().count() < 3002, "{}", logs.lines().count());
    host.cmd(["rm", "prints"]).ok();
    until("nothing of it is left", || !root.join("run/pods/default_prints").exists());
}
