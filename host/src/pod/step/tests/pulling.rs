//! Of pods whose images are pulled before they run.

use super::{any_input, guest, machine};
use crate::pod::failure::{Blame, RunStage};
use crate::pod::step::*;
use magikvm_proto::wire::EventKind;
use proptest::prelude::*;

fn image() -> Reference {
    "registry.example/app:1".parse().unwrap()
}

fn pull() -> Pull {
    Pull { image: image(), took_ms: 1 }
}

pub(super) fn done() -> FromPuller {
    FromPuller::Done { pulls: vec![pull()] }
}

pub(super) fn progress() -> FromPuller {
    FromPuller::Progress { image: image(), progress: Progress::Resolving }
}

pub(super) fn not_there() -> Failure {
    Failure::message(RunStage::Image, Blame::User, "there is no such image")
}

pub(super) fn without_a_word() -> PullerEnd {
    PullerEnd { code: Some(101), signal: None, complaints: vec!["it panicked".to_owned()] }
}

fn pulling() -> Machine {
    let mut pod = machine(1);
    assert!(pod.step(Input::PullBegun, 1).is_empty());
    assert_eq!(pod.state.stage, Stage::Pulling);
    pod
}

fn failure(effects: Vec<Effect>) -> Failure {
    match <[Effect; 1]>::try_from(effects) {
        Ok([Effect::Fail(failure)]) => *failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn images_that_are_there_let_the_pod_start() {
    let mut pod = pulling();
    let shown = Effect::ShowProgress { image: image(), progress: Progress::Resolving };
    assert_eq!(pod.step(Input::Puller(progress()), 2), [shown]);
    assert_eq!(pod.step(Input::Puller(done()), 3), [Effect::Pulled(vec![pull()])]);
    // That the process ends after its last word is nothing new.
    assert!(pod.step(Input::PullerGone(without_a_word()), 4).is_empty());
    assert!(pod.step(Input::Puller(progress()), 5).is_empty());
    pod.step(Input::AgentUp, 6);
    assert_eq!(pod.step(guest(EventKind::PodStarted), 7)[..2], [Effect::Disarm, Effect::Ready]);
}

#[test]
fn a_pull_that_fails_is_the_failure_of_the_run() {
    let failed = Input::Puller(FromPuller::Failed(Box::new(not_there())));
    assert_eq!(failure(pulling().step(failed, 2)), not_there());
    let gone = failure(pulling().step(Input::PullerGone(without_a_word()), 2));
    assert_eq!((gone.stage, gone.blame), (RunStage::Image, Blame::Internal));
    assert!(gone.message.contains("exit code 101") && gone.causes == ["it panicked"], "{gone:?}");
    let killed = PullerEnd { code: None, signal: Some(9), complaints: Vec::new() };
    let gone = failure(pulling().step(Input::PullerGone(killed), 2));
    assert_eq!(gone.blame, Blame::Environment);
    assert!(gone.hint.unwrap().contains("`dmesg`"));
}

#[test]
fn a_pull_is_given_up_when_its_user_wants_that_and_at_once_when_asked_again() {
    let last_words = [
        Input::Puller(done()),
        Input::Puller(FromPuller::Failed(Box::new(not_there()))),
        Input::PullerGone(without_a_word()),
    ];
    for last in last_words {
        let mut pod = pulling();
        assert_eq!(pod.step(Input::Cancel, 2), [Effect::EndPuller(EndPuller::Ask)]);
        assert_eq!(pod.step(Input::Stop { grace_ms: 0 }, 3), [Effect::EndPuller(EndPuller::Kill)]);
        assert_eq!(pod.step(Input::Puller(progress()), 4).len(), 1);
        assert_eq!(failure(pod.step(last, 5)).stage, RunStage::Cancelled);
        assert_eq!(pod.state.stage, Stage::Ended);
    }
}

#[test]
fn nothing_can_be_paused_while_images_are_pulled() {
    let mut pod = pulling();
    for request in [PauseRequest::Pause, PauseRequest::Resume] {
        assert!(pod.step(Input::Request(request), 2).is_empty());
        let refusal = pod.outcome(request).expect("it is decided").unwrap_err();
        assert_eq!(refusal.message, "its images are being pulled");
    }
}

proptest! {
    /// Whatever happens, only a pod that is pulling shows progress or ends its puller, and one whose pull was given up never runs.
    #[test]
    fn a_pull_is_over_when_it_is_over(inputs in proptest::collection::vec(any_input(), 0..60)) {
        let mut pod = machine(3);
        let mut given_up = false;
        for (now, input) in inputs.into_iter().enumerate() {
            let was_pulling = pod.state.stage == Stage::Pulling;
            for effect in pod.step(input, u64::try_from(now).unwrap()) {
                match effect {
                    Effect::EndPuller(_) => {
                        prop_assert!(was_pulling);
                        given_up = true;
                    }
                    Effect::ShowProgress { .. } => prop_assert!(was_pulling),
                    Effect::Pulled(_) => prop_assert!(was_pulling && !given_up),
                    Effect::Ready | Effect::Kill | Effect::Shutdown { .. } => prop_assert!(!given_up),
                    _ => {}
                }
            }
        }
    }
}
