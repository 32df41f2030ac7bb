use super::super::container::DRAIN_MS;
use super::*;
use crate::machine::News;
use magikvm_proto::lifecycle::{Hooks, Probes};
use magikvm_proto::limits::{MAX_CONTAINERS_PER_POD, MAX_INIT_CONTAINERS_PER_POD, MAX_LINE_LEN};
use magikvm_proto::plan::RestartPolicy;
use magikvm_proto::state::WaitingReason;
use magikvm_proto::wire::{ExitStatus, Reply, Status};
use proptest::prelude::*;

pub(in crate::machine) fn rules(index: usize, role: Role, policy: RestartPolicy) -> Rules {
    Rules {
        name: format!("c{index}").parse().unwrap(),
        role,
        policy,
        restarts: Vec::new(),
        probes: Probes::default(),
        hooks: Hooks::default(),
        grace_ms: 30_000,
        first_reason: WaitingReason::ContainerCreating,
    }
}

/// A pod of main containers.
fn machine(policy: RestartPolicy, count: usize) -> Machine {
    Machine::of_rules((0..count).map(|index| rules(index, Role::Main, policy)), 30_000, None)
}

pub(in crate::machine) fn news(index: usize, run: u32, news: News) -> Input {
    Input::Container { index, run, news }
}

pub(super) fn created(index: usize) -> Input {
    news(index, 0, News::Created { pid: 100 + i32::try_from(index).unwrap() })
}

pub(super) fn ended(exit: ExitStatus) -> News {
    News::Ended { exit, message: None }
}

pub(super) const DRAINED: News = News::Drained { tail: None };

fn failed() -> News {
    News::Failed { program: None, message: "no program".to_owned() }
}

/// The events, without those about readiness and the beginning of an end.
pub(in crate::machine) fn kinds(effects: &[Effect]) -> Vec<&EventKind> {
    let aside = |kind: &&EventKind| {
        !matches!(kind, EventKind::ContainerCondition { .. } | EventKind::ContainerKilling { .. })
    };
    effects
        .iter()
        .filter_map(|effect| if let Effect::Emit(kind) = effect { Some(kind) } else { None })
        .filter(aside)
        .collect()
}

/// What is done, without events.
pub(super) fn deeds(effects: &[Effect]) -> Vec<&Effect> {
    effects.iter().filter(|effect| !matches!(effect, Effect::Emit(_))).collect()
}

/// Creates and starts every container.
fn running(policy: RestartPolicy, count: usize) -> Machine {
    let mut machine = machine(policy, count);
    machine.step(Input::Boot, 0);
    (0..count).for_each(|index| drop(machine.step(created(index), 0)));
    let last = (0..count).map(|index| machine.step(news(index, 0, News::Started), 0)).last().unwrap();
    assert!(kinds(&last).contains(&&EventKind::PodStarted));
    machine
}

pub(super) fn end(machine: &mut Machine, index: usize, run: u32, exit: ExitStatus, now: u64) -> Vec<Effect> {
    let mut effects = machine.step(news(index, run, ended(exit)), now);
    effects.extend(machine.step(news(index, run, DRAINED), now));
    effects
}

/// The last events of a pod that is over.
pub(super) const OVER: [Effect; 2] = [Effect::Emit(EventKind::PodEnded), Effect::Finish];

#[test]
fn no_container_starts_before_all_are_created() {
    let mut machine = machine(RestartPolicy::Never, 2);
    assert_eq!(
        machine.step(Input::Boot, 0),
        [Effect::Create { index: 0, run: 0 }, Effect::Create { index: 1, run: 0 }]
    );
    assert!(!machine.step(created(1), 0).contains(&Effect::Start { index: 1 }));
    let effects = machine.step(created(0), 0);
    assert!(effects.contains(&Effect::Start { index: 0 }) && effects.contains(&Effect::Start { index: 1 }));
}

#[test]
fn one_failure_takes_everything_back() {
    let mut machine = machine(RestartPolicy::Always, 3);
    machine.step(Input::Boot, 0);
    machine.step(created(0), 0);
    let effects = machine.step(news(1, 0, failed()), 0);
    // The third is still being made; it is given up too.
    assert!(effects.contains(&Effect::Kill { index: 0 }) && effects.contains(&Effect::Kill { index: 2 }));
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerFailed { restart_in_ms: None, .. }]));
    assert_eq!(machine.step(created(2), 0), []);
    assert!(machine.status(0).iter().all(|status| status.state.terminated().is_some()));
    assert_eq!(machine.deadline(), None, "it waits for the host's word");
    let effects = machine.step(Input::Stop { grace_ms: 1000 }, 5);
    assert_eq!(effects[1..], OVER);
}

