//! The agents' processes on their machines: the shell around their cores, supervisors and what steps do.

use crate::faults::Kind;
use crate::journal::from_agent;
use crate::machine::{Behaviour, KEEPER_WAITS, Supervised, exit};
use crate::network::Way;
use crate::pins::sharing;
use crate::world::{Happening, World};
use berth_agent_core::{AgentEffect, AgentEvent, Fetched, ImageEvent, StepTimers, SupervisorEvent};
use berth_model::exchange::ToPeers;
use berth_model::ids::{Attempt, JobId, NodeName, StepKey, Term};
use berth_model::launch::{ImagePull, StepExit, StepLaunch};
use berth_model::link::{EndCause, FromAgent};
use berth_model::state::ExitStatus;
use berth_model::time::{Span, Time};

/// How long an image is fetched whose meaning is known, in microseconds.
pub(crate) const READY: (i64, i64) = (1000, 500_000);

impl World {
    pub(crate) fn agent_starts(&mut self, node: &NodeName) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get(node).filter(|m| m.up && m.agent.is_none()) else {
            return Ok(());
        };
        if m.forgot {
            return Err(format!(
                "the agent of {node} has forgotten over a power cut what it had written down"
            ));
        }
        // A supervisor that does not say who it is counts as gone, and what is left of its step is killed.
        let mute = |(_, s): &(&StepKey, &Supervised)| s.stopped && s.lives();
        let mute: Vec<StepKey> = m.spool.iter().filter(mute).map(|(key, _)| *key).collect();
        for key in mute {
            self.without_a_word(node, key, Some(ExitStatus { code: 0, signal: 9 }));
        }
        let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
        m.start_agent(now);
        let life = m.agent_life;
        let adopted = !m.spool.is_empty();
        if adopted {
            self.count("agents that found steps of an earlier one");
        }
        let after = self.span(100, 500_000);
        self.plan(after, Happening::Connect { node: node.clone(), life });
        let asks = self.span(1_000_000, 60_000_000);
        self.plan(asks, Happening::Ask { node: node.clone(), life });
        self.agent(node, AgentEvent::Tick)
    }

    /// Gives an agent's core an event, and does what it says.
    pub(crate) fn agent(&mut self, node: &NodeName, event: AgentEvent) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
        let (life, clock) = (m.agent_life, m.clock(now));
        let Some(agent) = &mut m.agent else { return Ok(()) };
        let effects = agent.handle(event, clock);
        for effect in effects {
            let Some(m) = self.machines.get(node).filter(|m| m.agent.is_some()) else { return Ok(()) };
            if m.agent_life != life {
                return Ok(()); // it died in the middle
            }
            if self.faults && self.chaos.on(Kind::HalfDone) && self.rng.permille(10) {
                self.count(Kind::HalfDone.name());
                self.leave_half(node, effect);
                self.crash_agent(node);
                return Ok(());
            }
            self.agent_effect(node, effect)?;
        }
        let Some(m) = self.machines.get_mut(node).filter(|m| m.agent_life == life) else { return Ok(()) };
        let Some(wake) = m.agent.as_ref().and_then(|a| a.next_wake()) else { return Ok(()) };
        let at = m.when(now, wake);
        if m.wake.is_none_or(|planned| at < planned) {
            m.wake = Some(at);
            self.plan_at(at, Happening::AgentWake { node: node.clone(), life, at });
        }
        Ok(())
    }

    /// Gives an agent's core what must change nothing.
    pub(crate) fn agent_stays(&mut self, node: &NodeName, event: AgentEvent) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
        let clock = m.clock(now);
        let Some(agent) = &mut m.agent else { return Ok(()) };
        let effects = agent.handle(event, clock);
        match effects.first() {
            None => Ok(()),
            Some(effect) => Err(format!("the agent of {node} obeys a command of an older term: {effect:?}")),
        }
    }

    /// The agent dies in the middle of an effect: some of it may be there.
    fn leave_half(&mut self, node: &NodeName, effect: AgentEffect) {
        if let AgentEffect::Spawn { key, launch, timers, pull } = effect
            && self.rng.permille(500)
            && let Some(m) = self.machines.get_mut(node)
        {
            let entry = Supervised { born: false, ..supervised(*launch, timers, pull) };
            m.spool.insert(key, entry);
            self.count("spool entries without a supervisor");
        }
    }

    fn agent_effect(&mut self, node: &NodeName, effect: AgentEffect) -> Result<(), String> {
        self.note(|| match &effect {
            AgentEffect::Send(message) => format!("tells: {}", crate::journal::cut(from_agent(message))),
            AgentEffect::MakeJob { job, attempt, .. } => format!("makes run {attempt} of job {job}"),
            AgentEffect::PrepareImage { key, .. } => format!("prepares the image of {key}"),
            AgentEffect::Spawn { key, .. } => format!("starts {key}"),
            AgentEffect::Prefetch { job, .. } => format!("fetches the image of job {job} ahead"),
            other => crate::journal::cut(format!("{other:?}")),
        });
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
        let (life, boot) = (m.agent_life, m.boot);
        match effect {
            AgentEffect::Send(message) => self.says(node, message)?,
            AgentEffect::RememberTerm(term) => return self.keep_term(node, term),
            AgentEffect::RememberHighest(highest) => {
                m.highest = highest;
                if AgentEffect::RememberHighest(highest).is_durable() {
                    m.sync_highest();
                }
            }
            AgentEffect::MakeJob { job, attempt, launch } => {
                if let Some(term) = m.not_kept {
                    return Err(format!(
                        "{node} begins job {job} under term {term}, which is not on its disk"
                    ));
                }
                if m.is_full(now) {
                    m.unmade.insert((job, attempt));
                } else {
                    m.make_job((job, attempt), &launch.job.share)?;
                }
            }
            AgentEffect::RunProlog { job, attempt } => {
                let run = (job, attempt);
                let made = m.jobs.contains_key(&run) || m.unmade.contains(&run);
                if !made || m.prologs.get(&run) == Some(&true) {
                    return Err(format!("the prolog of job {job} runs twice, or for nothing, on {node}"));
                }
                m.prologs.insert(run, false);
                let after = self.span(500, 3_000_000);
                self.plan(after, Happening::Prolog { node: node.clone(), boot, life, job, attempt });
            }
            AgentEffect::PrepareImage { key, launch, .. } => self.prepare_image(node, life, key, &launch)?,
            AgentEffect::Spawn { key, launch, timers, pull } => {
                let run = (key.job, key.attempt);
                // What would go by a deadline that is not written down does not start either.
                if m.is_full(now) || m.unmade.contains(&run) || m.unkept.contains(&run) {
                    self.count("steps that could not be started on a full disk");
                    let exit = StepExit {
                        launch_error: Some("no space left on device".into()),
                        ..exit(ExitStatus { code: 1, signal: 0 }, false, now)
                    };
                    let event = SupervisorEvent::Exited(exit);
                    return self.agent(node, AgentEvent::Supervisor { key, event });
                }
                self.may_start(node, &launch, &timers)?;
                self.count("steps run");
                let mut over = None;
                if let Some(m) = self.machines.get_mut(node) {
                    over = timers.lease.map(|until| m.when(now, until));
                    m.spool.insert(key, supervised(*launch, timers, pull));
                }
                if let Some(at) = over {
                    self.plan_at(at, Happening::Lease { node: node.clone(), boot, key });
                }
                let after = self.span(500, 5000);
                self.plan(after, Happening::Running { node: node.clone(), boot, key });
            }
            AgentEffect::SignalStep { key, signal, .. } => {
                let Some(s) = m.spool.get(&key).filter(|s| s.lives()) else { return Ok(()) };
                let stubborn = Behaviour::of(&s.launch.program).is_some_and(|b| b.stubborn);
                if signal != 18 && !stubborn {
                    self.end_soon(node, key, u8::try_from(signal).unwrap_or(15));
                }
            }
            AgentEffect::KillStep { key } => {
                let hangs = self.faults && self.chaos.on(Kind::Unkillable) && self.rng.permille(100);
                if hangs {
                    self.hang(node, key);
                } else if m.spool.get(&key).is_some_and(|s| s.stopped) {
                    // The agent has the step's control group killed.
                    self.plan(Span(2_000_000), Happening::GroupKilled { node: node.clone(), boot, key });
                } else {
                    self.end_soon(node, key, 9);
                }
            }
            AgentEffect::Reboot => {
                if let Some(run) = m.jobs.keys().next() {
                    return Err(format!("{node} is rebooted while {run:?} is there"));
                }
                let after = self.span(1000, 2_000_000);
                self.plan(after, Happening::Reboots { node: node.clone(), boot, life });
            }
            AgentEffect::CheckHealth => {
                let after = self.span(1000, 2_000_000);
                self.plan(after, Happening::Checked { node: node.clone(), life });
            }
            AgentEffect::RememberHealth(unhealthy) => m.unhealthy = unhealthy,
            AgentEffect::AbandonStep { key } => {
                let Some(s) = m.spool.get_mut(&key) else { return Ok(()) };
                if s.lives() {
                    return Err(format!("{key} is given up on {node} while it runs"));
                }
                s.gone = true;
                self.count("steps given up");
            }
            AgentEffect::LookForLeft { job, attempt } => {
                let after = self.span(1000, 5_000_000);
                self.plan(after, Happening::Looked { node: node.clone(), life, job, attempt });
            }
            AgentEffect::Deadline { job, attempt, until } => self.keep_deadline(node, (job, attempt), until),
            AgentEffect::Renew { key, until } => {
                if !m.unkept.contains(&(key.job, key.attempt)) {
                    self.renew(node, key, until);
                }
            }
            // The worlds have no logins.
            AgentEffect::EndLogins { .. } => {}
            AgentEffect::ForgetSpool { key } => {
                let entry = m.spool.remove(&key);
                if entry.is_some_and(|s| s.lives()) {
                    return Err(format!("the spool entry of {key} goes while the step runs on {node}"));
                }
                if !self.truth.promised.contains_key(&(key, node.clone())) {
                    return Err(format!("{node} forgets the exit of {key}, which is on no record"));
                }
            }
            AgentEffect::RemoveJob { job, attempt } => {
                let of_run = |key: &StepKey| key.job == job && key.attempt == attempt;
                if let Some((key, _)) = m.spool.iter().find(|(key, s)| of_run(key) && s.lives()) {
                    return Err(format!("job {job} is removed from {node} while {key} runs"));
                }
                // Of a run that could not be made nothing ever ran.
                let made = m.jobs.contains_key(&(job, attempt));
                let after = self.span(500, 100_000);
                let hangs = made && self.faults && self.chaos.on(Kind::Unkillable) && self.rng.permille(50);
                let long = self.span(1_000_000, 300_000_000);
                let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
                if hangs {
                    m.hanging.entry((job, attempt)).or_insert(now + long);
                }
                let until = m.hanging.get(&(job, attempt)).map_or(Span(0), |until| until.since(now));
                let after = after.max(until);
                if hangs {
                    self.count(Kind::Unkillable.name());
                }
                self.plan(after, Happening::Removed { node: node.clone(), boot, life, job, attempt });
            }
            AgentEffect::ImagesNeeded { digests: Some(_), .. } => {
                self.count("answers which images are needed")
            }
            AgentEffect::LookForEnds { ask, mut keys } => {
                keys.retain(|key| m.spool.get(key).is_none_or(|s| s.exit.is_none()));
                self.count("questions which steps have not ended");
                return self.agent(node, AgentEvent::NotEnded { ask, keys });
            }
            AgentEffect::CancelImage { key } => self.image_unwanted(node, key),
            AgentEffect::Peers(ToPeers::Pinned { ask, image }) => self.pinned(node, ask, image)?,
            AgentEffect::Configure(told) => m.told = Some(told),
            AgentEffect::Registered => return self.has_port(node),
            AgentEffect::Note { .. }
            | AgentEffect::Say { .. }
            | AgentEffect::Resumed
            | AgentEffect::ImagesNeeded { .. }
            | AgentEffect::Peers(_)
            | AgentEffect::Fetch { .. }
            | AgentEffect::Prefetch { .. }
            | AgentEffect::CancelPrefetch { .. } => {}
        }
        Ok(())
    }

    /// A term is written down: in place, where there was room for it before. On a full disk that copies what is written it fails; half of the terms
    /// come to such a one.
    fn keep_term(&mut self, node: &NodeName, term: Term) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return Ok(()) };
        let fails = m.is_full(now) && term.0 % 2 == 1;
        let result = if fails {
            m.not_kept = Some(term);
            self.count("terms that could not be written on a full disk");
            Err("no space left on device".to_string())
        } else {
            (m.term, m.not_kept) = (term, None);
            // Before the agent hears of it, and does what waits for it.
            if AgentEffect::RememberTerm(term).is_durable() {
                m.sync_term();
            }
            Ok(())
        };
        self.agent(node, AgentEvent::TermKept { term, result })
    }

    fn says(&mut self, node: &NodeName, mut message: FromAgent) -> Result<(), String> {
        let Some(connection) = self.machines.get(node).and_then(|m| m.connection) else { return Ok(()) };
        if let (FromAgent::Hello { steps, jobs, .. }, Some(looked)) = (&message, &mut self.looked) {
            if !steps.is_empty() || !jobs.is_empty() {
                return Err(format!("{node} still has {steps:?} and {jobs:?} when all is over"));
            }
            looked.insert(node.clone());
        }
        self.lies(node, &mut message);
        let message = Box::new(message);
        self.deliver(
            Way::ToController,
            connection,
            Happening::ToController { connection, message, came: false },
        );
        Ok(())
    }

    fn prepare_image(
        &mut self,
        node: &NodeName,
        life: u64,
        key: StepKey,
        launch: &StepLaunch,
    ) -> Result<(), String> {
        let fails = self.rng.permille(10);
        let first = self.span(1000, 100_000);
        let last = Span(first.0 + self.rng.between(1000, 2_000_000));
        let progress = ImageEvent::Progress(Some(50));
        self.plan(first, Happening::Image { node: node.clone(), life, key, event: progress });
        let image = launch.container.as_ref().map(|container| &container.image);
        let digest = image.and_then(|image| image.digest());
        if let Some(digest) = digest {
            self.one_image(key, sharing(launch), digest.to_owned())?;
        }
        if image.is_some() && digest.is_none() && !fails {
            self.find_image(node, life, launch, last);
            return Ok(());
        }
        let fetched = Some(Fetched { bytes: 1000, hit: false, digest: None, found: None });
        let event = match fails {
            true => ImageEvent::Failed("no such image".into(), fetched),
            false => ImageEvent::Ready(fetched),
        };
        self.plan(last, Happening::Image { node: node.clone(), life, key, event });
        Ok(())
    }

    fn end_soon(&mut self, node: &NodeName, key: StepKey, signal: u8) {
        let after = self.span(200, 50_000);
        let Some(m) = self.machines.get_mut(node) else { return };
        let boot = m.boot;
        let Some(s) = m.spool.get_mut(&key).filter(|s| s.lives() && !s.stopped) else { return };
        s.plan += 1;
        let plan = s.plan;
        let status = ExitStatus { code: 0, signal };
        self.plan(after, Happening::Ends { node: node.clone(), boot, key, plan, status, oom: false });
    }

    pub(crate) fn step_runs(&mut self, node: &NodeName, boot: u64, key: StepKey) -> Result<(), String> {
        let Some(m) = self.machines.get_mut(node).filter(|m| m.boot == boot) else { return Ok(()) };
        let Some(s) = m.spool.get_mut(&key).filter(|s| s.lives() && !s.running) else { return Ok(()) };
        s.running = true;
        let Some(b) = Behaviour::of(&s.launch.program) else {
            return Err(format!("step {key} came without its program: {:?}", s.launch.program));
        };
        if s.plan == 0 {
            let status = ExitStatus { code: b.code, signal: 0 };
            let what = Happening::Ends { node: node.clone(), boot, key, plan: 0, status, oom: b.oom };
            self.plan(Span(b.millis * 1000), what);
        }
        self.agent(node, AgentEvent::Supervisor { key, event: SupervisorEvent::Started })
    }

    pub(crate) fn step_ends(
        &mut self,
        node: &NodeName,
        boot: u64,
        key: StepKey,
        plan: u64,
        status: ExitStatus,
        oom: bool,
    ) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node).filter(|m| m.boot == boot) else { return Ok(()) };
        let clock = m.clock(now);
        let full = m.is_full(now);
        let Some(s) = m.spool.get_mut(&key).filter(|s| s.lives() && s.plan == plan) else { return Ok(()) };
        if s.stopped {
            // Who would notice does not: for all others its tasks go on.
            self.plan(Span(500_000), Happening::Ends { node: node.clone(), boot, key, plan, status, oom });
            return Ok(());
        }
        let timers = s.timers;
        if full {
            self.count("exits that could not be written on a full disk");
            self.without_a_word(node, key, Some(status));
            return self.in_time(node, key, &timers);
        }
        let exit = exit(status, oom, clock);
        s.exit = Some(exit.clone());
        if let Some(ran) = self.truth.ran.get_mut(&(key, node.clone())) {
            ran.status = Some(status);
        }
        if self.truth.cut_off.contains(node) {
            self.count("steps that ended while their node was cut off");
        }
        self.in_time(node, key, &timers)?;
        self.agent(node, AgentEvent::Supervisor { key, event: SupervisorEvent::Exited(exit) })
    }

    /// A supervisor's clock shows the time until which its step goes on, unless it was renewed.
    pub(crate) fn lease_over(&mut self, node: &NodeName, boot: u64, key: StepKey) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node).filter(|m| m.boot == boot) else { return Ok(()) };
        let (clock, full) = (m.clock(now), m.is_full(now));
        let Some(s) =
            m.spool.get_mut(&key).filter(|s| s.lives() && !s.stopped && s.lease.is_some_and(|l| l <= clock))
        else {
            return Ok(());
        };
        let status = ExitStatus { code: 0, signal: 9 };
        let exit = StepExit { ended_by: Some(EndCause::OutOfTouch), ..exit(status, false, clock) };
        if !full {
            s.exit = Some(exit.clone());
            if let Some(ran) = self.truth.ran.get_mut(&(key, node.clone())) {
                ran.status = Some(status);
            }
        }
        self.count("steps that ended themselves out of touch");
        self.note(|| format!("{key} ends itself on {node}, out of touch"));
        if full {
            self.without_a_word(node, key, Some(status));
            return Ok(());
        }
        self.agent(node, AgentEvent::Supervisor { key, event: SupervisorEvent::Exited(exit) })
    }

    /// It is written down until when a run goes on.
    fn keep_deadline(&mut self, node: &NodeName, run: (JobId, Attempt), until: Time) {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return };
        if !m.jobs.contains_key(&run) {
            return;
        }
        if m.is_full(now) {
            m.unkept.insert(run);
            return self.count("deadlines that could not be written down on a full disk");
        }
        m.unkept.remove(&run);
        m.deadlines.insert(run, until);
        let (boot, at) = (m.boot, m.when(now, until + KEEPER_WAITS));
        self.plan_at(at, Happening::Deadline { node: node.clone(), boot, job: run.0, attempt: run.1 });
    }

    /// Who keeps deadlines ends all that is left of a run, with an agent or without one, whoever else should have done it. What may go on
    /// it would end as well: that is a fault.
    pub(crate) fn deadline(
        &mut self,
        node: &NodeName,
        boot: u64,
        run: (JobId, Attempt),
    ) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get(node).filter(|m| m.boot == boot && m.is_past(run, now)) else {
            return Ok(());
        };
        let (clock, kept) = (m.clock(now), m.deadlines.get(&run).copied());
        let of_run = |(key, s): &(&StepKey, &Supervised)| (key.job, key.attempt) == run && s.lives();
        let alive: Vec<(StepKey, bool, Option<Time>)> =
            m.spool.iter().filter(of_run).map(|(key, s)| (*key, s.stopped, s.lease)).collect();
        for (key, stopped, lease) in alive {
            if let Some(lease) = lease.filter(|lease| *lease > clock) {
                return Err(format!(
                    "{key} is ended on {node} at its deadline, and may go on until {lease:?}"
                ));
            }
            self.count("steps ended by who keeps deadlines");
            if stopped {
                self.hang(node, key);
            } else {
                self.end_soon(node, key, 9);
            }
        }
        if let (Some(m), Some(kept)) = (self.machines.get_mut(node), kept) {
            m.enforced.insert(run, kept);
        }
        Ok(())
    }

    /// A supervisor is told that its step goes on.
    fn renew(&mut self, node: &NodeName, key: StepKey, until: Time) {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return };
        let (clock, boot, at) = (m.clock(now), m.boot, m.when(now, until));
        let Some(s) = m.spool.get_mut(&key).filter(|s| s.lives()) else { return };
        // For the next agent, before anything else.
        s.timers.lease = Some(until);
        if s.stopped {
            s.unread = s.unread.max(Some(until));
            return;
        }
        if let Some(lease) = s.lease.as_mut().filter(|lease| clock < **lease && **lease < until) {
            *lease = until;
            self.plan_at(at, Happening::Lease { node: node.clone(), boot, key });
        }
    }

    /// A stopped supervisor goes on. Its timer comes before what it was told meanwhile.
    pub(crate) fn goes_on(&mut self, node: &NodeName, key: StepKey) {
        let now = self.now;
        let Some(m) = self.machines.get_mut(node) else { return };
        let clock = m.clock(now);
        let Some(s) = m.spool.get_mut(&key).filter(|s| s.stopped) else { return };
        s.stopped = false;
        let unread = s.unread.take();
        if s.hung && !s.gone {
            // All of it was killed meanwhile, which is seen now.
            s.hung = false;
            let ended = exit(ExitStatus { code: 0, signal: 9 }, false, clock);
            s.exit = Some(StepExit { ended_by: Some(EndCause::OutOfTouch), ..ended });
        } else if let Some(until) = unread {
            self.renew(node, key, until);
        }
    }

    /// The same, and what it finds.
    pub(crate) fn continues(&mut self, node: &NodeName, boot: u64, key: StepKey) -> Result<(), String> {
        if self.machines.get(node).is_none_or(|m| m.boot != boot) {
            return Ok(());
        }
        self.goes_on(node, key);
        let ended = self.machines.get(node).and_then(|m| m.spool.get(&key)).and_then(|s| s.exit.clone());
        match ended {
            Some(exit) => {
                self.agent(node, AgentEvent::Supervisor { key, event: SupervisorEvent::Exited(exit) })
            }
            None => self.lease_over(node, boot, key),
        }
    }

    /// All of a step was killed while its supervisor was stopped, which cannot say so.
    pub(crate) fn group_killed(&mut self, node: &NodeName, boot: u64, key: StepKey) {
        let Some(m) = self.machines.get_mut(node).filter(|m| m.boot == boot) else { return };
        let Some(s) = m.spool.get_mut(&key).filter(|s| s.lives()) else { return };
        if s.stopped {
            self.count("steps killed while their supervisor was stopped");
            return self.hang(node, key);
        }
        self.end_soon(node, key, 9);
    }

    /// Nothing of a run is left; an agent that died meanwhile may not have come to it.
    pub(crate) fn removed(
        &mut self,
        node: &NodeName,
        boot: u64,
        life: u64,
        job: JobId,
        attempt: Attempt,
    ) -> Result<(), String> {
        let undone = self.rng.permille(500);
        let Some(m) = self.machines.get_mut(node).filter(|m| m.boot == boot) else { return Ok(()) };
        if m.agent_life != life {
            // Who removed it went with the agent: by then it was done, or never will be.
            if !undone && m.agent.is_none() {
                m.jobs.remove(&(job, attempt));
                m.deadlines.remove(&(job, attempt));
            }
            return Ok(());
        }
        m.jobs.remove(&(job, attempt));
        m.unmade.remove(&(job, attempt));
        m.deadlines.remove(&(job, attempt));
        m.unkept.remove(&(job, attempt));
        m.hanging.remove(&(job, attempt));
        self.agent(node, AgentEvent::JobRemoved { job, attempt, epilog: None, faults: vec![] })
    }

    /// A step was killed, and does not end.
    fn hang(&mut self, node: &NodeName, key: StepKey) {
        let Some(s) = self.machines.get_mut(node).and_then(|m| m.spool.get_mut(&key)).filter(|s| s.lives())
        else {
            return;
        };
        s.hung = true;
        // What it was about to do is not to be.
        s.plan += 1;
        if let Some(ran) = self.truth.ran.get_mut(&(key, node.clone())) {
            ran.status = Some(ExitStatus { code: 0, signal: 9 });
        }
        self.count("steps that do not end although they are killed");
    }

    /// The program that reboots a node has run.
    pub(crate) fn reboots(&mut self, node: &NodeName, boot: u64, life: u64) -> Result<(), String> {
        if self.machines.get(node).is_none_or(|m| m.boot != boot || !m.up) {
            return Ok(());
        }
        if !self.calm && self.rng.permille(200) {
            self.count("reboots by an administrator that failed");
            let lives = self.machines.get(node).is_some_and(|m| m.agent_life == life && m.agent.is_some());
            return if lives { self.agent(node, AgentEvent::Rebooted(Err("no".into()))) } else { Ok(()) };
        }
        self.count("reboots by an administrator");
        self.reboot(node);
        Ok(())
    }

    /// The health of a node was checked.
    pub(crate) fn health(&mut self, node: &NodeName, life: u64) -> Result<(), String> {
        if self.machines.get(node).is_none_or(|m| m.agent_life != life || m.agent.is_none()) {
            return Ok(());
        }
        let fails = self.faults && !self.calm && self.rng.permille(200);
        if fails {
            self.count("health checks that failed");
        }
        let result = if fails { Err("no GPU".to_string()) } else { Ok(()) };
        self.agent(node, AgentEvent::HealthChecked(result))
    }

    /// What keeps a run from being removed?
    pub(crate) fn look(
        &mut self,
        node: &NodeName,
        life: u64,
        job: JobId,
        attempt: Attempt,
    ) -> Result<(), String> {
        let now = self.now;
        let Some(m) = self.machines.get(node).filter(|m| m.agent_life == life) else { return Ok(()) };
        let hangs = m.hanging.get(&(job, attempt)).is_some_and(|until| *until > now);
        let processes = hangs.then(|| "pid 9 (cp), state D".to_string());
        if hangs {
            self.count("processes told of that do not end");
        }
        self.agent(node, AgentEvent::Left { job, attempt, processes })
    }

    /// There is little room on the node: which images may go?
    pub(crate) fn ask(&mut self, node: &NodeName, life: u64) -> Result<(), String> {
        if self.machines.get(node).is_some_and(|m| m.agent_life == life) {
            let ask = self.events;
            let digests = (0..5).map(|n| format!("sha256:{n:064x}")).collect();
            self.agent(node, AgentEvent::AskNeeded { ask, digests })?;
        }
        Ok(())
    }
}

fn supervised(launch: StepLaunch, timers: StepTimers, pull: Option<ImagePull>) -> Supervised {
    Supervised {
        launch,
        timers,
        pull,
        born: true,
        running: false,
        exit: None,
        gone: false,
        hung: false,
        lease: timers.lease,
        stopped: false,
        unread: None,
        plan: 0,
    }
}
