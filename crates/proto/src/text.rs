//! Text of bounded length.

/// The beginning of a text, at most so many bytes long and whole characters only.
pub fn cut(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn a_cut_falls_between_characters() {
        assert_eq!(cut("short", 10), "short");
        assert_eq!(cut("longer", 4), "long");
        assert_eq!(cut("a\u{e9}b", 2), "a");
        assert_eq!(cut("\u{1f980}", 3), "");
    }
}
