//! The order of init containers, sidecars and main containers: start, end and stop of the pod.

use super::super::{Handled, News, Task};
use super::tests::{DRAINED, OVER, created, deeds, end, ended, kinds, news, rules};
use super::*;
use crate::machine::ending::LEAST_MS;
use Role::{Init, Main, Sidecar};
use magikvm_proto::lifecycle::{Handler, HookKind, Hooks, ProbeKind, ProbePlan, Probes};
use magikvm_proto::plan::RestartPolicy;
use magikvm_proto::wire::ExitStatus;
use proptest::prelude::*;

const GRACE_MS: u64 = 30_000;
/// No containers.
const NONE: [usize; 0] = [];

/// A pod with containers of these roles; init containers restart `OnFailure` unless the pod's policy is `Never`.
fn roles(roles: &[Role], policy: RestartPolicy) -> Vec<Rules> {
    let of = |(index, role): (usize, &Role)| match (role, policy) {
        (Sidecar, _) => rules(index, *role, RestartPolicy::Always),
        (Init, RestartPolicy::Always) => rules(index, *role, RestartPolicy::OnFailure),
        (Init | Main, policy) => rules(index, *role, policy),
    };
    roles.iter().enumerate().map(of).collect()
}

fn machine(rules: Vec<Rules>) -> Machine {
    Machine::of_rules(rules, GRACE_MS, None)
}

/// Creates and starts a container that starts as soon as it is created.
fn run(machine: &mut Machine, index: usize, run: u32, now: u64) -> Vec<Effect> {
    let mut effects = machine.step(news(index, run, News::Created { pid: 1 }), now);
    assert!(effects.contains(&Effect::Start { index }), "{effects:?}");
    effects.extend(machine.step(news(index, run, News::Started), now));
    effects
}

fn creates(effects: &[Effect]) -> Vec<usize> {
    let index = |effect: &Effect| match effect {
        Effect::Create { index, .. } => Some(*index),
        _ => None,
    };
    effects.iter().filter_map(index).collect()
}

#[test]
fn init_containers_run_one_after_the_other_and_the_main_ones_are_created_after_them() {
    let mut pod = machine(roles(&[Init, Init, Main, Main], RestartPolicy::Always));
    assert_eq!(creates(&pod.step(Input::Boot, 0)), [0]);
    assert_eq!(creates(&run(&mut pod, 0, 0, 1)), NONE);
    let effects = end(&mut pod, 0, 0, ExitStatus::exited(0), 2);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { restart_in_ms: None, .. }]));
    assert_eq!(creates(&effects), [1]);
    run(&mut pod, 1, 0, 3);
    assert_eq!(creates(&end(&mut pod, 1, 0, ExitStatus::exited(0), 4)), [2, 3]);
    assert!(!pod.step(created(2), 5).contains(&Effect::Start { index: 2 }));
    assert!(pod.step(created(3), 5).contains(&Effect::Start { index: 2 }));
    pod.step(news(2, 0, News::Started), 6);
    let effects = pod.step(news(3, 0, News::Started), 6);
    assert_eq!(kinds(&effects).last(), Some(&&EventKind::PodStarted));
    assert!(pod.status(0)[0].ready, "an init container that has succeeded");
}

