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

#[test]
fn compressions_have_names() {
    for compression in [RootfsCompression::None, RootfsCompression::Lz4] {
        assert_eq!(compression.to_string().parse(), Ok(compression));
    }
    let error = "gzip".parse::<RootfsCompression>().unwrap_err().to_string();
    assert!(error.contains("\"gzip\"") && error.contains("\"lz4\""), "{error}");
}

/// Another version of the crate may pack differently. The name of the recipe in `rootfs` must then change with this digest.
#[test]
fn lz4_packs_as_it_did_when_the_recipe_got_its_name() {
    let text: Vec<u8> =
        (0..30_000u32).flat_map(|n| format!("{} ", n.wrapping_mul(n) % 10_007).into_bytes()).collect();
    let mut out = Cursor::new(Vec::new());
    let mut data = DataArea::in_memory(&mut out, 1 << 20, RootfsCompression::Lz4);
    let mut slot = data.begin(text.len() as u64, 64).unwrap();
    data.write(&mut slot, &text).unwrap();
    data.end(slot).unwrap();
    data.complete().unwrap();
    drop(data);
    assert_eq!(
        Digest::of(out.get_ref()).to_string(),
        "sha256:04d6de3b7403b6c7b9c1883929104c06292dfa377ca98ab6af25eca61b5748bb"
    );
}
