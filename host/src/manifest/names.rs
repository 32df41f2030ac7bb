//! Kubernetes' rules for texts of a Pod other than the names of pods and containers. Each check returns the problem.

use magikvm_proto::id::{Namespace, PodName};
use magikvm_proto::limits::{MAX_LABEL_LEN, MAX_PORT_NAME_LEN};
use oci_spec::runtime::Capability;

/// A label's or annotation's key: `[prefix/]name`.
pub(super) fn qualified_name(key: &str) -> Result<(), String> {
    let name = match key.split_once('/') {
        Some((prefix, name)) => {
            prefix.parse::<PodName>().map_err(|error| format!("its prefix {error}"))?;
            name
        }
        None => key,
    };
    if name.is_empty() {
        return Err("its name must not be empty".to_owned());
    }
    label_value(name).map_err(|error| format!("its name {error}"))
}

/// A label's value: empty, or at most 63 of `A-Za-z0-9-_.`, beginning and ending with a letter or digit.
pub(super) fn label_value(value: &str) -> Result<(), String> {
    if value.len() > MAX_LABEL_LEN {
        return Err(format!("is {} bytes long, at most {MAX_LABEL_LEN} are allowed", value.len()));
    }
    let middle = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if let Some(c) = value.chars().find(|&c| !middle(c)) {
        return Err(format!("contains {c:?}; only letters, digits, '-', '_' and '.' are allowed"));
    }
    let edge = |c: char| c.is_ascii_alphanumeric();
    if value.is_empty() || (value.starts_with(edge) && value.ends_with(edge)) {
        Ok(())
    } else {
        Err("must start and end with a letter or digit".to_owned())
    }
}

/// An environment variable's name: printable ASCII without `=` (the rule of Kubernetes since 1.34).
pub(super) fn env_name(name: &str) -> Result<(), String> {
    if name.is_empty() {
        return Err("must not be empty".to_owned());
    }
    match name.chars().find(|&c| !(' '..='~').contains(&c) || c == '=') {
        Some(c) => Err(format!("contains {c:?}; only printable ASCII without '=' is allowed")),
        None => Ok(()),
    }
}

/// A text that can be an argument, a variable or a path of a process.
pub(super) fn no_nul(text: &str) -> Result<(), String> {
    if text.contains('\0') {
        Err("contains a NUL byte, which no process can be given".to_owned())
    } else {
        Ok(())
    }
}

pub(super) fn absolute_path(path: &str) -> Result<(), String> {
    no_nul(path)?;
    if path.starts_with('/') { Ok(()) } else { Err("must be an absolute path".to_owned()) }
}

/// A port's name (RFC 6335).
pub(super) fn port_name(name: &str) -> Result<(), String> {
    let fine = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let problem = if name.is_empty() || name.len() > MAX_PORT_NAME_LEN {
        "must have 1 to 15 characters"
    } else if !name.chars().all(fine) {
        "may only contain lowercase letters, digits and '-'"
    } else if !name.contains(|c: char| c.is_ascii_lowercase()) {
        "must contain a letter"
    } else if name.starts_with('-') || name.ends_with('-') || name.contains("--") {
        "must not start or end with '-' nor contain '--'"
    } else {
        return Ok(());
    };
    Err(problem.to_owned())
}

/// A host name: an RFC 1123 label.
pub(super) fn hostname(name: &str) -> Result<(), String> {
    name.parse::<Namespace>().map(drop).map_err(|error| error.to_string())
}

/// A capability, with or without `CAP_`, in any case.
pub(super) fn capability(name: &str) -> Option<Capability> {
    let upper = name.to_ascii_uppercase();
    upper.strip_prefix("CAP_").unwrap_or(&upper).parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_have_an_optional_prefix_and_a_name() {
        for good in ["a", "A_b.c-9", "example.com/x", &format!("{}/{}", "a".repeat(253), "b".repeat(63))] {
            assert_eq!(qualified_name(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            "/a",
            "a/",
            "a/b/c",
            "-a",
            "a-",
            "a b",
            "Example.com/x",
            "ä",
            &"a".repeat(64),
            &format!("{}/a", "a".repeat(254)),
        ] {
            assert!(qualified_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn each_rule_accepts_and_refuses() {
        assert!(label_value("").is_ok() && label_value("v1.2_x").is_ok());
        assert!(
            label_value("_x").is_err()
                && label_value(&"x".repeat(64)).is_err()
                && label_value("a/b").is_err()
        );
        assert!(env_name("A.b-c 1").is_ok() && env_name("1").is_ok());
        assert!(
            env_name("").is_err()
                && env_name("a=b").is_err()
                && env_name("ä").is_err()
                && env_name("a\n").is_err()
        );
        assert!(port_name("http").is_ok() && port_name("a-1").is_ok());
        for bad in ["", "80", "-a", "a-", "a--b", "HTTP", "a.b", &"a".repeat(16)] {
            assert!(port_name(bad).is_err(), "{bad}");
        }
        assert!(hostname("web-1").is_ok() && hostname("a.b").is_err() && hostname(&"a".repeat(64)).is_err());
        assert!(absolute_path("/").is_ok() && absolute_path("a").is_err() && absolute_path("/a\0").is_err());
    }

    #[test]
    fn capabilities_have_one_name_in_many_spellings() {
        for text in ["NET_ADMIN", "CAP_NET_ADMIN", "net_admin", "cap_net_admin"] {
            assert_eq!(capability(text), Some(Capability::NetAdmin), "{text}");
        }
        assert_eq!(capability("CAP_CHECKPOINT_RESTORE"), Some(Capability::CheckpointRestore));
        for text in ["", "ALL", "NETADMIN", "CAP_", "CAP_CAP_CHOWN", "Net Admin"] {
            assert_eq!(capability(text), None, "{text}");
        }
    }
}