#[test]
fn an_init_container_that_fails_is_tried_again_or_fails_the_pod() {
    let mut pod = machine(roles(&[Init, Main], RestartPolicy::OnFailure));
    pod.step(Input::Boot, 0);
    run(&mut pod, 0, 0, 0);
    assert_eq!(creates(&end(&mut pod, 0, 0, ExitStatus::exited(1), 1)), [0]);
    run(&mut pod, 0, 1, 2);
    assert_eq!(creates(&end(&mut pod, 0, 1, ExitStatus::exited(1), 3)), NONE);
    assert_eq!(pod.deadline(), Some(10_003));
    assert_eq!(creates(&pod.step(Input::Tick, 10_003)), [0]);

    let mut pod = machine(roles(&[Sidecar, Init, Main], RestartPolicy::Never));
    pod.step(Input::Boot, 0);
    run(&mut pod, 0, 0, 0);
    run(&mut pod, 1, 0, 1);
    let effects = end(&mut pod, 1, 0, ExitStatus::exited(3), 2);
    assert_eq!(creates(&effects), NONE, "the others never start");
    assert!(effects.contains(&Effect::Kill { index: 0 }));
    assert!(!effects.contains(&Effect::Finish), "it waits for the host's word");
    end(&mut pod, 0, 0, ExitStatus::signaled(9), 3);
    assert!(pod.step(Input::Stop { grace_ms: 0 }, 4).ends_with(&OVER));
}

#[test]
fn a_stop_while_an_init_container_works_asks_it_and_creates_nothing_more() {
    let mut pod = machine(roles(&[Init, Init, Main], RestartPolicy::Always));
    pod.step(Input::Boot, 0);
    run(&mut pod, 0, 0, 0);
    assert_eq!(deeds(&pod.step(Input::Stop { grace_ms: 5000 }, 10)), [&Effect::Terminate { index: 0 }]);
    let effects = end(&mut pod, 0, 0, ExitStatus::exited(0), 20);
    assert_eq!(creates(&effects), NONE);
    assert!(effects.ends_with(&OVER));
}

fn with_startup_probe(mut rules: Vec<Rules>, index: usize) -> Vec<Rules> {
    let startup = ProbePlan {
        handler: Handler::TcpSocket { host: None, port: 1 },
        initial_delay_secs: 0,
        period_secs: 10,
        timeout_secs: 1,
        success_threshold: 1,
        failure_threshold: 3,
        grace_secs: None,
    };
    rules[index].probes = Probes { startup: Some(startup), ..Probes::default() };
    rules
}

fn answer(index: usize, run: u32, task: Task, answer: Handled) -> Input {
    news(index, run, News::Handled { task, answer })
}

#[test]
fn a_sidecar_holds_up_the_next_one_until_it_is_started() {
    let mut pod = machine(with_startup_probe(roles(&[Sidecar, Init, Main], RestartPolicy::Never), 0));
    pod.step(Input::Boot, 0);
    assert_eq!(creates(&run(&mut pod, 0, 0, 1)), NONE);
    let startup = Task::Probe(ProbeKind::Startup);
    // It crashes before, and restarts although the pod's policy is Never.
    assert_eq!(creates(&end(&mut pod, 0, 0, ExitStatus::exited(1), 2)), [0]);
    run(&mut pod, 0, 1, 3);
    assert_eq!(creates(&pod.step(answer(0, 1, startup, Handled::Success), 4)), [1]);
    run(&mut pod, 1, 0, 5);
    // Once it was started it holds up nothing.
    end(&mut pod, 0, 1, ExitStatus::exited(1), 6);
    assert_eq!(creates(&end(&mut pod, 1, 0, ExitStatus::exited(0), 7)), [2]);
}

/// A running pod of these roles.
fn running(roles_: &[Role], policy: RestartPolicy) -> Machine {
    started(roles(roles_, policy))
}

fn started(rules: Vec<Rules>) -> Machine {
    let count = rules.len();
    let mut pod = machine(rules);
    pod.step(Input::Boot, 0);
    for index in 0..count {
        pod.step(created(index), 0);
        if pod.containers[index].role() != Main {
            pod.step(news(index, 0, News::Started), 0);
        }
        if pod.containers[index].role() == Init {
            end(&mut pod, index, 0, ExitStatus::exited(0), 0);
        }
    }
    let mains = pod.before..count;
    let last = mains.map(|index| pod.step(news(index, 0, News::Started), 0)).last().unwrap();
    assert!(kinds(&last).contains(&&EventKind::PodStarted));
    pod
}

