//! Every path in the product, and nothing that uses one.

use crate::os;
use magikvm_proto::id::PodId;
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Longest name of a pod's directory that is written out in full; a longer one ends in a digest of the whole name.
const MAX_DIR_NAME: usize = 200;

/// Prefix of pods that are being removed: they are renamed first.
pub const TRASH_PREFIX: &str = ".trash-";
/// Prefix of pods that have ended and are being started again, until the new pod runs.
pub const RESTART_PREFIX: &str = ".restart-";

/// Why the place of the state directory is unknown.
#[derive(Debug, thiserror::Error)]
pub enum LayoutError {
    /// An ordinary user without the variables that name the user's directories.
    #[error("cannot tell where to keep pods: neither {0} nor HOME is set")]
    NoHome(&'static str),
}

/// Everything that the layout depends on, so that it can be computed without reading the environment twice.
#[derive(Debug, Default)]
pub struct Surroundings {
    /// `--root DIR`.
    pub root: Option<PathBuf>,
    pub uid: u32,
    /// `XDG_RUNTIME_DIR`.
    pub xdg_runtime_dir: Option<OsString>,
    /// `XDG_DATA_HOME`.
    pub xdg_data_home: Option<OsString>,
    /// `XDG_CONFIG_HOME`.
    pub xdg_config_home: Option<OsString>,
    /// `HOME`.
    pub home: Option<OsString>,
    /// The file of this program.
    pub program: Option<PathBuf>,
}

impl Surroundings {
    /// Reads them from this process's environment.
    pub fn of_process(root: Option<PathBuf>) -> Self {
        let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
        Self {
            root,
            uid: nix::unistd::geteuid().as_raw(),
            xdg_runtime_dir: var("XDG_RUNTIME_DIR"),
            xdg_data_home: var("XDG_DATA_HOME"),
            xdg_config_home: var("XDG_CONFIG_HOME"),
            home: var("HOME"),
            program: std::env::current_exe().ok(),
        }
    }
}

/// The system-wide configuration.
const SYSTEM_CONFIG: &str = "/etc/magikvm";

/// The two roots, `run` for files that a reboot may remove and `data` for files that must stay, and the places of the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    run: PathBuf,
    data: PathBuf,
    /// The first directory that has the file counts.
    config: Vec<PathBuf>,
    /// Guest images of others, for users without one of their own. The first one that is there counts.
    guests: Vec<PathBuf>,
}

/// The system-wide data directory.
const SYSTEM_DATA: &str = "/var/lib/magikvm";

/// The directory above the `bin` of an installed program: `/usr/local` for `/usr/local/bin/magikvm`.
fn prefix(program: &Path) -> Option<&Path> {
    let bin = program.parent()?;
    (bin.file_name()? == "bin").then(|| bin.parent())?
}

/// A program that is installed only for this one, in `libexec/magikvm` of the same prefix.
pub fn helper(name: &str) -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let path = prefix(&program)?.join("libexec/magikvm").join(name);
    path.is_file().then_some(path)
}

impl Layout {
    /// `--root DIR` (`DIR/run`, `DIR/data`, `DIR/etc`); for root `/run/magikvm` (on macOS `/var/run/magikvm`), `/var/lib/magikvm` and `/etc/magikvm`; for
    /// others `$XDG_RUNTIME_DIR/magikvm`, `$XDG_DATA_HOME/magikvm` and `$XDG_CONFIG_HOME/magikvm` (with the usual fallbacks
    /// below `$HOME`), and `/etc/magikvm` for configuration files that are not there.
    pub fn new(around: &Surroundings) -> Result<Self, LayoutError> {
        let installed =
            around.program.as_deref().and_then(prefix).map(|prefix| prefix.join("share/magikvm/guest"));
        let mut guests: Vec<PathBuf> = installed.into_iter().collect();
        if let Some(root) = &around.root {
            let root = std::path::absolute(root).unwrap_or_else(|_| root.clone());
            let config = vec![root.join("etc")];
            return Ok(Self { run: root.join("run"), data: root.join("data"), config, guests });
        }
        if around.uid == 0 {
            let config = vec![SYSTEM_CONFIG.into()];
            return Ok(Self { run: os::SYSTEM_RUN.into(), data: SYSTEM_DATA.into(), config, guests });
        }
        let below_home = |rest: &str| around.home.as_ref().map(|home| Path::new(home).join(rest));
        let data = match &around.xdg_data_home {
            Some(dir) => PathBuf::from(dir),
            None => below_home(".local/share").ok_or(LayoutError::NoHome("XDG_DATA_HOME"))?,
        };
        let run = match &around.xdg_runtime_dir {
            Some(dir) => PathBuf::from(dir),
            None => below_home(".local/state").ok_or(LayoutError::NoHome("XDG_RUNTIME_DIR"))?,
        };
        let own = match &around.xdg_config_home {
            Some(dir) => Some(PathBuf::from(dir)),
            None => below_home(".config"),
        };
        let config = own.map(|dir| dir.join("magikvm")).into_iter().chain([SYSTEM_CONFIG.into()]).collect();
        guests.push(Path::new(SYSTEM_DATA).join("guest"));
        Ok(Self { run: run.join("magikvm"), data: data.join("magikvm"), config, guests })
    }

