//! The process of one VM: reads its settings, configures the VM, and becomes it.

use super::Settings;
use crate::vmm::report::{self, Report};
use std::io::Read;

/// The hidden verb that makes a process a VM.
pub const VMM_VERB: &str = "__vmm";
/// Longest settings, which are paths and numbers.
const MAX_SETTINGS: u64 = 256 << 10;

/// The main function of a VM's process. Returns the exit code of the process, and only if the VM could not be made.
pub fn main() -> i32 {
    let not_made = |step: &str, errno: i32, detail: String| {
        report::send(&Report::NotMade { step: step.to_owned(), errno, detail });
        1
    };
    let mut bytes = Vec::new();
    if let Err(error) = std::io::stdin().take(MAX_SETTINGS).read_to_end(&mut bytes) {
        return not_made("settings", error.raw_os_error().unwrap_or(0), error.to_string());
    }
    match serde_json::from_slice::<Settings>(&bytes) {
        Ok(settings) => become_vm(&settings),
        Err(error) => not_made("settings", nix::libc::EINVAL, error.to_string()),
    }
}

#[cfg(not(has_krun))]
fn become_vm(_settings: &Settings) -> i32 {
    let detail = "this magikvm was compiled without libkrun".to_owned();
    report::send(&Report::NotMade { step: "libkrun".to_owned(), errno: nix::libc::ENOSYS, detail });
    1
}

#[cfg(has_krun)]
fn become_vm(settings: &Settings) -> i32 {
    complaints::listen();
    let error = match made(settings) {
        Ok(context) => context.start_enter(),
        Err(error) => error,
    };
    let detail = complaints::last();
    report::send(&Report::NotMade { step: error.call.to_owned(), errno: error.errno, detail });
    1
}

#[cfg(has_krun)]
fn made(settings: &Settings) -> Result<super::api::Context, super::api::ApiError> {
    use super::{Console, Network, api};
    use crate::store::layout::{AGENT_SOCK, FORWARD_SOCK};
    use std::os::fd::AsRawFd;
    let context = api::Context::new(settings.vcpus, settings.memory_mib)?;
    context.set_nested(settings.nested)?;
    context.set_kernel(&settings.kernel, &settings.initramfs, &settings.cmdline)?;
    context.add_disk(c"disk", &settings.disk)?;
    for disk in settings.scratch.iter().chain(&settings.lasting) {
        context.add_writable(disk)?;
    }
    if let Some(shared) = &settings.shared {
        context.add_shared(magikvm_proto::path::SHARED_TAG, shared)?;
    }
    // Relative to the working directory, because a socket's address holds only 107 bytes.
    let is_tsi = settings.network == Network::Tsi;
    let ports = [(settings.agent_port, AGENT_SOCK), (settings.forward_port, FORWARD_SOCK)];
    context.add_vsock(&ports, is_tsi)?;
    if let Network::Stream { mac, fd } = settings.network {
        context.add_nic(fd, mac)?;
    }
    let (input, output) = (std::io::stdin().as_raw_fd(), std::io::stdout().as_raw_fd());
    match settings.console {
        Console::Serial => context.add_serial_console(output)?,
        Console::Virtio => context.add_virtio_console(input, output)?,
    }
    Ok(context)
}

/// libkrun's log messages. The library logs its errors and then returns one number for all of them.
#[cfg(has_krun)]
mod complaints {
    use crate::vmm::report::{self, Report};
    use log::{Level, LevelFilter, Log, Metadata, Record};
    use std::io::Write;
    use std::sync::{Mutex, PoisonError};

    /// libkrun's message for a triple fault. Any other end of the guest goes through the keyboard controller.
    const TRIPLE_FAULT: &str = "Received KVM_EXIT_SHUTDOWN signal";

    static LAST: Mutex<String> = Mutex::new(String::new());

    struct Listener;

    /// Reports errors from now on, and prints warnings and errors on standard error.
    pub(super) fn listen() {
        static LISTENER: Listener = Listener;
        if log::set_logger(&LISTENER).is_ok() {
            log::set_max_level(LevelFilter::Info);
        }
    }

    /// The last error; empty when there was none.
    pub(super) fn last() -> String {
        LAST.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    impl Log for Listener {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.level() <= Level::Warn || metadata.target().ends_with("vstate")
        }

        fn log(&self, record: &Record<'_>) {
            if !self.enabled(record.metadata()) {
                return;
            }
            let message = record.args().to_string();
            match record.level() {
                Level::Error => {
                    message.clone_into(&mut LAST.lock().unwrap_or_else(PoisonError::into_inner));
                    report::send(&Report::Complaint { message: message.clone() });
                }
                Level::Warn => {}
                _ if message == TRIPLE_FAULT => return report::send(&Report::TripleFault),
                _ => return,
            }
            crate::store::text::ignore(writeln!(std::io::stderr(), "libkrun: {message}"), "nobody listens");
        }

        fn flush(&self) {}
    }
}
