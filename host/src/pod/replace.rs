//! What is checked before a pod is removed that another one replaces: everything that can be known before something of the new pod is made.

use super::failure::{Blame, Failure, RunStage};
use super::ports;
use super::pull::{FromPuller, PULLER_VERB, Pull, PullRequest, PullerEnd};
use super::run::{self, RunRequest};
use crate::image::{Progress, Reference};
use crate::process;
use crate::runtime::PodToPrepare;
use crate::store::layout::Layout;
use crate::store::record::Found;
use crate::store::sandbox::Role;
use std::error::Error;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Time for a puller to end after its last message.
const END_WAIT: Duration = Duration::from_secs(1);
/// Bytes of a puller's standard error that a failure carries at most.
const MAX_COMPLAINT: u64 = 4096;

fn failed<E: Error + 'static>() -> impl Fn(E) -> Failure {
    Failure::at(RunStage::Image, Blame::Environment)
}

/// Does the part of a run that changes nothing but the image store. The pull is called with its progress.
pub(super) fn check(
    request: &RunRequest,
    layout: &Layout,
    old: &Found,
    progress: &mut dyn FnMut(&Reference, &Progress),
) -> Result<(), Failure> {
    let runtime = run::plan(request, layout)?;
    let pull = &mut |wanted: &PullRequest| pull(wanted, progress);
    let (images, _) = run::resolve_images(request, layout, &runtime.platform(), pull)?;
    let leaving = old.state.as_ref().map(|state| state.ports.as_slice()).unwrap_or_default();
    ports::check(&request.plan, layout, leaving)?;
    let pod = PodToPrepare {
        plan: &request.plan,
        uid: "",
        images: &images,
        dir: &old.dir,
        scratch: &layout.scratch(""),
        claims: &layout.volumes(),
    };
    runtime.check_plan(&pod).map_err(run::of_runtime(RunStage::Prepare))
}

/// Pulls in a separate process, as a monitor does. It ends with this one.
fn pull(
    request: &PullRequest,
    progress: &mut dyn FnMut(&Reference, &Progress),
) -> Result<Vec<Pull>, Failure> {
    let program = std::env::current_exe().map_err(failed())?;
    let mut command = Command::new(program);
    command.arg(PULLER_VERB).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut puller = process::spawn(Role::Puller, "puller", &mut command).map_err(failed())?;
    let request = serde_json::to_vec(request).map_err(failed())?;
    process::tell(&mut puller, &request).map_err(failed())?;
    let (stdout, stderr) = puller.take_output().map_err(failed())?;
    let mut lines = BufReader::new(stdout);
    let mut line = Vec::new();
    // The puller is this program, so that its lines need no length limit.
    while matches!(lines.read_until(b'\n', &mut line), Ok(1..)) {
        match serde_json::from_slice(&line) {
            Ok(FromPuller::Progress { image, progress: step }) => progress(&image, &step),
            Ok(FromPuller::Done { pulls }) => return Ok(pulls),
            Ok(FromPuller::Failed(failure)) => return Err(*failure),
            Err(_) => break,
        }
        line.clear();
    }
    let status = puller.wait_or_kill(END_WAIT);
    let mut complaint = String::new();
    // What is not text, or not readable, is not worth an error of its own.
    let complaints = match stderr.take(MAX_COMPLAINT).read_to_string(&mut complaint) {
        Ok(_) => complaint.lines().map(str::to_owned).collect(),
        Err(_) => Vec::new(),
    };
    let end = PullerEnd {
        code: status.and_then(|status| status.code()),
        signal: status.and_then(|status| status.signal()),
        complaints,
    };
    Err(end.failure())
}
