//! `magikvm doctor`: each thing a pod needs of this machine, whether it is there, and what to do if not.

use super::{Format, Outcome, print_as, ui};
use crate::pod::interface::PodRuntimeInterface;
use crate::runtime::microvm::check_guest;
use crate::vmm::{Accel, DriverOptions, KernelChoice, Places, VmmKind, driver, probe};
use magikvm_proto::guest_image::Arch;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

/// Arguments.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Print in this form
    #[arg(short, long)]
    output: Option<Format>,
    /// Directory of the guest image
    #[arg(long, value_name = "DIR", env = "MAGIKVM_GUEST")]
    guest: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Check {
    name: &'static str,
    ok: bool,
    found: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    remedy: String,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let guest = args.guest.clone().unwrap_or_else(|| pods.layout().guest_image());
    let places = pods.places();
    // Without a guest image: the machine that a guest of this machine's own architecture needs.
    let arch = check_guest(&guest).ok().map(|image| image.arch).or_else(Arch::native);
    let checks = [
        virtualization(&places),
        qemu(arch.unwrap_or(Arch::X86_64), &places),
        guest_image(&guest),
        state(pods),
    ];
    let hardware = checks.iter().all(|check| check.ok) && arch == Arch::native();
    let emulation = checks[1..].iter().all(|check| check.ok);
    if let Some(format) = args.output {
        let value = serde_json::json!({ "checks": checks, "hardware": hardware, "emulation": emulation });
        print_as(&value, format)?;
    } else {
        for check in &checks {
            ui::line(&format!(
                "[{}] {}: {}",
                if check.ok { " ok " } else { "FAIL" },
                check.name,
                check.found
            ));
            if !check.remedy.is_empty() {
                ui::line(&format!("       remedy: {}", check.remedy));
            }
        }
        ui::line(match (hardware, emulation) {
            (true, _) => "Pods can run here, each in a hardware VM.",
            (false, true) => {
                "Pods cannot run in hardware VMs here. With --accel tcg they run in software emulation: slow, and not a security boundary."
            }
            (false, false) => "Pods cannot run here.",
        });
    }
    Ok(if hardware { ExitCode::SUCCESS } else { ExitCode::from(3) })
}

fn virtualization(places: &Places) -> Check {
    let name = "hardware virtualization";
    match probe::hardware_afresh(&places.verdicts) {
        Ok(verdict) => {
            let found =
                format!("/dev/kvm runs guest code at full speed ({} ns a turn)", verdict.per_turn.as_nanos());
            Check { name, ok: true, found, remedy: String::new() }
        }
        Err(unavailable) => Check { name, ok: false, found: unavailable.reason, remedy: unavailable.remedy },
    }
}

fn qemu(guest: Arch, places: &Places) -> Check {
    let name = "VMM (qemu)";
    let options = DriverOptions { guest, kernel: KernelChoice::GuestImage, places: places.clone() };
    match driver(VmmKind::Qemu, options).probe(Accel::Tcg) {
        Ok(capabilities) => Check { name, ok: true, found: capabilities.version, remedy: String::new() },
        Err(unavailable) => Check { name, ok: false, found: unavailable.reason, remedy: unavailable.remedy },
    }
}

fn guest_image(dir: &std::path::Path) -> Check {
    let name = "guest image";
    match check_guest(dir) {
        Ok(manifest) => {
            let foreign = if Some(manifest.arch) == Arch::native() {
                ""
            } else {
                ": not this machine's processor, for --accel tcg only"
            };
            let kernel = manifest.kernel_version;
            let found = format!("{} (kernel {kernel}, {}{foreign})", dir.display(), manifest.arch);
            Check { name, ok: true, found, remedy: String::new() }
        }
        Err(error) => Check {
            name,
            ok: false,
            found: format!("{}: {error}", dir.display()),
            remedy: "make one: magikvm-image build".to_owned(),
        },
    }
}

/// Whether pods and images can be written where they are to be.
fn state(pods: &PodRuntimeInterface) -> Check {
    let name = "state directories";
    let dirs = [pods.layout().pods(), pods.layout().images()];
    let unwritable = dirs.iter().find(|dir| {
        let existing = dir.ancestors().find(|ancestor| ancestor.exists());
        existing.is_none_or(|dir| nix::unistd::access(dir, nix::unistd::AccessFlags::W_OK).is_err())
    });
    match unwritable {
        None => Check {
            name,
            ok: true,
            found: format!("{} and {}", dirs[0].display(), dirs[1].display()),
            remedy: String::new(),
        },
        Some(dir) => Check {
            name,
            ok: false,
            found: format!("{} cannot be written", dir.display()),
            remedy: "name another place with --root DIR".to_owned(),
        },
    }
}
