//! The readiness that a poller waits for at a socket; the same for every poller.

/// Whether a socket is waited for, or was found ready, for reading and for writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    pub read: bool,
    pub write: bool,
}

impl Interest {
    pub const NONE: Self = Self { read: false, write: false };
    pub const READ: Self = Self { read: true, write: false };
}
