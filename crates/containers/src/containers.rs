//! The containers of one pod, for the supervisor. Must not know: the host, and who made the namespaces that this process is in.

use crate::cgroup::{Cgroup, CgroupError, Hierarchies, Tree};
use crate::message;
use crate::reaper::Reaper;
use crate::spawner::client::{Deadline, Pending, Spawner};
use crate::spawner::{self, Context, SpawnerError};
use crate::sys::{self, Users};
use crate::user::IdMaps;
use magikvm_proto::id::ContainerName;
use magikvm_proto::plan::ProcessNamespace;
use magikvm_proto::security::PodLimits;
use magikvm_proto::site::Site;
use magikvm_proto::wire::{ContainerStats, ExitStatus};
use magikvm_supervisor::sync::lock;
use magikvm_supervisor::{
    Broken, Containers, CreateOrder, Created, Ended, ExecOrder, Failure, FailureKind, Gone, Process, Subject,
};
use std::collections::HashMap;
use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Instant;

/// Why containers can't be made.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Spawner(#[from] SpawnerError),
}

/// The helpers of the supervisor, as it names them to users.
const SPAWNER: &str = "the process that makes containers (spawner)";
const NAMESPACE: &str = "the process that holds the pod's process namespace";

/// Who makes the pod's control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodCgroup {
    /// [`LinuxContainers::start`].
    Make,
    /// Somebody with more rights has made it and handed it over.
    Made,
    /// Nobody: the pod has none, and nothing of it is limited.
    Absent,
}

/// The containers of one pod.
pub struct LinuxContainers {
    site: Site,
    tree: Tree,
    spawner: Spawner,
    reaper: Arc<Reaper>,
    note: fn(&str),
    /// Process that holds the PID namespace shared by all containers, if they share one.
    namespace: OnceLock<i32>,
    broken: OnceLock<Arc<Broken>>,
    /// The first process of each container's latest run.
    first: Mutex<HashMap<ContainerName, Arc<PidFd>>>,
    /// The first process of each exec, where no group holds its processes.
    execs: Mutex<HashMap<u64, Arc<PidFd>>>,
    /// The groups of ended execs that have left processes in the background.
    occupied: Mutex<Vec<Cgroup>>,
}

/// A pidfd: it never refers to another process, even if the process id is reused.
#[derive(Debug)]
struct PidFd(OwnedFd);

impl Process for PidFd {
    fn signal(&self, number: i32) -> io::Result<()> {
        Ok(sys::pidfd_signal(&self.0, number)?)
    }
}

impl fmt::Debug for LinuxContainers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LinuxContainers")
            .field("site", &self.site)
            .field("reaper", &self.reaper)
            .finish_non_exhaustive()
    }
}

impl LinuxContainers {
    /// Makes the pod's control group, if wanted, and forks the process that makes all containers. Must be called before the first thread of the
    /// process. `note` writes one line to the log; `forked` is called first in each forked copy.
    pub fn start(site: Site, group: PodCgroup, note: fn(&str), forked: fn()) -> Result<Self, StartError> {
        let hierarchies = match group {
            PodCgroup::Make | PodCgroup::Made => Hierarchies::detect()?,
            PodCgroup::Absent => Hierarchies::NONE,
        };
        let tree = Tree::new(hierarchies, &site.cgroup);
        if group == PodCgroup::Make {
            tree.make().map_err(|error| CgroupError::Make(site.cgroup.clone(), error))?;
        }
        let users = if sys::is_in_user_namespace() { Users::Own } else { Users::Host };
        let ids = IdMaps::of_this_process();
        let context = Context { site: site.clone(), tree: tree.clone(), users, ids, note };
        let spawner = spawner::start(&context, forked)?;
        Ok(Self {
            site,
            tree,
            spawner,
            reaper: Arc::default(),
            note,
            namespace: OnceLock::new(),
            broken: OnceLock::new(),
            first: Mutex::default(),
            execs: Mutex::default(),
            occupied: Mutex::default(),
        })
    }

    /// Makes the PID namespace that all containers share, if the plan wants one. Must be called at most once, before the first container is
    /// made.
    pub fn share(&self, processes: ProcessNamespace) -> Result<(), Failure> {
        if processes == ProcessNamespace::Pod {
            self.namespace.set(self.spawner.namespace()?).ok();
        }
        Ok(())
    }

    /// Limits what all containers may use together. Must be called before the first container is made.
    pub fn limit(&self, limits: &PodLimits) -> io::Result<()> {
        if self.tree.is_there() { self.tree.limit(limits) } else { Ok(()) }
    }

    fn processes(&self) -> ProcessNamespace {
        match self.namespace.get() {
            Some(_) => ProcessNamespace::Pod,
            None => ProcessNamespace::PerContainer,
        }
    }

    fn group(&self, subject: Subject<'_>) -> Cgroup {
        match subject {
            Subject::Container(name) => self.tree.container(name),
            Subject::Exec { container, id } => self.tree.exec(container, id),
        }
    }

