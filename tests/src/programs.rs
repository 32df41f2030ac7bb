//! Small static programs for containers and jails, compiled from C by the build script.

/// Tries system calls and says of each whether it works (`programs/probe.c`).
pub const PROBE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe"));
/// Tries to get out of a jail, and says what is open (`programs/inmate.c`).
pub const INMATE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inmate"));
/// Sends datagrams back that come to the ports in its arguments (`programs/echo.c`).
pub const ECHO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo"));
