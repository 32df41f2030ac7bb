//! The end of the VM. Owns: the only call of reboot(2), and the effect of a panic. Must not know: pods.

use crate::{console, lasting};
use magikvm_supervisor::extension::contains_panic;
use nix::sys::reboot::{RebootMode, reboot};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this process is a forked copy, whose death must not end the VM.
static FORKED: AtomicBool = AtomicBool::new(false);

/// Must be called first in every forked copy of vminit.
pub(crate) fn this_is_a_forked_copy() {
    FORKED.store(true, Ordering::Relaxed);
}

/// Ends the VM: both drivers treat a restart as the end. Never returns.
pub(crate) fn end_vm() -> ! {
    nix::unistd::sync();
    lasting::leave();
    let Err(errno) = reboot(RebootMode::RB_AUTOBOOT);
    console::say(&format!("reboot failed: {errno}"));
    loop {
        std::thread::park();
    }
}

/// Makes a panic of PID 1 end the VM in order, a panic of a forked copy only that copy, and a panic of an extension only the extension.
pub(crate) fn set_panic_hook() {
    std::panic::set_hook(Box::new(|info| {
        console::say(&format!("panic: {info}"));
        if FORKED.load(Ordering::Relaxed) {
            magikvm_containers::exit_now(101);
        }
        if !contains_panic() {
            end_vm();
        }
    }));
}
