//! The names that a rule applies to: a registry, or a repository and everything below it.
//!
//! The author of a pod chooses the spelling of an image's name and must not evade a rule by it. So hosts are compared as DNS and HTTPS do:
//! without regard to case, `:443` equals no port, an IPv6 address is compared as a number (references accept only one spelling of an IPv4
//! address), and an IPv6 address that stands for an IPv4 address equals that. A difference that only the network knows (another name for
//! the same host, its address) is another registry.

use super::super::reference::Reference;
use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

const DOCKER: &str = "docker.io";
const HTTPS: u16 = 443;

/// A registry, and the first components of the repositories in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Prefix {
    registry: Registry,
    components: Vec<String>,
}

/// A registry's host and port in one spelling.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Registry {
    host: String,
    /// `None`: the port of HTTPS.
    port: Option<u16>,
}

impl Registry {
    /// Parses the domain of a reference, whose form is already checked.
    fn new(domain: &str) -> Self {
        // The colons of an IPv6 address are in brackets.
        let (host, port) = match domain.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().ok()),
            _ => (domain, None),
        };
        let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match address.and_then(|address| address.parse::<Ipv6Addr>().ok()) {
            Some(address) => match address.to_ipv4_mapped() {
                Some(mapped) => mapped.to_string(),
                None => format!("[{address}]"),
            },
            None => host.to_ascii_lowercase(),
        };
        // This registry has several names.
        let host = if host.ends_with(".docker.io") { DOCKER.to_owned() } else { host };
        Self { host, port: port.filter(|port| *port != HTTPS) }
    }
}

/// The text is not a prefix.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Wrong {
    Form(&'static str),
    /// `docker.io/NAME` is ambiguous: the official image NAME, or the images of the user NAME.
    Ambiguous(String),
}

impl FromStr for Prefix {
    type Err = Wrong;

    fn from_str(text: &str) -> Result<Self, Wrong> {
        let (domain, path) = text.split_once('/').map_or((text, None), |(domain, path)| (domain, Some(path)));
        // As in references: anything else would be a user or an image of docker.io.
        if !(domain.contains(['.', ':']) || domain.eq_ignore_ascii_case("localhost")) {
            return Err(Wrong::Form(
                "a prefix begins with a registry's host name, as in \"docker.io/library/busybox\"",
            ));
        }
        let path = path.filter(|path| !path.is_empty()).map(|path| path.strip_suffix('/').unwrap_or(path));
        // With one more component in front, a reference takes the path unchanged, even for docker.io.
        let whole = format!("{domain}/{}", path.map_or("x/x".to_owned(), |path| format!("x/{path}")));
        let form = "a prefix is a registry's host name with an optional port, and lower-case names separated by \"/\", without tag and digest";
        let reference: Reference = whole.parse().map_err(|_| Wrong::Form(form))?;
        let plain = reference.digest().is_none() && path.is_none_or(|path| !path.contains(':'));
        if !plain {
            return Err(Wrong::Form(form));
        }
        let registry = Registry::new(reference.domain());
        let components: Vec<String> =
            path.map(|path| path.split('/').map(str::to_owned).collect()).unwrap_or_default();
        match components.as_slice() {
            [name] if registry.host == DOCKER && name != "library" && !text.ends_with('/') => {
                Err(Wrong::Ambiguous(name.clone()))
            }
            _ => Ok(Self { registry, components }),
        }
    }
}

