//! The options that say where networks of CNI are.

use super::run::absolute;
use crate::net::cni::{Places, find};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Directory of the configurations of CNI networks (annotation `magikvm.dev/cni`)
    #[arg(long, value_name = "DIR", default_value = find::CONF_DIR)]
    cni_conf_dir: PathBuf,
    /// Directory of CNI plugins; can be repeated [default: /opt/cni/bin and /usr/lib/cni]
    #[arg(long, value_name = "DIR", env = "CNI_PATH", value_delimiter = ':')]
    cni_bin_dir: Vec<PathBuf>,
}

impl Options {
    pub(super) fn places(&self) -> Places {
        let named: Vec<PathBuf> = self
            .cni_bin_dir
            .iter()
            .filter(|dir| !dir.as_os_str().is_empty())
            .map(|dir| absolute(dir.clone()))
            .collect();
        let bin = if named.is_empty() { Places::default().bin } else { named };
        Places { conf: absolute(self.cni_conf_dir.clone()), bin }
    }
}
