//! This machine as the checks see it: files below one directory (`/`, or a test's own), programs, and whose process this is. Decides nothing.
#![cfg_attr(target_os = "macos", allow(dead_code, reason = "what is looked at on Linux only"))]

use nix::errno::Errno;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Bytes of a file that are read. The first processor of /proc/cpuinfo is all that counts.
const MAX_READ: u64 = 256 << 10;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum User {
    Root,
    Ordinary { uid: u32, name: String },
}

/// /dev/kvm, before anything is run on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum KvmDevice {
    Missing,
    Forbidden(Forbidden),
    /// It can be opened, or fails for a reason of its own.
    There,
}

/// Why it may not be opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Forbidden {
    /// The user is not in its group.
    NotInGroup(String),
    /// He is, but not yet when this session began.
    NotSinceLogin(String),
    /// Its group has no right either.
    NoGroup,
    /// The kernel refuses whatever the mode says, as in containers.
    Container,
}

/// Families of Linux distributions, by how something is installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    Debian,
    Fedora,
    Arch,
    Other,
}

/// Names of a package.
#[derive(Debug, Clone, Copy)]
pub(super) struct Package {
    /// What it is called by those who make it.
    pub(super) name: &'static str,
    pub(super) debian: Option<&'static str>,
    pub(super) fedora: Option<&'static str>,
    pub(super) arch: Option<&'static str>,
    pub(super) source: &'static str,
}

#[derive(Debug)]
pub(super) struct Host {
    pub(super) root: PathBuf,
    pub(super) search: Vec<PathBuf>,
    pub(super) user: User,
    pub(super) program: PathBuf,
    pub(super) arch: &'static str,
}