#[test]
fn a_failed_start_kills_those_that_run_and_tells_their_end() {
    let mut machine = machine(RestartPolicy::Always, 2);
    machine.step(Input::Boot, 0);
    machine.step(created(0), 0);
    machine.step(created(1), 0);
    machine.step(news(0, 0, News::Started), 0);
    let effects = machine.step(news(1, 0, failed()), 0);
    assert!(effects.contains(&Effect::Kill { index: 0 }));
    let effects = end(&mut machine, 0, 0, ExitStatus::signaled(9), 1);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { restart_in_ms: None, .. }]));
}

#[test]
fn an_end_that_comes_before_its_start_is_told_after_the_pods_start() {
    let mut machine = machine(RestartPolicy::Never, 2);
    machine.step(Input::Boot, 0);
    machine.step(created(0), 0);
    machine.step(created(1), 0);
    assert_eq!(end(&mut machine, 0, 0, ExitStatus::exited(0), 1), []);
    assert!(matches!(
        kinds(&machine.step(news(0, 0, News::Started), 1))[..],
        [EventKind::ContainerStarted { .. }]
    ));
    let effects = machine.step(news(1, 0, News::Started), 2);
    assert!(matches!(
        kinds(&effects)[..],
        [EventKind::ContainerStarted { .. }, EventKind::PodStarted, EventKind::ContainerExited { .. }]
    ));
}

#[test]
fn a_pod_whose_containers_have_all_ended_for_good_ends_by_itself() {
    let mut machine = running(RestartPolicy::OnFailure, 2);
    let effects = end(&mut machine, 0, 0, ExitStatus::exited(0), 1);
    assert!(!effects.contains(&Effect::Finish));
    let effects = end(&mut machine, 1, 0, ExitStatus::exited(1), 2);
    assert!(!effects.contains(&Effect::Finish), "it is started again");
    machine.step(news(1, 1, News::Created { pid: 1 }), 3);
    machine.step(news(1, 1, News::Started), 4);
    let effects = end(&mut machine, 1, 1, ExitStatus::exited(0), 5);
    assert!(matches!(effects[1], Effect::Emit(EventKind::ContainerExited { .. })));
    assert_eq!(effects[2..], OVER);
    assert_eq!((machine.step(Input::Stop { grace_ms: 0 }, 6), machine.deadline()), (vec![], None));
}

#[test]
fn a_pod_whose_containers_were_faster_than_its_start_ends_after_it() {
    let mut machine = machine(RestartPolicy::Never, 1);
    machine.step(Input::Boot, 0);
    machine.step(created(0), 0);
    end(&mut machine, 0, 0, ExitStatus::exited(0), 1);
    let effects = machine.step(news(0, 0, News::Started), 2);
    assert!(matches!(
        kinds(&effects)[..],
        [
            EventKind::ContainerStarted { .. },
            EventKind::PodStarted,
            EventKind::ContainerExited { .. },
            EventKind::PodEnded
        ]
    ));
    assert_eq!(effects.last(), Some(&Effect::Finish));
}

#[test]
fn a_pod_without_a_plan_ends_when_it_is_asked_to() {
    let mut machine = Machine::without_plan();
    assert_eq!((machine.step(Input::Tick, 1), machine.deadline()), (vec![], None));
    assert_eq!(machine.step(Input::Stop { grace_ms: 30_000 }, 2)[1..], OVER);
}

#[test]
fn sixteen_slow_containers_have_the_whole_grace_period_each() {
    let count = MAX_CONTAINERS_PER_POD;
    let mut machine = running(RestartPolicy::Always, count);
    let effects = machine.step(Input::Stop { grace_ms: 30_000 }, 0);
    let all: Vec<Effect> = (0..count).map(|index| Effect::Terminate { index }).collect();
    assert_eq!(deeds(&effects), all.iter().collect::<Vec<_>>(), "all are asked at once");
    assert_eq!(machine.deadline(), Some(30_000));
    let mut effects = Vec::new();
    for index in 0..count {
        effects.extend(end(&mut machine, index, 0, ExitStatus::exited(0), 29_990));
        assert!(effects.iter().all(|effect| !matches!(effect, Effect::Kill { .. })));
    }
    assert!(effects.ends_with(&OVER));
    let fine = |status: &ContainerStatus| status.state.terminated().unwrap().exit == ExitStatus::exited(0);
    assert!(machine.status(0).iter().all(fine));
}

