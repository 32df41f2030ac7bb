//! Concise reports of what the filter refused: the first refusal of its kind at once, later ones counted and reported together, less and
//! less often while they continue. A guest that is refused without end fills nothing.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

/// Lines per report, and kinds that are counted separately.
const MAX_LINES: usize = 16;
/// The first pause between two reports, and the longest one.
const PAUSES: [Duration; 2] = [Duration::from_secs(10), Duration::from_secs(640)];
const MAX_LINE: u64 = 1024;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Refused {
    /// What was sent: `tcp`, `udp`, `ping`, `name`…
    pub what: String,
    /// The destination, or the name that was asked for.
    pub to: String,
    pub why: String,
    /// How often since the last report.
    pub count: u64,
}

type RefusalKey = (&'static str, String, String);

/// Counts what is refused.
#[derive(Debug)]
pub struct Refusals {
    counted: BTreeMap<RefusalKey, u64>,
    others: u64,
    lines: Vec<Refused>,
    pause: Duration,
    tell_at: Option<Instant>,
}

impl Default for Refusals {
    fn default() -> Self {
        Self { counted: BTreeMap::new(), others: 0, lines: Vec::new(), pause: PAUSES[0], tell_at: None }
    }
}

impl Refusals {
    pub fn note(&mut self, what: &'static str, to: String, why: String, now: Instant) {
        self.tell_at.get_or_insert(now + self.pause);
        let kind = (what, to, why);
        if let Some(count) = self.counted.get_mut(&kind) {
            *count += 1;
        } else if self.counted.len() < MAX_LINES {
            self.lines.push(line(&kind, 1));
            self.counted.insert(kind, 0);
        } else {
            self.others += 1;
        }
    }

    /// The refusals to report now.
    pub fn take(&mut self, now: Instant) -> Vec<Refused> {
        let mut lines = std::mem::take(&mut self.lines);
        if self.tell_at.is_none_or(|at| at > now) {
            return lines;
        }
        let counted = std::mem::take(&mut self.counted);
        let again = lines.len();
        lines.extend(counted.iter().filter(|(_, count)| **count > 0).map(|(kind, count)| line(kind, *count)));
        let others = std::mem::take(&mut self.others);
        if others > 0 {
            let kind = ("packets", "others".to_owned(), "various reasons".to_owned());
            lines.push(line(&kind, others));
        }
        let goes_on = lines.len() > again;
        self.pause = if goes_on { (self.pause * 2).min(PAUSES[1]) } else { PAUSES[0] };
        // Continued refusals are counted from here; the first of each kind was reported.
        self.counted =
            counted.into_iter().filter(|(_, count)| *count > 0).map(|(kind, _)| (kind, 0)).collect();
        self.tell_at = goes_on.then(|| now + self.pause);
        lines
    }

    /// When the next report is due at the latest.
    pub fn due(&self) -> Option<Instant> {
        self.tell_at
    }
}

fn line((what, to, why): &RefusalKey, count: u64) -> Refused {
    Refused { what: (*what).to_owned(), to: to.clone(), why: why.clone(), count }
}

/// Reads lines until the filter has ended. The filter parses data of a guest, so its lines are not trusted either.
pub fn read(from: impl Read, mut each: impl FnMut(Refused)) {
    let mut reader = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                if let Ok(refused) = serde_json::from_slice(&line) {
                    each(refused);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(refusals: &mut Refusals, to: &str, now: Instant) {
        refusals.note("tcp", to.to_owned(), "closed".to_owned(), now);
    }

    #[test]
    fn the_first_is_told_at_once_and_the_others_are_counted() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        for _ in 0..5 {
            note(&mut refusals, "a", start);
        }
        assert_eq!(refusals.take(start).iter().map(|line| line.count).collect::<Vec<_>>(), [1]);
        assert_eq!(refusals.take(start), []);
        let later = start + PAUSES[0];
        assert_eq!(refusals.due(), Some(later));
        assert_eq!(refusals.take(later).iter().map(|line| line.count).collect::<Vec<_>>(), [4]);
        assert_eq!(refusals.due(), Some(later + PAUSES[0] * 2), "more rarely");
        assert_eq!(refusals.take(later + PAUSES[0] * 2), []);
        assert_eq!(refusals.due(), None, "it has ceased");
    }

    #[test]
    fn a_flood_has_few_lines() {
        let (mut refusals, start) = (Refusals::default(), Instant::now());
        let mut lines = 0;
        for second in 0..3600u64 {
            let now = start + Duration::from_secs(second);
            for n in 0..100 {
                note(&mut refusals, &format!("{second} {n}"), now);
            }
            lines += refusals.take(now).len();
        }
        assert!((MAX_LINES..200).contains(&lines), "{lines}");
        assert!(refusals.counted.len() <= MAX_LINES);
    }

    #[test]
    fn only_lines_of_ours_are_read() {
        let good = serde_json::to_string(&line(&("tcp", "a".into(), "b".into()), 3)).unwrap();
        let text = format!("nonsense\n{}\n\u{0}\n{good}\n{{\"what\":1}}\n", "x".repeat(5000));
        let mut heard = Vec::new();
        read(text.as_bytes(), |refused| heard.push(refused.count));
        assert_eq!(heard, [3]);
    }
}
