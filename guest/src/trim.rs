//! Gives the freed blocks of the scratch disk back to the host. The mount option `discard` would do so for each file that is removed, one request
//! after the other, which makes the removal of many small files several times slower. Here they are collected.

use crate::{console, sys};
use nix::sys::stat::{major, minor};
use nix::sys::statvfs::fstatvfs;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

/// How often file systems are looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// Runs of free blocks that are too short to be given back, in bytes.
const LEAST: u64 = 64 << 10;
/// The thread's stack.
const STACK: usize = 64 << 10;

/// The longest that freed blocks wait while files are being written or removed, in looks.
const MOST_LOOKS: u32 = 6;

/// What tells that blocks may have been freed. A file can be written and removed between two looks, so that the free blocks alone do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Activity {
    free_blocks: u64,
    written_sectors: u64,
}

/// A file system, and what was seen of it.
struct Watched {
    root: File,
    path: PathBuf,
    /// Statistics of its device (Documentation/block/stat.rst).
    statistics: PathBuf,
    last: Activity,
    /// Looks since the first activity after the last discard.
    waits: Option<u32>,
}

/// Starts the thread that looks after these file systems.
pub(crate) fn start(roots: Vec<PathBuf>) -> io::Result<()> {
    let mut watched = Vec::with_capacity(roots.len());
    for path in roots {
        let root = File::open(&path)?;
        let device = root.metadata()?.dev();
        let statistics = format!("/sys/dev/block/{}:{}/stat", major(device), minor(device)).into();
        let last = activity(&root, &statistics)?;
        watched.push(Watched { root, path, statistics, last, waits: None });
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

/// Discards once there was activity and it has paused: more than one discard of the same removal helps nobody. The kernel passes over groups of
/// blocks in which nothing was freed since their last discard.
fn look(one: &mut Watched) -> io::Result<()> {
    let now = activity(&one.root, &one.statistics)?;
    let is_due = is_due(&mut one.waits, one.last != now);
    one.last = now;
    if is_due { sys::trim(&one.root, LEAST) } else { Ok(()) }
}

fn is_due(waits: &mut Option<u32>, is_active: bool) -> bool {
    match waits {
        None => {
            *waits = is_active.then_some(0);
            false
        }
        Some(looks) if is_active && *looks < MOST_LOOKS => {
            *looks += 1;
            false
        }
        Some(_) => {
            *waits = None;
            true
        }
    }
}

fn activity(root: &File, statistics: &PathBuf) -> io::Result<Activity> {
    let text = fs::read_to_string(statistics)?;
    // The seventh field is the number of sectors written.
    let written = text.split_ascii_whitespace().nth(6).and_then(|field| field.parse().ok());
    Ok(Activity {
        free_blocks: fstatvfs(root)?.blocks_free(),
        written_sectors: written.ok_or(io::ErrorKind::InvalidData)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_discard_waits_for_a_pause_but_not_for_ever() {
        let discards = |activity: &[bool]| -> Vec<bool> {
            let mut waits = None;
            activity.iter().map(|&is_active| is_due(&mut waits, is_active)).collect()
        };
        assert_eq!(discards(&[false, true, false, false]), [false, false, true, false]);
        assert_eq!(discards(&[true, true, true, false, false]), [false, false, false, true, false]);
        let busy = discards(&[true; 20]);
        assert_eq!(busy.iter().filter(|&&done| done).count(), 2, "{busy:?}");
    }
}
