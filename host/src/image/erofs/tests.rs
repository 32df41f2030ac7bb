use super::*;
use std::io::Cursor;

fn small(files: &[(&str, &[u8])]) -> Result<Vec<u8>, ErofsError> {
    let mut out = Cursor::new(Vec::new());
    let files = files.iter().map(|(path, bytes)| ((*path).to_owned(), bytes.to_vec()));
    let size = write_small(files, &mut out)?;
    let bytes = out.into_inner();
    assert_eq!(bytes.len() as u64, size);
    assert_eq!(size % 4096, 0);
    Ok(bytes)
}

#[test]
fn the_same_files_in_any_order_give_the_same_bytes_and_others_do_not() {
    let [a, b] = [("pod/spec.json", b"{}".as_slice()), ("pod/etc/hosts", b"127.0.0.1")];
    assert_eq!(small(&[a, b]).unwrap(), small(&[b, a]).unwrap());
    assert_ne!(
        small(&[a]).unwrap()[..4096],
        small(&[("pod/spec.json", b"[]")]).unwrap()[..4096],
        "the uuid differs"
    );
}

#[test]
fn no_files_are_an_empty_root() {
    assert_eq!(small(&[]).unwrap().len(), 8192);
}

#[test]
fn files_in_each_others_way_and_bad_paths_are_errors() {
    assert!(matches!(
        small(&[("a", b""), ("a/b", b"")]),
        Err(ErofsError::Tree(TreeError::NotADirectory { .. }))
    ));
    assert!(matches!(small(&[("a/b", b""), ("a/./b", b"")]), Err(ErofsError::Conflict { .. })));
    assert!(matches!(small(&[("../a", b"")]), Err(ErofsError::Tree(TreeError::DotDot { .. }))));
    assert!(matches!(small(&[("/", b"")]), Err(ErofsError::Conflict { .. })));
}
