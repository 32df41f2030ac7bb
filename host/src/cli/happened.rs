//! The events of pods as kubectl shows them: a type, a reason and a message, and how often they came.

use super::error::{CliError, Kind};
use super::{events, ui};
use crate::pod::events::{EventReader, HostEvent, PodEvent, TimedEvent, collapse, kubelet, pulled};
use crate::store::record::{Found, PodRecord, now_ms};
use magikvm_proto::wire::EventKind;
use serde_json::{Value, json};

/// Reasons that are warnings: those of the kubelet, and the failure of an extension.
const WARNINGS: [&str; 7] = [
    "BackOff",
    "DeadlineExceeded",
    "ExtensionFailed",
    "Failed",
    "FailedPostStartHook",
    "FailedPreStopHook",
    "Unhealthy",
];
/// Who says so, as in core/v1 `EventSource`.
const SOURCE: &str = "magikvm";

/// An event as a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Happened {
    /// When it came first and last, in RFC 3339.
    pub(super) first: String,
    pub(super) last: String,
    pub(super) is_warning: bool,
    pub(super) reason: String,
    pub(super) message: String,
    pub(super) count: u32,
}

impl Happened {
    /// `None` for what changes nothing for people, or is said by another event. `pod` is what the kubelet calls it.
    fn of(timed: &TimedEvent, pod: &str) -> Option<Self> {
        let (reason, message, is_warning) = match &timed.what {
            PodEvent::Guest(event) => match kubelet(&event.kind, pod) {
                Some((reason, message)) => (reason.to_owned(), message, WARNINGS.contains(&reason)),
                None => match &event.kind {
                    EventKind::ContainerCondition { .. } | EventKind::PodStarted => return None,
                    kind => {
                        let bad = match kind {
                            EventKind::ContainerExited { exit, .. } => {
                                exit.code != 0 || exit.signal.is_some()
                            }
                            EventKind::PodFailed { .. } => true,
                            _ => false,
                        };
                        (named(&json!(kind), "event"), events::words(&timed.what), bad)
                    }
                },
            },
            PodEvent::Host(HostEvent::Clock { .. }) => return None,
            PodEvent::Host(HostEvent::Pulled { image, took_ms, size_bytes, .. }) => {
                ("Pulled".to_owned(), pulled(image, *took_ms, *size_bytes), false)
            }
            PodEvent::Host(event) => {
                let calm = matches!(event, HostEvent::Paused | HostEvent::Resumed | HostEvent::DiskHasRoom);
                (named(&json!(event), "host"), events::words(&timed.what), !calm)
            }
        };
        let (count, first) = match &timed.repeated {
            Some(repeated) => (repeated.count, repeated.since.clone()),
            None => (1, timed.time.clone()),
        };
        Some(Self { first, last: timed.time.clone(), is_warning, reason, message, count })
    }

    pub(super) fn kind(&self) -> &'static str {
        if self.is_warning { "Warning" } else { "Normal" }
    }

    /// How long ago it was, as `kubectl describe` shows it: `5s`, or `5s (x3 over 2m)`.
    pub(super) fn age(&self) -> String {
        match self.count {
            1 => ago(&self.last),
            count => format!("{} (x{count} over {})", ago(&self.last), ago(&self.first)),
        }
    }

    /// A core/v1 Event.
    pub(super) fn object(&self, pod: &str, uid: Option<&str>) -> Value {
        let (namespace, name) = pod.split_once('/').unwrap_or(("", pod));
        let mut object = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": { "namespace": namespace, "name": format!("{name}.{}", self.first) },
            "involvedObject": { "apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": name },
            "type": self.kind(),
            "reason": self.reason,
            "message": self.message,
            "count": self.count,
            "firstTimestamp": seconds(&self.first),
            "lastTimestamp": seconds(&self.last),
            "source": { "component": SOURCE },
        });
        if let Some(uid) = uid {
            object["involvedObject"]["uid"] = json!(uid);
        }
        object
    }
}

/// The name of a variant as Kubernetes writes reasons: `disk_full` becomes `DiskFull`.
fn named(value: &Value, tag: &str) -> String {
    let word = |word: &str| {
        let mut letters = word.chars();
        letters
            .next()
            .map_or(String::new(), |first| first.to_ascii_uppercase().to_string() + letters.as_str())
    };
    value[tag].as_str().unwrap_or_default().split('_').map(word).collect()
}

