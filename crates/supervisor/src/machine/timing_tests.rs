//! Times on a virtual clock, checked against the rules that Kubernetes documents: "Configure Liveness, Readiness and Startup Probes" (delay,
//! period, timeout, thresholds, the grace period of a probe), "Pod Lifecycle" (restart policy and back-off, termination) and "Init Containers"
//! (the deadline of the pod).

use super::container::{Container, Effect, Input};
use super::pod::Machine;
use super::pod::tests::{kinds, news as pod_news, rules as pod_rules};
use super::rules::Rules;
use super::{Handled, News, Task};
use magikvm_proto::lifecycle::{Handler, Hooks, ProbeKind, ProbePlan, Probes, RestartRule, Role};
use magikvm_proto::plan::RestartPolicy;
use magikvm_proto::state::{ContainerState, ExitStatus};
use magikvm_proto::wire::{EventKind, KillReason};
use proptest::prelude::*;
use std::collections::HashMap;

const GRACE_MS: u64 = 30_000;
const KINDS: [ProbeKind; 3] = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];

fn rules(policy: RestartPolicy, restarts: Vec<RestartRule>, probes: Probes) -> Rules {
    Rules {
        restarts,
        probes,
        hooks: Hooks::default(),
        grace_ms: GRACE_MS,
        ..pod_rules(0, Role::Main, policy)
    }
}

fn news(run: u32, news: News) -> Input {
    Input::News { run, news }
}

/// Runs a container of a running pod until it has started at `now`.
fn start(web: &mut Container, run: u32, now: u64) -> Vec<Effect> {
    if run == 0 {
        web.step(Input::Create, now);
    }
    web.step(news(run, News::Created { pid: 7 }), now);
    web.step(Input::Start, now);
    let effects = web.step(news(run, News::Started), now);
    web.step(Input::Release, now);
    effects
}

fn any_probe() -> impl Strategy<Value = ProbePlan> {
    let times = (0..30u64, 1..20u64, 1..6u64);
    (times, 1..4u32, 1..4u32, prop::option::of(1..60u64)).prop_map(
        |((initial_delay_secs, period_secs, timeout_secs), success, failures, grace_secs)| ProbePlan {
            handler: Handler::TcpSocket { host: None, port: 1 },
            initial_delay_secs,
            period_secs,
            timeout_secs,
            success_threshold: success,
            failure_threshold: failures,
            grace_secs,
        },
    )
}

fn any_probes() -> impl Strategy<Value = Probes> {
    let of = || prop::option::of(any_probe());
    let once = |probe: ProbePlan| ProbePlan { success_threshold: 1, ..probe };
    let ungraced = |probe: ProbePlan| ProbePlan { grace_secs: None, ..probe };
    (of(), of(), of()).prop_map(move |(startup, liveness, readiness)| Probes {
        startup: startup.map(once),
        liveness: liveness.map(once),
        readiness: readiness.map(ungraced),
    })
}

/// What the documents say of one probe.
#[derive(Debug, Default)]
struct Documented {
    /// When it may begin for the first time; `None` while something has to come before it.
    open: Option<u64>,
    begun: Option<u64>,
    ended: u64,
    /// The last result, and how often it came in a row.
    row: (Option<bool>, u32),
}

impl Documented {
    fn next(&self, plan: &ProbePlan, started: u64) -> Option<u64> {
        let first = started + plan.initial_delay_secs * 1000;
        match self.begun {
            None => self.open.map(|open| open.max(first)),
            Some(begun) => Some((begun + plan.period_secs * 1000).max(self.ended)),
        }
    }

    /// Counts a result; returns whether a threshold is reached.
    fn count(&mut self, plan: &ProbePlan, good: bool) -> bool {
        self.row = if self.row.0 == Some(good) { (Some(good), self.row.1 + 1) } else { (Some(good), 1) };
        self.row.1 >= if good { plan.success_threshold } else { plan.failure_threshold }
    }
}

