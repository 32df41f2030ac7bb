//! Untrusted layers become an image with their content, or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| magikvm_images::fuzz::layers(bytes));
