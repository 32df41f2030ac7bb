use super::*;
use magikvm_proto::budget::GUEST_TEARDOWN_MS;
use proptest::prelude::*;

fn machine(policy: RestartPolicy, count: usize) -> Machine {
    Machine::new(policy, (0..count).map(|index| format!("c{index}").parse().unwrap()))
}

fn news(index: usize, run: u32, news: News) -> Input {
    Input::Container { index, run, news }
}

fn created(index: usize) -> Input {
    news(index, 0, News::Created { pid: 100 + i32::try_from(index).unwrap() })
}

fn kinds(effects: &[Effect]) -> Vec<&EventKind> {
    effects
        .iter()
        .filter_map(|effect| if let Effect::Emit(kind) = effect { Some(kind) } else { None })
        .collect()
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

fn end(machine: &mut Machine, index: usize, run: u32, exit: ExitStatus, now: u64) -> Vec<Effect> {
    let mut effects = machine.step(news(index, run, News::Ended(exit)), now);
    effects.extend(machine.step(news(index, run, News::Drained), now));
    effects
}

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
    let effects = machine.step(news(1, 0, News::Failed { message: "no program".to_owned() }), 0);
    assert!(effects.contains(&Effect::Kill { index: 0 }));
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerFailed { restart_in_ms: None, .. }]));
    // The third was still being made.
    assert_eq!(machine.step(created(2), 0), [Effect::Kill { index: 2 }]);
    assert!(machine.status().iter().all(|status| matches!(status.state, ContainerState::Terminated { .. })));
    assert_eq!(machine.deadline(), None);
    assert!(machine.step(Input::Stop { grace_ms: 1000 }, 5).contains(&Effect::Finish));
}

#[test]
fn a_failed_start_kills_those_that_run_and_tells_their_end() {
    let mut machine = machine(RestartPolicy::Always, 2);
    machine.step(Input::Boot, 0);
    machine.step(created(0), 0);
    machine.step(created(1), 0);
    machine.step(news(0, 0, News::Started), 0);
    let effects = machine.step(news(1, 0, News::Failed { message: "x".to_owned() }), 0);
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
fn an_end_waits_for_its_output_but_not_for_ever() {
    let mut machine = running(RestartPolicy::Never, 1);
    assert_eq!(machine.step(news(0, 0, News::Ended(ExitStatus::exited(1))), 10), []);
    assert_eq!(machine.deadline(), Some(10 + DRAIN_MS));
    let effects = machine.step(Input::Tick, 10 + DRAIN_MS);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { .. }]));
}

#[test]
fn restarts_wait_longer_and_longer_and_begin_anew_after_a_long_run() {
    let mut machine = running(RestartPolicy::OnFailure, 1);
    let (mut now, mut delays) = (0, Vec::new());
    for run in 0..9 {
        let effects = end(&mut machine, 0, run, ExitStatus::exited(1), now);
        let delay = kinds(&effects).iter().find_map(|kind| match kind {
            EventKind::ContainerExited { restart_in_ms, .. } => *restart_in_ms,
            _ => None,
        });
        delays.push(delay.unwrap());
        now += delay.unwrap();
        let made = if delay == Some(0) { effects } else { machine.step(Input::Tick, now) };
        assert!(made.contains(&Effect::Create { index: 0, run: run + 1 }));
        assert!(
            machine
                .step(news(0, run + 1, News::Created { pid: 1 }), now)
                .contains(&Effect::Start { index: 0 })
        );
        machine.step(news(0, run + 1, News::Started), now);
        now += if run == 6 { RESTART_BACKOFF_RESET_MS } else { 0 };
    }
    assert_eq!(delays, [0, 10_000, 20_000, 40_000, 80_000, 160_000, 300_000, 0, 10_000]);
    let effects = end(&mut machine, 0, 9, ExitStatus::exited(0), now);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { restart_in_ms: None, .. }]));
}

