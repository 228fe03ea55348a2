//! Runs a program in parallel: inside an allocation as a step of it, outside in an allocation of its own.
//!
//! Standard input, output and error are those of the tasks, byte for byte. Signals are passed on; Ctrl-C tells how
//! the tasks are, twice within a second it reaches them, three times it ends them (-X: they have the first one; --quit-on-interrupt:
//! it ends them). The exit code is the highest of
//! the tasks', 128 and the signal's number for one that a signal ended.
//!
//! A `:` begins a part of the step in another component of the job, with options and, where it says one, a program of its own;
//! `--het-group` names the components. All parts are one step, with one set of ranks.

use crate::error::{Failure, Kind, Outcome};
use crate::explain::Asked;
use crate::site::Site;
use crate::step::around::{self, Around};
use crate::step::interrupt::{First, Presses};
use crate::step::making::{self, Ask};
use crate::step::sinks::Sinks;
use crate::step::{dismiss, follow, reach, terminal};
use crate::submit::{self, Granted, Read};
use crate::{Command, Invocation, bcast, block_on, het, image, out, x11};
use berth_model::launch::Layout;
use berth_model::login::SealedLogin;
use berth_model::mpi::MpiType;
use berth_model::multiprog::{self, BadProgram, RankProgram};
use berth_model::options::{self, Command as Submit, Stream, SubmitOptions};
use berth_model::pattern::Place;
use berth_model::programs::ProgramsConfig;
use berth_model::query::JobQuery;
use berth_model::record::JobInfo;
use berth_model::request::{Payload, RefusalCode, Response};
use berth_model::spec::{ContainerSpec, ImageRef, JobKind, JobSelector, StepSpec};
use berth_model::state::{ExitStatus, JobState};
use berth_model::{ByteStr, JobId, NodeName, StepKey};
use berth_rpc::{Client, RpcError};
use berth_stream::ALL_TASKS;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The command.
pub const COMMAND: Command =
    Command { name: "srun", run, submits: true, help: || options::help(Submit::Srun) };

/// When a job that started at once is asked after, and said to have its client: most are over by then.
pub(crate) const LATER: Duration = Duration::from_millis(250);

fn run(call: &Invocation<'_>) -> Outcome {
    let mut parts = match submit::parts(Submit::Srun, call)? {
        Read::Told => return Ok(0),
        Read::Parts(parts) => parts,
    };
    let argv = parts.last_mut().map(|part| std::mem::take(&mut part.rest)).unwrap_or_default();
    let of_parts = het::programs(&mut parts, argv.clone());
    let mut all = het::resolve(Submit::Srun, parts, Vec::new())?;
    if let Some(descriptor) = all.first().and_then(|options| options.pty_from) {
        terminal::take(descriptor)?;
    }
    if all.len() > 1 || all.first().is_some_and(|options| options.het_group.len() > 1) {
        return several(call, all, of_parts);
    }
    let mut options = all.remove(0);
    if options.jobid.is_none() && !options.het_group.is_empty() {
        return Err(het::outside_of_jobs());
    }
    if options.mpi_list {
        out::print(&mpi_types())?;
        return Ok(0);
    }
    let Some(program) = argv.first() else {
        return Err(Failure::raw(
            Kind::User,
            "srun: fatal: No command given to execute.\nwrite it behind the options: srun -n2 hostname",
        ));
    };
    if options.jobid.is_none() && options.relative.is_some() {
        return Err(relative_to_nothing());
    }
    if options.bcast.is_some() && options.multi_prog {
        return Err(Failure::user(
            "--bcast copies one program, and --multi-prog names several: copy them with sbcast",
        ));
    }
    if options.pty && !terminal::is_terminal() {
        out::complain(
            "srun: error: Not using a pseudo-terminal, disregarding --pty option: standard input is no terminal",
        );
        options.pty = false;
    }
    let programs = if options.multi_prog { programs(&options, &argv)? } else { Vec::new() };
    let name = program.as_path().file_name().unwrap_or_default().as_bytes();
    let by = submit::submitter(call, String::from_utf8_lossy(name).into_owned(), program.clone())?;
    let (image, login) = image::named(&options, None, call, &image::Rules::default())?;
    let x11 = options.x11.map(x11::forward).transpose()?;
    let site = call.site()?;
    submit::announce(&options, &site);
    let mut run = Run { options, by, argv, programs, image, login: None, x11, site };
    block_on(async {
        let client = run.site.connect_patiently("srun").await?;
        if let Some(format) = run.options.explain {
            return run.explain(&client, call, format).await;
        }
        run.login = submit::seal(login.as_ref(), call, &client).await?;
        match run.options.jobid.clone() {
            Some(selector) => run.inside(&client, &selector).await,
            None if run.options.bcast.is_some() => run.outside_with_copy(&client).await,
            None => run.outside(&client).await,
        }
    })
}

