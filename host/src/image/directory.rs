//! TEMPORARY.
use std::{fs::File, path::Path};
#[derive(Debug)] pub enum Owners { AsInImage, Mine }
#[derive(Debug, thiserror::Error)] #[error("x")] pub struct DirectoryError;
pub fn unpack(_: &File, _: &Path, _: Owners) -> Result<(), DirectoryError> { Err(DirectoryError) }
