//! Figures of the benchmarks.

use std::error::Error;
use std::fmt::Display;
use std::fs;
use std::io::{self, Read};
use std::time::{Duration, Instant};

/// Above this load of the host measurements are unreliable.
const BUSY_PERCENT: u64 = 10;
/// Time for measuring the load.
const LOOK: Duration = Duration::from_secs(1);
/// Above this spread the times of one measurement are not significant.
const NOISY_SPREAD: f64 = 1.5;

/// Prints the median and the spread of some times, and returns the median; in milliseconds. There must be one time.
pub fn show(what: &str, times: &mut [Duration]) -> f64 {
    times.sort();
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let median = ms(times[times.len() / 2]);
    println!(
        "{what}: median {median:.2} ms (min {:.2}, max {:.2}, n {})",
        ms(times[0]),
        ms(times[times.len() - 1]),
        times.len()
    );
    median
}

/// Prints one figure beside its aim.
pub fn row(what: &str, measured: impl Display, aim: impl Display) {
    println!("{what}: {measured} (aim {aim})");
}

/// The middle of some numbers, of which there must be one.
pub fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// Warns if the host is busy. To be called before anything is measured.
pub fn warn_if_busy() -> Result<(), Box<dyn Error>> {
    let (busy_before, all_before) = ticks()?;
    std::thread::sleep(LOOK);
    let (busy_after, all_after) = ticks()?;
    let percent = 100 * (busy_after - busy_before) / (all_after - all_before).max(1);
    if percent > BUSY_PERCENT {
        println!(
            "NOISY: the processors of the host are {percent} % busy with other things; times below say little"
        );
    }
    Ok(())
}

/// Time that the processors have spent on work, and in total.
fn ticks() -> Result<(u64, u64), Box<dyn Error>> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line =
        stat.lines().next().and_then(|line| line.strip_prefix("cpu ")).ok_or("no line of all processors")?;
    let ticks = line.split_ascii_whitespace().map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq, steal; the time of guests is part of user.
    let all: u64 = ticks.iter().take(8).sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    Ok((all - idle, all))
}

/// Warns if the times of one measurement lie far apart.
pub fn warn_if_spread(what: &str, times: &[Duration]) {
    let ends = times.iter().min().zip(times.iter().max());
    if let Some(spread) = ends.map(|(min, max)| max.as_secs_f64() / min.as_secs_f64())
        && spread > NOISY_SPREAD
    {
        println!("NOISY: {what} took up to {spread:.1} times as long as at best");
    }
}

/// Reads until the stream has printed a text, and returns the time; `None` if the stream ended before. Collects all output in `seen`.
pub fn time_until(
    mark: &str,
    from: &mut impl Read,
    begun: Instant,
    seen: &mut Vec<u8>,
) -> io::Result<Option<Duration>> {
    let mut buffer = [0u8; 4096];
    loop {
        let read = from.read(&mut buffer)?;
        if read == 0 {
            return Ok(None);
        }
        seen.extend_from_slice(&buffer[..read]);
        if seen.windows(mark.len()).any(|window| window == mark.as_bytes()) {
            return Ok(Some(begun.elapsed()));
        }
    }
}

/// Bytes as MiB.
#[allow(clippy::cast_precision_loss, reason = "it is rounded to one decimal anyway")]
pub fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