#[test]
fn a_restart_that_fails_is_tried_again() {
    let mut machine = running(RestartPolicy::Always, 1);
    end(&mut machine, 0, 0, ExitStatus::exited(0), 0);
    let effects = machine.step(news(0, 1, News::Failed { message: "x".to_owned() }), 5);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerFailed { restart_in_ms: Some(10_000), .. }]));
    assert!(machine.step(Input::Tick, 10_005).contains(&Effect::Create { index: 0, run: 2 }));
}

#[test]
fn a_stop_goes_from_the_last_to_the_first_and_shares_the_time() {
    let mut machine = running(RestartPolicy::Always, 3);
    let effects = machine.step(Input::Stop { grace_ms: 3000 }, 0);
    assert_eq!(effects[1..], [Effect::Terminate { index: 2 }]);
    // The last one does not listen: after its share the next is told.
    assert_eq!(machine.deadline(), Some(1000));
    assert_eq!(machine.step(Input::Tick, 1000), [Effect::Terminate { index: 1 }]);
    assert_eq!(machine.deadline(), Some(2000));
    let effects = end(&mut machine, 1, 0, ExitStatus::exited(0), 1100);
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { restart_in_ms: None, .. }]));
    assert!(effects.contains(&Effect::Terminate { index: 0 }));
    let effects = machine.step(Input::Tick, 3000);
    assert_eq!(effects, [Effect::Kill { index: 2 }, Effect::Kill { index: 0 }]);
    end(&mut machine, 0, 0, ExitStatus::signaled(9), 3001);
    assert!(end(&mut machine, 2, 0, ExitStatus::signaled(9), 3002).contains(&Effect::Finish));
}

#[test]
fn an_end_is_told_even_when_nobody_takes_the_last_output() {
    let mut machine = running(RestartPolicy::Always, 1);
    machine.step(Input::Stop { grace_ms: 0 }, 0);
    assert_eq!(machine.step(news(0, 0, News::Ended(ExitStatus::signaled(9))), 1), []);
    let effects = machine.step(Input::Tick, machine.deadline().unwrap());
    assert!(matches!(kinds(&effects)[..], [EventKind::ContainerExited { restart_in_ms: None, .. }]));
    assert_eq!(effects.last(), Some(&Effect::Finish));
}

#[test]
fn a_second_stop_changes_nothing() {
    let mut machine = running(RestartPolicy::Always, 1);
    machine.step(Input::Stop { grace_ms: 3000 }, 0);
    assert_eq!(machine.step(Input::Stop { grace_ms: 0 }, 1), []);
}

