//! What a connection may carry, depending on its request.

use super::{MAX_CHANNELS, Side};

/// The host's data on exec and attach: input of the process.
pub const STDIN: u16 = 0;
/// The guest's data on exec and attach: output of the process, or all of it if the process has a terminal.
pub const STDOUT: u16 = 0;
/// The guest's data on exec and attach: error output of the process.
pub const STDERR: u16 = 1;

/// Channels of one container on a connection for logs: one for each output.
const OUTPUTS: u16 = 2;

/// What may be sent in one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Direction {
    /// Channels below this number may carry data.
    pub(super) channels: u16,
    pub(super) messages: bool,
    pub(super) urgent: bool,
}

const NOTHING: Direction = Direction { channels: 0, messages: false, urgent: false };
const BYTES: Direction = Direction { channels: 1, messages: false, urgent: false };

/// What a connection may carry in each direction. Anything else is a [`Violation`](super::Violation).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    to_host: Direction,
    to_guest: Direction,
}

impl Traffic {
    /// A forwarded port: bytes both ways.
    pub const PORT: Self = Self { to_host: BYTES, to_guest: BYTES };
    /// Events: bytes from the guest.
    pub const EVENTS: Self = Self { to_host: BYTES, to_guest: NOTHING };
    /// Exec and attach: the streams of one process, the guest's messages about them, and urgent messages of the host.
    pub const PROCESS: Self = Self {
        to_host: Direction { channels: 2, messages: true, urgent: false },
        to_guest: Direction { channels: 1, messages: false, urgent: true },
    };

    /// Logs of a pod with this many containers.
    #[must_use]
    pub fn logs(containers: usize) -> Self {
        let channels = u16::try_from(containers).unwrap_or(u16::MAX).saturating_mul(OUTPUTS);
        let to_host = Direction { channels: channels.min(MAX_CHANNELS), messages: true, urgent: false };
        Self { to_host, to_guest: NOTHING }
    }

    /// What this side may receive.
    pub(super) fn to(&self, side: Side) -> Direction {
        match side {
            Side::Host => self.to_host,
            Side::Guest => self.to_guest,
        }
    }
}

/// The channel of logs for an output ([`STDOUT`] or [`STDERR`]) of the container at this index of the plan; `None` if the index exceeds the
/// number of channels.
#[must_use]
pub fn log_channel(container: usize, output: u16) -> Option<u16> {
    let channel = u16::try_from(container).ok()?.checked_mul(OUTPUTS)?.checked_add(output)?;
    (channel < MAX_CHANNELS).then_some(channel)
}

/// The container's index in the plan and the output that a channel of logs carries.
#[must_use]
pub fn log_source(channel: u16) -> (usize, u16) {
    (usize::from(channel / OUTPUTS), channel % OUTPUTS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_of_logs_are_numbered_by_container_and_output() {
        for container in 0..usize::from(MAX_CHANNELS / OUTPUTS) {
            for output in [STDOUT, STDERR] {
                let channel = log_channel(container, output).unwrap();
                assert_eq!(log_source(channel), (container, output));
                assert!(channel < Traffic::logs(container + 1).to(Side::Host).channels);
                assert!(channel >= Traffic::logs(container).to(Side::Host).channels);
            }
        }
        assert_eq!(log_channel(512, STDOUT), None);
        assert_eq!(log_channel(usize::MAX, STDERR), None);
        assert_eq!(Traffic::logs(usize::MAX).to(Side::Host).channels, MAX_CHANNELS);
    }
}