fn ms(time: &str) -> u64 {
    let parsed = time.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_millisecond);
    u64::try_from(parsed).unwrap_or(0)
}

fn ago(time: &str) -> String {
    ui::age(now_ms().saturating_sub(ms(time)))
}

/// As `metav1.Time` has it.
fn seconds(time: &str) -> String {
    crate::pod::status::time(ms(time))
}

/// The events of a pod, the oldest first. The same event with the same message is one row.
pub(super) fn of(found: &Found) -> Result<Vec<Happened>, CliError> {
    let mut reader = EventReader::new(found.dir.events());
    let mut timed = Vec::new();
    while let Some((event, _)) =
        reader.next_event().map_err(|error| CliError::of(Kind::Environment, &error))?
    {
        timed.push(event);
    }
    let pod = found.record.as_ref().map_or_else(|| found.name(), PodRecord::kubelet_name);
    let mut rows: Vec<Happened> = Vec::new();
    for row in collapse(timed).iter().filter_map(|timed| Happened::of(timed, &pod)) {
        // Only those beside each other, so that the order stays that of the times.
        match rows.last_mut() {
            Some(last) if last.reason == row.reason && last.message == row.message => {
                last.count = last.count.saturating_add(row.count);
                last.last = row.last;
            }
            _ => rows.push(row),
        }
    }
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::wire::{Event, ExitStatus};

    fn at(second: u32, what: PodEvent) -> TimedEvent {
        TimedEvent { time: format!("2026-01-02T03:04:{second:02}.000000000Z"), what, repeated: None }
    }

    #[test]
    fn events_have_the_words_of_the_kubelet_or_our_own() {
        let web = || "web".parse().unwrap();
        let guest = |kind| PodEvent::Guest(Event { seq: 1, kind });
        let of = |what| {
            Happened::of(&at(5, what), "demo_default(1)").map(|row| (row.kind(), row.reason, row.message))
        };
        let said = |kind, reason: &str, message: &str| Some((kind, reason.to_owned(), message.to_owned()));
        let created = EventKind::ContainerCreated { container: web() };
        assert_eq!(of(guest(created)), said("Normal", "Created", "Created container: web"));
        let exited = |code| EventKind::ContainerExited {
            container: web(),
            exit: ExitStatus::exited(code),
            message: None,
            restart_in_ms: None,
        };
        assert_eq!(of(guest(exited(3))), said("Warning", "ContainerExited", "web: exited with 3"));
        assert_eq!(of(guest(exited(0))), said("Normal", "ContainerExited", "web: exited with 0"));
        let again = EventKind::ContainerExited {
            container: web(),
            exit: ExitStatus::exited(1),
            message: None,
            restart_in_ms: Some(10_000),
        };
        let back_off = "Back-off restarting failed container web in pod demo_default(1)";
        assert_eq!(of(guest(again)), said("Warning", "BackOff", back_off));
        let failed =
            EventKind::ExtensionFailed { extension: "x".to_owned(), message: "has panicked: oh".to_owned() };
        let words = "Extension x has panicked: oh";
        assert_eq!(of(guest(failed)), said("Warning", "ExtensionFailed", words));
        let pulled = |took_ms| {
            PodEvent::Host(HostEvent::Pulled {
                what: "container web".to_owned(),
                image: "docker.io/library/web:1".parse().unwrap(),
                took_ms,
                size_bytes: 4096,
            })
        };
        let there = "Container image \"docker.io/library/web:1\" already present on machine";
        assert_eq!(of(pulled(None)), said("Normal", "Pulled", there));
        let now = "Successfully pulled image \"docker.io/library/web:1\" in 1.250s (1.250s including waiting). Image size: 4096 bytes.";
        assert_eq!(of(pulled(Some(1250))), said("Normal", "Pulled", now));
        assert_eq!(of(guest(EventKind::PodStarted)), None);
        assert_eq!(of(PodEvent::Host(HostEvent::Paused)), said("Normal", "Paused", "paused"));
        let omitted = PodEvent::Host(HostEvent::Omitted { events: 7 });
        assert_eq!(of(omitted), said("Warning", "Omitted", "7 events are not kept"));
    }
}
