//! Pods that are paused and resumed, by a user's request or by other processes' signals, or because the host's disk is full, and the guest's clock
//! after that.

use super::{DiskState, Effect, Machine, PauseRequest};
use crate::pod::events::{ClockReason, HostEvent};
use crate::process::Motion;
use crate::store::record::{DiskFull, Stage};
use magikvm_proto::wire::{Refusal, RefusalCode};

impl Machine {
    /// The outcome of a request; `None` while it is open.
    pub fn outcome(&self, request: PauseRequest) -> Option<Result<(), Refusal>> {
        let wanted = match request {
            PauseRequest::Pause => Motion::Stopped,
            PauseRequest::Resume => Motion::Running,
        };
        let refused = |why: &str| Some(Err(Refusal::new(RefusalCode::Conflict, why)));
        match self.state.stage {
            Stage::Pulling => refused("its images are being pulled"),
            Stage::Starting => refused("it is being started"),
            Stage::Stopping if request == PauseRequest::Pause => refused("it is being stopped"),
            Stage::Ended => refused("it has ended"),
            _ if self.request != Some(request) => refused("another request came after this one"),
            _ => (self.motion == wanted).then_some(Ok(())),
        }
    }

    pub(super) fn request(&mut self, request: PauseRequest) -> Vec<Effect> {
        let (wanted, effect) = match (request, self.state.stage) {
            (PauseRequest::Pause, Stage::Running) => (Motion::Stopped, Effect::Pause),
            (PauseRequest::Resume, Stage::Running | Stage::Stopping) => (Motion::Running, Effect::Resume),
            _ => return Vec::new(),
        };
        let earlier = self.request.replace(request);
        // The effect of an earlier request may still be outstanding, so that the last motion seen proves nothing.
        let may_change = earlier.is_some_and(|earlier| earlier != request);
        if self.motion != wanted || may_change { vec![effect] } else { Vec::new() }
    }

    pub(super) fn motion(&mut self, motion: Motion, now_ms: u64) -> Vec<Effect> {
        self.motion = motion;
        if motion != Motion::Running {
            if self.state.paused_ms.is_some() {
                return Vec::new();
            }
            self.state.paused_ms = Some(now_ms);
            return vec![Effect::Note(HostEvent::Paused)];
        }
        let mut effects = Vec::new();
        if self.state.paused_ms.take().is_some() {
            effects.push(Effect::Note(HostEvent::Resumed));
        }
        effects.extend(self.tell_time(ClockReason::Pause));
        effects
    }

    /// The processes of a VM whose disk is full run, but its processors do not.
    pub(super) fn disk(&mut self, disk: DiskState, now_ms: u64) -> Vec<Effect> {
        match disk {
            DiskState::Full { dir } if self.state.disk_full.is_none() => {
                self.state.disk_full = Some(DiskFull { since_ms: now_ms, dir: dir.clone() });
                vec![Effect::Note(HostEvent::DiskFull { dir })]
            }
            DiskState::HasRoom if self.state.disk_full.take().is_some() => {
                let told = self.tell_time(ClockReason::Pause);
                [Effect::Note(HostEvent::DiskHasRoom)].into_iter().chain(told).collect()
            }
            DiskState::Full { .. } | DiskState::HasRoom => Vec::new(),
        }
    }

    /// A guest that is starting is told the time at its agent's first answer, and a paused one when it is resumed.
    pub(super) fn tell_time(&self, reason: ClockReason) -> Vec<Effect> {
        let runs = matches!(self.state.stage, Stage::Running | Stage::Stopping);
        let stands = self.motion != Motion::Running || self.state.disk_full.is_some();
        if runs && !stands { vec![Effect::TellTime(reason)] } else { Vec::new() }
    }
}
