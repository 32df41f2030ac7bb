//! The probe's VM on x86_64: a loop in ring 0 that ends with a write to a port.

use super::{CODE, TURNS};
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_segment};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The hint for hosts without /dev/kvm.
pub(super) const REMEDY: &str = "Enable virtualization in the firmware (or nested virtualization on the host of this VM), and load a module with `modprobe kvm_intel` or `modprobe kvm_amd`.";
const PORT: u16 = 0x10;

/// Page tables that map the first 2 MiB onto themselves, and the loop.
pub(super) fn load(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 0b1000_0000;
    memory.write_obj(0x2000 | PRESENT_WRITABLE, GuestAddress(0x1000))?;
    memory.write_obj(0x3000 | PRESENT_WRITABLE, GuestAddress(0x2000))?;
    memory.write_obj(PRESENT_WRITABLE | LARGE, GuestAddress(0x3000))?;
    let [a, b] = TURNS.to_le_bytes();
    let [port, _] = PORT.to_le_bytes();
    // mov ecx, TURNS; 1: dec ecx; jnz 1b; out PORT, al; jmp to the start
    let code = [0xB9, a, b, 0, 0, 0xFF, 0xC9, 0x75, 0xFC, 0xE6, port, 0xEB, 0xF3];
    memory.write_slice(&code, GuestAddress(CODE))
}

/// 64-bit mode, ring 0, interrupts off.
pub(super) fn start(kvm: &Kvm, _vm: &VmFd, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    // A processor without CPUID entries has no long mode, and newer kernels refuse to set it.
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
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

/// Whether the loop has ended.
pub(super) fn is_end(exit: &VcpuExit<'_>) -> bool {
    matches!(exit, VcpuExit::IoOut(PORT, _))
}
