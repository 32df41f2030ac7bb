//! Pods whose images are being pulled, by a process that pulls all of them and reports its progress.

use super::booting::Boot;
use super::{Effect, EndPuller, Machine};
use crate::pod::failure::{Blame, Failure, RunStage};
use crate::pod::pull::{FromPuller, PullerEnd};
use crate::store::record::Stage;

impl Machine {
    pub(super) fn pull_begun(&mut self) -> Vec<Effect> {
        // No sandbox was started before.
        if self.state.stage == Stage::Starting && self.boot == Boot::First {
            self.state.stage = Stage::Pulling;
        }
        Vec::new()
    }

    pub(super) fn puller(&mut self, said: FromPuller) -> Vec<Effect> {
        if self.state.stage != Stage::Pulling {
            return Vec::new();
        }
        match said {
            FromPuller::Progress { image, progress } => vec![Effect::ShowProgress { image, progress }],
            // Images that were pulled all the same stay in the store for the next run.
            FromPuller::Done { .. } | FromPuller::Failed(_) if self.pull_given_up => self.fail_cancelled(),
            FromPuller::Done { pulls } => {
                self.state.stage = Stage::Starting;
                vec![Effect::Pulled(pulls)]
            }
            FromPuller::Failed(failure) => self.fail(*failure),
        }
    }

    pub(super) fn puller_gone(&mut self, end: &PullerEnd) -> Vec<Effect> {
        match self.state.stage {
            Stage::Pulling if self.pull_given_up => self.fail_cancelled(),
            Stage::Pulling => self.fail(end.failure()),
            _ => Vec::new(),
        }
    }

    /// The first request makes the puller remove what is half-done, and the second one kills it.
    pub(super) fn give_up_pull(&mut self) -> Vec<Effect> {
        let how = if self.pull_given_up { EndPuller::Kill } else { EndPuller::Ask };
        self.pull_given_up = true;
        vec![Effect::EndPuller(how)]
    }

    fn fail_cancelled(&mut self) -> Vec<Effect> {
        let failure = self.given_up_for.take().unwrap_or_else(cancelled);
        self.fail(failure)
    }
}

fn cancelled() -> Failure {
    Failure::message(RunStage::Cancelled, Blame::User, "the start was cancelled")
}
