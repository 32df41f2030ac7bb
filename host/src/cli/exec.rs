//! `magikvm exec` and `magikvm attach`: a process's streams on this terminal.

use super::error::{self, CliError, Kind};
use super::select::OnePod;
use super::terminal::{self, Raw};
use super::{Outcome, duration, ui};
use crate::agent::{AgentConnection, AgentError, AgentStream, Received, StreamError};
use crate::pod::interface::{PodError, PodRuntimeInterface};
use crate::store::thread::{self, ThreadError};
use magikvm_proto::id::{ContainerName, PodId};
use magikvm_proto::stream::{MAX_DATA, STDERR, STDIN, Traffic};
use magikvm_proto::wire::{
    Attached, EXEC_USER, ExecRequest, ExecStarted, ExitStatus, Refusal, RefusalCode, Request, StreamMessage,
    UrgentMessage,
};
use nix::sys::signal::{SigSet, Signal};
use std::io::{IsTerminal, Read};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Our own failure, told from the program's codes; a program that is not there exits as in a shell.
const OURS: Kind = Kind::Code(error::OURS);
const NO_PROGRAM: Kind = Kind::Code(error::NO_PROGRAM);
const NOT_EXECUTABLE: Kind = Kind::Code(error::NOT_EXECUTABLE);
/// Ctrl-P Ctrl-Q leaves an attached terminal.
const DETACH: [u8; 2] = [0x10, 0x11];

/// Arguments of exec.
#[derive(Debug, clap::Args)]
pub(super) struct ExecArgs {
    #[command(flatten)]
    target: OnePod,
    /// Which container; needed if there are several
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Pass standard input on
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the program a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// Set a variable for the program
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<String>,
    /// Run the program as this user instead of the container's, as USER[:GROUP] by name or number
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Directory to start in, instead of the container's own
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,
    /// Kill the program after this time (90s, 5m, 2h); 0 for never [default: never]
    #[arg(long, value_name = "DURATION", value_parser = duration::limit_secs, allow_hyphen_values = true, default_value = "0", hide_default_value = true)]
    timeout: u64,
    /// Program and arguments, after --; with -t, the user's shell if there is none
    #[arg(required_unless_present = "tty", trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<String>,
}

/// Arguments of attach.
#[derive(Debug, clap::Args)]
pub(super) struct AttachArgs {
    #[command(flatten)]
    target: OnePod,
    /// Which container; needed if there are several
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Do not pass standard input on
    #[arg(long)]
    no_stdin: bool,
}

/// A program has no limit unless its user sets one.
fn limit_ms(seconds: u64) -> Option<u64> {
    (seconds > 0).then(|| seconds.saturating_mul(1000))
}

fn variable(text: &str) -> Result<String, String> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not NAME=VALUE")),
    }
}

pub(super) fn exec(args: ExecArgs, pods: &PodRuntimeInterface) -> Outcome {
    let pod = args.target.id(pods)?;
    let found = pods.find(&pod)?;
    let container = pods.container(&found, &pod, args.container.as_deref())?;
    let timeout = args.timeout;
    let request = ExecRequest {
        container: container.clone(),
        args: args.command,
        user: args.user,
        env: args.env,
        cwd: args.workdir,
        terminal: args.tty.then(terminal::size),
        stdin: args.stdin,
        timeout_ms: limit_ms(timeout),
        files: None,
    };
    request.check().map_err(|message| CliError::new(Kind::User, message))?;
    let program = request.args.first().map_or("the shell", String::as_str).to_owned();
    let mut agent = pods.agent(&found, &pod)?;
    if (request.user.is_some() || request.args.is_empty()) && !agent.has(EXEC_USER)? {
        return Err(CliError::new(
            Kind::User,
            "the pod's supervisor is too old for `exec --user` and for an exec without a command",
        )
        .hint("Build a new one with `ci/demo.sh`, and run the pod again."));
    }
    let ExecStarted { .. } =
        agent.exec(request).map_err(|error| refused(pods, &pod, &container, error, &program))?;
    agent.extend_deadlines(pods.deadline_extension(&pod));
    if args.tty && args.stdin && !std::io::stdin().is_terminal() {
        ui::warn(
            "standard input is not a terminal, so that the program's terminal has no keyboard. Omit -t to pipe data into it",
        );
    }
    let exit = session(agent, &pod, args.stdin, args.tty, Detach::Never)?;
    let Some(exit) = exit else { return Ok(ExitCode::SUCCESS) };
    if exit.timed_out {
        return Err(CliError::new(Kind::Code(124), format!("{program} was killed after {timeout} s"))
            .hint("Allow more time with `--timeout 10m`, or use 0 for no limit."));
    }
    Ok(code(exit))
}

