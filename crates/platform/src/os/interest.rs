//! What is waited for at a socket; the same for every poller.

/// What of a socket is waited for, or was found: to be read, to be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    /// To be read.
    pub read: bool,
    /// To be written.
    pub write: bool,
}

impl Interest {
    /// Neither.
    pub const NONE: Self = Self { read: false, write: false };
    /// To be read.
    pub const READ: Self = Self { read: true, write: false };
}
