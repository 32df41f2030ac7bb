use super::*;
use crate::machine::Handled;
use magikvm_proto::lifecycle::{Handler, Hooks, ProbeKind, ProbePlan, Probes, RestartRule};
use magikvm_proto::plan::RestartPolicy;
use magikvm_proto::state::TerminatedReason;
use magikvm_proto::wire::KillReason;
use proptest::prelude::*;

fn rules(role: Role, policy: RestartPolicy) -> Rules {
    Rules {
        name: "web".parse().unwrap(),
        role,
        policy,
        restarts: Vec::new(),
        probes: Probes::default(),
        hooks: Hooks::default(),
        grace_ms: 30_000,
        first_reason: WaitingReason::ContainerCreating,
    }
}

fn container(policy: RestartPolicy) -> Container {
    Container::new(rules(Role::Main, policy))
}

fn ended(exit: ExitStatus) -> News {
    News::Ended { exit, message: None }
}

const DRAINED: News = News::Drained { tail: None };

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
    running_by(rules(Role::Main, policy))
}

fn running_by(rules: Rules) -> Container {
    let mut web = Container::new(rules);
    web.step(Input::Create, 0);
    web.step(news(0, News::Created { pid: 7 }), 0);
    web.step(Input::Start, 0);
    web.step(news(0, News::Started), 0);
    web.step(Input::Release, 0);
    web
}

