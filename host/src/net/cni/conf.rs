//! Reads a network configuration of CNI. Pure.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt;
use std::str::FromStr;

/// Most bytes of a configuration. It has to fit into the undo journal.
pub const MAX_CONF: usize = 64 << 10;
/// Most plugins of a network.
const MAX_PLUGINS: usize = 16;
/// Longest name of a network or type of a plugin.
const MAX_NAME: usize = 128;
/// The versions of CNI that we speak.
const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
/// The first two tell the result only to the plugins that follow.
const WITHOUT_RESULT_AT_END: usize = 2;

/// A name of a network or a plugin: letters, digits, `_`, `.`, `-`, and a letter or digit at its beginning.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetworkName(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "is not a name of a CNI network: 1 to {MAX_NAME} letters, digits, `_`, `.` and `-`, and a letter or digit at the beginning"
)]
pub struct BadName;

impl NetworkName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NetworkName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<Self, BadName> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
        let begins = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
        match begins && text.len() <= MAX_NAME && text.bytes().all(plain) {
            true => Ok(Self(text.to_owned())),
            false => Err(BadName),
        }
    }
}

impl TryFrom<String> for NetworkName {
    type Error = BadName;

    fn try_from(text: String) -> Result<Self, BadName> {
        text.parse()
    }
}

impl From<NetworkName> for String {
    fn from(name: NetworkName) -> Self {
        name.0
    }
}

impl fmt::Display for NetworkName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The form of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// `.conflist`: several plugins.
    List,
    /// `.conf` or `.json`: one plugin.
    Single,
}

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    #[error("it has more than {MAX_CONF} bytes")]
    Long,
    #[error("it is not the JSON of a network configuration")]
    Json(#[source] serde_json::Error),
    #[error("name: {0:?} {BadName}")]
    Name(String),
    #[error("cniVersion: {found:?} is not supported: {}", VERSIONS.join(", "))]
    Version { found: String },
    #[error("plugins: it has {found}, 1 to {MAX_PLUGINS} are possible")]
    Count { found: usize },
    #[error("plugins[{index}].type: {found:?} is not the name of a plugin")]
    Type { index: usize, found: String },
    #[error(
        "plugins[{index}]: the plugin dhcp needs a daemon that renews addresses, which nothing here starts"
    )]
    Dhcp { index: usize },
}

/// A network.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConf {
    pub name: NetworkName,
    pub version: String,
    /// `disableCheck`: plugins are not asked whether a connection is still as they made it.
    pub check: Check,
    pub plugins: Vec<PluginConf>,
}

/// Whether plugins may be asked for CHECK.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    Possible,
    Disabled,
}

/// One of its plugins.
#[derive(Debug, Clone, PartialEq)]
pub struct PluginConf {
    pub kind: String,
    /// As written.
    pub config: Map<String, Value>,
}

impl PluginConf {
    /// Whether it asks for arguments of this name (`capabilities`).
    pub fn wants(&self, capability: &str) -> bool {
        self.config.get("capabilities").and_then(|all| all.get(capability)) == Some(&Value::Bool(true))
    }
}

impl NetworkConf {
    /// Whether plugins can be asked if a connection is still as they made it.
    pub fn is_checked(&self) -> bool {
        // CHECK and the result at the end came with the same version.
        self.check == Check::Possible && self.tells_result_at_end()
    }

    /// Whether plugins that undo a connection are told its result.
    pub fn tells_result_at_end(&self) -> bool {
        !VERSIONS[..WITHOUT_RESULT_AT_END].contains(&self.version.as_str())
    }
}

#[derive(Debug, Deserialize)]
struct Head {
    #[serde(default)]
    name: String,
    #[serde(default, rename = "cniVersion")]
    version: String,
    #[serde(default, rename = "disableCheck")]
    disable_check: bool,
}

#[derive(Debug, Deserialize)]
struct List {
    #[serde(flatten)]
    head: Head,
    #[serde(default)]
    plugins: Vec<Map<String, Value>>,
}