    /// Removes the groups of earlier execs whose last process has ended since.
    fn remove_deserted(&self) {
        lock(&self.occupied).retain(|group| {
            let is_empty = group.wait_empty(Instant::now());
            if is_empty {
                group.remove();
            }
            !is_empty
        });
    }

    /// If the holder of the shared process namespace is killed, then the kernel kills all processes in it, and the holder ends last. Its death is the
    /// cause of theirs, so that it is told first.
    fn after_namespace(&self, ended: Ended) -> Ended {
        let (Some(&pid), Some(broken)) = (self.namespace.get(), self.broken.get().cloned()) else {
            return ended;
        };
        Box::new(move |exit| {
            if exit.signal == Some(libc::SIGKILL) && sys::is_ending(pid) {
                broken(NAMESPACE, exit);
            }
            ended(exit);
        })
    }

    fn created(&self, pending: Pending, ended: Ended) -> (Created, Arc<PidFd>) {
        let Pending { channel, pid, pidfd, deadline, terminal } = pending;
        // Watched before the order to start, so that no end is lost (see `spawner`).
        self.reaper.watch(pid, self.after_namespace(ended));
        let process = Arc::new(PidFd(pidfd));
        let start = Box::new(move || {
            spawner::client::start(&channel, Some(deadline.unwrap_or_else(Deadline::of_start)))
        });
        (Created { pid, process: Arc::clone(&process) as Arc<dyn Process>, terminal, start }, process)
    }
}

impl Containers for LinuxContainers {
    fn begin(&self, broken: Broken) -> io::Result<()> {
        let broken = self.broken.get_or_init(|| Arc::new(broken));
        let watch = |pid: i32, what: &'static str| {
            let broken = Arc::clone(broken);
            self.reaper.watch(pid, Box::new(move |exit: ExitStatus| broken(what, exit)));
        };
        watch(self.spawner.pid(), SPAWNER);
        if let Some(pid) = self.namespace.get() {
            watch(*pid, NAMESPACE);
        }
        self.reaper.start(self.note)
    }

    fn create(&self, order: CreateOrder<'_>, ended: Ended) -> Result<Created, Failure> {
        let CreateOrder { plan, run, stdio } = order;
        let pending = self.spawner.create(plan, run, self.processes(), &stdio)?;
        drop(stdio);
        let (created, process) = self.created(pending, ended);
        lock(&self.first).insert(plan.name.clone(), process);
        Ok(created)
    }

    fn exec(&self, order: ExecOrder<'_>, ended: Ended) -> Result<Created, Failure> {
        let ExecOrder { request, id, descendants, stdio } = order;
        let first = lock(&self.first).get(&request.container).cloned();
        let first = first.ok_or_else(|| Failure::new(FailureKind::Gone, "the container has just ended"))?;
        let pending = self.spawner.exec(request, id, descendants, &first.0, &stdio)?;
        drop(stdio);
        let (created, process) = self.created(pending, ended);
        if !self.tree.is_there() {
            lock(&self.execs).insert(id, process);
        }
        Ok(created)
    }

    fn kill(&self, subject: Subject<'_>) {
        if self.tree.is_there() {
            self.group(subject).kill();
            return;
        }
        // A container's first process takes the others of its process namespace with it.
        let process = match subject {
            Subject::Container(name) => lock(&self.first).get(name).cloned(),
            Subject::Exec { id, .. } => lock(&self.execs).get(&id).cloned(),
        };
        if let Some(process) = process {
            process.signal(libc::SIGKILL).ok();
        }
    }

    fn await_gone(&self, subject: Subject<'_>, deadline: Instant) -> Gone {
        if let Subject::Exec { id, .. } = subject {
            lock(&self.execs).remove(&id);
        }
        let group = self.group(subject);
        let completely = group.wait_empty(deadline);
        let oom_killed = group.oom_kills() > 0;
        match subject {
            // Processes that an exec left in the background may run until the container ends.
            Subject::Exec { .. } if !completely => lock(&self.occupied).push(group),
            _ => group.remove(),
        }
        self.remove_deserted();
        Gone { completely, oom_killed }
    }

    fn termination_message(&self, container: &ContainerName) -> Option<String> {
        message::read(&self.site, container)
    }

    fn stats(&self, container: &ContainerName) -> Option<ContainerStats> {
        let usage = self.tree.container(container).usage()?;
        Some(ContainerStats {
            name: container.clone(),
            cpu_usec: usage.cpu_usec,
            memory_bytes: usage.memory_bytes,
            memory_peak_bytes: usage.memory_peak_bytes,
            memory_limit_bytes: usage.memory_limit_bytes,
            pids: usage.pids,
        })
    }

    fn helpers(&self) -> Vec<i32> {
        std::iter::once(self.spawner.pid()).chain(self.namespace.get().copied()).collect()
    }
}
