//! `magikvm events`.

use super::error::{CliError, Kind};
use super::logs::Changes;
use super::select::OnePod;
use super::{Format, Outcome, print_as, ui};
use crate::net::report::Refused;
use crate::pod::events::{EventReader, HostEvent, PodEvent, Repeated, TimedEvent, collapse, kubelet, pulled};
use crate::pod::interface::PodRuntimeInterface;
use crate::store::atomic::FileError;
use crate::store::lock::{self, LockState};
use crate::store::text::harmless;
use magikvm_proto::budget::CLOCK_TOLERANCE_MS;
use magikvm_proto::wire::EventKind;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    target: OnePod,
    /// Follow the events until the pod has ended
    #[arg(short, long)]
    follow: bool,
    /// Output format: one JSON object per line, or one YAML document per event
    #[arg(short, long)]
    output: Option<Format>,
    /// The same as `-o json`
    #[arg(long, hide = true, conflicts_with = "output")]
    json: bool,
}

pub(super) fn main(args: &Args, pods: &PodRuntimeInterface) -> Outcome {
    let format = if args.json { Some(Format::Json) } else { args.output };
    let found = pods.find(&args.target.id(pods)?)?;
    let failed = |error: FileError| CliError::of(Kind::Environment, &error);
    let changes = args.follow.then(|| Changes::of(&found.dir));
    let mut reader = EventReader::new(found.dir.events());
    if !args.follow && format.is_none() {
        let mut events = Vec::new();
        while let Some((timed, _)) = reader.next_event().map_err(failed)? {
            events.push(timed);
        }
        collapse(events).iter().for_each(|timed| ui::line(&line(timed)));
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let last_look =
            !args.follow || lock::state(&found.dir.lock()).is_ok_and(|state| state == LockState::Free);
        while let Some((timed, mut bytes)) = reader.next_event().map_err(failed)? {
            match format {
                Some(Format::Json) => {
                    bytes.push(b'\n');
                    ui::bytes(&bytes);
                }
                Some(Format::Yaml) => {
                    if let Ok(event) = serde_json::from_slice::<serde_json::Value>(&bytes) {
                        ui::line("---");
                        print_as(&event, Format::Yaml)?;
                    }
                }
                None => ui::line(&line(&timed)),
            }
        }
        let Some(changes) = changes.as_ref().filter(|_| !last_look) else { return Ok(ExitCode::SUCCESS) };
        changes.wait(None);
    }
}

/// An event as a line for people.
pub(super) fn line(timed: &TimedEvent) -> String {
    let what = words(&timed.what);
    let repeated = timed.repeated.as_ref().map_or(String::new(), |repeated| again(&timed.time, repeated));
    format!("{}  {what}{repeated}", harmless(&timed.time, &[]))
}

/// What an event says.
pub(super) fn words(what: &PodEvent) -> String {
    match what {
        PodEvent::Guest(event) => describe(&event.kind),
        PodEvent::Host(event) => describe_host(event),
    }
}

/// How often an event has come, as kubectl shows it.
fn again(last: &str, Repeated { count, since }: &Repeated) -> String {
    let ms = |time: &str| time.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_millisecond);
    let span = u64::try_from(ms(last).saturating_sub(ms(since))).unwrap_or(0);
    format!(" (x{count} over {})", ui::age(span))
}

