//! The lab: a throw-away machine for tests, with real KVM, unified cgroup v2 and Landlock, on any Linux machine with QEMU. It is a VM under
//! QEMU's emulation of AMD SVM that boots in about three seconds. Its root is the host's own, so test binaries, the program under test
//! and all of the system are there at their usual paths; what is written goes into the lab's memory and is gone with it. Fresh in the lab
//! are `/run`, `/tmp`, `/dev`, `/dev/shm` and `/var/lib/magikvm`; of the host's `/tmp` the lab sees only the entries that the command names.
//! There is no network but the loopback. virtiofsd has a file open for each that the lab has looked at, so a walk through all of `/usr` may
//! exhaust its limit. Making a lab takes root.
//!
//! [`inside!`] puts the body of an ordinary `#[test]` there, [`rerun`] a trial of another harness, and [`Lab::run`] any command.
//! `MAGIKVM_LAB=never` lets such tests run directly on the host, for one with real KVM; by default it is always the lab, so that a test
//! gives the same answer everywhere.
//!
//! `ci/lib.sh` prepares the outer kernel and names it in `MAGIKVM_LAB_DIR`. This crate knows nothing of magikvm but the names of its
//! variables.

mod command;
mod error;
mod run;
mod spawn;
mod test;
mod turn;

pub use command::{LabCommand, MEMORY_MIB};
pub use error::LabError;
pub use run::{Lab, LabOutput, OUT};
pub use test::{Room, is_inside, name_of, rerun, rerun_in, run_inside, runs_here};
pub use turn::{Turn, turn};
