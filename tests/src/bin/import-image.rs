//! For the tests of the image store: imports one image in a separate process, which can run as another user or be killed.
//! Usage: import-image STORE SOURCE NAME [N]: with N it kills itself when the Nth step of progress is reported.

use magikvm::image::{BringOptions, ImageStore};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, store, source, name, rest @ ..] = args.as_slice() else {
        return Err("usage: import-image STORE SOURCE NAME [N]".into());
    };
    let last: Option<u32> = rest.first().map(|steps| steps.parse()).transpose()?;
    let steps = AtomicU32::new(0);
    let store = ImageStore::open(Path::new(store))?;
    let record = store.import(&source.parse()?, &name.parse()?, &BringOptions::default(), &|_| {
        if Some(steps.fetch_add(1, Ordering::SeqCst) + 1) == last {
            kill(Pid::this(), Signal::SIGKILL).unwrap_or_default();
        }
    })?;
    println!("{}", record.rootfs_sha256);
    Ok(())
}
