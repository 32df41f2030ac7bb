//! The only place that prints. Requested output goes to standard output, everything else to standard error. If the reader of the output goes
//! away, the program ends quietly.

use crate::image::{LayerInfo, LayerState, Progress};
use crate::store::text::ignore;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use magikvm_proto::limits::MAX_MESSAGE_LEN;
use std::collections::{HashMap, HashSet};
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, PoisonError};

/// Colours of container prefixes on a terminal.
const COLORS: [&str; 6] = ["\x1b[36m", "\x1b[33m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[31m"];

/// Exit code of a program that SIGPIPE has ended, as shells show it.
const READER_GONE: i32 = 141;
/// Exit code when the output cannot be written: at first that of what the host cannot do.
static FAILURE: AtomicU8 = AtomicU8::new(3);

/// Sets the exit code for output that cannot be written.
pub(super) fn fail_with(code: u8) {
    FAILURE.store(code, Ordering::Relaxed);
}

/// Ends the program if its output cannot be written: quietly if the reader has gone, like other programs; otherwise with a message.
fn settle(result: io::Result<()>) {
    match result {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => std::process::exit(READER_GONE),
        Err(error) => {
            note(&format!("Error: cannot write to standard output\nCaused by: {error}"));
            std::process::exit(FAILURE.load(Ordering::Relaxed).into());
        }
        Ok(()) => {}
    }
}

/// Prints a line of output.
pub(super) fn line(text: &str) {
    bytes(format!("{text}\n").as_bytes());
}

pub(super) fn bytes(bytes: &[u8]) {
    let mut out = io::stdout().lock();
    settle(out.write_all(bytes).and_then(|()| out.flush()));
}

/// Writes raw error output (a container's).
pub(super) fn error_bytes(bytes: &[u8]) {
    let mut out = io::stderr().lock();
    ignore(
        out.write_all(bytes).and_then(|()| out.flush()),
        "there is nowhere left to report this, and the work continues",
    );
}

/// A warning on standard error, unless the environment asks for none (`MAGIKVM_QUIET`). `message` has no full stop.
pub(super) fn warn(message: &str) {
    if std::env::var_os("MAGIKVM_QUIET").is_none_or(|value| value.is_empty()) {
        note(&format!("Warning: {message}."));
    }
}

/// What a copy or an archive lacks, each said once and not all if it is much.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    pub(super) count: u64,
}

impl LeftOut {
    const MAX_SHOWN: u64 = 20;

    /// Warns with text that others may have chosen.
    pub(super) fn tell(&mut self, message: &str) {
        self.count += 1;
        match self.count {
            ..=Self::MAX_SHOWN => warn(&format!("left out {}", harmless(message))),
            count if count == Self::MAX_SHOWN + 1 => warn("more is left out"),
            _ => {}
        }
    }

    /// A failure, unless nothing is lacking.
    pub(super) fn code(&self) -> ExitCode {
        if self.count > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }
}

/// Asks on a terminal; `None` if there is none. Only `y` and `yes` agree.
pub(super) fn ask(question: &str) -> Option<bool> {
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return None;
    }
    let mut err = io::stderr();
    ignore(
        write!(err, "{} [y/N] ", harmless(question)).and_then(|()| err.flush()),
        "without a question there is no answer",
    );
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    Some(read.is_ok() && ["y", "yes"].contains(&answer.trim().to_ascii_lowercase().as_str()))
}

/// Prints a note for people.
pub(super) fn note(text: &str) {
    error_bytes(format!("{text}\n").as_bytes());
}

/// The prefix of a container's line: its name padded to `width`, coloured on a terminal.
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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Error,
}

/// Prints rows in columns, the first row being the head.
pub(super) fn table(rows: &[Vec<String>]) {
    growing_table(rows, &mut Vec::new());
}

/// Prints rows beneath others, whose columns were this wide.
pub(super) fn growing_table(rows: &[Vec<String>], widths: &mut Vec<usize>) {
    bytes(columns(rows, widths).as_bytes());
}

/// The text of a table. A tab or newline in a cell would break its columns.
pub(super) fn columns(rows: &[Vec<String>], widths: &mut Vec<usize>) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| crate::store::text::harmless(cell, &[])).collect())
        .collect();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            let width = cell.chars().count();
            match widths.get_mut(column) {
                Some(known) => *known = width.max(*known),
                None => widths.push(width),
            }
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths.iter()).map(|(cell, &width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("   ").trim_end());
        text.push('\n');
    }
    text
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

