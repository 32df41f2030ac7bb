//! Images: references, layouts, layers, EROFS. Knows no pod and no VM.

pub mod digest;
pub mod erofs;
pub mod reference;
pub mod source;
pub mod store;
pub mod tar;
pub mod tree;
