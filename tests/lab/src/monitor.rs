//! QEMU's monitor, for a lab that stands still: what its processor is doing.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// The monitor's socket in the run's directory.
pub(crate) const SOCKET: &str = "monitor.sock";
const PROMPT: &[u8] = b"(qemu) ";
/// How long an answer may take.
const ANSWER: Duration = Duration::from_secs(5);
const MAX_ANSWER: usize = 64 << 10;

/// The registers of all processors, twice, which shows whether they move, and then an interrupt that cannot be masked: the kernel is told to panic
/// at it, and so prints its stack on the console before it ends.
pub(crate) fn examine(dir: &Path) -> String {
    let examined = || -> io::Result<String> {
        // The full path may be too long for a socket's address.
        let open = File::open(dir)?;
        let mut monitor = UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET}", open.as_raw_fd()))?;
        monitor.set_read_timeout(Some(ANSWER))?;
        answer(&mut monitor)?;
        let mut said = String::new();
        for command in ["info registers -a\n", "info registers -a\n", "nmi\n"] {
            monitor.write_all(command.as_bytes())?;
            said.push_str(&answer(&mut monitor)?);
        }
        Ok(said)
    };
    examined().unwrap_or_else(|error| format!("QEMU's monitor did not answer: {error}"))
}

/// Reads up to the next prompt.
fn answer(monitor: &mut UnixStream) -> io::Result<String> {
    let (mut said, mut chunk) = (Vec::new(), [0; 4096]);
    let began = Instant::now();
    while !said.ends_with(PROMPT) && said.len() < MAX_ANSWER {
        if began.elapsed() > ANSWER {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match monitor.read(&mut chunk)? {
            0 => break,
            length => said.extend(&chunk[..length]),
        }
    }
    Ok(String::from_utf8_lossy(&said).replace('\r', ""))
}
