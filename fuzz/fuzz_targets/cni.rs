//! Configurations and results of CNI: any file of an administrator and anything that a plugin prints become a value or an error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm::net::cni::conf::{Form, name_of, parse};
use magikvm::net::cni::result;

fuzz_target!(|bytes: &[u8]| {
    for form in [Form::List, Form::Single] {
        let Ok(conf) = parse(bytes, form) else { continue };
        assert_eq!(name_of(bytes).as_deref(), Some(conf.name.as_str()));
        for plugin in &conf.plugins {
            // It becomes the name of a file.
            assert!(!plugin.kind.contains('/') && !plugin.kind.starts_with('.'));
        }
    }
    if let Ok(given) = result::parse(bytes) {
        assert!(!given.addresses.is_empty());
        // Nothing adds a line.
        let lines = given.dns.text().lines().count();
        let expected = given.dns.nameservers.len()
            + usize::from(!given.dns.searches.is_empty())
            + usize::from(!given.dns.options.is_empty());
        assert_eq!(lines, expected);
    }
});
