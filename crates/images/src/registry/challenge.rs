//! The challenges of `WWW-Authenticate` (RFC 9110, section 11), read as leniently as registries write them: values without quotes
//! (`Basic realm=/`), schemes without parameters, several challenges in one header or in several, and text that is not ASCII.

use super::foreign::neutral;
use reqwest::header::{HeaderMap, WWW_AUTHENTICATE};

/// Most bytes of a header that are read.
const MAX_CHALLENGE: usize = 8 << 10;

/// The kind of authorization that a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    /// A user name and a password. The realm says nothing that is needed to send them.
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// One challenge as written.
#[derive(Debug, PartialEq, Eq)]
struct Written {
    scheme: String,
    parameters: Vec<(String, String)>,
}

impl Written {
    fn get(&self, name: &str) -> Option<&str> {
        let mut parameters = self.parameters.iter();
        parameters.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// The challenge to answer: a token server is preferred to a password on every request.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut basic = None;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        if value.len() > MAX_CHALLENGE {
            continue;
        }
        for one in read(&String::from_utf8_lossy(value.as_bytes())) {
            match (one.scheme.to_ascii_lowercase().as_str(), one.get("realm")) {
                ("bearer", Some(realm)) => {
                    let service = one.get("service").map(str::to_owned);
                    return Some(Challenge::Bearer { realm: realm.to_owned(), service });
                }
                ("basic", _) => basic = Some(Challenge::Basic),
                _ => {}
            }
        }
    }
    basic
}

/// All challenges of an answer, for a message; empty when there are none.
pub(super) fn offered(headers: &HeaderMap) -> String {
    let values = headers.get_all(WWW_AUTHENTICATE).iter();
    let texts: Vec<_> = values.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
    neutral(&texts.join(", "))
}

/// Splits a header into its challenges.
fn read(text: &str) -> Vec<Written> {
    let mut challenges: Vec<Written> = Vec::new();
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, ',' | ';'));
        if rest.is_empty() {
            return challenges;
        }
        let end = rest
            .find(|c: char| c.is_whitespace() || matches!(c, ',' | '=' | '"' | ';'))
            .unwrap_or(rest.len());
        let (word, behind) = rest.split_at(end);
        // Blanks are allowed around the equals sign.
        match behind.trim_start().strip_prefix('=') {
            Some(value) => {
                let (value, behind) = read_value(value.trim_start());
                if let Some(last) = challenges.last_mut() {
                    last.parameters.push((word.to_owned(), value));
                }
                rest = behind;
            }
            None if word.is_empty() => rest = read_value(behind).1,
            None => {
                challenges.push(Written { scheme: word.to_owned(), parameters: Vec::new() });
                rest = behind;
            }
        }
    }
}

/// A value, in quotes or up to the next blank or comma, and the text behind it.
fn read_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(|c: char| c.is_whitespace() || c == ',').unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    // The closing quote is missing.
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use reqwest::header::HeaderValue;

    fn of(values: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        challenge(&headers)
    }

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer { realm: realm.to_owned(), service: service.map(str::to_owned) })
    }

    #[test]
    fn challenges_in_all_their_forms() {
        let token = "https://auth.example/token";
        let expected = bearer(token, Some("registry \"x\""));
        let text = r#"bearer Realm="https://auth.example/token",service="registry \"x\"",scope="repository:a:pull,push""#;
        assert_eq!(of(&[text]), expected);
        assert_eq!(of(&["Basic realm=\"x\"", text]), expected);
        assert_eq!(of(&[&format!("Basic realm=\"x\", {text}")]), expected);
        assert_eq!(of(&[&format!("{text}, Basic realm=\"x\"")]), expected);
        assert_eq!(of(&[&format!("Negotiate YII==, Basic, {text}")]), expected);
        assert_eq!(
            of(&["Bearer realm=https://auth.example/token?a=b,service=x"]),
            bearer("https://auth.example/token?a=b", Some("x"))
        );
        assert_eq!(
            of(&["Bearer  realm = \"https://auth.example/token\" service=x"]),
            bearer(token, Some("x"))
        );
        assert_eq!(of(&["Bearer realm=\"https://auth.example/token"]), bearer(token, None));
        for basic in [
            "Basic realm=\"x\"",
            "Basic realm=/",
            "Basic",
            "basic realm=x , charset=\"UTF-8\"",
            "BASIC realm=My Registry, charset=UTF-8",
            "Basic realm=\"Registry, with a comma\"",
            "Basic realm=\"Régistre\"",
            "Basic realm=",
            "Digest realm=\"a\", nonce=\"Bearer realm=b\", Basic realm=\"c\"",
            "Bearer service=\"x\", Basic",
        ] {
            assert_eq!(of(&[basic]), Some(Challenge::Basic), "{basic}");
        }
        for none in [
            "Negotiate",
            "Bearer service=\"x\"",
            "",
            "=",
            "\"Basic\"",
            "realm=\"Basic\"",
            "Basically realm=x",
        ] {
            assert_eq!(of(&[none]), None, "{none}");
        }
        assert_eq!(of(&[]), None);
        let long = format!("Basic realm=\"{}\"", "x".repeat(9000));
        assert_eq!(of(&[&long]), None);
    }

    #[test]
    fn what_was_offered_is_shown_harmless() {
        let mut headers = HeaderMap::new();
        assert_eq!(offered(&headers), "");
        headers.append(WWW_AUTHENTICATE, HeaderValue::from_bytes("Negotiate \u{202e}x".as_bytes()).unwrap());
        headers.append(WWW_AUTHENTICATE, "Digest realm=\"a\"".parse().unwrap());
        assert_eq!(offered(&headers), "Negotiate  x, Digest realm=\"a\"");
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                let mut headers = HeaderMap::new();
                headers.insert(WWW_AUTHENTICATE, value);
                drop(challenge(&headers));
            }
        }

        #[test]
        fn every_challenge_is_read_to_its_end(text in "[Bb]?[a-z=\", ;\\\\]{0,40}") {
            prop_assert!(read(&text).len() <= text.len());
        }
    }
}
