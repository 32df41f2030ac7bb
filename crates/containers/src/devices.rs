//! Which devices a container may open or make: a small BPF program on its control group (the only means of cgroup v2), or the rules of its
//! devices controller (cgroup v1). Without them a container with `mknod` could read the whole disk, including other containers' images.
#![allow(unsafe_code, reason = "bpf(2) takes structures by address")]

use crate::cgroup::Cgroup;
use libcontainer::oci_spec::runtime::{LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceType};
use magikvm_proto::security::Privilege;
use nix::errno::Errno;
use nix::sys::stat::{major, minor};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

/// Most rules that are compiled; the program stays far below the kernel's 4096 instructions.
const MAX_RULES: usize = 256;

/// Bits of `bpf_cgroup_dev_ctx.access_type` (linux/bpf.h).
const BLOCK: u32 = 1;
const CHARACTER: u32 = 2;
const MKNOD: u32 = 1;
const READ: u32 = 2;
const WRITE: u32 = 4;
const ALL: u32 = MKNOD | READ | WRITE;

/// One rule; `None` matches any value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rule {
    verdict: u32,
    kind: Option<u32>,
    access: u32,
    major: Option<u32>,
    minor: Option<u32>,
}

impl Rule {
    /// Whether the rule allows, and what, in the syntax of cgroup v1 (`c 1:3 rwm`).
    fn in_words(&self) -> (bool, String) {
        let kind = match self.kind {
            None => 'a',
            Some(BLOCK) => 'b',
            Some(_) => 'c',
        };
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        let letters = [(READ, 'r'), (WRITE, 'w'), (MKNOD, 'm')];
        let access: String =
            letters.iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| letter).collect();
        (self.verdict == 1, format!("{kind} {}:{} {access}", number(self.major), number(self.minor)))
    }
}

const fn allow(kind: u32, access: u32, major: Option<u32>, minor: Option<u32>) -> Rule {
    Rule { verdict: 1, kind: Some(kind), access, major, minor }
}

/// What every container gets (like runc's defaults): making any node, and the harmless character devices. The
/// console is always denied: in a VM the host reads it.
const DEFAULTS: &[Rule] = &[
    allow(CHARACTER, MKNOD, None, None),
    allow(BLOCK, MKNOD, None, None),
    allow(CHARACTER, ALL, Some(1), Some(3)), // null
    allow(CHARACTER, ALL, Some(1), Some(5)), // zero
    allow(CHARACTER, ALL, Some(1), Some(7)), // full
    allow(CHARACTER, ALL, Some(1), Some(8)), // random
    allow(CHARACTER, ALL, Some(1), Some(9)), // urandom
    allow(CHARACTER, ALL, Some(5), Some(0)), // tty
    allow(CHARACTER, ALL, Some(5), Some(2)), // ptmx
    allow(CHARACTER, ALL, Some(136), None),  // pts
    Rule { verdict: 0, kind: Some(CHARACTER), access: READ | WRITE, major: Some(5), minor: Some(1) }, // console
];

/// The rules of a privileged container.
const EVERYTHING: &[Rule] = &[allow(CHARACTER, ALL, None, None), allow(BLOCK, ALL, None, None)];

/// Most devices that a privileged container finds in its /dev.
const MAX_DEVICES: usize = 512;
/// Directories of /dev that a container has of its own, and the console, which the host reads.
const OWN: [&str; 5] = ["pts", "shm", "mqueue", "fd", "console"];

/// The device files of /dev, for a privileged container. Those that cannot be looked at are left out.
pub(crate) fn all() -> Vec<LinuxDevice> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), &mut found);
    found
}

fn collect(dir: &Path, found: &mut Vec<LinuxDevice>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let is_own = OWN.iter().any(|own| name == *own) && dir == Path::new("/dev");
        // Not through links: what they lead to is found where it is.
        let Ok(about) = fs::symlink_metadata(&path) else { continue };
        let kind = about.file_type();
        if is_own || found.len() >= MAX_DEVICES {
            continue;
        }
        if kind.is_dir() {
            collect(&path, found);
        }
        let typ = match (kind.is_char_device(), kind.is_block_device()) {
            (true, _) => LinuxDeviceType::C,
            (_, true) => LinuxDeviceType::B,
            _ => continue,
        };
        let number = |part: u64| i64::try_from(part).unwrap_or(i64::MAX);
        let device = LinuxDeviceBuilder::default()
            .path(path)
            .typ(typ)
            .major(number(major(about.rdev())))
            .minor(number(minor(about.rdev())))
            .file_mode(about.mode() & 0o777)
            .uid(about.uid())
            .gid(about.gid());
        found.extend(device.build());
    }
}

fn wanted(number: Option<i64>) -> Option<u32> {
    // -1 in the specification matches any number. A number that no device has matches none.
    number.filter(|&n| n >= 0).map(|n| u32::try_from(n).unwrap_or(u32::MAX))
}

