//! Time budgets that both ends must agree on. Each host wait is longer than what the guest may take, checked when compiling.

/// What the guest may take after the grace period to kill, reap, hand over the last log bytes and sync, in milliseconds.
pub const GUEST_TEARDOWN_MS: u64 = 4_000;
/// Part of the teardown that the guest may spend waiting for the host to take the last log bytes, in milliseconds.
pub const GUEST_LOG_DRAIN_MS: u64 = 2_000;
/// How long after the grace period the host waits for the VM to end by itself before it kills it, in milliseconds.
pub const HOST_SHUTDOWN_WAIT_MS: u64 = 8_000;
/// From the start of the VMM to the agent's first answer, in milliseconds.
pub const HOST_BOOT_WAIT_MS: u64 = 60_000;
/// How long a pod that starts may be without progress, in milliseconds, unless the user says otherwise: from the agent's first answer to the
/// first sign of progress, and from each to the next. A sign of progress is a container that was created or started.
pub const HOST_READY_WAIT_MS: u64 = 60_000;
/// How long a pod that is over waits for its host to hear of it, in milliseconds. A host that listens hears within milliseconds; this bounds
/// the wait for one that has not connected yet, because the containers were faster, and is as long as that host waits for its guest.
pub const GUEST_HEARD_WAIT_MS: u64 = HOST_BOOT_WAIT_MS;
/// First wait before a crashed container is started again after its first restart, in milliseconds (as the kubelet does).
pub const RESTART_BACKOFF_FIRST_MS: u64 = 10_000;
/// Longest wait before a crashed container is started again, in milliseconds (as the kubelet does).
pub const RESTART_BACKOFF_MAX_MS: u64 = 300_000;
/// A container that ran this long starts again from no wait, in milliseconds (as the kubelet does).
pub const RESTART_BACKOFF_RESET_MS: u64 = 600_000;
/// A guest's clock that is off by at most this, in milliseconds, is left alone: a message's way to the guest can take that long, and a clock
/// that is set back for nothing does more harm.
pub const CLOCK_TOLERANCE_MS: u64 = 50;

const _: () = assert!(HOST_SHUTDOWN_WAIT_MS > GUEST_TEARDOWN_MS);
const _: () = assert!(GUEST_TEARDOWN_MS > GUEST_LOG_DRAIN_MS);
const _: () = assert!(RESTART_BACKOFF_MAX_MS > RESTART_BACKOFF_FIRST_MS);
