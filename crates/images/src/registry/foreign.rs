//! Text and addresses of registries in the form that errors show.

use magikvm_platform::text::acts;
use reqwest::Url;

/// Most characters of untrusted text that an error shows.
const SHOWN: usize = 300;

/// Untrusted text for an error: one line, no characters that act on a terminal, and short.
pub(super) fn neutral(text: &str) -> String {
    let mut out = String::new();
    for (count, character) in text.trim().chars().enumerate() {
        if count == SHOWN {
            out.push('…');
            break;
        }
        // Usually a line break, which should stay a separator.
        out.push(if acts(character) { ' ' } else { character });
    }
    out
}

/// An address for an error, without its query, which may carry signatures and tokens.
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
