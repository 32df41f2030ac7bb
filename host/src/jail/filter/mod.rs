//! Lists of system calls. A process may make the calls on its list. The process that started it learns of any other call through a
//! descriptor that the kernel provides, records the call and kills the process.
//!
//! Calls that programs make to learn whether the kernel has them fail with an error instead.
#![allow(
    unsafe_code,
    reason = "seccomp and the commands of its descriptor have no functions in the C library"
)]

mod file_server;
mod krun;
mod listen;
mod names;
mod nat;
mod net_filter;
mod qemu;
mod vsock;

pub(super) use listen::listen;

use super::spec::{HostNetwork, Inside, JailSpec, SyscallFilter};
use nix::errno::Errno;
use nix::libc;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};
use std::collections::BTreeMap;
use std::os::fd::{FromRawFd, OwnedFd};

/// Stands for "ask the listener", which the compiler of lists cannot express.
const ASK: u32 = 0x6a61;
/// Flags of `clone` that create namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0080;
/// Instruction of kernel filters: return a constant.
const RETURN: u16 = 0x06;

/// A condition on an argument of a call.
#[derive(Debug, Clone, Copy)]
enum Must {
    /// The argument is this number. The kernel compares only the lower half.
    Be(u8, u64),
    /// Of the bits in the mask, exactly these are set.
    Have(u8, u64, u64),
}

/// A call that is allowed only with some arguments: alternatives, each a list of conditions.
type Limited = (&'static str, &'static [&'static [Must]]);

#[derive(Debug, Clone, Copy)]
struct List {
    /// Calls allowed with any arguments.
    calls: &'static [&'static str],
    /// Calls allowed with some arguments only.
    limited: &'static [Limited],
}

/// What every program calls, for its memory, its threads, the time and its end.
#[rustfmt::skip]
const EVERYBODY: List = List {
    calls: &[
        // Seen.
        "brk", "close", "exit", "exit_group", "fcntl", "futex", "getrandom", "gettid", "lseek", "madvise", "mmap", "mprotect", "mremap",
        "munmap", "prlimit64", "read", "rseq", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sendmsg",
        "set_robust_list", "sigaltstack", "write", "writev",
        // The kernel starts a call again by this one after `pause` and `resume`, which was seen too.
        "restart_syscall",
        // The time, where it cannot be read from the memory that the kernel shares, as on hosts without a stable clock.
        "clock_gettime", "gettimeofday",
        // Locks that are taken by two threads at once, and libraries that wait a little.
        "clock_nanosleep", "membarrier", "nanosleep", "sched_yield",
        // abort(3), whose signal says what went wrong.
        "getpid", "tgkill",
        // The C library asks for the kind of its output before the first line.
        "fstat",
    ],
    limited: &[],
};

/// Sockets that reach no network.
const LOCAL: List = List {
    calls: &[],
    limited: &[
        ("socket", &[&[Must::Be(0, libc::AF_UNIX as u64)]]),
        ("socketpair", &[&[Must::Be(0, libc::AF_UNIX as u64)]]),
    ],
};

/// New threads, and settings of the process itself.
const SAME_FOR_ALL: &[Limited] = &[
    ("clone", &[&[Must::Have(0, NEW_NAMESPACES, 0)]]),
    // Its name, its timers' precision, the names of its memory; and calls that reduce its rights.
    (
        "prctl",
        &[
            &[Must::Be(0, libc::PR_SET_NAME as u64)],
            &[Must::Be(0, libc::PR_GET_NAME as u64)],
            &[Must::Be(0, libc::PR_SET_TIMERSLACK as u64)],
            &[Must::Be(0, libc::PR_SET_VMA as u64)],
            &[Must::Be(0, libc::PR_SET_NO_NEW_PRIVS as u64)],
            &[Must::Be(0, libc::PR_GET_DUMPABLE as u64)],
            &[Must::Be(0, libc::PR_CAPBSET_READ as u64)],
        ],
    ),
];

/// Sockets of networks, for processes that have the host's network.
const ONLINE: List = List {
    calls: &[],
    limited: &[("socket", &[&[Must::Be(0, libc::AF_INET as u64)], &[Must::Be(0, libc::AF_INET6 as u64)]])],
};

/// Calls that fail as on a kernel without them: programs then use other means.
const ABSENT: &[&str] =
    &["clone3", "io_uring_setup", "userfaultfd", "memfd_secret", "landlock_create_ruleset"];

fn lists_of(filter: SyscallFilter) -> &'static [List] {
    match filter {
        SyscallFilter::Krun => &[EVERYBODY, krun::LIST],
        SyscallFilter::KrunSharing => &[EVERYBODY, krun::LIST, file_server::LIST, file_server::IN_KRUN],
        SyscallFilter::Qemu => &[EVERYBODY, qemu::LIST],
        SyscallFilter::Vsock => &[EVERYBODY, vsock::LIST],
        SyscallFilter::FileServer => &[EVERYBODY, file_server::LIST, file_server::ALONE],
        SyscallFilter::NetFilter => &[EVERYBODY, net_filter::LIST],
        SyscallFilter::Nat => &[EVERYBODY, nat::LIST],
    }
}