    /// Directory of all pods.
    pub fn pods(&self) -> PathBuf {
        self.run.join("pods")
    }

    /// The lock that orders reservations of names.
    pub fn reservations(&self) -> PathBuf {
        self.pods().join(".reserve")
    }

    /// The directories beneath which the removal of a pod removes something.
    pub fn removable(&self) -> Vec<PathBuf> {
        let mut all = vec![self.pods(), self.data.join("scratch"), self.all_logs()];
        // Only root gives pods ranges of ids, in a directory that nobody else can look into.
        if nix::unistd::geteuid().is_root() {
            all.push(self.ids());
        }
        all
    }

    /// The ranges of ids that pods with users of their own have: a link for each. They are those of the whole host, whatever the state
    /// directory is.
    #[allow(clippy::unused_self, reason = "every path is asked of the layout")]
    pub fn ids(&self) -> PathBuf {
        Path::new(os::SYSTEM_RUN).join("ids")
    }

    /// The directories in which nobody else may be able to replace anything.
    pub fn trusted(&self) -> Vec<PathBuf> {
        let mut all = self.removable();
        all.push(self.images());
        all.push(self.volumes());
        all.extend(self.config.iter().cloned());
        all
    }

    /// The logs of all pods, on disk: the pods' directories may be in memory.
    pub fn all_logs(&self) -> PathBuf {
        self.data.join("logs")
    }

    /// The logs of the pod with this UID. `log` in the pod's directory is a link to it.
    pub fn logs(&self, uid: &str) -> PathBuf {
        self.all_logs().join(uid)
    }

    pub fn pod(&self, id: &PodId) -> PodDir {
        PodDir { path: self.pods().join(dir_name(id)) }
    }

    pub fn images(&self) -> PathBuf {
        self.data.join("images")
    }

    /// Volumes that survive their pods.
    pub fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }

    pub fn registries(&self) -> PathBuf {
        self.config_file("registries.toml")
    }

    pub fn limits(&self) -> PathBuf {
        self.config_file("limits.toml")
    }

    pub fn policy(&self) -> PathBuf {
        self.config_file("policy.toml")
    }

    /// The directories of seccomp profiles for containers, in the order in which they are searched.
    pub fn seccomp(&self) -> Vec<PathBuf> {
        self.config.iter().map(|dir| dir.join("seccomp")).collect()
    }

    /// The first file that exists, or else the first candidate.
    fn config_file(&self, name: &str) -> PathBuf {
        let mut candidates = self.config.iter().map(|dir| dir.join(name));
        // A file that cannot be accessed is not skipped: reading it will report why.
        let there = candidates.clone().find(|path| path.symlink_metadata().is_ok());
        there.or_else(|| candidates.next()).unwrap_or_default()
    }

    /// Properties of the host that were determined since it booted.
    pub fn verdicts(&self) -> PathBuf {
        self.run.clone()
    }

    /// Unpacked kernels for guests.
    pub fn kernels(&self) -> PathBuf {
        self.data.join("kernels")
    }

    /// Formatted file systems that scratch disks are copied from.
    pub fn templates(&self) -> PathBuf {
        self.data.join("templates")
    }

    /// Files of a running pod (named by UID) that must be on disk, since the pod's directory may be in memory.
    pub fn scratch(&self, uid: &str) -> PathBuf {
        self.data.join("scratch").join(uid)
    }

    /// The guest image that is used when none is named: the one of the data directory, or else the installed one, or for an ordinary user
    /// the one that root has built. Where there is none, the place in the data directory, which messages then name.
    pub fn guest_image(&self) -> PathBuf {
        let own = self.data.join("guest");
        if own.symlink_metadata().is_ok() {
            return own;
        }
        self.guests.iter().find(|guest| guest.is_dir()).cloned().unwrap_or(own)
    }
}

/// `<namespace>_<name>`; neither contains `_`, so two pods never share a directory. Long names end in a digest, since both together may
/// exceed the length of a file name.
pub fn dir_name(id: &PodId) -> String {
    let full = format!("{}_{}", id.namespace, id.name);
    if full.len() <= MAX_DIR_NAME {
        return full;
    }
    let mut short = full[..MAX_DIR_NAME - 33].to_owned();
    short.push('~');
    for byte in &Sha256::digest(full.as_bytes())[..16] {
        // Writing to a String cannot fail.
        write!(short, "{byte:02x}").unwrap_or_default();
    }
    short
}

/// A pod's directory (0700) and its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDir {
    path: PathBuf,
}

impl PodDir {
    /// For a directory found by listing [`Layout::pods`].
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells the directory from a later one of the same name: device and inode.
    pub fn identity(&self) -> std::io::Result<(u64, u64)> {
        let there = self.path.symlink_metadata()?;
        Ok((there.dev(), there.ino()))
    }

    /// Locked as long as the pod's monitor lives.
    pub fn lock(&self) -> PathBuf {
        self.path.join("lock")
    }

