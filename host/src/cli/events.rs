//! `magikvm events`.

use super::error::{CliError, Kind};
use super::logs::Changes;
use super::{Format, Outcome, pod_id, print_as, ui};
use crate::net::report::Refused;
use crate::pod::events::{HostEvent, MAX_LINE, PodEvent, TimedEvent};
use crate::pod::interface::PodRuntimeInterface;
use crate::store::atomic::FileError;
use crate::store::lock::{self, LockState};
use crate::store::regular::{self, Access};
use crate::store::text::harmless;
use magikvm_proto::budget::CLOCK_TOLERANCE_MS;
use magikvm_proto::id::PodId;
use magikvm_proto::wire::EventKind;
use std::io::BufReader;
use std::process::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Pod, as NAME or NAMESPACE/NAME
    #[arg(value_parser = pod_id)]
    pod: PodId,
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
    let found = pods.find(&args.pod)?;
    let path = found.dir.events();
    let failed = |error| CliError::of(Kind::Environment, &FileError::at("read", &path)(error));
    let changes = Changes::of(&found.dir);
    let mut reader = match regular::open(&path, Access::Read) {
        Ok(file) => BufReader::new(file),
        // A pod whose VM never came so far.
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => return Ok(ExitCode::SUCCESS),
        Err(error) => return Err(CliError::of(Kind::Environment, &error)),
    };
    let mut line = Vec::new();
    loop {
        let last_look =
            !args.follow || lock::state(&found.dir.lock()).is_ok_and(|state| state == LockState::Free);
        while regular::read_line(&mut reader, &mut line, MAX_LINE).map_err(failed)? {
            match format {
                Some(Format::Json) => {
                    line.push(b'\n');
                    ui::bytes(&line);
                }
                Some(Format::Yaml) => {
                    if let Ok(event) = serde_json::from_slice::<serde_json::Value>(&line) {
                        ui::line("---");
                        print_as(&event, Format::Yaml)?;
                    }
                }
                None => {
                    if let Ok(timed) = serde_json::from_slice::<TimedEvent>(&line) {
                        ui::line(&self::line(&timed));
                    }
                }
            }
            line.clear();
        }
        if last_look {
            return Ok(ExitCode::SUCCESS);
        }
        changes.wait();
    }
}

/// An event as a line for people.
pub(super) fn line(timed: &TimedEvent) -> String {
    let what = match &timed.what {
        PodEvent::Guest(event) => describe(&event.kind),
        PodEvent::Host(event) => describe_host(event),
    };
    format!("{}  {what}", harmless(&timed.time, &[]))
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
        EventKind::ContainerExited { container, exit, restart_in_ms } => {
            let how = match exit.signal {
                _ if exit.oom_killed => "killed: out of memory".to_owned(),
                Some(signal) => format!("killed by signal {signal}"),
                None => format!("exited with {}", exit.code),
            };
            format!("{container}: {how}{}", again(restart_in_ms))
        }
        EventKind::ContainerFailed { container, message, restart_in_ms, .. } => {
            format!(
                "{container}: could not be started: {}{}",
                harmless(message, &['\t']),
                again(restart_in_ms)
            )
        }
        EventKind::PodStarted => "all containers started".to_owned(),
        EventKind::PodFailed { message } => {
            format!("the pod could not be started: {}", harmless(message, &['\t']))
        }
        EventKind::ShuttingDown => "stopping".to_owned(),
        EventKind::PodEnded => "the pod has ended".to_owned(),
    }
}

fn describe_host(event: &HostEvent) -> String {
    match event {
        HostEvent::Paused => "paused".to_owned(),
        HostEvent::Resumed => "resumed".to_owned(),
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
            format!("the VM has ended: {reason}: {}", harmless(message, &['\t']))
        }
        HostEvent::ClockFailed { message, .. } => {
            format!("clock: the guest did not get the time: {}", harmless(message, &['\t']))
        }
    }
}

fn describe_clock(offset_ms: i64) -> String {
    let off = offset_ms.unsigned_abs();
    let far = if off < 1000 { format!("{off} ms") } else { format!("{}.{} s", off / 1000, off % 1000 / 100) };
    let side = if offset_ms < 0 { "behind" } else { "ahead" };
    match off {
        0 => "clock: the guest's clock was right".to_owned(),
        1..=CLOCK_TOLERANCE_MS => format!("clock: the guest's clock was right ({far} {side})"),
        _ => format!("clock: the guest's clock was {far} {side} and has been set"),
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
                "clock: the guest's clock was right",
                "clock: the guest's clock was right (50 ms behind)",
                "clock: the guest's clock was 51 ms ahead and has been set",
                "clock: the guest's clock was 999 ms behind and has been set",
                "clock: the guest's clock was 30.0 s ahead and has been set",
                "clock: the guest's clock was 9223372036854775.8 s behind and has been set",
            ]
        );
    }
}
