//! Tries whether the kernel gives what pods in namespaces need, for `magikvm doctor`: the sandbox's program does what it does for a pod, and tells
//! what fails.

use super::ids::PodIds;
use super::talk::Talk;
use super::users::PodUsers;
use super::{ContainersError, program};
use crate::image::erofs;
use crate::process;
use crate::store::sandbox::Role;
use magikvm_proto::sandbox::{Feature, TALK_FD, TRIAL_ARGUMENT, TrialSettings};
use std::fs;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Time for the end of a process that has said everything.
const END_WAIT: Duration = Duration::from_secs(2);

/// A feature, and why it cannot be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tried {
    pub feature: Feature,
    pub error: Option<String>,
}

/// Tries each feature once, with an image below this directory or, if it is not there yet, the one above it.
pub fn run(images: &Path) -> Result<Vec<Tried>, ContainersError> {
    let program = program::find().map_err(ContainersError::Unavailable)?;
    let place = images.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let dir = tempfile::Builder::new()
        .prefix(".magikvm-doctor-")
        .tempdir_in(place)
        .map_err(ContainersError::io("make a directory for a trial"))?;
    let (root, image) = (dir.path().join("root"), dir.path().join("image"));
    fs::create_dir(&root).map_err(ContainersError::io("make a directory for a trial"))?;
    write_image(&image).map_err(ContainersError::io("write an image for a trial"))?;
    let (talk, theirs) = Talk::pair().map_err(ContainersError::io("make a socket"))?;
    let mut command = Command::new(program);
    command.arg(TRIAL_ARGUMENT).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).env_clear();
    let mut sandbox = process::spawn_with(Role::Trial, "trial", &mut command, &[(&theirs, TALK_FD)])
        .map_err(ContainersError::from)?;
    drop(theirs);
    let ids = PodIds::of_trial();
    let settings =
        TrialSettings { generation: magikvm_proto::GENERATION, dir: root, image, root: ids.root() };
    let settings = serde_json::to_vec(&settings).map_err(ContainersError::Nonsense)?;
    process::tell(&mut sandbox, &settings).map_err(ContainersError::io("start a trial"))?;
    let tried = talk.until_tried(&PodUsers::Range(ids));
    sandbox.wait_or_kill(if tried.is_ok() { END_WAIT } else { Duration::ZERO });
    tried
}

/// The smallest image.
fn write_image(path: &Path) -> io::Result<()> {
    let mut out = fs::File::create_new(path)?;
    let files = [("file".to_owned(), b"trial".to_vec())];
    erofs::write_small(files, &mut out).map(drop).map_err(io::Error::other)
}
