//! Jobs of several components: reading and submitting them, and a step over several of them.

mod whole;

use crate::commands::srun::{self, LATER, Run};
use crate::error::{Failure, Kind, Outcome};
use crate::step::follow;
use crate::step::making::{self, Ask};
use crate::submit::{self, Records};
use crate::{Invocation, image};
use berth_model::het::{HetFacts, HetGroup, parts_of_nodes};
use berth_model::login::Login;
use berth_model::options::{self, Command, Setting, SubmitOptions, Submitter, Words};
use berth_model::query::JobQuery;
use berth_model::record::{JobInfo, StepInfo};
use berth_model::request::{Payload, Response};
use berth_model::spec::{JobKind, JobSelector, JobSpec, StepSpec};
use berth_model::state::{ExitStatus, JobState};
use berth_model::{ByteStr, JobId, StepKey};
use berth_rpc::{Client, RpcError};
use tokio::sync::{mpsc, watch};

/// One component as it is to be submitted.
pub(crate) struct Component {
    pub(crate) spec: JobSpec,
    login: Option<Login>,
}

/// The options of each component: of its part of the command line, of its part of the script, and what earlier ones hand on.
pub(crate) fn resolve(
    command: Command,
    parts: Vec<Words>,
    script: Vec<Vec<Setting>>,
) -> Result<Vec<SubmitOptions>, Failure> {
    let mut typed = parts.into_iter().map(|part| part.settings);
    let mut script = script.into_iter();
    let mut all = Vec::new();
    loop {
        match (typed.next(), script.next()) {
            (None, None) => break,
            (typed, script) => all.push([script.unwrap_or_default(), typed.unwrap_or_default()].concat()),
        }
    }
    options::hand_on(&mut all);
    all.into_iter().map(|settings| submit::resolve(command, settings, Vec::new())).collect()
}

/// What of it is to be submitted: images are resolved, and what is odd is told.
pub(crate) fn components(
    command: Command,
    all: &[SubmitOptions],
    by: &Submitter,
    call: &Invocation<'_>,
) -> Result<Vec<Component>, Failure> {
    let rules = image::Rules::default();
    let one = |options: &SubmitOptions| {
        let (image, login) = image::named(options, None, call, &rules)?;
        let converted = options.job_spec(by, image).map_err(|e| submit::bad_option(command, &e))?;
        submit::warn(command, &converted.notes, options.quiet);
        Ok(Component { spec: converted.spec, login })
    };
    all.iter().map(one).collect()
}

/// The components with what goes with them: the first one has script and environment, each one its own login.
pub(crate) async fn seal(
    components: &[Component],
    first: Payload,
    call: &Invocation<'_>,
    client: &Client,
) -> Result<Vec<(JobSpec, Payload)>, Failure> {
    let mut first = Some(first);
    let mut all = Vec::with_capacity(components.len());
    for component in components {
        let login = submit::seal(component.login.as_ref(), call, client).await?;
        all.push((component.spec.clone(), Payload { login, ..first.take().unwrap_or_default() }));
    }
    Ok(all)
}

/// Refuses what says something of one job alone.
pub(crate) fn one_alone(all: &[SubmitOptions], option: &str) -> Result<(), Failure> {
    if all.len() < 2 {
        return Ok(());
    }
    Err(Failure::user(format!("{option} is about one component: leave out what follows the ':'")))
}

/// The program of each part of srun's command line: one without takes that of the next one that has.
pub(crate) fn programs(parts: &mut [Words], last: Vec<ByteStr>) -> Vec<Vec<ByteStr>> {
    let mut next = last;
    let mut all: Vec<Vec<ByteStr>> = Vec::with_capacity(parts.len());
    for part in parts.iter_mut().rev() {
        // The last one's words were taken out before.
        let own = std::mem::take(&mut part.rest);
        if !own.is_empty() {
            next = own;
        }
        all.push(next.clone());
    }
    all.reverse();
    all
}

/// Refuses what a step over several components cannot have, or can have for all of them alone.
pub(crate) fn refuse_in_several(all: &[SubmitOptions]) -> Result<(), Failure> {
    whole::refuse_in_later_parts(all)?;
    let used = [
        (
            "--multi-prog",
            all.iter().any(|o| o.multi_prog),
            "give each component a program of its own, behind a ':'",
        ),
        (
            "--container-save",
            all.iter().any(|o| o.container.save.is_some()),
            "save in a step of one component (--het-group=0)",
        ),
        (
            "--explain",
            all.iter().any(|o| o.explain.is_some()),
            "ask for each component by itself (--het-group=0)",
        ),
    ];
    match used.iter().find(|(_, used, _)| *used) {
        Some((option, _, instead)) => {
            Err(Failure::user(format!("{option} does not work over several components of a job: {instead}")))
        }
        None => Ok(()),
    }
}