/// A step over several components of a job: one part for each, with its own options.
fn several(call: &Invocation<'_>, all: Vec<SubmitOptions>, programs: Vec<Vec<ByteStr>>) -> Outcome {
    if all.iter().any(|options| options.mpi_list) {
        out::print(&mpi_types())?;
        return Ok(0);
    }
    het::refuse_in_several(&all)?;
    if all.iter().any(|options| options.jobid.is_none() && options.relative.is_some()) {
        return Err(relative_to_nothing());
    }
    let mut parts = Vec::with_capacity(all.len());
    let rules = image::Rules::default();
    for (part, (mut options, argv)) in all.into_iter().zip(programs).enumerate() {
        let Some(program) = argv.first() else {
            return Err(Failure::raw(
                Kind::User,
                "srun: fatal: No command given to execute.\nwrite it behind the options: srun -n2 hostname",
            ));
        };
        options.pty &= terminal::is_terminal();
        let name = program.as_path().file_name().unwrap_or_default().as_bytes();
        let by = submit::submitter(call, String::from_utf8_lossy(name).into_owned(), program.clone())?;
        if options.bcast.is_some() {
            // What cannot be copied needs no nodes.
            bcast::Source::open(&program_here(&argv, options.work_dir(&by.cwd).as_path())?, true)?;
        }
        let (image, login) = image::named(&options, Some(part), call, &rules)?;
        let site = call.site()?;
        submit::announce(&options, &site);
        let x11 = options.x11.map(x11::forward).transpose()?;
        let run = Run { options, by, argv, programs: Vec::new(), image, login: None, x11, site };
        parts.push((run, login));
    }
    block_on(async {
        let Some(client) = parts.first().map(|(run, _)| run.site.connect_patiently("srun")) else {
            return Ok(0);
        };
        let client = client.await?;
        let mut runs = Vec::with_capacity(parts.len());
        for (mut run, login) in parts {
            run.login = submit::seal(login.as_ref(), call, &client).await?;
            runs.push(run);
        }
        het::srun(&client, &runs).await
    })
}

/// `--relative` where there is no job yet, whose nodes it could count.
fn relative_to_nothing() -> Failure {
    Failure::raw(
        Kind::User,
        "srun: fatal: --relative option invalid for job allocation request\n\
         it counts the nodes of a job that is there: leave it out, name nodes with --nodelist, or a job with --jobid",
    )
}

/// What `--mpi=list` prints: PMIx where this machine has its library, as its nodes will.
fn mpi_types() -> String {
    let here = |which: &MpiType| *which != MpiType::Pmix || libpmix().is_some();
    let names = MpiType::NAMES.iter().filter(|(_, which)| here(which));
    let names: Vec<String> = names.map(|(name, _)| format!("\t{name}\n")).collect();
    format!("MPI plugin types are...\n{}", names.concat())
}

/// Where the system's libpmix is, in the directories that every loader looks into.
fn libpmix() -> Option<std::path::PathBuf> {
    let triple = format!("{}-linux-gnu", std::env::consts::ARCH);
    let dirs = ["/usr/lib64", "/lib64", "/usr/lib", "/lib", "/usr/local/lib", "/usr/local/lib64"];
    let multiarch = ["/usr/lib", "/lib"].map(|dir| std::path::Path::new(dir).join(&triple));
    let all = multiarch.into_iter().chain(dirs.map(std::path::PathBuf::from));
    all.map(|dir| dir.join("libpmix.so.2")).find(|path| path.exists())
}

