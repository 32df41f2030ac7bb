//! What happens to a container while its program runs: its hooks, its probes and its end. Owns: nothing; the state is that of
//! [`super::Container`]. The order is in the module's documentation.

use super::{Asked, Container, Effect, Hook, Phase};
use crate::machine::ending::{Act, Ending, Turn};
use crate::machine::probe::{Change, Probe};
use crate::machine::{Handled, Task};
use magikvm_proto::lifecycle::{HookKind, ProbeKind, Role};
use magikvm_proto::state::ExitStatus;
use magikvm_proto::wire::{EventKind, KillReason};

impl Container {
    /// Begins to end a run, or shortens its grace period.
    pub(super) fn stop(
        &mut self,
        kill_at: u64,
        turn: Turn,
        why: KillReason,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(ending) = &mut self.ending {
            ending.shorten(kill_at);
            return self.end_on(|ending| ending.tick(now), now, effects);
        }
        match self.phase {
            // Before its program runs, no process can receive the signal; it is ended after the start.
            Phase::Starting { .. } => match self.asked {
                Asked::Nothing => self.asked = Asked::Stop { kill_at, turn },
                Asked::Stop { kill_at: earlier, .. } => {
                    self.asked = Asked::Stop { kill_at: earlier.min(kill_at), turn };
                }
                Asked::Kill => {}
            },
            Phase::Running { .. } => {
                let container = self.rules.name.clone();
                effects.push(Effect::Emit(EventKind::ContainerKilling { container, reason: why }));
                self.cancel(effects);
                self.ready = false;
                let has_hook = self.rules.hooks.pre_stop.is_some() && kill_at > now;
                let (ending, acts) = Ending::begin(has_hook, turn, kill_at, now);
                self.ending = Some(ending);
                self.act(acts, now, effects);
            }
            _ => {}
        }
    }

    /// Goes on with the end of a run, if it has begun.
    pub(super) fn end_on(
        &mut self,
        next: impl FnOnce(&mut Ending) -> Vec<Act>,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        if let (Some(ending), Phase::Running { .. }) = (&mut self.ending, &self.phase) {
            let acts = next(ending);
            self.act(acts, now, effects);
        } else if let Asked::Stop { turn, .. } = &mut self.asked {
            *turn = Turn::Now;
        }
    }

    fn act(&mut self, acts: Vec<Act>, now: u64, effects: &mut Vec<Effect>) {
        let kill_at = self.ending.as_ref().map_or(now, Ending::kill_at);
        let task = Task::Hook(HookKind::PreStop);
        effects.extend(acts.into_iter().map(|act| match act {
            Act::RunHook => Effect::Handle { run: self.run, task, timeout_ms: kill_at.saturating_sub(now) },
            Act::CancelHook => Effect::Cancel(task),
            Act::Ask => Effect::Terminate,
            Act::Kill => Effect::Kill,
        }));
    }

    pub(super) fn kill(&mut self, effects: &mut Vec<Effect>) {
        match self.phase {
            Phase::Starting { .. } => {
                self.asked = Asked::Kill;
                effects.push(Effect::Kill);
            }
            Phase::Running { .. } => {
                if self.ending.is_none() {
                    let container = self.rules.name.clone();
                    let reason = KillReason::Stop;
                    effects.push(Effect::Emit(EventKind::ContainerKilling { container, reason }));
                }
                self.cancel(effects);
                self.ready = false;
                let ending = self.ending.get_or_insert_with(|| Ending::begin(false, Turn::Later, 0, 0).0);
                let acts = ending.kill();
                self.act(acts, 0, effects);
            }
            _ => {}
        }
    }

    /// Gives up the probes and the postStart hook.
    pub(super) fn cancel(&mut self, effects: &mut Vec<Effect>) {
        for probe in &mut self.probes {
            if probe.stop() {
                effects.push(Effect::Cancel(Task::Probe(probe.kind())));
            }
        }
        if matches!(self.phase, Phase::Running { hook: Hook::Runs, .. }) && self.ending.is_none() {
            effects.push(Effect::Cancel(Task::Hook(HookKind::PostStart)));
        }
    }

    /// Sets whether it is ready, and tells a change.
    fn condition(&mut self, ready: bool, effects: &mut Vec<Effect>) {
        if self.ready != ready {
            self.ready = ready;
            self.tell_condition(effects);
        }
    }

    fn tell_condition(&self, effects: &mut Vec<Effect>) {
        let (container, started, ready) = (self.rules.name.clone(), self.started, self.ready);
        effects.push(Effect::Emit(EventKind::ContainerCondition { container, started, ready }));
    }

    pub(super) fn runs(
        &mut self,
        pid: i32,
        ended: Option<(ExitStatus, Option<String>)>,
        now: u64,
        effects: &mut Vec<Effect>,
    ) {
        let has_hook = self.rules.hooks.post_start.is_some();
        let hook = if has_hook { Hook::Runs } else { Hook::Done };
        self.phase = Phase::Running { since: now, hook };
        let (container, restart_count) = (self.rules.name.clone(), self.run);
        let ready = self.is_ready_at_once() && ended.is_none() && self.asked == Asked::Nothing;
        let started =
            EventKind::ContainerStarted { container, pid, restart_count, post_start: has_hook, ready };
        effects.push(Effect::Emit(started));
        if let Some((exit, message)) = ended {
            self.phase = Phase::Running { since: now, hook: Hook::Done };
            return self.ended(exit, message, now, now, effects);
        }
        if self.asked == Asked::Nothing && has_hook {
            let timeout_ms = u64::MAX;
            effects.push(Effect::Handle { run: self.run, task: Task::Hook(HookKind::PostStart), timeout_ms });
        } else if self.asked == Asked::Nothing {
            self.begin_probes(now, effects);
        }
        match std::mem::replace(&mut self.asked, Asked::Nothing) {
            Asked::Nothing => {}
            Asked::Stop { kill_at, turn } => {
                self.phase = Phase::Running { since: now, hook: Hook::Done };
                self.stop(kill_at, turn, KillReason::Stop, now, effects);
            }
            Asked::Kill => {
                self.phase = Phase::Running { since: now, hook: Hook::Done };
                self.kill(effects);
            }
        }
    }

