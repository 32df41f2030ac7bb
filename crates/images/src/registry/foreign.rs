//! Text and addresses from registries as errors show them.

use magikvm_platform::text::acts;
use reqwest::Url;

/// Characters of a stranger's text that an error shows.
const SHOWN: usize = 300;

/// A stranger's text for an error: one line, no characters that act on a terminal, not too long.
pub(super) fn neutral(text: &str) -> String {
    let mut out = String::new();
    for (count, character) in text.trim().chars().enumerate() {
        if count == SHOWN {
            out.push('…');
            break;
        }
        // Most often the end of a line, which is meant for reading.
        out.push(if acts(character) { ' ' } else { character });
    }
    out
}

/// An address for an error: queries carry signatures and tokens, so they are left out.
pub(super) fn shown(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    neutral(url.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn signatures_stay_out_of_errors() {
        let url = Url::parse("https://cdn.registry.example/a/b?X-Signature=secret#part").unwrap();
        assert_eq!(shown(&url), "https://cdn.registry.example/a/b");
    }

    proptest! {
        #[test]
        fn foreign_text_is_one_short_line_without_control(text in any::<String>()) {
            let text = neutral(&text);
            prop_assert!(text.chars().count() <= SHOWN + 1);
            let acts = |c: char| c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c);
            prop_assert!(!text.contains(acts), "{:?}", text);
        }
    }
}