fn rule(device: &LinuxDeviceCgroup) -> Rule {
    let kind = match device.typ() {
        Some(LinuxDeviceType::B) => Some(BLOCK),
        Some(LinuxDeviceType::C | LinuxDeviceType::U) => Some(CHARACTER),
        _ => None,
    };
    let letters = device.access().as_deref().unwrap_or("rwm");
    let access = letters.chars().fold(0, |bits, c| match c {
        'r' => bits | READ,
        'w' => bits | WRITE,
        'm' => bits | MKNOD,
        _ => bits,
    });
    Rule {
        verdict: u32::from(device.allow()),
        kind,
        access,
        major: wanted(device.major()),
        minor: wanted(device.minor()),
    }
}

/// One BPF instruction in the layout of linux/bpf.h.
const fn instruction(code: u8, registers: u8, offset: i16, immediate: u32) -> u64 {
    code as u64 | (registers as u64) << 8 | (offset.cast_unsigned() as u64) << 16 | (immediate as u64) << 32
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const SET: u8 = 0xb4;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_IF_EQUAL: u8 = 0x16;
const JUMP_IF_NOT: u8 = 0x56;
const EXIT: u8 = 0x95;

/// Instructions that leave through `verdict` when the rule matches and fall through otherwise. r2: kind, r3:
/// access, r4: major, r5: minor.
fn compile_rule(rule: &Rule) -> Vec<u64> {
    let mut tests: Vec<(u8, u8, u32)> = Vec::new(); // (jump past the rule, register, operand)
    let mut before = Vec::new();
    if rule.access != ALL || rule.verdict == 0 {
        // An allow rule matches only when nothing beyond the rule is requested; a deny rule matches when any part of it is.
        let (mask, jump) =
            if rule.verdict == 1 { (ALL & !rule.access, JUMP_IF_NOT) } else { (rule.access, JUMP_IF_EQUAL) };
        before = vec![instruction(MOVE, 0x36, 0, 0), instruction(AND, 0x06, 0, mask)];
        tests.push((jump, 6, 0));
    }
    tests.extend(rule.kind.map(|kind| (JUMP_IF_NOT, 2, kind)));
    tests.extend(rule.major.map(|major| (JUMP_IF_NOT, 4, major)));
    tests.extend(rule.minor.map(|minor| (JUMP_IF_NOT, 5, minor)));
    let mut program = before;
    for (index, &(jump, register, operand)) in tests.iter().enumerate() {
        let past = i16::try_from(tests.len() - index - 1 + 2).unwrap_or(i16::MAX);
        program.push(instruction(jump, register, past, operand));
    }
    program.push(instruction(SET, 0, 0, rule.verdict));
    program.push(instruction(EXIT, 0, 0, 0));
    program
}

/// Compiles the whole program. A later rule overrides an earlier one, so the last is tried first. Access that matches
/// no rule is denied.
fn compile(rules: &[Rule]) -> Vec<u64> {
    let mut program = vec![
        instruction(LOAD_WORD, 0x12, 0, 0),
        instruction(AND, 2, 0, 0xffff),
        instruction(LOAD_WORD, 0x13, 0, 0),
        instruction(SHIFT_RIGHT, 3, 0, 16),
        instruction(LOAD_WORD, 0x14, 4, 0),
        instruction(LOAD_WORD, 0x15, 8, 0),
    ];
    for rule in rules.iter().rev() {
        program.extend(compile_rule(rule));
    }
    program.extend([instruction(SET, 0, 0, 0), instruction(EXIT, 0, 0, 0)]);
    program
}

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;

fn load(program: &[u64]) -> io::Result<OwnedFd> {
    let attributes = LoadAttributes {
        program_type: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        instructions: program.as_ptr().addr() as u64,
        license: c"Apache-2.0".as_ptr().addr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the attributes, the program and the license outlive the call and have the stated lengths.
    let fd = Errno::result(unsafe {
        libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>())
    })?;
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just returned this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts the rules of a container's configuration and the defaults on its cgroup. Must run before anything of
/// the container runs.
pub(crate) fn restrict(
    cgroup: &Cgroup,
    privilege: Privilege,
    configured: &[LinuxDeviceCgroup],
) -> io::Result<()> {
    let rules = match privilege {
        Privilege::Confined => rules(configured)?,
        Privilege::Privileged => EVERYTHING.to_vec(),
    };
    match cgroup {
        Cgroup::Unified(group) => attach(&group.0, &rules),
        Cgroup::Legacy(group) => {
            group.restrict_devices(&rules.iter().map(Rule::in_words).collect::<Vec<_>>())
        }
    }
}

/// Puts the rules that hold for every container on the group of a pod with a user namespace, whose containers cannot make devices at all.
pub(crate) fn restrict_pod(cgroup: &Cgroup) -> io::Result<()> {
    restrict(cgroup, Privilege::Confined, &[])
}

fn rules(configured: &[LinuxDeviceCgroup]) -> io::Result<Vec<Rule>> {
    if configured.len() > MAX_RULES {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("more than {MAX_RULES} device rules"),
        ));
    }
    Ok(configured.iter().map(rule).chain(DEFAULTS.iter().copied()).collect())
}

