//! passt: its required options and its command line.

use super::{DNS_4, DNS_6, GATEWAY_4, GATEWAY_6, GUEST_4, GUEST_6, MTU, PASST_MAC, PREFIX_4};
use std::io::Read;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Required options, among them the newest of those that are used.
const NEEDED: [&str; 4] = ["--fd", "--dns-forward", "--no-map-gw", "--mac-addr"];
/// Bytes of its help that are read.
const MAX_HELP: u64 = 64 << 10;
/// Its descriptor of the connection.
pub(super) const FD: i32 = 3;

/// Why passt cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    #[error("passt is not installed")]
    Missing,
    #[error("{} cannot be executed", path.display())]
    Execute {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} has no option {option}: it is too old", path.display())]
    TooOld { path: PathBuf, option: &'static str },
}

/// Checks whether this passt has everything that is needed.
pub fn check(path: Option<&Path>) -> Result<&Path, PasstError> {
    let path = path.ok_or(PasstError::Missing)?;
    let help = said(path, "--help")?;
    match NEEDED.into_iter().find(|option| !help.contains(option)) {
        Some(option) => Err(PasstError::TooOld { path: path.to_owned(), option }),
        None => Ok(path),
    }
}

/// The version that it reports; some builds do not know theirs.
pub fn version(path: &Path) -> Result<String, PasstError> {
    let said = said(path, "--version")?;
    let line = said.lines().next().unwrap_or_default();
    Ok(line.strip_prefix("passt ").unwrap_or(line).to_owned())
}

/// Its output for one option. Depending on the version, help goes to stdout or stderr.
fn said(path: &Path, option: &str) -> Result<String, PasstError> {
    let execute = |source| PasstError::Execute { path: path.to_owned(), source };
    let mut child = Command::new(path)
        .arg(option)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(execute)?;
    let mut said = Vec::new();
    for stream in [
        child.stdout.take().map(|stream| Box::new(stream) as Box<dyn Read>),
        child.stderr.take().map(|stream| Box::new(stream) as Box<dyn Read>),
    ]
    .into_iter()
    .flatten()
    {
        stream.take(MAX_HELP).read_to_end(&mut said).map_err(execute)?;
    }
    child.wait().map_err(execute)?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// A port of the host whose UDP packets go to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UdpPort {
    /// The address of the host, or all addresses.
    pub host_address: Option<IpAddr>,
    pub host: u16,
    pub guest: u16,
}

/// The settings of passt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub program: PathBuf,
    /// Whether it carries IPv4.
    pub v4: bool,
    /// Whether it carries IPv6.
    pub v6: bool,
    /// Whether the gateway's address is the host's loopback. (The filter lets only permitted pods reach it.)
    pub maps_loopback: bool,
    pub published_udp: Vec<UdpPort>,
}

/// Its command. It assigns no addresses, since the guest has them from its plan. passt itself gives up root's rights and its view of
/// files.
pub fn command(wanted: &Wanted) -> Command {
    let mut command = Command::new(&wanted.program);
    command
        .current_dir("/")
        .env_clear()
        .args(["--foreground", "--stderr", "--quiet", "--fd", &FD.to_string()])
        .args(["--mtu", &MTU.to_string(), "--mac-addr", &PASST_MAC.to_string()])
        .args(["--no-dhcp", "--no-dhcpv6", "--no-ra", "--tcp-ports", "none"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    if wanted.v4 {
        command.args(["--address", &GUEST_4.to_string(), "--netmask", &PREFIX_4.to_string()]).args([
            "--gateway",
            &GATEWAY_4.to_string(),
            "--dns-forward",
            &DNS_4.to_string(),
        ]);
    } else {
        command.arg("--ipv6-only");
    }
    if wanted.v6 {
        command
            .args(["--address", &GUEST_6.to_string(), "--gateway", &GATEWAY_6.to_string()])
            .args(["--dns-forward", &DNS_6.to_string()]);
    } else {
        command.arg("--ipv4-only");
    }
    if !wanted.maps_loopback {
        command.arg("--no-map-gw");
    }
    if wanted.published_udp.is_empty() {
        command.args(["--udp-ports", "none"]);
    }
    for port in &wanted.published_udp {
        let address = port.host_address.map(|address| format!("{address}/")).unwrap_or_default();
        command.args(["--udp-ports", &format!("{address}{}:{}", port.host, port.guest)]);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn fake(dir: &Path, help: &str) -> PathBuf {
        let path = dir.join("passt");
        std::fs::write(&path, format!("#!/bin/sh\necho '{help}' >&2\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn an_old_one_is_named_with_what_it_lacks() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(check(None), Err(PasstError::Missing)));
        let path = fake(dir.path(), "--fd --dns-forward --mac-addr");
        let error = check(Some(&path)).unwrap_err().to_string();
        assert!(error.ends_with("passt has no option --no-map-gw: it is too old"), "{error}");
        let path = fake(dir.path(), &NEEDED.join(" "));
        assert!(check(Some(&path)).is_ok());
        assert!(matches!(check(Some(&dir.path().join("none"))), Err(PasstError::Execute { .. })));
    }

    #[test]
    fn each_family_has_its_options() {
        let mut wanted = Wanted {
            program: "passt".into(),
            v4: true,
            v6: false,
            maps_loopback: false,
            published_udp: vec![UdpPort { host_address: Some([127, 0, 0, 1].into()), host: 5353, guest: 53 }],
        };
        let words = |wanted: &Wanted| {
            command(wanted)
                .get_args()
                .map(|word| word.to_string_lossy().into_owned())
                .collect::<Vec<_>>()
                .join(" ")
        };
        let said = words(&wanted);
        assert!(said.contains("--address 10.0.2.15 --netmask 24"), "{said}");
        assert!(said.contains("--ipv4-only --no-map-gw --udp-ports 127.0.0.1/5353:53"), "{said}");
        (wanted.v4, wanted.v6, wanted.maps_loopback) = (false, true, true);
        let said = words(&wanted);
        assert!(
            said.contains("--ipv6-only --address fd6d:616b:766d::15 --gateway fd6d:616b:766d::2"),
            "{said}"
        );
        assert!(!said.contains("--no-map-gw") && !said.contains("10.0.2"), "{said}");
    }
}
