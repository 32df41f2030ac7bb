//! State on disk: where everything is, who may write it, and how it is undone.

pub mod atomic;