fn attach(group: &Path, rules: &[Rule]) -> io::Result<()> {
    let program = load(&compile(rules))?;
    let directory = File::open(group)?;
    let number = |fd: RawFd| u32::try_from(fd).map_err(|_| io::ErrorKind::InvalidInput);
    let attributes = AttachAttributes {
        target: number(directory.as_raw_fd())?,
        program: number(program.as_raw_fd())?,
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: 0,
    };
    // SAFETY: the attributes outlive the call; both descriptors are open.
    Errno::result(unsafe {
        libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attributes, size_of::<AttachAttributes>())
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Interprets a program as the kernel would.
    fn run(program: &[u64], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
        let context = [access << 16 | kind, major, minor];
        let mut r = [0u32; 11];
        let mut at = 0;
        loop {
            let i = program[at];
            let (code, dst, src) = ((i & 0xff) as u8, (i >> 8 & 0xf) as usize, (i >> 12 & 0xf) as usize);
            let (off, imm) = ((i >> 16 & 0xffff) as usize, (i >> 32) as u32);
            at += 1;
            match code {
                LOAD_WORD => r[dst] = context[off / 4],
                MOVE => r[dst] = r[src],
                SET => r[dst] = imm,
                AND => r[dst] &= imm,
                SHIFT_RIGHT => r[dst] >>= imm,
                JUMP_IF_EQUAL => at += if r[dst] == imm { off } else { 0 },
                JUMP_IF_NOT => at += if r[dst] != imm { off } else { 0 },
                EXIT => return r[0],
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn meaning(rules: &[Rule], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
        let fits = |r: &&Rule| {
            r.kind.is_none_or(|k| k == kind)
                && r.major.is_none_or(|m| m == major)
                && r.minor.is_none_or(|m| m == minor)
                && if r.verdict == 1 { access & !r.access == 0 } else { access & r.access != 0 }
        };
        rules.iter().rev().find(fits).map_or(0, |r| r.verdict)
    }

    #[test]
    fn by_default_null_opens_and_the_disk_does_not() {
        let program = compile(DEFAULTS);
        assert_eq!(run(&program, CHARACTER, READ | WRITE, 1, 3), 1);
        assert_eq!(run(&program, CHARACTER, READ | WRITE, 136, 7), 1);
        assert_eq!(run(&program, BLOCK, MKNOD, 254, 0), 1);
        assert_eq!(run(&program, BLOCK, READ, 254, 0), 0);
        assert_eq!(run(&program, CHARACTER, READ, 1, 1), 0);
        let console = Rule { verdict: 1, kind: None, access: ALL, major: Some(5), minor: Some(1) };
        let asked: Vec<Rule> = [console].into_iter().chain(DEFAULTS.iter().copied()).collect();
        assert_eq!(run(&compile(&asked), CHARACTER, WRITE, 5, 1), 0);
    }

    #[test]
    fn a_privileged_container_opens_everything() {
        let program = compile(EVERYTHING);
        for (kind, major, minor) in [(BLOCK, 254, 0), (CHARACTER, 1, 1), (CHARACTER, 5, 1)] {
            assert_eq!(run(&program, kind, ALL, major, minor), 1);
        }
        let all = all();
        let null = all.iter().find(|device| device.path() == Path::new("/dev/null")).unwrap();
        assert_eq!((null.typ(), null.major(), null.minor()), (LinuxDeviceType::C, 1, 3));
        assert!(!all.iter().any(|device| device.path().starts_with("/dev/pts")));
    }

    #[test]
    fn rules_have_words_for_cgroup_v1() {
        assert_eq!(DEFAULTS[2].in_words(), (true, "c 1:3 rwm".to_owned()));
        assert_eq!(DEFAULTS[0].in_words(), (true, "c *:* m".to_owned()));
        assert_eq!(DEFAULTS[10].in_words(), (false, "c 5:1 rw".to_owned()));
    }

    fn any_rule() -> impl Strategy<Value = Rule> {
        (0..2u32, prop::option::of(1..3u32), 0..8u32, prop::option::of(0..3u32), prop::option::of(0..3u32))
            .prop_map(|(verdict, kind, access, major, minor)| Rule { verdict, kind, access, major, minor })
    }

    proptest! {
        #[test]
        fn the_program_means_what_the_rules_say(
            rules in prop::collection::vec(any_rule(), 0..12), kind in 1..3u32, access in 1..8u32, major in 0..3u32, minor in 0..3u32,
        ) {
            prop_assert_eq!(run(&compile(&rules), kind, access, major, minor), meaning(&rules, kind, access, major, minor));
        }
    }
}
