//! An ordinary user who runs pods in real VMs: the files, the program and, in the lab, an account with subordinate ids and a delegated
//! control group.

use crate::command::Cmd;
use crate::host::program;
use crate::manifest::Pod;
use crate::net::Namespace;
use crate::virtual_machine::{Driver, VmHost, guest_image, in_path};
use serde_json::Value;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// A user ID without an account, without subordinate ids and without a control group.
pub const NO_ACCOUNT: u32 = 54_321;

/// Where an account's subordinate ids begin, and how many there are.
pub const SUBORDINATE: (u32, u32) = (700_000, 65_536);

/// A host whose files belong to an ordinary user, who runs everything. The host's image was imported by root.
#[derive(Debug)]
pub struct Ordinary {
    host: VmHost,
    uid: u32,
    program: PathBuf,
    /// The control group that commands start in.
    group: Option<PathBuf>,
    /// Files that commands see in place of others of the host.
    seen: Vec<(PathBuf, &'static str)>,
}

impl std::ops::Deref for Ordinary {
    type Target = VmHost;

    fn deref(&self) -> &VmHost {
        &self.host
    }
}

impl std::ops::DerefMut for Ordinary {
    fn deref_mut(&mut self) -> &mut VmHost {
        &mut self.host
    }
}

fn copy(from: &Path, to: &Path, mode: u32) {
    fs::copy(from, to).unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    fs::set_permissions(to, fs::Permissions::from_mode(mode)).expect("its mode");
}

impl Ordinary {
    /// Waits for a turn.
    pub fn new(driver: Driver, uid: u32) -> Self {
        let mut host = VmHost::with(driver);
        let (own, guest) = (host.file("magikvm"), host.file("guest"));
        copy(program(), &own, 0o755);
        if !driver.has_vm() {
            let sandbox = "magikvm-containers";
            copy(&program().with_file_name(sandbox), &host.file(sandbox), 0o755);
        } else {
            fs::create_dir(&guest).expect("a new directory");
            for part in ["vmlinux", "initramfs", "manifest.json"] {
                copy(&Path::new(&guest_image()).join(part), &guest.join(part), 0o644);
            }
            host.set_env("MAGIKVM_GUEST", guest.to_string_lossy());
        }
        if driver == Driver::Qemu {
            let vsock = host.file("vhost-device-vsock");
            copy(&in_path("vhost-device-vsock"), &vsock, 0o755);
            host.set_env("MAGIKVM_VHOST_DEVICE_VSOCK", vsock.to_string_lossy());
        }
        let top = host.root().parent().expect("it is in a directory").to_owned();
        Cmd::new("/bin/chown").args(["-R", &format!("{uid}:{uid}")]).arg(top).ok();
        Self { host, uid, program: own, group: None, seen: Vec::new() }
    }

    /// Grants subordinate ids, which only the user's commands see.
    #[must_use]
    pub fn with_subordinate_ids(mut self) -> Self {
        let table = format!("{}:{}:{}\n", self.uid, SUBORDINATE.0, SUBORDINATE.1);
        let passwd = format!("root:x:0:0::/root:/bin/sh\nordinary:x:{0}:{0}::/:/bin/sh\n", self.uid);
        for (path, text) in [("/etc/subuid", &table), ("/etc/subgid", &table), ("/etc/passwd", &passwd)] {
            let own = self.file(path.trim_start_matches("/etc/"));
            fs::write(&own, text).expect("a new file");
            self.seen.push((own, path));
        }
        self
    }

    /// Lets the user's commands see the device that makes network interfaces with these permissions.
    #[must_use]
    pub fn with_interfaces(mut self, mode: &str) -> Self {
        let own = self.file("tun");
        Cmd::new("/usr/bin/mknod").args(["-m", mode]).arg(&own).args(["c", "10", "200"]).ok();
        self.seen.push((own, "/dev/net/tun"));
        self
    }

    /// A user with an account, for the lab only, since it writes to `/etc`.
    pub fn with_account(driver: Driver, name: &str, uid: u32) -> Self {
        assert!(magikvm_lab::is_inside(), "accounts are made in the lab only");
        let user = Self::new(driver, uid);
        let home = user.file("home");
        append("/etc/passwd", &format!("{name}:x:{uid}:{uid}::{}:/bin/sh\n", home.display()));
        append("/etc/group", &format!("{name}:x:{uid}:\n"));
        user
    }

    /// A user with an account, subordinate ids and a delegated control group, who may make network interfaces; for the lab only.
    pub fn with_everything(driver: Driver) -> Self {
        const NAME: &str = "everyman";
        const UID: u32 = 4322;
        let mut user = Self::with_account(driver, NAME, UID);
        for table in ["/etc/subuid", "/etc/subgid"] {
            fs::write(table, format!("{NAME}:{}:{}\n", SUBORDINATE.0, SUBORDINATE.1))
                .expect("write the table");
        }
        fs::set_permissions("/dev/net/tun", fs::Permissions::from_mode(0o666)).expect("its mode");
        user.delegate(NAME);
        user
    }

