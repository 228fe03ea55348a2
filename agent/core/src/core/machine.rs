//! The machine itself: its reboot and its health.

use super::AgentCore;
use crate::event::AgentEffect;
use crate::state::Reboot;
use berth_model::link::FromAgent;
use berth_model::time::{Span, Time};

/// How soon it is looked again whether the node does what it is to do while its health is checked.
const CHECK_AGAIN: Span = Span::from_secs(10);

impl AgentCore {
    /// The machine is to be rebooted. Each wish is fulfilled once; where that failed it is told as often as it is wished for.
    pub(super) fn reboot(&mut self, since: Time) {
        match &self.reboot {
            Some((known, Reboot::Ended(Some(why)))) if *known == since => {
                let why = why.clone();
                self.send(|session| FromAgent::RebootFailed { session, since, why });
            }
            Some((known, _)) if *known == since => {}
            // It is wished for again when that has ended.
            Some((_, Reboot::Runs)) => {}
            _ => self.reboot = Some((since, Reboot::Wanted)),
        }
    }

    /// Nobody waits any more for a reboot that was not begun.
    pub(super) fn forget_reboot(&mut self) {
        self.reboot.take_if(|(_, reboot)| matches!(reboot, Reboot::Wanted));
    }

    /// Has the node's health checked where its time has come and the node does what it is to do meanwhile.
    pub(super) fn check_health(&mut self, now: Time) {
        let (Some(plan), Some(_)) = (self.config.health, self.next_check.filter(|at| *at <= now)) else {
            return;
        };
        let busy = !self.runs.is_empty();
        if plan.busy.is_some_and(|wanted| wanted != busy) {
            self.next_check = Some(now + plan.interval.max(CHECK_AGAIN));
            return;
        }
        self.next_check = None;
        self.out.push(AgentEffect::CheckHealth);
    }

    pub(super) fn checked(&mut self, result: Result<(), String>, now: Time) {
        self.next_check =
            self.config.health.filter(|plan| plan.interval.0 > 0).map(|plan| now + plan.interval);
        let unhealthy = result.err();
        if self.unhealthy != unhealthy {
            self.unhealthy.clone_from(&unhealthy);
            self.out.push(AgentEffect::RememberHealth(unhealthy));
            self.heartbeat(now);
        }
    }
}
