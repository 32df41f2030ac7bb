//! For the tests of the directory form: unpacks the image on standard input in a separate process, which can run as another user. `clear`
//! removes the unpacked files. Usage: unpack-image DIR mine|image|clear

use magikvm::image::{Cancel, Owners, clear_unpacked, unpack};
use std::error::Error;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let (dir, owners) = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [_, dir, "mine"] => (dir, Owners::Mine),
        [_, dir, "image"] => (dir, Owners::AsInImage),
        [_, dir, "clear"] => return Ok(clear_unpacked(Path::new(dir))?),
        _ => return Err("usage: unpack-image DIR mine|image|clear".into()),
    };
    let image = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    let summary = unpack(&image, Path::new(dir), owners, &Cancel::new())?;
    println!("{} {} {}", summary.inodes, summary.skipped_devices, summary.skipped_xattrs);
    Ok(())
}
