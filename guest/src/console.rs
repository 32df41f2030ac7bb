//! Short lines on `/dev/console`, which the host shows when the VM fails. Must not know anything else of vminit.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

static CONSOLE: OnceLock<Option<File>> = OnceLock::new();

/// Longest line written, in bytes.
const MAX_LINE: usize = 1024;

fn open() -> Option<File> {
    OpenOptions::new().write(true).custom_flags(libc::O_NOCTTY).open("/dev/console").ok()
}

/// Writes `vminit: ` and one line. If the console can't be written, vminit goes on.
pub(crate) fn say(text: &str) {
    let Some(mut console) = CONSOLE.get_or_init(open).as_ref() else { return };
    let cut = (0..=text.len().min(MAX_LINE)).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let clean: String = text[..cut].chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    console.write_all(format!("vminit: {clean}\n").as_bytes()).ok();
}
