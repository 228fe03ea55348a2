//! GPUs of jobs that run: those that stay idle for longer than the site lets them be, and those that are fenced under their jobs.
//!
//! Agents say with each heartbeat how busy the GPUs of runs were since the one before. A job is idle when none of its GPUs was in use on any of
//! its nodes, nor of its other components', and every node that has some said so lately: who says nothing may be at work. Nothing of it is
//! stored; a controller that starts counts anew, and a job is never ended without a warning that the same controller gave.

use super::Cluster;
use super::ending::Verdict;
use super::said::{FAULT, plain};
use crate::config::IdleRules;
use crate::gpus::{faulty, fenced, some};
use crate::job::Job;
use crate::rows::Phase;
use berth_model::feature::SAY;
use berth_model::hardware::Hardware;
use berth_model::ids::{Attempt, JobId, NodeName, StepId, StepKey};
use berth_model::launch::Usage;
use berth_model::link::{EndCause, GpuFault, GpusBusy, ToAgent};
use berth_model::state::{JobState, Reason};
use berth_model::time::{Span, Time};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Where a run's GPUs are idle.
#[derive(Debug)]
pub(super) struct Idle {
    attempt: Attempt,
    /// Since when, and when that was said last.
    nodes: BTreeMap<NodeName, (Time, Time)>,
}

impl Cluster {
    /// What a heartbeat says of what runs on its node.
    pub(super) fn hear_of_use(&mut self, node: &NodeName, used: Vec<(StepKey, Usage)>, gpus: &[GpusBusy]) {
        let Some(n) = self.node_mut(node) else { return };
        if !used.is_empty() || !n.used.is_empty() {
            n.used = Arc::new(used.into_iter().collect());
        }
        let looks = n.features.iter().any(|known| known == SAY);
        let Some(rules) = self.config.idle.filter(|_| looks) else { return };
        let held = self.nodes.get(node).into_iter().flat_map(|n| n.held.iter());
        let runs: Vec<_> = held.filter(|(_, share)| some(share)).map(|(run, _)| *run).collect();
        for (job, attempt) in runs {
            let Some(record) = self.job(job).filter(|j| j.row.attempt == attempt) else { continue };
            if !matches!(record.row.phase, Phase::Running(_)) {
                continue;
            }
            let said = gpus.iter().find(|busy| (busy.job, busy.attempt) == (job, attempt));
            match said {
                // None of its components is idle then, and a warning that one had does not stand.
                Some(busy) if busy.percent >= rules.percent => {
                    self.whole(job).into_iter().for_each(|member| self.is_busy(member));
                }
                Some(_) => self.is_idle(job, attempt, node, &rules),
                // Where nothing of it runs nothing can use its GPUs; what runs and was not looked at may.
                None if !lives_on(record, node) => self.is_idle(job, attempt, node, &rules),
                None => {}
            }
        }
    }

    /// A job uses its GPUs, or is over.
    pub(super) fn is_busy(&mut self, job: JobId) {
        self.idle.remove(&job);
        if self.job(job).is_some_and(|j| j.idle.is_some())
            && let Some(job) = self.job_live(job)
        {
            job.idle = None;
        }
    }

    /// Other rules are in force: what was counted by those before, and said of them, does not stand.
    pub(super) fn count_idle_anew(&mut self) {
        let jobs: Vec<JobId> = self.idle.keys().copied().collect();
        jobs.into_iter().for_each(|job| self.is_busy(job));
    }

    fn is_idle(&mut self, id: JobId, attempt: Attempt, node: &NodeName, rules: &IdleRules) {
        let (now, lately) = (self.clock, self.lately());
        let idle = self.idle.entry(id).or_insert_with(|| Idle { attempt, nodes: BTreeMap::new() });
        if idle.attempt != attempt {
            *idle = Idle { attempt, nodes: BTreeMap::new() };
        }
        let (since, last) = idle.nodes.entry(node.clone()).or_insert((now, now));
        if *last + lately < now {
            // In between it may have been busy.
            *since = now;
        }
        *last = now;
        let Some(since) = self.idle_since(id) else { return };
        let warned = self.job(id).and_then(|job| job.idle.as_ref()).map(|(at, _)| *at);
        match (warned, rules.release) {
            (None, _) if since + rules.warn <= now => self.warn_of_idle(id, rules),
            // One that said nothing for a while after the warning may have been busy then.
            (Some(at), Some(release)) if at.max(since) + release <= now => self.release_idle(id, rules),
            _ => {}
        }
    }

    /// Since when all GPUs of a job are idle, those of its other components, too: one that ends takes them along. Nothing while a node
    /// that has some of them has not said so lately.
    fn idle_since(&self, id: JobId) -> Option<Time> {
        let (now, lately) = (self.clock, self.lately());
        let mut all: Option<Time> = None;
        for member in self.whole(id) {
            let Some(job) = self.job(member) else { continue };
            let Phase::Running(run) = &job.row.phase else { continue };
            let idle = self.idle.get(&member).filter(|idle| idle.attempt == job.row.attempt);
            let places = run.allocation.nodes.iter().zip(&run.allocation.shares);
            for (node, _) in places.filter(|(_, share)| some(share)) {
                let (since, last) = idle?.nodes.get(node)?;
                if *last + lately < now {
                    return None;
                }
                all = all.max(Some(run.started.max(*since)));
            }
        }
        all
    }

