//! The life of a pod: one flow, one table of legality, one state machine, the same for every runtime class.

pub mod control;
mod delete;
pub mod events;
pub mod failure;
pub mod interface;
pub mod launch;
pub mod limits;
mod logdir;
pub mod logs;
pub mod ports;
pub mod pull;
mod replace;
pub mod restart;
pub mod run;
pub mod status;
pub mod step;
