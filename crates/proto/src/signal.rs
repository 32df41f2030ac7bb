//! Signals of Linux by number and by name, the same on every host. Must not know: processes.

use serde::{Deserialize, Serialize};
use std::str::FromStr;

/// Names without `SIG`, as on x86_64 and aarch64, with the aliases that container tools know.
const NAMES: [(&str, u8); 35] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
    ("UNUSED", 31),
];
/// The first real-time signal, as in every container tool. glibc has it too; musl keeps one more for itself and calls 35 the first.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// A signal, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub struct Signal(u8);

/// Text that is not a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not a signal: use a name such as TERM or RTMIN+3, or a number from 1 to {RTMAX}")]
pub struct UnknownSignal;

impl Signal {
    pub const TERM: Self = Self(15);

    pub fn number(self) -> i32 {
        self.0.into()
    }
}

impl Default for Signal {
    fn default() -> Self {
        Self::TERM
    }
}

impl From<Signal> for i32 {
    fn from(signal: Signal) -> Self {
        signal.number()
    }
}

impl TryFrom<i32> for Signal {
    type Error = UnknownSignal;

    fn try_from(number: i32) -> Result<Self, UnknownSignal> {
        match u8::try_from(number) {
            Ok(number @ 1..=RTMAX) => Ok(Self(number)),
            _ => Err(UnknownSignal),
        }
    }
}

/// `TERM`, `SIGTERM`, `term`, `15`, `RTMIN+3`, `SIGRTMAX-1`.
impl FromStr for Signal {
    type Err = UnknownSignal;

    fn from_str(text: &str) -> Result<Self, UnknownSignal> {
        if let Ok(number) = text.parse::<i32>() {
            return number.try_into();
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
            return Ok(Self(*number));
        }
        real_time(name).filter(|number| (RTMIN..=RTMAX).contains(number)).map(Self).ok_or(UnknownSignal)
    }
}

/// The number of a real-time signal's name.
fn real_time(name: &str) -> Option<u8> {
    let distance = |text: &str, sign: char| match text.strip_prefix(sign) {
        Some(digits) if digits.starts_with(|c: char| c.is_ascii_digit()) => digits.parse().ok(),
        Some(_) => None,
        None => text.is_empty().then_some(0u8),
    };
    if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN.checked_add(distance(rest, '+')?)
    } else {
        RTMAX.checked_sub(distance(name.strip_prefix("RTMAX")?, '-')?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("SIGKILL", 9),
            ("kill", 9),
            ("sigwinch", 28),
            ("CLD", 17),
            ("64", 64),
            ("RTMIN", 34),
            ("SIGRTMIN", 34),
            ("RTMIN+3", 37),
            ("SIGRTMIN+3", 37),
            ("rtmin+30", 64),
            ("RTMAX", 64),
            ("RTMAX-30", 34),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(text.parse::<Signal>().map(Signal::number), Ok(number), "{text}");
        }
        for text in [
            "",
            "0",
            "65",
            "-1",
            "NOPE",
            "SIG",
            "SIGSIGTERM",
            "RTMIN+",
            "RTMIN-1",
            "RTMIN+31",
            "RTMIN++3",
            "RTMIN+300",
            "RTMAX+0",
            "RTMAX-31",
            "TERM ",
            "RTMIN3",
        ] {
            assert_eq!(text.parse::<Signal>(), Err(UnknownSignal), "{text:?}");
        }
    }

    #[test]
    fn a_signal_travels_as_its_number() {
        assert_eq!(serde_json::to_string(&Signal::TERM).unwrap(), "15");
        assert_eq!(serde_json::from_str::<Signal>("37").unwrap().number(), 37);
        assert!(serde_json::from_str::<Signal>("65").is_err());
        assert!(serde_json::from_str::<Signal>("0").is_err());
    }
}