/// A world that answers effects in a random order, with containers that may fail, end, or refuse to.
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
        Self { machine, now: 0, pending: Vec::new(), all: Vec::new(), alive: vec![None; count] }
    }

    fn feed(&mut self, input: Input, choice: u8) {
        for effect in self.machine.step(input, self.now) {
            self.answer(&effect, choice);
            self.all.push(effect);
        }
    }

    fn answer(&mut self, effect: &Effect, choice: u8) {
        let run = |world: &Self, index: usize| world.machine.run(index).unwrap();
        match *effect {
            Effect::Create { index, run } => {
                let failed = News::Failed { message: String::new() };
                let made = if choice.is_multiple_of(11) { failed } else { News::Created { pid: 1 } };
                self.pending.push(news(index, run, made));
            }
            Effect::Start { index } => {
                let run = run(self, index);
                self.alive[index] = Some(run);
                let failed = News::Failed { message: String::new() };
                self.pending.push(news(
                    index,
                    run,
                    if choice.is_multiple_of(13) { failed } else { News::Started },
                ));
            }
            Effect::Kill { index } => self.end(index, ExitStatus::signaled(9)),
            Effect::Terminate { index } if !choice.is_multiple_of(3) => {
                self.end(index, ExitStatus::exited(0))
            }
            _ => {}
        }
    }

    fn end(&mut self, index: usize, exit: ExitStatus) {
        if let Some(run) = self.alive[index].take() {
            self.pending.push(news(index, run, News::Ended(exit)));
            self.pending.push(news(index, run, News::Drained));
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

proptest! {
    #[test]
    fn the_first_start_is_all_or_nothing(policy in any_policy(), count in 1..5usize, turns in prop::collection::vec(any::<u8>(), 0..150)) {
        let mut world = World::new(policy, count);
        world.feed(Input::Boot, 1);
        turns.iter().for_each(|&choice| world.turn(choice));
        let position = |wanted: fn(&Effect) -> bool| world.all.iter().position(wanted);
        let pod_started = position(|e| matches!(e, Effect::Emit(EventKind::PodStarted)));
        let failed_for_good =
            position(|e| matches!(e, Effect::Emit(EventKind::ContainerFailed { restart_in_ms: None, .. })));
        let first_start = position(|e| matches!(e, Effect::Start { .. }));
        if let Some(start) = first_start {
            let created = world.all[..start].iter().filter(|e| matches!(e, Effect::Emit(EventKind::ContainerCreated { .. }))).count();
            prop_assert_eq!(created, count);
        }
        match (pod_started, failed_for_good) {
            (None, Some(failed)) => {
                let makes = world.all[failed..].iter().any(|e| matches!(e, Effect::Create { .. }));
                prop_assert!(!makes);
            }
            (Some(_), Some(_)) => return Err(TestCaseError::fail("a restart that fails must be tried again")),
            _ => {}
        }
    }

    #[test]
    fn a_stop_always_ends_in_time_and_makes_nothing_new(
        policy in any_policy(), count in 1..5usize, before in prop::collection::vec(any::<u8>(), 0..80),
        after in prop::collection::vec(any::<u8>(), 0..80), grace_ms in 0..5000u64,
    ) {
        let mut world = World::new(policy, count);
        world.feed(Input::Boot, 1);
        before.iter().for_each(|&choice| world.turn(choice));
        let (stopped_at, seen) = (world.now, world.all.len());
        world.feed(Input::Stop { grace_ms }, 3);
        // With the last effect the VM ends, and its time with it.
        for &choice in &after {
            if !world.all.contains(&Effect::Finish) {
                world.turn(choice);
            }
        }
        // Whatever has not been answered by now never will be; only time passes.
        let mut ticks = 0;
        while !world.all.contains(&Effect::Finish) {
            world.now = world.machine.deadline().unwrap().max(world.now);
            let effects = world.machine.step(Input::Tick, world.now);
            world.all.extend(effects);
            ticks += 1;
            prop_assert!(ticks < 100);
        }
        prop_assert!(world.now - stopped_at <= grace_ms + GUEST_TEARDOWN_MS);
        let stop = &world.all[seen..];
        prop_assert_eq!(stop.iter().filter(|e| **e == Effect::Finish).count(), 1);
        let makes = stop.iter().any(|e| matches!(e, Effect::Create { .. } | Effect::Start { .. }));
        prop_assert!(!makes);
        let told: Vec<usize> = stop.iter().filter_map(|e| if let Effect::Terminate { index } = e { Some(*index) } else { None }).collect();
        prop_assert!(told.windows(2).all(|pair| pair[0] > pair[1]), "{:?}", told);
    }

    #[test]
    fn every_container_that_starts_is_told_to_end_once(
        policy in any_policy(), count in 1..5usize, turns in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut world = World::new(policy, count);
        world.feed(Input::Boot, 1);
        turns.iter().for_each(|&choice| world.turn(choice));
        for status in world.machine.status() {
            let of = |kind: &EventKind| match kind {
                EventKind::ContainerStarted { container, .. } if *container == status.name => 1,
                EventKind::ContainerExited { container, .. } if *container == status.name => -1,
                _ => 0,
            };
            let mut open = 0;
            for kind in kinds(&world.all) {
                open += of(kind);
                prop_assert!(open == 0 || open == 1);
            }
        }
    }
}
