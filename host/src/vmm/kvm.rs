//! Whether hardware virtualization works here. That /dev/kvm exists proves nothing: a nested host may emulate the guest's ring 0 one
//! instruction at a time. So a very small machine runs a counted loop in ring 0, and the time it takes decides.
#![allow(unsafe_code, reason = "giving memory to a VM is an unsafe call of kvm-ioctls")]

use super::Unavailable;
use kvm_bindings::{kvm_segment, kvm_userspace_memory_region};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Turns of the timed loop, two instructions each.
const TURNS: u32 = 20_000;
/// Hardware needs about a nanosecond a turn, an emulator a thousand.
const MAX_NS_PER_TURN: u128 = 60;
/// The best of so many runs counts, since the machine may be busy.
const RUNS: usize = 3;
const MEMORY: usize = 0x8000;
const CODE: u64 = 0x4000;
const PORT: u16 = 0x10;

/// What the probe saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Time of one turn of the loop, best run.
    pub per_turn: Duration,
}

/// /dev/kvm, opened.
#[derive(Debug)]
pub struct Device(Kvm);

/// Opens /dev/kvm. The error says what is wrong and what to do about it.
pub fn open() -> Result<Device, Unavailable> {
    Kvm::new().map(Device).map_err(|error| match error.errno() {
        nix::libc::ENOENT | nix::libc::ENODEV | nix::libc::ENXIO => Unavailable {
            reason: "there is no /dev/kvm on this machine".to_owned(),
            remedy: "enable virtualization in the firmware (or nested virtualization on the host of this VM) and load kvm_intel or kvm_amd".to_owned(),
        },
        nix::libc::EACCES | nix::libc::EPERM => Unavailable {
            reason: "this user may not open /dev/kvm".to_owned(),
            remedy: "add the user to the group kvm: sudo usermod -aG kvm $USER, then log in again".to_owned(),
        },
        _ => Unavailable {
            reason: format!("/dev/kvm cannot be opened: {error}"),
            remedy: "see the kernel's messages about kvm: dmesg | grep -i kvm".to_owned(),
        },
    })
}

/// Runs the loop and returns the time that it took, best run.
pub fn measure(device: Device) -> Result<Duration, Unavailable> {
    let failed = |step: &str, error: &dyn std::fmt::Display| Unavailable {
        reason: format!("/dev/kvm is there but cannot run a guest: {step}: {error}"),
        remedy: "see the kernel's messages about kvm: dmesg | grep -i kvm".to_owned(),
    };
    let vm = device.0.create_vm().map_err(|error| failed("creating a VM", &error))?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| failed("mapping guest memory", &error))?;
    load(&memory).map_err(|error| failed("writing guest memory", &error))?;
    let address = memory
        .get_host_address(GuestAddress(0))
        .map_err(|error| failed("finding guest memory", &error))?
        .addr();
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: u64::try_from(MEMORY).unwrap_or(0),
        userspace_addr: u64::try_from(address).unwrap_or(0),
    };
    // SAFETY: the region lies within `memory`, which is declared before `vm`'s last use and lives until the end of this function.
    unsafe { vm.set_user_memory_region(region) }.map_err(|error| failed("giving it memory", &error))?;
    let mut vcpu = vm.create_vcpu(0).map_err(|error| failed("creating a processor", &error))?;
    // A processor that was not told what it is has no long mode: newer kernels refuse it.
    let cpuid = device
        .0
        .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
        .map_err(|error| failed("asking what the processor has", &error))?;
    vcpu.set_cpuid2(&cpuid).map_err(|error| failed("telling the processor what it is", &error))?;
    enter_long_mode(&vcpu).map_err(|error| failed("setting registers", &error))?;
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        best = best.min(one_run(&mut vcpu).map_err(|what| failed("running its first instructions", &what))?);
    }
    Ok(best)
}

/// What the best time of the loop means.
pub fn judge(best: Duration) -> Result<Verdict, Unavailable> {
    if best.as_nanos() / u128::from(TURNS) > MAX_NS_PER_TURN {
        return Err(Unavailable {
            reason: format!(
                "/dev/kvm only emulates: {TURNS} turns of a loop took {:.1} ms, hardware takes about 0.02 ms",
                best.as_secs_f64() * 1e3
            ),
            remedy: "run on a machine whose host passes hardware virtualization through".to_owned(),
        });
    }
    Ok(Verdict { per_turn: best / TURNS })
}

/// Page tables that map the first 2 MiB onto themselves, and the loop.
fn load(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 0b1000_0000;
    memory.write_obj(0x2000 | PRESENT_WRITABLE, GuestAddress(0x1000))?;
    memory.write_obj(0x3000 | PRESENT_WRITABLE, GuestAddress(0x2000))?;
    memory.write_obj(PRESENT_WRITABLE | LARGE, GuestAddress(0x3000))?;
    let [a, b, c, d] = TURNS.to_le_bytes();
    let [port, _] = PORT.to_le_bytes();
    // mov ecx, TURNS; 1: dec ecx; jnz 1b; out PORT, al; jmp to the start
    let code = [0xB9, a, b, c, d, 0xFF, 0xC9, 0x75, 0xFC, 0xE6, port, 0xEB, 0xF3];
    memory.write_slice(&code, GuestAddress(CODE))
}

/// 64-bit mode, ring 0, interrupts off.
fn enter_long_mode(vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    let flat = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 0x10,
        type_: 3,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..Default::default()
    };
    sregs.cs = kvm_segment { selector: 0x8, type_: 11, db: 0, l: 1, ..flat };
    (sregs.ds, sregs.es, sregs.ss) = (flat, flat, flat);
    sregs.cr3 = 0x1000;
    sregs.cr4 |= 1 << 5;
    sregs.cr0 |= 0x8000_0001;
    sregs.efer |= 0x500;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = CODE;
    regs.rflags = 2;
    vcpu.set_regs(&regs)
}

fn one_run(vcpu: &mut VcpuFd) -> Result<Duration, String> {
    let begun = Instant::now();
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(PORT, _)) => return Ok(begun.elapsed()),
            Ok(VcpuExit::Intr) => {}
            Ok(other) => return Err(format!("the guest stopped with {other:?}")),
            Err(error) if error.errno() == nix::libc::EINTR => {}
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emulator_is_told_from_a_processor() {
        assert_eq!(judge(Duration::from_micros(20)).unwrap().per_turn, Duration::from_nanos(1));
        assert!(judge(Duration::from_micros(1150)).is_ok());
        let slow = judge(Duration::from_millis(25)).unwrap_err();
        assert!(slow.reason.contains("25.0 ms"), "{slow}");
    }
}