/// A message may quote a hostile guest or manifest. It must neither control the terminal nor fill it.
pub(super) fn harmless(text: &str) -> String {
    let cut: String = text.chars().take(MAX_MESSAGE_LEN).collect();
    crate::store::text::harmless(&cut, &['\n', '\t'])
}

/// `1 layer`, `2 layers`.
pub(super) fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// The same for numbers that are not of things in memory.
pub(super) fn count_of(number: u64, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// `1 pod is`, `2 pods are`.
pub(super) fn count_is(number: usize, what: &str) -> String {
    format!("{} {}", count(number, what), if number == 1 { "is" } else { "are" })
}

/// A progress line, rewritten in place on a terminal; elsewhere one line for each step, without byte counts.
#[derive(Debug)]
pub(super) struct WorkProgress {
    terminal: bool,
    shown: String,
    last: Option<std::time::Instant>,
}

impl WorkProgress {
    pub(super) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), shown: String::new(), last: None }
    }

    /// Shows the current step and its changing details.
    pub(super) fn show(&mut self, what: &str, details: &str) {
        let new = self.shown != what;
        let due = self.last.is_none_or(|last| last.elapsed() > std::time::Duration::from_millis(100));
        if self.terminal && (new || due) {
            error_bytes(format!("\r\x1b[K{what}: {details}").as_bytes());
            self.last = Some(std::time::Instant::now());
        } else if new && !self.terminal {
            note(what);
        }
        what.clone_into(&mut self.shown);
    }

    pub(super) fn end(&mut self) {
        if self.terminal && !self.shown.is_empty() {
            error_bytes(b"\r\x1b[K");
        }
    }
}

/// A line on a terminal that says what is waited for; elsewhere nothing.
#[derive(Debug)]
pub(super) struct WaitProgress {
    terminal: bool,
    began: std::time::Instant,
    shown: String,
}

/// How long something takes before a terminal shows it.
const SHOW_AFTER: std::time::Duration = std::time::Duration::from_millis(500);

impl WaitProgress {
    pub(super) fn new() -> Self {
        Self { terminal: io::stderr().is_terminal(), began: std::time::Instant::now(), shown: String::new() }
    }

    pub(super) fn show(&mut self, text: &str) {
        if !self.terminal || self.began.elapsed() < SHOW_AFTER || self.shown == text {
            return;
        }
        let width = usize::from(super::terminal::size().cols).saturating_sub(1);
        let cut: String = harmless(text).chars().take(width).collect();
        error_bytes(format!("\r\x1b[K{cut}").as_bytes());
        text.clone_into(&mut self.shown);
    }

    pub(super) fn end(&mut self) {
        if !std::mem::take(&mut self.shown).is_empty() {
            error_bytes(b"\r\x1b[K");
        }
    }
}

/// Progress of one image: on a terminal a bar for each layer that is being downloaded, elsewhere a line for each step. Many threads
/// report to it.
#[derive(Debug)]
pub(super) struct LayerProgress {
    how: How,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
enum How {
    Silent,
    Lines,
    Bars(MultiProgress),
}

/// What is known of the image, and what is shown of it.
#[derive(Debug, Default)]
struct Seen {
    layers: Vec<LayerInfo>,
    bars: HashMap<usize, ProgressBar>,
    unpacking: Option<ProgressBar>,
    said: HashSet<String>,
}

impl LayerProgress {
    /// Bars or lines on standard error.
    pub(super) fn new() -> Self {
        let bars = io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let how = if bars { How::Bars(MultiProgress::new()) } else { How::Lines };
        Self { how, seen: Mutex::default() }
    }

    pub(super) fn silent() -> Self {
        Self { how: How::Silent, seen: Mutex::default() }
    }

    pub(super) fn show(&self, now: &Progress) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Progress::Opened(layers) = now {
            seen.layers.clone_from(layers);
        }
        match &self.how {
            How::Silent => {}
            How::Lines => seen.line(now),
            How::Bars(bars) => seen.bar(bars, now),
        }
    }

    pub(super) fn end(&self) {
        if let How::Bars(bars) = &self.how
            && bars.clear().is_err()
        {
            // The terminal is gone.
        }
    }
}

/// Progress of the images of a pod, one after the other.
#[derive(Debug)]
pub(super) struct PullProgress {
    now: Option<(String, LayerProgress)>,
}

impl PullProgress {
    pub(super) fn new() -> Self {
        Self { now: None }
    }