/// What `--multi-prog` says: the file is read here, where it was named. What follows it goes to each program.
fn programs(options: &SubmitOptions, argv: &[ByteStr]) -> Result<Vec<RankProgram>, Failure> {
    let Some((file, more)) = argv.split_first() else { return Ok(Vec::new()) };
    let path = options
        .chdir
        .as_ref()
        .map_or_else(|| file.as_path().into(), |dir| dir.as_path().join(file.as_path()));
    let name = file.display();
    let mut text = Vec::new();
    let most = multiprog::LARGEST as u64 + 1;
    std::fs::File::open(&path)
        .and_then(|file| file.take(most).read_to_end(&mut text))
        .map_err(|e| Failure::user(format!("Could not open multi_prog config file {name}: {e}")))?;
    let mut programs = multiprog::parse(&text).map_err(|BadProgram { line, why }| {
        Failure::user(format!("Line {line} of configuration file {name} invalid: {why}"))
    })?;
    if let Some(tasks) = options.ntasks {
        multiprog::check(&programs, tasks).map_err(|none| {
            let task = none.0;
            Failure::user(format!("Configuration file {name} invalid, no record for task id {task}: {none}"))
        })?;
    }
    let literal = |word: &ByteStr| {
        ByteStr(word.0.iter().flat_map(|b| [*b].repeat(1 + usize::from(*b == b'%'))).collect())
    };
    for program in &mut programs {
        program.argv.extend(more.iter().map(literal));
    }
    Ok(programs)
}

/// One call, or its part in one component of a job.
pub(crate) struct Run {
    pub(crate) options: SubmitOptions,
    pub(crate) by: options::Submitter,
    argv: Vec<ByteStr>,
    programs: Vec<RankProgram>,
    pub(crate) image: Option<ImageRef>,
    pub(crate) login: Option<SealedLogin>,
    x11: Option<x11::Forward>,
    pub(crate) site: Site,
}

impl Run {
    pub(crate) fn step_spec(&self, inside: Option<&JobInfo>) -> Result<StepSpec, Failure> {
        let env = self.options.environment(&submit::environment(), &self.by, inside.is_some());
        let size = if self.options.pty { terminal::size() } else { None };
        let size = size.or(self.options.pty.then_some(berth_model::spec::TermSize { rows: 24, cols: 80 }));
        let converted = self
            .options
            .step_spec(&self.by, self.argv.clone(), env, self.image.clone(), size, inside.map(|j| &j.spec))
            .map_err(|e| submit::bad_option(Submit::Srun, &e))?;
        submit::warn(Submit::Srun, &converted.notes, self.options.quiet);
        let mut spec = converted.spec;
        spec.login.clone_from(&self.login);
        spec.programs.clone_from(&self.programs);
        if let Some(forward) = &self.x11 {
            spec.x11 = Some(forward.spec.clone());
            spec.env.extend(forward.variables.iter().cloned());
        }
        if inside.is_some() {
            // A submission of its own: the job was one.
            spec.submission = submit::submission_id()?;
        }
        Ok(spec)
    }

    /// Says what would be made, and makes nothing.
    async fn explain(&self, client: &Client, call: &Invocation<'_>, format: options::Explain) -> Outcome {
        let (command, payload) = (Submit::Srun, &Payload::default());
        if let Some(selector) = &self.options.jobid {
            let info = self.job(client, selector).await?;
            let step = self.step_spec(Some(&info))?;
            let asked = Asked { command, call, format, job: None, step: Some(&step), payload };
            return asked.inside(client, &info).await;
        }
        let converted = self.options.job_spec(&self.by, self.image.clone());
        let job = converted.map_err(|e| submit::bad_option(Submit::Srun, &e))?.spec;
        let step = self.step_spec(None)?;
        Asked { command, call, format, job: Some(&job), step: Some(&step), payload }.outside(client).await
    }

    /// A step of the job that we are in, or that was named.
    async fn inside(&self, client: &Client, selector: &JobSelector) -> Outcome {
        let job = self.job(client, selector).await?;
        let spec = self.step_spec(Some(&job))?;
        self.step_of(client, &job, spec).await
    }

