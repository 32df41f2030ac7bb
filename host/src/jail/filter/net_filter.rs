//! The list of the filter of a pod's network. It has three descriptors and one thread, and opens nothing.

use super::List;

#[rustfmt::skip]
pub(super) const LIST: List = List {
    calls: &[
        // Seen.
        "poll", "recvfrom", "sendto",
        // Frames of an interface.
        "read", "write",
        // Other processors have this name for waiting.
        "ppoll",
    ],
    limited: &[],
};
