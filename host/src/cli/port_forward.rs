//! `magikvm port-forward`.

use super::error::{CliError, Kind};
use super::select::OnePod;
use super::{Outcome, ui};
use crate::net::ports::{BindError, Door, allow_files};
use crate::net::relay::{News, Relay};
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::signals;
use crate::store::lock::LockState;
use crate::store::record::{Stage, Transport};
use crate::store::text::chain;
use crate::store::text::ignore;
use crate::store::thread;
use magikvm_proto::id::PodId;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// How often the pod is looked at. Its monitor may be killed, which nothing announces.
const LOOK: Duration = Duration::from_millis(100);
/// How often another free port is tried, when the one that is free at one address is not at the next.
const FREE_PORT_TRIES: usize = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: OnePod,
    /// Local port and port of the pod; one number for both, or `:80` for any free local port
    #[arg(required = true, value_name = "[LOCAL:]REMOTE")]
    ports: Vec<Ports>,
    /// Local addresses to listen on; localhost means 127.0.0.1 and ::1
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',', default_value = "localhost")]
    address: Vec<Address>,
}

/// What a user wants to reach, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    /// 0 for any that is free.
    local: u16,
    remote: u16,
}

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number =
            |text: &str| text.parse::<u16>().map_err(|_| format!("{text:?} is not a port (1 to 65535)"));
        let (local, remote) = match text.split_once(':') {
            None => (number(text)?, number(text)?),
            Some(("", remote)) => (0, number(remote)?),
            Some((local, remote)) => (number(local)?, number(remote)?),
        };
        if remote == 0 { Err("the pod has no port 0".to_owned()) } else { Ok(Self { local, remote }) }
    }
}

/// Where to listen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Address {
    /// The host's loopback addresses of both families, as far as it has them.
    Localhost,
    /// This one.
    Ip(IpAddr),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "localhost" => Ok(Self::Localhost),
            _ => text
                .trim_start_matches('[')
                .trim_end_matches(']')
                .parse()
                .map(Self::Ip)
                .map_err(|_| format!("{text:?} is neither an IP address nor localhost")),
        }
    }
}

impl Address {
    /// Each with whether it must be had.
    fn list(self) -> Vec<(IpAddr, Need)> {
        match self {
            Self::Localhost => {
                vec![(Ipv4Addr::LOCALHOST.into(), Need::Must), (Ipv6Addr::LOCALHOST.into(), Need::IfThere)]
            }
            Self::Ip(ip) => vec![(ip, Need::Must)],
        }
    }
}

/// Whether an address must be one of the host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Need {
    Must,
    IfThere,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let pod = args.target.id(pods)?;
    let found = pods.find(&pod)?;
    let guest = pods.forward(&found, &pod)?;
    allow_files();
    let addresses: Vec<_> = args.address.iter().flat_map(|address| address.list()).collect();
    let mut doors = Vec::new();
    for ports in &args.ports {
        doors.extend(bind(*ports, &addresses).map_err(|error| refused(&error, pods))?);
    }
    let signals = signals::ending();
    let blocked = signals.thread_block().is_ok();
    for door in &doors {
        ui::line(&format!("Forwarding from {} -> {}", door.address, door.port));
    }
    let relay = Relay::start(doors, guest, tell).map_err(|error| CliError::of(Kind::Environment, &error))?;
    let (interrupt, interrupted) = channel();
    if blocked {
        thread::start("signals", move || {
            if signals.wait().is_ok() {
                ignore(interrupt.send(()), "the pod has ended at the same time");
            }
        })?;
    }
    let outcome = loop {
        match interrupted.recv_timeout(LOOK) {
            Ok(()) => break Ok(ExitCode::SUCCESS),
            Err(RecvTimeoutError::Timeout) => {}
            // Signals cannot be waited for: they end this program as usual.
            Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
        }
        if !is_there(pods, &pod)? {
            let ended = CliError::new(Kind::User, format!("pod {} has ended", pod));
            break Err(ended.hint(format!("See how it ended with `magikvm logs {}`.", pod)));
        }
    };
    drop(relay);
    outcome
}

