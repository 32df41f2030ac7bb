//! `magikvm cp`: copies files between this host and a container. The guest does its part itself, so that the image needs no `tar`.

mod receive;

use super::error::{CliError, Kind};
use super::select::{PodArg, pod_arg};
use super::several::code_of;
use super::{Outcome, ui};
use crate::agent::{AgentError, AgentStream, Received as Frame, StreamError};
use crate::manifest::logs::log_size;
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::signals;
use crate::store::text::{chain, harmless};
use crate::store::thread;
use magikvm_platform::tree;
use magikvm_proto::files::{FileTask, FilesError};
use magikvm_proto::id::{Namespace, PodId};
use magikvm_proto::limits::MAX_MESSAGE_LEN;
use magikvm_proto::stream::{STDERR, STDIN, STDOUT, Traffic};
use magikvm_proto::wire::{ExecRequest, ExecStarted, ExitStatus, StreamMessage};
use nix::sys::signal::Signal;
use receive::{Destination, ReceiveError, Received, Receiver};
use std::ffi::OsStr;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};

/// Bytes of the messages of the guest's part that are kept.
const MAX_WORDS: usize = 16 << 10;
/// Bytes that are handed to the connection at once.
const BUFFER: usize = 64 << 10;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Files, directories and symbolic links are copied with their permissions and times, and belong to the user who writes them. If the target is a directory, the source is copied into it; a source that ends in `/.` means its content. Links that lead out of the copy are left out, and nothing is written through a link."
)]
pub(super) struct Args {
    /// What to copy: POD:PATH, NAMESPACE/POD:PATH, or a path of this host
    #[arg(value_name = "SOURCE")]
    source: String,
    /// Where to copy it to, in the same form; one of the two is in a pod
    #[arg(value_name = "TARGET")]
    target: String,
    /// Container; needed if there are several
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Namespace of the pod, if its name has none [default: default]
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<Namespace>,
    /// Most bytes that a copy to this host may have (500Mi, 20Gi)
    #[arg(long, value_name = "SIZE", default_value = "16Gi", value_parser = log_size)]
    max_size: u64,
}

/// One end of a copy.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Here(PathBuf),
    There(PodArg, String),
}

impl Place {
    fn parse(text: &str) -> Result<Self, CliError> {
        let wrong = |why: String| CliError::new(Kind::Code(2), format!("{text:?}: {why}"));
        // A path of this host that has a colon begins with a slash or a dot.
        let in_pod = text.split_once(':').filter(|(pod, _)| !pod.starts_with(['/', '.']));
        match in_pod {
            Some((pod, path)) => {
                let pod = pod_arg(pod).map_err(wrong)?;
                if path.is_empty() {
                    return Err(wrong("the path behind the colon is missing".to_owned()));
                }
                Ok(Self::There(pod, path.to_owned()))
            }
            None if text.is_empty() => Err(wrong("a path is missing".to_owned())),
            None => Ok(Self::Here(PathBuf::from(text))),
        }
    }
}

/// A path without the `/.` that means the content of a directory.
fn contents(path: &str) -> (&str, bool) {
    match path.strip_suffix("/.") {
        Some("") => ("/", true),
        Some(path) => (path, true),
        None if path == "." => (path, true),
        None => (path, false),
    }
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let id = |pod: &PodArg| pod.id(args.namespace.as_ref(), pods);
    let caught = Arc::new(AtomicI32::new(0));
    let copied = match (Place::parse(&args.source)?, Place::parse(&args.target)?) {
        (Place::There(pod, from), Place::Here(to)) => {
            download(&Session::new(args, pods, id(&pod)?, &caught), &from, &to, args.max_size)
        }
        (Place::Here(from), Place::There(pod, to)) => {
            upload(&Session::new(args, pods, id(&pod)?, &caught), &from, &to)
        }
        (Place::Here(_), Place::Here(_)) => {
            let hint = "Name a pod as in `magikvm cp web:/etc/hostname .`; a path of this host that has a colon begins with `/` or `./`.";
            Err(CliError::new(Kind::Code(2), "neither the source nor the target is in a pod").hint(hint))
        }
        (Place::There(..), Place::There(..)) => {
            let hint = "Copy to this host first, and from there to the other pod.";
            Err(CliError::new(Kind::Code(2), "the source and the target are both in a pod").hint(hint))
        }
    };
    match (copied, Signal::try_from(caught.load(Ordering::Acquire))) {
        (Err(_), Ok(signal)) => {
            ui::note("Interrupted: only a part was copied.");
            Ok(ExitCode::from(code_of(signal)))
        }
        (copied, _) => copied,
    }
}

/// The guest's part of a copy.
struct Session<'a> {
    pods: &'a PodRuntimeInterface,
    pod: PodId,
    container: Option<&'a str>,
    /// The signal that has ended the copy, for the exit code.
    caught: &'a Arc<AtomicI32>,
}