    /// This step of a job that has its nodes.
    async fn step_of(&self, client: &Client, job: &JobInfo, mut spec: StepSpec) -> Outcome {
        self.could_reach(spec.nodes.unwrap_or(1)).await?;
        self.copy(client, job, &mut spec).await?;
        self.check_prolog(client).await?;
        let spec_ref = &spec;
        let ask = |how: Ask| async move {
            let impatient;
            let spec = match how {
                Ask::Make => spec_ref,
                Ask::MakeOrRefuse => {
                    impatient = making::impatient(spec_ref);
                    &impatient
                }
            };
            client.persist(None, |client| async move { client.create_step(job.id, spec).await }).await
        };
        let busy = || {
            self.tell(&format!(
                "srun: Job {} step creation temporarily disabled, retrying (Requested nodes are busy)",
                job.id
            ));
        };
        let made = making::make(self.options.immediate.is_none(), busy, ask);
        let ((response, waited), site) = tokio::join!(made, self.site_programs(client, None));
        let what = format!("Unable to create step for job {}", job.id);
        let response = response.map_err(|e| submit::refused(&what, e))?;
        let Response::StepCreated { key, layout, .. } = response else {
            return Err(Failure::new(
                Kind::Internal,
                format!("{what}: unexpected answer from the controller"),
            ));
        };
        if waited {
            self.tell(&format!("srun: Step created for StepId={key}"));
        }
        let records = submit::records_after(client, job.id, LATER);
        let around = self.around(&site?, key, (&job.layout.nodes, &layout), &spec);
        let step = self.begun(client, (key, Vec::new()), layout, &spec, around).await?;
        follow::follow(step, records).await
    }

    /// Copies the program to the job's nodes, where that was asked for (`--bcast`): the step runs the copy.
    pub(crate) async fn copy(
        &self,
        client: &Client,
        job: &JobInfo,
        spec: &mut StepSpec,
    ) -> Result<(), Failure> {
        let Some(name) = &self.options.bcast else { return Ok(()) };
        let program = program_here(&self.argv, spec.work_dir.as_path())?;
        let mut path = spec.work_dir.as_path().join(name.as_path());
        if name.0.is_empty() || name.0.ends_with(b"/") {
            let file = program.file_name().unwrap_or_default();
            let mut copy = std::ffi::OsString::from(format!("slurm_bcast_{}.", job.id));
            copy.push(file);
            path.push(copy);
        }
        let path = ByteStr::from(path.as_os_str());
        let chosen =
            spec.max_nodes.is_none() && spec.nodes.is_none_or(|n| n as usize == spec.node_list.len());
        let to = bcast::Target {
            job,
            step: None,
            nodes: spec.node_list.iter().filter(|_| chosen).cloned().collect(),
            // The same one: it is written into what is mounted in it.
            container: spec.container.clone().map(|container| ContainerSpec { save: None, ..container }),
            login: spec.login.clone(),
            path: path.clone(),
            force: true,
        };
        match bcast::send(&self.site, client, bcast::Source::open(&program, true)?, to).await? {
            0 => {
                if let Some(program) = spec.argv.first_mut() {
                    *program = path;
                }
                Ok(())
            }
            code => Err(Failure::exit(code)),
        }
    }

    pub(crate) fn tell(&self, line: &str) {
        if !self.options.quiet {
            out::complain(line);
        }
    }

