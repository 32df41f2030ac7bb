use super::*;
use magikvm_proto::state::{TerminatedReason, WaitingReason};
use proptest::prelude::*;

fn container(policy: RestartPolicy) -> Container {
    Container::new("web".parse().unwrap(), policy)
}

fn news(run: u32, news: News) -> Input {
    Input::News { run, news }
}

fn kinds(effects: &[Effect]) -> Vec<&EventKind> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Emit(kind) = effect { Some(kind) } else { None })
        .collect()
}

/// A running container of a running pod.
fn running(policy: RestartPolicy) -> Container {
    let mut web = container(policy);
    web.step(Input::Create, 0);
    web.step(news(0, News::Created { pid: 7 }), 0);
    web.step(Input::Start, 0);
    web.step(news(0, News::Started), 0);
    assert_eq!(web.step(Input::Release, 0), []);
    web
}

fn end(web: &mut Container, run: u32, exit: ExitStatus, now: u64) -> Vec<Effect> {
    let mut effects = web.step(news(run, News::Ended(exit)), now);
    effects.extend(web.step(news(run, News::Drained), now));
    effects
}

#[test]
fn the_happy_path() {
    let mut web = container(RestartPolicy::Never);
    assert_eq!(web.step(Input::Create, 1), [Effect::Create { run: 0 }]);
    let effects = web.step(news(0, News::Created { pid: 7 }), 2);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerCreated { .. }]));
    assert_eq!(effects.len(), 1, "it waits for the others");
    assert_eq!(web.step(Input::Start, 3), [Effect::Start]);
    let effects = web.step(news(0, News::Started), 4);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerStarted { pid: 7, restart_count: 0, .. }]));
    assert_eq!(web.step(Input::Release, 5), []);
    assert_eq!(web.status(1000).state, ContainerState::Running { started_ms: 1004 });
    let effects = end(&mut web, 0, ExitStatus::exited(0), 9);
    assert_eq!(effects[0], Effect::Ended(ExitStatus::exited(0)));
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { restart_in_ms: None, .. }]));
    let run = web.status(1000).state.terminated().unwrap().clone();
    assert_eq!((run.started_ms, run.finished_ms), (Some(1004), 1009));
    assert_eq!(run.reason, TerminatedReason::Completed);
}

#[test]
fn an_end_waits_for_its_output_but_not_for_ever() {
    let mut web = running(RestartPolicy::Never);
    assert_eq!(web.step(news(0, News::Ended(ExitStatus::exited(1))), 10), []);
    assert!(matches!(web.status(0).state, ContainerState::Running { .. }));
    assert_eq!(web.deadline(), Some(10 + DRAIN_MS));
    assert_eq!(web.step(Input::Tick, 9 + DRAIN_MS), []);
    let effects = web.step(Input::Tick, 10 + DRAIN_MS);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { .. }]));
}

#[test]
fn an_end_before_the_pod_runs_is_held_back() {
    let mut web = container(RestartPolicy::Always);
    web.step(Input::Create, 0);
    web.step(news(0, News::Created { pid: 7 }), 0);
    web.step(Input::Start, 0);
    assert_eq!(end(&mut web, 0, ExitStatus::exited(0), 1), [], "its start is not told yet");
    assert!(matches!(kinds(&web.step(news(0, News::Started), 2))[..], [EventKind::ContainerStarted { .. }]));
    assert!(web.has_started());
    assert_eq!(web.deadline(), None, "only the pod's start is waited for");
    let effects = web.step(Input::Release, 3);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { restart_in_ms: Some(0), .. }]));
    assert_eq!(effects.last(), Some(&Effect::Create { run: 1 }));
}

#[test]
fn restarts_wait_longer_and_longer_and_begin_anew_after_a_long_run() {
    let mut web = running(RestartPolicy::OnFailure);
    let (mut now, mut delays) = (0, Vec::new());
    for run in 0..9 {
        let effects = end(&mut web, run, ExitStatus::exited(1), now);
        let delay = kinds(&effects).iter().find_map(|kind| match kind {
            EventKind::ContainerExited { restart_in_ms, .. } => *restart_in_ms,
            _ => None,
        });
        delays.push(delay.unwrap());
        now += delay.unwrap();
        if delay != Some(0) {
            let status = web.status(0);
            let ContainerState::Waiting { reason, message } = status.state else { panic!("{status:?}") };
            assert_eq!(reason, WaitingReason::CrashLoopBackOff);
            assert!(message.unwrap().starts_with("starts again in "));
            assert_eq!(status.last.unwrap().exit, ExitStatus::exited(1));
        }
        let made = if delay == Some(0) { effects } else { web.step(Input::Tick, now) };
        assert!(made.contains(&Effect::Create { run: run + 1 }));
        assert!(web.step(news(run + 1, News::Created { pid: 1 }), now).contains(&Effect::Start));
        web.step(news(run + 1, News::Started), now);
        now += if run == 6 { RESTART_BACKOFF_RESET_MS } else { 0 };
    }
    assert_eq!(delays, [0, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 0, 10_000]);
    let effects = end(&mut web, 9, ExitStatus::exited(0), now);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { restart_in_ms: None, .. }]));
}

