//! The default seccomp profile: a list of system calls that are allowed (`seccomp.txt`) and rules about the arguments of a few.
//!
//! It follows containerd and Docker, with differences for the VM: no socket family from AF_VSOCK up (only vminit talks to the host), no
//! io_uring (it makes sockets without `socket`), and only the native architecture (32-bit system calls have other numbers for the same
//! sockets).

use oci_spec::runtime::{
    Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompOperator, LinuxSyscall,
};
use std::collections::{BTreeSet, HashSet};

const PROFILE: &str = include_str!("seccomp.txt");

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;
const EAFNOSUPPORT: u32 = 97;
/// First socket family that is refused. The families above it (KCM, QIPCRTR, SMC, XDP, MCTP) are not for containers either.
const AF_VSOCK: u64 = 40;
/// Lowest of the `CLONE_NEW*` flags that matter, CLONE_NEWCGROUP. Below it is CLONE_NEWNS (0x20000), for which the kernel wants
/// CAP_SYS_ADMIN; above it all other namespaces (CLONE_NEWUSER among them, which needs no privilege) and CLONE_IO.
const CLONE_NEWCGROUP: u64 = 0x0200_0000;
/// Linux, 32-bit Linux, both with UNAME26, and the query for the current one.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The profile of a container with these capabilities (of its bounding set).
///
/// Conditions are `<`, `>=` and `==` of one argument only: these compare all 64 bits, so that a value which the kernel would cut
/// to a forbidden 32-bit one is refused. They avoid `MASKED_EQ`, whose operands libcontainer swaps in comparison with runc.
pub fn profile(capabilities: &HashSet<Capability>) -> LinuxSeccomp {
    let (allow, refuse) = (LinuxSeccompAction::ScmpActAllow, LinuxSeccompAction::ScmpActErrno);
    let (less, not_less) = (LinuxSeccompOperator::ScmpCmpLt, LinuxSeccompOperator::ScmpCmpGe);
    let (allowed, refused) = sort(capabilities);
    let mut syscalls = vec![rule(allowed, allow), errno(rule(refused, refuse), EPERM)];
    if capabilities.contains(&Capability::SysAdmin) {
        syscalls.push(rule(["clone", "clone3"], allow));
    } else {
        syscalls.push(with(rule(["clone"], allow), less, CLONE_NEWCGROUP));
        syscalls.push(with(errno(rule(["clone"], refuse), EPERM), not_less, CLONE_NEWCGROUP));
        // A filter cannot read the flags of clone3, which are behind a pointer. ENOSYS makes a C library fall back to clone.
    }
    for call in ["socket", "socketpair"] {
        syscalls.push(with(rule([call], allow), less, AF_VSOCK));
        syscalls.push(with(errno(rule([call], refuse), EAFNOSUPPORT), not_less, AF_VSOCK));
    }
    for personality in PERSONALITIES {
        syscalls.push(with(rule(["personality"], allow), LinuxSeccompOperator::ScmpCmpEq, personality));
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(ENOSYS))
        // An empty list of architectures means the guest's native one, whatever the host's is. A call of any other one kills.
        .set_architectures(None)
        .set_syscalls(Some(syscalls));
    profile
}

/// The names that these capabilities allow, and those of the other sections, sorted and without duplicates.
fn sort(capabilities: &HashSet<Capability>) -> (BTreeSet<&'static str>, BTreeSet<&'static str>) {
    let open = |section: &str| {
        section == "always" || capabilities.iter().any(|capability| format!("CAP_{capability}") == section)
    };
    let names = |wanted: bool| {
        let lines = sections().filter(move |(section, _)| open(section) == wanted);
        lines.flat_map(|(_, names)| names.split_whitespace())
    };
    let allowed: BTreeSet<&str> = names(true).collect();
    let refused = names(false).filter(|name| !allowed.contains(name)).collect();
    (allowed, refused)
}

fn sections() -> impl Iterator<Item = (&'static str, &'static str)> {
    let mut section = "";
    PROFILE.lines().filter_map(move |line| {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = name;
            return None;
        }
        (!line.is_empty() && !line.starts_with('#')).then_some((section, line))
    })
}

fn rule<'a>(names: impl IntoIterator<Item = &'a str>, action: LinuxSeccompAction) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.into_iter().map(str::to_owned).collect()).set_action(action);
    rule
}

fn errno(mut rule: LinuxSyscall, errno: u32) -> LinuxSyscall {
    rule.set_errno_ret(Some(errno));
    rule
}