    /// The job that is to have the step.
    async fn job(&self, client: &Client, selector: &JobSelector) -> Result<JobInfo, Failure> {
        let counted = match selector {
            // Components are counted from their leader.
            JobSelector::Sluid(_) if !self.options.het_group.is_empty() => {
                let job = crate::enter::job(client, selector).await?;
                Some(JobSelector::Job(job.spec.het.map_or(job.id, |het| het.leader)))
            }
            _ => None,
        };
        let selector = counted.as_ref().unwrap_or(selector);
        let component = match (selector, self.options.het_group.as_slice()) {
            (JobSelector::Job(leader), [group]) => Some(JobSelector::Component(*leader, *group)),
            _ => None,
        };
        let selector = component.as_ref().unwrap_or(selector);
        let query = JobQuery { include_finished: true, ..JobQuery::of([selector]) };
        let query = &query;
        let found = client.persist(None, |client| async move { client.jobs(query).await }).await?;
        let job = found.into_iter().find(|j| match selector {
            JobSelector::Task(array, task) => j.array == Some(*array) && j.task == Some(*task),
            JobSelector::Component(leader, offset) => {
                j.spec.het.is_some_and(|het| het.leader == *leader && het.offset == *offset)
            }
            JobSelector::Sluid(sluid) => j.sluid == Some(*sluid),
            JobSelector::Job(id) | JobSelector::Tasks(id, _) => j.id == *id,
        });
        let expired = |why: String| {
            let hint =
                format!("srun: Check SLURM_JOB_ID environment variable. Expired or invalid job {selector}");
            Failure::raw(Kind::User, format!("srun: error: {why}\n{hint}"))
        };
        match job {
            None => Err(expired(format!(
                "Unable to confirm allocation for job {selector}: Invalid job id specified"
            ))),
            Some(job) if job.state.is_terminal() => {
                Err(expired(format!("Slurm job {selector} has expired: it is {}", job.state.name())))
            }
            Some(job) if job.state == JobState::Pending => Err(Failure::user(format!(
                "Job {selector} has no nodes yet ({}); wait until it runs",
                crate::fmt::job::reason(&job)
            ))),
            Some(job) => Ok(job),
        }
    }

    /// Whether there could be a connection to each of so many nodes.
    pub(crate) async fn could_reach(&self, nodes: u32) -> Result<(), Failure> {
        reach::could_have_room(nodes)?;
        reach::could_be_carried(&self.site.attach, nodes).await
    }

    /// A job with this one step.
    async fn outside(&self, client: &Client) -> Outcome {
        let bad = |e| submit::bad_option(Submit::Srun, &e);
        let converted = self.options.job_spec(&self.by, self.image.clone()).map_err(bad)?;
        let step = self.step_spec(None)?;
        self.could_reach(converted.spec.resources.min_nodes).await?;
        submit::warn(Submit::Srun, &converted.notes, self.options.quiet);
        let payload = Payload::default();
        let test_only = self.options.test_only;
        self.check_prolog(client).await?;
        let submitted = async {
            let sent =
                submit::submit(Submit::Srun, client, &converted.spec, &payload, Some(&step), test_only);
            sent.await.map_err(|e| match e {
                RpcError::Refused(refusal) if test_only => submit::not_even_then(&refusal),
                e => submit::refused(Submit::Srun.failed(), e),
            })
        };
        // A submission that is given up waits for nothing that is asked beside it.
        let asked = async { Ok::<_, Failure>(self.site_programs(client, None).await) };
        let (response, site) = tokio::try_join!(submitted, asked)?;
        if test_only {
            return submit::would_start(Submit::Srun, &response);
        }
        let Response::Submitted { job, step: Some(key), notes, started } = response else {
            return Err(Failure::new(Kind::Internal, "the controller made a job without its step"));
        };
        submit::warn(Submit::Srun, &notes, self.options.quiet);
        let site = site?;
        if let Some(layout) = started {
            // It has its nodes: what else there is to ask can wait until it turns out to be a long one.
            let _lease = client.lease_after(job, LATER);
            let records = submit::records_after(client, job, LATER);
            let around = self.around(&site, key, (&layout.nodes, &layout), &step);
            let step = self.begun(client, (key, Vec::new()), layout, &step, around).await?;
            return self.to_its_end(client, job, step, records).await;
        }
        let (lease, records) = tokio::join!(client.lease(job), submit::records(client, job));
        let _lease = lease.ok(); // a job that is over already has none
        let mut records = records?;
        let info = match self.nodes_of(client, job, &mut records, converted.spec.hold).await? {
            Ok(info) => info,
            Err(code) => return Ok(code),
        };
        let layout =
            info.steps.iter().find(|s| s.id == key.step).map_or(info.layout.clone(), |s| s.layout.clone());
        let key = StepKey { attempt: info.attempt, ..key };
        let around = self.around(&site, key, (&info.layout.nodes, &layout), &step);
        let step = self.begun(client, (key, Vec::new()), layout, &step, around).await?;
        self.to_its_end(client, job, step, records).await
    }

