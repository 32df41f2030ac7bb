//! State on disk: where everything is, who may write it, and how it is undone.

pub mod atomic;
pub mod layout;
pub mod lock;
pub mod record;
pub mod sandbox;
pub mod text;
pub mod undo;
