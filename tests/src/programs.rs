//! Small static programs for containers and jails, compiled from C by the build script.

/// Tries system calls and prints whether each one works (`programs/probe.c`).
pub const PROBE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/probe"));
/// Tries to get out of a jail and prints what is open (`programs/inmate.c`).
pub const INMATE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inmate"));
/// Returns UDP packets that arrive at the ports in its arguments (`programs/echo.c`).
pub const ECHO: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/echo"));
/// Uses the network as a client and measures how long it takes, or asks over a Unix socket (`programs/client.c`).
pub const CLIENT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/client"));
/// Tries to get out of a container and prints what works (`programs/escape.c`).
pub const ESCAPE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/escape"));
