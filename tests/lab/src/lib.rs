//! The lab: a disposable VM for tests, with real KVM, unified cgroup v2 and Landlock, on any Linux host with QEMU. It runs under
//! QEMU's emulation of AMD SVM and boots in about three seconds. Its root is that of the host, so test binaries, the program under test
//! and the whole system are at their usual paths; what is written goes into the lab's memory and is lost with it. `/run`, `/tmp`, `/dev`,
//! `/dev/shm` and `/var/lib/magikvm` are fresh in the lab; of the host's `/tmp` the lab sees only the entries that the command names.
//! The only network is loopback. virtiofsd keeps every file open that the lab has looked at, so a walk through all of `/usr` may
//! exhaust its limit. Starting a lab requires root.
//!
//! [`inside!`] runs the body of an ordinary `#[test]` there, [`rerun`] a trial of another harness, and [`Lab::run`] any command.
//! `MAGIKVM_LAB=never` lets such tests run directly on a host with real KVM; by default they always run in the lab, so that a test
//! gives the same result everywhere.
//!
//! `ci/lib.sh` prepares the outer kernel and names it in `MAGIKVM_LAB_DIR`. This crate knows nothing of magikvm but the names of its
//! variables.

mod command;
mod count;
mod error;
mod monitor;
mod run;
mod spawn;
mod test;
mod turn;

pub use command::{LabCommand, MEMORY_MIB};
pub use count::{repeats, took};
pub use error::LabError;
pub use run::{Lab, LabOutput, OUT};
pub use test::{Room, is_inside, name_of, rerun, rerun_in, run_inside, runs_here};
pub use turn::{Turn, turn};
