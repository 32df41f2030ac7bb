//! Figures of the benchmarks.

use std::time::Duration;

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