fn describe(kind: &EventKind) -> String {
    let again =
        |wait: &Option<u64>| wait.map_or(String::new(), |ms| format!(", restarts in {} s", ms / 1000));
    match kind {
        EventKind::ContainerCreated { container } => format!("{container}: created"),
        EventKind::ContainerStarted { container, restart_count: 0, .. } => format!("{container}: started"),
        EventKind::ContainerStarted { container, restart_count, .. } => {
            format!("{container}: restarted ({restart_count})")
        }
        EventKind::ContainerExited { container, exit, message, restart_in_ms } => {
            let how = match exit.signal {
                _ if exit.oom_killed => "killed: out of memory".to_owned(),
                Some(signal) => format!("killed by signal {signal}"),
                None => format!("exited with {}", exit.code),
            };
            let message = message.as_ref().map(|text| format!(": {}", harmless(text.trim_end(), &['\t'])));
            format!("{container}: {how}{}{}", again(restart_in_ms), message.unwrap_or_default())
        }
        EventKind::ContainerFailed { container, message, restart_in_ms, .. } => {
            format!(
                "{container}: could not be started: {}{}",
                harmless(message, &['\t']),
                again(restart_in_ms)
            )
        }
        EventKind::ContainerCondition { container, started, ready } => match (started, ready) {
            (_, true) => format!("{container}: ready"),
            (true, false) => format!("{container}: not ready"),
            (false, false) => format!("{container}: waits for its startup probe"),
        },
        EventKind::ProbeFailed { container, .. }
        | EventKind::HookFailed { container, .. }
        | EventKind::ContainerKilling { container, .. } => {
            let (reason, message) = kubelet(kind, "").unwrap_or_default();
            format!("{container}: {reason}: {}", harmless(&message, &['\t']))
        }
        EventKind::DeadlineExceeded | EventKind::ExtensionFailed { .. } => {
            let (reason, message) = kubelet(kind, "").unwrap_or_default();
            format!("{reason}: {}", harmless(&message, &['\t']))
        }
        EventKind::PodStarted => "all containers started".to_owned(),
        EventKind::PodFailed { message, .. } => {
            format!("the pod cannot run: {}", harmless(message, &['\t']))
        }
        EventKind::ShuttingDown => "stopping".to_owned(),
        EventKind::PodEnded => "the pod has ended".to_owned(),
    }
}

fn describe_host(event: &HostEvent) -> String {
    match event {
        HostEvent::Pulled { what, image, took_ms, size_bytes } => {
            let what = what.strip_prefix("container ").unwrap_or(what);
            format!("{}: {}", harmless(what, &[]), pulled(image, *took_ms, *size_bytes))
        }
        HostEvent::Paused => "paused".to_owned(),
        HostEvent::Resumed => "resumed".to_owned(),
        HostEvent::DiskFull { dir } => {
            let dir = harmless(&dir.display().to_string(), &[]);
            format!("the host's disk with {dir} is full: the VM stands still until there is room")
        }
        HostEvent::DiskHasRoom => "the host's disk has room again: the VM goes on".to_owned(),
        HostEvent::Rebooted { silent_ms } => {
            format!(
                "the pod's sandbox is started again: its agent did not answer within {} s",
                silent_ms / 1000
            )
        }
        HostEvent::Clock { offset_ms, .. } => describe_clock(*offset_ms),
        HostEvent::Warning { message } => format!("warning: {}", harmless(message, &[])),
        HostEvent::Refused(Refused { what, to, why, count }) => {
            let [what, to, why] = [what, to, why].map(|text| harmless(text, &[]));
            let times = if *count == 1 { String::new() } else { format!(" ({count} times)") };
            format!("network: refused {what} to {to}: {why}{times}")
        }
        HostEvent::Connection { port, message } => {
            format!("ports: a connection to port {port} was reset: {}", harmless(message, &[]))
        }
        HostEvent::Jail { process, missing } => {
            let layers: Vec<String> = missing
                .iter()
                .map(|one| format!("{} ({})", one.layer, harmless(&one.why, &['\t'])))
                .collect();
            format!("jail: {process} runs without {}", layers.join(", "))
        }
        HostEvent::Broken { reason, message } => {
            format!("the pod's sandbox has ended: {reason}: {}", harmless(message, &['\t']))
        }
        HostEvent::Omitted { events } => format!("{events} events are not kept"),
        HostEvent::ClockFailed { message, .. } => {
            format!("clock: the pod did not get the time: {}", harmless(message, &['\t']))
        }
    }
}

fn describe_clock(offset_ms: i64) -> String {
    let off = offset_ms.unsigned_abs();
    let far = if off < 1000 { format!("{off} ms") } else { format!("{}.{} s", off / 1000, off % 1000 / 100) };
    let side = if offset_ms < 0 { "behind" } else { "ahead" };
    match off {
        0 => "clock: the pod's clock was right".to_owned(),
        1..=CLOCK_TOLERANCE_MS => format!("clock: the pod's clock was right ({far} {side})"),
        _ => format!("clock: the pod's clock was {far} {side} and has been set"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_offset_has_words() {
        let said = [0, -50, 51, -999, 30_012, i64::MIN].map(describe_clock);
        assert_eq!(
            said,
            [
                "clock: the pod's clock was right",
                "clock: the pod's clock was right (50 ms behind)",
                "clock: the pod's clock was 51 ms ahead and has been set",
                "clock: the pod's clock was 999 ms behind and has been set",
                "clock: the pod's clock was 30.0 s ahead and has been set",
                "clock: the pod's clock was 9223372036854775.8 s behind and has been set",
            ]
        );
    }
}
