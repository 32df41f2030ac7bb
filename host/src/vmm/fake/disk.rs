//! The part of QEMU that reports a full disk of the host: as long as the file `MAGIKVM_FAKE_DISK_FULL` exists, the disk has no room. The fake VM goes on
//! all the same.
#![allow(unsafe_code, reason = "taking a descriptor by its number is an unsafe call")]

use crate::vmm::qmp::QMP_FD;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

const FULL: &str = r#"{"event": "BLOCK_IO_ERROR", "data": {"nospace": true, "operation": "write", "action": "stop"}}
{"event": "STOP"}
"#;
const RESUMED: &str = "{\"event\": \"RESUME\"}\n";

/// Starts to play it, if a test wants that.
pub(super) fn play() {
    let Some(file) = std::env::var_os("MAGIKVM_FAKE_DISK_FULL").map(PathBuf::from) else { return };
    // SAFETY: the descriptor was given to this process for this purpose, and is taken once.
    let monitor = UnixStream::from(unsafe { OwnedFd::from_raw_fd(QMP_FD) });
    std::thread::spawn(move || talk(monitor, &|| file.exists()).ok());
}

fn talk(mut monitor: UnixStream, is_full: &dyn Fn() -> bool) -> std::io::Result<()> {
    monitor.set_read_timeout(Some(Duration::from_millis(5)))?;
    let mut stands = false;
    let mut buffer = [0; 256];
    loop {
        if is_full() && !stands {
            monitor.write_all(FULL.as_bytes())?;
            stands = true;
        }
        let Ok(read) = monitor.read(&mut buffer) else { continue };
        if read == 0 {
            return Ok(());
        }
        if String::from_utf8_lossy(&buffer[..read]).contains("cont") {
            monitor.write_all(RESUMED.as_bytes())?;
            stands = false;
        }
    }
}
