//! Verbs that act on several pods: all of them at once, each failure reported, and a clean end by Ctrl-C.

use super::error::CliError;
use super::{terminal, ui};
use crate::signals;
use crate::store::text::ignore;
use crate::store::thread;
use magikvm_proto::id::PodId;
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// Pods that are worked on at a time.
const WORKERS: usize = 64;
/// How long a verb works before a terminal shows what it waits for, and how often that is renewed.
const SHOW_AFTER: Duration = Duration::from_millis(500);

/// Exit code of a program that this signal has ended, as shells show it.
pub(super) fn code_of(signal: Signal) -> u8 {
    u8::try_from(128 + signal as i32).unwrap_or(130)
}

/// What becomes of the pods that are being worked on when the user interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interrupted {
    /// Their monitors go on without this program.
    GoOn,
    /// This program finishes them first, because half of the work would be left otherwise.
    Finish,
}

/// One verb for many pods.
#[derive(Debug, Clone, Copy)]
pub(super) struct Verb {
    /// `stopped`, for messages.
    pub(super) done: &'static str,
    pub(super) doing: &'static str,
    pub(super) interrupted: Interrupted,
}

/// `stop $(magikvm ps -q)` names no pod when there is none, which is not a mistake.
pub(super) fn none(verb: Verb, is_search: bool) -> ExitCode {
    let why = if is_search { "There is no such pod" } else { "No pod was named" };
    let hint = if is_search { "" } else { " Name pods, or use `--all`." };
    ui::note(&format!("{why}, so none was {}.{hint}", verb.done));
    ExitCode::SUCCESS
}

enum News {
    Begun(usize),
    Ended(usize, Result<(), CliError>),
    /// A worker has ended.
    Left,
    Signal(Signal),
}

/// Reports the end of a worker, however it ends.
struct Leaving(Sender<News>);

impl Drop for Leaving {
    fn drop(&mut self) {
        ignore(self.0.send(News::Left), "the program is about to end");
    }
}

