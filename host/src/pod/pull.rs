//! Pulls a pod's images in a separate process: code that talks to registries and unpacks untrusted archives does not run in the monitor,
//! and its memory is freed when the images are there. The monitor starts the puller, tells it what to pull, and reads its progress line
//! by line.

use super::failure::{Blame, Failure, RunStage};
use crate::image::{
    BringOptions, Cancel, ImageError, ImageStore, LoginFile, Progress, PullPolicy, PullSources, Reference,
    Wanted,
};
use crate::manifest::PullSecret;
use crate::signals;
use crate::store::layout::{Layout, Surroundings};
use crate::store::limits;
use crate::store::text::ignore;
use crate::store::thread::{self, ThreadError};
use magikvm_proto::codec::write_message;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

pub const PULLER_VERB: &str = "__pull";

/// Longest request on standard input, which holds a few references and at most a megabyte of logins in base64.
const MAX_REQUEST: u64 = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PullRequest {
    pub root: Option<PathBuf>,
    /// The images, pulled one after the other.
    pub images: Vec<(Reference, PullPolicy)>,
    /// The platform that the images must be for.
    pub platform: Wanted,
    /// Seconds for each image.
    pub timeout_secs: u64,
    /// The pod's own logins. A request is written to a pipe and nowhere else.
    pub logins: Vec<PullSecret>,
}

/// The puller's messages, one line each. The last one is `Done` or `Failed`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromPuller {
    Progress {
        image: Reference,
        progress: Progress,
    },
    /// All images are here.
    Done {
        pulls: Vec<Pull>,
    },
    Failed(Box<Failure>),
}

/// An image that was pulled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pull {
    pub image: Reference,
    pub took_ms: u64,
}

/// The end of a puller that sent neither `Done` nor `Failed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullerEnd {
    /// The exit code, unless a signal ended the puller or the code is unknown.
    pub code: Option<i32>,
    /// The signal that ended the puller.
    pub signal: Option<i32>,
    /// The last lines of the puller's standard error.
    pub complaints: Vec<String>,
}

impl PullerEnd {
    /// The failed run that this end means.
    pub fn failure(&self) -> Failure {
        let failure = match self.signal {
            Some(signal) => {
                let name =
                    Signal::try_from(signal).map_or_else(|_| signal.to_string(), |name| name.to_string());
                let message = format!("the process that pulls the pod's images was killed ({name})");
                let failure = Failure::message(RunStage::Image, Blame::Environment, message);
                match Signal::try_from(signal) {
                    Ok(Signal::SIGKILL) => {
                        failure.hint("Check with `dmesg` whether the host was out of memory.")
                    }
                    _ => failure,
                }
            }
            None => {
                let code = self.code.map_or_else(String::new, |code| format!(" (exit code {code})"));
                let message = format!("the process that pulls the pod's images ended without a word{code}");
                Failure::message(RunStage::Image, Blame::Internal, message)
            }
        };
        Failure { causes: self.complaints.clone(), ..failure }
    }
}

/// The main function of a puller: reads a [`PullRequest`] from standard input and answers on standard output. TERM makes it give up
/// without leaving anything half-done.
pub fn main() -> i32 {
    let cancel = Cancel::new();
    let watched = watch_signals(&cancel).map_err(Failure::at(RunStage::Image, Blame::Environment));
    let out = Mutex::new(std::io::stdout());
    let say = |message: &FromPuller| {
        let mut out = out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        ignore(write_message(&mut *out, message), "the monitor has ended, and this process ends with it");
    };
    match watched.and_then(|()| pull(&cancel, &say)) {
        Ok(pulls) => {
            say(&FromPuller::Done { pulls });
            0
        }
        Err(failure) => {
            say(&FromPuller::Failed(Box::new(failure)));
            1
        }
    }
}

fn watch_signals(cancel: &Cancel) -> Result<(), ThreadError> {
    let mut signals = signals::ending();
    // The monitor sends TERM, which must arrive even if the caller of `run` ignored it.
    signals.add(Signal::SIGTERM);
    if signals.thread_block().is_err() {
        // TERM then ends the process as usual, and the next puller removes what is left.
        return Ok(());
    }
    let cancel = cancel.clone();
    thread::start("signals", move || {
        if signals.wait().is_ok() {
            cancel.cancel();
        }
    })?;
    Ok(())
}

fn pull(cancel: &Cancel, say: &(dyn Fn(&FromPuller) + Sync)) -> Result<Vec<Pull>, Failure> {
    #[cfg(feature = "testing")]
    assert_ne!(std::env::var("MAGIKVM_FAULT").as_deref(), Ok("puller"), "fault injected in the puller");
    const STAGE: RunStage = RunStage::Image;
    let mut request = Vec::new();
    let read = std::io::stdin().take(MAX_REQUEST).read_to_end(&mut request);
    read.map_err(Failure::at(STAGE, Blame::Internal))?;
    let request: PullRequest =
        serde_json::from_slice(&request).map_err(Failure::at(STAGE, Blame::Internal))?;
    let layout =
        Layout::new(&Surroundings::of_process(request.root)).map_err(Failure::at(STAGE, Blame::Internal))?;
    limits::put_in_force(&layout.limits()).map_err(Failure::at(STAGE, Blame::Environment))?;
    let store = ImageStore::open(&layout.images()).map_err(|error| of_image(&error))?;
    let mut sources =
        PullSources::load(&layout.registries(), &layout.policy()).map_err(|error| of_image(&error))?;
    let logins = request.logins.iter().map(|login| {
        let PullSecret { name, format, content } = login;
        let name = format!("the Secret {name}");
        LoginFile::of_secret(content.bytes(), *format, Path::new(&name))
    });
    let logins: Vec<LoginFile> = logins.collect::<Result<_, _>>().map_err(Failure::at(STAGE, Blame::User))?;
    sources.credentials = sources.credentials.after(logins.into_iter());
    let mut pulls = Vec::new();
    for (image, when) in &request.images {
        let began = Instant::now();
        let options = BringOptions {
            platform: request.platform.clone(),
            cancel: cancel.with_timeout(Duration::from_secs(request.timeout_secs)),
            ..BringOptions::default()
        };
        let progress = |progress| say(&FromPuller::Progress { image: image.clone(), progress });
        store.pull(image, &sources, *when, &options, &progress).map_err(|error| of_image(&error))?;
        let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        pulls.push(Pull { image: image.clone(), took_ms });
    }
    Ok(pulls)
}

/// Turns an image error into a failed run.
pub fn of_image(error: &ImageError) -> Failure {
    let blame = if error.is_of_machine() { Blame::Environment } else { Blame::User };
    let failure = Failure::new(RunStage::Image, blame, error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
