//! Turns: only a fixed number of VMs are emulated on a host at a time, regardless of who started them. Each needs at least one processor, and test
//! hosts often have two; with more VMs, all of them miss their deadlines.

use crate::LabError;
use std::fs::File;
use std::time::{Duration, Instant};

const TURNS: usize = 2;
/// How long a test waits for the tests before it.
const WAIT: Duration = Duration::from_secs(1800);
const PAUSE: Duration = Duration::from_millis(10);

/// The right to run a VM until it is dropped or the process ends.
#[derive(Debug)]
pub struct Turn {
    _lock: File,
}

/// Waits for a turn. The holder of a turn must not ask for another one.
pub fn turn() -> Result<Turn, LabError> {
    // The lab has a private /tmp, and thus its own turns.
    let dir = std::env::temp_dir();
    let mut files = Vec::new();
    for number in 0..TURNS {
        let path = dir.join(format!("magikvm-vm-slot-{number}"));
        // Another user's file can be locked, but not created.
        let file = File::open(&path).or_else(|_| File::create(&path));
        files.push(file.map_err(LabError::system(format!("creating {}", path.display())))?);
    }
    let began = Instant::now();
    while began.elapsed() < WAIT {
        if let Some(taken) = files.iter().position(|file| file.try_lock().is_ok()) {
            return Ok(Turn { _lock: files.swap_remove(taken) });
        }
        std::thread::sleep(PAUSE);
    }
    Err(LabError::NoTurn { waited: WAIT, turns: TURNS })
}
