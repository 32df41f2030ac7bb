//! The kernel's parameters that belong to the pod. They are set once its network is up, since some belong to an interface. Must not know: what a
//! pod may set (the plan is checked).

use super::FurnishError;
use magikvm_proto::plan::GuestPlan;
use std::fs;
use std::io;
use std::path::Path;

/// The largest group that may be in the range of [`PING`].
const MAX_GROUP: u32 = i32::MAX.cast_unsigned();
const PING: &str = "net/ipv4/ping_group_range";

/// As in other container tools: the network is the pod's own, so every user of the pod may listen on low ports and send pings.
fn defaults() -> [(&'static str, String); 2] {
    [("net/ipv4/ip_unprivileged_port_start", "0".to_owned()), (PING, format!("0 {}", last_group()))]
}

/// The last group that exists in this user namespace. The kernel refuses a range that ends behind it.
fn last_group() -> u32 {
    let map = fs::read_to_string("/proc/self/gid_map").unwrap_or_default();
    let last = |line: &str| {
        let mut numbers = line.split_ascii_whitespace().map(str::parse::<u32>);
        let (first, _, count) = (numbers.next()?.ok()?, numbers.next(), numbers.next()?.ok()?);
        Some(first.saturating_add(count - 1))
    };
    map.lines().filter_map(last).max().unwrap_or(MAX_GROUP).min(MAX_GROUP)
}

/// Sets the defaults of a network that is the pod's own.
pub(super) fn set_defaults() -> Result<(), FurnishError> {
    defaults().iter().try_for_each(|(path, value)| write(path, value).map_err(failed(path, value)))
}

/// Sets the pod's parameters in their order.
pub(super) fn set(plan: &GuestPlan) -> Result<(), FurnishError> {
    for sysctl in &plan.sysctls {
        let written = sysctl.path().map_err(io::Error::other).and_then(|path| write(&path, &sysctl.value));
        written.map_err(failed(&sysctl.name, &sysctl.value))?;
    }
    Ok(())
}

fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(Path::new("/proc/sys").join(path), value)
}

fn failed(name: &str, value: &str) -> impl FnOnce(io::Error) -> FurnishError {
    let (name, value) = (name.to_owned(), value.to_owned());
    move |source| FurnishError::Sysctl { name, value, source }
}
