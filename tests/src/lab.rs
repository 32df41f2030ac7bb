//! The KVM lab: a machine with hardware virtualization, emulated by QEMU, in which this program runs once more. Also the turn that each heavy
//! machine waits for.

use crate::wait::wait_for;
use std::fs::File;
use std::time::Duration;

/// Set in the lab.
const INSIDE: &str = "MAGIKVM_LAB";
/// Heavy machines at one time. Each is emulated on one processor at least, and machines that test often have two.
const SLOTS: usize = 2;
/// How long those before this one may take.
const TURN: Duration = Duration::from_secs(900);

/// The right to run a heavy machine, until it is dropped.
#[derive(Debug)]
pub struct Turn {
    _slot: File,
}

/// Whether this process runs in the lab.
pub fn is_inside() -> bool {
    std::env::var_os(INSIDE).is_some()
}

/// Waits for a turn: at most two have one at a time on a machine, whoever started them.
pub fn turn() -> Turn {
    let dir = std::env::temp_dir();
    let mut files: Vec<File> = (0..SLOTS)
        .map(|number| File::create(dir.join(format!("magikvm-vm-slot-{number}"))).expect("a lock file"))
        .collect();
    let taken =
        wait_for("a turn to run a VM", TURN, || files.iter().position(|file| file.try_lock().is_ok()));
    Turn { _slot: files.swap_remove(taken) }
}

/// Runs one test of this test program in the lab; what came of it, with all that was printed when it failed.
pub fn rerun(trial: &str) -> Result<(), String> {
    Err(format!("there is no lab to run {trial} in"))
}
