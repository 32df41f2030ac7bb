//! Shows the named steps of a build as they proceed: `[4/10] Unpacking the kernel source … 9.4 s`.

use crate::child::{Interrupted, Stop};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// How often a long step shows its progress.
const ON_TERMINAL: Duration = Duration::from_secs(1);
const IN_A_LOG: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// A line can be overwritten.
    Terminal,
    /// A file or a pipe: lines are only appended.
    Log,
}

/// A list of steps in progress.
pub struct Steps {
    out: Box<dyn Write>,
    output: Output,
    total: usize,
    begun: usize,
    stop: Stop,
}

impl Steps {
    /// Shows `total` steps on standard error.
    pub fn on_stderr(total: usize, stop: Stop) -> Self {
        let stderr = std::io::stderr();
        let output = if stderr.is_terminal() { Output::Terminal } else { Output::Log };
        Self::new(Box::new(stderr), output, total, stop)
    }

    /// Shows `total` steps elsewhere.
    pub fn new(out: Box<dyn Write>, output: Output, total: usize, stop: Stop) -> Self {
        Self { out, output, total, begun: 0, stop }
    }

    /// Runs one step, unless the user has asked to stop.
    pub fn run<T, E: From<Interrupted>>(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Step<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.stop.check()?;
        self.begun += 1;
        let label = format!("[{}/{}] {name} …", self.begun, self.total);
        let now = Instant::now();
        let mut step = Step { steps: self, label, started: now, shown: now, beats: 0, note: None };
        step.begin();
        let result = work(&mut step);
        step.end(result.is_ok());
        result
    }

    fn say(&mut self, text: &str) {
        // The build goes on even if its progress can't be shown any more.
        let _shown = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()).is_ok();
    }
}

/// The current step.
pub struct Step<'a> {
    steps: &'a mut Steps,
    label: String,
    started: Instant,
    shown: Instant,
    beats: usize,
    note: Option<String>,
}

impl Step<'_> {
    /// Whether the user has asked to stop.
    pub fn stop(&self) -> Stop {
        self.steps.stop.clone()
    }

    /// Sets the text that is shown beside the time when the step is done: "taken from the cache".
    pub fn note(&mut self, note: impl Into<String>) {
        self.note = Some(note.into());
    }

    /// Shows the step's progress if it is time for that.
    pub fn beat(&mut self, how_far: impl FnOnce() -> String) {
        let period = if self.steps.output == Output::Terminal { ON_TERMINAL } else { IN_A_LOG };
        if self.shown.elapsed() < period {
            return;
        }
        self.shown = Instant::now();
        let text = format!("{} ({})", how_far(), for_humans(self.started.elapsed()));
        match self.steps.output {
            Output::Terminal => self.steps.say(&format!("\r\x1b[K{} {text}", self.label)),
            Output::Log if self.beats == 0 => self.steps.say(&format!("\n    {text}\n")),
            Output::Log => self.steps.say(&format!("    {text}\n")),
        }
        self.beats += 1;
    }

    fn begin(&mut self) {
        self.steps.say(&self.label.clone());
    }

    fn end(&mut self, well: bool) {
        let time = for_humans(self.started.elapsed());
        let text = match (well, self.note.take()) {
            (false, _) => "failed".to_owned(),
            (true, Some(note)) => format!("{note}, {time}"),
            (true, None) => time,
        };
        match self.steps.output {
            Output::Terminal => self.steps.say(&format!("\r\x1b[K{} {text}\n", self.label)),
            Output::Log if self.beats > 0 => self.steps.say(&format!("{} {text}\n", self.label)),
            Output::Log => self.steps.say(&format!(" {text}\n")),
        }
    }
}

fn for_humans(time: Duration) -> String {
    match time.as_secs() {
        0..60 => format!("{:.1} s", time.as_secs_f64()),
        seconds => format!("{} min {} s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);
    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn in_a_log_each_step_is_one_line() {
        let seen = Shared::default();
        let mut steps = Steps::new(Box::new(seen.clone()), Output::Log, 3, Stop::default());
        steps.run::<_, Interrupted>("First", |_| Ok(())).unwrap();
        steps
            .run::<_, Interrupted>("Second", |step| {
                step.note("skipped");
                step.beat(|| unreachable!("too early to say anything"));
                Ok(())
            })
            .unwrap();
        steps.run::<(), _>("Third", |_| Err(Interrupted)).unwrap_err();
        let text = String::from_utf8(seen.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "[1/3] First … 0.0 s\n[2/3] Second … skipped, 0.0 s\n[3/3] Third … failed\n");
    }

    #[test]
    fn on_a_terminal_a_line_is_written_over() {
        let seen = Shared::default();
        let mut steps = Steps::new(Box::new(seen.clone()), Output::Terminal, 1, Stop::default());
        steps.run::<_, Interrupted>("Only", |_| Ok(())).unwrap();
        let text = String::from_utf8(seen.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "[1/1] Only …\r\u{1b}[K[1/1] Only … 0.0 s\n");
    }

    #[test]
    fn times_are_readable() {
        assert_eq!(for_humans(Duration::from_millis(9_420)), "9.4 s");
        assert_eq!(for_humans(Duration::from_secs(271)), "4 min 31 s");
    }
}