/// All components of the job, in order; none of a job that has no others.
pub(crate) async fn of_job(client: &Client, job: &JobInfo) -> Result<Vec<JobInfo>, Failure> {
    let Some(het) = job.spec.het else { return Ok(Vec::new()) };
    named(client, het.leader).await
}

async fn named(client: &Client, leader: JobId) -> Result<Vec<JobInfo>, Failure> {
    let query = JobQuery { ids: vec![leader], include_finished: true, ..JobQuery::default() };
    let query = &query;
    let mut found = client.persist(None, |client| async move { client.jobs(query).await }).await?;
    found.retain(|job| job.spec.het.is_some_and(|het| het.leader == leader));
    found.sort_by_key(|job| job.spec.het.map(|het| het.offset));
    Ok(found)
}

/// What each component of an allocation has, for the variables of those who use it; none of a job that has no others.
pub(crate) async fn groups(client: &Client, job: &JobInfo) -> Result<Vec<HetGroup>, Failure> {
    let group = |job: JobInfo| {
        let memory = job.shares.first().map(|share| share.memory);
        HetGroup::new(job.id, job.partition, job.layout, &job.spec.resources, memory)
    };
    Ok(of_job(client, job).await?.into_iter().map(group).collect())
}

/// `SLURM_HET_SIZE` and what each component has.
pub(crate) fn variables(job: &JobInfo, groups: Vec<HetGroup>) -> Vec<(String, String)> {
    if groups.is_empty() {
        return Vec::new();
    }
    let facts = HetFacts { leader: job.id, offset: 0, groups };
    facts.variables().into_iter().map(|(name, value)| (name, value.display().into_owned())).collect()
}

/// Runs a step over several components: of the job that we are in or that was named, or of one of its own.
pub(crate) async fn srun(client: &Client, runs: &[Run]) -> Outcome {
    let Some(first) = runs.first() else { return Ok(0) };
    match &first.options.jobid {
        Some(selector) => {
            let parts = inside(client, runs, selector).await?;
            step(client, runs, parts).await
        }
        None => outside(client, runs).await,
    }
}

/// Which part of the command line is in which component.
async fn inside(
    client: &Client,
    runs: &[Run],
    selector: &JobSelector,
) -> Result<Vec<(usize, JobInfo)>, Failure> {
    let found = match selector.named() {
        Some(leader) => named(client, leader).await?,
        None => of_job(client, &crate::enter::job(client, selector).await?).await?,
    };
    if found.is_empty() {
        return Err(Failure::user(format!(
            "job {selector} has no components: a step in it has one part; leave out ':' and --het-group"
        )));
    }
    let mut wanted: Vec<(usize, u32)> = Vec::new();
    for (at, run) in runs.iter().enumerate() {
        match run.options.het_group.as_slice() {
            [] => wanted.push((at, u32::try_from(at).unwrap_or(u32::MAX))),
            groups => wanted.extend(groups.iter().map(|group| (at, *group))),
        }
    }
    let mut parts: Vec<(usize, JobInfo)> = Vec::with_capacity(wanted.len());
    for (at, group) in wanted {
        let Some(job) = found.iter().find(|job| job.spec.het.is_some_and(|het| het.offset == group)) else {
            let most = found.len().saturating_sub(1);
            return Err(Failure::user(format!(
                "Attempt to run a job step with het group value of {group}, but the job allocation has maximum value of {most}"
            )));
        };
        if parts.iter().any(|(_, other)| other.id == job.id) {
            return Err(Failure::user(format!(
                "component {group} is named twice: one srun makes one step in a component"
            )));
        }
        if job.state != JobState::Running && job.state != JobState::Configuring {
            return Err(Failure::user(format!(
                "component {} is {}: no step can start in it",
                crate::fmt::job::id(job),
                job.state.name()
            )));
        }
        parts.push((at, job.clone()));
    }
    Ok(parts)
}

/// The refusal of `--het-group` where there is no job.
pub(crate) fn outside_of_jobs() -> Failure {
    Failure::user(
        "--het-group is for steps in a job that has its nodes: outside of one, a ':' begins each component",
    )
}