impl Prefix {
    /// `None`: the rule does not apply to this image. Otherwise the number of matching components: more is closer.
    pub(super) fn covers(&self, reference: &Reference) -> Option<usize> {
        let registry = Registry::new(reference.domain());
        let mut path = reference.path();
        // The reference has done this already except for an unusual spelling of docker.io.
        let official = format!("library/{path}");
        if registry.host == DOCKER && !path.contains('/') {
            path = &official;
        }
        let mut given = path.split('/');
        let fits = self.registry == registry
            && self.components.iter().all(|mine| given.next() == Some(mine.as_str()));
        fits.then_some(self.components.len())
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.registry.host)?;
        if let Some(port) = self.registry.port {
            write!(f, ":{port}")?;
        }
        self.components.iter().try_for_each(|component| write!(f, "/{component}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn covers(prefix: &str, image: &str) -> Option<usize> {
        prefix.parse::<Prefix>().unwrap().covers(&image.parse().unwrap())
    }

    #[test]
    fn a_prefix_ends_where_a_component_ends() {
        assert_eq!(covers("registry.example/team", "registry.example/team"), Some(1));
        assert_eq!(covers("registry.example/team", "registry.example/team/app:v1"), Some(1));
        assert_eq!(covers("registry.example/team/", "registry.example/team/app/part:v1"), Some(1));
        assert_eq!(covers("registry.example/team", "registry.example/teamwork"), None);
        assert_eq!(covers("registry.example/team/app", "registry.example/team"), None);
        assert_eq!(covers("registry.example", "registry.example/team"), Some(0));
        assert_eq!(covers("registry.example/", "registry.example/team"), Some(0));
        assert_eq!(covers("registry.example", "registry.example.org/team"), None);
        assert_eq!(covers("registry.example", "docker.io/registry/team"), None);
    }

    #[test]
    fn a_registry_is_the_same_in_every_spelling() {
        for image in ["REGISTRY.Example/a", "registry.example:443/a", "registry.example:0443/a"] {
            assert_eq!(covers("registry.example", image), Some(0), "{image}");
            assert_eq!(covers("Registry.EXAMPLE:443/a", image), Some(1), "{image}");
        }
        assert_eq!(covers("registry.example", "registry.example:5000/a"), None);
        assert_eq!(covers("registry.example:5000", "registry.example:05000/a"), Some(0));
        assert_eq!(covers("[::1]:5000", "[0:0:0:0:0:0:0:1]:5000/a"), Some(0));
        assert_eq!(covers("[::1]", "[::1]:443/a"), Some(0));
        assert_eq!(covers("[::1]", "[::1]:5000/a"), None);
        for image in ["[::ffff:127.0.0.1]:5000/a", "[0:0:0:0:0:FFFF:7F00:1]:5000/a"] {
            assert_eq!(covers("127.0.0.1:5000", image), Some(0), "{image}");
            assert_eq!(covers("[::ffff:7f00:1]:5000", image), Some(0), "{image}");
        }
    }

    #[test]
    fn docker_io_is_meant_by_all_its_names() {
        for image in [
            "busybox",
            "library/busybox",
            "docker.io/busybox",
            "index.docker.io/busybox",
            "Docker.io/busybox",
            "docker.io:443/busybox",
            "INDEX.docker.io:443/library/busybox",
            "mirror-1.docker.io/library/busybox",
        ] {
            assert_eq!(covers("docker.io/library/busybox", image), Some(2), "{image}");
            assert_eq!(covers("docker.io/library", image), Some(1), "{image}");
            assert_eq!(covers("docker.io", image), Some(0), "{image}");
            assert_eq!(covers("index.docker.io/library/", image), Some(1), "{image}");
        }
        assert_eq!(covers("docker.io/user/", "user/app"), Some(1));
        assert_eq!(covers("docker.io/user/", "user"), None);
        let wrong = "docker.io/user".parse::<Prefix>();
        assert_eq!(wrong, Err(Wrong::Ambiguous("user".to_owned())));
    }

    #[test]
    fn other_texts_are_no_prefixes() {
        for text in [
            "",
            "/",
            "busybox",
            "library/busybox",
            "Team",
            "registry.example//a",
            "registry.example//",
            "registry.example/a//",
            "registry.example/a:v1",
            "registry.example/A",
            "registry.example/*",
            "*.example",
            "registry.example:x",
            "registry.example:99999",
            "127.1:5000",
            "0x7f.1",
            "https://registry.example",
            "registry.example/a@b",
            "[::1",
            " registry.example",
        ] {
            assert!(matches!(text.parse::<Prefix>(), Err(Wrong::Form(_))), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}", near in "[a-zA-Z0-9./:@\\[\\]-]{0,30}") {
            drop(text.parse::<Prefix>());
            drop(near.parse::<Prefix>());
        }

        #[test]
        fn an_image_is_covered_by_all_its_own_prefixes(
            host in "[a-z]{1,8}\\.[a-z]{2,5}(:[1-9][0-9]{0,3})?", path in proptest::collection::vec("[a-z0-9]{1,8}", 2..6)
        ) {
            let reference: Reference = format!("{host}/{}", path.join("/")).parse().unwrap();
            for count in 0..=path.len() {
                let below: String = path.iter().take(count).map(|component| format!("/{component}")).collect();
                let prefix: Prefix = format!("{host}{below}").parse().unwrap();
                prop_assert_eq!(prefix.covers(&reference), Some(count));
                prop_assert_eq!(prefix.to_string().parse::<Prefix>().unwrap(), prefix);
            }
        }
    }
}
