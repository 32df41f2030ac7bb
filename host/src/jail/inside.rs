//! The side of the process that enters a jail: it builds the layers around itself one after the other, and then executes a program or
//! continues in this one. It has one thread until the end, and everything it reads was written by this program.
#![allow(
    unsafe_code,
    reason = "clone, descriptors by their numbers, and calls without a function in the C library"
)]

use super::channel::{Channel, FromInside, FromOutside};
use super::failed::{Failed, at, step};
use super::files::Root;
use super::spec::{HostNetwork, Identity, Inside, JailSpec};
use super::{caps, filter, landlock};
use crate::process::{Layer, Layers};
use crate::store::text::ignore;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
use std::ffi::CString;
use std::fs;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// How much more likely than others this process is to be killed when memory is short (of 1000).
const OOM_SCORE: &str = "500";
/// Disables core dumps: 0 would still start a program that receives them; 1 is the kernel's sign for none at all.
const NO_CORE: u64 = 1;
/// The signal that `clone` sends to the parent at the child's end.
const EXIT_SIGNAL: libc::c_long = libc::SIGCHLD as libc::c_long;

/// The main function of the verb [`super::JAIL_VERB`]. Returns the verb to continue with, or an exit code.
pub fn enter() -> Result<String, i32> {
    let number: Option<RawFd> = std::env::args().nth(2).and_then(|number| number.parse().ok());
    let number = number.filter(|&number| number >= super::outside::FIRST_TRANSFER).ok_or(2)?;
    // SAFETY: it was handed over under this number; if nothing was, its first use fails.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&socket, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).map_err(|_| 2)?;
    let mut channel = Channel::over(socket).map_err(|_| 2)?;
    let Ok(Some(spec)) = channel.receive::<JailSpec>() else { return Err(2) };
    let mut builder = Builder { spec: &spec, channel, layers: Layers::default(), is_privileged: false };
    match builder.build() {
        Ok(verb) => Ok(verb),
        Err(Failed { step, path, errno }) => {
            let told = builder.channel.send(&FromInside::Failed { step, path, errno }, None);
            ignore(told, "nobody listens any more");
            Err(70)
        }
    }
}

struct Builder<'a> {
    spec: &'a JailSpec,
    channel: Channel,
    layers: Layers,
    /// Whether the layers are built with the rights of root, and not with those of a user namespace.
    is_privileged: bool,
}