/// An allocation of several components for this one step.
async fn outside(client: &Client, runs: &[Run]) -> Outcome {
    let Some(first) = runs.first() else { return Ok(0) };
    if runs.iter().any(|run| !run.options.het_group.is_empty()) {
        return Err(outside_of_jobs());
    }
    let mut components = Vec::with_capacity(runs.len());
    for run in runs {
        let converted = run.options.job_spec(&first.by, run.image.clone());
        let mut converted = converted.map_err(|e| submit::bad_option(Command::Srun, &e))?;
        submit::warn(Command::Srun, &converted.notes, first.options.quiet);
        converted.spec.kind = JobKind::Alloc;
        components.push((converted.spec, Payload { login: run.login.clone(), ..Payload::default() }));
    }
    let test_only = first.options.test_only;
    let response = submit::submit_het(Command::Srun, client, &components, test_only).await;
    let response = response.map_err(|e| match e {
        RpcError::Refused(refusal) if test_only => submit::not_even_then(&refusal),
        e => submit::refused(Command::Srun.failed(), e),
    })?;
    if test_only {
        return submit::would_start(Command::Srun, &response);
    }
    let Response::Submitted { job, notes, .. } = response else {
        return Err(Failure::new(Kind::Internal, "unexpected answer from the controller"));
    };
    submit::warn(Command::Srun, &notes, first.options.quiet);
    let (lease, records) = tokio::join!(client.lease(job), submit::records(client, job));
    let _lease = lease.ok(); // a job that is over already has none
    let mut records = records?;
    let held = components.iter().any(|(spec, _)| spec.hold);
    let leader = match first.nodes_of(client, job, &mut records, held).await? {
        Ok(info) => info,
        Err(code) => return Ok(code),
    };
    let outcome = match of_job(client, &leader).await {
        Ok(found) => step(client, runs, found.into_iter().enumerate().collect()).await,
        Err(failure) => Err(failure),
    };
    srun::give_back(client, job, &outcome).await;
    outcome
}

/// Makes the step, and follows it on all nodes of all components.
async fn step(client: &Client, runs: &[Run], parts: Vec<(usize, JobInfo)>) -> Outcome {
    let mut specs: Vec<(JobId, StepSpec)> = Vec::with_capacity(parts.len());
    for (at, job) in &parts {
        let Some(run) = runs.get(*at) else { continue };
        let mut spec = run.step_spec(Some(job))?;
        run.copy(client, job, &mut spec).await?;
        specs.push((job.id, spec));
    }
    let nodes = specs.iter().map(|(_, spec)| spec.nodes.unwrap_or(1));
    if let Some(first) = runs.first() {
        first.could_reach(nodes.fold(0, u32::saturating_add)).await?;
    }
    // One step has one prolog: that of its first part.
    let prolog = specs.first().and_then(|(_, spec)| spec.prolog);
    for (_, spec) in &mut specs {
        spec.prolog = prolog;
    }
    // A file that we write is one of all parts.
    let same = specs.first().is_some_and(|(_, first)| specs.iter().all(|(_, spec)| spec.io == first.io));
    specs.iter_mut().for_each(|(_, spec)| spec.io.client_writes &= same);
    let (Some(first), Some((leader, spec))) = (runs.first(), specs.first()) else { return Ok(0) };
    let what = format!("Unable to create step for job {leader}");
    let unexpected =
        || Failure::new(Kind::Internal, format!("{what}: unexpected answer from the controller"));
    let site = first.site_programs(client, None).await?;
    let specs_ref = &specs;
    let ask = |how: Ask| async move {
        let impatient: Vec<(JobId, StepSpec)>;
        let specs = match how {
            Ask::Make => specs_ref,
            Ask::MakeOrRefuse => {
                impatient = specs_ref.iter().map(|(job, spec)| (*job, making::impatient(spec))).collect();
                &impatient
            }
        };
        let create = |client: Client| async move {
            match specs.as_slice() {
                [(job, spec)] => client.create_step(*job, spec).await,
                several => client.create_het_step(several).await,
            }
        };
        client.persist(None, create).await
    };
    let busy = || {
        first.tell(&format!(
            "srun: Job {leader} step creation temporarily disabled, retrying (Requested nodes are busy)"
        ));
    };
    let (response, _) = making::make(first.options.immediate.is_none(), busy, ask).await;
    let (keys, layout) = match response.map_err(|e| submit::refused(&what, e))? {
        Response::HetStepCreated { parts, layout, .. } => (parts, layout),
        Response::StepCreated { key, layout, .. } => (vec![(key, 0)], layout),
        _ => return Err(unexpected()),
    };
    let Some((key, _)) = keys.first().copied() else { return Err(unexpected()) };
    let of_nodes = parts_of_nodes(&keys, layout.nodes.len());
    let records = records(client, keys.iter().map(|(key, _)| *key).collect());
    let around = first.around(&site, key, (&layout.nodes, &layout), spec);
    let begun = first.begun(client, (key, of_nodes), layout, spec, around).await?;
    // Each part has its own cookie.
    let carriers = runs.iter().filter_map(Run::carrier).collect();
    follow::follow(follow::Step { carriers, ..begun }, records).await
}

