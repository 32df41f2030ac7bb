//! Init containers, sidecars and hooks while a pod starts, and the pod's conditions.

use super::*;
use Role::{Init, Main, Sidecar};

const GRACE_MS: u64 = 30_000;

fn of(roles: &[Role]) -> Machine {
    let containers = names(roles.len()).into_iter().zip(roles.iter().copied());
    let mut pod =
        Machine::new(containers, StartWaits { first_boot_ms: FIRST_MS, ready_ms: READY_MS }, GRACE_MS);
    assert_eq!(pod.step(Input::AgentUp, 1), [ARM_READY]);
    pod
}

fn condition(n: usize, started: bool, ready: bool) -> Input {
    guest(EventKind::ContainerCondition { container: names(n + 1)[n].clone(), started, ready })
}

fn shut_down(grace_ms: u64) -> [Effect; 2] {
    let after_ms = grace_ms + budget::HOST_SHUTDOWN_WAIT_MS;
    [Effect::Shutdown { grace_ms }, Effect::Arm { after_ms }]
}

fn failure(effects: &[Effect]) -> &Failure {
    match effects {
        [Effect::Fail(failure)] => failure,
        other => panic!("{other:?}"),
    }
}

#[test]
fn nothing_bounds_the_work_of_an_init_container() {
    let mut pod = of(&[Init, Main]);
    let waiting = ContainerState::waiting(WaitingReason::PodInitializing);
    assert!(pod.state.containers.iter().all(|status| status.state == waiting));
    assert_eq!(pod.step(created(0), 2), [ARM_READY]);
    assert_eq!(pod.step(started(0), 3), [Effect::Disarm]);
    assert!(!pod.state.conditions.initialized.holds);
    assert_eq!(pod.step(exited(0, ExitStatus::exited(0), None), 4_000_000), [ARM_READY]);
    assert!(pod.state.containers[0].ready);
    assert_eq!(pod.state.conditions.initialized.since_ms, 4_000_000);
    assert_eq!(pod.step(created(1), 4_000_001), [ARM_READY]);
    assert_eq!(pod.step(started(1), 4_000_002), [ARM_READY]);
    assert!(pod.step(condition(1, true, true), 4_000_003).is_empty());
    assert!(pod.state.conditions.ready.holds);
    assert_eq!(pod.step(guest(EventKind::PodStarted), 4_000_004), [Effect::Disarm, Effect::Ready]);
}

#[test]
fn a_restart_of_an_init_container_is_waited_for() {
    let mut pod = of(&[Init, Main]);
    pod.step(created(0), 2);
    pod.step(started(0), 3);
    let effects = pod.step(exited(0, ExitStatus::exited(1), Some(20_000)), 4);
    assert_eq!(effects.last(), Some(&Effect::Arm { after_ms: READY_MS + 20_000 }));
    assert!(pod.step(created(0), 5).is_empty());
    assert_eq!(pod.step(started(0), 6), [Effect::Disarm]);
}

#[test]
fn a_failed_init_container_fails_the_run_when_all_of_its_output_is_there() {
    let mut pod = of(&[Init, Main]);
    pod.step(created(0), 2);
    pod.step(started(0), 3);
    let effects = pod.step(exited(0, ExitStatus::exited(3), None), 4);
    assert!(effects.ends_with(&shut_down(0)), "{effects:?}");
    assert_eq!(pod.state.stage, Stage::Starting);
    assert!(pod.step(guest(EventKind::PodStarted), 5).is_empty());
    assert!(pod.step(ended(), 6).is_empty());
    let effects = pod.step(gone("exit 0"), 7);
    let failed = failure(&effects);
    assert_eq!(failed.stage, RunStage::Container);
    assert_eq!(failed.message, "init container c0 failed with exit code 3");
}

#[test]
fn giving_the_start_up_leaves_an_init_container_its_grace_period() {
    let mut pod = of(&[Init, Main]);
    pod.step(created(0), 2);
    assert_eq!(failure(&pod.clone().step(Input::Cancel, 3)).stage, RunStage::Cancelled, "nothing ran yet");
    pod.step(started(0), 3);
    assert_eq!(pod.step(Input::Cancel, 4), shut_down(GRACE_MS));
    // Its end by the signal is not the failure.
    pod.step(exited(0, ExitStatus::signaled(15), None), 5);
    let mut impatient = pod.clone();
    assert_eq!(failure(&impatient.step(Input::Cancel, 6)).stage, RunStage::Cancelled);
    assert_eq!(failure(&pod.step(gone("exit 0"), 6)).stage, RunStage::Cancelled);
    let mut pod = of(&[Sidecar, Main]);
    pod.step(started(0), 3);
    assert_eq!(pod.step(Input::Stop { grace_ms: 5000 }, 4), shut_down(5000));
    assert_eq!(failure(&pod.step(Input::Stop { grace_ms: 0 }, 5)).stage, RunStage::Cancelled);
}