    /// Delegates a new control group of version 2 to the user. Its commands start in a group beneath it from now on.
    pub fn delegate(&mut self, name: &str) -> PathBuf {
        let top = Path::new("/sys/fs/cgroup").join(name);
        let shell = top.join("shell");
        for dir in [&top, &shell] {
            // The hosts of one lab share it.
            fs::create_dir_all(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
            for file in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                chown(dir.join(file), Some(self.uid), Some(self.uid)).expect("change its owner");
            }
        }
        self.start_in(Some(shell));
        top
    }

    /// Lets commands start in this control group from now on.
    pub fn start_in(&mut self, group: Option<PathBuf>) {
        self.group = group;
    }

    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// A new file or directory of the test's files that belongs to these ids.
    #[track_caller]
    pub fn make(&self, path: &str, owner: u32, content: Option<&str>) -> PathBuf {
        let path = self.file(path);
        match content {
            Some(text) => fs::write(&path, text).expect("a new file"),
            None => fs::create_dir(&path).expect("a new directory"),
        }
        chown(&path, Some(owner), Some(owner)).expect("change its owner");
        path
    }

    /// `magikvm` with these arguments, run by the user.
    pub fn cmd<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Cmd {
        self.become_user(self.host.other("/usr/bin/env"), &self.program).args(args)
    }

    /// Another program, run by the user.
    pub fn other_program(&self, program: &str) -> Cmd {
        self.become_user(self.host.other("/usr/bin/env"), Path::new(program))
    }

    /// The same in a network namespace.
    pub fn cmd_in<A: AsRef<OsStr>>(&self, namespace: &Namespace, args: impl IntoIterator<Item = A>) -> Cmd {
        self.become_user(namespace.enter(self.host.other("nsenter")), &self.program).args(args)
    }

    /// Completes a command that runs the command in its arguments.
    fn become_user(&self, start: Cmd, program: &Path) -> Cmd {
        start.args(self.wrapper(program))
    }

    /// A command that runs a program as the user, with the arguments that follow.
    fn wrapper(&self, program: &Path) -> Vec<OsString> {
        // The mounts are made in a namespace that lasts as long as the processes that the command leaves.
        let script = "test -z \"$0\" || echo $$ >\"$0/cgroup.procs\" || exit 120; \
            while test \"$1\" != --; do mount --bind \"$1\" \"$2\" || exit 120; shift 2; done; shift; exec \"$@\"";
        let own_mounts: &[&str] = if self.seen.is_empty() { &[] } else { &["/usr/bin/unshare", "--mount"] };
        let mut words: Vec<OsString> =
            own_mounts.iter().chain(&["/bin/sh", "-c", script]).map(OsString::from).collect();
        words.push(self.group.clone().unwrap_or_default().into());
        words.extend(self.seen.iter().flat_map(|(own, path)| [own.clone().into(), OsString::from(path)]));
        let ids = [format!("--reuid={}", self.uid), format!("--regid={}", self.uid)];
        words.extend(["--", "/usr/bin/setpriv", &ids[0], &ids[1], "--clear-groups"].map(OsString::from));
        words.push(program.into());
        words
    }

    /// The host alone, on which the user goes on running everything.
    pub fn into_host(self) -> VmHost {
        let wrapper = self.wrapper(&self.program);
        let mut host = self.host;
        host.wrap(wrapper);
        host
    }

    /// `magikvm run` of a pod without a network.
    pub fn run(&self, pod: &Pod) -> Cmd {
        let pod = pod.clone().annotated(crate::virtual_machine::NETWORK, "none");
        self.cmd(["run"]).arg(self.manifest(&self.of_class(pod)))
    }

    /// The pod in the runtime class of the host's driver.
    pub fn of_class(&self, pod: Pod) -> Pod {
        let driver = self.host.driver();
        if driver.has_vm() { pod } else { pod.set("spec/runtimeClassName", driver.class()) }
    }

    /// The annotation with the isolation layers of each process of a pod.
    #[track_caller]
    pub fn layers(&self, pod: &str) -> Value {
        let shown: Value =
            serde_json::from_str(&self.cmd(["inspect", "-o", "json", pod]).ok().stdout).expect("JSON");
        let layers = shown["metadata"]["annotations"]["magikvm.dev/jail"].as_str().expect("the annotation");
        serde_json::from_str(layers).expect("JSON in the annotation")
    }
}

fn append(path: &str, text: &str) {
    use std::io::Write;
    let mut file = fs::File::options().append(true).create(true).open(path).expect(path);
    file.write_all(text.as_bytes()).expect(path);
}
