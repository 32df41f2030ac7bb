//! A checksum of a file's bytes, so that tests can compare written and read data. In a release it does nothing.

/// The checksum. Zeros add nothing, so holes cost nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    #[cfg(any(test, fuzzing))]
    value: u64,
}

impl Sum {
    /// Adds bytes at an offset of the file.
    #[cfg(any(test, fuzzing))]
    pub(super) fn add(&mut self, offset: u64, bytes: &[u8]) {
        for (at, byte) in (offset..).zip(bytes) {
            // The finalizer of splitmix64, so that every position counts differently.
            let mut place = (at + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            place = (place ^ (place >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            place = (place ^ (place >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            self.value = self.value.wrapping_add((place ^ (place >> 31)).wrapping_mul(u64::from(*byte)));
        }
    }

    /// Adds bytes at an offset of the file.
    #[cfg(not(any(test, fuzzing)))]
    #[allow(clippy::unused_self, reason = "there is nothing to add to")]
    pub(super) fn add(&mut self, _: u64, _: &[u8]) {}
}
