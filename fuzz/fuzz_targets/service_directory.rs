//! Whatever a container sends to the service directory, it waits for more of it or answers with one of its status codes and a body of the length that
//! it states. More bytes behind a whole request change nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm_supervisor::parsers::reply;

const STATUSES: [&str; 6] = ["200", "400", "404", "405", "413", "431"];

fuzz_target!(|bytes: &[u8]| {
    let Some(answer) = reply(bytes) else { return };
    let text = String::from_utf8(answer).expect("an answer is text");
    let (head, body) = text.split_once("\r\n\r\n").expect("an answer has a head");
    let status = head.split(' ').nth(1).expect("a status");
    assert!(STATUSES.contains(&status), "{head}");
    assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{head}");
    if status == "200" {
        assert_eq!(reply(&[bytes, b"more"].concat()).map(String::from_utf8), Some(Ok(text.clone())));
    }
});
