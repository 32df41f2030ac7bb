//! The verdict about the host's hardware virtualization. A good one is stored until the next boot, because measuring takes longer than reading.
//! A bad one is not: a busy host or a KVM module that is loaded later must not count until then.

use super::{Unavailable, kvm};
use crate::store::atomic;
use crate::store::text::ignore;
use serde::{Deserialize, Serialize};
use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

const FILE: &str = "virtualization.json";
/// Bytes of the file that are read.
const MAX_FILE: u64 = 4 << 10;

/// A measurement and the boot that it is valid for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    boot: String,
    best_ns: u64,
}

/// Whether hardware virtualization works: the verdict since the last boot, or else a measurement, which is then stored in `dir`.
pub fn hardware(dir: &Path) -> Result<kvm::Verdict, Unavailable> {
    // The permissions of the device can change at any time.
    let device = kvm::open()?;
    let kept = seen(dir).filter(|seen| boot().is_some_and(|boot| seen.boot == boot));
    match kept.map(|seen| kvm::judge(Duration::from_nanos(seen.best_ns))) {
        Some(Ok(verdict)) => Ok(verdict),
        // A bad verdict was stored by an earlier version.
        Some(Err(_)) | None => measure(&device, dir),
    }
}

pub fn hardware_afresh(dir: &Path) -> Result<kvm::Verdict, Unavailable> {
    measure(&kvm::open()?, dir)
}

fn measure(device: &kvm::Device, dir: &Path) -> Result<kvm::Verdict, Unavailable> {
    let best = kvm::measure(device)?;
    let verdict = kvm::judge(best)?;
    if let Some(boot) = boot() {
        keep(dir, &Seen { boot, best_ns: u64::try_from(best.as_nanos()).unwrap_or(u64::MAX) });
    }
    Ok(verdict)
}

/// The kernel's ID of this boot. Without one nothing is stored.
fn boot() -> Option<String> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

fn seen(dir: &Path) -> Option<Seen> {
    let mut bytes = Vec::new();
    fs::File::open(dir.join(FILE)).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn keep(dir: &Path, seen: &Seen) {
    let Ok(bytes) = serde_json::to_vec(seen) else { return };
    let kept =
        atomic::create_dir_all(dir, 0o700).and_then(|()| atomic::write(&dir.join(FILE), &bytes, 0o600));
    ignore(kept, "it will be measured again");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_counts_in_the_same_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("made/on/demand");
        assert_eq!(seen(&below), None);
        let now = Seen { boot: boot().unwrap(), best_ns: 20_000 };
        keep(&below, &now);
        assert_eq!(seen(&below), Some(now));
        fs::write(below.join(FILE), b"{ nonsense").unwrap();
        assert_eq!(seen(&below), None);
    }
}
