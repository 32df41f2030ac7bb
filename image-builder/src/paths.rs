//! Default directories, if the user names none.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// A default directory can't be determined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot determine the {what}: neither {variable} nor HOME is set")]
pub struct NoHome {
    what: &'static str,
    variable: &'static str,
}

/// What the defaults depend on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// Whether the user is root.
    pub root: Root,
    /// `HOME`.
    pub home: Option<OsString>,
    /// `XDG_DATA_HOME`.
    pub data_home: Option<OsString>,
    /// `XDG_CACHE_HOME`.
    pub cache_home: Option<OsString>,
}

/// Whether the user is root.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Root {
    Yes,
    /// No: the user's directories are used.
    #[default]
    No,
}

impl Surroundings {
    /// The values of this process.
    pub fn of_this_process() -> Self {
        Self {
            root: if nix::unistd::geteuid().is_root() { Root::Yes } else { Root::No },
            home: std::env::var_os("HOME"),
            data_home: std::env::var_os("XDG_DATA_HOME"),
            cache_home: std::env::var_os("XDG_CACHE_HOME"),
        }
    }

    /// Where `magikvm` looks for a guest image by default.
    pub fn guest_image(&self) -> Result<PathBuf, NoHome> {
        if self.root == Root::Yes {
            return Ok(PathBuf::from("/var/lib/magikvm/guest"));
        }
        let error = NoHome { what: "data directory", variable: "XDG_DATA_HOME" };
        Ok(self.under(self.data_home.as_ref(), ".local/share").ok_or(error)?.join("magikvm/guest"))
    }

    /// Where compiled kernels are kept.
    pub fn cache(&self) -> Result<PathBuf, NoHome> {
        let error = NoHome { what: "cache directory", variable: "XDG_CACHE_HOME" };
        Ok(self.under(self.cache_home.as_ref(), ".cache").ok_or(error)?.join("magikvm"))
    }

    /// XDG Base Directory Specification: a path that is not absolute counts as not set.
    fn under(&self, xdg: Option<&OsString>, of_home: &str) -> Option<PathBuf> {
        let absolute = |text: &OsString| Path::new(text).is_absolute().then(|| PathBuf::from(text));
        xdg.and_then(absolute).or_else(|| Some(self.home.as_ref().and_then(absolute)?.join(of_home)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_has_the_system_directory_and_others_follow_xdg() {
        let user = Surroundings { home: Some("/home/u".into()), ..Surroundings::default() };
        assert_eq!(user.guest_image().unwrap(), Path::new("/home/u/.local/share/magikvm/guest"));
        assert_eq!(user.cache().unwrap(), Path::new("/home/u/.cache/magikvm"));
        let moved =
            Surroundings { data_home: Some("/d".into()), cache_home: Some("relative".into()), ..user };
        assert_eq!(moved.guest_image().unwrap(), Path::new("/d/magikvm/guest"));
        assert_eq!(moved.cache().unwrap(), Path::new("/home/u/.cache/magikvm"));
        let root = Surroundings { root: Root::Yes, ..moved };
        assert_eq!(root.guest_image().unwrap(), Path::new("/var/lib/magikvm/guest"));
        assert!(Surroundings::default().cache().unwrap_err().to_string().contains("XDG_CACHE_HOME"));
    }
}
