//! The directories with the logs of pods, in the data directory. `log` in a pod's directory is a link to one of them, and its link `pod`
//! leads back, so that logs are recognized whose pod has vanished without being removed (with a reboot, or by hand).

use crate::store::atomic::{self, FileError};
use crate::store::layout::PodDir;
use crate::store::remove::remove_tree;
use crate::store::text::ignore;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// Name of the link to the pod's directory.
const POD: &str = "pod";
/// Age below which a directory may be that of a pod of the same user whose links are being made.
const MIN_AGE: Duration = Duration::from_secs(60);

/// Makes the directory of a new pod's logs and both links.
pub(super) fn make(logs: &Path, dir: &PodDir) -> Result<(), FileError> {
    atomic::create_dir_all(logs, 0o700)?;
    let back = logs.join(POD);
    symlink(dir.path(), &back).map_err(FileError::at("make the link", &back))?;
    symlink(logs, dir.log()).map_err(FileError::at("make the link", &dir.log()))
}

/// Removes logs whose pods have vanished.
pub(super) fn sweep(all: &Path) {
    for entry in fs::read_dir(all).into_iter().flatten().filter_map(Result::ok) {
        let logs = entry.path();
        let made = entry.metadata().and_then(|there| there.modified());
        let is_new =
            made.is_ok_and(|made| SystemTime::now().duration_since(made).unwrap_or_default() < MIN_AGE);
        let has_pod = fs::read_link(logs.join(POD))
            .and_then(|pod| fs::read_link(PodDir::at(pod).log()))
            .is_ok_and(|back| back == logs);
        if !has_pod && !is_new {
            ignore(remove_tree(&logs), "it is in nobody's way, and the next run tries again");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_go_when_their_pod_has_vanished() {
        let base = tempfile::tempdir().unwrap();
        let all = base.path().join("logs");
        let old = SystemTime::now() - 2 * MIN_AGE;
        let pods = ["living", "vanished", "followed", "new"].map(|name| {
            let dir = PodDir::at(base.path().join(name));
            fs::create_dir(dir.path()).unwrap();
            make(&all.join(name), &dir).unwrap();
            fs::write(dir.log().join("c.log"), "").unwrap();
            if name != "new" {
                fs::File::open(all.join(name)).unwrap().set_modified(old).unwrap();
            }
            dir
        });
        fs::remove_dir_all(pods[1].path()).unwrap();
        fs::remove_dir_all(pods[3].path()).unwrap();
        // A later pod of the same name has other logs.
        fs::remove_file(pods[2].log()).unwrap();
        symlink(all.join("other"), pods[2].log()).unwrap();
        sweep(&all);
        let mut left: Vec<_> = fs::read_dir(&all).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["living", "new"]);
        assert!(pods[0].log().join("c.log").exists());
    }
}