/// Adds a condition about the first argument.
fn with(mut rule: LinuxSyscall, op: LinuxSeccompOperator, value: u64) -> LinuxSyscall {
    // Building cannot fail, because every field has a default. The default condition, `== 0`, would allow less.
    let built = LinuxSeccompArgBuilder::default().index(0usize).value(value).op(op).build();
    let argument: LinuxSeccompArg = built.unwrap_or_default();
    rule.set_args(Some(vec![argument]));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile_of(capabilities: &[Capability]) -> LinuxSeccomp {
        profile(&capabilities.iter().copied().collect())
    }

    /// The profile's answer to a call with this first argument: the errno, or 0 for allowed.
    fn verdict(profile: &LinuxSeccomp, name: &str, argument: u64) -> u32 {
        for rule in
            profile.syscalls().iter().flatten().filter(|rule| rule.names().iter().any(|known| known == name))
        {
            let matches = rule.args().iter().flatten().all(|condition| match condition.op() {
                LinuxSeccompOperator::ScmpCmpLt => argument < condition.value(),
                LinuxSeccompOperator::ScmpCmpGe => argument >= condition.value(),
                LinuxSeccompOperator::ScmpCmpEq => argument == condition.value(),
                other => panic!("{other}"),
            });
            if matches {
                return match rule.action() {
                    LinuxSeccompAction::ScmpActAllow => 0,
                    _ => rule.errno_ret().unwrap(),
                };
            }
        }
        profile.default_errno_ret().unwrap()
    }

    #[test]
    fn the_list_is_well_formed() {
        let mut all = Vec::new();
        for (section, names) in sections() {
            let capability = section.strip_prefix("CAP_").map(str::parse::<Capability>);
            assert!(["always", "never"].contains(&section) || matches!(capability, Some(Ok(_))), "{section}");
            for name in names.split_whitespace() {
                assert!(
                    name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_'),
                    "{name}"
                );
                all.push((section, name));
            }
        }
        let always: Vec<&str> =
            all.iter().filter(|(section, _)| *section == "always").map(|(_, name)| *name).collect();
        assert_eq!(always.iter().collect::<BTreeSet<_>>().len(), always.len(), "a name is there twice");
        assert!(always.len() > 300);
        for (section, name) in &all {
            assert!(*section == "always" || !always.contains(name), "{name} needs no {section}");
        }
        for special in ["socket", "socketpair", "clone", "clone3", "personality"] {
            assert!(!all.iter().any(|(_, name)| *name == special), "{special} has rules about its arguments");
        }
    }

    #[test]
    fn what_is_dangerous_is_refused_whatever_the_capabilities() {
        let profile =
            profile_of(&[Capability::SysAdmin, Capability::SysBoot, Capability::Bpf, Capability::SysModule]);
        for name in
            ["io_uring_setup", "io_uring_enter", "io_uring_register", "socketcall", "vm86", "no_such_call"]
        {
            assert_eq!(verdict(&profile, name, 0), ENOSYS, "{name}");
        }
        for name in [
            "keyctl",
            "add_key",
            "request_key",
            "userfaultfd",
            "kexec_load",
            "kexec_file_load",
            "swapon",
            "pivot_root",
        ] {
            assert_eq!(verdict(&profile, name, 0), EPERM, "{name}");
        }
    }

    #[test]
    fn a_container_cannot_open_a_vsock_socket_by_any_spelling() {
        for capabilities in [&[][..], &[Capability::SysAdmin]] {
            let profile = profile_of(capabilities);
            for name in ["socket", "socketpair"] {
                for family in [1, 2, 10, 16, 17, 38] {
                    assert_eq!(verdict(&profile, name, family), 0, "{name} {family}");
                }
                for family in [40, 44, 0x1_0000_0028, 0xffff_ffff_0000_0028, 0x1_0000_0002, u64::MAX] {
                    assert_eq!(verdict(&profile, name, family), EAFNOSUPPORT, "{name} {family:#x}");
                }
            }
        }
    }

    #[test]
    fn namespaces_need_sys_admin_and_threads_need_nothing() {
        let plain = profile_of(&[]);
        let admin = profile_of(&[Capability::SysAdmin]);
        // fork of glibc, pthread_create of glibc, vfork, Go's threads.
        for flags in [0x120_0011, 0x3d_0f00, 0x4111, 0x5_0f00] {
            assert_eq!(verdict(&plain, "clone", flags), 0, "{flags:#x}");
        }
        for flag in [0x0200_0000, 0x0400_0000, 0x0800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
            assert_eq!(verdict(&plain, "clone", flag | 17), EPERM, "{flag:#x}");
            assert_eq!(verdict(&plain, "clone", flag | 17 | 1 << 32), EPERM, "{flag:#x}");
            assert_eq!(verdict(&admin, "clone", flag | 17), 0, "{flag:#x}");
        }
        assert_eq!((verdict(&plain, "clone3", 0), verdict(&admin, "clone3", 0)), (ENOSYS, 0));
        assert_eq!((verdict(&plain, "unshare", 0), verdict(&admin, "unshare", 0)), (EPERM, 0));
        assert_eq!((verdict(&plain, "mount", 0), verdict(&admin, "mount", 0)), (EPERM, 0));
    }

    #[test]
    fn capabilities_open_their_own_calls() {
        for (capability, name) in [
            (Capability::SysTime, "clock_settime"),
            (Capability::SysChroot, "chroot"),
            (Capability::SysBoot, "reboot"),
            (Capability::SysModule, "init_module"),
            (Capability::Syslog, "syslog"),
            (Capability::SysNice, "mbind"),
            (Capability::SysPtrace, "pidfd_getfd"),
            (Capability::SysRawio, "iopl"),
            (Capability::SysPacct, "acct"),
            (Capability::SysTtyConfig, "vhangup"),
            (Capability::Bpf, "bpf"),
            (Capability::Perfmon, "perf_event_open"),
            (Capability::DacReadSearch, "open_by_handle_at"),
        ] {
            assert_eq!(verdict(&profile_of(&[]), name, 0), EPERM, "{name}");
            assert_eq!(verdict(&profile_of(&[capability]), name, 0), 0, "{name}");
        }
    }

    #[test]
    fn only_harmless_personalities_are_allowed() {
        let profile = profile_of(&[]);
        assert_eq!(verdict(&profile, "personality", 0xffff_ffff), 0);
        assert_eq!(verdict(&profile, "personality", 0x0004_0000), ENOSYS, "ADDR_NO_RANDOMIZE");
    }
}
