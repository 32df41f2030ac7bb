//! An untrusted file system image is complete or refused.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| magikvm_images::fuzz::erofs(bytes));
