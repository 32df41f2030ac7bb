//! Lengths of time on the command line. All options share this parser, so that each takes the same forms.

use std::ops::RangeInclusive;
use std::time::Duration;

/// What an error message shows as a valid length of time.
const EXAMPLES: &str = "30, 30s, 2m, 1h";
const DAY: Duration = Duration::from_secs(86_400);

/// Parses `30` (seconds), `30s`, `2m`, `1h` or `1h 30m`, within these bounds.
pub(super) fn duration(text: &str, bounds: &RangeInclusive<Duration>) -> Result<Duration, String> {
    let trimmed = text.trim();
    let is_number = !trimmed.is_empty() && trimmed.bytes().all(|byte| byte.is_ascii_digit());
    let with_unit = if is_number { format!("{trimmed}s") } else { trimmed.to_owned() };
    let outside =
        || format!("{text:?} is not between {} and {}", short(*bounds.start()), short(*bounds.end()));
    let span: jiff::SignedDuration = match with_unit.parse() {
        Ok(span) => span,
        Err(_) if is_number => return Err(outside()),
        Err(_) => {
            // A plain negative number lacks only its unit.
            let negative = trimmed.strip_prefix('-').is_some_and(|rest| rest.parse::<f64>().is_ok());
            return Err(if negative {
                outside()
            } else {
                format!("{text:?} is not a duration ({EXAMPLES})")
            });
        }
    };
    match Duration::try_from(span) {
        Ok(duration) if bounds.contains(&duration) => Ok(duration),
        _ => Err(outside()),
    }
}

/// From one second to a day, for deadlines.
pub(super) fn deadline(text: &str) -> Result<Duration, String> {
    duration(text, &(Duration::from_secs(1)..=DAY))
}

/// The same in whole seconds, rounded up.
pub(super) fn deadline_secs(text: &str) -> Result<u64, String> {
    deadline(text).map(whole_secs)
}

/// Whole seconds up to thirty days, or 0 for no limit.
pub(super) fn limit_secs(text: &str) -> Result<u64, String> {
    duration(text, &(Duration::ZERO..=30 * DAY)).map(whole_secs)
}

/// Rounded up, so that only zero is no time.
fn whole_secs(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// In words as short as the input: `90s`, `5m`, `24h`.
pub(super) fn short(duration: Duration) -> String {
    match duration.as_secs() {
        0 if !duration.is_zero() => format!("{}ms", duration.as_millis()),
        secs if secs >= 3600 && secs % 3600 == 0 => format!("{}h", secs / 3600),
        secs if secs >= 60 && secs % 60 == 0 => format!("{}m", secs / 60),
        secs => format!("{secs}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_of_time_has_a_unit_or_counts_seconds() {
        for (text, secs) in
            [("30", 30), ("30s", 30), ("2m", 120), ("1h", 3600), ("1h 30m", 5400), ("24h", 86_400)]
        {
            assert_eq!(deadline(text), Ok(Duration::from_secs(secs)), "{text}");
            assert_eq!(deadline_secs(text), Ok(secs), "{text}");
        }
        assert_eq!(deadline_secs("1500ms"), Ok(2));
        assert_eq!((limit_secs("0"), limit_secs("500ms"), limit_secs("48h")), (Ok(0), Ok(1), Ok(172_800)));
        for text in ["", " ", "soon", "-5s x", "5 parsecs", "0x10", "NaN", "--all"] {
            assert!(deadline(text).unwrap_err().contains("is not a duration (30, 30s, 2m, 1h)"), "{text}");
        }
        for text in ["0", "0s", "-5", "-5s", "-1.5", "999ms", "25h", "9999999h", "99999999999999999999"] {
            assert!(deadline(text).unwrap_err().contains("is not between 1s and 24h"), "{text}");
        }
    }

    #[test]
    fn bounds_are_shown_as_they_are_written() {
        let shown =
            [500, 59_000, 60_000, 300_000, 3_600_000, 90_000].map(|ms| short(Duration::from_millis(ms)));
        assert_eq!(shown, ["500ms", "59s", "1m", "5m", "1h", "90s"]);
    }
}