/// The name that a file gives its network, if it can be read so far.
pub fn name_of(bytes: &[u8]) -> Option<String> {
    (bytes.len() <= MAX_CONF).then(|| serde_json::from_slice::<Head>(bytes).ok())?.map(|head| head.name)
}

pub fn parse(bytes: &[u8], form: Form) -> Result<NetworkConf, ConfError> {
    if bytes.len() > MAX_CONF {
        return Err(ConfError::Long);
    }
    let List { head, plugins } = match form {
        Form::List => serde_json::from_slice(bytes).map_err(ConfError::Json)?,
        Form::Single => List {
            head: serde_json::from_slice(bytes).map_err(ConfError::Json)?,
            plugins: vec![serde_json::from_slice(bytes).map_err(ConfError::Json)?],
        },
    };
    let name = head.name.parse::<NetworkName>().map_err(|BadName| ConfError::Name(head.name))?;
    if !VERSIONS.contains(&head.version.as_str()) {
        return Err(ConfError::Version { found: head.version });
    }
    if plugins.is_empty() || plugins.len() > MAX_PLUGINS {
        return Err(ConfError::Count { found: plugins.len() });
    }
    let plugin = |(index, config): (usize, Map<String, Value>)| {
        let kind = config.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        // It becomes the name of a file.
        if kind.parse::<NetworkName>().is_err() {
            return Err(ConfError::Type { index, found: kind });
        }
        let of_addresses = config.get("ipam").and_then(|ipam| ipam.get("type")).and_then(Value::as_str);
        if kind == "dhcp" || of_addresses == Some("dhcp") {
            return Err(ConfError::Dhcp { index });
        }
        Ok(PluginConf { kind, config })
    };
    let plugins = plugins.into_iter().enumerate().map(plugin).collect::<Result<_, _>>()?;
    let check = if head.disable_check { Check::Disabled } else { Check::Possible };
    Ok(NetworkConf { name, version: head.version, check, plugins })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<NetworkConf, String> {
        parse(text.as_bytes(), Form::List).map_err(|error| error.to_string())
    }

    #[test]
    fn lists_and_single_plugins_are_read() {
        let conf = list(
            r#"{"cniVersion":"1.0.0","name":"web","plugins":[{"type":"bridge","ipam":{"type":"host-local"}},{"type":"portmap","capabilities":{"portMappings":true}}]}"#,
        )
        .unwrap();
        assert_eq!((conf.name.as_str(), conf.plugins.len()), ("web", 2));
        assert!(conf.plugins[1].wants("portMappings") && !conf.plugins[0].wants("portMappings"));
        assert!(conf.tells_result_at_end());
        let single = br#"{"cniVersion":"0.3.1","name":"old","type":"ptp","mtu":1400}"#;
        let conf = parse(single, Form::Single).unwrap();
        assert_eq!(
            (conf.plugins[0].kind.as_str(), conf.plugins[0].config["mtu"].as_u64()),
            ("ptp", Some(1400))
        );
        assert!(!conf.tells_result_at_end());
        assert_eq!(name_of(single).as_deref(), Some("old"));
    }

    #[test]
    fn what_cannot_be_used_is_refused_by_name() {
        for (text, says) in [
            ("[]", "not the JSON"),
            (r#"{"cniVersion":"1.0.0","name":"a/b","plugins":[{"type":"x"}]}"#, "\"a/b\" is not a name"),
            (
                r#"{"cniVersion":"0.2.0","name":"a","plugins":[{"type":"x"}]}"#,
                "cniVersion: \"0.2.0\" is not supported: 0.3.0",
            ),
            (r#"{"cniVersion":"1.0.0","name":"a"}"#, "it has 0"),
            (
                r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"../sh"}]}"#,
                "plugins[0].type: \"../sh\"",
            ),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":".."}]}"#, "plugins[0].type"),
            (
                r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"macvlan","ipam":{"type":"dhcp"}}]}"#,
                "plugins[0]: the plugin dhcp needs a daemon",
            ),
        ] {
            let said = list(text).unwrap_err();
            assert!(said.contains(says), "{text}: {said}");
        }
        assert!(matches!(parse(&vec![b' '; MAX_CONF + 1], Form::List), Err(ConfError::Long)));
    }
}