#[test]
fn sidecars_do_not_keep_the_pod_alive_and_end_in_reverse_order() {
    let mut pod = running(&[Sidecar, Init, Sidecar, Main, Main], RestartPolicy::Never);
    assert_eq!(deeds(&end(&mut pod, 3, 0, ExitStatus::exited(0), 1)).len(), 1);
    let effects = end(&mut pod, 4, 0, ExitStatus::exited(7), 100);
    assert!(effects.contains(&Effect::Terminate { index: 2 }), "the later one first");
    assert!(!effects.contains(&Effect::Terminate { index: 0 }));
    let effects = end(&mut pod, 2, 0, ExitStatus::signaled(15), 200);
    assert!(effects.contains(&Effect::Terminate { index: 0 }));
    assert_eq!(creates(&effects), NONE, "it does not restart any more");
    assert_eq!(pod.deadline(), Some(100 + GRACE_MS));
    assert!(end(&mut pod, 0, 0, ExitStatus::exited(1), 300).ends_with(&OVER));
}

#[test]
fn a_sidecar_restarts_while_the_pod_runs() {
    let mut pod = running(&[Sidecar, Main], RestartPolicy::Never);
    assert_eq!(creates(&end(&mut pod, 0, 0, ExitStatus::exited(0), 1)), [0]);
    // The main container ends while the sidecar is being created: nothing of it runs.
    assert!(end(&mut pod, 1, 0, ExitStatus::exited(0), 2).ends_with(&OVER));
}

#[test]
fn a_stop_asks_main_containers_at_once_and_sidecars_after_them_within_what_is_left() {
    let mut pod = running(&[Sidecar, Sidecar, Main, Main], RestartPolicy::Always);
    let effects = pod.step(Input::Stop { grace_ms: 10_000 }, 0);
    assert_eq!(deeds(&effects), [&Effect::Terminate { index: 2 }, &Effect::Terminate { index: 3 }]);
    end(&mut pod, 2, 0, ExitStatus::exited(0), 9_000);
    let effects = end(&mut pod, 3, 0, ExitStatus::exited(0), 9_500);
    assert!(effects.contains(&Effect::Terminate { index: 1 }));
    // The grace period ends: what was not asked yet is asked now; each has at least two seconds.
    assert_eq!(deeds(&pod.step(Input::Tick, 10_000)), [&Effect::Terminate { index: 0 }]);
    assert_eq!(deeds(&pod.step(Input::Tick, 9_500 + LEAST_MS)), [&Effect::Kill { index: 1 }]);
    assert_eq!(deeds(&pod.step(Input::Tick, 10_000 + LEAST_MS)), [&Effect::Kill { index: 0 }]);
    assert_eq!(pod.deadline(), Some(10_000 + LEAST_MS + KILL_WAIT_MS));
    assert!(pod.step(Input::Tick, pod.deadline().unwrap()).ends_with(&OVER));
}

#[test]
fn pre_stop_hooks_of_all_run_at_once() {
    let mut rules = roles(&[Sidecar, Main], RestartPolicy::Always);
    let pre_stop = Hooks { pre_stop: Some(Handler::Sleep { seconds: 9 }), ..Hooks::default() };
    rules.iter_mut().for_each(|rules| rules.hooks = pre_stop.clone());
    let mut pod = started(rules);
    let task = Task::Hook(HookKind::PreStop);
    let hook = |index| Effect::Handle { index, run: 0, task, timeout_ms: 10_000 };
    assert_eq!(deeds(&pod.step(Input::Stop { grace_ms: 10_000 }, 0)), [&hook(0), &hook(1)]);
    assert_eq!(pod.step(answer(0, 0, task, Handled::Success), 1000), [], "it is not its turn");
    assert_eq!(pod.step(answer(1, 0, task, Handled::Success), 2000), [Effect::Terminate { index: 1 }]);
    assert!(end(&mut pod, 1, 0, ExitStatus::exited(0), 3000).contains(&Effect::Terminate { index: 0 }));
    // Without time nothing is asked.
    let mut pod = running(&[Sidecar, Main], RestartPolicy::Always);
    let killed = [&Effect::Kill { index: 0 }, &Effect::Kill { index: 1 }];
    assert_eq!(deeds(&pod.step(Input::Stop { grace_ms: 0 }, 0)), killed);
}