#[test]
fn a_sidecar_is_through_when_it_is_started_and_a_hook_is_the_workloads_own_time() {
    let mut pod = of(&[Sidecar, Main]);
    assert_eq!(pod.step(started(0), 3), [Effect::Disarm], "its startup probe has no deadline of ours");
    assert!(pod.step(condition(0, false, false), 4).is_empty());
    assert_eq!(pod.step(condition(0, true, true), 5), [ARM_READY]);
    let mut plain = of(&[Sidecar, Main]);
    let at_once = EventKind::ContainerStarted {
        container: names(1)[0].clone(),
        pid: 1,
        restart_count: 0,
        post_start: false,
        ready: true,
    };
    assert_eq!(plain.step(guest(at_once), 3), [ARM_READY]);
    assert!(plain.state.containers[0].started && plain.state.conditions.initialized.holds);
    let hooked = EventKind::ContainerStarted {
        container: names(2)[1].clone(),
        pid: 1,
        restart_count: 0,
        post_start: true,
        ready: false,
    };
    assert_eq!(pod.step(guest(hooked), 6), [Effect::Disarm]);
    assert_eq!(pod.state.containers[1].state, ContainerState::creating());
    assert_eq!(pod.step(condition(1, true, false), 9), [ARM_READY]);
    assert_eq!(pod.state.containers[1].state, ContainerState::Running { started_ms: 6 });
    assert!(pod.state.conditions.initialized.holds && !pod.state.conditions.ready.holds);
    pod.step(guest(EventKind::PodStarted), 10);
    pod.step(condition(1, true, true), 20);
    assert_eq!((pod.state.conditions.ready.holds, pod.state.conditions.ready.since_ms), (true, 20));
    pod.step(condition(0, true, false), 30);
    assert!(!pod.state.conditions.ready.holds, "a sidecar counts");
    assert!(pod.state.conditions.initialized.holds);
}

#[test]
fn a_pod_at_its_deadline_has_failed() {
    let mut pod = of(&[Main]);
    pod.step(started(0), 2);
    pod.step(guest(EventKind::PodStarted), 3);
    assert_eq!(pod.step(guest(EventKind::DeadlineExceeded), 4), shut_down(GRACE_MS));
    assert!(pod.state.failed.is_some());
    pod.step(exited(0, ExitStatus::exited(0), None), 5);
    pod.step(ended(), 6);
    pod.step(gone("exit 0"), 7);
    assert_eq!(crate::pod::status::exit_code(&pod.state), 125);
    let mut pod = of(&[Init, Main]);
    pod.step(started(0), 2);
    assert_eq!(pod.step(guest(EventKind::DeadlineExceeded), 4), shut_down(GRACE_MS));
    assert!(failure(&pod.step(gone("exit 0"), 5)).message.contains("activeDeadlineSeconds"));
}

#[test]
fn a_failing_start_resumes_a_paused_vm_to_end_it() {
    let mut pod = of(&[Init, Main]);
    pod.step(created(0), 2);
    pod.step(started(0), 3);
    pod.step(Input::Motion(Motion::Stopped), 4);
    let effects = pod.step(Input::Cancel, 5);
    assert_eq!(effects[0], Effect::Resume);
    assert_eq!(effects[1..], shut_down(GRACE_MS));
}

#[test]
fn messages_of_containers_have_twelve_kib_together() {
    let exited = |pod: &mut Machine, n: usize| {
        let container = names(n + 1)[n].clone();
        let message = Some("x".repeat(4096));
        let exit = ExitStatus::exited(0);
        pod.step(guest(EventKind::ContainerExited { container, exit, message, restart_in_ms: None }), 9);
        terminated(pod, n).message.clone().unwrap().len()
    };
    let mut pod = of(&[Init, Main]);
    assert_eq!(exited(&mut pod, 0), 4096);
    let mut pod = of(&[Main; 8]);
    assert_eq!(exited(&mut pod, 7), 12 * 1024 / 8);
}
