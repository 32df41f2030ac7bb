//! Reads a kernel's configuration out of the kernel (CONFIG_IKCONFIG, `kernel/configs.c` of Linux): gzip data between two marks.

use flate2::read::GzDecoder;
use std::io::{self, Read};

const START: &[u8] = b"IKCFG_ST";
const END: &[u8] = b"IKCFG_ED";
const GZIP: &[u8] = b"\x1f\x8b";
/// Most bytes of an unpacked configuration; those of distributions have 300 kB.
const MAX_CONFIG: u64 = 4 << 20;

/// Why the configuration can't be read.
#[derive(Debug, thiserror::Error)]
pub enum IkconfigError {
    /// The kernel was built without it.
    #[error("the kernel does not contain its configuration")]
    Absent,
    /// The marks exist, but the data between them can't be unpacked.
    #[error("cannot unpack the configuration inside the kernel")]
    Broken(#[source] io::Error),
    /// The configuration is longer than allowed.
    #[error("the configuration inside the kernel is longer than {MAX_CONFIG} bytes")]
    TooLong,
}

/// The configuration as text, in the form of a `.config` file.
pub fn extract(kernel: &[u8]) -> Result<String, IkconfigError> {
    let packed = find(kernel).ok_or(IkconfigError::Absent)?;
    let mut text = String::new();
    GzDecoder::new(packed).take(MAX_CONFIG + 1).read_to_string(&mut text).map_err(IkconfigError::Broken)?;
    if text.len() as u64 > MAX_CONFIG { Err(IkconfigError::TooLong) } else { Ok(text) }
}

/// The start mark may also occur as ordinary text; only one directly before gzip data counts.
fn find(kernel: &[u8]) -> Option<&[u8]> {
    let mut rest = kernel;
    while let Some(at) = position(rest, START) {
        rest = rest.get(at + START.len()..)?;
        if rest.starts_with(GZIP) {
            return rest.get(..position(rest, END)?);
        }
    }
    None
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The kernel's release, from the banner that it prints first (`init/version.c`).
pub fn release(kernel: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = kernel;
    while let Some(at) = position(rest, BANNER) {
        rest = rest.get(at + BANNER.len()..)?;
        let end = rest.iter().take(64).position(|&byte| byte == b' ')?;
        let release = rest.get(..end).and_then(|bytes| std::str::from_utf8(bytes).ok());
        match release {
            Some(text)
                if text.starts_with(|c: char| c.is_ascii_digit())
                    && text.bytes().all(|b| b.is_ascii_graphic()) =>
            {
                return Some(text.to_owned());
            }
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::craft;
    use flate2::{Compression, write::GzEncoder};
    use std::io::Write;

    #[test]
    fn the_configuration_and_the_release_come_back_as_they_went_in() {
        let kernel = craft::kernel("6.12.117", "CONFIG_A=y\n# CONFIG_B is not set\n");
        assert_eq!(extract(&kernel).unwrap(), "CONFIG_A=y\n# CONFIG_B is not set\n");
        assert_eq!(release(&kernel).unwrap(), "6.12.117");
    }

    #[test]
    fn a_kernel_without_a_configuration_or_banner_says_so() {
        assert!(matches!(extract(b"no marks"), Err(IkconfigError::Absent)));
        assert!(matches!(extract(b"IKCFG_ST and then text IKCFG_ED"), Err(IkconfigError::Absent)));
        assert!(matches!(extract(b"IKCFG_ST\x1f\x8b without an end"), Err(IkconfigError::Absent)));
        assert_eq!(release(b"Linux version %s (gcc)"), None);
    }

    #[test]
    fn damaged_data_is_an_error() {
        assert!(matches!(
            extract(b"IKCFG_ST\x1f\x8b\x08\0\0\0\0\0rubbishIKCFG_ED"),
            Err(IkconfigError::Broken(_))
        ));
    }

    #[test]
    fn a_small_file_that_unpacks_to_a_huge_one_is_refused() {
        let mut packed = GzEncoder::new(Vec::new(), Compression::best());
        packed.write_all(&vec![b' '; usize::try_from(MAX_CONFIG).unwrap() + 2]).unwrap();
        let kernel = [START, &packed.finish().unwrap(), END].concat();
        assert!(kernel.len() < 100_000);
        assert!(matches!(extract(&kernel), Err(IkconfigError::TooLong)));
    }
}