/// In builds for tests: the variable that names the file in which every call of a jailed process is recorded. The lists are then empty, so
/// that the listener is asked about each call.
#[cfg(feature = "testing")]
pub(super) const MEASURE: &str = "MAGIKVM_JAIL_MEASURE";

/// The call that hands the listener over, so that nobody can be asked about it.
#[cfg(feature = "testing")]
const NOTHING: List = List { calls: &["sendmsg"], limited: &[] };

/// What happens at a call that is not on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beyond {
    Tell,
    /// The process is killed without a report of the call.
    Kill,
}

/// The compiled lists of one process.
#[derive(Debug)]
pub(super) struct Lists {
    absent: BpfProgram,
    /// With a listener, and for environments where there can be none.
    allowed: [BpfProgram; 2],
}

/// The lists of a process with this specification, or why there are none.
pub(super) fn lists(spec: &JailSpec) -> Result<Lists, String> {
    let wrong = |error: seccompiler::BackendError| error.to_string();
    Ok(Lists {
        absent: absent().map_err(wrong)?,
        allowed: [compile(spec, Beyond::Tell).map_err(wrong)?, compile(spec, Beyond::Kill).map_err(wrong)?],
    })
}

fn arch() -> Result<TargetArch, seccompiler::BackendError> {
    std::env::consts::ARCH.try_into()
}

fn absent() -> Result<BpfProgram, seccompiler::BackendError> {
    let rules = ABSENT.iter().filter_map(|name| Some((names::number(name)?, Vec::new()))).collect();
    let errno = libc::ENOSYS.unsigned_abs();
    SeccompFilter::new(rules, SeccompAction::Allow, SeccompAction::Errno(errno), arch()?)?.try_into()
}

fn compile(spec: &JailSpec, beyond: Beyond) -> Result<BpfProgram, seccompiler::BackendError> {
    let sockets: &[List] = match (spec.filter, spec.network) {
        // Its own list says which: in the host's network namespace, Unix sockets reach other programs.
        (SyscallFilter::Nat, _) => &[],
        (_, HostNetwork::Kept) => &[LOCAL, ONLINE],
        (_, HostNetwork::None) => &[LOCAL],
    };
    let lists: Vec<&List> = lists_of(spec.filter).iter().chain(sockets).collect();
    let same = SAME_FOR_ALL;
    #[cfg(feature = "testing")]
    let (lists, same) = match std::env::var_os(MEASURE) {
        Some(_) if beyond == Beyond::Tell => (vec![&NOTHING], &[][..]),
        _ => (lists, same),
    };
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for name in lists.iter().flat_map(|list| list.calls) {
        rules.extend(names::number(name).map(|number| (number, Vec::new())));
    }
    // The listener lets the first one pass.
    if beyond == Beyond::Kill && matches!(spec.inside, Inside::Program { .. }) {
        rules.extend(names::number("execve").map(|number| (number, Vec::new())));
    }
    for (name, alternatives) in same.iter().chain(lists.iter().flat_map(|list| list.limited)) {
        let Some(number) = names::number(name) else { continue };
        let alternatives: Result<Vec<SeccompRule>, _> = alternatives.iter().map(|all| rule(all)).collect();
        let rules = rules.entry(number);
        match rules {
            // An unconditional rule is already on the list.
            std::collections::btree_map::Entry::Occupied(rules) if rules.get().is_empty() => {}
            rules => rules.or_default().extend(alternatives?),
        }
    }
    let otherwise = match beyond {
        Beyond::Tell => SeccompAction::Trace(ASK),
        Beyond::Kill => SeccompAction::KillProcess,
    };
    let filter = SeccompFilter::new(rules, otherwise, SeccompAction::Allow, arch()?)?;
    let mut program: BpfProgram = filter.try_into()?;
    for instruction in &mut program {
        if instruction.code == RETURN && instruction.k == libc::SECCOMP_RET_TRACE | ASK {
            instruction.k = libc::SECCOMP_RET_USER_NOTIF;
        }
    }
    Ok(program)
}