    /// Whether it has neither a hook nor a probe to wait for.
    fn is_ready_at_once(&self) -> bool {
        let waits = |probe: &Probe| probe.kind() != ProbeKind::Liveness;
        let waits = self.rules.hooks.post_start.is_some() || self.probes.iter().any(waits);
        self.rules.role != Role::Init && !waits
    }

    /// The postStart hook is done: the container counts as running.
    fn begin_probes(&mut self, now: u64, effects: &mut Vec<Effect>) {
        let Phase::Running { since, hook } = &mut self.phase else { return };
        *hook = Hook::Done;
        let since = *since;
        if self.rules.role == Role::Init {
            return;
        }
        match self.probes.iter_mut().find(|probe| probe.kind() == ProbeKind::Startup) {
            None => self.has_started(since, now, effects),
            Some(startup) => {
                startup.begin(since, now);
                self.tell_condition(effects);
                self.run_probes(now, effects);
            }
        }
    }

    fn has_started(&mut self, since: u64, now: u64, effects: &mut Vec<Effect>) {
        (self.started, self.has_been_started, self.ready) = (true, true, true);
        for probe in self.probes.iter_mut().filter(|probe| probe.kind() != ProbeKind::Startup) {
            self.ready &= probe.kind() != ProbeKind::Readiness;
            probe.begin(since, now);
        }
        if !self.is_ready_at_once() {
            self.tell_condition(effects);
        }
        self.run_probes(now, effects);
    }

    /// Begins the runs of probes that are due.
    pub(super) fn run_probes(&mut self, now: u64, effects: &mut Vec<Effect>) {
        for probe in &mut self.probes {
            if probe.tick(now) {
                let timeout_ms = probe.plan().timeout_secs.saturating_mul(1000);
                effects.push(Effect::Handle { run: self.run, task: Task::Probe(probe.kind()), timeout_ms });
            }
        }
    }

    pub(super) fn handled(&mut self, task: Task, answer: Handled, now: u64, effects: &mut Vec<Effect>) {
        match task {
            Task::Hook(HookKind::PostStart) => {
                let runs = matches!(self.phase, Phase::Running { hook: Hook::Runs, .. });
                match answer {
                    _ if !runs || self.ending.is_some() => {}
                    Handled::Success => self.begin_probes(now, effects),
                    Handled::Failure(message) | Handled::Error(message) => {
                        self.hook_failed(HookKind::PostStart, message, effects);
                        if let Phase::Running { hook, .. } = &mut self.phase {
                            *hook = Hook::Failed;
                        }
                        let kill_at = now.saturating_add(self.rules.grace_ms);
                        self.stop(kill_at, Turn::Now, KillReason::PostStart, now, effects);
                    }
                }
            }
            Task::Hook(HookKind::PreStop) => {
                if let Handled::Failure(message) | Handled::Error(message) = answer
                    && self.ending.as_ref().is_some_and(Ending::runs_hook)
                {
                    self.hook_failed(HookKind::PreStop, message, effects);
                }
                self.end_on(|ending| ending.hook_over(now), now, effects);
            }
            Task::Probe(kind) => self.probed(kind, answer, now, effects),
        }
    }

    fn hook_failed(&self, hook: HookKind, message: String, effects: &mut Vec<Effect>) {
        let container = self.rules.name.clone();
        effects.push(Effect::Emit(EventKind::HookFailed { container, hook, message }));
    }

    fn probed(&mut self, kind: ProbeKind, answer: Handled, now: u64, effects: &mut Vec<Effect>) {
        let Some(probe) = self.probes.iter_mut().find(|probe| probe.kind() == kind) else { return };
        let change = probe.answered(&answer, now);
        if probe.deadline().is_none() {
            // It was stopped meanwhile.
            return;
        }
        let (is_news, grace_secs) = (probe.is_news(), probe.plan().grace_secs);
        let (message, errored) = match answer {
            Handled::Success => (None, false),
            Handled::Failure(message) => (Some(message), false),
            Handled::Error(message) => (Some(message), true),
        };
        if let Some(message) = message.filter(|_| is_news) {
            let container = self.rules.name.clone();
            effects.push(Effect::Emit(EventKind::ProbeFailed { container, probe: kind, errored, message }));
        }
        let Phase::Running { since, .. } = self.phase else { return };
        match (kind, change) {
            (_, Change::Nothing) | (ProbeKind::Liveness, Change::Succeeded) => {}
            (ProbeKind::Readiness, Change::Succeeded) => self.condition(true, effects),
            (ProbeKind::Readiness, Change::Failed) => self.condition(false, effects),
            (ProbeKind::Startup, Change::Succeeded) => {
                probe.stop();
                self.has_started(since, now, effects);
            }
            (ProbeKind::Startup | ProbeKind::Liveness, Change::Failed) => {
                self.failed_probe = self.rules.restarts_at_all();
                let grace_ms = grace_secs.map_or(self.rules.grace_ms, |secs| secs.saturating_mul(1000));
                let reason = KillReason::Probe { probe: kind, restarts: self.failed_probe };
                self.stop(now.saturating_add(grace_ms), Turn::Now, reason, now, effects);
            }
        }
    }
}