    /// The pod's definition, written once.
    pub fn pod_json(&self) -> PathBuf {
        self.path.join("pod.json")
    }

    /// What the pod was run with. Its variables and files may hold what is in Secrets.
    pub fn request_json(&self) -> PathBuf {
        self.path.join("request.json")
    }

    /// The pod's state; the monitor is the only writer.
    pub fn state_json(&self) -> PathBuf {
        self.path.join("state.json")
    }

    pub fn undo(&self) -> PathBuf {
        self.path.join("undo.jsonl")
    }

    pub fn control_sock(&self) -> PathBuf {
        self.path.join(CONTROL_SOCK)
    }

    /// The socket on which the monitor lends connections to the guest.
    pub fn broker_sock(&self) -> PathBuf {
        self.path.join(BROKER_SOCK)
    }

    /// The pod's events, one JSON object a line.
    pub fn events(&self) -> PathBuf {
        self.path.join("events.jsonl")
    }

    /// Container logs and the VM's console: a link to the pod's directory in [`Layout::all_logs`].
    pub fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// A container's log in the CRI log format.
    pub fn container_log(&self, container: &magikvm_proto::id::ContainerName) -> PathBuf {
        self.log().join(format!("{container}.log"))
    }

    /// Files and sockets of a sandbox of namespaces.
    pub fn sandbox(&self) -> PathBuf {
        self.path.join("sandbox")
    }

    /// Disk, sockets and links of the VM.
    pub fn vm(&self) -> PathBuf {
        self.path.join("vm")
    }
}

/// File name of the monitor's socket in the pod's directory.
pub const CONTROL_SOCK: &str = "control.sock";
/// File name of the socket on which the monitor lends connections to the guest, in the pod's directory.
pub const BROKER_SOCK: &str = "connect.sock";
/// File name of the agent's socket in the pod's `vm` directory.
pub const AGENT_SOCK: &str = "agent.sock";
/// File name of the socket for forwarded connections in the same directory, for VMMs that have one socket for each port of the guest.
pub const FORWARD_SOCK: &str = "forward.sock";

#[cfg(test)]
mod tests {
    use super::*;

    fn around(uid: u32) -> Surroundings {
        Surroundings { uid, home: Some("/home/u".into()), ..Surroundings::default() }
    }

    #[test]
    fn the_roots_follow_the_user_the_environment_and_the_flag() {
        assert_eq!(Layout::new(&around(0)).unwrap().pods(), Path::new("/run/magikvm/pods"));
        assert_eq!(Layout::new(&around(0)).unwrap().images(), Path::new("/var/lib/magikvm/images"));
        let user = Layout::new(&around(1000)).unwrap();
        assert_eq!(user.images(), Path::new("/home/u/.local/share/magikvm/images"));
        let mut xdg = around(1000);
        xdg.xdg_runtime_dir = Some("/run/user/1000".into());
        assert_eq!(Layout::new(&xdg).unwrap().pods(), Path::new("/run/user/1000/magikvm/pods"));
        xdg.root = Some("/srv/m".into());
        assert_eq!(Layout::new(&xdg).unwrap().pods(), Path::new("/srv/m/run/pods"));
        assert!(Layout::new(&Surroundings { uid: 1, ..Surroundings::default() }).is_err());
    }

    #[test]
    fn a_guest_image_of_others_serves_who_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let (root, installed) = (dir.path().join("root"), dir.path().join("usr/share/magikvm/guest"));
        let mut surroundings = Surroundings { root: Some(root.clone()), ..around(0) };
        surroundings.program = Some(dir.path().join("usr/bin/magikvm"));
        let layout = Layout::new(&surroundings).unwrap();
        assert_eq!(layout.guest_image(), root.join("data/guest"), "nothing is there");
        std::fs::create_dir_all(&installed).unwrap();
        assert_eq!(layout.guest_image(), installed);
        std::fs::create_dir_all(root.join("data/guest")).unwrap();
        assert_eq!(layout.guest_image(), root.join("data/guest"));
        surroundings.program = Some(dir.path().join("target/debug/magikvm"));
        assert_eq!(Layout::new(&surroundings).unwrap().guests, Vec::<PathBuf>::new());
        let user = Layout::new(&around(1000)).unwrap();
        assert_eq!(user.guests, [Path::new("/var/lib/magikvm/guest")]);
    }

    #[test]
    fn two_pods_never_share_a_directory_and_every_name_fits() {
        let long = "a".repeat(253);
        let other = format!("{}b", "a".repeat(252));
        let layout = Layout::new(&around(0)).unwrap();
        let one = layout.pod(&format!("{}/{long}", "n".repeat(63)).parse().unwrap());
        let two = layout.pod(&format!("{}/{other}", "n".repeat(63)).parse().unwrap());
        assert_ne!(one, two);
        for dir in [&one, &two] {
            assert!(dir.path().file_name().unwrap().len() <= MAX_DIR_NAME);
        }
        let a = layout.pod(&"a/b".parse().unwrap());
        assert_eq!(a.path(), Path::new("/run/magikvm/pods/a_b"));
    }
}
