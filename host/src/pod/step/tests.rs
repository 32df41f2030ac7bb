mod pausing;
mod pulling;

use super::*;
use crate::pod::failure::RunStage;
use crate::store::sandbox::SandboxFailure;
use magikvm_proto::wire::{EventKind, ExitStatus};
use proptest::prelude::*;

pub(super) fn names(count: usize) -> Vec<ContainerName> {
    (0..count).map(|n| format!("c{n}").parse().unwrap()).collect()
}

pub(super) fn guest(kind: EventKind) -> Input {
    Input::Guest(Event { seq: 1, kind })
}

pub(super) fn gone(how: &str) -> Input {
    Input::SandboxGone { end: SandboxEnd { failure: SandboxFailure::GuestEnded, how: how.to_owned() } }
}

pub(super) fn started(n: usize) -> Input {
    guest(EventKind::ContainerStarted { container: names(n + 1)[n].clone(), pid: 7, restart_count: 0 })
}

fn exited(n: usize, exit: ExitStatus, restart_in_ms: Option<u64>) -> Input {
    guest(EventKind::ContainerExited { container: names(n + 1)[n].clone(), exit, restart_in_ms })
}

#[test]
fn an_ordinary_life() {
    let mut pod = Machine::new(&names(2));
    assert_eq!(pod.step(Input::AgentUp, 1), [Effect::Arm { after_ms: budget::HOST_READY_WAIT_MS }]);
    assert!(pod.step(started(0), 2).is_empty());
    assert!(pod.step(started(1), 3).is_empty());
    assert_eq!(pod.step(guest(EventKind::PodStarted), 4), [Effect::Disarm, Effect::Ready]);
    assert!(pod.step(exited(0, ExitStatus::exited(0), None), 5).is_empty());
    let effects = pod.step(exited(1, ExitStatus::exited(3), None), 6);
    assert_eq!(
        effects,
        [Effect::Shutdown { grace_ms: 0 }, Effect::Arm { after_ms: budget::HOST_SHUTDOWN_WAIT_MS }]
    );
    assert_eq!(pod.step(gone("exit 0"), 7), [Effect::End]);
    assert_eq!(pod.state.stage, Stage::Ended);
    assert_eq!(pod.state.broken, None);
    let ContainerPhase::Terminated(run) = &pod.state.containers[1].phase else { panic!() };
    assert_eq!(
        (run.exit.code, run.reason.as_str(), run.started_ms, run.finished_ms),
        (3, "Error", Some(3), 6)
    );
}

#[test]
fn a_container_that_is_over_before_the_others_run_is_no_failure() {
    let mut pod = Machine::new(&names(1));
    pod.step(Input::AgentUp, 1);
    pod.step(started(0), 2);
    assert!(pod.step(exited(0, ExitStatus::exited(1), None), 3).is_empty());
    let effects = pod.step(guest(EventKind::PodStarted), 4);
    assert_eq!(effects[..3], [Effect::Disarm, Effect::Ready, Effect::Shutdown { grace_ms: 0 }]);
}

#[test]
fn a_restart_keeps_the_earlier_run_and_the_pod_alive() {
    let mut pod = Machine::new(&names(1));
    pod.step(started(0), 2);
    pod.step(guest(EventKind::PodStarted), 3);
    let oom = ExitStatus { oom_killed: true, ..ExitStatus::signaled(9) };
    assert!(pod.step(exited(0, oom, Some(10_000)), 4).is_empty());
    let view = &pod.state.containers[0];
    assert!(matches!(&view.phase, ContainerPhase::Waiting { reason, .. } if reason == "CrashLoopBackOff"));
    assert_eq!(view.last.as_ref().unwrap().reason, "OOMKilled");
    let again = EventKind::ContainerStarted { container: names(1)[0].clone(), pid: 8, restart_count: 1 };
    pod.step(guest(again), 5);
    assert_eq!(pod.state.containers[0].restart_count, 1);
    assert_eq!(pod.state.containers[0].last.as_ref().unwrap().reason, "OOMKilled");
}

