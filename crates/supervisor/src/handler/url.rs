//! The few URLs that a probe knows: its own, and those it is redirected to.

use magikvm_proto::lifecycle::Scheme;

/// Where a request goes, and where a redirect leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) scheme: Scheme,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// As written: the port is not in the URL.
    pub(super) default_port: bool,
    /// What the first line of the request names.
    pub(super) target: String,
}

/// Where a redirect leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Redirect {
    To {
        url: Url,
        relative: bool,
    },
    /// To another host, which a probe does not ask.
    Elsewhere,
    /// In words.
    Invalid(String),
}

impl Url {
    /// As Go's `url.URL.Host`, which is what a request names in its header `Host`.
    pub(super) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        if self.default_port { host } else { format!("{host}:{}", self.port) }
    }

    pub(super) fn text(&self) -> String {
        let scheme = match self.scheme {
            Scheme::Http => "http",
            Scheme::Https => "https",
        };
        format!("{scheme}://{}{}", self.authority(), self.target)
    }

    /// The URL that a `Location` of an answer from this one names.
    pub(super) fn redirect(&self, location: &str) -> Redirect {
        let location = location.trim();
        let scheme_end = location.find([':', '/', '?', '#']).filter(|&at| location[at..].starts_with(':'));
        let (scheme, rest) = match scheme_end {
            Some(end) => match &location[..end].to_ascii_lowercase()[..] {
                "http" => (Scheme::Http, &location[end + 1..]),
                "https" => (Scheme::Https, &location[end + 1..]),
                _ => return Redirect::Elsewhere,
            },
            None => (self.scheme, location),
        };
        if let Some(rest) = rest.strip_prefix("//") {
            return self.absolute(scheme, rest);
        }
        if scheme_end.is_some() {
            return Redirect::Invalid(format!("failed to parse Location header {location:?}"));
        }
        let base = self.target.split('?').next().unwrap_or_default();
        let joined = if rest.starts_with('/') {
            rest.to_owned()
        } else if rest.starts_with('?') {
            format!("{base}{rest}")
        } else if rest.is_empty() || rest.starts_with('#') {
            self.target.clone()
        } else {
            format!("{}/{rest}", base.rsplit_once('/').map_or("", |(above, _)| above))
        };
        let url = Self { target: without_dots(&target(&joined)), ..self.clone() };
        Redirect::To { url, relative: true }
    }

    fn absolute(&self, scheme: Scheme, rest: &str) -> Redirect {
        let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        let (host, port) = match authority.strip_prefix('[').and_then(|inner| inner.split_once(']')) {
            Some((host, "")) => (host, None),
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if !host.eq_ignore_ascii_case(&self.host) {
            return Redirect::Elsewhere;
        }
        let usual = match scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        };
        let port = port.filter(|port| !port.is_empty());
        let number = match port.map(str::parse::<u16>) {
            None => usual,
            Some(Ok(number @ 1..)) => number,
            Some(_) => {
                return Redirect::Invalid(format!("invalid port {:?} after host", port.unwrap_or_default()));
            }
        };
        let target = without_dots(&target(path));
        let url =
            Self { scheme, host: self.host.clone(), port: number, default_port: port.is_none(), target };
        Redirect::To { url, relative: false }
    }
}

/// What the first line of a request names: the path with its query, escaped as Go's `net/url` does. A fragment is not sent. Nothing in
/// the result can end the line.
pub(super) fn target(path: &str) -> String {
    let path = path.split('#').next().unwrap_or_default();
    let mut target = String::from(if path.starts_with('/') { "" } else { "/" });
    let bytes = path.as_bytes();
    for (index, c) in path.char_indices() {
        let hex = |at: usize| bytes.get(index + at).is_some_and(u8::is_ascii_hexdigit);
        let plain = match c {
            '%' => hex(1) && hex(2),
            '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}' => false,
            c => c.is_ascii_graphic(),
        };
        if plain {
            target.push(c);
        } else {
            let mut buffer = [0; 4];
            c.encode_utf8(&mut buffer).bytes().for_each(|byte| target += &format!("%{byte:02X}"));
        }
    }
    target
}

