mod booting;
mod initializing;
mod pausing;
mod pulling;

use super::*;
use crate::pod::events::HostEvent;
use crate::pod::failure::RunStage;
use crate::store::sandbox::SandboxFailure;
use magikvm_proto::budget;
use magikvm_proto::state::{ContainerState, Terminated, TerminatedReason, WaitingReason};
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
    guest(EventKind::ContainerStarted {
        container: names(n + 1)[n].clone(),
        pid: 7,
        restart_count: 0,
        post_start: false,
        ready: false,
    })
}

pub(super) fn exited(n: usize, exit: ExitStatus, restart_in_ms: Option<u64>) -> Input {
    guest(EventKind::ContainerExited {
        container: names(n + 1)[n].clone(),
        exit,
        message: None,
        restart_in_ms,
    })
}

pub(super) fn machine(count: usize) -> Machine {
    let waits = StartWaits { first_boot_ms: FIRST_MS, ready_ms: READY_MS };
    Machine::new(names(count).into_iter().map(|name| (name, Role::Main)), waits, 30_000)
}

pub(super) fn ended() -> Input {
    guest(EventKind::PodEnded)
}

pub(super) fn created(n: usize) -> Input {
    guest(EventKind::ContainerCreated { container: names(n + 1)[n].clone() })
}

fn terminated(pod: &Machine, n: usize) -> &Terminated {
    pod.state.containers[n].state.terminated().expect("it has ended")
}

/// Milliseconds that the starts of these tests may be without progress.
pub(super) const READY_MS: u64 = 90_500;
/// Milliseconds that the first boots of these tests may be silent.
pub(super) const FIRST_MS: u64 = 20_000;
pub(super) const ARM_READY: Effect = Effect::Arm { after_ms: READY_MS };
const ARM_END: Effect = Effect::Arm { after_ms: budget::HOST_SHUTDOWN_WAIT_MS };

#[test]
fn an_ordinary_life() {
    let mut pod = machine(2);
    assert_eq!(pod.step(Input::AgentUp, 1), [ARM_READY]);
    assert_eq!(pod.step(created(0), 1), [ARM_READY]);
    assert_eq!(pod.step(started(0), 2), [ARM_READY]);
    assert_eq!(pod.step(started(1), 3), [ARM_READY]);
    assert_eq!(pod.step(guest(EventKind::PodStarted), 4), [Effect::Disarm, Effect::Ready]);
    assert!(pod.step(exited(0, ExitStatus::exited(0), None), 5).is_empty());
    assert!(pod.step(exited(1, ExitStatus::exited(3), None), 6).is_empty());
    assert_eq!(pod.state.stage, Stage::Running, "the supervisor alone says when the pod is over");
    assert_eq!(pod.step(ended(), 7), [ARM_END]);
    assert_eq!(pod.state.stage, Stage::Stopping);
    assert_eq!(pod.step(gone("exit 0"), 8), [Effect::End]);
    assert_eq!(pod.state.stage, Stage::Ended);
    assert_eq!(pod.state.broken, None);
    let run = terminated(&pod, 1);
    assert_eq!(
        (run.exit.code, run.reason, run.started_ms, run.finished_ms),
        (3, TerminatedReason::Error, Some(3), 6)
    );
}

