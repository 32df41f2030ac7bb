//! Small static programs for containers, compiled from C by the build script.

/// Tries system calls and says of each whether it works (`programs/probe.c`).
pub const PROBE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe"));