fn end(web: &mut Container, run: u32, exit: ExitStatus, now: u64) -> Vec<Effect> {
    let mut effects = web.step(news(run, ended(exit)), now);
    effects.extend(web.step(news(run, DRAINED), now));
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
    assert!(matches!(
        kinds(&effects)[..],
        [EventKind::ContainerStarted { pid: 7, restart_count: 0, ready: true, .. }]
    ));
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
    assert_eq!(web.step(news(0, ended(ExitStatus::exited(1))), 10), []);
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
    assert!(web.has_begun());
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
            assert!(message.unwrap().starts_with("back-off "));
            let last = status.last.unwrap();
            assert_eq!((last.exit, last.run), (ExitStatus::exited(1), run));
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
    let stop = Input::Stop { kill_at: 100, turn: Turn::Now };
    for (input, heard) in [(stop, Effect::Terminate), (Input::Kill, Effect::Kill)] {
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
        (0..3i32).prop_map(|code| ended(ExitStatus::exited(code))),
        Just(DRAINED),
    ];
    prop_oneof![
        1 => Just(Input::Create),
        1 => Just(Input::Start),
        1 => Just(Input::Release),
        1 => (0..90_000u64, any::<bool>()).prop_map(|(kill_at, late)| Input::Stop {
            kill_at,
            turn: if late { Turn::Later } else { Turn::Now },
        }),
        1 => Just(Input::Turn),
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
            retired |= matches!(input, Input::Retire | Input::Stop { .. });
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

fn probe(failure_threshold: u32) -> ProbePlan {
    ProbePlan {
        handler: Handler::TcpSocket { host: None, port: 80 },
        initial_delay_secs: 0,
        period_secs: 10,
        timeout_secs: 1,
        success_threshold: 1,
        failure_threshold,
        grace_secs: None,
    }
}

fn all_probes() -> Probes {
    Probes { startup: Some(probe(3)), liveness: Some(probe(2)), readiness: Some(probe(1)) }
}

fn hooks() -> Hooks {
    let sleep = || Some(Handler::Sleep { seconds: 1 });
    Hooks { post_start: sleep(), pre_stop: sleep() }
}

fn handled(run: u32, task: Task, answer: Handled) -> Input {
    news(run, News::Handled { task, answer })
}

fn bad() -> Handled {
    Handled::Failure("refused".to_owned())
}

fn handles(effects: &[Effect]) -> Vec<Task> {
    let task = |effect: &Effect| match effect {
        Effect::Handle { task, .. } => Some(*task),
        _ => None,
    };
    effects.iter().filter_map(task).collect()
}

const STARTUP: Task = Task::Probe(ProbeKind::Startup);
const LIVENESS: Task = Task::Probe(ProbeKind::Liveness);
const READINESS: Task = Task::Probe(ProbeKind::Readiness);
const POST_START: Task = Task::Hook(HookKind::PostStart);
const PRE_STOP: Task = Task::Hook(HookKind::PreStop);

#[test]
fn the_startup_probe_holds_the_others_back() {
    let mut web = Container::new(Rules { probes: all_probes(), ..rules(Role::Main, RestartPolicy::Always) });
    for input in [Input::Create, news(0, News::Created { pid: 7 }), Input::Start] {
        web.step(input, 0);
    }
    let effects = web.step(news(0, News::Started), 0);
    assert_eq!(handles(&effects), [STARTUP], "the first run follows at once");
    assert!(web.has_begun() && !web.has_been_started());
    assert!(kinds(&web.step(handled(0, STARTUP, bad()), 500)).iter().any(|kind| matches!(
        kind,
        EventKind::ProbeFailed { probe: ProbeKind::Startup, errored: false, .. }
    )));
    assert_eq!(web.deadline(), Some(10_000));
    assert_eq!(handles(&web.step(Input::Tick, 10_000)), [STARTUP]);
    let effects = web.step(handled(0, STARTUP, Handled::Success), 10_100);
    assert_eq!(handles(&effects), [LIVENESS, READINESS]);
    assert!(matches!(
        kinds(&effects)[..],
        [EventKind::ContainerCondition { started: true, ready: false, .. }]
    ));
    assert!(web.has_been_started());
    let effects = web.step(handled(0, READINESS, Handled::Success), 10_200);
    assert!(matches!(
        kinds(&effects)[..],
        [EventKind::ContainerCondition { started: true, ready: true, .. }]
    ));
    assert!(web.status(0).started && web.status(0).ready);
    assert_eq!(web.step(handled(0, LIVENESS, Handled::Success), 10_300), []);
    assert_eq!(
        handles(&web.step(Input::Tick, 20_100)),
        [LIVENESS, READINESS],
        "and the startup probe is over"
    );
}

#[test]
fn a_failed_liveness_probe_ends_the_container_and_it_restarts() {
    let liveness = ProbePlan { grace_secs: Some(5), ..probe(2) };
    let probes = Probes { liveness: Some(liveness), ..Probes::default() };
    let pre_stop = Hooks { pre_stop: Some(Handler::Sleep { seconds: 1 }), ..Hooks::default() };
    let of = |policy| Rules { probes: probes.clone(), hooks: pre_stop.clone(), ..rules(Role::Main, policy) };
    for policy in [RestartPolicy::Always, RestartPolicy::OnFailure, RestartPolicy::Never] {
        let mut web = running_by(of(policy));
        assert!(!kinds(&web.step(handled(0, LIVENESS, bad()), 100)).is_empty());
        assert_eq!(handles(&web.step(Input::Tick, 10_000)), [LIVENESS]);
        let error = Handled::Error("no such program".to_owned());
        assert!(matches!(
            kinds(&web.step(handled(0, LIVENESS, error), 10_100))[..],
            [EventKind::ProbeFailed { errored: true, .. }]
        ));
        assert_eq!(handles(&web.step(Input::Tick, 20_000)), [LIVENESS]);
        let effects = web.step(handled(0, LIVENESS, bad()), 20_100);
        let restarts = policy != RestartPolicy::Never;
        let reason = KillReason::Probe { probe: ProbeKind::Liveness, restarts };
        let container = "web".parse().unwrap();
        assert!(kinds(&effects).contains(&&EventKind::ContainerKilling { container, reason }));
        assert!(effects.contains(&Effect::Handle { run: 0, task: PRE_STOP, timeout_ms: 5000 }));
        assert!(!web.status(0).ready);
        assert_eq!(web.deadline(), Some(25_100), "nothing is probed any more");
        assert_eq!(web.step(handled(0, PRE_STOP, Handled::Success), 21_000), [Effect::Terminate]);
        // Whatever its exit code is.
        let effects = end(&mut web, 0, ExitStatus::exited(0), 22_000);
        assert_eq!(effects.last() == Some(&Effect::Create { run: 1 }), restarts);
    }
}

#[test]
fn a_container_counts_as_running_after_its_post_start_hook() {
    let mut web = running_by(Rules {
        hooks: hooks(),
        probes: all_probes(),
        ..rules(Role::Main, RestartPolicy::Always)
    });
    assert!(!web.has_begun());
    assert_eq!(web.deadline(), None, "nothing bounds the hook");
    assert_eq!(web.status(0).state, ContainerState::creating());
    let effects = web.step(handled(0, POST_START, Handled::Success), 60_000);
    assert_eq!(handles(&effects), [STARTUP]);
    assert!(web.has_begun());
    assert_eq!(web.status(0).state, ContainerState::Running { started_ms: 0 });
}

#[test]
fn a_failed_post_start_hook_ends_the_container() {
    let mut web = running_by(Rules { hooks: hooks(), ..rules(Role::Main, RestartPolicy::OnFailure) });
    let effects = web.step(handled(0, POST_START, bad()), 10);
    assert!(matches!(
        kinds(&effects)[..],
        [
            EventKind::HookFailed { hook: HookKind::PostStart, .. },
            EventKind::ContainerKilling { reason: KillReason::PostStart, .. }
        ]
    ));
    assert_eq!(handles(&effects), [PRE_STOP]);
    assert!(!web.has_begun());
    assert_eq!(web.step(handled(0, PRE_STOP, Handled::Success), 11), [Effect::Terminate]);
    let effects = end(&mut web, 0, ExitStatus::signaled(15), 12);
    assert_eq!(effects.last(), Some(&Effect::Create { run: 1 }));
}

#[test]
fn a_pre_stop_hook_counts_within_the_grace_period_and_two_seconds_are_left_after_it() {
    let pre_stop = Hooks { pre_stop: Some(Handler::Sleep { seconds: 60 }), ..Hooks::default() };
    let of = || running_by(Rules { hooks: pre_stop.clone(), ..rules(Role::Main, RestartPolicy::Always) });
    let stop = Input::Stop { kill_at: 10_000, turn: Turn::Now };
    let mut web = of();
    let effects = web.step(stop.clone(), 0);
    assert!(effects.contains(&Effect::Handle { run: 0, task: PRE_STOP, timeout_ms: 10_000 }));
    assert_eq!(web.step(Input::Tick, 10_000), [Effect::Cancel(PRE_STOP), Effect::Terminate]);
    assert_eq!(web.step(handled(0, PRE_STOP, bad()), 10_001), [], "it was given up");
    assert_eq!(web.deadline(), Some(12_000));
    assert_eq!(web.step(Input::Tick, 12_000), [Effect::Kill]);
    let mut web = of();
    web.step(stop.clone(), 0);
    assert_eq!(web.step(handled(0, PRE_STOP, Handled::Success), 4000), [Effect::Terminate]);
    assert_eq!(web.deadline(), Some(10_000), "the rest of the grace period");
    // It ends while its hook runs.
    let mut web = of();
    web.step(stop, 0);
    assert!(end(&mut web, 0, ExitStatus::exited(0), 1).contains(&Effect::Cancel(PRE_STOP)));
    assert!(web.is_over());
}

#[test]
fn rules_decide_before_the_policy() {
    let mut web = running_by(Rules {
        restarts: vec![RestartRule::In(vec![42])],
        ..rules(Role::Main, RestartPolicy::Never)
    });
    let effects = end(&mut web, 0, ExitStatus::exited(42), 0);
    assert_eq!(effects.last(), Some(&Effect::Create { run: 1 }));
    web.step(news(1, News::Created { pid: 8 }), 1);
    web.step(news(1, News::Started), 1);
    end(&mut web, 1, ExitStatus::exited(3), 2);
    assert!(web.is_over());
}

#[test]
fn a_termination_message_is_the_file_or_the_end_of_the_log_of_a_failure() {
    let message = |file: Option<&str>, tail: Option<&str>, code: i32| {
        let mut web = running(RestartPolicy::Never);
        let (file, tail) = (file.map(str::to_owned), tail.map(str::to_owned));
        web.step(news(0, News::Ended { exit: ExitStatus::exited(code), message: file }), 1);
        let effects = web.step(news(0, News::Drained { tail }), 1);
        let told = kinds(&effects).iter().find_map(|kind| match kind {
            EventKind::ContainerExited { message, .. } => Some(message.clone()),
            _ => None,
        });
        let told = told.unwrap();
        assert_eq!(web.status(0).state.terminated().unwrap().message, told);
        told
    };
    assert_eq!(message(Some("file"), Some("log"), 1).as_deref(), Some("file"));
    assert_eq!(message(None, Some("log"), 1).as_deref(), Some("log"));
    assert_eq!(message(None, Some("log"), 0), None);
    assert_eq!(message(None, None, 1), None);
}

#[test]
fn init_containers_and_sidecars_start_alone_and_fail_for_good_only_in_their_first_run() {
    for (role, policy) in [(Role::Init, RestartPolicy::OnFailure), (Role::Sidecar, RestartPolicy::Always)] {
        let mut one = Container::new(rules(role, policy));
        one.step(Input::Create, 0);
        assert!(one.step(news(0, News::Created { pid: 7 }), 0).contains(&Effect::Start));
        one.step(news(0, News::Started), 0);
        let effects = end(&mut one, 0, ExitStatus::exited(1), 1);
        assert_eq!(effects.last(), Some(&Effect::Create { run: 1 }), "its end is told at once");
        let failed = News::Failed { program: None, message: "x".to_owned() };
        let effects = one.step(news(1, failed.clone()), 2);
        assert!(matches!(
            kinds(&effects)[..],
            [EventKind::ContainerFailed { restart_in_ms: Some(10_000), .. }]
        ));
        let mut other = Container::new(rules(role, policy));
        other.step(Input::Create, 0);
        other.step(news(0, failed), 0);
        assert!(other.is_over());
    }
}

fn any_task() -> impl Strategy<Value = Task> {
    prop_oneof![Just(STARTUP), Just(LIVENESS), Just(READINESS), Just(POST_START), Just(PRE_STOP)]
}

fn any_deed() -> impl Strategy<Value = (u8, Task, u8)> {
    (0..12u8, any_task(), 0..3u8)
}

proptest! {
    /// Whatever a container with all probes and hooks meets: no task runs twice at a time, none outlives its run, the startup probe comes
    /// before the others and the postStart hook before all, preStop runs at most once, the container is ready only while it is started,
    /// and nothing is probed once its end has begun.
    #[test]
    fn tasks_keep_their_order(
        role in prop_oneof![Just(Role::Main), Just(Role::Sidecar)],
        deeds in prop::collection::vec((any_deed(), 0..6000u64), 0..200),
    ) {
        let mut web = running_by(Rules { probes: all_probes(), hooks: hooks(), ..rules(role, RestartPolicy::Always) });
        if role == Role::Sidecar {
            web = Container::new(Rules { probes: all_probes(), hooks: hooks(), ..rules(role, RestartPolicy::Always) });
            web.step(Input::Create, 0);
            web.step(news(0, News::Created { pid: 7 }), 0);
            web.step(news(0, News::Started), 0);
        }
        let mut running = vec![POST_START];
        let (mut now, mut hook_done, mut started, mut ending, mut stopped) = (0, false, false, false, false);
        for ((what, task, answer), pause) in deeds {
            now += pause;
            let run = web.run();
            let input = match what {
                0 if !stopped => Input::Stop { kill_at: now + 5000, turn: Turn::Now },
                1 => news(run, ended(ExitStatus::exited(answer.into()))),
                2 => news(run, DRAINED),
                3 => news(run, News::Created { pid: 8 }),
                4 => news(run, News::Started),
                5 | 6 => Input::Tick,
                _ if running.contains(&task) => {
                    running.retain(|one| *one != task);
                    let answer = match answer {
                        0 => bad(),
                        1 => Handled::Success,
                        _ => Handled::Error("cannot".to_owned()),
                    };
                    hook_done |= task == POST_START && answer == Handled::Success && !ending;
                    started |= task == STARTUP && answer == Handled::Success && !ending;
                    handled(run, task, answer)
                }
                _ => Input::Tick,
            };
            stopped |= matches!(input, Input::Stop { .. });
            for effect in web.step(input, now) {
                match effect {
                    Effect::Create { .. } => {
                        prop_assert!(running.is_empty() && !stopped);
                        (hook_done, started, ending) = (false, false, false);
                    }
                    Effect::Handle { run: of, task, .. } => {
                        prop_assert!(of == web.run() && !running.contains(&task));
                        match task {
                            PRE_STOP => prop_assert!(ending),
                            POST_START => prop_assert!(!hook_done && !ending),
                            STARTUP => prop_assert!(hook_done && !started && !ending),
                            _ => prop_assert!(started && !ending),
                        }
                        running.push(task);
                    }
                    Effect::Cancel(task) => {
                        prop_assert!(running.contains(&task));
                        running.retain(|one| *one != task);
                    }
                    Effect::Emit(EventKind::ContainerKilling { .. }) => {
                        prop_assert!(!ending);
                        ending = true;
                    }
                    Effect::Emit(EventKind::ContainerExited { .. }) => prop_assert!(running.is_empty()),
                    Effect::Emit(EventKind::ContainerCondition { started: told, ready, .. }) => {
                        prop_assert!(!ready || told);
                        prop_assert!(!ready || !ending);
                    }
                    _ => {}
                }
            }
            let status = web.status(0);
            let runs = matches!(status.state, ContainerState::Running { .. });
            prop_assert!(!status.ready || (status.started && runs));
            prop_assert!(!ending || !status.ready);
        }
    }
}