#[test]
fn those_that_are_left_after_the_grace_period_are_killed() {
    let mut machine = running(RestartPolicy::Always, 3);
    machine.step(Input::Stop { grace_ms: 3000 }, 0);
    let effects = end(&mut machine, 1, 0, ExitStatus::exited(0), 1100);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { restart_in_ms: None, .. }]));
    assert_eq!(machine.step(Input::Tick, 2999), []);
    let effects = machine.step(Input::Tick, 3000);
    assert_eq!(effects, [Effect::Kill { index: 0 }, Effect::Kill { index: 2 }]);
    end(&mut machine, 0, 0, ExitStatus::signaled(9), 3001);
    assert!(end(&mut machine, 2, 0, ExitStatus::signaled(9), 3002).ends_with(&OVER));
}

#[test]
fn a_stop_without_grace_kills_at_once() {
    let mut machine = running(RestartPolicy::Always, 1);
    let effects = machine.step(Input::Stop { grace_ms: 0 }, 0);
    assert_eq!(kinds(&effects), [&EventKind::ShuttingDown]);
    assert_eq!(deeds(&effects), [&Effect::Kill { index: 0 }]);
}

#[test]
fn a_second_stop_can_shorten_the_grace_period_only() {
    let mut machine = running(RestartPolicy::Always, 1);
    machine.step(Input::Stop { grace_ms: 3000 }, 0);
    assert_eq!(machine.step(Input::Stop { grace_ms: 9000 }, 1), []);
    assert_eq!(machine.deadline(), Some(3000));
    assert_eq!(machine.step(Input::Stop { grace_ms: 1000 }, 2), []);
    assert_eq!(machine.deadline(), Some(1002));
    assert_eq!(machine.step(Input::Stop { grace_ms: 0 }, 3), [Effect::Kill { index: 0 }]);
    assert_eq!(machine.step(Input::Stop { grace_ms: 0 }, 4), []);
}

#[test]
fn an_end_is_told_even_when_nobody_takes_the_last_output() {
    let mut machine = running(RestartPolicy::Always, 1);
    machine.step(Input::Stop { grace_ms: 0 }, 0);
    assert_eq!(machine.step(news(0, 0, ended(ExitStatus::signaled(9))), 1), []);
    let effects = machine.step(Input::Tick, machine.deadline().unwrap());
    assert!(matches!(
        kinds(&effects)[..],
        [EventKind::ContainerExited { restart_in_ms: None, .. }, EventKind::PodEnded]
    ));
    assert_eq!(effects.last(), Some(&Effect::Finish));
}

#[test]
fn the_longest_status_fits_on_a_line() {
    let longest = |index: usize| format!("{}{index:02}", "x".repeat(61)).parse().unwrap();
    let count = MAX_INIT_CONTAINERS_PER_POD + MAX_CONTAINERS_PER_POD;
    let all = 0..count;
    let rules = all.clone().map(|index| Rules {
        name: longest(index),
        ..rules(index, if index < 16 { Role::Sidecar } else { Role::Main }, RestartPolicy::Always)
    });
    let mut machine = Machine::of_rules(rules, 30_000, None);
    machine.step(Input::Boot, 0);
    for _ in 0..2 {
        all.clone().for_each(|index| drop(machine.step(created(index), 0)));
        all.clone().for_each(|index| drop(machine.step(news(index, 0, News::Started), 0)));
        all.clone().take(16).for_each(|index| {
            drop((machine.step(created(index), 0), machine.step(news(index, 0, News::Started), 0)))
        });
    }
    let oom = ExitStatus { oom_killed: true, timed_out: true, ..ExitStatus::signaled(31) };
    all.clone().for_each(|index| drop(end(&mut machine, index, 0, oom, 0)));
    let message = "\x1b".repeat(10_000);
    all.for_each(|index| {
        drop(machine.step(news(index, 1, News::Failed { program: None, message: message.clone() }), 1))
    });
    machine.step(Input::Stop { grace_ms: 0 }, 2);
    let reply = Reply::Ok(Status { containers: machine.status(u64::MAX / 2), last_event: u64::MAX });
    let bytes = serde_json::to_vec(&reply).unwrap().len();
    assert!(bytes < MAX_LINE_LEN, "{bytes} bytes");
}

/// Answers effects in a random order, with containers that may fail, end, or refuse to end.
struct World {
    machine: Machine,
    now: u64,
    /// What may happen next, per container.
    pending: Vec<Input>,
    all: Vec<Effect>,
    alive: Vec<Option<u32>>,
}