/// Lives a container with these probes, whose runs are answered like this after these times, and compares it with the documents.
fn follow(probes: &Probes, started: u64, answers: Vec<(u8, u64)>) -> Result<(), TestCaseError> {
    let mut web = Container::new(rules(RestartPolicy::Always, Vec::new(), probes.clone()));
    let mut all: HashMap<ProbeKind, Documented> = HashMap::new();
    let gate = probes.startup.is_some();
    for kind in KINDS.into_iter().filter(|kind| probes.get(*kind).is_some()) {
        let open = (kind == ProbeKind::Startup || !gate).then_some(started);
        all.insert(kind, Documented { open, ..Documented::default() });
    }
    let mut pending: Vec<(u64, ProbeKind, Handled)> = Vec::new();
    let mut answers = answers.into_iter();
    let (mut now, mut ready) = (started, probes.readiness.is_none() && !gate);
    let mut effects = start(&mut web, 0, now);
    let mut ends = None;
    loop {
        for effect in effects {
            match effect {
                Effect::Handle { task: Task::Probe(kind), timeout_ms, .. } => {
                    let plan = probes.get(kind).unwrap();
                    let probe = all.get_mut(&kind).unwrap();
                    prop_assert_eq!(probe.next(plan, started), Some(now), "{:?}", kind);
                    prop_assert_eq!(timeout_ms, plan.timeout_secs * 1000);
                    probe.begun = Some(now);
                    probe.ended = u64::MAX;
                    let Some((answer, took)) = answers.next() else { return Ok(()) };
                    let answer = match answer {
                        0 | 1 => Handled::Failure("no".to_owned()),
                        2 => Handled::Success,
                        _ => Handled::Error("cannot".to_owned()),
                    };
                    // The one who carries it out ends it in time.
                    pending.push((now + took.min(timeout_ms), kind, answer));
                }
                Effect::Cancel(Task::Probe(kind)) => pending.retain(|(_, one, _)| *one != kind),
                Effect::Emit(EventKind::ContainerKilling { reason, .. }) => {
                    let KillReason::Probe { probe, restarts: true } = reason else {
                        return Err(TestCaseError::fail(format!("{reason:?}")));
                    };
                    prop_assert_eq!(ends.map(|(_, kind)| kind), Some(probe));
                }
                Effect::Terminate => prop_assert_eq!(ends.map(|(at, _)| at), Some(now)),
                _ => {}
            }
        }
        prop_assert_eq!(web.status(0).ready, ready && ends.is_none());
        if let Some((at, kind)) = ends {
            prop_assert!(pending.is_empty(), "nothing is probed any more");
            let grace = probes.get(kind).unwrap().grace_secs.map_or(GRACE_MS, |secs| secs * 1000);
            prop_assert_eq!(web.deadline(), Some(at + grace));
            prop_assert_eq!(web.step(Input::Tick, at + grace - 1), []);
            prop_assert_eq!(web.step(Input::Tick, at + grace), [Effect::Kill]);
            return Ok(());
        }
        pending.sort_by_key(|(at, ..)| *at);
        let answered = pending.first().map(|(at, ..)| *at);
        let Some(next) = web.deadline().into_iter().chain(answered).min() else { return Ok(()) };
        prop_assert!(next >= now);
        now = next;
        effects = match answered {
            Some(at) if at == now => {
                let (_, kind, answer) = pending.remove(0);
                let (plan, probe) = (probes.get(kind).unwrap(), all.get_mut(&kind).unwrap());
                probe.ended = now;
                let good = match answer {
                    Handled::Success => Some(true),
                    Handled::Failure(_) => Some(false),
                    Handled::Error(_) => None,
                };
                let reached = good.is_some_and(|good| probe.count(plan, good));
                match (kind, good) {
                    (ProbeKind::Startup, Some(true)) if reached => {
                        all.remove(&kind);
                        ready = probes.readiness.is_none();
                        all.values_mut().for_each(|other| other.open = Some(now));
                    }
                    (ProbeKind::Readiness, Some(good)) if reached => ready = good,
                    (ProbeKind::Startup | ProbeKind::Liveness, Some(false)) if reached => {
                        ends = Some((now, kind));
                    }
                    _ => {}
                }
                web.step(news(0, News::Handled { task: Task::Probe(kind), answer }), now)
            }
            _ => web.step(Input::Tick, now),
        };
    }
}

