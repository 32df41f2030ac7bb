//! The frame of a helper: a process of this program with a hidden verb that reads its settings from standard input, serves one peer as long
//! as that exists, and is killed with the pod. It knows neither what the settings mean nor what the helper does.

use crate::store::text::{chain, ignore};
use nix::poll::{PollTimeout, poll};
use serde::de::DeserializeOwned;
use std::error::Error;
use std::io::{self, Read, Write};

/// Longest settings: rules of a network with many addresses.
const MAX_SETTINGS: u64 = 1 << 20;

/// Why a helper has no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error("cannot read the settings from standard input")]
    Read(#[source] io::Error),
    #[error("the settings on standard input are invalid")]
    Invalid(#[source] serde_json::Error),
}

/// The main function of a helper with this name. `work` returns when its peer is gone. This function returns only on failure, with an exit
/// code.
pub fn serve<Settings, Failed>(name: &str, work: impl FnOnce(Settings) -> Result<(), Failed>) -> i32
where
    Settings: DeserializeOwned,
    Failed: Error + From<SettingsError> + 'static,
{
    let done = settings(io::stdin()).map_err(Failed::from).and_then(work);
    let Err(error) = done else { wait_for_the_end() };
    ignore(writeln!(io::stderr(), "{name}: {}", chain(&error)), "nobody listens");
    1
}

fn settings<Settings: DeserializeOwned>(input: impl Read) -> Result<Settings, SettingsError> {
    let mut bytes = Vec::new();
    input.take(MAX_SETTINGS).read_to_end(&mut bytes).map_err(SettingsError::Read)?;
    serde_json::from_slice(&bytes).map_err(SettingsError::Invalid)
}

/// The end of the peer is the end of the pod. The monitor must see that end first, and not the end of this process.
fn wait_for_the_end() -> ! {
    loop {
        ignore(
            poll(&mut [], PollTimeout::NONE),
            "a signal that does not end this process, or no memory for a moment",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_whole_or_an_error() {
        assert_eq!(settings::<Vec<u8>>(&b"[1, 2]"[..]).unwrap(), [1, 2]);
        for wrong in [&b""[..], b"[1", b"[1] [2]"] {
            assert!(matches!(settings::<Vec<u8>>(wrong), Err(SettingsError::Invalid(_))), "{wrong:?}");
        }
        let long = io::repeat(b' ').take(MAX_SETTINGS).chain(&b"[1]"[..]);
        assert!(matches!(settings::<Vec<u8>>(long), Err(SettingsError::Invalid(_))));
    }
}
