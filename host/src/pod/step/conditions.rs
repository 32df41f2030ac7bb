//! The pod's conditions, with the times of their last changes.

use super::{Machine, StartProgress};
use crate::store::record::Stage;
use magikvm_proto::lifecycle::Role;
use magikvm_proto::state::ContainerStatus;

impl Machine {
    /// Notes which conditions hold now.
    pub(super) fn observe(&mut self, now_ms: u64) {
        let lives = matches!(self.state.stage, Stage::Starting | Stage::Running | Stage::Stopping);
        let mut all = self.state.containers.iter().zip(&self.starts);
        let through =
            all.all(|(status, start)| status.role == Role::Main || start.progress == StartProgress::Through);
        let ready = |status: &ContainerStatus| status.role == Role::Init || status.ready;
        let ready = lives && through && self.state.containers.iter().all(ready);
        let conditions = &mut self.state.conditions;
        conditions.scheduled.set(true, now_ms);
        conditions.sandbox_ready.set(lives && self.agent_up, now_ms);
        conditions.initialized.set(conditions.initialized.holds || through, now_ms);
        conditions.containers_ready.set(ready, now_ms);
        conditions.ready.set(ready, now_ms);
    }
}
