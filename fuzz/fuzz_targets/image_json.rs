//! The documents of an image from anybody: an image or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| magikvm_images::fuzz::documents(bytes));