impl World {
    fn new(policy: RestartPolicy, count: usize) -> Self {
        let machine = machine(policy, count);
        let mut world = Self { machine, now: 0, pending: vec![], all: vec![], alive: vec![None; count] };
        world.feed(Input::Boot, 1);
        world
    }

    fn feed(&mut self, input: Input, choice: u8) {
        // With the last effect the sandbox ends, and its time with it.
        if self.all.last() == Some(&Effect::Finish) {
            return;
        }
        for effect in self.machine.step(input, self.now) {
            self.answer(&effect, choice);
            self.all.push(effect);
        }
    }

    fn answer(&mut self, effect: &Effect, choice: u8) {
        let run = |world: &Self, index: usize| world.machine.run(index).unwrap();
        match *effect {
            Effect::Create { index, run } => {
                let made = if choice.is_multiple_of(11) { failed() } else { News::Created { pid: 1 } };
                self.pending.push(news(index, run, made));
            }
            Effect::Start { index } => {
                let run = run(self, index);
                self.alive[index] = Some(run);
                let started = if choice.is_multiple_of(13) { failed() } else { News::Started };
                self.pending.push(news(index, run, started));
            }
            Effect::Kill { index } => self.end(index, ExitStatus::signaled(9)),
            Effect::Terminate { index } if !choice.is_multiple_of(3) => {
                self.end(index, ExitStatus::exited(0));
            }
            _ => {}
        }
    }

    fn end(&mut self, index: usize, exit: ExitStatus) {
        if let Some(run) = self.alive[index].take() {
            self.pending.push(news(index, run, ended(exit)));
            self.pending.push(news(index, run, DRAINED));
        }
    }

    fn turn(&mut self, choice: u8) {
        let count = self.alive.len();
        match choice % 5 {
            0 if !self.pending.is_empty() => {
                let input = self.pending.remove(usize::from(choice) % self.pending.len());
                self.feed(input, choice);
            }
            1 => self.end(usize::from(choice) % count, ExitStatus::exited(i32::from(choice % 2))),
            2 => {
                self.now = self.machine.deadline().map_or(self.now + 1, |at| at.max(self.now));
                self.feed(Input::Tick, choice);
            }
            _ if !self.pending.is_empty() => {
                let input = self.pending.remove(0);
                self.feed(input, choice);
            }
            _ => {}
        }
    }
}

fn any_policy() -> impl Strategy<Value = RestartPolicy> {
    prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)]
}

/// What must hold of the end, whatever the history: it is reported once, after everything else, and only of a pod that is over.
fn check_end(machine: &Machine, all: &[Effect]) -> Result<(), TestCaseError> {
    let count = |wanted: &Effect| all.iter().filter(|effect| *effect == wanted).count();
    prop_assert_eq!(count(&OVER[0]), count(&OVER[1]));
    if count(&Effect::Finish) > 0 {
        prop_assert_eq!(count(&Effect::Finish), 1);
        prop_assert!(all.ends_with(&OVER));
        prop_assert_eq!(machine.deadline(), None);
    }
    Ok(())
}

/// Every end belongs to a container that was started, and was reported once.
fn check_pairs(machine: &Machine, all: &[Effect]) -> Result<(), TestCaseError> {
    for status in machine.status(0) {
        let of = |kind: &EventKind| match kind {
            EventKind::ContainerStarted { container, .. } if *container == status.name => 1,
            EventKind::ContainerExited { container, .. } if *container == status.name => -1,
            _ => 0,
        };
        let mut open = 0;
        for kind in kinds(all) {
            open += of(kind);
            prop_assert!(open == 0 || open == 1);
        }
        prop_assert!(open == 0 || status.state.terminated().is_none());
    }
    Ok(())
}

fn any_input() -> impl Strategy<Value = Input> {
    let told = prop_oneof![
        Just(News::Created { pid: 1 }),
        Just(News::Started),
        Just(failed()),
        (0..2i32).prop_map(|code| ended(ExitStatus::exited(code))),
        Just(DRAINED),
    ];
    prop_oneof![
        1 => Just(Input::Boot),
        4 => Just(Input::Tick),
        1 => (0..5000u64).prop_map(|grace_ms| Input::Stop { grace_ms }),
        30 => (0..5usize, 0..3u32, told).prop_map(|(index, run, news)| Input::Container { index, run, news }),
    ]
}

