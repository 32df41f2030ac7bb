//! Untrusted manifests give plans or lists of problems, never a panic. The input is one file or several, with a byte 0 between them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm::manifest::input::{Accepts, Source, names, read};

fuzz_target!(|bytes: &[u8]| {
    let files = bytes.split(|&byte| byte == 0).take(4).enumerate();
    let sources: Vec<Source> = files
        .map(|(number, bytes)| Source {
            origin: format!("fuzz{number}"),
            bytes: bytes.to_vec(),
            accepts: Accepts::Everything,
        })
        .collect();
    if let Err(problems) = names(&sources) {
        assert!(!problems.to_string().is_empty());
    }
    let input = read(&sources, &mut |_, prefix| {
        magikvm::manifest::generated_name(prefix, std::iter::repeat(7))
    });
    let pods = input.pods.len();
    match input.into_manifests() {
        Ok(read) => assert!(read.pods.len() == pods && pods > 0),
        Err(problems) => assert!(!problems.to_string().is_empty()),
    }
});
