//! An untrusted manifest gives a plan or a list of problems, never a panic.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Err(problems) = magikvm::manifest::parse(bytes, "fuzz") {
        assert!(!problems.to_string().is_empty());
    }
});