/// Removes `.` and `..` from the path (RFC 3986, 5.2.4).
fn without_dots(target: &str) -> String {
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let mut kept: Vec<&str> = Vec::new();
    let mut parts = path.split('/').skip(1).peekable();
    while let Some(part) = parts.next() {
        let is_last = parts.peek().is_none();
        match part {
            "." | ".." => {
                if part == ".." {
                    kept.pop();
                }
                if is_last {
                    kept.push("");
                }
            }
            part => kept.push(part),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn base() -> Url {
        Url {
            scheme: Scheme::Http,
            host: "10.0.0.1".to_owned(),
            port: 8080,
            default_port: false,
            target: "/a/b?x=1".to_owned(),
        }
    }

    #[test]
    fn a_path_is_a_request_target() {
        for (path, expected) in [
            ("", "/"),
            ("healthz", "/healthz"),
            ("/ready?deep=1&x=a+b", "/ready?deep=1&x=a+b"),
            ("?x=1", "/?x=1"),
            ("/a b", "/a%20b"),
            ("/a%20b%zz%", "/a%20b%25zz%25"),
            ("/ä", "/%C3%A4"),
            ("/a\r\nHost: x", "/a%0D%0AHost:%20x"),
            ("/x#part", "/x"),
        ] {
            assert_eq!(target(path), expected, "{path}");
        }
    }

    #[test]
    fn redirects_stay_on_the_host() {
        let to = |location: &str| match base().redirect(location) {
            Redirect::To { url, relative } => format!("{} {relative}", url.text()),
            other => format!("{other:?}"),
        };
        for (location, expected) in [
            ("/login", "http://10.0.0.1:8080/login true"),
            ("c", "http://10.0.0.1:8080/a/c true"),
            ("../c/./d/..", "http://10.0.0.1:8080/c/ true"),
            ("../../../c", "http://10.0.0.1:8080/c true"),
            ("?y=2", "http://10.0.0.1:8080/a/b?y=2 true"),
            ("", "http://10.0.0.1:8080/a/b?x=1 true"),
            ("http://10.0.0.1:8080/x", "http://10.0.0.1:8080/x false"),
            ("http://10.0.0.1", "http://10.0.0.1/ false"),
            ("HTTPS://user@10.0.0.1:8443?z", "https://10.0.0.1:8443/?z false"),
            ("//10.0.0.1/x", "http://10.0.0.1/x false"),
            ("https://shop.example/", "Elsewhere"),
            ("//shop.example/", "Elsewhere"),
            ("ftp://10.0.0.1/", "Elsewhere"),
            ("http://10.0.0.1:0/", "Invalid(\"invalid port \\\"0\\\" after host\")"),
            ("http:x", "Invalid(\"failed to parse Location header \\\"http:x\\\"\")"),
        ] {
            assert_eq!(to(location), expected, "{location}");
        }
        let six = Url { host: "::1".to_owned(), ..base() };
        assert_eq!(six.text(), "http://[::1]:8080/a/b?x=1");
        assert_eq!(
            six.redirect("http://[::1]/x"),
            Redirect::To {
                url: Url { port: 80, default_port: true, target: "/x".to_owned(), ..six },
                relative: false
            }
        );
    }

    proptest! {
        #[test]
        fn no_location_leaves_the_host_or_ends_a_line(location in "[-a-z0-9:/?#@\\[\\]. \r\n%ä]{0,40}") {
            if let Redirect::To { url, .. } = base().redirect(&location) {
                prop_assert_eq!(&url.host, "10.0.0.1");
                prop_assert!(url.target.starts_with('/') && url.target.bytes().all(|byte| byte.is_ascii_graphic()));
            }
        }
    }
}
