//! `vminit`: PID 1 of a magikvm microVM. It carries out the plan that the host baked into the pod's own file
//! system: mounts, containers (libcontainer), an agent on vsock, restarts, an orderly end.
//!
//! Order matters here. Everything up to [`spawner::start`] runs before the first thread, because the spawner is a
//! fork of this process that forks further, and a fork of a process with threads can't run ordinary code.

mod agent;
mod boot;
mod bundle;
mod cgroup;
mod clock;
mod console;
mod devices;
mod events;
mod forward;
mod load;
mod network;
mod output;
mod pod;
mod power;
mod reaper;
mod rootfs;
mod spawner;
mod stats;
mod supervisor;
mod sync;
mod sys;
mod user;
mod volumes;

use std::process::ExitCode;

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
        console::say(&format!("cannot start: {}", console::chain(&error)));
    }
    power::end_vm();
}

/// What keeps vminit from serving at all. A pod that can't run is no such thing: the agent reports it.
#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error(transparent)]
    Boot(#[from] boot::BootError),
    #[error(transparent)]
    Spawner(#[from] spawner::SpawnerError),
    #[error("no agent socket")]
    Agent(#[source] std::io::Error),
    #[error("no thread")]
    Thread(#[source] std::io::Error),
}

fn run() -> Result<(), InitError> {
    boot::mount_all()?;
    let spawner = spawner::start()?;
    // From here on the host's connection is accepted by the kernel, even while vminit is still busy.
    let listener = sys::vsock_listen(magikvm_proto::path::AGENT_PORT).map_err(InitError::Agent)?;
    let forwards = sys::vsock_listen_for_many(magikvm_proto::path::FORWARD_PORT).map_err(InitError::Agent)?;
    // A host that connects earlier is refused by the kernel at best; one vsock device program even stops for good
    // when it is used before its queues are set up. Whoever reads the console knows from this line that it may
    // connect.
    console::say(LISTENING);
    supervisor::run(spawner, listener, forwards).map_err(InitError::Thread)
}
