//! The only place that prints. Standard output is for what was asked for, standard error for everything else; a reader that goes away ends the
//! program quietly.

use std::io::{self, IsTerminal, Write};

/// Colours of container prefixes on a terminal.
const COLORS: [&str; 6] = ["\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[31m"];

/// Ends the program if whoever read the output has gone; that is no failure of ours.
fn settle(result: io::Result<()>) {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(0),
        // There is nowhere left to say so.
        _ => {}
    }
}

/// Prints a line of output.
pub(super) fn line(text: &str) {
    bytes(format!("{text}\n").as_bytes());
}

/// Writes raw output.
pub(super) fn bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    settle(out.write_all(bytes).and_then(|()| out.flush()));
}

/// Writes raw error output (a container's).
pub(super) fn error_bytes(bytes: &[u8]) {
    let mut out = io::stderr().lock();
    settle(out.write_all(bytes).and_then(|()| out.flush()));
}

/// Tells a person what is going on.
pub(super) fn note(text: &str) {
    error_bytes(format!("{text}\n").as_bytes());
}

/// The beginning of a container's line: its name padded to `width`, in its colour on a terminal.
pub(super) fn prefix(name: &str, index: usize, width: usize, to: Stream) -> String {
    let terminal = match to {
        Stream::Out => io::stdout().is_terminal(),
        Stream::Error => io::stderr().is_terminal(),
    };
    if terminal && std::env::var_os("NO_COLOR").is_none() {
        format!("{}{name:width$} | \x1b[0m", COLORS[index % COLORS.len()])
    } else {
        format!("{name:width$} | ")
    }
}

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// Standard output.
    Out,
    /// Standard error.
    Error,
}

/// Prints rows in columns, the first row being the head.
pub(super) fn table(rows: &[Vec<String>]) {
    let columns = rows.first().map_or(0, Vec::len);
    let widths: Vec<usize> = (0..columns)
        .map(|column| {
            rows.iter().map(|row| row.get(column).map_or(0, |cell| cell.chars().count())).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> =
            row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    bytes(text.as_bytes());
}

/// A length of time, short: `5s`, `3m`, `2h`, `4d`.
pub(super) fn age(ms: u64) -> String {
    match ms / 1000 {
        secs @ 0..120 => format!("{secs}s"),
        secs @ 120..7200 => format!("{}m", secs / 60),
        secs @ 7200..172_800 => format!("{}h", secs / 3600),
        secs => format!("{}d", secs / 86_400),
    }
}

/// A number of bytes, short: `12.3MiB`.
#[allow(clippy::cast_precision_loss, reason = "it is rounded to one decimal anyway")]
pub(super) fn size(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{bytes}B") } else { format!("{value:.1}{unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1}TiB")
}

/// A line about long work, rewritten in place on a terminal; elsewhere a line for each step, without its byte counts.
#[derive(Debug)]
pub(super) struct Progress {
    terminal: bool,
    shown: String,
    last: Option<std::time::Instant>,
}

impl Progress {
    pub(super) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: String::new(), last: None }
    }

    /// Shows a state; `text` is `what: details`.
    pub(super) fn show(&mut self, text: &str) {
        let what = text.split_once(':').map_or(text, |(what, _)| what);
        let new = self.shown != what;
        let due = self.last.is_none_or(|last| last.elapsed() > std::time::Duration::from_millis(100));
        if self.terminal && (new || due) {
            error_bytes(format!("\r\x1b[K{text}").as_bytes());
            self.last = Some(std::time::Instant::now());
        } else if new && !self.terminal {
            note(what);
        }
        what.clone_into(&mut self.shown);
    }

    /// Clears the line.
    pub(super) fn end(&mut self) {
        if self.terminal && !self.shown.is_empty() {
            error_bytes(b"\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_sizes_are_short() {
        assert_eq!(
            [age(0), age(119_999), age(7_199_000), age(100_000_000), age(999_999_999)],
            ["0s", "119s", "119m", "27h", "11d"]
        );
        assert_eq!([size(5), size(2048), size(3 << 30)], ["5B", "2.0KiB", "3.0GiB"]);
    }
}
