//! `vminit`: PID 1 of a magikvm microVM. It makes the VM ready for the pod that the host has described in the pod's own file system (mounts,
//! volumes, network, clock), and is then the pod's supervisor: `magikvm_supervisor` with the containers of `magikvm_containers`.
//!
//! Order matters here. Everything up to [`LinuxContainers::start`] runs before the first thread, because the spawner is a
//! fork of this process that forks further, and a fork of a process with threads can't run ordinary code.

mod boot;
mod clock;
mod console;
mod home;
mod load;
mod network;
mod power;
mod stats;
mod sys;
mod volumes;

use home::Vm;
use magikvm_containers::LinuxContainers;
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::site::Site;
use magikvm_supervisor::text::chain;
use std::process::ExitCode;
use std::sync::Arc;

/// What wire generation and version this is, for `magikvm-image` to find in the program file.
static STAMP: [u8; magikvm_proto::guest_image::INIT_STAMP_LEN] =
    magikvm_proto::guest_image::init_stamp(env!("CARGO_PKG_VERSION"));

/// [`magikvm_proto::path::AGENT_LISTENING`] without the prefix that every console line has.
const LISTENING: &str = "listening";

fn main() -> ExitCode {
    std::hint::black_box(&STAMP);
    if std::process::id() != 1 {
        eprintln!("vminit is process 1 of a magikvm microVM; it is not meant to be started by hand");
        return ExitCode::from(2);
    }
    power::set_panic_hook();
    sys::one_malloc_arena();
    sys::clear_environment();
    if let Err(error) = run() {
        console::say(&format!("cannot start: {}", chain(&error)));
    }
    power::end_vm();
}

/// What keeps vminit from serving at all. A pod that can't run is no such thing: the agent reports it.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    #[error("containers cannot be made")]
    Containers(#[from] magikvm_containers::StartError),
    #[error("no agent socket")]
    Agent(#[source] std::io::Error),
    #[error("no thread")]
    Thread(#[source] std::io::Error),
}

fn run() -> Result<(), InitError> {
    let site = Site::guest();
    boot::mount_all(&site)?;
    let containers = LinuxContainers::start(site.clone(), console::say, power::this_is_a_forked_copy)?;
    let home = Arc::new(Vm::listen().map_err(InitError::Agent)?);
    // A host that connects earlier is refused by the kernel at best; one vsock device program even stops for good
    // when it is used before its queues are set up. Whoever reads the console knows from this line that it may
    // connect.
    console::say(LISTENING);
    magikvm_supervisor::block_signals().map_err(InitError::Thread)?;
    let plan = prepare(&site, &containers);
    magikvm_supervisor::run(plan, Arc::new(containers), home).map_err(InitError::Thread)
}

/// The plan, once everything is ready that its containers need; or why there is none.
fn prepare(site: &Site, containers: &LinuxContainers) -> Result<GuestPlan, String> {
    let plan = load::load(site).map_err(|error| chain(&error))?;
    containers
        .share(plan.process_namespace)
        .map_err(|error| format!("no shared process namespace: {error}"))?;
    Ok(plan)
}
