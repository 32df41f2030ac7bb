//! In the place of TLS in a build without it (`--no-default-features`): no connection is secured, and probes with the scheme HTTPS fail.

use super::wire::{Broken, Wire};

pub(super) type Secured = Wire;

pub(super) fn secure(_: Wire, _: &str) -> Result<Secured, Broken> {
    Err(Broken::Failed("tls: this guest image is built without TLS".to_owned()))
}
