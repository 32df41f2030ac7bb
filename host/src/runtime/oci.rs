//! The OCI runtime configuration of one container, the same for every runtime class.