#[test]
fn each_way_to_fail_a_start_has_its_stage() {
    let fails = |up: bool, input: Input| {
        let mut pod = Machine::new(&names(1));
        if up {
            pod.step(Input::AgentUp, 1);
        }
        match pod.step(input, 2).as_slice() {
            [Effect::Fail(failure)] => failure.stage,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(fails(false, gone("exit 1")), RunStage::Boot);
    assert_eq!(fails(true, gone("exit 1")), RunStage::Agent);
    assert_eq!(fails(false, Input::Deadline), RunStage::Boot);
    assert_eq!(fails(true, Input::Deadline), RunStage::Agent);
    assert_eq!(fails(true, Input::AgentLost { why: "x".into() }), RunStage::Agent);
    assert_eq!(fails(true, guest(EventKind::PodFailed { message: "x".into() })), RunStage::Boot);
    let missing = EventKind::ContainerFailed {
        container: names(1)[0].clone(),
        message: "x".into(),
        restart_in_ms: None,
    };
    assert_eq!(fails(true, guest(missing)), RunStage::Container);
    assert_eq!(fails(true, started(5)), RunStage::Agent);
    assert_eq!(fails(false, Input::Cancel), RunStage::Cancelled);
    assert_eq!(fails(true, Input::Stop { grace_ms: 1 }), RunStage::Cancelled);
}

#[test]
fn a_grace_period_can_be_shortened_only() {
    let mut pod = Machine::new(&names(1));
    pod.step(started(0), 1);
    pod.step(guest(EventKind::PodStarted), 2);
    assert_eq!(pod.step(Input::Stop { grace_ms: 5000 }, 10)[0], Effect::Shutdown { grace_ms: 5000 });
    assert!(pod.step(Input::Stop { grace_ms: 5000 }, 20).is_empty());
    assert_eq!(pod.step(Input::Stop { grace_ms: 0 }, 30)[0], Effect::Shutdown { grace_ms: 0 });
    assert!(pod.step(Input::Stop { grace_ms: 300_000 }, 31).is_empty());
    assert_eq!(pod.step(Input::Deadline, 40), [Effect::Kill]);
}

#[test]
fn a_sandbox_that_dies_takes_its_containers_status_with_it() {
    let mut pod = Machine::new(&names(1));
    pod.step(started(0), 1);
    pod.step(guest(EventKind::PodStarted), 2);
    assert_eq!(pod.step(gone("signal 9"), 3), [Effect::End]);
    assert!(pod.state.broken.as_ref().unwrap().message.contains("signal 9"));
    let ContainerPhase::Terminated(run) = &pod.state.containers[0].phase else { panic!() };
    assert_eq!((run.reason.as_str(), run.exit.code), ("ContainerStatusUnknown", 137));
}

pub(super) fn any_input() -> impl Strategy<Value = Input> {
    let exit =
        prop_oneof![(0..256i32).prop_map(ExitStatus::exited), (1..64i32).prop_map(ExitStatus::signaled)];
    let name = (0..4usize).prop_map(|n| names(n + 1)[n].clone());
    let puller = prop_oneof![
        Just(pulling::progress()),
        Just(FromPuller::Done),
        Just(FromPuller::Failed(Box::new(pulling::not_there()))),
    ];
    prop_oneof![
        Just(Input::PullBegun),
        puller.prop_map(Input::Puller),
        Just(Input::PullerGone(pulling::without_a_word())),
        Just(Input::AgentUp),
        Just(Input::Request(PauseRequest::Pause)),
        Just(Input::Request(PauseRequest::Resume)),
        prop_oneof![Just(Motion::Running), Just(Motion::PartlyStopped), Just(Motion::Stopped)]
            .prop_map(Input::Motion),
        Just(Input::HostClockJumped),
        Just(Input::Cancel),
        Just(Input::Deadline),
        (0..400_000u64).prop_map(|grace_ms| Input::Stop { grace_ms }),
        Just(Input::AgentLost { why: "x".into() }),
        Just(gone("x")),
        Just(guest(EventKind::PodStarted)),
        Just(guest(EventKind::ShuttingDown)),
        Just(guest(EventKind::PodFailed { message: "x".into() })),
        (name.clone(), any::<i32>(), any::<u32>()).prop_map(|(container, pid, restart_count)| guest(
            EventKind::ContainerStarted { container, pid, restart_count }
        )),
        (name.clone(), exit, proptest::option::of(any::<u64>())).prop_map(
            |(container, exit, restart_in_ms)| guest(EventKind::ContainerExited {
                container,
                exit,
                restart_in_ms
            })
        ),
        (name, proptest::option::of(any::<u64>())).prop_map(|(container, restart_in_ms)| guest(
            EventKind::ContainerFailed { container, message: "x".into(), restart_in_ms }
        )),
    ]
}

proptest! {
    /// Whatever a guest says and in whatever order, the pod is said to be ready at most once, ends exactly once, and after its end
    /// nothing is done any more.
    #[test]
    fn any_history_is_survived(inputs in proptest::collection::vec(any_input(), 0..60)) {
        let mut pod = Machine::new(&names(3));
        let (mut ready, mut ends, mut bounded) = (0, 0, false);
        for (now, input) in inputs.into_iter().enumerate() {
            let ended_before = pod.state.stage == Stage::Ended;
            let effects = pod.step(input, u64::try_from(now).unwrap());
            prop_assert!(!ended_before || effects.is_empty());
            for effect in &effects {
                match effect {
                    Effect::Ready => ready += 1,
                    Effect::End | Effect::Fail(_) => ends += 1,
                    Effect::Arm { .. } | Effect::Kill => bounded = true,
                    Effect::Disarm => bounded = false,
                    _ => {}
                }
            }
            prop_assert_eq!(ends > 0, pod.state.stage == Stage::Ended);
            prop_assert!(!matches!(effects.last(), Some(Effect::Fail(_))) || ready == 0);
            // Whoever is stopping has a deadline or a killed sandbox: nobody waits for ever.
            prop_assert!(bounded || pod.state.stage != Stage::Stopping);
        }
        prop_assert!(ready <= 1 && ends <= 1);
        let mut last = pod.clone();
        last.step(gone("end"), 99);
        prop_assert_eq!(last.state.stage, Stage::Ended);
        for view in &last.state.containers {
            prop_assert!(pod.state.started_ms.is_none() || matches!(view.phase, ContainerPhase::Terminated(_)));
        }
    }
}
