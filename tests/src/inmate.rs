//! A program that replaces a process in a VM's jail (`programs/inmate.c`).

use crate::host::Host;
use crate::programs::INMATE;
use std::fs;
use std::net::TcpListener;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::{Path, PathBuf};

/// The prefix of each line of its output.
pub const MARK: &str = "inmate: ";

/// The program, and open doors of the host that it must not find. They stay open as long as this value lives.
#[derive(Debug)]
pub struct Inmate {
    program: PathBuf,
    outside: tempfile::TempDir,
    tcp: TcpListener,
    _unix: UnixListener,
}

impl Inmate {
    /// For jails of a host.
    pub fn new(host: &Host) -> Self {
        let program = host.file("inmate");
        // A copy that everybody may execute, for comparison outside of jails.
        let outside = tempfile::Builder::new().prefix("magikvm-inmate-").tempdir().expect("a directory");
        fs::set_permissions(outside.path(), fs::Permissions::from_mode(0o755)).expect("its mode");
        for path in [&program, &outside.path().join("inmate")] {
            write(path);
        }
        let tcp = TcpListener::bind("127.0.0.1:0").expect("a port");
        let name = format!("magikvm-{}", tcp.local_addr().expect("its number").port());
        let address = SocketAddr::from_abstract_name(name).expect("an abstract name");
        let unix = UnixListener::bind_addr(&address).expect("an abstract socket");
        Self { program, outside, tcp, _unix: unix }
    }

    /// For `MAGIKVM_INMATE`.
    pub fn instead_of(&self, process: &str, arguments: &[String]) -> String {
        format!("{process}|{}|{}", self.program.display(), arguments.join("|"))
    }

    /// Outside of any jail.
    pub fn outside(&self) -> PathBuf {
        self.outside.path().join("inmate")
    }

    /// Arguments for trying everything.
    pub fn isolation_arguments(&self, host: &Host) -> Vec<String> {
        let secret = host.file("secret");
        fs::write(&secret, "a secret").expect("write it");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o666)).expect("its mode");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        vec![
            "isolation".to_owned(),
            text(&secret),
            text(&host.root().join("run/pods")),
            text(&host.root().join("data/images")),
            self.tcp.local_addr().expect("its number").port().to_string(),
            std::process::id().to_string(),
        ]
    }
}

fn write(path: &Path) {
    if !path.exists() {
        fs::write(path, INMATE).expect("write the program");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("its mode");
    }
}