impl Host {
    pub(super) fn of_process() -> Self {
        let uid = nix::unistd::geteuid();
        let name = || nix::unistd::User::from_uid(uid).ok().flatten().map(|user| user.name);
        Self {
            root: PathBuf::from("/"),
            search: std::env::var_os("PATH").iter().flat_map(std::env::split_paths).collect(),
            user: if uid.is_root() {
                User::Root
            } else {
                User::Ordinary { uid: uid.as_raw(), name: name().unwrap_or_else(|| uid.to_string()) }
            },
            program: std::env::current_exe().unwrap_or_else(|_| PathBuf::from("magikvm")),
            arch: std::env::consts::ARCH,
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    pub(super) fn exists(&self, path: &str) -> bool {
        self.at(path).exists()
    }

    /// The trimmed content of a file; `None` if it cannot be read.
    pub(super) fn read(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        File::open(self.at(path)).ok()?.take(MAX_READ).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// Whether the user owns it.
    pub(super) fn owns(&self, path: &str) -> bool {
        let owner = fs::metadata(self.at(path)).map(|meta| meta.uid());
        match &self.user {
            User::Root => owner.is_ok(),
            User::Ordinary { uid, .. } => owner.is_ok_and(|owner| owner == *uid),
        }
    }

    /// A program in `PATH`.
    pub(super) fn find(&self, program: &str) -> Option<PathBuf> {
        self.search.iter().map(|dir| dir.join(program)).find(|path| is_program(path))
    }

    /// To put before commands that need root.
    pub(super) fn sudo(&self) -> &'static str {
        match self.user {
            User::Root => "",
            User::Ordinary { .. } => "sudo ",
        }
    }

    /// How a package gets here.
    pub(super) fn install(&self, package: &Package) -> String {
        let (command, name) = match self.family() {
            Family::Debian => ("apt-get install", package.debian),
            Family::Fedora => ("dnf install", package.fedora),
            Family::Arch => ("pacman -S", package.arch),
            Family::Other => ("", None),
        };
        match name {
            Some(name) => format!("run `{}{command} {name}`", self.sudo()),
            None => format!("install {} ({})", package.name, package.source),
        }
    }

    fn family(&self) -> Family {
        let text = self.read("/etc/os-release").unwrap_or_default();
        let values =
            text.lines().filter_map(|line| line.strip_prefix("ID=").or(line.strip_prefix("ID_LIKE=")));
        let words = values.flat_map(|value| value.trim_matches(['"', '\'']).split_whitespace());
        let known = words.filter_map(|word| match word {
            "debian" | "ubuntu" => Some(Family::Debian),
            "fedora" | "rhel" | "centos" => Some(Family::Fedora),
            "arch" => Some(Family::Arch),
            _ => None,
        });
        known.into_iter().next().unwrap_or(Family::Other)
    }

    /// Whether this is a container of another program.
    pub(super) fn is_container(&self) -> bool {
        ["/run/.containerenv", "/.dockerenv", "/run/systemd/container"].iter().any(|path| self.exists(path))
    }

    /// The vendor of the host, as its firmware reports it; empty if there is no such table.
    pub(super) fn maker(&self) -> String {
        let part = |name| self.read(&format!("/sys/class/dmi/id/{name}")).unwrap_or_default();
        format!("{} {}", part("sys_vendor"), part("product_name")).trim().to_owned()
    }

    pub(super) fn kvm(&self) -> KvmDevice {
        let path = self.at("/dev/kvm");
        let error = match File::options().read(true).write(true).open(&path) {
            Ok(_) => return KvmDevice::There,
            Err(error) => Errno::from_raw(error.raw_os_error().unwrap_or(0)),
        };
        match error {
            Errno::ENOENT | Errno::ENODEV | Errno::ENXIO => KvmDevice::Missing,
            Errno::EPERM => KvmDevice::Forbidden(Forbidden::Container),
            Errno::EACCES => KvmDevice::Forbidden(self.why_forbidden(&path)),
            _ => KvmDevice::There,
        }
    }

    fn why_forbidden(&self, path: &Path) -> Forbidden {
        const READ_WRITE: u32 = 0o060;
        let Ok(meta) = fs::metadata(path) else { return Forbidden::NoGroup };
        // Root's own group is nothing to put users into.
        if meta.gid() == 0 || meta.mode() & READ_WRITE != READ_WRITE {
            return Forbidden::NoGroup;
        }
        let group = nix::unistd::Group::from_gid(nix::unistd::Gid::from_raw(meta.gid())).ok().flatten();
        match (group, &self.user) {
            (Some(group), User::Ordinary { name, .. }) if group.mem.contains(name) => {
                Forbidden::NotSinceLogin(group.name)
            }
            (Some(group), _) => Forbidden::NotInGroup(group.name),
            (None, _) => Forbidden::NoGroup,
        }
    }
}

fn is_program(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A machine made of files.
    pub(in crate::cli::doctor) struct Fake {
        dir: tempfile::TempDir,
        pub(in crate::cli::doctor) host: Host,
    }

    impl Fake {
        pub(in crate::cli::doctor) fn new(files: &[(&str, &str)]) -> Self {
            let dir = tempfile::tempdir().unwrap();
            let host = Host {
                root: dir.path().to_owned(),
                search: vec![dir.path().join("usr/bin")],
                user: User::Root,
                program: PathBuf::from("/usr/bin/magikvm"),
                arch: "x86_64",
            };
            let fake = Self { dir, host };
            for (path, text) in files {
                fake.put(path, text);
            }
            fake
        }

        /// Where somebody else works, who owns the files.
        pub(in crate::cli::doctor) fn of_user(files: &[(&str, &str)]) -> Self {
            let mut fake = Self::new(files);
            let uid = nix::unistd::geteuid().as_raw();
            fake.host.user = User::Ordinary { uid, name: "ada".to_owned() };
            fake
        }

        /// Like [`Self::of_user`], whose files are somebody else's.
        pub(in crate::cli::doctor) fn of_other_user(files: &[(&str, &str)]) -> Self {
            let mut fake = Self::new(files);
            let uid = nix::unistd::geteuid().as_raw() + 1;
            fake.host.user = User::Ordinary { uid, name: "ada".to_owned() };
            fake
        }

        pub(in crate::cli::doctor) fn put(&self, path: &str, text: &str) {
            let path = self.dir.path().join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }

        pub(in crate::cli::doctor) fn program(&self, name: &str) {
            self.put(&format!("/usr/bin/{name}"), "#!/bin/true\n");
            let path = self.dir.path().join("usr/bin").join(name);
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }

    const TOOL: Package = Package {
        name: "tool",
        debian: Some("tool-deb"),
        fedora: Some("tool-rpm"),
        arch: None,
        source: "https://tool.example",
    };

    #[test]
    fn packages_have_the_names_of_the_distribution_and_root_needs_no_sudo() {
        let install = |text: &str| Fake::new(&[("/etc/os-release", text)]).host.install(&TOOL);
        assert_eq!(install("NAME=\"Debian\"\nID=debian\n"), "run `apt-get install tool-deb`");
        assert_eq!(install("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"), "run `apt-get install tool-deb`");
        assert_eq!(
            install("ID=\"almalinux\"\nID_LIKE=\"rhel centos fedora\"\n"),
            "run `dnf install tool-rpm`"
        );
        assert_eq!(install("ID=arch\n"), "install tool (https://tool.example)");
        assert_eq!(install("ID=nixos\n"), "install tool (https://tool.example)");
        let fake = Fake::of_user(&[("/etc/os-release", "ID=debian")]);
        assert_eq!(fake.host.install(&TOOL), "run `sudo apt-get install tool-deb`");
    }

    #[test]
    fn a_program_is_a_file_that_may_be_executed() {
        let fake = Fake::new(&[("/usr/bin/text", "")]);
        fake.program("passt");
        assert_eq!(fake.host.find("passt"), Some(fake.dir.path().join("usr/bin/passt")));
        assert_eq!((fake.host.find("text"), fake.host.find("bin")), (None, None));
    }

    #[test]
    fn the_device_is_missing_or_there() {
        assert_eq!(Fake::new(&[]).host.kvm(), KvmDevice::Missing);
        assert_eq!(Fake::new(&[("/dev/kvm", "")]).host.kvm(), KvmDevice::There);
    }
}
