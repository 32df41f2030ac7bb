//! Checks whether hardware virtualization works on macOS: whether the Hypervisor framework makes a VM for this program. The answer is not
//! stored, because the check takes no time.
//!
//! The counterpart of `probe.rs` for Linux.
#![allow(unsafe_code, reason = "the framework's functions are C")]

use super::Unavailable;
use nix::libc;
use std::ffi::c_void;
use std::path::Path;

const ENTITLEMENT: &str = "com.apple.security.hypervisor";
/// The framework's `HV_SUCCESS`.
const SUCCESS: i32 = 0;
/// `HV_DENIED`: without the entitlement.
const DENIED: i32 = 0xfae9_4007_u32.cast_signed();

#[link(name = "Hypervisor", kind = "framework")]
unsafe extern "C" {
    /// Makes this process's VM. A process can have only one.
    fn hv_vm_create(config: *mut c_void) -> i32;
    fn hv_vm_destroy() -> i32;
}

/// Checks whether hardware virtualization works. Only other systems, whose check is slow, use the directory.
pub fn hardware(_dir: &Path) -> Result<(), Unavailable> {
    if !is_there() {
        return Err(Unavailable {
            reason: "this Mac has no hardware virtualization (sysctl kern.hv_support)".to_owned(),
            remedy: "Run on a Mac with Apple silicon; in a VM, its host must offer nested virtualization."
                .to_owned(),
        });
    }
    // SAFETY: without a configuration the framework uses its default. This process makes no other VM, because a process that becomes a VM never
    // calls this.
    match unsafe { hv_vm_create(std::ptr::null_mut()) } {
        SUCCESS => {}
        DENIED => {
            return Err(Unavailable {
                reason: format!("macOS refuses this program a VM: it is not signed with {ENTITLEMENT}"),
                remedy: "Sign it with `codesign --force --sign - --entitlements dist/macos/entitlements.plist PATH-OF-MAGIKVM`."
                    .to_owned(),
            });
        }
        other => {
            return Err(Unavailable {
                reason: format!("the Hypervisor framework cannot make a VM: error {other:#x}"),
                remedy:
                    "See the system's messages with `log show --last 5m --predicate 'sender == \"Hypervisor\"'`."
                        .to_owned(),
            });
        }
    }
    // SAFETY: it takes nothing; the VM has neither memory nor processors.
    let gone = unsafe { hv_vm_destroy() };
    if gone != SUCCESS {
        // The VM ends with this process, which makes no other one.
    }
    Ok(())
}

/// The same, because the check is always made anew.
pub fn hardware_afresh(dir: &Path) -> Result<(), Unavailable> {
    hardware(dir)
}

/// A number that the kernel reports about the processor.
fn is_there() -> bool {
    let mut answer = 0i32;
    let mut size = size_of::<i32>();
    // SAFETY: the name ends in NUL, and the buffer has the given size.
    let failed = unsafe {
        libc::sysctlbyname(
            c"kern.hv_support".as_ptr(),
            (&raw mut answer).cast(),
            &raw mut size,
            std::ptr::null_mut(),
            0,
        )
    };
    failed == 0 && answer == 1
}