#[test]
fn a_restart_that_fails_is_tried_again() {
    let mut web = running(RestartPolicy::Always);
    end(&mut web, 0, ExitStatus::exited(0), 0);
    let effects = web.step(news(1, News::Failed { program: None, message: "x".to_owned() }), 5);
    assert_eq!(effects[0], Effect::Kill);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerFailed { restart_in_ms: Some(10_000), .. }]));
    assert_eq!(web.status(0).last.unwrap().reason, TerminatedReason::StartError);
    assert_eq!(web.step(Input::Tick, 10_005), [Effect::Create { run: 2 }]);
}

#[test]
fn one_that_waits_for_its_restart_has_ended_as_it_did_when_it_is_retired() {
    let mut web = running(RestartPolicy::Always);
    end(&mut web, 0, ExitStatus::exited(0), 0);
    web.step(news(1, News::Failed { program: None, message: "x".repeat(5000) }), 5);
    assert_eq!(web.step(Input::Retire, 6), []);
    let run = web.status(0).state.terminated().unwrap().clone();
    assert_eq!((run.reason, run.exit.code), (TerminatedReason::StartError, 128));
    assert_eq!(run.message.unwrap().len(), MAX_STATUS_MESSAGE_LEN);
    assert_eq!(web.step(Input::Tick, 100_000), []);
}

#[test]
fn what_has_not_begun_to_run_is_given_up_when_it_is_retired() {
    let mut web = container(RestartPolicy::Always);
    web.step(Input::Create, 0);
    assert_eq!(web.step(Input::Retire, 1), [Effect::Kill]);
    assert!(web.is_over());
    assert_eq!(web.step(news(0, News::Created { pid: 7 }), 2), []);
    assert_eq!(web.status(0).state.terminated().unwrap().reason, TerminatedReason::StartError);

    let mut web = container(RestartPolicy::Always);
    assert_eq!(web.step(Input::Retire, 1), []);
    assert_eq!(web.step(Input::Create, 2), []);
    assert!(web.is_over());
}

#[test]
fn a_program_that_is_just_being_started_hears_what_was_asked() {
    for (input, heard) in [(Input::Terminate, Effect::Terminate), (Input::Kill, Effect::Kill)] {
        let mut web = running(RestartPolicy::Always);
        end(&mut web, 0, ExitStatus::exited(0), 0);
        web.step(news(1, News::Created { pid: 8 }), 1);
        web.step(Input::Retire, 2);
        web.step(input, 2);
        assert_eq!(web.step(news(1, News::Started), 3).last(), Some(&heard));
    }
}

fn any_input() -> impl Strategy<Value = Input> {
    let told = prop_oneof![
        any::<i32>().prop_map(|pid| News::Created { pid }),
        Just(News::Started),
        Just(News::Failed { program: None, message: "x".to_owned() }),
        (0..3i32).prop_map(|code| News::Ended(ExitStatus::exited(code))),
        Just(News::Drained),
    ];
    prop_oneof![
        1 => Just(Input::Create),
        1 => Just(Input::Start),
        1 => Just(Input::Release),
        1 => Just(Input::Terminate),
        1 => Just(Input::Kill),
        1 => Just(Input::Conclude),
        3 => Just(Input::Tick),
        9 => (0..2u32, told).prop_map(|(late, news)| Input::News { run: late, news }),
    ]
}

proptest! {
    /// Whatever happens in whatever order: runs are numbered one after the other, no run begins before the last one is
    /// reported, each start is reported before its end, each end once, and nothing begins once the container is retired.
    #[test]
    fn any_history_is_survived(
        policy in prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)],
        inputs in prop::collection::vec((any_input(), 0..20_000u64), 0..120),
        retire_at in 0..160usize,
    ) {
        let mut web = container(policy);
        let (mut now, mut runs, mut open, mut retired) = (0, 0, false, false);
        let last = std::iter::once((Input::Retire, 0));
        let count = inputs.len();
        let mut inputs = inputs;
        inputs.splice(retire_at.min(count)..retire_at.min(count), last);
        for (input, pause) in inputs {
            now += pause;
            // The run number tells how late the news is.
            let input = match input {
                Input::News { run: late, news } => Input::News { run: web.run().wrapping_sub(late), news },
                other => other,
            };
            retired |= input == Input::Retire;
            let was_over = web.is_over();
            for effect in web.step(input, now) {
                prop_assert!(!was_over);
                match effect {
                    Effect::Create { run } => {
                        prop_assert!(!retired && !open && run == runs);
                        runs += 1;
                    }
                    Effect::Start => prop_assert!(!retired),
                    Effect::Emit(EventKind::ContainerStarted { restart_count, .. }) => {
                        prop_assert!(!open && restart_count + 1 == runs);
                        open = true;
                    }
                    Effect::Emit(EventKind::ContainerExited { restart_in_ms, .. }) => {
                        prop_assert!(open && (restart_in_ms.is_none() || !retired));
                        open = false;
                    }
                    Effect::Emit(EventKind::ContainerFailed { .. }) => prop_assert!(!open && !retired),
                    _ => {}
                }
            }
            prop_assert!(!(open && web.is_over()), "an end was not told");
            // A caller that waits until the deadline and ticks makes progress.
            if let Some(at) = web.deadline() {
                let mut later = web.clone();
                later.step(Input::Tick, at);
                prop_assert!(later.deadline() != Some(at));
            }
        }
    }
}