    /// A job whose nodes have a copy of the program before it is run: an allocation of its own, with two steps.
    async fn outside_with_copy(&self, client: &Client) -> Outcome {
        let converted = self.options.job_spec(&self.by, self.image.clone());
        let mut converted = converted.map_err(|e| submit::bad_option(Submit::Srun, &e))?;
        converted.spec.kind = JobKind::Alloc;
        let step = self.step_spec(None)?;
        // What cannot be copied needs no nodes.
        bcast::Source::open(&program_here(&self.argv, step.work_dir.as_path())?, true)?;
        submit::warn(Submit::Srun, &converted.notes, self.options.quiet);
        let payload = Payload { login: self.login.clone(), ..Payload::default() };
        let test_only = self.options.test_only;
        let submitted = submit::submit(Submit::Srun, client, &converted.spec, &payload, None, test_only);
        let response = submitted.await.map_err(|e| match e {
            RpcError::Refused(refusal) if test_only => submit::not_even_then(&refusal),
            e => submit::refused(Submit::Srun.failed(), e),
        })?;
        if test_only {
            return submit::would_start(Submit::Srun, &response);
        }
        let Response::Submitted { job, notes, .. } = response else {
            return Err(Failure::new(Kind::Internal, "unexpected answer from the controller"));
        };
        submit::warn(Submit::Srun, &notes, self.options.quiet);
        let (lease, records) = tokio::join!(client.lease(job), submit::records(client, job));
        let _lease = lease.ok(); // a job that is over already has none
        let mut records = records?;
        let info = match self.nodes_of(client, job, &mut records, converted.spec.hold).await? {
            Ok(info) => info,
            Err(code) => return Ok(code),
        };
        let outcome = self.step_of(client, &info, step).await;
        give_back(client, job, &outcome).await;
        outcome
    }

    /// Waits until the job has its nodes; or the exit code, when it was revoked meanwhile.
    pub(crate) async fn nodes_of(
        &self,
        client: &Client,
        job: JobId,
        records: &mut submit::Records,
        hold: bool,
    ) -> Result<Result<Box<JobInfo>, u8>, Failure> {
        if hold {
            self.tell("srun: Job is in held state, pending scheduler release");
        }
        let mut waited = false;
        let mut interrupt = interrupts()?;
        let granted = tokio::select! {
            granted = submit::granted(records, || {
                // With --immediate it is over soon, one way or the other.
                waited = self.options.immediate.is_none();
                if waited {
                    self.tell(&format!("srun: job {job} queued and waiting for resources"));
                }
            }) => granted?,
            () = interrupt.pressed() => return revoke(client, job).await.map(Err),
        };
        let info = match granted {
            Granted::Yes(info) => info,
            Granted::No(info) if info.started.is_some() => info,
            Granted::No(info) if submit::patience_is_over(&info, self.options.immediate) => {
                return Err(submit::busy());
            }
            Granted::No(info) => return Err(never_ran(&info)),
        };
        drop(interrupt);
        if waited {
            self.tell(&format!("srun: job {job} has been allocated resources"));
        }
        Ok(Ok(info))
    }

    /// Follows the step of a job of our own, and says that we have seen its end, so that what is asked next finds it:
    /// the record is made without us. A controller that is away is not waited for.
    async fn to_its_end(
        &self,
        client: &Client,
        job: JobId,
        step: follow::Step,
        records: submit::Records,
    ) -> Outcome {
        let code = follow::follow(step, records).await;
        // A job that is over is on record already, and a controller that does not answer tells nothing else either.
        let _ = tokio::time::timeout(Duration::from_secs(1), client.end_seen(job)).await;
        code
    }

