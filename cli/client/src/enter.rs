//! Entering a job that runs (`berth exec`): a further step of it, in the container of its script or of another step.

use crate::error::{Failure, Kind, Outcome};
use crate::site::Site;
use crate::step::follow::{self, Voice};
use crate::step::interrupt::Presses;
use crate::step::sinks::Sinks;
use crate::step::terminal;
use crate::{block_on, submit};
use berth_model::launch::Layout;
use berth_model::limits::Limits;
use berth_model::query::JobQuery;
use berth_model::record::{JobInfo, StepInfo};
use berth_model::request::Response;
use berth_model::spec::{EnterSpec, IoSpec, JobKind, JobSelector, MemoryRequest, StepSpec, TermSize};
use berth_model::state::JobState;
use berth_model::{ByteStr, JobId, NodeName, StepId, StepKey};
use berth_rpc::Client;
use std::time::Duration;

/// When the job's record is asked after: most commands are over by then.
const LATER: Duration = Duration::from_millis(250);

/// What to enter, and what to run there.
#[derive(Clone, Debug)]
pub struct Enter {
    /// The job, as it was named.
    pub job: JobSelector,
    /// The step; absent: the script's, else the only one.
    pub step: Option<StepId>,
    /// The node, where the step has several.
    pub node: Option<NodeName>,
    /// The step's name in records.
    pub name: String,
    /// Command and arguments.
    pub argv: Vec<ByteStr>,
    /// `NAME=value`, over what the entered step has.
    pub env: Vec<ByteStr>,
    /// Working directory; absent: the entered step's.
    pub work_dir: Option<ByteStr>,
    /// A terminal for the command.
    pub terminal: bool,
}

/// Whether the cluster has a job of that name that is not over.
///
/// # Errors
/// The cluster cannot be asked.
pub fn lives(site: &Site, job: &JobSelector) -> Result<bool, Failure> {
    block_on(async {
        let client = site.connect().await?;
        Ok(named(&client, job).await?.iter().any(|j| !j.state.is_terminal()))
    })
}

/// Runs the command to its end; the exit code is its own.
///
/// # Errors
/// There is nothing to enter, or it is not the caller's: which, why, and what to do.
pub fn run(site: &Site, enter: &Enter) -> Outcome {
    block_on(async {
        let client = site.connect_patiently("berth").await?;
        let job = job(&client, &enter.job).await?;
        let step = match enter.step {
            Some(step) => step,
            None => step_of(&job)?,
        };
        let (key, layout) = create(&client, job.id, step, enter).await?;
        let followed = follow::Step {
            pty: enter.terminal,
            input: Some(0),
            ..followed(Voice::Exec, site, &client, key, layout)
        };
        follow::follow(followed, submit::records_after(&client, job.id, LATER)).await
    })
}

async fn create(
    client: &Client,
    job: JobId,
    step: StepId,
    enter: &Enter,
) -> Result<(StepKey, Layout), Failure> {
    let size = enter.terminal.then(|| terminal::size().unwrap_or(TermSize { rows: 24, cols: 80 }));
    let spec = StepSpec {
        tasks: Some(1),
        env: enter.env.clone(),
        work_dir: enter.work_dir.clone().unwrap_or_else(|| "/".into()),
        work_dir_explicit: enter.work_dir.is_some(),
        pty: size,
        enter: Some(EnterSpec { step, node: enter.node.clone() }),
        ..beside(&enter.name, enter.argv.clone())?
    };
    let spec = &spec;
    let answer = client.persist(None, |client| async move { client.create_step(job, spec).await }).await?;
    match answer {
        Response::StepCreated { key, layout, .. } => Ok((key, layout)),
        _ => Err(Failure::new(Kind::Internal, format!("job {job}: unexpected answer from the controller"))),
    }
}

/// A step that we follow beside all others of its job: it takes nothing from them, and tells its tasks nothing by which they find one another.
pub(crate) fn beside(name: &str, argv: Vec<ByteStr>) -> Result<StepSpec, Failure> {
    Ok(StepSpec {
        submission: submit::submission_id()?,
        name: name.to_string(),
        tasks: None,
        nodes: None,
        max_nodes: None,
        client_address: None,
        tasks_per_node: None,
        node_list: Vec::new(),
        exclude: Vec::new(),
        relative: None,
        distribution: None,
        cpus_per_task: None,
        memory: MemoryRequest::Default,
        gres: None,
        devices: Default::default(),
        gpu_bind: None,
        overlap: true,
        exact: false,
        immediate: None,
        argv,
        env: Vec::new(),
        work_dir: "/".into(),
        work_dir_explicit: false,
        io: IoSpec::default(),
        container: None,
        limits: Limits::default(),
        umask: 0o22,
        pty: None,
        kill_on_bad_exit: false,
        wait_after_first_exit: None,
        time_limit: None,
        attached: true,
        enter: None,
        x11: None,
        mpi: Some(berth_model::mpi::MpiType::None),
        login: None,
        pytorch: false,
        task_prolog: ByteStr::default(),
        task_epilog: ByteStr::default(),
        prolog: None,
        cpu_bind: None,
        mem_bind: None,
        programs: Vec::new(),
        overcommit: false,
        fabric: None,
        sockets: None,
        receive: None,
    })
}

