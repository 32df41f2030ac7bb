//! The stream of `cp`: input of a guest is items with names of one place each, or an error, and what was read can be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use magikvm_proto::files::{FilesError, Item, ItemReader, ItemWriter, MAX_NAME, MAX_PIECE};

fuzz_target!(|bytes: &[u8]| {
    let mut reader = ItemReader::new(bytes);
    let mut again = Vec::new();
    let mut writer = ItemWriter::new(&mut again);
    let mut read = Vec::new();
    while let Ok(item) = reader.item() {
        let name = match &item {
            Item::Directory(entry) | Item::File { entry, .. } => Some(&entry.name),
            Item::Link { name, .. } => Some(name),
            Item::Up | Item::Problem(_) | Item::End => None,
        };
        assert!(name.is_none_or(|name| !name.is_empty() && name.len() <= MAX_NAME && !name.contains(&b'/')));
        // A message that was not UTF-8 may be longer than before.
        if !matches!(item, Item::Problem(_)) {
            writer.item(&item).expect("memory takes everything");
            read.push(item.clone());
        }
        if let Item::File { .. } = item {
            let mut piece = Vec::new();
            loop {
                match reader.piece(&mut piece) {
                    Ok(true) => assert!(piece.len() <= MAX_PIECE),
                    Ok(false) => break,
                    Err(FilesError::Unreadable { .. }) => break,
                    Err(_) => return,
                }
            }
            writer.piece(b"").expect("memory takes everything");
        }
    }
    let mut reader = ItemReader::new(again.as_slice());
    for item in read {
        assert_eq!(reader.item().expect("what was written can be read"), item);
        if let Item::File { .. } = item {
            assert!(!reader.piece(&mut Vec::new()).expect("an empty file"));
        }
    }
});
