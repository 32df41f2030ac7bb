//! Untrusted documents of an image become an image or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| magikvm_images::fuzz::documents(bytes));
