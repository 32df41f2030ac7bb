//! The file in which a container leaves its termination message. Each run finds it new and empty, bind-mounted at the path of its plan, as
//! from the kubelet. Its file system is so small that a container cannot fill the supervisor's with it.

use magikvm_proto::id::ContainerName;
use magikvm_proto::lifecycle::MAX_TERMINATION_MESSAGE;
use magikvm_proto::site::Site;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Options of the file system: some times the message's cap, since a run that is being made meets the file of the run before.
const OPTIONS: &str = "size=64k,nr_inodes=16,mode=0700";

fn file(site: &Site, container: &ContainerName) -> PathBuf {
    site.messages(container).join("message")
}

/// Makes an empty file that any user may write, and returns its path.
pub(crate) fn make(site: &Site, container: &ContainerName) -> io::Result<PathBuf> {
    let dir = site.messages(container);
    fs::create_dir_all(&dir)?;
    if !is_mount_point(&dir)? {
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("messages"), &dir, Some("tmpfs"), flags, Some(OPTIONS))?;
    }
    let path = file(site, container);
    fs::remove_file(&path)
        .or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })?;
    OpenOptions::new().write(true).create_new(true).mode(0o666).open(&path)?;
    // Whatever the umask is.
    fs::set_permissions(&path, Permissions::from_mode(0o666))?;
    Ok(path)
}

fn is_mount_point(dir: &Path) -> io::Result<bool> {
    let parent = dir.parent().unwrap_or(dir);
    Ok(fs::metadata(dir)?.dev() != fs::metadata(parent)?.dev())
}

/// What the last run has left; `None` if it is nothing.
pub(crate) fn read(site: &Site, container: &ContainerName) -> Option<String> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = open(&file(site, container), flags, Mode::empty()).ok()?;
    let mut bytes = Vec::new();
    let most = u64::try_from(MAX_TERMINATION_MESSAGE).unwrap_or(u64::MAX);
    File::from(file).take(most).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let text = magikvm_proto::text::cut(&text, MAX_TERMINATION_MESSAGE);
    (!text.is_empty()).then(|| text.to_owned())
}
