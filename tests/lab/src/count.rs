//! How often a lab, or a guest in it, stood still and got another boot, and what took how long. The file that `MAGIKVM_LAB_COUNT` names gets a line
//! for each boot, each repetition and each measured part; `ci/lib.sh` reads them.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

/// Names the file. Without it nothing is counted.
const VARIABLE: &str = "MAGIKVM_LAB_COUNT";

pub(crate) fn boot() {
    add("boot");
}

/// Records that `what` stood still in the last boot and gets another one, and prints it.
pub fn repeats(what: &str) {
    eprintln!("{what}: the lab or a guest in it stood still; it gets another boot");
    add(&format!("repeat {what}"));
}

/// Records how long `what` took.
pub fn took(what: &str, duration: Duration) {
    add(&format!("took {:.1} {what}", duration.as_secs_f64()));
}

/// One write for each line: several test programs may write at the same time.
fn add(line: &str) {
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    let added = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    if let Err(error) = added {
        panic!("cannot count the lab's boots in {} ({VARIABLE}): {error}", path.display());
    }
}
