//! Time budgets that both ends must agree on. Each host wait is longer than what the guest may take; the compiler checks that.

/// What the guest may take after the grace period to ask those that could not be asked within it, to kill, reap, hand over the last log
/// bytes and sync, in milliseconds.
pub const GUEST_TEARDOWN_MS: u64 = 6_000;
/// How much of the teardown the guest may spend waiting for the host to take the last log bytes, in milliseconds.
pub const GUEST_LOG_DRAIN_MS: u64 = 2_000;
/// How long all extensions of the supervisor together may take to stop, in milliseconds. It is part of the teardown.
pub const EXTENSION_STOP_MS: u64 = 500;
/// How long after the grace period the host waits for the VM to end by itself before it kills it, in milliseconds.
pub const HOST_SHUTDOWN_WAIT_MS: u64 = 8_000;
/// From the start of the VMM to the agent's first answer, in milliseconds. If the VM is booted again meanwhile, both boots share this time.
pub const HOST_BOOT_WAIT_MS: u64 = 60_000;
/// How long the agent of the first boot may be silent before the VM is booted once more, in milliseconds. On an idle host a boot takes a
/// second or two; this is for a host that is very busy, since its guest would only lose what it has done so far.
pub const HOST_FIRST_BOOT_WAIT_MS: u64 = 30_000;
/// How long the killed processes of the first boot may take to disappear, in milliseconds.
pub const HOST_BOOT_END_WAIT_MS: u64 = 5_000;
/// What is left at least to the second boot, in milliseconds, and to the preparation of its files.
pub const HOST_SECOND_BOOT_WAIT_MS: u64 = 25_000;
/// How long a starting pod may make no progress, in milliseconds, unless the user sets another limit: from the agent's first answer to the
/// first sign of progress, and from each sign to the next. A sign of progress is a container that was created or started.
pub const HOST_READY_WAIT_MS: u64 = 60_000;
/// How long a pod that is over waits until its host has received that, in milliseconds. A listening host receives it within milliseconds. The
/// budget is for a host that has not connected yet because the containers were faster, and equals the time that host waits for its guest.
pub const GUEST_HEARD_WAIT_MS: u64 = HOST_BOOT_WAIT_MS;
/// Delay before the second restart of a crashed container (the first has none), in milliseconds, as in the kubelet.
pub const RESTART_BACKOFF_FIRST_MS: u64 = 10_000;
/// Longest delay before a crashed container is restarted, in milliseconds, as in the kubelet.
pub const RESTART_BACKOFF_MAX_MS: u64 = 300_000;
/// A container that ran this long is restarted without a delay, in milliseconds, as in the kubelet.
pub const RESTART_BACKOFF_RESET_MS: u64 = 600_000;
/// The guest's clock is not corrected if it is off by at most this, in milliseconds: a message to the guest can take that long, and setting a
/// clock back needlessly does more harm.
pub const CLOCK_TOLERANCE_MS: u64 = 50;

/// How long the guest may take to make and start the process of an exec, in milliseconds. Processes of its container can stop it before its
/// program runs, and must not keep the caller waiting for ever; a busy guest that starts 64 of them needs half a minute.
pub const GUEST_EXEC_START_MS: u64 = 60_000;
/// How long the host waits for the guest's answer to the start of an exec, in milliseconds.
pub const HOST_EXEC_START_WAIT_MS: u64 = 75_000;

const _: () = assert!(HOST_EXEC_START_WAIT_MS > GUEST_EXEC_START_MS);
const _: () = assert!(HOST_SHUTDOWN_WAIT_MS > GUEST_TEARDOWN_MS);
const _: () = assert!(GUEST_TEARDOWN_MS > GUEST_LOG_DRAIN_MS + EXTENSION_STOP_MS);
const _: () =
    assert!(HOST_FIRST_BOOT_WAIT_MS + HOST_BOOT_END_WAIT_MS + HOST_SECOND_BOOT_WAIT_MS <= HOST_BOOT_WAIT_MS);
const _: () = assert!(RESTART_BACKOFF_MAX_MS > RESTART_BACKOFF_FIRST_MS);