/// The record of a step over several components, as if it were in the first one.
fn records(client: &Client, keys: Vec<StepKey>) -> Records {
    let (told, records) = watch::channel(None);
    let (heard, mut all) = mpsc::channel::<(usize, Option<JobInfo>)>(keys.len().max(1));
    for (at, key) in keys.iter().enumerate() {
        let mut one = submit::records_after(client, key.job, LATER);
        let heard = heard.clone();
        tokio::spawn(async move {
            while one.changed().await.is_ok() {
                let now = one.borrow_and_update().clone();
                if heard.send((at, now)).await.is_err() {
                    return;
                }
            }
        });
    }
    drop(heard);
    tokio::spawn(async move {
        let mut jobs: Vec<Option<JobInfo>> = vec![None; keys.len()];
        while let Some((at, job)) = all.recv().await {
            if let Some(slot) = jobs.get_mut(at) {
                *slot = job;
            }
            if let Some(merged) = merge(&keys, &jobs)
                && told.send(Some(merged)).is_err()
            {
                return;
            }
        }
    });
    records
}

/// One record of all parts of a step: it is over when all of them are, and has failed as the first one that did.
pub(crate) fn merge(keys: &[StepKey], jobs: &[Option<JobInfo>]) -> Option<JobInfo> {
    let jobs: Vec<&JobInfo> = jobs.iter().map(Option::as_ref).collect::<Option<_>>()?;
    let part = |key: &StepKey, job: &JobInfo| {
        job.steps.iter().find(|s| s.id == key.step && s.attempt == key.attempt).cloned()
    };
    let parts: Vec<Option<StepInfo>> = keys.iter().zip(&jobs).map(|(key, job)| part(key, job)).collect();
    let mut merged = (*jobs.first()?).clone();
    let over = |(part, job): (&Option<StepInfo>, &&JobInfo)| match part {
        Some(step) => step.ended.is_some(),
        None => job.state.is_terminal(),
    };
    let all_over = parts.iter().zip(&jobs).all(over);
    let steps: Vec<&StepInfo> = parts.iter().flatten().collect();
    let Some(first) = merged.steps.iter_mut().find(|s| parts.first().is_some_and(|p| p.as_ref() == Some(*s)))
    else {
        return Some(merged);
    };
    first.ended = steps.iter().filter_map(|s| s.ended).max().filter(|_| all_over);
    first.message = steps.iter().find_map(|s| s.message.clone());
    let worst = |a: ExitStatus, b: ExitStatus| if b.shell_code() > a.shell_code() { b } else { a };
    first.exit = steps.iter().map(|s| s.exit).fold(ExitStatus::OK, worst);
    let failed = steps.iter().map(|s| s.state).find(|state| *state != JobState::Completed);
    first.state = failed.unwrap_or(if all_over { JobState::Completed } else { JobState::Running });
    Some(merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::samples;
    use berth_model::options::Source;
    use berth_model::{Attempt, StepId, Time};

    #[test]
    fn a_part_without_a_program_runs_the_next_one() {
        let read = |line: &str| {
            let words: Vec<ByteStr> = line.split(' ').map(ByteStr::from).collect();
            let mut parts = options::parse_components(Command::Srun, &words, Source::CommandLine).unwrap();
            let last = parts.last_mut().map(|p| std::mem::take(&mut p.rest)).unwrap_or_default();
            let all = programs(&mut parts, last);
            all.into_iter()
                .map(|argv| argv.iter().map(|w| w.display().into_owned()).collect::<Vec<_>>().join(" "))
                .collect::<Vec<_>>()
        };
        assert_eq!(read("-n2 : -n1 hostname"), ["hostname", "hostname"]);
        assert_eq!(read("a 1 : -n2 : b : -n1 c"), ["a 1", "b", "b", "c"]);
        assert_eq!(read("date"), ["date"]);
    }

    #[test]
    fn a_step_is_over_when_all_parts_are_and_failed_as_one_did() {
        let key = |job| StepKey { job: JobId(job), attempt: Attempt(0), step: StepId::Number(0) };
        let keys = [key(12), key(13)];
        let job = |id: u32, ended: Option<i64>, code: u8, state: JobState| {
            let mut job = samples::job(id, "x");
            let mut step = samples::step(StepId::Number(0), "true", ExitStatus { code, signal: 0 });
            (step.ended, step.state) = (ended.map(Time), state);
            job.steps = vec![step];
            Some(job)
        };
        let done = job(12, Some(5), 0, JobState::Completed);
        assert_eq!(merge(&keys, &[done.clone(), None]), None, "not all are heard of");
        let merged = merge(&keys, &[done.clone(), job(13, None, 0, JobState::Running)]).unwrap();
        assert_eq!((merged.steps[0].ended, merged.steps[0].state), (None, JobState::Running));
        let merged = merge(&keys, &[done, job(13, Some(9), 3, JobState::Failed)]).unwrap();
        let step = &merged.steps[0];
        assert_eq!((step.ended, step.exit.code, step.state), (Some(Time(9)), 3, JobState::Failed));
    }
}
