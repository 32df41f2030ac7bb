//! What the machines need to know of a container's plan. Owns: which policy is in force for it. Must not know: its state.

use magikvm_proto::id::ContainerName;
use magikvm_proto::lifecycle::{Hooks, ProbeKind, ProbePlan, Probes, RestartRule, Role};
use magikvm_proto::plan::{ContainerPlan, GuestPlan, RestartPolicy};
use magikvm_proto::state::WaitingReason;

#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(super) name: ContainerName,
    pub(super) role: Role,
    pub(super) policy: RestartPolicy,
    pub(super) restarts: Vec<RestartRule>,
    pub(super) probes: Probes,
    pub(super) hooks: Hooks,
    /// The pod's grace period.
    pub(super) grace_ms: u64,
    /// Why it waits until it is created for the first time.
    pub(super) first_reason: WaitingReason,
}

impl Rules {
    pub(crate) fn new(pod: &GuestPlan, plan: &ContainerPlan) -> Self {
        let policy = plan.restarts.policy.unwrap_or(pod.restart_policy);
        let policy = match (plan.role, policy) {
            (Role::Sidecar, _) => RestartPolicy::Always,
            // An init container that has succeeded is through.
            (Role::Init, RestartPolicy::Always) => RestartPolicy::OnFailure,
            (Role::Init | Role::Main, policy) => policy,
        };
        Self {
            name: plan.name.clone(),
            role: plan.role,
            policy,
            restarts: plan.restarts.rules.clone(),
            probes: plan.probes.clone(),
            hooks: plan.hooks.clone(),
            grace_ms: pod.grace_ms,
            first_reason: WaitingReason::first(pod.containers.iter().map(|container| container.role)),
        }
    }

    /// Whether it restarts after a run that ended with this code.
    pub(super) fn restarts(&self, exit_code: i32) -> bool {
        self.restarts.iter().any(|rule| rule.matches(exit_code)) || self.policy.restarts(exit_code)
    }

    /// Whether it restarts when one of its probes has ended it, whatever its exit code is.
    pub(super) fn restarts_at_all(&self) -> bool {
        self.policy != RestartPolicy::Never
    }

    pub(super) fn probes(&self) -> impl Iterator<Item = (ProbeKind, &ProbePlan)> {
        let all = [ProbeKind::Startup, ProbeKind::Liveness, ProbeKind::Readiness];
        all.into_iter().filter_map(|kind| Some((kind, self.probes.get(kind)?)))
    }
}
