//! `magikvm doctor`: checks everything that pods need from the host, and suggests fixes.
//!
//! The checks are pure: they receive what the drivers report, and read files through [`host::Host`].

mod check;
#[cfg(target_os = "linux")]
mod containers;
mod drivers;
mod host;
mod isolation;
mod networks;
mod report;
mod storage;
mod system;
#[cfg_attr(target_os = "macos", path = "hypervisor.rs")]
mod virtualization;

use super::error::Kind;
use super::{CliError, Format, Outcome, cni, print_as, ui};
use crate::net::cni::Places as CniPlaces;
use crate::net::host::HostNetwork;
use crate::net::passt::{self, PasstError};
use crate::pod::interface::PodRuntimeInterface;
use crate::runtime::microvm::check_guest;
use crate::store::text::chain;
use crate::vmm::qemu::Qemu;
use crate::vmm::{DriverOptions, KernelChoice, Places, krun};
use host::Host;
use magikvm_proto::guest_image::Arch;
use report::{DoctorReport, GuestFor, Machines, Pods};
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Output format
    #[arg(short, long)]
    output: Option<Format>,
    /// Directory of the guest image
    #[arg(long, value_name = "DIR", env = "MAGIKVM_GUEST")]
    guest: Option<PathBuf>,
    /// Require hardware virtualization: exit with 3 if pods can run by software emulation or without a VM only
    #[arg(long)]
    hardware: bool,
    #[command(flatten)]
    cni: cni::Options,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let guest = args.guest.clone().unwrap_or_else(|| pods.layout().guest_image());
    let report = examine(&guest, &args.cni.places(), pods, &Host::of_process());
    if let Some(format) = args.output {
        let value = serde_json::to_value(&report).map_err(|error| CliError::of(Kind::Internal, &error))?;
        print_as(&value, format)?;
    } else {
        for check in &report.checks {
            ui::line(&check.lines());
        }
        ui::line(&report.summary());
    }
    let enough = report.hardware || ((report.emulation || report.containers) && !args.hardware);
    Ok(if enough { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

/// The group that a pod's NAT runs as. Root's pods have users of their own, whose numbers are close to each other.
fn group_of_nat() -> u32 {
    match crate::jail::identity("doctor", &[]) {
        crate::jail::Identity::Nobody(user) => user.id(),
        _ => nix::unistd::getegid().as_raw(),
    }
}

/// The version that passt prints, if it can do what pods need.
fn passt_version(path: &std::path::Path) -> Result<String, PasstError> {
    passt::check(Some(path)).and_then(passt::version)
}

fn examine(
    guest: &std::path::Path,
    cni: &CniPlaces,
    pods: &PodRuntimeInterface,
    host: &Host,
) -> DoctorReport {
    let layout = pods.layout();
    let (image, places) = (check_guest(guest), Places::of(pods.layout()));
    let stated = image.as_ref().ok().map(|image| image.arch);
    let guest_for = match stated {
        Some(arch) if arch.as_str() != host.arch => GuestFor::AnotherProcessor,
        Some(_) | None => GuestFor::ThisProcessor,
    };
    // Without a guest image: what a guest of the host's own architecture needs.
    let arch = stated.or_else(Arch::native).unwrap_or(Arch::X86_64);
    let hardware = virtualization::of_machine(host, &places.verdicts);
    let qemu =
        Qemu::from_environment(DriverOptions { guest: arch, kernel: KernelChoice::GuestImage, places });
    let machines = Machines {
        hardware,
        krun: drivers::libkrun(krun::version()),
        qemu: drivers::qemu(qemu.version()),
        vsock: drivers::vsock(host, qemu.vsock().map(ToOwned::to_owned)),
        guest_for,
    };
    let mut others = vec![
        (Pods::WithVms, drivers::guest_image(guest, &image, guest_for)),
        (Pods::All, storage::directories(&layout.pods(), &layout.images(), &host.user)),
        (Pods::All, storage::policy(&layout.policy())),
        (Pods::All, storage::scratch()),
        (Pods::WithVms, drivers::libkrunfw(host, krun::probe_libkrunfw())),
        (Pods::All, drivers::network(&HostNetwork::look(), group_of_nat())),
        (Pods::All, drivers::passt(host, passt_version)),
    ];
    if cfg!(target_os = "linux") {
        others.push((Pods::WithoutVms, networks::check(cni)));
        let own = [system::user_namespaces(host), system::subordinate_ids(host), system::cgroups(host)];
        others.extend(own.map(|check| (Pods::All, check)));
        let jail = isolation::checks(crate::vmm::jails::trial().map_err(|error| chain(&error)));
        others.extend(jail.into_iter().map(|check| (Pods::All, check)));
    }
    #[cfg(target_os = "linux")]
    others.extend(networks::check_connections(pods).map(|check| (Pods::WithoutVms, check)));
    #[cfg(target_os = "linux")]
    others.extend(
        containers::of_machine(host, &layout.images()).into_iter().map(|check| (Pods::WithoutVms, check)),
    );
    DoctorReport::new(machines, others)
}
