//! The highest numbers that were given out, for a controller that was made of a backup and knows of none since.

use super::AgentCore;
use crate::event::AgentEffect;
use berth_model::ids::JobId;
use berth_model::link::Highest;

/// Ids of jobs and numbers of steps are kept by so many at a time: to write each down would be a write for each start.
const AT_A_TIME: u32 = 64;

impl AgentCore {
    /// Numbers were given out.
    pub(super) fn has_seen(&mut self, highest: Highest) {
        self.highest = self.highest.and(highest);
        if self.kept.and(self.highest) != self.kept {
            let up = |number: u32| number | (AT_A_TIME - 1);
            let ahead =
                Highest { job: JobId(up(self.highest.job.0)), step: up(self.highest.step), ..self.highest };
            self.kept = self.kept.and(ahead);
            self.out.push(AgentEffect::RememberHighest(self.kept));
        }
    }
}
