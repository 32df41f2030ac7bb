//! Gives the freed blocks of the scratch disk back to the host. The mount option `discard` would do so for each file that is removed, one request
//! after the other, which makes the removal of many small files several times slower. Here they are collected.

use crate::{console, sys};
use nix::sys::statvfs::fstatvfs;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// How often file systems are looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// Runs of free blocks that are too short to be given back, in bytes.
const LEAST: u64 = 64 << 10;
/// The thread's stack.
const STACK: usize = 64 << 10;

/// A file system, and how many blocks of it were free when it was last looked at.
struct Watched {
    root: File,
    path: PathBuf,
    free: u64,
    /// Whether blocks have been freed since the last discard.
    due: bool,
}

/// Starts the thread that looks after these file systems.
pub(crate) fn start(roots: Vec<PathBuf>) -> io::Result<()> {
    let mut watched = Vec::with_capacity(roots.len());
    for path in roots {
        let root = File::open(&path)?;
        watched.push(Watched { free: free(&root)?, root, path, due: false });
    }
    if watched.is_empty() {
        return Ok(());
    }
    let watch = move || {
        loop {
            std::thread::sleep(INTERVAL);
            watched.retain_mut(|one| match look(one) {
                Ok(()) => true,
                Err(error) => {
                    console::say(&format!(
                        "cannot give back freed blocks of {}: {error}",
                        one.path.display()
                    ));
                    false
                }
            });
        }
    };
    std::thread::Builder::new().name("trim".to_owned()).stack_size(STACK).spawn(watch).map(drop)
}

/// Discards once blocks were freed and the freeing has paused: more than one discard of the same removal helps nobody.
fn look(one: &mut Watched) -> io::Result<()> {
    let now = free(&one.root)?;
    let (grew, due) = (now > one.free, one.due);
    one.free = now;
    one.due = due || grew;
    if due && !grew {
        sys::trim(&one.root, LEAST)?;
        one.due = false;
    }
    Ok(())
}

fn free(root: &File) -> io::Result<u64> {
    Ok(fstatvfs(root)?.blocks_free())
}
