//! Hardware virtualization on macOS: what `virtualization.rs` is for Linux.

use super::check::Check;
use super::host::Host;
use crate::vmm::probe;
use std::path::Path;

const NAME: &str = "hardware virtualization";
const NEEDED_FOR: &str = "running pods in hardware VMs, which isolate them from this host";

/// The check of this host.
pub(super) fn of_machine(_host: &Host, verdicts: &Path) -> Check {
    match probe::hardware_afresh(verdicts) {
        Ok(()) => Check::ok(NAME, "the Hypervisor framework creates VMs for this program"),
        Err(why) => Check::unavailable(NAME, NEEDED_FOR, why),
    }
}