impl<'a> Session<'a> {
    fn new(args: &'a Args, pods: &'a PodRuntimeInterface, pod: PodId, caught: &'a Arc<AtomicI32>) -> Self {
        Self { pods, pod, container: args.container.as_deref(), caught }
    }

    fn start(&self, task: FileTask) -> Result<Arc<AgentStream>, CliError> {
        let (pods, pod) = (self.pods, &self.pod);
        let found = pods.find(pod)?;
        let request = ExecRequest {
            container: pods.container(&found, pod, self.container)?,
            args: Vec::new(),
            user: None,
            env: Vec::new(),
            cwd: None,
            terminal: None,
            stdin: matches!(task, FileTask::Write { .. }),
            timeout_ms: None,
            files: Some(task),
        };
        request.check().map_err(|message| CliError::new(Kind::User, message))?;
        let mut agent = pods.agent(&found, pod)?;
        let ExecStarted { .. } = agent.exec(request).map_err(|error| match error {
            error @ AgentError::Refused(_) => CliError::from(PodError::from(error)),
            error => pods.explain(pod, error).into(),
        })?;
        agent.extend_deadlines(pods.deadline_extension(pod));
        let stream = Arc::new(agent.into_stream(Traffic::PROCESS)?);
        self.watch_signals(Arc::clone(&stream))?;
        Ok(stream)
    }

    /// The first signal ends the copy, so that no half file is left; the second ends this program at once.
    fn watch_signals(&self, stream: Arc<AgentStream>) -> Result<(), CliError> {
        let signals = signals::ending();
        if signals.thread_block().is_err() {
            return Ok(());
        }
        let caught = Arc::clone(self.caught);
        thread::start("signals", move || {
            if let Ok(signal) = signals.wait() {
                caught.store(signal as i32, Ordering::Release);
                stream.close();
            }
            if let Ok(signal) = signals.wait() {
                std::process::exit(code_of(signal).into());
            }
        })?;
        Ok(())
    }
}

/// What the guest's part sends: its output is read as bytes, and its messages and its end are kept.
struct Output {
    stream: Arc<AgentStream>,
    rest: Vec<u8>,
    at: usize,
    words: Vec<u8>,
    exit: Option<ExitStatus>,
}

impl Output {
    fn new(stream: Arc<AgentStream>) -> Self {
        Self { stream, rest: Vec::new(), at: 0, words: Vec::new(), exit: None }
    }

    /// Waits for more output; false at its end.
    fn more(&mut self) -> Result<bool, StreamError> {
        while self.exit.is_none() {
            match self.stream.next()? {
                Some(Frame::Data { channel: STDOUT, bytes }) if !bytes.is_empty() => {
                    (self.rest, self.at) = (bytes, 0);
                    return Ok(true);
                }
                Some(Frame::Data { channel: STDERR, bytes }) => {
                    let room = MAX_WORDS.saturating_sub(self.words.len());
                    self.words.extend(bytes.iter().take(room));
                }
                Some(Frame::Message(StreamMessage::Exit(exit))) => self.exit = Some(exit),
                Some(Frame::Data { .. } | Frame::Message(_)) => {}
                None => return Ok(false),
            }
        }
        Ok(false)
    }

    /// Waits for the end of the guest's part, and reports what it could not do.
    fn end(&mut self) -> Result<(), CliError> {
        while self.more().map_err(|error| CliError::of(Kind::Internal, &error))? {}
        match self.exit {
            Some(ExitStatus { code: 0, .. }) => Ok(()),
            Some(_) => Err(self.complaint().unwrap_or_else(|| {
                CliError::new(Kind::User, "the container's part of the copy has failed without a word")
            })),
            None => Err(CliError::new(Kind::User, "the pod ended before the copy was complete")),
        }
    }

    /// What the guest's part says has gone wrong.
    fn complaint(&self) -> Option<CliError> {
        let text = String::from_utf8_lossy(&self.words);
        let cut: String = text.trim_end().chars().take(MAX_MESSAGE_LEN).collect();
        (!cut.is_empty())
            .then(|| CliError::new(Kind::User, format!("in the container: {}", harmless(&cut, &['\n']))))
    }
}

