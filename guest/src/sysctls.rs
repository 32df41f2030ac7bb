//! The kernel's parameters that belong to the pod. They are set once its network is up, since some belong to an interface. Must not know: what a
//! pod may set (the plan is checked).

use crate::load::LoadError;
use magikvm_proto::plan::GuestPlan;
use std::fs;
use std::io;
use std::path::Path;

/// As in other container tools: the network is the pod's own, so every user of the pod may listen on low ports and send pings.
const DEFAULTS: [(&str, &str); 2] =
    [("net/ipv4/ip_unprivileged_port_start", "0"), ("net/ipv4/ping_group_range", "0 2147483647")];

/// Sets the defaults, and then the pod's parameters in their order.
pub(crate) fn set(plan: &GuestPlan) -> Result<(), LoadError> {
    for (path, value) in DEFAULTS {
        write(path, value).map_err(failed(path, value))?;
    }
    for sysctl in &plan.sysctls {
        let written = sysctl.path().map_err(io::Error::other).and_then(|path| write(&path, &sysctl.value));
        written.map_err(failed(&sysctl.name, &sysctl.value))?;
    }
    Ok(())
}

fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys").join(path), value)
}

fn failed(name: &str, value: &str) -> impl FnOnce(io::Error) -> LoadError {
    let (name, value) = (name.to_owned(), value.to_owned());
    move |source| LoadError::Sysctl { name, value, source }
}