proptest! {
    /// Holds also if the news make no sense.
    #[test]
    fn any_history_is_survived(
        policy in any_policy(), count in 1..5usize,
        inputs in prop::collection::vec((any_input(), 0..3000u64), 0..200),
    ) {
        let mut machine = machine(policy, count);
        let (mut now, mut all) = (0, Vec::new());
        for (input, pause) in inputs {
            now += pause;
            all.extend(machine.step(input, now));
            if let Some(at) = machine.deadline().filter(|&at| at < now) {
                // A late tick is not lost.
                all.extend(machine.step(Input::Tick, now));
                prop_assert!(machine.deadline().is_none_or(|next| next > at));
            }
        }
        check_end(&machine, &all)?;
        check_pairs(&machine, &all)?;
    }

    #[test]
    fn the_first_start_is_all_or_nothing(
        policy in any_policy(), count in 1..5usize,
        turns in prop::collection::vec(any::<u8>(), 0..150),
    ) {
        let mut world = World::new(policy, count);
        turns.iter().for_each(|&choice| world.turn(choice));
        let position = |wanted: fn(&Effect) -> bool| world.all.iter().position(wanted);
        let pod_started = position(|e| matches!(e, Effect::Emit(EventKind::PodStarted)));
        let failed_for_good =
            position(|e| matches!(e, Effect::Emit(EventKind::ContainerFailed { restart_in_ms: None, .. })));
        if let Some(start) = position(|e| matches!(e, Effect::Start { .. })) {
            let created = |e: &&Effect| matches!(e, Effect::Emit(EventKind::ContainerCreated { .. }));
            prop_assert!(world.all[..start].iter().filter(created).count() >= count);
        }
        match (pod_started, failed_for_good) {
            (None, Some(failed)) => {
                let makes = world.all[failed..].iter().any(|e| matches!(e, Effect::Create { .. }));
                prop_assert!(!makes);
                prop_assert!(!world.all.contains(&Effect::Finish), "it waits for the host's word");
            }
            (Some(_), Some(_)) => return Err(TestCaseError::fail("a restart that fails must be tried again")),
            _ => {}
        }
        check_end(&world.machine, &world.all)?;
        check_pairs(&world.machine, &world.all)?;
    }

    #[test]
    fn a_stop_always_ends_in_time_asks_all_at_once_and_makes_nothing_new(
        policy in any_policy(), count in 1..5usize, before in prop::collection::vec(any::<u8>(), 0..80),
        after in prop::collection::vec(any::<u8>(), 0..80), grace_ms in 1..5000u64,
    ) {
        let mut world = World::new(policy, count);
        before.iter().for_each(|&choice| world.turn(choice));
        prop_assume!(world.all.last() != Some(&Effect::Finish));
        let (stopped_at, seen) = (world.now, world.all.len());
        world.feed(Input::Stop { grace_ms }, 3);
        let asked = world.all.len();
        for &choice in &after {
            let told = world.all.len();
            world.turn(choice);
            let killed = world.all[told..].iter().any(|e| matches!(e, Effect::Kill { .. }));
            let failed = matches!(choice % 5, 0 | 3 | 4);
            prop_assert!(!killed || failed || world.now >= stopped_at + grace_ms, "the grace period is whole");
        }
        // Effects that are not answered by now never will be; only time passes.
        let mut ticks = 0;
        while !world.all.contains(&Effect::Finish) {
            world.now = world.machine.deadline().unwrap().max(world.now);
            let effects = world.machine.step(Input::Tick, world.now);
            world.all.extend(effects);
            ticks += 1;
            prop_assert!(ticks < 100);
        }
        prop_assert!(world.now - stopped_at <= grace_ms + GUEST_TEARDOWN_MS);
        check_end(&world.machine, &world.all)?;
        let stop = &world.all[seen..];
        let makes = stop.iter().any(|e| matches!(e, Effect::Create { .. } | Effect::Start { .. }));
        prop_assert!(!makes);
        // Later ones were being started when all were asked to end.
        let asks = |effects: &[Effect]| effects.iter().filter(|e| matches!(e, Effect::Terminate { .. })).count();
        let starts = stop.iter().filter(|e| matches!(e, Effect::Emit(EventKind::ContainerStarted { .. })));
        prop_assert!(asks(&world.all[asked..]) <= starts.count());
    }
}

#[test]
fn a_drain_that_takes_long_does_not_hold_up_the_others() {
    let mut machine = running(RestartPolicy::Never, 2);
    machine.step(news(0, 0, ended(ExitStatus::exited(0))), 0);
    let effects = end(&mut machine, 1, 0, ExitStatus::exited(0), 1);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { .. }]));
    assert_eq!(machine.deadline(), Some(DRAIN_MS));
    assert!(machine.step(Input::Tick, DRAIN_MS).ends_with(&OVER));
}