fn rule(all: &[Must]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions: Result<Vec<SeccompCondition>, _> = all
        .iter()
        .map(|must| {
            let (argument, operator, value) = match *must {
                Must::Be(argument, value) => (argument, SeccompCmpOp::Eq, value),
                Must::Have(argument, mask, value) => (argument, SeccompCmpOp::MaskedEq(mask), value),
            };
            SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
        })
        .collect();
    SeccompRule::new(conditions?)
}

impl Lists {
    /// Installs the list for ever. Returns the descriptor that reports calls beyond the list, if one is possible: a process has at most
    /// one, and the starter of this program may already have it.
    pub(super) fn install(&self) -> nix::Result<Option<OwnedFd>> {
        set(&self.absent, 0)?;
        match set(&self.allowed[0], libc::SECCOMP_FILTER_FLAG_NEW_LISTENER) {
            // SAFETY: the kernel has just created this descriptor.
            Ok(number) => Ok(Some(unsafe { OwnedFd::from_raw_fd(number) })),
            Err(Errno::EBUSY | Errno::EINVAL) => set(&self.allowed[1], 0).map(|_| None),
            Err(errno) => Err(errno),
        }
    }
}

#[repr(C)]
struct Program {
    length: libc::c_ushort,
    instructions: *const sock_filter,
}

fn set(program: &BpfProgram, flags: libc::c_ulong) -> nix::Result<i32> {
    let length = libc::c_ushort::try_from(program.len()).map_err(|_| Errno::E2BIG)?;
    let program = Program { length, instructions: program.as_ptr() };
    // SAFETY: the structure is the kernel's `sock_fprog` and outlives the call.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
    i32::try_from(Errno::result(answer)?).map_err(|_| Errno::EOVERFLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [SyscallFilter; 7] = [
        SyscallFilter::Krun,
        SyscallFilter::KrunSharing,
        SyscallFilter::Qemu,
        SyscallFilter::Vsock,
        SyscallFilter::FileServer,
        SyscallFilter::NetFilter,
        SyscallFilter::Nat,
    ];

    #[test]
    fn lists_name_calls_that_there_are_and_each_once() {
        for (filter, list) in
            ALL.into_iter().flat_map(|filter| lists_of(filter).iter().map(move |list| (filter, list)))
        {
            let mut names: Vec<&str> = list.calls.to_vec();
            names.sort_unstable();
            for pair in names.windows(2) {
                assert_ne!(pair[0], pair[1], "{filter:?}");
            }
            #[cfg(target_arch = "x86_64")]
            for name in names.iter().chain(ABSENT).chain(list.limited.iter().map(|(name, _)| name)) {
                assert!(names::number(name).is_some(), "{filter:?}: {name}");
            }
        }
    }

    /// These calls are what the list must keep out, whatever a measurement says.
    #[test]
    fn no_list_has_what_leads_out_of_a_jail() {
        let never = [
            "ptrace",
            "mount",
            "umount2",
            "move_mount",
            "open_tree",
            "fsopen",
            "mount_setattr",
            "pivot_root",
            "chroot",
            "setns",
            "unshare",
            "clone3",
            "bpf",
            "perf_event_open",
            "io_uring_setup",
            "io_uring_enter",
            "userfaultfd",
            "add_key",
            "keyctl",
            "request_key",
            "kexec_load",
            "init_module",
            "finit_module",
            "delete_module",
            "process_vm_readv",
            "process_vm_writev",
            "pidfd_getfd",
            "execve",
            "execveat",
            "swapon",
            "reboot",
            "settimeofday",
            "iopl",
            "ioperm",
            "quotactl",
            "acct",
            "syslog",
            "kcmp",
        ];
        for (filter, list) in
            ALL.into_iter().flat_map(|filter| lists_of(filter).iter().map(move |list| (filter, list)))
        {
            for name in never {
                assert!(!list.calls.contains(&name), "{filter:?}: {name}");
            }
            assert!(
                filter == SyscallFilter::FileServer || !list.calls.contains(&"open_by_handle_at"),
                "{filter:?}"
            );
        }
    }
}
