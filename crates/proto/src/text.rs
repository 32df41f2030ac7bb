//! Text of bounded length.

/// The longest prefix of whole characters that has at most `max_bytes` bytes.
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