proptest! {
    /// The first run of a probe follows its delay, the next ones its period, each with its timeout; the startup probe holds the others back;
    /// thresholds decide about readiness and about the end; a failed startup or liveness probe ends the container at once, with the grace
    /// period of the probe if it has one, and KILL comes exactly at its end.
    #[test]
    fn probes_keep_their_documented_times(
        probes in any_probes(), started in 0..5000u64,
        answers in prop::collection::vec((0..4u8, 0..9000u64), 1..60),
    ) {
        follow(&probes, started, answers)?;
    }

    /// The first restart follows at once, the next ones after 10 s, 20 s, 40 s and so on up to 300 s, and at once again after a run of ten
    /// minutes. Whether there is one is decided by the first rule that names the exit code, or else by the policy.
    #[test]
    fn restarts_keep_their_documented_times(
        policy in prop_oneof![Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)],
        named in prop::collection::vec(0..5i32, 0..3), not_in in any::<bool>(),
        runs in prop::collection::vec((0..5i32, prop_oneof![0..5000u64, 590_000..610_000u64]), 1..20),
    ) {
        let rule = if not_in { RestartRule::NotIn(named.clone()) } else { RestartRule::In(named.clone()) };
        let mut web = Container::new(rules(policy, vec![rule], Probes::default()));
        let (mut now, mut failures) = (0, 0u32);
        for (run, (code, ran)) in (0u32..).zip(runs) {
            start(&mut web, run, now);
            now += ran;
            web.step(news(run, News::Ended { exit: ExitStatus::exited(code), message: None }), now);
            let effects = web.step(news(run, News::Drained { tail: None }), now);
            let told = effects.iter().find_map(|effect| match effect {
                Effect::Emit(EventKind::ContainerExited { restart_in_ms, .. }) => Some(*restart_in_ms),
                _ => None,
            });
            let by_policy = match policy {
                RestartPolicy::Always => true,
                RestartPolicy::OnFailure => code != 0,
                RestartPolicy::Never => false,
            };
            if !(named.contains(&code) != not_in || by_policy) {
                prop_assert_eq!(told, Some(None));
                prop_assert!(web.is_over());
                return Ok(());
            }
            if ran >= 600_000 {
                failures = 0;
            }
            let delay = if failures == 0 { 0 } else { (10_000u64 << (failures - 1).min(5)).min(300_000) };
            failures += 1;
            prop_assert_eq!(told, Some(Some(delay)));
            let create = Effect::Create { run: run + 1 };
            if delay == 0 {
                prop_assert_eq!(effects.last(), Some(&create));
                continue;
            }
            let waits = matches!(web.status(0).state, ContainerState::Waiting { .. });
            prop_assert!(waits);
            prop_assert_eq!(web.step(Input::Tick, now + delay - 1), []);
            now += delay;
            prop_assert_eq!(web.step(Input::Tick, now), [create]);
        }
    }

    /// The deadline of a pod counts from its start, init containers included: it is told exactly then, everything that runs is asked to end,
    /// and nothing begins any more.
    #[test]
    fn the_deadline_of_a_pod_counts_its_init_containers(
        inits in prop::collection::vec((100..4000u64, any::<bool>()), 0..4), deadline_ms in 1000..10_000u64,
        grace_ms in 1..5000u64,
    ) {
        let of = |(index, (_, sidecar)): (usize, &(u64, bool))| {
            let (role, policy) = match sidecar {
                true => (Role::Sidecar, RestartPolicy::Always),
                false => (Role::Init, RestartPolicy::OnFailure),
            };
            pod_rules(index, role, policy)
        };
        let main = pod_rules(inits.len(), Role::Main, RestartPolicy::Always);
        let all = inits.iter().enumerate().map(of).chain([main]);
        let mut pod = Machine::of_rules(all, grace_ms, Some(deadline_ms));
        // When each init container that runs ends.
        let mut ends: Vec<(u64, usize)> = Vec::new();
        let (mut now, mut told, mut asked) = (0, None, 0);
        let mut effects = pod.step(super::Input::Boot, now);
        let mut running = Vec::new();
        while told.is_none() {
            let mut inputs = Vec::new();
            for effect in &effects {
                match effect {
                    super::Effect::Create { index, run } => {
                        inputs.push(pod_news(*index, *run, News::Created { pid: 1 }));
                    }
                    super::Effect::Start { index } => {
                        running.push(*index);
                        let is_init = inits.get(*index).is_some_and(|(_, sidecar)| !sidecar);
                        ends.extend(is_init.then(|| (now + inits[*index].0, *index)));
                        inputs.push(pod_news(*index, 0, News::Started));
                    }
                    super::Effect::Terminate { .. } => asked += 1,
                    super::Effect::Emit(EventKind::DeadlineExceeded) => told = Some(now),
                    _ => {}
                }
            }
            if told.is_some() {
                break;
            }
            effects = if inputs.is_empty() {
                ends.sort_unstable();
                let (end, tick) = (ends.first().copied(), pod.deadline());
                match (end, tick) {
                    (Some((at, index)), tick) if tick.is_none_or(|tick| at < tick) => {
                        now = at;
                        ends.remove(0);
                        running.retain(|one| *one != index);
                        let exit = ExitStatus::exited(0);
                        pod.step(pod_news(index, 0, News::Ended { exit, message: None }), now);
                        pod.step(pod_news(index, 0, News::Drained { tail: None }), now)
                    }
                    (_, Some(tick)) => {
                        now = tick;
                        pod.step(super::Input::Tick, now)
                    }
                    (_, None) => return Err(TestCaseError::fail("nothing happens any more")),
                }
            } else {
                inputs.into_iter().flat_map(|input| pod.step(input, now)).collect()
            };
        }
        prop_assert_eq!(told, Some(deadline_ms));
        prop_assert!(kinds(&effects).contains(&&EventKind::ShuttingDown));
        // Sidecars are asked after what is behind them.
        let first = running.iter().filter(|index| inits.get(**index).is_none_or(|(_, sidecar)| !sidecar)).count();
        prop_assert!(asked >= first.min(1));
        prop_assert!(!running.is_empty() && pod.deadline().is_some_and(|at| at <= deadline_ms + grace_ms));
        let late = pod.step(super::Input::Tick, deadline_ms + grace_ms);
        let begins = |effect: &super::Effect| {
            matches!(effect, super::Effect::Create { .. } | super::Effect::Start { .. })
        };
        prop_assert!(!effects.iter().chain(&late).any(begins));
    }
}
