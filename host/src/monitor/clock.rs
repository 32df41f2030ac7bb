//! Tells the guest what time it is: when its agent answers first, and whenever it is asked to. Knows when the host's own clock jumps; that
//! the guest was paused it is told.

use super::life::Life;
use super::message::{Message, send, spawn};
use crate::agent::{AgentConnection, AgentError, Connector};
use crate::os::ClockJumps;
use crate::pod::events::{ClockReason, EventLog, HostEvent, PodEvent};
use crate::pod::step::Input;
use crate::store::text::chain;
use magikvm_proto::budget::CLOCK_TOLERANCE_MS;
use magikvm_proto::text::cut;
use magikvm_proto::wire::{ClockSet, Hello, RefusalCode, Request};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a connection may take, and then the answer. A guest that was paused has other things to catch up with.
const WAIT: Duration = Duration::from_secs(5);
/// How often it is tried.
const ATTEMPTS: usize = 2;
/// How long after a failure the VM's end may take to be seen, which explains it.
const END_WAIT: Duration = Duration::from_secs(1);
/// Longest message of the guest's that is kept, in bytes.
const MAX_MESSAGE: usize = 512;

/// Whoever has the other end may have the guest told the time. One telling at a time; of those asked for meanwhile, one more.
pub(super) fn start(agent: Connector, events: EventLog, life: Arc<Life>) -> SyncSender<ClockReason> {
    let (ask, asked) = sync_channel(1);
    // Without a thread the guest's clock is not followed up; the pod is none the worse.
    spawn("clock", move || {
        while let Ok(reason) = asked.recv() {
            if let Some(event) = tell(&agent, &life, reason) {
                events.write(PodEvent::Host(event));
            }
        }
    });
    ask
}

/// Tells it over a connection of its own, and says what is worth writing down.
fn tell(agent: &Connector, life: &Life, after: ClockReason) -> Option<HostEvent> {
    let attempt = || agent.connect(WAIT).and_then(|mut connection| tell_over(&mut connection));
    let mut outcome = attempt();
    for _ in 1..ATTEMPTS {
        if matches!(outcome, Ok(_) | Err(AgentError::Refused(_))) || life.stands() {
            break;
        }
        outcome = attempt();
    }
    match outcome {
        // It is told when it goes on, or never again.
        Err(_) if life.stands() || life.ends_within(END_WAIT) => None,
        outcome => Some(event(after, outcome)),
    }
}

/// Tells a guest that has just answered for the first time, before anybody hears that its pod runs: what it knows of the time may be as
/// coarse as a second. False: this connection is of no use any more.
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
            format!("the guest image is too old to be told the time ({refusal})")
        }
        error => chain(error),
    };
    cut(&message, MAX_MESSAGE).to_owned()
}

fn tell_over(connection: &mut AgentConnection) -> Result<ClockSet, AgentError> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let realtime_ns = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
    connection.request_within(&Request::Clock { realtime_ns }, WAIT)
}

/// Tells the loop whenever the host's clock was set or the host was suspended.
pub(super) fn watch_host(outbox: SyncSender<Message>) -> nix::Result<()> {
    let mut jumps = ClockJumps::watch()?;
    spawn("host clock", move || {
        while jumps.wait().is_ok() {
            send(&outbox, Input::HostClockJumped);
        }
    });
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
        assert_eq!(old, "the guest image is too old to be told the time (unknown variant `clock`)");
        let long = describe(&refused(RefusalCode::Internal, "\u{e9}".repeat(4000)));
        assert!(long.len() <= MAX_MESSAGE && long.len() > MAX_MESSAGE - 4);
    }
}