/// Applies a verb to all pods at once. Failures are reported in the order of the pods; the last one decides the exit code.
pub(super) fn for_all(
    verb: Verb,
    pods: &[PodId],
    work: impl Fn(&PodId) -> Result<(), CliError> + Send + Sync + 'static,
) -> ExitCode {
    let (tell, news) = channel();
    watch_signals(tell.clone());
    let given_up = Arc::new(AtomicBool::new(false));
    let next = Arc::new(AtomicUsize::new(0));
    let work = Arc::new(work);
    let list: Arc<[PodId]> = pods.into();
    let mut workers = 0;
    for _ in 0..pods.len().min(WORKERS) {
        let (tell, given_up, next) = (tell.clone(), Arc::clone(&given_up), Arc::clone(&next));
        let (work, list) = (Arc::clone(&work), Arc::clone(&list));
        match thread::start("pod", move || worker(&list, &next, &given_up, tell, &*work)) {
            Ok(_) => workers += 1,
            // A limit of threads keeps nobody from cleaning up: those that run do the work of the others.
            Err(_) => break,
        }
    }
    if workers == 0 {
        workers = 1;
        worker(&list, &next, &given_up, tell.clone(), &*work);
    }
    drop(tell);
    let mut show = Waiting::new(verb, pods);
    let mut results: BTreeMap<usize, Result<(), CliError>> = BTreeMap::new();
    let (mut reported, mut worst, mut interrupted) = (0, ExitCode::SUCCESS, None);
    while workers > 0 {
        match news.recv_timeout(show.until()) {
            Ok(News::Begun(index)) => show.begun(index),
            Ok(News::Ended(index, result)) => {
                show.ended(index);
                results.insert(index, result);
            }
            Ok(News::Left) => workers -= 1,
            Ok(News::Signal(signal)) if interrupted.is_some() || verb.interrupted == Interrupted::GoOn => {
                show.clear();
                leave(verb, pods, &show.working, signal);
            }
            Ok(News::Signal(signal)) => {
                given_up.store(true, Ordering::Release);
                interrupted = Some(signal);
            }
            Err(RecvTimeoutError::Timeout) => show.show(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
        while let Some(result) = results.remove(&reported) {
            reported += 1;
            if let Err(error) = result {
                show.clear();
                worst = error.report();
            }
        }
    }
    show.clear();
    let Some(signal) = interrupted else { return worst };
    let left = pods.len() - show.count;
    if left > 0 {
        ui::note(&format!("Interrupted: {} not {}.", ui::count_is(left, "pod"), verb.done));
    }
    ExitCode::from(code_of(signal))
}

fn worker(
    pods: &[PodId],
    next: &AtomicUsize,
    given_up: &AtomicBool,
    tell: Sender<News>,
    work: &impl Fn(&PodId) -> Result<(), CliError>,
) {
    let leaving = Leaving(tell);
    let tell = &leaving.0;
    while !given_up.load(Ordering::Acquire) {
        let index = next.fetch_add(1, Ordering::AcqRel);
        let Some(pod) = pods.get(index) else { return };
        let told = tell.send(News::Begun(index)).and_then(|()| tell.send(News::Ended(index, work(pod))));
        ignore(told, "the program is about to end");
    }
}

/// Signals become news. Called before the other threads start, so that all of them have the signals blocked.
fn watch_signals(tell: Sender<News>) {
    let ending = signals::ending();
    if ending.thread_block().is_err() {
        // They then end the program as usual.
        return;
    }
    let watching = thread::start("signals", move || {
        while let Ok(signal) = ending.wait() {
            if tell.send(News::Signal(signal)).is_err() {
                return;
            }
        }
    });
    if watching.is_err() {
        ignore(signals::ending().thread_unblock(), "the program then ends with its work, not earlier");
    }
}

fn leave(verb: Verb, pods: &[PodId], working: &BTreeSet<usize>, signal: Signal) -> ! {
    let names: Vec<String> =
        working.iter().filter_map(|&index| pods.get(index)).map(PodId::to_string).collect();
    let rest = match verb.interrupted {
        Interrupted::GoOn => " in the background",
        Interrupted::Finish => " only partly",
    };
    if !names.is_empty() {
        ui::note(&format!("Interrupted: still being {}{rest}: {}.", verb.done, names.join(", ")));
    }
    std::process::exit(code_of(signal).into());
}

/// The line on a terminal that says which pods are waited for.
struct Waiting<'a> {
    verb: Verb,
    pods: &'a [PodId],
    working: BTreeSet<usize>,
    /// How many have ended.
    count: usize,
    began: Instant,
    terminal: bool,
    is_shown: bool,
}

impl<'a> Waiting<'a> {
    fn new(verb: Verb, pods: &'a [PodId]) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let (working, began) = (BTreeSet::new(), Instant::now());
        Self { verb, pods, working, count: 0, began, terminal, is_shown: false }
    }

    fn until(&self) -> Duration {
        if self.terminal { SHOW_AFTER } else { Duration::from_secs(3600) }
    }

    fn begun(&mut self, index: usize) {
        self.working.insert(index);
    }

    fn ended(&mut self, index: usize) {
        self.working.remove(&index);
        self.count += 1;
        if self.is_shown {
            self.show();
        }
    }

    fn show(&mut self) {
        if !self.terminal || self.working.is_empty() {
            return;
        }
        let names: Vec<String> =
            self.working.iter().filter_map(|&index| self.pods.get(index)).map(PodId::to_string).collect();
        let waited = self.began.elapsed().as_secs();
        let text = format!(
            "{} {} ({waited} s): {}",
            self.verb.doing,
            ui::count(self.pods.len() - self.count, "pod"),
            names.join(", ")
        );
        let width = usize::from(terminal::size().cols).saturating_sub(1);
        let cut: String = text.chars().take(width).collect();
        ui::error_bytes(format!("\r\x1b[K{cut}").as_bytes());
        self.is_shown = true;
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.is_shown) {
            ui::error_bytes(b"\r\x1b[K");
        }
    }
}