    /// What the site runs around steps of `srun`: nobody asks where the options say that nothing is run.
    pub(crate) async fn site_programs(
        &self,
        client: &Client,
        patience: Option<Duration>,
    ) -> Result<ProgramsConfig, Failure> {
        if around::is_none(&self.options.prolog) && around::is_none(&self.options.epilog) {
            return Ok(ProgramsConfig::default());
        }
        let config = client.persist(patience, |client| async move { client.config().await }).await?;
        // One that knows of them says within which time.
        if config.programs.srun_prolog_seconds == 0 && self.names_prolog() {
            return Err(Failure::user(
                "the cluster's controller is of an earlier version and starts steps without waiting for --prolog: leave it out, or \
                 have the controller upgraded",
            ));
        }
        Ok(config.programs)
    }

    fn names_prolog(&self) -> bool {
        self.options.prolog.is_some() && !around::is_none(&self.options.prolog)
    }

    /// Looks, before anything is made, whether a program of the user's can be waited for.
    pub(crate) async fn check_prolog(&self, client: &Client) -> Result<(), Failure> {
        if self.names_prolog() {
            self.site_programs(client, Some(submit::PATIENCE)).await?;
        }
        Ok(())
    }

    /// What runs here around a step. `job`: the nodes of its job.
    pub(crate) fn around(
        &self,
        site: &ProgramsConfig,
        key: StepKey,
        (job, layout): (&[NodeName], &Layout),
        spec: &StepSpec,
    ) -> Around {
        let options = (&self.options.prolog, &self.options.epilog);
        Around::new(options, site, (key, job, layout), (&spec.argv, &spec.env))
    }

    /// A step that was made, as it is followed. One of whose files is ours to write, and cannot be opened, is ended. `parts`: as
    /// [`follow::Step::parts`].
    pub(crate) async fn begun(
        &self,
        client: &Client,
        (key, parts): (StepKey, Vec<StepKey>),
        layout: Layout,
        spec: &StepSpec,
        around: Around,
    ) -> Result<follow::Step, Failure> {
        let step = follow::Step { parts, ..self.step(client, key, layout, spec, around) };
        match sinks(client, key, &step.layout, spec).await {
            Ok(sinks) => Ok(follow::Step { sinks, ..step }),
            Err(failure) => {
                dismiss::dismiss(&step).await;
                Err(failure)
            }
        }
    }

    fn step(
        &self,
        client: &Client,
        key: StepKey,
        layout: Layout,
        spec: &StepSpec,
        around: Around,
    ) -> follow::Step {
        let tasks = layout.task_count().max(1);
        let of = |option: &Option<ByteStr>| Stream::of(option.as_ref(), tasks);
        let input = match of(&self.options.input) {
            Stream::All => Some(if self.options.pty { 0 } else { ALL_TASKS }),
            Stream::Task(task) => Some(task),
            Stream::None | Stream::File(_) => None,
        };
        let only = |stream: Stream| if let Stream::Task(task) = stream { Some(task) } else { None };
        let output = only(of(&self.options.output));
        follow::Step {
            voice: follow::Voice::Srun,
            socket: self.site.attach.clone(),
            client: client.clone(),
            key,
            parts: Vec::new(),
            layout,
            label: self.options.label && !self.options.pty,
            unbuffered: self.options.unbuffered,
            pty: self.options.pty,
            input,
            feed: None,
            sinks: Sinks::default(),
            only_stdout: output,
            only_stderr: if self.options.error.is_some() { only(of(&self.options.error)) } else { output },
            kill_on_bad_exit: spec.kill_on_bad_exit,
            wait_after_first_exit: spec.wait_after_first_exit,
            around: Some(around),
            presses: Presses::new(match (self.options.quit_on_interrupt, self.options.disable_status) {
                (true, _) => First::Kills,
                (false, true) => First::Interrupts,
                (false, false) => First::Reports,
            }),
            carriers: self.carrier().into_iter().collect(),
        }
    }

    /// Where connections to the caller's display go that come from other machines.
    pub(crate) fn carrier(&self) -> Option<x11::Carrier> {
        self.x11.as_ref().and_then(|forward| forward.carrier.clone())
    }
}

