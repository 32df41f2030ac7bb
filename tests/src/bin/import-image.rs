//! For the tests of the image store: imports one image in a process of its own, which can be run as another user or killed.
//! Usage: import-image STORE SOURCE NAME [N]: with N it kills itself when the Nth step of progress is reported.

use magikvm::image::ImageStore;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::error::Error;
use std::path::Path;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, store, source, name, rest @ ..] = args.as_slice() else {
        return Err("usage: import-image STORE SOURCE NAME [N]".into());
    };
    let mut left: Option<u32> = rest.first().map(|steps| steps.parse()).transpose()?;
    let record = ImageStore::open(Path::new(store))?.import(&source.parse()?, &name.parse()?, &mut |_| {
        if let Some(steps) = &mut left {
            *steps = steps.saturating_sub(1);
            if *steps == 0 {
                kill(Pid::this(), Signal::SIGKILL).unwrap_or_default();
            }
        }
    })?;
    println!("{}", record.rootfs_sha256);
    Ok(())
}