    /// Shows a step of an image.
    pub(super) fn show(&mut self, image: &str, step: &Progress) {
        if self.now.as_ref().is_none_or(|(now, _)| now != image) {
            self.end();
            note(&format!("Pulling {image}"));
            self.now = Some((image.to_owned(), LayerProgress::new()));
        }
        if let Some((_, progress)) = &self.now {
            progress.show(step);
        }
    }

    pub(super) fn end(&self) {
        if let Some((_, progress)) = &self.now {
            progress.end();
        }
    }
}

impl Seen {
    fn layer(&self, number: usize) -> String {
        let of = self.layers.len();
        let Some(layer) = self.layers.get(number) else { return format!("Layer {}", number + 1) };
        let name = layer.digest.map_or_else(String::new, |digest| format!(" {}", &digest.hex()[..12]));
        format!("Layer {}/{of}{name} ({})", number + 1, size(layer.size_bytes))
    }

    /// Prints a line for each new step, and nothing for mere progress.
    fn line(&mut self, now: &Progress) {
        let text = match now {
            Progress::Layer { state: LayerState::Fetching { .. } | LayerState::Saving, .. } => return,
            Progress::Layer { number, state } => format!("{}: {state}", self.layer(*number)),
            Progress::Opened(layers) => {
                let bytes = layers.iter().map(|layer| layer.size_bytes).sum();
                format!("{}, {}", count(layers.len(), "layer"), size(bytes))
            }
            Progress::Building { number, of, .. } => format!("Unpacking layer {number} of {of}"),
            other => other.to_string(),
        };
        if self.said.insert(text.clone()) {
            note(&harmless(&text));
        }
    }

    fn bar(&mut self, bars: &MultiProgress, now: &Progress) {
        match now {
            Progress::Layer { number, state: LayerState::Fetching { done_bytes } } => {
                let (text, bytes) =
                    (self.layer(*number), self.layers.get(*number).map_or(0, |l| l.size_bytes));
                let bar = self.bars.entry(*number).or_insert_with(|| {
                    let bar = bars.add(ProgressBar::new(bytes).with_style(style(LAYER_BAR)));
                    bar.set_prefix(text);
                    bar
                });
                bar.set_position(*done_bytes);
            }
            Progress::Layer { number, state: LayerState::Here | LayerState::Done } => {
                if let Some(bar) = self.bars.remove(number) {
                    bar.finish_and_clear();
                    bars.remove(&bar);
                }
            }
            Progress::Layer { number, state } => {
                let text = format!("{}: {state}", self.layer(*number));
                match self.bars.get(number) {
                    Some(bar) => bar.set_message(harmless(&state.to_string())),
                    None if self.said.insert(text.clone()) => self.say(bars, &text),
                    None => {}
                }
            }
            Progress::Building { number, of, done_bytes, total_bytes } => {
                let bar = self.unpacking.get_or_insert_with(|| {
                    bars.insert(0, ProgressBar::new(*total_bytes).with_style(style(LAYER_BAR)))
                });
                bar.set_prefix(format!("Unpacking layer {number} of {of}"));
                bar.set_length(*total_bytes);
                bar.set_position(*done_bytes);
            }
            other => self.say(bars, &other.to_string()),
        }
    }

    /// Prints a line above the bars, which disappears with them.
    fn say(&mut self, bars: &MultiProgress, text: &str) {
        let bar = self
            .unpacking
            .get_or_insert_with(|| bars.insert(0, ProgressBar::new(0).with_style(style(LAYER_BAR))));
        bar.set_prefix(harmless(text));
    }
}

const LAYER_BAR: &str = "{prefix:44!} [{bar:25}] {bytes:>9}/{total_bytes:9} {msg}";

fn style(template: &str) -> ProgressStyle {
    // The template is a constant; a wrong one would be noticed at once.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cell_breaks_the_columns() {
        let rows = [["NAME", "AGE"], ["a\tb\nc", "5s"]].map(|row| row.map(str::to_owned).to_vec());
        let text = columns(&rows, &mut Vec::new());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2, "{text:?}");
        assert!(!text.contains('\t') && lines[0].find("AGE").unwrap() == 8, "{text:?}");
    }

    #[test]
    fn ages_and_sizes_are_short() {
        assert_eq!(
            [age(0), age(119_999), age(7_199_000), age(100_000_000), age(999_999_999)],
            ["0s", "119s", "119m", "27h", "11d"]
        );
        assert_eq!([size(5), size(2048), size(3 << 30)], ["5B", "2.0KiB", "3.0GiB"]);
    }
}