#[test]
fn only_news_put_the_deadline_of_the_start_off() {
    let mut pod = machine(2);
    assert!(pod.step(created(0), 1).is_empty(), "the boot has a deadline of its own");
    pod.step(Input::AgentUp, 2);
    assert!(pod.step(created(0), 3).is_empty());
    assert_eq!(pod.step(created(1), 4), [ARM_READY]);
    assert_eq!(pod.step(started(0), 5), [ARM_READY]);
    for again in [created(0), started(0), created(1), guest(EventKind::ShuttingDown), ended()] {
        assert!(pod.step(again, 6).is_empty());
    }
    match pod.step(Input::Deadline, 7).as_slice() {
        [Effect::Fail(failure)] => {
            assert!(failure.message.ends_with("there was no progress for 90.5 s"), "{failure:?}");
            assert!(failure.hint.as_ref().unwrap().contains("--ready-timeout"));
            assert_eq!(failure.reason, Some(SandboxFailure::AgentSilent));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_container_that_is_over_before_the_others_run_is_no_failure() {
    let mut pod = machine(1);
    pod.step(Input::AgentUp, 1);
    pod.step(started(0), 2);
    assert!(pod.step(exited(0, ExitStatus::exited(1), None), 3).is_empty());
    assert_eq!(pod.step(guest(EventKind::PodStarted), 4), [Effect::Disarm, Effect::Ready]);
}

#[test]
fn the_end_of_a_pod_is_waited_for_no_longer_than_its_stop_and_not_put_off_by_repeating_it() {
    let mut pod = machine(1);
    pod.step(started(0), 1);
    pod.step(guest(EventKind::PodStarted), 2);
    pod.step(Input::Stop { grace_ms: 5000 }, 10);
    assert_eq!(pod.step(ended(), 20), [ARM_END]);
    assert!(pod.step(ended(), 21).is_empty());
    assert!(pod.step(Input::Stop { grace_ms: 0 }, 22).is_empty());
    assert_eq!(pod.step(Input::Deadline, 23), [Effect::Kill]);

    let mut pod = machine(1);
    pod.step(started(0), 1);
    pod.step(guest(EventKind::PodStarted), 2);
    pod.step(Input::Stop { grace_ms: 0 }, 10);
    assert!(pod.step(ended(), 20).is_empty(), "the grace period was over before");
}

#[test]
fn one_that_waited_for_its_restart_when_the_pod_ended_has_ended_as_it_did() {
    let mut pod = machine(2);
    pod.step(started(0), 1);
    pod.step(started(1), 1);
    pod.step(guest(EventKind::PodStarted), 2);
    pod.step(exited(0, ExitStatus::exited(3), Some(10_000)), 4);
    pod.step(Input::Stop { grace_ms: 1000 }, 5);
    pod.step(ended(), 6);
    pod.step(gone("exit 0"), 7);
    let run = terminated(&pod, 0);
    assert_eq!((run.exit.code, run.reason, run.finished_ms), (3, TerminatedReason::Error, 4));
    assert_eq!(pod.state.containers[0].last, None);
    assert_eq!(terminated(&pod, 1).reason, TerminatedReason::ContainerStatusUnknown, "its end was not told");
    assert!(pod.state.containers.iter().all(|status| !status.ready && !status.started), "nothing runs");
}

#[test]
fn a_restart_keeps_the_earlier_run_and_the_pod_alive() {
    let mut pod = machine(1);
    pod.step(started(0), 2);
    pod.step(guest(EventKind::PodStarted), 3);
    let oom = ExitStatus { oom_killed: true, ..ExitStatus::signaled(9) };
    assert!(pod.step(exited(0, oom, Some(10_000)), 4).is_empty());
    let status = &pod.state.containers[0];
    let crash_loop = ContainerState::Waiting {
        reason: WaitingReason::CrashLoopBackOff,
        message: Some("back-off 10s restarting failed container".to_owned()),
    };
    assert_eq!(status.state, crash_loop);
    assert_eq!(status.last.as_ref().unwrap().reason, TerminatedReason::OomKilled);
    let again = EventKind::ContainerStarted {
        container: names(1)[0].clone(),
        pid: 8,
        restart_count: 1,
        post_start: false,
        ready: true,
    };
    pod.step(guest(again), 5);
    assert_eq!(pod.state.containers[0].restart_count, 1);
    assert_eq!(pod.state.containers[0].last.as_ref().unwrap().reason, TerminatedReason::OomKilled);
}

#[test]
fn each_run_has_its_number() {
    let mut pod = machine(1);
    pod.step(started(0), 1);
    pod.step(guest(EventKind::PodStarted), 2);
    pod.step(exited(0, ExitStatus::exited(1), Some(0)), 3);
    let status = |pod: &Machine| pod.state.containers[0].clone();
    assert_eq!(status(&pod).state, ContainerState::creating(), "it restarts at once, and waits for nothing");
    assert_eq!(status(&pod).last.unwrap().run, 0);
    // A restart that cannot be started is one too.
    let container = names(1)[0].clone();
    let message = "no program".to_owned();
    let failed =
        EventKind::ContainerFailed { container, message, program: None, restart_in_ms: Some(10_000) };
    pod.step(guest(failed), 4);
    assert_eq!((status(&pod).restart_count, status(&pod).last.unwrap().run), (1, 1));
    let container = names(1)[0].clone();
    pod.step(
        guest(EventKind::ContainerStarted {
            container,
            pid: 9,
            restart_count: 2,
            post_start: false,
            ready: true,
        }),
        5,
    );
    pod.step(exited(0, ExitStatus::exited(0), None), 6);
    assert_eq!((terminated(&pod, 0).run, status(&pod).last.unwrap().run), (2, 1));
}

#[test]
fn each_way_to_fail_a_start_has_its_stage() {
    let fails = |up: bool, input: Input| {
        let mut pod = machine(1);
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
    assert_eq!(fails(true, Input::Deadline), RunStage::Agent);
    assert_eq!(fails(true, Input::AgentLost { why: "x".into() }), RunStage::Agent);
    assert_eq!(
        fails(true, guest(EventKind::PodFailed { message: "x".into(), killed: false })),
        RunStage::Boot
    );
    let missing = EventKind::ContainerFailed {
        container: names(1)[0].clone(),
        message: "x".into(),
        program: None,
        restart_in_ms: None,
    };
    assert_eq!(fails(true, guest(missing)), RunStage::Container);
    assert_eq!(fails(true, started(5)), RunStage::Agent);
    assert_eq!(fails(false, Input::Cancel), RunStage::Cancelled);
    assert_eq!(fails(true, Input::Stop { grace_ms: 1 }), RunStage::Cancelled);
}

#[test]
fn a_grace_period_can_be_shortened_only() {
    let mut pod = machine(1);
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
    let mut pod = machine(1);
    pod.step(started(0), 1);
    pod.step(guest(EventKind::PodStarted), 2);
    let effects = pod.step(gone("signal 9"), 3);
    let [Effect::Note(HostEvent::Broken { reason, message }), Effect::End] = effects.as_slice() else {
        panic!("{effects:?}")
    };
    assert_eq!((*reason, message.contains("signal 9")), (SandboxFailure::GuestEnded, true));
    assert!(pod.state.broken.as_ref().unwrap().message.contains("signal 9"));
    let run = terminated(&pod, 0);
    assert_eq!((run.reason, run.exit.code), (TerminatedReason::ContainerStatusUnknown, 137));
}

#[test]
fn a_supervisor_that_cannot_go_on_ends_the_pod_as_its_sandbox_does() {
    let lost = |killed| guest(EventKind::PodFailed { message: "the spawner was killed".into(), killed });
    let mut starting = machine(1);
    starting.step(Input::AgentUp, 1);
    let effects = starting.step(lost(true), 2);
    let [Effect::Fail(failure)] = effects.as_slice() else { panic!("{effects:?}") };
    assert_eq!(failure.reason, Some(SandboxFailure::SandboxKilled));

    for (killed, reason) in [(true, SandboxFailure::SandboxKilled), (false, SandboxFailure::SandboxFailed)] {
        let mut pod = machine(1);
        pod.step(Input::AgentUp, 1);
        pod.step(started(0), 1);
        pod.step(guest(EventKind::PodStarted), 2);
        let effects = pod.step(lost(killed), 3);
        assert_eq!(effects[0], Effect::Shutdown { grace_ms: 30_000 });
        pod.step(exited(0, ExitStatus::signaled(9), None), 4);
        pod.step(ended(), 5);
        let effects = pod.step(gone("exit 0"), 6);
        let [Effect::Note(HostEvent::Broken { reason: told, message }), Effect::End] = effects.as_slice()
        else {
            panic!("{effects:?}")
        };
        assert_eq!(*told, reason);
        assert!(message.contains("while the pod ran: the spawner was killed"), "{message}");
        assert_eq!(pod.state.broken.as_ref().unwrap().reason, reason);
    }
    // What ends a pod that ends anyway is nobody's failure.
    let mut pod = machine(1);
    pod.step(started(0), 1);
    pod.step(guest(EventKind::PodStarted), 2);
    pod.step(Input::Stop { grace_ms: 5 }, 3);
    assert!(pod.step(lost(true), 4).is_empty());
    assert_eq!(pod.state.broken, None);
}

pub(super) fn any_input() -> impl Strategy<Value = Input> {
    let exit =
        prop_oneof![(0..256i32).prop_map(ExitStatus::exited), (1..64i32).prop_map(ExitStatus::signaled)];
    let name = (0..4usize).prop_map(|n| names(n + 1)[n].clone());
    let puller = prop_oneof![
        Just(pulling::progress()),
        Just(pulling::done()),
        Just(FromPuller::Failed(Box::new(pulling::not_there()))),
    ];
    prop_oneof![
        Just(Input::PullBegun),
        puller.prop_map(Input::Puller),
        Just(Input::PullerGone(pulling::without_a_word())),
        Just(Input::AgentUp),
        (0..100_000u64).prop_map(|since_first_ms| Input::SandboxStarted { since_first_ms }),
        Just(Input::Request(PauseRequest::Pause)),
        Just(Input::Request(PauseRequest::Resume)),
        prop_oneof![Just(Motion::Running), Just(Motion::PartlyStopped), Just(Motion::Stopped)]
            .prop_map(Input::Motion),
        Just(Input::HostClockJumped),
        Just(Input::Cancel),
        Just(Input::Deadline),
        (0..400_000u64).prop_map(|grace_ms| Input::Stop { grace_ms }),
        Just(Input::AgentLost { why: "x".into() }),
        Just(Input::DirectoryGone),
        Just(Input::MonitorFailed { why: "x".into() }),
        Just(gone("x")),
        Just(guest(EventKind::PodStarted)),
        Just(guest(EventKind::ShuttingDown)),
        Just(ended()),
        name.clone().prop_map(|container| guest(EventKind::ContainerCreated { container })),
        any::<bool>().prop_map(|killed| guest(EventKind::PodFailed { message: "x".into(), killed })),
        Just(guest(EventKind::DeadlineExceeded)),
        Just(guest(EventKind::ExtensionFailed { extension: "x".into(), message: "y".into() })),
        (name.clone(), any::<bool>(), any::<bool>()).prop_map(|(container, started, ready)| guest(
            EventKind::ContainerCondition { container, started, ready }
        )),
        (name.clone(), any::<i32>(), any::<u32>()).prop_map(|(container, pid, restart_count)| guest(
            EventKind::ContainerStarted { container, pid, restart_count, post_start: false, ready: false }
        )),
        (name.clone(), exit, proptest::option::of(any::<u64>())).prop_map(
            |(container, exit, restart_in_ms)| guest(EventKind::ContainerExited {
                container,
                exit,
                message: None,
                restart_in_ms
            })
        ),
        (name, proptest::option::of(any::<u64>())).prop_map(|(container, restart_in_ms)| guest(
            EventKind::ContainerFailed { container, message: "x".into(), program: None, restart_in_ms }
        )),
    ]
}

#[test]
fn a_pod_that_nobody_can_find_or_watch_ends() {
    for input in [Input::DirectoryGone, Input::MonitorFailed { why: "of a panic".to_owned() }] {
        let mut pod = machine(1);
        let effects = pod.step(input.clone(), 1);
        assert!(matches!(&effects[..], [Effect::Fail(_)]), "{effects:?}");
        let mut pod = machine(1);
        pod.step(started(0), 1);
        pod.step(guest(EventKind::PodStarted), 2);
        assert_eq!(pod.step(input, 3), [Effect::Kill]);
        let effects = pod.step(gone("killed"), 4);
        assert_eq!(effects.last(), Some(&Effect::End));
        assert!(pod.state.containers[0].state.terminated().is_some());
        // The end of a pod whose directory is gone is what somebody wanted.
        let noted = pod.state.broken.as_ref().map(|broken| broken.reason);
        let event = |effect: &Effect| match effect {
            Effect::Note(HostEvent::Broken { reason, .. }) => Some(*reason),
            _ => None,
        };
        assert_eq!(effects.iter().find_map(event), noted);
    }
    // The thread that would report the sandbox's end may be the one that is missing.
    let mut pod = machine(1);
    pod.step(started(0), 1);
    pod.step(guest(EventKind::PodStarted), 2);
    let effects = pod.end_at_once("of a panic", 3);
    assert!(matches!(&effects[..], [Effect::Note(_), Effect::End]), "{effects:?}");
    let broken = pod.state.broken.as_ref().unwrap();
    assert_eq!((pod.state.stage, broken.reason), (Stage::Ended, SandboxFailure::MonitorFailed));
}

proptest! {
    /// Whatever a guest reports and in whatever order, the pod becomes ready at most once and ends exactly once, and after its end nothing
    /// happens any more.
    #[test]
    fn any_history_is_survived(inputs in proptest::collection::vec(any_input(), 0..60)) {
        let mut pod = machine(3);
        let (mut ready, mut ends, mut bounded, mut put_off, mut again) = (0, 0, false, 0, 0);
        for (now, input) in inputs.into_iter().enumerate() {
            let ended_before = pod.state.stage == Stage::Ended;
            let first_answer = input == Input::AgentUp;
            let effects = pod.step(input, u64::try_from(now).unwrap());
            prop_assert!(!ended_before || effects.is_empty());
            for effect in &effects {
                match effect {
                    Effect::Arm { after_ms: READY_MS } if !first_answer => {
                        (put_off, bounded) = (put_off + 1, true);
                        prop_assert_eq!(pod.state.stage, Stage::Starting);
                    }
                    Effect::Ready => ready += 1,
                    Effect::BootAgain => {
                        again += 1;
                        prop_assert_eq!((pod.state.stage, ready), (Stage::Starting, 0));
                    }
                    Effect::End | Effect::Fail(_) => ends += 1,
                    Effect::Arm { .. } | Effect::Kill => bounded = true,
                    Effect::Disarm => bounded = false,
                    _ => {}
                }
            }
            prop_assert_eq!(ends > 0, pod.state.stage == Stage::Ended);
            prop_assert!(!matches!(effects.last(), Some(Effect::Fail(_))) || ready == 0);
            // A stopping pod has a deadline or a killed sandbox, so that nobody waits for ever.
            prop_assert!(bounded || pod.state.stage != Stage::Stopping);
        }
        prop_assert!(ready <= 1 && ends <= 1 && again <= 1);
        prop_assert!(put_off <= 6, "the start of three containers was put off {} times", put_off);
        let mut last = pod.clone();
        // The first sandbox may have been killed for its silence.
        last.step(gone("end"), 98);
        last.step(gone("end"), 99);
        prop_assert_eq!(last.state.stage, Stage::Ended);
        for view in &last.state.containers {
            prop_assert!(pod.state.started_ms.is_none() || view.state.terminated().is_some());
        }
    }
}
