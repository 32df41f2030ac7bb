//! The variables of a process.

use std::collections::HashMap;

/// Variables in the order of their first mention, each with its last value.
#[derive(Default)]
pub(super) struct Env {
    pub(super) list: Vec<String>,
    index: HashMap<String, usize>,
}

impl Env {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let text = self.list.get(*self.index.get(name)?)?;
        text.split_once('=').map(|(_, value)| value)
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        let text = format!("{name}={value}");
        match self.index.get(name) {
            Some(&index) => self.list[index] = text,
            None => {
                self.index.insert(name.to_owned(), self.list.len());
                self.list.push(text);
            }
        }
    }
}

/// Bytes of a text as a JSON string with quotes and a comma; never too few.
pub(super) fn json_len(text: &str) -> usize {
    let byte = |byte: u8| match byte {
        b'"' | b'\\' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(byte).sum::<usize>() + 3
}