/// How such a step is followed, of which no task reads anything.
pub(crate) fn followed(
    voice: Voice,
    site: &Site,
    client: &Client,
    key: StepKey,
    layout: Layout,
) -> follow::Step {
    follow::Step {
        voice,
        socket: site.attach.clone(),
        client: client.clone(),
        key,
        parts: Vec::new(),
        layout,
        label: false,
        unbuffered: false,
        pty: false,
        input: None,
        feed: None,
        sinks: Sinks::default(),
        only_stdout: None,
        only_stderr: None,
        kill_on_bad_exit: false,
        wait_after_first_exit: None,
        around: None,
        presses: Presses::default(),
        carriers: Vec::new(),
    }
}

/// Records that the selector names.
async fn named(client: &Client, selector: &JobSelector) -> Result<Vec<JobInfo>, Failure> {
    let query = JobQuery { include_finished: true, ..JobQuery::of([selector]) };
    let query = &query;
    let mut found = client.persist(None, |client| async move { client.jobs(query).await }).await?;
    found.retain(|job| match selector {
        JobSelector::Job(id) => job.id == *id || job.array == Some(*id),
        JobSelector::Component(leader, offset) => {
            job.spec.het.is_some_and(|het| het.leader == *leader && het.offset == *offset)
        }
        JobSelector::Task(array, task) => {
            job.array == Some(*array)
                && (job.task == Some(*task) || job.waiting.as_ref().is_some_and(|w| w.contains(*task)))
        }
        JobSelector::Tasks(..) => false,
        JobSelector::Sluid(sluid) => job.sluid == Some(*sluid),
    });
    Ok(found)
}

/// The one job that is meant, which runs.
pub(crate) async fn job(client: &Client, selector: &JobSelector) -> Result<JobInfo, Failure> {
    if let JobSelector::Tasks(id, _) = selector {
        return Err(Failure::user(format!("'{selector}' names several tasks: name one, such as {id}_1")));
    }
    let mut found = named(client, selector).await?;
    if found.len() > 1 {
        let JobSelector::Job(id) = selector else { return Err(none(selector)) };
        // The number of an array is that of one of its tasks, too: the array is meant.
        return Err(Failure::user(format!("job {id} is an array: name one of its tasks, such as {id}_1")));
    }
    let job = found.pop().ok_or_else(|| none(selector))?;
    match job.state {
        state if state.is_terminal() => {
            Err(Failure::user(format!("job {selector} is over ({}): nothing runs in it", state.name())))
        }
        JobState::Pending => Err(Failure::user(format!(
            "job {selector} does not run yet (PENDING, {}): wait until 'squeue' shows that it does",
            crate::fmt::job::reason(&job)
        ))),
        _ => Ok(job),
    }
}

fn none(selector: &JobSelector) -> Failure {
    Failure::user(format!("there is no job {selector}: 'squeue --me' lists yours"))
}

/// The step that is meant by a job: its script's, that of the srun which made it, or the only one.
fn step_of(job: &JobInfo) -> Result<StepId, Failure> {
    let running: Vec<&StepInfo> = job.steps.iter().filter(|s| s.ended.is_none()).collect();
    let first = match job.spec.kind {
        JobKind::Batch => Some(StepId::Batch),
        JobKind::Run => Some(StepId::Number(0)),
        JobKind::Alloc => None,
    };
    if let Some(first) = first.filter(|id| running.iter().any(|s| s.id == *id)) {
        return Ok(first);
    }
    match running.as_slice() {
        [one] => Ok(one.id),
        [] => Err(Failure::user(format!(
            "no step of job {} runs ({}): start one with 'srun --jobid={} --overlap'",
            job.id,
            job.state.name(),
            job.id
        ))),
        several => {
            let names: Vec<String> = several.iter().map(|s| format!("{}.{}", job.id, s.id)).collect();
            Err(Failure::user(format!("job {} has several steps: name one: {}", job.id, names.join(", "))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fmt::samples;

    #[test]
    fn a_job_alone_means_its_script_or_its_only_step() {
        let mut job = samples::job(7, "x");
        job.state = JobState::Running;
        let step =
            |id| StepInfo { ended: None, ..samples::step(id, "s", berth_model::state::ExitStatus::OK) };
        job.steps = vec![step(StepId::Batch), step(StepId::Number(0)), step(StepId::Number(1))];
        job.spec.kind = JobKind::Batch;
        assert_eq!(step_of(&job).unwrap(), StepId::Batch);
        job.steps.remove(0);
        job.spec.kind = JobKind::Run;
        assert_eq!(step_of(&job).unwrap(), StepId::Number(0));
        job.spec.kind = JobKind::Alloc;
        let text = step_of(&job).unwrap_err().text;
        assert!(text.contains("name one: 7.0, 7.1"), "{text}");
        job.steps.remove(0);
        assert_eq!(step_of(&job).unwrap(), StepId::Number(1));
        job.steps.clear();
        assert!(step_of(&job).unwrap_err().text.contains("srun --jobid=7 --overlap"));
    }
}
