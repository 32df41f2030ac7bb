//! Of pods that are paused, by their user or by the signal of somebody else, and of the guest's clock after that.

use super::{any_input, ended, gone, guest, machine, started};
use crate::pod::events::HostEvent;
use crate::pod::failure::RunStage;
use crate::pod::step::*;
use crate::store::sandbox::SandboxFailure;
use magikvm_proto::wire::EventKind;
use proptest::prelude::*;

const ALL: Input = Input::Motion(Motion::Stopped);
const SOME: Input = Input::Motion(Motion::PartlyStopped);
const NONE: Input = Input::Motion(Motion::Running);
const PAUSE: Input = Input::Request(PauseRequest::Pause);
const RESUME: Input = Input::Request(PauseRequest::Resume);

fn running() -> Machine {
    let mut pod = machine(1);
    pod.step(Input::AgentUp, 1);
    pod.step(started(0), 2);
    pod.step(guest(EventKind::PodStarted), 3);
    pod
}

fn refusal(pod: &Machine, request: PauseRequest) -> String {
    pod.outcome(request).expect("it is decided").unwrap_err().message
}

#[test]
fn a_request_is_fulfilled_when_the_processes_have_followed() {
    let mut pod = running();
    assert_eq!(pod.step(PAUSE, 10), [Effect::Pause]);
    assert_eq!(pod.outcome(PauseRequest::Pause), None);
    assert_eq!(pod.step(SOME, 11), [Effect::Note(HostEvent::Paused)]);
    assert_eq!(pod.outcome(PauseRequest::Pause), None);
    assert!(pod.step(ALL, 12).is_empty());
    assert_eq!((pod.outcome(PauseRequest::Pause), pod.state.paused_ms), (Some(Ok(())), Some(11)));
    assert!(pod.step(PAUSE, 13).is_empty(), "again is nothing new");
    assert_eq!(pod.outcome(PauseRequest::Pause), Some(Ok(())));

    assert_eq!(pod.step(RESUME, 20), [Effect::Resume]);
    assert!(pod.step(SOME, 21).is_empty());
    assert_eq!((pod.outcome(PauseRequest::Resume), pod.state.paused_ms), (None, Some(11)));
    let told = [Effect::Note(HostEvent::Resumed), Effect::TellTime(ClockReason::Pause)];
    assert_eq!(pod.step(NONE, 22), told);
    assert_eq!((pod.outcome(PauseRequest::Resume), pod.state.paused_ms), (Some(Ok(())), None));
    assert!(pod.step(RESUME, 23).is_empty());
    assert_eq!(pod.state.stage, Stage::Running);
}

#[test]
fn signals_of_others_are_seen_like_ones_own() {
    let mut pod = running();
    assert_eq!(pod.step(ALL, 10), [Effect::Note(HostEvent::Paused)]);
    assert_eq!(pod.step(RESUME, 11), [Effect::Resume]);
    assert_eq!(pod.step(NONE, 12)[1], Effect::TellTime(ClockReason::Pause));
    // A stop so short that only its end was seen.
    assert_eq!(pod.step(NONE, 13), [Effect::TellTime(ClockReason::Pause)]);
}

#[test]
fn the_later_of_two_requests_wins_even_when_nothing_was_seen_of_the_earlier() {
    let mut pod = running();
    pod.step(PAUSE, 10);
    assert_eq!(pod.step(RESUME, 11), [Effect::Resume]);
    assert_eq!(refusal(&pod, PauseRequest::Pause), "another request came after this one");
    assert_eq!(pod.outcome(PauseRequest::Resume), Some(Ok(())));
    assert_eq!(pod.step(PAUSE, 12), [Effect::Pause]);
    pod.step(ALL, 13);
    pod.step(RESUME, 14);
    assert_eq!(pod.step(PAUSE, 15), [Effect::Pause]);
    assert_eq!(refusal(&pod, PauseRequest::Resume), "another request came after this one");
}

#[test]
fn only_a_running_pod_can_be_paused() {
    let mut pod = machine(1);
    assert!(pod.step(PAUSE, 1).is_empty());
    assert_eq!(refusal(&pod, PauseRequest::Pause), "it is being started");
    assert_eq!(refusal(&pod, PauseRequest::Resume), "it is being started");
    let mut pod = running();
    pod.step(Input::Stop { grace_ms: 1000 }, 10);
    assert!(pod.step(PAUSE, 11).is_empty());
    assert_eq!(refusal(&pod, PauseRequest::Pause), "it is being stopped");
    pod.step(gone("exit 0"), 12);
    assert_eq!(refusal(&pod, PauseRequest::Pause), "it has ended");
    assert_eq!(refusal(&pod, PauseRequest::Resume), "it has ended");
}

#[test]
fn a_paused_pod_goes_on_to_be_stopped_and_the_deadline_holds_whatever_it_does() {
    let mut pod = running();
    pod.step(PAUSE, 10);
    pod.step(ALL, 11);
    let arm =
        |grace_ms: u64| Effect::Arm { after_ms: grace_ms + magikvm_proto::budget::HOST_SHUTDOWN_WAIT_MS };
    let effects = pod.step(Input::Stop { grace_ms: 1000 }, 12);
    assert_eq!(effects, [Effect::Resume, Effect::Shutdown { grace_ms: 1000 }, arm(1000)]);
    assert_eq!(pod.step(NONE, 13)[1], Effect::TellTime(ClockReason::Pause));
    // Somebody stops it again: it is not waited for any longer than without that.
    assert_eq!(pod.step(ALL, 14), [Effect::Note(HostEvent::Paused)]);
    assert_eq!(pod.step(Input::Deadline, 15), [Effect::Kill]);
    assert_eq!(pod.step(gone("signal 9"), 16).last(), Some(&Effect::End));
    assert_eq!(pod.state.paused_ms, None);
}

