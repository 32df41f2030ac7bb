//! The probe's VM on aarch64: a loop at exception level 1 in the state after a reset (no translation, interrupts masked). It ends with a
//! write to an address without memory.

use super::{CODE, TURNS};
use kvm_bindings::kvm_vcpu_init;
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The hint for hosts without /dev/kvm.
pub(super) const REMEDY: &str = "Use a kernel with KVM that the firmware starts at exception level 2; in a VM, its host must offer nested virtualization.";
/// Above the VM's memory. The code's `mov x1` has the same value.
const NO_MEMORY: u64 = 0x10_0000;
/// The program counter in `KVM_SET_ONE_REG`: `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE`, and its place in `struct kvm_regs` in words.
const PROGRAM_COUNTER: u64 = 0x6030_0000_0010_0040;

pub(super) fn load(memory: &GuestMemoryMmap) -> Result<(), vm_memory::GuestMemoryError> {
    let code: [u32; 10] = [
        // A reset leaves the instruction cache off. Turn it on: mrs x1, sctlr_el1; orr x1, x1, #1 << 12; msr sctlr_el1, x1; isb
        0xD538_1001,
        0xB274_0021,
        0xD518_1001,
        0xD503_3FDF,
        // again: mov w0, #TURNS
        0x5280_0000 | u32::from(TURNS) << 5,
        // 1: subs w0, w0, #1; b.ne 1b
        0x7100_0400,
        0x54FF_FFE1,
        // mov x1, #NO_MEMORY; str w0, [x1]; b again
        0xD2A0_0201,
        0xB900_0020,
        0x17FF_FFFB,
    ];
    memory.write_slice(&code.map(u32::to_le_bytes).concat(), GuestAddress(CODE))
}

/// The host's type of processor, right after its reset, at our code.
pub(super) fn start(_kvm: &Kvm, vm: &VmFd, vcpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init)?;
    vcpu.vcpu_init(&init)?;
    vcpu.set_one_reg(PROGRAM_COUNTER, &CODE.to_le_bytes())?;
    Ok(())
}

/// Whether the loop has ended.
pub(super) fn is_end(exit: &VcpuExit<'_>) -> bool {
    matches!(exit, VcpuExit::MmioWrite(NO_MEMORY, _))
}