    /// For how long it stands what a node said of its GPUs: it looks at them in periods, and says it with a heartbeat.
    fn lately(&self) -> Span {
        let period = Span::from_secs(i64::from(self.config.for_agents.gpus.sample_seconds));
        Span(self.config.node_timeout.0.max(period.0.saturating_mul(2)).max(1))
    }

    fn warn_of_idle(&mut self, id: JobId, rules: &IdleRules) {
        let for_long = words(rules.warn);
        let mut text =
            format!("the GPUs of job {id} are idle: all of them below {}% for {for_long}", rules.percent);
        if let Some(release) = rules.release {
            text.push_str(&format!("; the job is ended in {} unless it uses them", words(release)));
        }
        let said: Arc<str> = Arc::from(text);
        let now = self.clock;
        if let Some(job) = self.job_live(id) {
            job.idle = Some((now, said.clone()));
        }
        self.say_to_job(id, &format!("*** {said} ***"));
    }

    fn release_idle(&mut self, id: JobId, rules: &IdleRules) {
        let long = Span(rules.warn.0 + rules.release.map_or(0, |release| release.0));
        let text = format!(
            "*** job {id} is ended: its GPUs were idle, all of them below {}% for {} ***",
            rules.percent,
            words(long)
        );
        self.say_to_job(id, &text);
        let verdict =
            Verdict { reason: Reason::GpusIdle, ..Verdict::new(JobState::Cancelled, EndCause::Cancelled) };
        self.end_job(id, verdict);
    }

    /// Says a line to whoever reads the job's error stream: of its script where there is one, else of its steps, each once.
    fn say_to_job(&mut self, id: JobId, text: &str) {
        let Some(job) = self.job(id) else { return };
        let outer = |step: &StepId| !matches!(step, StepId::Number(_));
        let lives: Vec<(StepKey, NodeName)> = job
            .steps
            .values()
            .filter(|row| row.result.is_none())
            .filter_map(|row| {
                Some((row.key, row.nodes.iter().find(|part| part.exit.is_none())?.node.clone()))
            })
            .collect();
        let script = lives.iter().any(|(key, _)| outer(&key.step));
        for (key, node) in lives.into_iter().filter(|(key, _)| !script || outer(&key.step)) {
            self.say(&node, key, text.to_string());
        }
    }

    fn say(&mut self, node: &NodeName, key: StepKey, text: String) {
        if self.nodes.get(node).is_some_and(|n| n.features.iter().any(|known| known == SAY)) {
            self.send(node, ToAgent::Say { key, text });
        }
    }

    /// Tells jobs of GPUs of theirs that were well when the node was heard of before. `before`: what it had then.
    pub(super) fn tell_of_fenced(&mut self, name: &NodeName, before: &Hardware) {
        let Some(n) = self.nodes.get(name) else { return };
        let was_fenced =
            |index: u32| before.gres.iter().any(|d| d.name == "gpu" && d.index == index && d.fault.is_some());
        let mut lines = Vec::new();
        for ((job, attempt), share) in &n.held {
            let Some(record) = self.job(*job).filter(|j| j.row.attempt == *attempt) else { continue };
            let Some(run) = record.run() else { continue };
            for device in faulty(share, &n.hardware).filter(|device| !was_fenced(device.index)) {
                let line = format!("*** {} ***", fenced(name, device));
                for row in record.steps.values().filter(|row| row.result.is_none()) {
                    let here = row.nodes.iter().find(|part| part.node == *name && part.exit.is_none());
                    let own = here.and_then(|part| row.share(part, run));
                    let has =
                        own.is_some_and(|own| faulty(own, &n.hardware).any(|d| d.index == device.index));
                    if has {
                        lines.push((row.key, line.clone()));
                    }
                }
            }
        }
        for (key, line) in lines {
            self.say(name, key, line);
        }
    }

    /// A run left GPUs that are to be given to nobody, or could not begin on them: before they are free.
    pub(super) fn fence(&mut self, node: &NodeName, faults: Vec<GpuFault>) {
        let Some(n) = self.nodes.get_mut(node).map(Arc::make_mut).filter(|_| !faults.is_empty()) else {
            return;
        };
        for fault in faults {
            let why = plain(&fault.why, FAULT);
            let found = n.row.hardware.gres.iter_mut().find(|d| d.name == "gpu" && d.index == fault.index);
            if let Some(device) = found {
                device.fault = Some(why);
            }
        }
        n.take_faults(&self.config, None);
        self.out.nodes.insert(node.clone());
    }

    /// What a step that was lost had used when its node last said it.
    pub(super) fn last_use(&self, key: StepKey, node: &NodeName, told: Usage) -> Usage {
        let last = self.nodes.get(node).and_then(|n| n.used.get(&key));
        match (told, last) {
            (Usage { user_us: 0, system_us: 0, max_rss: 0, gpu, .. }, Some(last)) => {
                Usage { gpu: gpu.or(last.gpu), ..*last }
            }
            _ => told,
        }
    }
}

/// Whether a step of it is on the node.
fn lives_on(job: &Job, node: &NodeName) -> bool {
    let lives = job.steps.values().filter(|row| row.result.is_none());
    lives.flat_map(|row| &row.nodes).any(|part| part.node == *node && part.exit.is_none())
}

/// In minutes where these are whole.
fn words(span: Span) -> String {
    let (n, unit) = match span.0 / 1_000_000 {
        seconds if seconds % 60 == 0 => (seconds / 60, "minute"),
        seconds => (seconds, "second"),
    };
    format!("{n} {unit}{}", if n == 1 { "" } else { "s" })
}
