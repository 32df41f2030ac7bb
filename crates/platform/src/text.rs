//! Text for people: untrusted text made safe to show, chains of error causes, and reasons for ignored failures. Must not know who writes
//! or prints it.

use std::error::Error;

/// Whether a character moves, hides or reorders what a terminal shows.
pub fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Untrusted text without the characters that act on a terminal; characters in `keep` stay.
pub fn harmless(text: &str, keep: &[char]) -> String {
    text.chars().map(|c| if acts(c) && !keep.contains(&c) { '\u{fffd}' } else { c }).collect()
}

/// A JSON document without the characters that act on a terminal: inside its texts they are written as escapes, which mean the same.
pub fn harmless_json(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        // Line feeds are between the texts. All of these characters have one unit in UTF-16.
        match u16::try_from(u32::from(c)) {
            Ok(unit) if acts(c) && c != '\n' => out.push_str(&format!("\\u{unit:04x}")),
            _ => out.push(c),
        }
    }
    out
}

/// The causes of an error, the nearest one first.
pub fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(error.source(), |cause: &&(dyn Error + 'static)| (*cause).source())
}

/// An error and its causes in one line.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    causes(error).fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Ignores a failure that changes nothing for the caller. `_why` tells the reader of the code why.
pub fn ignore<T, E>(result: Result<T, E>, _why: &'static str) {
    drop(result);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_drives_a_terminal_goes_and_the_rest_stays() {
        assert_eq!(harmless("a\x1b[2J\tb\u{202e}ü\n", &['\t']), "a\u{fffd}[2J\tb\u{fffd}ü\u{fffd}");
        assert_eq!(harmless("a\nb\t", &['\n', '\t']), "a\nb\t");
    }

    #[test]
    fn json_keeps_its_meaning_without_what_drives_a_terminal() {
        let json = "{\n  \"a\": \"x\u{9b}31m\u{202e}y\u{7f}\u{61c}\u{fffd}\"\n}";
        let expected = "{\n  \"a\": \"x\\u009b31m\\u202ey\\u007f\\u061c\u{fffd}\"\n}";
        assert_eq!(harmless_json(json), expected);
        assert!(!acts('ü') && !acts('\u{fffd}') && !acts('\u{1f600}'));
    }

    #[test]
    fn a_chain_names_every_cause() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        let error = Outer(std::io::Error::other("inner"));
        assert_eq!(chain(&error), "outer: inner");
        assert_eq!(causes(&error).count(), 1);
    }
}
