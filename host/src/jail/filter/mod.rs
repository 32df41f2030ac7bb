//! Lists of system calls. A process has those of its list; what it calls beside them is told to the process that started it, by a
//! descriptor that the kernel gives for this, and that one writes down which call it was and kills it.
//!
//! Refused with an error instead are the calls that programs make in order to learn whether the kernel has them.
#![allow(
    unsafe_code,
    reason = "seccomp and the commands of its descriptor have no functions in the C library"
)]

mod file_server;
mod krun;
mod listen;
mod names;
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

/// Stands for "ask the listener", which the compiler of lists has no word for.
const ASK: u32 = 0x6a61;
/// Flags of `clone` that make namespaces.
const NEW_NAMESPACES: u64 = 0x7e02_0080;
/// Instruction of the kernel's filters: return a constant.
const RETURN: u16 = 0x06;

/// What an argument of a call must be.
#[derive(Debug, Clone, Copy)]
enum Must {
    /// This number, in its lower half: the kernel looks at no more.
    Be(u8, u64),
    /// Of these bits, exactly those.
    Have(u8, u64, u64),
}

/// A call that is on a list with some arguments only: alternatives, each a list of what must hold.
type Limited = (&'static str, &'static [&'static [Must]]);

#[derive(Debug, Clone, Copy)]
struct List {
    /// Names of calls, whatever their arguments.
    calls: &'static [&'static str],
    /// Those with some arguments.
    limited: &'static [Limited],
}

/// Sockets that reach no network, new threads, and a process's own settings.
const SAME_FOR_ALL: &[Limited] = &[
    ("socket", &[&[Must::Be(0, libc::AF_UNIX as u64)]]),
    ("socketpair", &[&[Must::Be(0, libc::AF_UNIX as u64)]]),
    ("clone", &[&[Must::Have(0, NEW_NAMESPACES, 0)]]),
    // Its name, its timers' precision, the names of its memory; and what makes its own rights less.
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

/// Sockets of networks, for who has this machine's.
const ONLINE: List = List {
    calls: &[],
    limited: &[("socket", &[&[Must::Be(0, libc::AF_INET as u64)], &[Must::Be(0, libc::AF_INET6 as u64)]])],
};

/// Calls that answer as those of a kernel that has none: programs then do without.
const ABSENT: &[&str] =
    &["clone3", "io_uring_setup", "userfaultfd", "memfd_secret", "landlock_create_ruleset"];

fn lists_of(filter: SyscallFilter) -> &'static [List] {
    match filter {
        SyscallFilter::Krun => &[krun::LIST],
        SyscallFilter::KrunSharing => &[krun::LIST, file_server::LIST],
        SyscallFilter::Qemu => &[qemu::LIST],
        SyscallFilter::Vsock => &[vsock::LIST],
        SyscallFilter::FileServer => &[file_server::LIST],
        SyscallFilter::NetFilter => &[net_filter::LIST],
    }
}

/// What happens at a call that is not on the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Beyond {
    Tell,
    /// The process is killed, without a word of which call it was.
    Kill,
}

/// Compiled lists of one process.
#[derive(Debug)]
pub(super) struct Lists {
    absent: BpfProgram,
    /// With a listener, and for where there can be none.
    allowed: [BpfProgram; 2],
}

/// Those for a process like this. Says why there are none.
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
    let online: &[List] = if spec.network == HostNetwork::Kept { &[ONLINE] } else { &[] };
    let lists: Vec<&List> = lists_of(spec.filter).iter().chain(online).collect();
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    for name in lists.iter().flat_map(|list| list.calls) {
        rules.extend(names::number(name).map(|number| (number, Vec::new())));
    }
    // The listener lets the first one pass.
    if beyond == Beyond::Kill && matches!(spec.inside, Inside::Program { .. }) {
        rules.extend(names::number("execve").map(|number| (number, Vec::new())));
    }
    for (name, alternatives) in SAME_FOR_ALL.iter().chain(lists.iter().flat_map(|list| list.limited)) {
        let Some(number) = names::number(name) else { continue };
        let alternatives: Result<Vec<SeccompRule>, _> = alternatives.iter().map(|all| rule(all)).collect();
        let rules = rules.entry(number);
        match rules {
            // Without a condition it is on the list already.
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
    /// From now on, for ever. Returns the descriptor that tells of calls beyond the list, where there can be one: a process has at most one,
    /// and whoever started this program may have it already.
    pub(super) fn install(&self) -> nix::Result<Option<OwnedFd>> {
        set(&self.absent, 0)?;
        match set(&self.allowed[0], libc::SECCOMP_FILTER_FLAG_NEW_LISTENER) {
            // SAFETY: the kernel has just made this descriptor.
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
    // SAFETY: the structure is the kernel's `sock_fprog`, and lives as long as the call.
    let answer = unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &program) };
    i32::try_from(Errno::result(answer)?).map_err(|_| Errno::EOVERFLOW)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [SyscallFilter; 5] = [
        SyscallFilter::Krun,
        SyscallFilter::Qemu,
        SyscallFilter::Vsock,
        SyscallFilter::FileServer,
        SyscallFilter::NetFilter,
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

    /// Whatever a measurement says: these are what the list is for.
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
