//! `vminit`: PID 1 of a magikvm microVM. It prepares the VM for the pod that the host has described in the pod's own file system (mounts,
//! volumes, network, clock), and then becomes the pod's supervisor: `magikvm_supervisor` with the containers of `magikvm_containers`.
//!
//! The order matters. Everything up to [`LinuxContainers::start`] runs before the first thread, because the spawner is a
//! fork of this process that forks again, and a fork of a process with threads can't run ordinary code.

mod boot;
mod clock;
mod console;
mod group;
mod home;
mod lasting;
mod load;
mod power;
mod scratch;
mod sys;
mod trim;

use home::Vm;
use magikvm_containers::{LinuxContainers, PodCgroup};
use magikvm_proto::plan::GuestPlan;
use magikvm_proto::site::Site;
use magikvm_supervisor::text::chain;
use scratch::Early;
use std::process::ExitCode;
use std::sync::Arc;

/// Wire generation and version of this program, for `magikvm-image` to find in the program file.
static STAMP: [u8; magikvm_proto::guest_image::INIT_STAMP_LEN] =
    magikvm_proto::guest_image::init_stamp(env!("CARGO_PKG_VERSION"));

/// [`magikvm_proto::path::AGENT_LISTENING`] without the prefix of every console line.
const LISTENING: &str = "listening";

fn main() -> ExitCode {
    std::hint::black_box(&STAMP);
    if std::process::id() != 1 {
        eprintln!("vminit is PID 1 of a magikvm microVM; it is not meant to be started by hand");
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

/// Why vminit can't serve at all. The agent reports a pod that can't run; that is not such an error.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    #[error("cannot prepare to make containers")]
    Containers(#[from] magikvm_containers::StartError),
    #[error("cannot open the agent's socket")]
    Agent(#[source] std::io::Error),
    #[error("cannot start a thread")]
    Thread(#[source] std::io::Error),
}

fn run() -> Result<(), InitError> {
    let site = Site::guest();
    boot::mount_all(&site)?;
    let containers =
        LinuxContainers::start(site.clone(), PodCgroup::Make, console::say, power::this_is_a_forked_copy)?;
    // Every thread that is started from here on inherits this.
    magikvm_supervisor::block_signals().map_err(InitError::Thread)?;
    let scratch = scratch::begin(&site).map_err(InitError::Thread)?;
    let home = Arc::new(Vm::listen().map_err(InitError::Agent)?);
    // The kernel refuses a host that connects earlier, and one vsock device program even stops for good
    // when it is used before its queues are set up. This line tells a reader of the console that it may
    // connect.
    console::say(LISTENING);
    let plan = prepare(&site, &containers, scratch);
    let extensions =
        plan.as_ref().map_or_else(|_| Vec::new(), |plan| magikvm_supervisor::extensions(&site, plan));
    magikvm_supervisor::run(plan, extensions, Arc::new(containers), home).map_err(InitError::Thread)
}

/// The plan, once everything that its containers need is ready; or the reason why the pod can't run.
fn prepare(site: &Site, containers: &LinuxContainers, scratch: Early) -> Result<GuestPlan, String> {
    let plan = load::load(site, scratch).map_err(|error| chain(&error))?;
    containers
        .share(plan.process_namespace)
        .map_err(|error| format!("cannot make the shared process namespace: {error}"))?;
    containers.limit(&plan.limits).map_err(|error| format!("cannot limit the pod: {error}"))?;
    Ok(plan)
}
