//! The path of a field that a manifest names is one that is known or an error, and the key in it is the one that was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm::manifest::downward::FieldPath;

fuzz_target!(|path: &str| {
    match FieldPath::parse(path) {
        Ok(FieldPath::Label(key)) => assert_eq!(path, format!("metadata.labels['{key}']")),
        Ok(FieldPath::Annotation(key)) => assert_eq!(path, format!("metadata.annotations['{key}']")),
        Ok(_) => assert!(!path.contains(['[', '\''])),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
