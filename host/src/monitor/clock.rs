//! Tells the guest the time: at its agent's first answer, and on request. Detects jumps of the host's clock; the event loop reports
//! pauses of the guest.

use super::life::Life;
use super::lines::Lines;
use super::message::{Message, send, spawn};
use crate::agent::{AgentConnection, AgentError};
use crate::os::ClockJumps;
use crate::pod::events::{ClockReason, EventLog, HostEvent, PodEvent};
use crate::pod::step::Input;
use crate::store::text::chain;
use crate::store::thread::ThreadError;
use magikvm_proto::budget::CLOCK_TOLERANCE_MS;
use magikvm_proto::text::cut;
use magikvm_proto::wire::{ClockSet, Hello, RefusalCode, Request};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time for a connection, and then for the answer. A guest that was paused has other work to catch up with.
const WAIT: Duration = Duration::from_secs(5);
/// Number of attempts.
const ATTEMPTS: usize = 2;
/// Time between a failure and the VM's end that explains it.
const END_WAIT: Duration = Duration::from_secs(1);
/// Longest message of the guest that is kept, in bytes.
const MAX_MESSAGE: usize = 512;

/// Returns a channel on which the loop requests that the guest is told the time. Requests that arrive while one is in progress become one
/// more.
pub(super) fn start(
    lines: Arc<Lines>,
    events: EventLog,
    life: Arc<Life>,
    outbox: &SyncSender<Message>,
) -> Result<SyncSender<ClockReason>, ThreadError> {
    let (ask, asked) = sync_channel(1);
    spawn("clock", outbox, move || {
        while let Ok(reason) = asked.recv() {
            if let Some(event) = tell(&lines, &life, reason) {
                events.write(PodEvent::Host(event));
            }
        }
    })?;
    Ok(ask)
}

/// Tells the guest the time, and returns the event to record.
fn tell(lines: &Lines, life: &Life, after: ClockReason) -> Option<HostEvent> {
    let attempt = || lines.clock.ask(WAIT, the_time);
    let mut outcome = attempt();
    for _ in 1..ATTEMPTS {
        if matches!(outcome, Ok(_) | Err(AgentError::Refused(_))) || life.stands() {
            break;
        }
        outcome = attempt();
    }
    match outcome {
        // A paused guest is told when it is resumed, an ended one never.
        Err(_) if life.stands() || life.ends_within(END_WAIT) => None,
        outcome => Some(event(after, outcome)),
    }
}

/// Tells a guest the time after its first answer and before anybody learns that its pod runs, because its initial time may be as coarse
/// as a second. False: this connection is broken.
pub(super) fn tell_at_start(connection: &mut AgentConnection, hello: &Hello, events: &EventLog) -> bool {
    if !hello.capabilities.iter().any(|action| action == "clock") {
        return true;
    }
    let outcome = tell_over(connection);
    let is_usable = outcome.is_ok();
    let was_right = outcome.as_ref().is_ok_and(|set| set.offset_ms.unsigned_abs() <= CLOCK_TOLERANCE_MS);
    if !was_right {
        events.write(PodEvent::Host(event(ClockReason::Start, outcome)));
    }
    is_usable
}

fn event(after: ClockReason, outcome: Result<ClockSet, AgentError>) -> HostEvent {
    match outcome {
        Ok(ClockSet { offset_ms }) => HostEvent::Clock { after, offset_ms },
        Err(error) => HostEvent::ClockFailed { after, message: describe(&error) },
    }
}

fn describe(error: &AgentError) -> String {
    let message = match error {
        AgentError::Refused(refusal) if refusal.code == RefusalCode::Invalid => {
            format!("the pod's supervisor is too old to be told the time ({refusal})")
        }
        error => chain(error),
    };
    cut(&message, MAX_MESSAGE).to_owned()
}

fn tell_over(connection: &mut AgentConnection) -> Result<ClockSet, AgentError> {
    connection.request_within(&the_time(), WAIT)
}

fn the_time() -> Request {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Request::Clock { realtime_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX) }
}

/// Tells the loop when the host's clock was set or the host was suspended.
/// Where the kernel cannot tell, the guest's clock follows only after a pause.
pub(super) fn watch_host(outbox: SyncSender<Message>) -> Result<(), ThreadError> {
    let Ok(mut jumps) = ClockJumps::watch() else { return Ok(()) };
    spawn("host clock", &outbox.clone(), move || {
        while jumps.wait().is_ok() {
            send(&outbox, Input::HostClockJumped);
        }
    })?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use magikvm_proto::wire::Refusal;

    #[test]
    fn what_a_guest_says_instead_is_kept_short() {
        let refused = |code, message: String| AgentError::Refused(Refusal::new(code, message));
        let old = describe(&refused(RefusalCode::Invalid, "unknown variant `clock`".to_owned()));
        assert_eq!(old, "the pod's supervisor is too old to be told the time (unknown variant `clock`)");
        let long = describe(&refused(RefusalCode::Internal, "\u{e9}".repeat(4000)));
        assert!(long.len() <= MAX_MESSAGE && long.len() > MAX_MESSAGE - 4);
    }
}
