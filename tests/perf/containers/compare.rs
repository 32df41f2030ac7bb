//! Pairs of times: the same thing done by magikvm and by its peers, in turn.

use magikvm_tests::bench::Result;
use magikvm_tests::figures::{median, row, show, warn_if_spread};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Rounds that count, after one that does not: it fills the page cache.
const ROUNDS: usize = 9;

/// Runs a program to its end. If it fails, the error is its error output.
pub(super) fn done(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr)).into())
}

/// Someone who does the same as magikvm.
pub(super) struct Peer<'a> {
    pub(super) name: &'a str,
    /// How many times its time magikvm may take.
    pub(super) aim: Option<f64>,
    pub(super) time: &'a dyn Fn() -> Result<Duration>,
}

/// The time of something.
pub(super) fn timed(what: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let begun = Instant::now();
    what()?;
    Ok(begun.elapsed())
}

/// Measures magikvm and its peers in turn. Prints all times and, for each peer, the median of the ratios of the rounds. Returns the median of
/// magikvm's times in milliseconds.
pub(super) fn compare(what: &str, ours: &dyn Fn() -> Result<Duration>, peers: &[Peer<'_>]) -> Result<f64> {
    let mut mine = Vec::new();
    let mut theirs: Vec<Vec<Duration>> = peers.iter().map(|_| Vec::new()).collect();
    for round in 0..=ROUNDS {
        let took = ours()?;
        let took_by_peers = peers.iter().map(|peer| (peer.time)()).collect::<Result<Vec<_>>>()?;
        if round > 0 {
            mine.push(took);
            theirs.iter_mut().zip(took_by_peers).for_each(|(times, took)| times.push(took));
        }
    }
    let ratios: Vec<Vec<f64>> = theirs
        .iter()
        .map(|times| mine.iter().zip(times).map(|(a, b)| a.as_secs_f64() / b.as_secs_f64()).collect())
        .collect();
    warn_if_spread(what, &mine);
    let figure = show(&format!("magikvm, {what}"), &mut mine);
    for ((peer, mut times), mut ratios) in peers.iter().zip(theirs).zip(ratios) {
        show(&format!("{}, {what}", peer.name), &mut times);
        let aim = peer.aim.map_or("none".to_owned(), |aim| format!("{aim}x"));
        row(
            &format!("{what} over {}", peer.name),
            format!("median of pairs {:.2}x", median(&mut ratios)),
            aim,
        );
    }
    Ok(figure)
}
