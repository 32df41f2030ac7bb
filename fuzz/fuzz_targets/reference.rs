//! Untrusted names of images: the displayed form parses to the same name.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm_images::{Digest, Platform, Reference, Source};

fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string().parse().as_ref(), Ok(&reference));
        assert_eq!(reference.familiar().parse().as_ref(), Ok(&reference));
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(platform) = text.parse::<Platform>() {
        assert_eq!(platform.to_string().parse().as_ref(), Ok(&platform));
    }
    if let Ok(source) = text.parse::<Source>() {
        assert_eq!(source.to_string().parse().as_ref(), Ok(&source));
    }
});