#[test]
fn a_pod_at_its_deadline_says_so_and_is_stopped() {
    let mut pod = Machine::of_rules(roles(&[Init, Main], RestartPolicy::Never), 2000, Some(60_000));
    assert_eq!(pod.deadline(), None);
    pod.step(Input::Boot, 1000);
    run(&mut pod, 0, 0, 1000);
    assert_eq!(pod.deadline(), Some(61_000));
    let effects = pod.step(Input::Tick, 61_000);
    assert!(matches!(kinds(&effects)[..], [EventKind::DeadlineExceeded, EventKind::ShuttingDown]));
    assert_eq!(deeds(&effects), [&Effect::Terminate { index: 0 }]);
    assert_eq!(pod.deadline(), Some(63_000));
    assert!(end(&mut pod, 0, 0, ExitStatus::exited(0), 61_001).ends_with(&OVER));
}

fn any_role() -> impl Strategy<Value = Role> {
    prop_oneof![Just(Init), Just(Sidecar)]
}

fn any_policy() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)]
}

/// A pod whose effects are answered at random.
struct World {
    pod: Machine,
    now: u64,
    pending: Vec<Input>,
    alive: Vec<Option<u32>>,
    all: Vec<Effect>,
    /// Sidecars that were asked to end, when, and whether everything behind them was over by then.
    asked: Vec<(usize, u64, bool)>,
}

impl World {
    fn new(roles_: &[Role], policy: RestartPolicy) -> Self {
        let rules = with_startup_probe(roles(roles_, policy), 0);
        let pod = machine(rules);
        let mut world = Self {
            pod,
            now: 0,
            pending: vec![],
            alive: vec![None; roles_.len()],
            all: vec![],
            asked: vec![],
        };
        world.feed(Input::Boot);
        world
    }

    fn feed(&mut self, input: Input) {
        if self.all.last() == Some(&Effect::Finish) {
            return;
        }
        for effect in self.pod.step(input, self.now) {
            if let Effect::Terminate { index } = &effect
                && self.pod.containers[*index].role() == Sidecar
            {
                let is_last = self.pod.containers[index + 1..].iter().all(Container::is_over);
                self.asked.push((*index, self.now, is_last));
            }
            match &effect {
                Effect::Create { index, run } => {
                    self.pending.push(news(*index, *run, News::Created { pid: 1 }));
                }
                Effect::Start { index } => {
                    let run = self.pod.run(*index).unwrap();
                    self.alive[*index] = Some(run);
                    self.pending.push(news(*index, run, News::Started));
                }
                Effect::Handle { index, run, task, .. } => {
                    let said = if self.now.is_multiple_of(3) {
                        Handled::Failure(String::new())
                    } else {
                        Handled::Success
                    };
                    self.pending.push(answer(*index, *run, *task, said));
                }
                Effect::Terminate { index } if !self.now.is_multiple_of(4) => self.end(*index, 0),
                Effect::Kill { index } => self.end(*index, 137),
                _ => {}
            }
            self.all.push(effect);
        }
    }

    fn end(&mut self, index: usize, code: i32) {
        if let Some(run) = self.alive[index].take() {
            self.pending.push(news(index, run, ended(ExitStatus::exited(code))));
            self.pending.push(news(index, run, DRAINED));
        }
    }