impl Builder<'_> {
    fn build(&mut self) -> Result<String, Failed> {
        self.join_cgroup();
        // Written through the host's /proc, before that is gone.
        self.set_oom_score();
        let has_files = self.own_namespaces()?;
        if has_files {
            self.own_files()?;
        } else {
            step("go to its directory", nix::unistd::chdir(&self.spec.working_dir))?;
        }
        self.limit()?;
        self.own_identity()?;
        self.drop_capabilities()?;
        match landlock::restrict(self.spec, &landlock::programs(self.spec)) {
            Ok(()) => self.layers.have(Layer::Landlock),
            Err(why) => self.layers.miss(Layer::Landlock, why),
        }
        // Last, because every change of ids clears the request.
        step("ask to die with its parent", prctl::set_pdeathsig(Signal::SIGKILL))?;
        step("hide from debuggers", prctl::set_dumpable(false))?;
        let lists = filter::lists(self.spec);
        match &lists {
            Ok(_) => self.layers.have(Layer::Syscalls),
            Err(why) => self.layers.miss(Layer::Syscalls, why.clone()),
        }
        self.layers.had.sort_unstable();
        let layers = std::mem::take(&mut self.layers);
        self.say(&FromInside::Walled { layers })?;
        // Whoever answers was alive after the request to die with the parent; and a missing answer is also an answer.
        if !matches!(self.hear()?, FromOutside::Go) {
            return Err(Failed::new("go on", None, Errno::ECANCELED));
        }
        self.hand_over(lists.ok())
    }

    fn say(&self, message: &FromInside) -> Result<(), Failed> {
        step("talk to its parent", self.channel.send(message, None))
    }

    fn hear(&mut self) -> Result<FromOutside, Failed> {
        let heard = step("hear its parent", self.channel.receive())?;
        heard.ok_or_else(|| Failed::new("hear its parent", None, Errno::EPIPE))
    }

    fn miss(&mut self, layer: Layer, what: &str, why: Errno) {
        self.layers.miss(layer, format!("{what}: {why}"));
    }

    fn join_cgroup(&mut self) {
        match &self.spec.cgroup {
            Ok(cgroup) => {
                let join = |dir: &PathBuf| {
                    fs::write(dir.join("cgroup.procs"), "0")
                        .map_err(|error| format!("cannot join {}: {error}", dir.display()))
                };
                match cgroup.dirs.iter().try_for_each(join) {
                    Ok(()) => self.layers.have(Layer::Cgroup),
                    Err(why) => self.layers.miss(Layer::Cgroup, why),
                }
            }
            Err(why) => self.layers.miss(Layer::Cgroup, why.clone()),
        }
    }

    /// Enters the available private namespaces. Returns whether one of them is for mounts.
    fn own_namespaces(&mut self) -> Result<bool, Failed> {
        let is_root = nix::unistd::geteuid().is_root();
        let wants_rights = matches!(self.spec.identity, Identity::Nobody(_) | Identity::FileServer);
        let mut has_files = Err(Errno::EPERM);
        if is_root && wants_rights {
            has_files = unshare(CloneFlags::CLONE_NEWNS);
            self.is_privileged = has_files.is_ok();
        }
        if !self.is_privileged {
            match unshare(CloneFlags::CLONE_NEWUSER) {
                Ok(()) => {
                    self.map_ids()?;
                    has_files = unshare(CloneFlags::CLONE_NEWNS);
                    match &self.spec.identity {
                        Identity::Caller(Some(why)) => self.layers.miss(Layer::User, why.clone()),
                        _ => self.layers.have(Layer::User),
                    }
                }
                Err(errno) => {
                    self.miss(Layer::User, "no user namespace can be made", errno);
                    has_files = Err(errno);
                }
            }
        }
        self.namespace(Layer::Ipc, CloneFlags::CLONE_NEWIPC);
        if self.namespace(Layer::Hostname, CloneFlags::CLONE_NEWUTS)
            && nix::unistd::sethostname("jail").is_err()
        {
            // It is then the host's name, which cannot be changed.
        }
        if self.spec.network == HostNetwork::None {
            self.namespace(Layer::Network, CloneFlags::CLONE_NEWNET);
        }
        if self.namespace(Layer::Processes, CloneFlags::CLONE_NEWPID) {
            self.become_first()?;
        }
        match has_files {
            Ok(()) => Ok(true),
            Err(errno) => {
                self.miss(Layer::Files, "no mount namespace can be made", errno);
                Ok(false)
            }
        }
    }

    fn namespace(&mut self, layer: Layer, flag: CloneFlags) -> bool {
        match unshare(flag) {
            Ok(()) => self.layers.have(layer),
            Err(errno) => {
                self.miss(layer, "no namespace can be made", errno);
                return false;
            }
        }
        true
    }

    /// The first process of a process namespace is a new one. It is a child of this process's parent and continues in its place.
    fn become_first(&mut self) -> Result<(), Failed> {
        // SAFETY: without shared memory and without a stack this is fork, and this process has one thread.
        let pid = unsafe {
            libc::syscall(
                libc::SYS_clone,
                libc::c_long::from(libc::CLONE_PARENT) | EXIT_SIGNAL,
                0 as libc::c_long,
                0 as libc::c_long,
                0 as libc::c_long,
                0 as libc::c_long,
            )
        };
        match step("be the first process", Errno::result(pid))? {
            0 => {
                let pid = self.outer_pid()?;
                self.say(&FromInside::Forked { pid })
            }
            // SAFETY: nothing may run here twice.
            _ => unsafe { libc::_exit(0) },
        }
    }

    /// The process id outside: `/proc` is still the outside's.
    fn outer_pid(&self) -> Result<i32, Failed> {
        let name = at("read", Path::new("/proc/self"), fs::read_link("/proc/self"))?;
        let number = name.to_str().and_then(|name| name.parse().ok());
        number.ok_or_else(|| Failed::new("read", Some(Path::new("/proc/self")), Errno::EINVAL))
    }

    fn map_ids(&mut self) -> Result<(), Failed> {
        self.say(&FromInside::Ids)?;
        match self.hear()? {
            FromOutside::Mapped { failure: None } => Ok(()),
            FromOutside::Mapped { failure: Some(why) } => {
                Err(Failed { step: format!("map ids ({why})"), path: None, errno: libc::EPERM })
            }
            FromOutside::Go => Err(Failed::new("map ids", None, Errno::EPROTO)),
        }
    }

    fn own_files(&mut self) -> Result<(), Failed> {
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        if let Err(errno) = mount(None::<&str>, "/", None::<&str>, private, None::<&str>) {
            self.miss(Layer::Files, "no private mounts", errno);
            return step("go to its directory", nix::unistd::chdir(&self.spec.working_dir));
        }
        let root = Root::collect(self.spec)?;
        // Everybody may pass the directories on the way to the given files.
        let mode = umask(Mode::from_bits_truncate(0o022));
        let entered = root.enter(self.spec);
        umask(mode);
        entered?;
        self.layers.have(Layer::Files);
        at("go to", &self.spec.working_dir, nix::unistd::chdir(&self.spec.working_dir))
    }

    fn set_oom_score(&self) {
        let written = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
        ignore(written, "it is then as likely to be killed as others");
    }

    fn limit(&mut self) -> Result<(), Failed> {
        let mut wanted = vec![
            ("open files", Resource::RLIMIT_NOFILE, self.spec.limits.open_files),
            ("core dumps", Resource::RLIMIT_CORE, NO_CORE),
            ("locked memory", Resource::RLIMIT_MEMLOCK, 0),
            ("message queues", Resource::RLIMIT_MSGQUEUE, 0),
        ];
        // The limit counts all processes of a user, so it is meaningful only for a private user.
        if matches!(self.spec.identity, Identity::Nobody(_)) {
            wanted.push(("processes", Resource::RLIMIT_NPROC, self.spec.limits.pids));
        }
        for (what, resource, value) in wanted {
            let set = getrlimit(resource).and_then(|(_, most)| {
                let value = value.min(most);
                setrlimit(resource, value, value)
            });
            step(&format!("limit its {what}"), set)?;
        }
        self.layers.have(Layer::Limits);
        Ok(())
    }

    fn own_identity(&mut self) -> Result<(), Failed> {
        match self.spec.identity {
            Identity::Nobody(user) if self.is_privileged => {
                let (uid, gid) = (Uid::from_raw(user.id()), Gid::from_raw(user.id()));
                step("leave its groups", setgroups(&self.device_groups()))?;
                step("be another group", setresgid(gid, gid, gid))?;
                step("keep its capabilities", caps::keep(true))?;
                step("be another user", setresuid(uid, uid, uid))?;
                step("raise its capabilities", caps::raise())?;
                // Otherwise its files in /proc would belong to root. Root maps its ids in any case.
                match unshare(CloneFlags::CLONE_NEWUSER) {
                    Ok(()) => {
                        self.map_ids()?;
                        self.layers.have(Layer::User);
                    }
                    Err(errno) => self.miss(Layer::User, "no user namespace can be made", errno),
                }
            }
            Identity::FileServer if self.is_privileged => match unshare(CloneFlags::CLONE_NEWUSER) {
                Ok(()) => {
                    self.map_ids()?;
                    self.layers.have(Layer::User);
                }
                Err(errno) => self.miss(Layer::User, "no user namespace can be made", errno),
            },
            Identity::FileServer => {
                // The ids are already mapped; without a user namespace the process keeps its identity.
                let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
                if self.layers.had.contains(&Layer::User) {
                    step("become root of its user namespace", setresgid(gid, gid, gid))?;
                    step("become root of its user namespace", setresuid(uid, uid, uid))?;
                    step("raise its capabilities", caps::raise())?;
                }
            }
            Identity::Nobody(_) => return Err(Failed::new("be another user", None, Errno::EPERM)),
            Identity::Caller(_) => {}
        }
        Ok(())
    }

    /// The groups of devices that are the host's nodes.
    fn device_groups(&self) -> Vec<Gid> {
        use std::os::unix::fs::MetadataExt;
        let group = |device: &PathBuf| {
            let meta = fs::metadata(device).ok()?;
            (meta.gid() != 0 && meta.mode() & 0o060 == 0o060).then(|| Gid::from_raw(meta.gid()))
        };
        self.spec.devices.iter().filter_map(group).collect()
    }

    fn drop_capabilities(&mut self) -> Result<(), Failed> {
        let keep = match self.spec.identity {
            Identity::FileServer => caps::OF_FILE_SERVERS,
            Identity::Nobody(_) | Identity::Caller(_) => 0,
        };
        // An ordinary user without a user namespace has none to drop and may not change the bounding set.
        step("raise its capabilities", caps::raise())?;
        if step("count its capabilities", caps::permitted())? & (1 << caps::SETPCAP.0) != 0 {
            step("bound its capabilities", caps::bound(keep))?;
            step("be root without rights", caps::lock_root())?;
        }
        let kept = keep & step("count its capabilities", caps::permitted())?;
        step("drop its capabilities", caps::set(kept))?;
        self.layers.kept = caps::names(kept);
        step("have no new privileges", caps::no_new_privileges())?;
        self.layers.have(Layer::Capabilities);
        Ok(())
    }

    /// Installs the last layer, which would prevent building any other, and then starts the program.
    fn hand_over(&mut self, lists: Option<filter::Lists>) -> Result<String, Failed> {
        let spec = self.spec;
        let program = match &spec.inside {
            Inside::Program { path, arguments } => Some(Execution::of(path, arguments)?),
            Inside::Verb(_) => None,
        };
        for descriptor in &spec.descriptors {
            // SAFETY: it takes numbers, and this process owns only the first four of those below 64.
            let given = Errno::result(unsafe { libc::dup2(descriptor.here, descriptor.there) });
            step("hand a descriptor over", given)?;
        }
        close_others(
            &spec.descriptors.iter().map(|one| one.there).collect::<Vec<_>>(),
            self.channel.number(),
        )?;
        if let Some(lists) = lists {
            let listener = step("install the list of system calls", lists.install())?;
            let listener = listener.as_ref().map(std::os::fd::AsFd::as_fd);
            step("talk to its parent", self.channel.send(&FromInside::Filtered, listener))?;
        }
        match (program, &spec.inside) {
            (Some(program), Inside::Program { path, .. }) => at("execute", path, Err(program.execute())),
            (_, Inside::Verb(verb)) => Ok(verb.clone()),
            (None, Inside::Program { path, .. }) => Err(Failed::new("execute", Some(path), Errno::EINVAL)),
        }
    }
}