/// Where a step's output goes: it is asked what its job is called and whose it is where that is in the name of a file of ours.
async fn sinks(client: &Client, key: StepKey, layout: &Layout, spec: &StepSpec) -> Result<Sinks, Failure> {
    if !Sinks::are_wanted(&spec.io, layout) {
        return Ok(Sinks::default());
    }
    let query = JobQuery { ids: vec![key.job], include_finished: true, ..JobQuery::default() };
    let query = &query;
    let found = client.persist(None, |client| async move { client.jobs(query).await }).await?;
    let job = found.into_iter().find(|job| job.id == key.job);
    let job = job.ok_or_else(|| Failure::user(format!("there is no job {} any more", key.job)))?;
    let place = Place {
        job: key.job,
        array: job.array.zip(job.task),
        step: key.step,
        restarts: key.attempt.0,
        sluid: job.sluid,
        task: 0,
        node_index: 0,
        node: "",
        user: &job.identity.user,
        job_name: if job.spec.kind == JobKind::Batch { &job.spec.name } else { &spec.name },
    };
    Sinks::open(&spec.io, layout, spec.work_dir.as_path(), &place)
}

/// Ends an allocation of our own, with what its step came to.
pub(crate) async fn give_back(client: &Client, job: JobId, outcome: &Outcome) {
    let code = match outcome {
        Ok(code) => *code,
        Err(failure) => failure.exit_code(true),
    };
    match client.end_allocation(job, ExitStatus { code, signal: 0 }).await {
        Ok(_) => {}
        // Somebody ended it.
        Err(RpcError::Refused(r)) if matches!(r.code, RefusalCode::WrongState | RefusalCode::NotFound) => {}
        Err(e) => out::complain(&format!(
            "srun: error: job {job} is not given back yet: {e}; it ends without its client"
        )),
    }
}

/// The file of the command: in the working directory, as Slurm has it, or in PATH.
fn program_here(argv: &[ByteStr], dir: &Path) -> Result<PathBuf, Failure> {
    let name = argv.first().map(ByteStr::as_path).unwrap_or(Path::new(""));
    if name.as_os_str().as_bytes().contains(&b'/') {
        return Ok(dir.join(name));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let runs = |file: &PathBuf| {
        file.is_file() && nix::unistd::access(file.as_path(), nix::unistd::AccessFlags::X_OK).is_ok()
    };
    let places = std::iter::once(dir.to_path_buf()).chain(std::env::split_paths(&path));
    places.map(|at| dir.join(at).join(name)).find(runs).ok_or_else(|| {
        Failure::user(format!(
            "--bcast: there is no program {} in {} or in PATH ({})",
            name.display(),
            dir.display(),
            path.display()
        ))
    })
}

/// Ctrl-C and SIGTERM while the job waits.
struct Interrupts {
    signals: Vec<tokio::signal::unix::Signal>,
}

fn interrupts() -> Result<Interrupts, Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let signals = kinds.into_iter().map(signal).collect::<std::io::Result<_>>();
    let signals = signals.map_err(|e| Failure::new(Kind::Internal, format!("cannot handle signals: {e}")))?;
    Ok(Interrupts { signals })
}

impl Interrupts {
    async fn pressed(&mut self) {
        std::future::poll_fn(|cx| {
            if self.signals.iter_mut().any(|s| s.poll_recv(cx).is_ready()) {
                std::task::Poll::Ready(())
            } else {
                std::task::Poll::Pending
            }
        })
        .await;
    }
}

async fn revoke(client: &Client, job: JobId) -> Outcome {
    out::complain(&format!("srun: Force Terminated JobId={job}"));
    match client.cancel_one(job, None).await {
        Ok(_) => {}
        Err(RpcError::Refused(r)) if matches!(r.code, RefusalCode::WrongState | RefusalCode::NotFound) => {}
        Err(e) => return Err(e.into()),
    }
    out::complain(&format!("srun: Job allocation {job} has been revoked"));
    Ok(1)
}

fn never_ran(job: &JobInfo) -> Failure {
    let why = match job.state {
        JobState::Cancelled => {
            out::complain("srun: Job has been cancelled");
            "Job/step already completing or completed".to_string()
        }
        state => format!("the job ended as {} ({})", state.name(), crate::fmt::job::reason(job)),
    };
    Failure::user(format!("Unable to allocate resources: {why}"))
}