#[test]
fn a_paused_pod_that_is_over_goes_on_so_that_it_can_end() {
    let mut pod = running();
    pod.step(PAUSE, 10);
    let arm = Effect::Arm { after_ms: magikvm_proto::budget::HOST_SHUTDOWN_WAIT_MS };
    assert_eq!(pod.step(ended(), 11), [Effect::Resume, arm]);
    assert!(pod.step(PAUSE, 12).is_empty());
}

#[test]
fn a_boot_that_somebody_stopped_fails_in_its_time_and_says_so() {
    for (up, stage) in [(false, RunStage::Boot), (true, RunStage::Agent)] {
        let mut pod = machine(1);
        if up {
            pod.step(Input::AgentUp, 1);
        }
        assert_eq!(pod.step(ALL, 2), [Effect::Note(HostEvent::Paused)]);
        if !up {
            // Where others get a second boot.
            assert!(matches!(pod.step(Input::Deadline, 3)[..], [Effect::Arm { .. }]));
        }
        match pod.step(Input::Deadline, 4).as_slice() {
            [Effect::Fail(failure)] => {
                assert_eq!(failure.stage, stage);
                assert!(failure.message.ends_with("its processes were stopped by a signal (SIGSTOP)"));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_time_is_told_when_there_is_somebody_to_tell() {
    let mut pod = machine(1);
    assert!(pod.step(Input::HostClockJumped, 1).is_empty(), "it is told when its agent answers first");
    let mut pod = running();
    assert_eq!(pod.step(Input::HostClockJumped, 10), [Effect::TellTime(ClockReason::HostClock)]);
    pod.step(ALL, 11);
    assert!(pod.step(Input::HostClockJumped, 12).is_empty(), "it is told when it goes on");
}

proptest! {
    /// Whatever happens, `paused_ms` says what the processes were last seen doing, a request is open only while a live pod's processes do not
    /// follow it, and nothing is asked of processes that have ended.
    #[test]
    fn the_state_tells_what_was_seen(inputs in proptest::collection::vec(any_input(), 0..60)) {
        let mut pod = machine(3);
        let mut seen = Motion::Running;
        for (now, input) in inputs.into_iter().enumerate() {
            if let (Input::Motion(motion), true) = (&input, pod.state.stage != Stage::Ended) {
                seen = *motion;
            }
            let request = match &input {
                Input::Request(request) => Some(*request),
                _ => None,
            };
            let effects = pod.step(input, u64::try_from(now).unwrap());
            if effects.contains(&Effect::BootAgain) {
                seen = Motion::Running;
            }
            if pod.state.stage == Stage::Ended {
                for request in [PauseRequest::Pause, PauseRequest::Resume] {
                    prop_assert!(matches!(pod.outcome(request), Some(Err(_))));
                }
                continue;
            }
            prop_assert_eq!(pod.state.paused_ms.is_some(), seen != Motion::Running);
            prop_assert!(!effects.contains(&Effect::Pause) || pod.state.stage == Stage::Running);
            if let Some(request) = request && pod.outcome(request).is_none() {
                let needed = if request == PauseRequest::Pause { Effect::Pause } else { Effect::Resume };
                prop_assert!(effects.contains(&needed));
            }
        }
    }
}

fn full() -> Input {
    Input::Disk(DiskState::Full { dir: "/disk".into() })
}

#[test]
fn a_vm_without_room_stands_still_until_there_is_some() {
    let mut pod = running();
    assert_eq!(pod.step(full(), 10), [Effect::Note(HostEvent::DiskFull { dir: "/disk".into() })]);
    assert_eq!(pod.state.disk_full.as_ref().unwrap().since_ms, 10);
    assert!(pod.step(full(), 11).is_empty(), "again is nothing new");
    assert!(pod.step(Input::HostClockJumped, 12).is_empty(), "it cannot be told");
    let told = [Effect::Note(HostEvent::DiskHasRoom), Effect::TellTime(ClockReason::Pause)];
    assert_eq!(pod.step(Input::Disk(DiskState::HasRoom), 20), told);
    assert_eq!(pod.state.disk_full, None);
    assert!(pod.step(Input::Disk(DiskState::HasRoom), 21).is_empty());
}

#[test]
fn a_vm_without_room_can_be_ended() {
    let broken = |pod: &Machine| pod.state.broken.as_ref().unwrap().reason;
    let mut pod = running();
    pod.step(full(), 10);
    assert_eq!(pod.step(Input::Stop { grace_ms: 0 }, 11), [Effect::Kill]);
    assert_eq!(broken(&pod), SandboxFailure::HostDiskFull);
    // With a grace period it may find room.
    let mut pod = running();
    pod.step(full(), 10);
    assert_eq!(pod.step(Input::Stop { grace_ms: 5000 }, 11)[0], Effect::Shutdown { grace_ms: 5000 });
    assert_eq!(pod.step(Input::Deadline, 12), [Effect::Kill]);
    assert_eq!(broken(&pod), SandboxFailure::HostDiskFull);
    pod.step(gone("killed"), 13);
    assert_eq!((pod.state.stage, pod.state.disk_full.clone()), (Stage::Ended, None));
    let mut pod = machine(1);
    pod.step(Input::AgentUp, 1);
    pod.step(full(), 2);
    let [Effect::Fail(failure)] = &pod.step(Input::Deadline, 3)[..] else { panic!("the start fails") };
    assert!(failure.message.ends_with("; the host's disk is full"), "{}", failure.message);
    assert_eq!(failure.reason, Some(SandboxFailure::HostDiskFull));
}