/// The arguments of `execve`, prepared before the filter is installed.
struct Execution {
    path: CString,
    arguments: Vec<CString>,
}

impl Execution {
    fn of(path: &Path, arguments: &[String]) -> Result<Self, Failed> {
        let text =
            |bytes: &[u8]| CString::new(bytes).map_err(|_| Failed::new("execute", Some(path), Errno::EINVAL));
        let path_text = text(path.as_os_str().as_bytes())?;
        let arguments: Result<Vec<CString>, Failed> =
            arguments.iter().map(|argument| text(argument.as_bytes())).collect();
        let arguments = std::iter::once(path_text.clone()).chain(arguments?).collect();
        Ok(Self { path: path_text, arguments })
    }

    /// Returns only on failure.
    fn execute(&self) -> Errno {
        // This program ignores the signal from its start, and others do not expect that.
        // SAFETY: no handler is installed.
        if let Err(errno) = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) } {
            return errno;
        }
        let nothing: [CString; 0] = [];
        match nix::unistd::execve(&self.path, &self.arguments, &nothing) {
            Ok(never) => match never {},
            Err(errno) => errno,
        }
    }
}

/// Closes all descriptors but the first four, these, and the channel's, which has a higher number than all of them.
fn close_others(keep: &[RawFd], channel: RawFd) -> Result<(), Failed> {
    let mut keep: Vec<RawFd> = keep.iter().copied().chain([0, 1, 2, 3, channel]).collect();
    keep.sort_unstable();
    keep.dedup();
    let mut from = 0;
    for number in keep.into_iter().chain([RawFd::MAX]) {
        if from < number {
            // SAFETY: it takes numbers; the closed descriptors have no owner in this process any more.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, from, number - 1, 0) };
            match Errno::result(closed) {
                Err(Errno::ENOSYS) => close_each(from, number.min(1 << 16)),
                closed => drop(step("close descriptors", closed)?),
            }
        }
        from = number.saturating_add(1);
    }
    Ok(())
}

/// For kernels before 5.9.
fn close_each(from: RawFd, to: RawFd) {
    for number in from..to {
        // SAFETY: as above.
        unsafe { libc::close(number) };
    }
}
