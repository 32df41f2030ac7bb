//! An untrusted layer gives entries or an error, never a panic, and never more data than its input.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm_images::tar::TarReader;

fuzz_target!(|bytes: &[u8]| {
    let mut reader = TarReader::new(bytes);
    let mut total = 0usize;
    while let Ok(Some(_)) = reader.next() {
        loop {
            match reader.data() {
                Ok([]) | Err(_) => break,
                Ok(data) => {
                    let length = data.len();
                    total += length;
                    assert!(total <= bytes.len());
                    reader.consume(length);
                }
            }
        }
    }
});