    fn turn(&mut self, choice: u8) {
        self.now += 1;
        match choice % 6 {
            0 => self.end(usize::from(choice / 6) % self.alive.len(), i32::from(choice % 4 / 3)),
            1 => {
                self.now = self.pod.deadline().map_or(self.now, |at| at.max(self.now));
                self.feed(Input::Tick);
            }
            _ if self.pending.is_empty() => {}
            _ => {
                let input = self.pending.remove(0);
                self.feed(input);
            }
        }
    }
}

proptest! {
    /// In any history: an init container or sidecar is created only when everything before it is through, a main container only when
    /// all of them are; nothing starts in a pod that stops or has failed; while the pod stops, a sidecar is asked only after everything
    /// behind it has ended or the grace period is over; and the pod ends in time.
    #[test]
    fn the_order_is_kept(
        before in prop::collection::vec(any_role(), 1..4), mains in 1..3usize, policy in any_policy(),
        turns in prop::collection::vec(any::<u8>(), 0..120), after in prop::collection::vec(any::<u8>(), 0..60),
        grace_ms in 1..20_000u64,
    ) {
        let roles: Vec<Role> = before.iter().copied().chain(std::iter::repeat_n(Main, mains)).collect();
        let mut world = World::new(&roles, policy);
        turns.iter().for_each(|&choice| world.turn(choice));
        let (mut made, mut through, mut failed) = (0, vec![false; roles.len()], false);
        for effect in &world.all {
            match effect {
                Effect::Create { index, run: 0 } => {
                    prop_assert!(!failed);
                    let needed = if roles[*index] == Main { before.len() } else { *index };
                    prop_assert!(through[..needed].iter().all(|&through| through), "{index} of {roles:?}");
                    made += 1;
                }
                Effect::Emit(EventKind::ContainerExited { container, exit, restart_in_ms: None, .. }) => {
                    let index: usize = container.as_str()[1..].parse().unwrap();
                    through[index] |= roles[index] == Init && exit.code == 0;
                    failed |= roles[index] == Init && exit.code != 0;
                }
                Effect::Emit(
                    EventKind::ContainerCondition { container, started: true, .. }
                    | EventKind::ContainerStarted { container, ready: true, .. },
                ) => {
                    let index: usize = container.as_str()[1..].parse().unwrap();
                    through[index] |= roles[index] == Sidecar;
                }
                Effect::Emit(EventKind::PodStarted) => prop_assert!(made == roles.len() && !failed),
                _ => {}
            }
        }
        prop_assume!(world.all.last() != Some(&Effect::Finish));
        let (stopped_at, seen, asked) = (world.now, world.all.len(), world.asked.len());
        let stopping = matches!(world.pod.phase, Phase::Stopping(_));
        world.feed(Input::Stop { grace_ms });
        after.iter().for_each(|&choice| world.turn(choice));
        let mut ticks = 0;
        while world.all.last() != Some(&Effect::Finish) {
            world.now = world.pod.deadline().unwrap().max(world.now);
            world.feed(Input::Tick);
            while !world.pending.is_empty() && world.now.is_multiple_of(2) {
                let input = world.pending.remove(0);
                world.feed(input);
            }
            ticks += 1;
            prop_assert!(ticks < 200);
        }
        prop_assert!(world.now <= stopped_at + grace_ms + GUEST_TEARDOWN_MS + u64::try_from(after.len()).unwrap());
        let stop = &world.all[seen..];
        let begins = stop.iter().any(|e| matches!(e, Effect::Create { .. } | Effect::Start { .. }));
        prop_assert!(!begins);
        let exits = |effects: &[Effect]| effects.iter().filter(|e| matches!(e, Effect::Ended { .. })).count();
        prop_assert!(stopping || exits(stop) <= roles.len());
        for (index, at, is_last) in &world.asked[asked..] {
            prop_assert!(stopping || *is_last || *at >= stopped_at + grace_ms, "sidecar {index} at {at}");
        }
        prop_assert!(stop.ends_with(&OVER));
    }
}