/// Whether the pod still runs, or is paused.
fn is_there(pods: &PodRuntimeInterface, id: &PodId) -> Result<bool, CliError> {
    match pods.find(id) {
        Ok(found) if found.is_lost() => Err(PodError::Lost(id.clone()).into()),
        Ok(found) => {
            let ended = found.state.as_ref().is_none_or(|state| state.stage == Stage::Ended);
            Ok(found.lock == LockState::Held && !ended)
        }
        Err(PodError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn tell(news: News) {
    match news {
        News::Accepted { address } => ui::line(&format!("Handling connection for {}", address.port())),
        News::Failed { port, error } => {
            let text = format!("Error: a connection to port {port} was reset: {}", chain(&error));
            ui::note(&ui::harmless(&text));
        }
    }
}

/// Binds a port at all addresses, a free one at the same number.
fn bind(ports: Ports, addresses: &[(IpAddr, Need)]) -> Result<Vec<Door>, BindError> {
    let mut tries = if ports.local == 0 { FREE_PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        match bind_once(ports, addresses) {
            Err(error) if tries > 0 && error.source.kind() == ErrorKind::AddrInUse => {}
            result => return result,
        }
    }
}

fn bind_once(ports: Ports, addresses: &[(IpAddr, Need)]) -> Result<Vec<Door>, BindError> {
    let mut doors: Vec<Door> = Vec::new();
    for (ip, need) in addresses {
        let local = doors.first().map_or(ports.local, |door| door.address.port());
        match Door::bind(SocketAddr::new(*ip, local), ports.remote) {
            Ok(door) => doors.push(door),
            Err(error) if *need == Need::IfThere && is_not_there(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(doors)
}

/// A machine may have no IPv6.
fn is_not_there(error: &BindError) -> bool {
    error.source.kind() == ErrorKind::AddrNotAvailable
        || error.source.raw_os_error() == Some(nix::libc::EAFNOSUPPORT)
}

fn refused(error: &BindError, pods: &PodRuntimeInterface) -> CliError {
    let failed = CliError::of(Kind::Environment, error);
    match error.source.kind() {
        ErrorKind::AddrInUse => {
            let choice = "Choose another local port, or omit it, as in `:80`, to get any free port.";
            match crate::pod::ports::holder(error.address, Transport::Tcp, pods.layout()) {
                Some(pod) => failed.hint(format!("Pod {pod} has published it. {choice}")),
                None => failed.hint(format!(
                    "See which process uses it with `ss -ltnp 'sport = :{}'`. {choice}",
                    error.address.port()
                )),
            }
        }
        ErrorKind::PermissionDenied => {
            failed.hint("Only root may use ports below 1024. Choose a higher local port, as in `8080:80`.")
        }
        _ => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_understood_as_kubectl_does() {
        let ports = |text: &str| text.parse::<Ports>().map(|ports| (ports.local, ports.remote));
        assert_eq!(ports("8080:80"), Ok((8080, 80)));
        assert_eq!(ports("80"), Ok((80, 80)));
        assert_eq!((ports(":80"), ports("0:80")), (Ok((0, 80)), Ok((0, 80))));
        for wrong in ["", ":", "80:", "0", "80:0", "65536", "a:80", "1:2:3"] {
            assert!(ports(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_are_numbers_or_localhost() {
        assert_eq!("localhost".parse::<Address>(), Ok(Address::Localhost));
        assert_eq!("::1".parse::<Address>(), Ok(Address::Ip(Ipv6Addr::LOCALHOST.into())));
        assert_eq!("[::1]".parse::<Address>(), Ok(Address::Ip(Ipv6Addr::LOCALHOST.into())));
        assert!("example.org".parse::<Address>().is_err());
    }

    #[test]
    fn a_free_port_is_the_same_at_all_addresses() {
        let addresses = Address::Localhost.list();
        let doors = bind(Ports { local: 0, remote: 80 }, &addresses).unwrap();
        assert!(doors.iter().all(|door| door.address.port() == doors[0].address.port() && door.port == 80));
        let taken = Ports { local: doors[0].address.port(), remote: 80 };
        assert_eq!(bind(taken, &addresses).unwrap_err().source.kind(), ErrorKind::AddrInUse);
    }
}
