//! Of sandboxes whose agent is silent.

use super::{FIRST_MS, READY_MS, created, gone, guest, machine, names, started};
use crate::pod::events::HostEvent;
use crate::pod::failure::{Failure, RunStage};
use crate::pod::step::*;
use crate::store::sandbox::SandboxFailure;
use magikvm_proto::budget::{HOST_BOOT_END_WAIT_MS, HOST_BOOT_WAIT_MS};
use magikvm_proto::wire::EventKind;

const START: Input = Input::SandboxStarted { since_first_ms: 0 };

/// A pod whose first sandbox was silent for too long.
fn silent() -> Machine {
    let mut pod = machine(1);
    assert_eq!(pod.step(START, 1), [Effect::Arm { after_ms: FIRST_MS }]);
    let effects = pod.step(Input::Deadline, 2);
    let [note, Effect::Warn { message }, Effect::Kill, armed] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!(*note, Effect::Note(HostEvent::Rebooted { silent_ms: FIRST_MS }));
    assert!(message.contains("20 s") && message.contains("once more"), "{message}");
    assert_eq!(*armed, Effect::Arm { after_ms: HOST_BOOT_END_WAIT_MS });
    assert_eq!(pod.state.stage, Stage::Starting);
    pod
}

/// The same, in its second boot.
fn rebooted() -> Machine {
    let mut pod = silent();
    assert_eq!(pod.step(gone("killed"), 3), [Effect::Disarm, Effect::BootAgain]);
    let left = Effect::Arm { after_ms: HOST_BOOT_WAIT_MS - 21_000 };
    assert_eq!(pod.step(Input::SandboxStarted { since_first_ms: 21_000 }, 4), [left]);
    pod
}

fn failure(effects: &[Effect]) -> &Failure {
    let [Effect::Fail(failure)] = effects else { panic!("{effects:?}") };
    failure
}

#[test]
fn a_silent_sandbox_is_booted_once_more_and_the_pod_runs() {
    let mut pod = rebooted();
    assert!(pod.boots_again());
    assert_eq!(pod.step(Input::AgentUp, 5), [Effect::Arm { after_ms: READY_MS }]);
    assert_eq!(pod.step(created(0), 6), [Effect::Arm { after_ms: READY_MS }]);
    pod.step(started(0), 7);
    assert_eq!(pod.step(guest(EventKind::PodStarted), 8), [Effect::Disarm, Effect::Ready]);
    assert_eq!(pod.step(gone("signal 9"), 9).last(), Some(&Effect::End));
}

#[test]
fn a_second_silence_fails_the_run_in_the_time_of_one() {
    let mut pod = rebooted();
    let effects = pod.step(Input::Deadline, 5);
    let failure = failure(&effects);
    assert_eq!((failure.stage, failure.reason), (RunStage::Boot, Some(SandboxFailure::AgentSilent)));
    assert_eq!(failure.message, "the pod's agent did not answer within 60 s of its start, in two starts");
    // However long the second start took.
    let mut pod = silent();
    pod.step(gone("killed"), 3);
    let late = Input::SandboxStarted { since_first_ms: HOST_BOOT_WAIT_MS + 1 };
    assert_eq!(pod.step(late, 4), [Effect::Arm { after_ms: 0 }]);
}

#[test]
fn what_is_not_silence_gets_no_second_boot() {
    let nonsense = Input::AgentLost { why: "it sent something that is not an answer".into() };
    for (input, stage) in [(gone("exit 1"), RunStage::Boot), (nonsense, RunStage::Agent)] {
        for mut pod in [machine(1), rebooted()] {
            pod.step(START, 1);
            assert_eq!(failure(&pod.step(input.clone(), 2)).stage, stage);
        }
    }
    // An agent that has answered is not silent.
    let mut pod = machine(1);
    pod.step(START, 1);
    pod.step(Input::AgentUp, 2);
    assert_eq!(failure(&pod.step(Input::Deadline, 3)).stage, RunStage::Agent);
}

#[test]
fn a_sandbox_that_somebody_has_stopped_has_its_time_and_no_second_boot() {
    for motion in [Motion::PartlyStopped, Motion::Stopped] {
        let mut pod = machine(1);
        pod.step(START, 1);
        pod.step(Input::Motion(motion), 2);
        let rest = Effect::Arm { after_ms: HOST_BOOT_WAIT_MS - FIRST_MS };
        assert_eq!(pod.step(Input::Deadline, 3), [rest]);
        let mut goes_on = pod.clone();
        let effects = pod.step(Input::Deadline, 4);
        let failure = failure(&effects);
        assert!(failure.message.contains("were stopped by a signal"), "{failure:?}");
        assert!(failure.hint.as_ref().unwrap().contains("SIGSTOP"));
        goes_on.step(Input::Motion(Motion::Running), 4);
        assert_eq!(goes_on.step(Input::AgentUp, 5), [Effect::Arm { after_ms: READY_MS }]);
    }
}

#[test]
fn the_last_words_of_a_killed_sandbox_are_not_heard() {
    let mut pod = silent();
    let before = pod.clone();
    let late = [
        Input::AgentUp,
        created(0),
        started(0),
        guest(EventKind::PodStarted),
        guest(EventKind::PodFailed { message: "x".into(), killed: false }),
        Input::AgentLost { why: "x".into() },
        Input::PullBegun,
        Input::Request(PauseRequest::Pause),
        Input::HostClockJumped,
    ];
    for input in late {
        assert!(pod.step(input.clone(), 3).is_empty(), "{input:?}");
    }
    assert_eq!(pod, before);
    let effects = pod.step(Input::Deadline, 4);
    assert_eq!(failure(&effects).reason, Some(SandboxFailure::AgentSilent));
    assert!(failure(&effects).message.contains("did not end"));
}

#[test]
fn a_user_can_end_it_between_the_boots() {
    let whole = EventKind::ContainerStarted {
        container: names(1)[0].clone(),
        pid: 1,
        restart_count: 0,
        post_start: false,
        ready: true,
    };
    for input in [Input::Cancel, Input::Stop { grace_ms: 0 }, Input::DirectoryGone] {
        for mut pod in [silent(), rebooted()] {
            let effects = pod.step(input.clone(), 5);
            assert_eq!(failure(&effects).stage, RunStage::Cancelled, "{input:?}");
            assert!(pod.step(gone("killed"), 6).is_empty() && pod.step(guest(whole.clone()), 7).is_empty());
        }
    }
}