fn refused(
    pods: &PodRuntimeInterface,
    pod: &PodId,
    container: &ContainerName,
    error: AgentError,
    program: &str,
) -> CliError {
    let AgentError::Refused(refusal) = error else {
        return match pods.explain(pod, error) {
            PodError::Agent(error) => CliError::from(error).code(error::OURS),
            explained => explained.into(),
        };
    };
    refusal_of(pod, container, &refusal, program)
}

/// What the pod's supervisor says to an exec.
fn refusal_of(pod: &PodId, container: &ContainerName, refusal: &Refusal, program: &str) -> CliError {
    let (kind, hint) = match refusal.code {
        RefusalCode::NotFound => {
            (NO_PROGRAM, Some(format!("Check that {program} is in the container's image and its PATH.")))
        }
        RefusalCode::NotExecutable => (
            NOT_EXECUTABLE,
            Some(format!("Check the mode and the format of {program} in the container's image.")),
        ),
        RefusalCode::Busy => (Kind::User, Some("End another session of this pod, and try again.".to_owned())),
        RefusalCode::Conflict => (
            Kind::User,
            Some(format!(
                "An exec needs a running container: see its state with `magikvm describe {pod}`, and why its last run ended with `magikvm logs {pod} -c {container}`."
            )),
        ),
        RefusalCode::Invalid | RefusalCode::Internal | RefusalCode::Unknown => (Kind::User, None),
    };
    let message = format!("cannot run {program} in container {container} of pod {pod}");
    let error = CliError::new(kind, message).caused_by(refusal.message.clone());
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

fn code(exit: ExitStatus) -> ExitCode {
    ExitCode::from(u8::try_from(exit.code).unwrap_or(u8::MAX))
}

pub(super) fn attach(args: &AttachArgs, pods: &PodRuntimeInterface) -> Outcome {
    let pod = args.target.id(pods)?;
    let found = pods.find(&pod)?;
    let container = pods.container(&found, &pod, args.container.as_deref())?;
    let record =
        found.record.as_ref().and_then(|record| record.containers.iter().find(|c| c.name == container));
    let stdin = !args.no_stdin && record.is_some_and(|record| record.stdin);
    if !stdin && !args.no_stdin {
        ui::note(&format!(
            "Container {container} has no stdin (spec.containers[].stdin); showing its output only."
        ));
    }
    let mut agent = pods.agent(&found, &pod)?;
    let attached: Attached =
        agent.request(&Request::Attach { container, stdin }).map_err(|error| pods.explain(&pod, error))?;
    let detach = if attached.terminal && stdin && std::io::stdin().is_terminal() {
        ui::note("Attached; Ctrl-P Ctrl-Q leaves.");
        Detach::OnKeys
    } else {
        Detach::Never
    };
    agent.extend_deadlines(pods.deadline_extension(&pod));
    match session(agent, &pod, stdin, attached.terminal, detach)? {
        Some(exit) => Ok(code(exit)),
        None => Ok(ExitCode::SUCCESS),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Detach {
    Never,
    OnKeys,
}

/// Shows a process's streams until it ends; `None` when the user left it.
fn session(
    agent: AgentConnection,
    pod: &PodId,
    stdin: bool,
    tty: bool,
    detach: Detach,
) -> Result<Option<ExitStatus>, CliError> {
    let stream = Arc::new(agent.into_stream(Traffic::PROCESS)?);
    let raw = if tty && stdin { Raw::enter() } else { None };
    let left = Arc::new(AtomicBool::new(false));
    if tty {
        watch_size(Arc::clone(&stream))?;
    }
    if stdin {
        let (stream, left) = (Arc::clone(&stream), Arc::clone(&left));
        thread::start("stdin", move || pump_stdin(&stream, detach, &left))?;
    }
    let exit = show(&stream);
    drop(raw);
    match exit {
        Ok(Some(exit)) => Ok(Some(exit)),
        Ok(None) | Err(_) if left.load(Ordering::Acquire) => Ok(None),
        Ok(None) | Err(StreamError::Closed) => {
            let message = format!("pod {pod} ended before the program's exit code was known");
            Err(CliError::new(OURS, message)
                .hint(format!("See how it ended with `magikvm inspect {pod}` and `magikvm events {pod}`.")))
        }
        Err(error) => Err(CliError::of(OURS, &error)),
    }
}

/// Shows a process's output until its exit is known. While this waits for whoever reads what is shown, the process waits too, and nobody else.
fn show(stream: &AgentStream) -> Result<Option<ExitStatus>, StreamError> {
    while let Some(received) = stream.next()? {
        match received {
            Received::Data { channel: STDERR, bytes } => ui::error_bytes(&bytes),
            Received::Data { bytes, .. } => ui::bytes(&bytes),
            Received::Message(StreamMessage::Dropped { bytes, .. }) => gap(bytes),
            Received::Message(StreamMessage::Exit(exit)) => return Ok(Some(exit)),
            // Of logs only.
            Received::Message(StreamMessage::Run { .. }) => {}
        }
    }
    Ok(None)
}

fn gap(dropped: u64) {
    ui::note(&format!(
        "[{dropped} bytes of output were lost here: the container printed faster than they could be shown]"
    ));
}

fn pump_stdin(stream: &AgentStream, detach: Detach, left: &AtomicBool) {
    let mut buffer = vec![0u8; MAX_DATA];
    let mut stdin = std::io::stdin().lock();
    let mut held = false;
    loop {
        match stdin.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                let bytes = &buffer[..read];
                if detach == Detach::OnKeys {
                    let pair = bytes.windows(2).any(|pair| pair == DETACH);
                    if pair || (held && bytes.first() == Some(&DETACH[1])) {
                        left.store(true, Ordering::Release);
                        return stream.close();
                    }
                    held = bytes.last() == Some(&DETACH[0]);
                }
                if stream.send(STDIN, bytes).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    stream.end();
}

/// Passes changes of the terminal's size on. Called before the other threads start, so that all of them have the signal blocked.
fn watch_size(stream: Arc<AgentStream>) -> Result<(), ThreadError> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGWINCH);
    if set.thread_block().is_err() {
        return Ok(());
    }
    thread::start("size", move || {
        loop {
            if stream.send_urgent(&UrgentMessage::Resize(terminal::size())).is_err() || set.wait().is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: ExecArgs,
    }

    #[test]
    fn nothing_but_the_option_limits_the_time_of_a_program() {
        let limit = |options: &[&str]| {
            let line = [&["exec", "shop"], options, &["--", "true"]].concat();
            limit_ms(Line::parse_from(line).args.timeout)
        };
        for options in [&[][..], &["-t"], &["-i"], &["--timeout", "0"]] {
            assert_eq!(limit(options), None, "{options:?}");
        }
        assert_eq!(limit(&["--timeout", "7"]), Some(7000));
    }

    #[test]
    fn a_refused_exec_names_pod_container_and_what_to_do() {
        let (pod, container) = ("default/shop".parse().unwrap(), "web".parse().unwrap());
        let says = "container \"web\" is not running: it waits for its restart (CrashLoopBackOff)";
        let refusal = Refusal::new(RefusalCode::Conflict, says);
        let text = refusal_of(&pod, &container, &refusal, "id").text();
        assert_eq!(
            text,
            "Error: cannot run id in container web of pod default/shop\n\
             Caused by: container \"web\" is not running: it waits for its restart (CrashLoopBackOff)\n\
             Hint: An exec needs a running container: see its state with `magikvm describe default/shop`, and why its last run ended with \
             `magikvm logs default/shop -c web`.\n"
        );
        for code in [RefusalCode::NotFound, RefusalCode::Internal, RefusalCode::Busy, RefusalCode::Unknown] {
            let text = refusal_of(&pod, &container, &Refusal::new(code, "x"), "id").text();
            assert!(text.contains("container web of pod default/shop\nCaused by: x\n"), "{text}");
        }
    }
}
