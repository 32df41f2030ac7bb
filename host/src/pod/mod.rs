//! The life of a pod: one flow, one table of legality, one state machine, the same for every runtime class.

pub mod failure;
pub mod run;
pub mod status;
pub mod step;