impl Read for Output {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at == self.rest.len() && !self.more().map_err(io::Error::other)? {
            return Ok(0);
        }
        let length = into.len().min(self.rest.len() - self.at);
        into[..length].copy_from_slice(&self.rest[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

fn nameless(error: &ReceiveError) -> CliError {
    CliError::of(Kind::Code(2), error).hint(
        "Name the source, or the new directory in the target; a source that ends in `/.` means its content.",
    )
}

/// The last name of a path in a pod.
fn name_of(path: &str) -> Option<&OsStr> {
    Path::new(path).file_name()
}

fn download(session: &Session<'_>, from: &str, to: &Path, max_bytes: u64) -> Outcome {
    let (path, contents) = contents(from);
    if name_of(path).is_none() && !contents && to.is_dir() {
        return Err(nameless(&ReceiveError::Nameless));
    }
    let stream = session.start(FileTask::Read { path: path.to_owned() })?;
    let mut output = Output::new(Arc::clone(&stream));
    let mut progress = ui::WaitProgress::new();
    let what = format!("{}:{from}", session.pod);
    let received = Receiver::new(
        BufReader::with_capacity(BUFFER, &mut output),
        Destination { path: to, contents, name: name_of(path), max_bytes },
        &mut |received: &Received| {
            let (files, bytes) = (ui::count_of(received.files, "file"), ui::size(received.bytes));
            progress.show(&format!("Copying {what}: {files}, {bytes}"));
        },
    )
    .receive();
    progress.end();
    let received = received.map_err(|error| match error {
        // The guest's part ended early and says why.
        ReceiveError::Stream(FilesError::Io(_)) => match output.end() {
            Err(complaint) => complaint,
            Ok(()) => CliError::of(Kind::Internal, &error),
        },
        ReceiveError::Stream(_) => CliError::of(Kind::Internal, &error),
        ReceiveError::Size(_) => CliError::of(Kind::User, &error)
            .hint("Allow more with `--max-size`, if the host has room for it."),
        ReceiveError::Nameless => nameless(&error),
        ReceiveError::Items => CliError::of(Kind::User, &error).hint("Copy it in several parts."),
        ReceiveError::Write { .. } => CliError::of(Kind::User, &error),
    });
    if received.is_err() {
        stream.close();
    }
    let received = received?;
    output.end()?;
    Ok(if received.left_out > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The input of the guest's part.
struct Input<'a> {
    stream: &'a AgentStream,
    sent: u64,
    progress: &'a mut dyn FnMut(u64),
}

impl Write for Input<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.send(STDIN, bytes).map_err(io::Error::other)?;
        self.sent += u64::try_from(bytes.len()).unwrap_or(0);
        (self.progress)(self.sent);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn upload(session: &Session<'_>, from: &Path, to: &str) -> Outcome {
    let text = from.to_string_lossy();
    let (path, contents) = contents(&text);
    // What cannot be read at all is said before anything begins.
    let there = std::fs::metadata(path).map_err(|source| {
        CliError::of(Kind::User, &FilesError::Unreadable { path: path.to_owned(), source })
    })?;
    let contents = contents && there.is_dir();
    let stream = session.start(FileTask::Write { path: to.to_owned(), contents })?;
    let mut output = Output::new(Arc::clone(&stream));
    // The other direction is read at the same time, so that neither end waits for the other one.
    let listener = thread::start("cp", move || {
        let ended = output.end();
        (output, ended)
    })?;
    let mut progress = ui::WaitProgress::new();
    let what = format!("{}:{to}", session.pod);
    let mut show = |bytes: u64| progress.show(&format!("Copying to {what}: {}", ui::size(bytes)));
    let mut left_out = ui::LeftOut::default();
    let input = Input { stream: &stream, sent: 0, progress: &mut show };
    let sent = tree::send(Path::new(path), BufWriter::with_capacity(BUFFER, input), &mut |problem| {
        left_out.tell(problem);
    });
    progress.end();
    stream.end();
    let fatal = matches!(&sent, Err(error) if !matches!(error, FilesError::Io(_)));
    if fatal {
        stream.close();
    }
    let (output, ended) =
        listener.join().map_err(|_| CliError::new(Kind::Internal, "a thread of the copy has failed"))?;
    match (sent, ended) {
        (Err(error), _) if fatal => Err(CliError::of(Kind::User, &error)),
        (_, Err(error)) => Err(output.complaint().unwrap_or(error)),
        (Err(error), Ok(())) => Err(CliError::new(Kind::Internal, chain(&error))),
        (Ok(()), Ok(())) => Ok(left_out.code()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_in_a_pod_or_here() {
        let there = |pod: &str, path: &str| Place::There(pod_arg(pod).unwrap(), path.to_owned());
        for (text, place) in [
            ("web:/etc/hostname", there("web", "/etc/hostname")),
            ("team/web:dir", there("team/web", "dir")),
            ("web:/a:b", there("web", "/a:b")),
            ("/tmp/a:b", Place::Here("/tmp/a:b".into())),
            ("./a:b", Place::Here("./a:b".into())),
            ("file", Place::Here("file".into())),
        ] {
            assert_eq!(Place::parse(text).unwrap(), place, "{text}");
        }
        for text in ["", "web:", "Web:/x", "a/b/c:/x"] {
            assert!(Place::parse(text).is_err(), "{text}");
        }
        assert_eq!(contents("/a/."), ("/a", true));
        assert_eq!(contents("/."), ("/", true));
        assert_eq!(contents("."), (".", true));
        assert_eq!(contents("/a/"), ("/a/", false));
        assert_eq!(contents("/a."), ("/a.", false));
    }
}
