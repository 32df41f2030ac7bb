//! Checks whether hardware virtualization works. The existence of /dev/kvm proves nothing: a nested host may emulate the guest's ring 0 one
//! instruction at a time. Therefore a very small VM runs a counted loop at the kernel's privilege level, and the time that it takes decides.
#![allow(unsafe_code, reason = "giving memory to a VM is an unsafe call of kvm-ioctls")]

#[cfg(target_arch = "aarch64")]
#[path = "kvm/aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "kvm/x86_64.rs"]
mod arch;

use super::Unavailable;
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};
use std::time::{Duration, Instant};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap};

const TURNS: u16 = 20_000;
/// Hardware needs about a nanosecond for a turn, and up to a hundred in a VM whose host is busy. Emulators have needed a thousand and more.
/// The limit lies between the two.
const MAX_NS_PER_TURN: u128 = 400;
/// A run that is faster than this was not emulated, however busy the host is.
const FAST_NS_PER_TURN: u128 = 60;
/// No host is so busy that the best of several runs on hardware is slower than this.
const SLOW_NS_PER_TURN: u128 = 2_000;
/// Runs before an emulator is recognized.
const RUNS: usize = 3;
/// Runs before a doubtful time counts. They take about a second at the slowest doubtful speed.
const RUNS_IN_DOUBT: usize = 25;
/// Bytes of the VM's memory: whole pages on any host.
const MEMORY: usize = 0x1_0000;
/// Address of the loop in that memory.
const CODE: u64 = 0x4000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// Time of one turn of the loop in the best run.
    pub per_turn: Duration,
}

#[derive(Debug)]
pub struct Device(Kvm);

/// Opens /dev/kvm. The error has the cause and a remedy.
pub fn open() -> Result<Device, Unavailable> {
    Kvm::new().map(Device).map_err(|error| match error.errno() {
        nix::libc::ENOENT | nix::libc::ENODEV | nix::libc::ENXIO => Unavailable {
            reason: "there is no /dev/kvm on this host".to_owned(),
            remedy: arch::REMEDY.to_owned(),
        },
        nix::libc::EACCES | nix::libc::EPERM => Unavailable {
            reason: "this user may not open /dev/kvm".to_owned(),
            remedy: "Add the user to the group kvm with `sudo usermod -aG kvm $USER`, then log in again."
                .to_owned(),
        },
        _ => Unavailable {
            reason: format!("/dev/kvm cannot be opened: {error}"),
            remedy: "See the kernel's messages about kvm with `dmesg | grep -i kvm`.".to_owned(),
        },
    })
}

/// Runs the loop, more often if its time leaves doubt, and returns the time of the best run.
pub fn measure(device: &Device) -> Result<Duration, Unavailable> {
    let failed = |step: &str, error: &dyn std::fmt::Display| Unavailable {
        reason: format!("/dev/kvm is there but cannot run a guest: {step}: {error}"),
        remedy: "See the kernel's messages about kvm with `dmesg | grep -i kvm`.".to_owned(),
    };
    let vm = device.0.create_vm().map_err(|error| failed("creating a VM", &error))?;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY)])
        .map_err(|error| failed("mapping guest memory", &error))?;
    arch::load(&memory).map_err(|error| failed("writing guest memory", &error))?;
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
    arch::start(&device.0, &vm, &vcpu).map_err(|error| failed("setting registers", &error))?;
    let mut best = Duration::MAX;
    let mut runs = 0;
    while needs_another_run(runs, best) {
        best = best.min(one_run(&mut vcpu).map_err(|what| failed("running its first instructions", &what))?);
        runs += 1;
    }
    Ok(best)
}

fn ns_per_turn(run: Duration) -> u128 {
    run.as_nanos() / u128::from(TURNS)
}

/// Whether the best of so many runs is not yet a verdict. The host may have been busy with something else.
fn needs_another_run(runs: usize, best: Duration) -> bool {
    match ns_per_turn(best) {
        ..=FAST_NS_PER_TURN => false,
        SLOW_NS_PER_TURN.. => runs < RUNS,
        _ => runs < RUNS_IN_DOUBT,
    }
}

/// The meaning of the loop's best time.
pub fn judge(best: Duration) -> Result<Verdict, Unavailable> {
    if ns_per_turn(best) > MAX_NS_PER_TURN {
        return Err(Unavailable {
            reason: format!(
                "/dev/kvm only emulates: {TURNS} turns of a loop took {:.1} ms, hardware takes about 0.02 ms",
                best.as_secs_f64() * 1e3
            ),
            remedy: "Run in a VM whose host passes hardware virtualization through, or on a physical host."
                .to_owned(),
        });
    }
    Ok(Verdict { per_turn: best / u32::from(TURNS) })
}

fn one_run(vcpu: &mut VcpuFd) -> Result<Duration, String> {
    let begun = Instant::now();
    loop {
        match vcpu.run() {
            Ok(exit) if arch::is_end(&exit) => return Ok(begun.elapsed()),
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
        // The best of three runs on a busy host with hardware.
        assert!(judge(Duration::from_micros(1700)).is_ok());
        let slow = judge(Duration::from_millis(25)).unwrap_err();
        assert!(slow.reason.contains("25.0 ms"), "{slow}");
    }

    #[test]
    fn doubt_is_met_with_more_runs() {
        let runs = |times: &dyn Fn(usize) -> Duration| {
            let (mut best, mut runs) = (Duration::MAX, 0);
            while needs_another_run(runs, best) {
                best = best.min(times(runs));
                runs += 1;
            }
            (runs, judge(best).is_ok())
        };
        assert_eq!(runs(&|_| Duration::from_micros(20)), (1, true));
        assert_eq!(runs(&|_| Duration::from_millis(84)), (RUNS, false));
        assert_eq!(runs(&|_| Duration::from_micros(1700)), (RUNS_IN_DOUBT, true));
        // A host that becomes free after ten runs.
        let busy = |run| if run < 10 { Duration::from_millis(30) } else { Duration::from_micros(30) };
        assert_eq!(runs(&busy), (11, true));
        assert_eq!(runs(&|_| Duration::from_millis(30)), (RUNS_IN_DOUBT, false));
    }
}
