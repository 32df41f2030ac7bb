//! The user's terminal: raw while a container's terminal is shown, and as it was afterwards, however the program ends in between.

use magikvm_proto::wire::WindowSize;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{self, IsTerminal};

/// Raw mode; ends when dropped.
pub(super) struct Raw {
    before: Termios,
}

impl Raw {
    /// Raw mode, if standard input is a terminal.
    pub(super) fn enter() -> Option<Self> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&stdin, SetArg::TCSANOW, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if tcsetattr(io::stdin(), SetArg::TCSANOW, &self.before).is_err() {
            // The terminal is gone.
        }
    }
}

/// Size of the terminal on standard output (or input); 24x80 where there is none.
#[allow(unsafe_code, reason = "TIOCGWINSZ has no safe wrapper in nix")]
pub(super) fn size() -> WindowSize {
    use std::os::fd::AsRawFd;
    nix::ioctl_read_bad!(window_size, nix::libc::TIOCGWINSZ, nix::libc::winsize);
    let mut size = nix::libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    for fd in [io::stdout().as_raw_fd(), io::stdin().as_raw_fd()] {
        // SAFETY: `size` is a winsize that outlives the call; the descriptors are the process's own.
        if unsafe { window_size(fd, &raw mut size) }.is_ok() && size.ws_row > 0 && size.ws_col > 0 {
            return WindowSize { rows: size.ws_row, cols: size.ws_col };
        }
    }
    WindowSize { rows: 24, cols: 80 }
}
