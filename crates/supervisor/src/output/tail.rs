//! The last lines of one run's output, for a termination message. Owns: how much is kept.

use magikvm_proto::lifecycle::MAX_TERMINATION_LOG;
use std::collections::VecDeque;

#[derive(Debug, Default)]
pub(crate) struct Tail(VecDeque<u8>);

impl Tail {
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let (most, _) = MAX_TERMINATION_LOG;
        let bytes = &bytes[bytes.len().saturating_sub(most)..];
        let surplus = (self.0.len() + bytes.len()).saturating_sub(most);
        self.0.drain(..surplus);
        self.0.extend(bytes);
    }

    /// What is kept, as text; `None` if nothing was written.
    pub(crate) fn text(self) -> Option<String> {
        let (most, most_lines) = MAX_TERMINATION_LOG;
        let bytes = Vec::from(self.0);
        let text = String::from_utf8_lossy(&bytes);
        // A character that was cut, or is none, is longer as text.
        let begin = (0..=text.len()).find(|&at| text.len() - at <= most && text.is_char_boundary(at))?;
        let text = &text[begin..];
        let whole = text.strip_suffix('\n').unwrap_or(text);
        let begin = whole.rmatch_indices('\n').nth(most_lines - 1).map_or(0, |(at, _)| at + 1);
        (!text.is_empty()).then(|| text[begin..].to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(parts: &[&[u8]]) -> Option<String> {
        let mut tail = Tail::default();
        parts.iter().for_each(|part| tail.push(part));
        tail.text()
    }

    #[test]
    fn the_last_bytes_and_lines_are_kept() {
        assert_eq!(tail(&[]), None);
        assert_eq!(tail(&[b"a\nb", b"c\n"]).as_deref(), Some("a\nbc\n"));
        let lines: String = (0..100).map(|n| format!("{n}\n")).collect();
        assert_eq!(tail(&[lines.as_bytes()]).unwrap().lines().next(), Some("20"));
        let long = tail(&[&[b'x'; 5000], b"end"]).unwrap();
        assert!(long.len() == 2048 && long.ends_with("xend"));
        let binary = tail(&[&[0xff; 3000]]).unwrap();
        assert!(binary.len() <= 2048 && binary.chars().all(|c| c == char::REPLACEMENT_CHARACTER));
    }
}
