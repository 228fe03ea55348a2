//! Shows and changes jobs, nodes and partitions.
//!
//! Commands, each recognised by its start as long as that is unique:
//!
//!   show job [ID]                 jobs, or one job, array or array task
//!   show node [NODES]             nodes
//!   show partition [NAME]         partitions
//!   show step [ID[.STEP]]         running steps
//!   show config                   the configuration in force
//!   show hostnames [LIST]         a hostlist, one name a line (default: SLURM_JOB_NODELIST, SLURM_NODELIST)
//!   show hostlist NAMES           names as a hostlist in the order given; hostlistsorted sorts them
//!   hold IDS, release IDS         keep waiting jobs from starting, and let them
//!   requeue IDS                   end running batch jobs, or take ended ones, and queue them again
//!   update NodeName=NODES State=STATE [Reason=TEXT]
//!   reboot [ASAP] [nextstate=RESUME|DOWN] [reason=TEXT] NODES|ALL
//!                                 when nothing of a job is left on them; with ASAP nothing new starts there
//!   cancel_reboot NODES           as long as they were not told to
//!                                 DOWN, DRAIN and FAIL need a reason; RESUME, IDLE and UNDRAIN end them
//!   reconfigure                   have berth.toml read again and put in force; what runs notices nothing
//!   wait_job ID                   until the nodes of the job are there for it
//!   completing                    jobs that are over, and whose nodes are not free again
//!   ping                          whether the controller answers
//!   version                       the version of this program

mod waiting;

use super::{command_line, meant, nodes, view};
use crate::error::{Failure, Kind, Outcome};
use crate::fmt::{View, json, scontrol};
use crate::getopt::{Arg, Parsed, Refused, Spec, opt};
use crate::step::stream::describe;
use crate::{Command, Invocation, block_on, out, variables};
use berth_model::effective::Effective;
use berth_model::query::JobQuery;
use berth_model::record::JobInfo;
use berth_model::request::{NodeStateChange, RefusalCode, Response};
use berth_model::spec::JobSelector;
use berth_model::state::NextState;
use berth_model::{NodeName, StepId, StepKey};
use berth_rpc::{Client, RpcError};

crate::doc::about!("scontrol.rs");

/// The command.
pub const COMMAND: Command = Command { name: "scontrol", run, submits: false, help: || SPEC.help() };

/// Options.
pub const SPEC: Spec = Spec {
    name: "scontrol",
    usage: "[OPTION]... COMMAND [ARGUMENT]...",
    about: ABOUT,
    options: &[
        opt("all", Some('a'), Arg::None, "Everything (nothing is hidden anyway)"),
        opt(
            "details",
            Some('d'),
            Arg::None,
            "What a job has on each node, which devices of a node jobs have, and a step's limits, control groups and namespaces here",
        ),
        opt("json", None, Arg::None, "As JSON"),
        opt("oneliner", Some('o'), Arg::None, "A line for each record"),
        opt("quiet", Some('Q'), Arg::None, "No messages beside errors"),
        opt("verbose", Some('v'), Arg::None, "Say which cluster is asked"),
    ],
    refused: &[
        Refused {
            long: "clusters",
            short: Some('M'),
            instead: "name another cluster's state directory with BERTH_STATE",
        },
        Refused { long: "federation", short: None, instead: "there are no federations" },
        Refused { long: "local", short: None, instead: "there are no federations" },
        Refused { long: "sibling", short: None, instead: "there are no federations" },
        Refused {
            long: "future",
            short: Some('F'),
            instead: "nodes register themselves, there are no future ones",
        },
        Refused { long: "hide", short: None, instead: "no partition is hidden" },
        Refused { long: "uid", short: Some('u'), instead: "run scontrol as that user" },
        Refused { long: "yaml", short: None, instead: "use --json" },
    ],
};

/// Commands that other systems have: what to do instead.
const ELSEWHERE: &[(&str, &str)] = &[
    ("create", "nodes register themselves; partitions are written in berth.toml ('berth config show')"),
    ("delete", "partitions are written in berth.toml ('berth config show')"),
    ("shutdown", "use 'berth down'"),
    ("suspend", "use 'scancel -s STOP -f JOB'"),
    ("resume", "use 'scancel -s CONT -f JOB'"),
    ("uhold", "use 'hold'"),
    ("holdu", "use 'hold'"),
    ("requeuehold", "use 'requeue', then 'hold'"),
    ("top", "priorities are in the order of submission"),
    ("write", "the script of a job is kept private; keep a copy of the file you submit"),
    ("listpids", "use 'ps' inside the job: srun --overlap --jobid=JOB ps"),
    ("notify", "write to the job's output file"),
    ("token", "there are no tokens; the kernel proves who you are on the local socket"),
];

const COMMAND_NAMES: &[&str] = &[
    "show",
    "hold",
    "release",
    "requeue",
    "update",
    "reboot",
    "cancel_reboot",
    "reconfigure",
    "wait_job",
    "completing",
    "ping",
    "version",
];

fn run(call: &Invocation<'_>) -> Outcome {
    let parsed = variables::read(&SPEC, &call.args)?;
    let all: Vec<String> = parsed.words.iter().map(|w| w.to_string_lossy().into_owned()).collect();
    let Some((first, rest)) = all.split_first() else {
        return Err(Failure::user(
            "no command; commands are show, hold, release, requeue, update, reboot, cancel_reboot, reconfigure, wait_job, \
             completing, ping and version\nsee scontrol --help",
        ));
    };
    let keyword = keyword(first)?;
    if parsed.has("verbose") {
        out::complain(&format!("scontrol: asking {}", call.site()?.endpoint.path().display()));
    }
    let needs_argument = || {
        if rest.is_empty() { Err(plain(format!("too few arguments for keyword:{keyword}"))) } else { Ok(()) }
    };
    match keyword {
        "version" => out::print(&crate::version_line()).map(|()| 0),
        "ping" => ping(call),
        "completing" => waiting::completing(call),
        "wait_job" => {
            needs_argument()?;
            waiting::wait_job(call, &rest[0], parsed.has("quiet"))
        }
        "reconfigure" => {
            let site = call.site()?;
            block_on(async { Ok(site.connect().await?.reconfigure().await?) })?;
            Ok(0)
        }
        "show" => {
            needs_argument()?;
            show(call, &parsed, &rest[0], &rest[1..])
        }
        "update" => {
            needs_argument()?;
            update(call, rest)
        }
        "reboot" => reboot(call, rest),
        "cancel_reboot" => {
            needs_argument()?;
            let nodes = Some(nodes(&rest.join(","))?);
            change(call, NodeUpdate { nodes, state: NodeStateChange::CancelReboot, reason: None })
        }
        verb => {
            needs_argument()?;
            act(call, verb, rest)
        }
    }
}

fn plain(text: impl Into<String>) -> Failure {
    Failure::raw(Kind::User, text)
}

/// The command that the word starts.
fn keyword(word: &str) -> Result<&'static str, Failure> {
    let lower = word.to_ascii_lowercase();
    if let Some(exact) = COMMAND_NAMES.iter().find(|k| **k == lower) {
        return Ok(exact);
    }
    if let Some((name, instead)) = ELSEWHERE.iter().find(|(k, _)| *k == lower) {
        return Err(Failure::user(format!("'{name}' is not supported: {instead}")));
    }
    let matching: Vec<&&str> = COMMAND_NAMES.iter().filter(|k| k.starts_with(&lower)).collect();
    match matching.as_slice() {
        [one] => Ok(one),
        [] => Err(plain(format!("invalid keyword: {word}\ncommands are {}", COMMAND_NAMES.join(", ")))),
        several => {
            let names: Vec<&str> = several.iter().map(|k| **k).collect();
            Err(plain(format!("ambiguous keyword: {word}: {}", names.join(" or "))))
        }
    }
}

fn ping(call: &Invocation<'_>) -> Outcome {
    let site = call.site()?;
    let host = nix::unistd::gethostname().map(|h| h.to_string_lossy().into_owned()).unwrap_or_default();
    block_on(async {
        let up = match Client::connect(&site.endpoint).await {
            Ok(client) => client.ping().await.is_ok(),
            Err(_) => false,
        };
        out::print(&format!("Berth controller at {host} is {}\n", if up { "UP" } else { "DOWN" }))?;
        Ok(u8::from(!up))
    })
}

const ENTITIES: &[&str] = &[
    "job",
    "jobid",
    "jobs",
    "node",
    "nodes",
    "nodename",
    "partition",
    "partitions",
    "partitionname",
    "step",
    "steps",
    "stepid",
    "config",
    "hostnames",
    "hostlist",
    "hostlistsorted",
];

fn show(call: &Invocation<'_>, parsed: &Parsed, entity: &str, rest: &[String]) -> Outcome {
    let (name, inline) =
        entity.split_once('=').map_or((entity, None), |(n, v)| (n, Some(v.trim().to_string())));
    let lower = name.to_ascii_lowercase();
    let found =
        ENTITIES.iter().find(|e| **e == lower).or_else(|| ENTITIES.iter().find(|e| e.starts_with(&lower)));
    let argument = inline.filter(|v| !v.is_empty()).or_else(|| rest.first().cloned());
    let Some(entity) = found.filter(|_| !lower.is_empty()) else {
        return Err(plain(format!(
            "invalid entity:{name} for keyword:show\nentities are job, node, partition, step, config, hostnames, \
             hostlist, hostlistsorted"
        )));
    };
    match *entity {
        "hostnames" => hostnames(argument),
        "hostlist" | "hostlistsorted" => hostlist(argument, *entity == "hostlistsorted"),
        "config" => config(call, parsed),
        "job" | "jobid" | "jobs" => jobs(call, parsed, argument),
        "node" | "nodes" | "nodename" => show_nodes(call, parsed, argument),
        "partition" | "partitions" | "partitionname" => partitions(call, parsed, argument),
        _ => steps(call, parsed, argument),
    }
}

fn hostnames(argument: Option<String>) -> Outcome {
    let list = argument
        .or_else(|| std::env::var("SLURM_JOB_NODELIST").ok())
        .or_else(|| std::env::var("SLURM_NODELIST").ok())
        .ok_or_else(|| {
            Failure::user("host list is empty: name one, or set SLURM_JOB_NODELIST, as it is in a job")
        })?;
    let names = expand(&list)?;
    out::print(&names.iter().map(|n| format!("{n}\n")).collect::<String>()).map(|()| 0)
}

fn expand(list: &str) -> Result<Vec<String>, Failure> {
    berth_model::hostlist::expand(list).map_err(|e| plain(format!("Invalid hostlist: {list}: {}", e.why)))
}

fn hostlist(argument: Option<String>, sorted: bool) -> Outcome {
    let list = argument
        .ok_or_else(|| plain("invalid encode argument\nname hosts: scontrol show hostlist NAME,NAME,..."))?;
    let text = if list.contains('/') {
        std::fs::read_to_string(&list)
            .map_err(|e| plain(format!("Can not open {list}: {}", crate::error::io_text(&e))))?
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(",")
    } else {
        list
    };
    let names = expand(&text)?;
    let compressed = if sorted {
        berth_model::hostlist::compress_sorted(&names)
    } else {
        berth_model::hostlist::compress(&names)
    };
    out::print(&format!("{compressed}\n")).map(|()| 0)
}

fn config(call: &Invocation<'_>, parsed: &Parsed) -> Outcome {
    let site = call.site()?;
    block_on(async {
        let client = site.connect().await?;
        let config = client.config().await?;
        let value = serde_json::to_value(&config)
            .map_err(|e| Failure::new(Kind::Internal, format!("cannot show the configuration: {e}")))?;
        if parsed.has("json") {
            let text = serde_json::to_string_pretty(&value).unwrap_or_default();
            return out::print(&format!("{text}\n")).map(|()| 0);
        }
        let view = view(None).await;
        let mut text = format!("Configuration data as of {}\n", view.time(view.now));
        let pairs = scontrol::config(&value);
        let width = pairs.iter().map(|(key, _)| key.len() + 1).max().unwrap_or(0).max(24);
        for (key, value) in pairs {
            text.push_str(&format!("{key:<width$}= {value}\n"));
        }
        out::print(&text).map(|()| 0)
    })
}

fn print(
    records: Vec<Vec<String>>,
    parsed: &Parsed,
    json: impl FnOnce() -> (&'static str, Vec<serde_json::Value>),
    call: &Invocation<'_>,
    view: &View,
) -> Outcome {
    if parsed.has("json") {
        let (collection, items) = json();
        let text = json::document(collection, &items, &command_line("scontrol", &call.args), &view.cluster);
        return out::print(&text).map(|()| 0);
    }
    let oneline = parsed.has("oneliner");
    out::print(&records.iter().map(|r| scontrol::record(r, oneline)).collect::<String>()).map(|()| 0)
}

fn jobs(call: &Invocation<'_>, parsed: &Parsed, argument: Option<String>) -> Outcome {
    let selector: Option<JobSelector> = match &argument {
        None => None,
        Some(text) => {
            let bad = |_| plain("scontrol_print_job error: Invalid job id specified");
            Some(text.parse().map_err(bad)?)
        }
    };
    let site = call.site()?;
    block_on(async {
        let client = site.connect().await?;
        let query = JobQuery { include_finished: true, ..JobQuery::of(&selector) };
        let mut found = client.jobs(&query).await?;
        match (&selector, found.is_empty()) {
            (Some(_), true) => return Err(plain("slurm_load_jobs error: Invalid job id specified")),
            (None, true) => return out::print("No jobs in the system\n").map(|()| 0),
            _ => {}
        }
        found.retain(|j| !crate::fmt::job::is_spent(j));
        if let Some(selector) = &selector {
            found.retain(|j| names(selector, j));
            if found.is_empty() {
                return Err(plain(format!("Job {selector} not found")));
            }
        }
        let view = view(Some(&client)).await;
        let records = found.iter().map(|j| scontrol::job(j, &view, parsed.has("details"))).collect();
        print(
            records,
            parsed,
            || ("jobs", found.iter().map(|j| json::job(j, &view).into_value()).collect()),
            call,
            &view,
        )
    })
}

fn names(selector: &JobSelector, job: &JobInfo) -> bool {
    let waits = |index: u32| job.waiting.as_ref().is_some_and(|w| w.contains(index));
    match selector {
        JobSelector::Job(id) => {
            job.id == *id || job.array == Some(*id) || job.spec.het.is_some_and(|het| het.leader == *id)
        }
        JobSelector::Component(leader, offset) => {
            job.spec.het.is_some_and(|het| het.leader == *leader && het.offset == *offset)
        }
        JobSelector::Task(array, task) => {
            job.array == Some(*array) && (job.task == Some(*task) || waits(*task))
        }
        JobSelector::Tasks(array, set) => {
            job.array == Some(*array) && (job.task.is_some_and(|t| set.contains(t)) || set.iter().any(waits))
        }
        JobSelector::Sluid(sluid) => job.sluid == Some(*sluid),
    }
}

fn show_nodes(call: &Invocation<'_>, parsed: &Parsed, argument: Option<String>) -> Outcome {
    let wanted: Option<Vec<NodeName>> = argument.map(|list| nodes(&list)).transpose()?;
    let site = call.site()?;
    block_on(async {
        let client = site.connect().await?;
        let all = client.nodes().await?;
        let view = view(Some(&client)).await;
        let mut missing = 0;
        let mut shown = Vec::new();
        match wanted.map(|names| meant(names, &all)) {
            None => shown.extend(&all),
            Some(names) => {
                for name in names {
                    match all.iter().find(|n| n.name == name) {
                        Some(node) => shown.push(node),
                        None => {
                            out::print(&format!("Node {name} not found\n"))?;
                            missing = 1;
                        }
                    }
                }
            }
        }
        let records = shown.iter().map(|n| scontrol::node(n, &view, parsed.has("details"))).collect();
        print(records, parsed, || ("nodes", shown.iter().map(|n| json::node(n)).collect()), call, &view)?;
        Ok(missing)
    })
}

fn partitions(call: &Invocation<'_>, parsed: &Parsed, argument: Option<String>) -> Outcome {
    let site = call.site()?;
    block_on(async {
        let client = site.connect().await?;
        let mut all = client.partitions().await?;
        let view = view(Some(&client)).await;
        if let Some(name) = argument {
            all.retain(|p| p.config.name == name);
            if all.is_empty() {
                out::print(&format!("Partition {name} not found\n"))?;
                return Ok(1);
            }
        }
        let records = all.iter().map(scontrol::partition).collect();
        print(records, parsed, || ("partitions", all.iter().map(json::partition).collect()), call, &view)
    })
}

fn steps(call: &Invocation<'_>, parsed: &Parsed, argument: Option<String>) -> Outcome {
    let wanted: Option<(JobSelector, Option<StepId>)> = match &argument {
        None => None,
        Some(text) => Some(
            berth_model::jobid::with_step(text)
                .map_err(|e| Failure::user(format!("Invalid step id: {e}")))?,
        ),
    };
    let site = call.site()?;
    block_on(async {
        let client = site.connect().await?;
        let jobs = client.jobs(&JobQuery::of(wanted.iter().map(|(selector, _)| selector))).await?;
        let view = view(Some(&client)).await;
        let takes = |job: &JobInfo, id: StepId| {
            wanted.as_ref().is_none_or(|(s, step)| names(s, job) && step.is_none_or(|w| w == id))
        };
        let found: Vec<_> = jobs
            .iter()
            .flat_map(|j| j.steps.iter().map(move |s| (j, s)))
            .filter(|(j, s)| s.ended.is_none() && takes(j, s.id))
            .collect();
        if found.is_empty() {
            return match argument {
                Some(text) => {
                    out::print(&format!("Job step {text} not found\n"))?;
                    Ok(1)
                }
                None => out::print("No job steps in the system\n").map(|()| 0),
            };
        }
        let mut details: Vec<Option<Effective>> = vec![None; found.len()];
        if parsed.has("details") {
            for ((job, step), details) in found.iter().zip(&mut details) {
                let key = StepKey { job: job.id, attempt: step.attempt, step: step.id };
                match describe(&site.attach, step.layout.nodes.first(), key).await {
                    Ok(what) => *details = Some(what),
                    Err(why) => out::complain(&format!("scontrol: StepId={key}: no details: {why}")),
                }
            }
        }
        let detailed = || found.iter().zip(&details);
        let records = detailed().map(|((j, s), what)| {
            let mut lines = scontrol::step(j, s, &view);
            if let Some(sluid) = j.sluid.filter(|_| parsed.has("details")) {
                lines.insert(1, format!("SLUID={sluid}"));
            }
            lines.extend(what.iter().flat_map(scontrol::effective));
            lines
        });
        let values = || detailed().map(|((j, s), what)| json::detailed_step(j, s, what.as_ref(), &view));
        print(records.collect(), parsed, || ("steps", values().collect()), call, &view)
    })
}

/// `WHAT for job 12: why`, as Slurm begins it.
fn about(message: &str, selector: &str) -> String {
    match message.split_once(": ") {
        Some((what, why)) => format!("{what} for job {selector}: {why}"),
        None => format!("{message} for job {selector}"),
    }
}

/// `hold`, `release` and `requeue`.
fn act(call: &Invocation<'_>, verb: &str, rest: &[String]) -> Outcome {
    let mut selectors = Vec::new();
    for word in rest {
        for id in split(word) {
            let bad = |_| {
                plain(format!(
                    "Invalid job id specified for job {id}\nwrite JOB, ARRAY_TASK, ARRAY_[TASKS] or a SLUID"
                ))
            };
            selectors.push(id.parse::<JobSelector>().map_err(bad)?);
        }
    }
    let site = call.site()?;
    block_on(async {
        let client = site.connect_patiently("scontrol").await?;
        let response = match verb {
            "hold" => client.hold(&selectors).await,
            "release" => client.release(&selectors).await,
            _ => client.requeue(&selectors).await,
        };
        match response {
            Ok(Response::Acted { refused, .. }) => {
                for (selector, refusal) in &refused {
                    out::complain(&about(&refusal.message, selector));
                }
                Ok(u8::from(!refused.is_empty()))
            }
            Ok(_) => Ok(0),
            Err(e) => Err(e.into()),
        }
    })
}

/// Ids separated by commas outside brackets.
fn split(word: &str) -> Vec<&str> {
    let mut depth = 0_i32;
    word.split(move |c| {
        match c {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        c == ',' && depth <= 0
    })
    .filter(|w| !w.is_empty())
    .collect()
}

/// `update NodeName=… State=… Reason=…`.
fn update(call: &Invocation<'_>, rest: &[String]) -> Outcome {
    change(call, NodeUpdate::read(rest)?)
}

fn change(call: &Invocation<'_>, change: NodeUpdate) -> Outcome {
    let site = call.site()?;
    block_on(async {
        let client = site.connect_patiently("scontrol").await?;
        let nodes = match change.nodes {
            Some(nodes) => nodes,
            None => client.nodes().await?.into_iter().map(|node| node.name).collect(),
        };
        answered("slurm_update", client.update_node(&nodes, change.state, change.reason.as_deref()).await)
    })
}

fn answered(what: &str, answer: Result<Response, RpcError>) -> Outcome {
    match answer {
        Ok(_) => Ok(0),
        Err(RpcError::Refused(refusal)) => Err(plain(match refusal.code {
            RefusalCode::NotFound => {
                format!("{what} error: Invalid node name specified\n{}", refusal.message)
            }
            RefusalCode::Denied => format!("{what} error: Invalid user id\n{}", refusal.message),
            _ => format!("{what} error: {}", refusal.message),
        })),
        Err(e) => Err(e.into()),
    }
}

/// `reboot [ASAP] [nextstate=…] [reason=…] NODES`.
fn reboot(call: &Invocation<'_>, rest: &[String]) -> Outcome {
    let wanted = RebootCall::read(rest)?;
    let site = call.site()?;
    block_on(async {
        let client = site.connect_patiently("scontrol").await?;
        let RebootCall { nodes, asap, next, reason } = &wanted;
        answered("scontrol_reboot_nodes", client.reboot_nodes(nodes, *asap, *next, reason.as_deref()).await)
    })
}

/// What `reboot` was asked for.
#[derive(Debug, PartialEq, Eq)]
struct RebootCall {
    /// None means all.
    nodes: Vec<NodeName>,
    asap: bool,
    next: NextState,
    reason: Option<String>,
}

impl RebootCall {
    fn read(rest: &[String]) -> Result<RebootCall, Failure> {
        let (mut asap, mut next, mut reason, mut list) = (false, NextState::Before, None, Vec::new());
        for word in rest {
            match word.split_once('=').map(|(key, value)| (key.to_ascii_lowercase(), value.trim_matches('"')))
            {
                None if word.eq_ignore_ascii_case("ASAP") => asap = true,
                None => list.push(word.as_str()),
                Some((key, value)) if key == "nextstate" => {
                    next = match value.to_ascii_uppercase().as_str() {
                        "RESUME" => NextState::Resume,
                        "DOWN" => NextState::Down,
                        _ => {
                            return Err(plain(format!("Invalid input: {word}\nnextstate is RESUME or DOWN")));
                        }
                    };
                }
                Some((key, value)) if key == "reason" => {
                    reason = Some(value.to_string()).filter(|reason| !reason.is_empty());
                }
                Some(_) => {
                    return Err(plain(format!(
                        "Invalid input: {word}\nwrite reboot [ASAP] [nextstate=RESUME|DOWN] [reason=TEXT] NODES"
                    )));
                }
            }
        }
        let nodes = match list.as_slice() {
            [] => return Err(plain("Missing node list. Specify ALL|<NodeList>")),
            [all] if all.eq_ignore_ascii_case("ALL") => Vec::new(),
            some => nodes(&some.join(","))?,
        };
        Ok(RebootCall { nodes, asap, next, reason })
    }
}

/// What `update` was asked for.
#[derive(Debug, PartialEq, Eq)]
struct NodeUpdate {
    /// None means all.
    nodes: Option<Vec<NodeName>>,
    state: NodeStateChange,
    reason: Option<String>,
}

impl NodeUpdate {
    fn read(rest: &[String]) -> Result<NodeUpdate, Failure> {
        let (mut list, mut state, mut reason) = (None, None, None);
        for pair in rest {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| plain(format!("Invalid input: {pair}\nRequest aborted\nwrite KEY=VALUE")))?;
            let value = value.trim_matches('"');
            match key.to_ascii_lowercase().as_str() {
                "nodename" | "node" => list = Some(value.to_string()),
                "state" => state = Some(node_state(pair, value)?),
                "reason" => reason = Some(value.to_string()).filter(|r| !r.is_empty()),
                "jobid" | "job" | "partitionname" | "partition" | "reservationname" | "stepid" => {
                    return Err(Failure::user(format!(
                        "'update {key}=' is not supported: jobs are changed by hold, release and requeue, partitions in \
                         berth.toml"
                    )));
                }
                _ => {
                    return Err(plain(format!(
                        "Update of this parameter is not supported: {pair}\nRequest aborted\nNodeName, State and Reason \
                         can be given"
                    )));
                }
            }
        }
        let list = list
            .ok_or_else(|| plain("No node named\nwrite update NodeName=NODES State=STATE [Reason=TEXT]"))?;
        let state = match (state, &reason) {
            (Some(state), _) => state,
            (None, Some(_)) => {
                return Err(plain("State is missing: a reason is set together with DOWN, DRAIN or FAIL"));
            }
            (None, None) => return Err(plain("No changes specified")),
        };
        let needs_reason =
            matches!(state, NodeStateChange::Down | NodeStateChange::Drain | NodeStateChange::Fail);
        if needs_reason && reason.is_none() {
            return Err(plain(
                "You must specify a reason when DOWNING or DRAINING a node. Request denied\nadd Reason=TEXT",
            ));
        }
        let nodes = if list.eq_ignore_ascii_case("ALL") { None } else { Some(nodes(&list)?) };
        Ok(NodeUpdate { nodes, state, reason })
    }
}

fn node_state(pair: &str, value: &str) -> Result<NodeStateChange, Failure> {
    Ok(match value.to_ascii_uppercase().as_str() {
        "DOWN" => NodeStateChange::Down,
        "DRAIN" => NodeStateChange::Drain,
        "FAIL" => NodeStateChange::Fail,
        "RESUME" => NodeStateChange::Resume,
        "IDLE" => NodeStateChange::Idle,
        "UNDRAIN" => NodeStateChange::Undrain,
        "CANCEL_REBOOT" => NodeStateChange::CancelReboot,
        "FUTURE" => {
            return Err(plain(format!(
                "{pair}: nodes register themselves, there are no future ones\nRequest aborted"
            )));
        }
        power if power.starts_with("POWER_") => {
            return Err(plain(format!(
                "{pair}: nodes are not powered by the scheduler; use 'scontrol reboot', or drain them and switch them off\n\
                 Request aborted"
            )));
        }
        "NORESP" | "NO_RESP" => {
            return Err(plain(format!(
                "{pair}: a node that does not respond is found out by itself; use DOWN where its jobs are to count as lost\n\
                 Request aborted"
            )));
        }
        _ => {
            return Err(plain(format!(
                "Invalid input: {pair}\nRequest aborted\nValid states are: DOWN DRAIN FAIL RESUME IDLE UNDRAIN CANCEL_REBOOT\n\
                 Not all states are valid given a node's prior state"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update_of(pairs: &[&str]) -> Result<NodeUpdate, Failure> {
        NodeUpdate::read(&pairs.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn keywords_by_their_start() {
        assert_eq!(keyword("sh").unwrap(), "show");
        assert_eq!(keyword("Hold").unwrap(), "hold");
        assert!(keyword("re").unwrap_err().text.contains("release or requeue"));
        assert!(keyword("bogus").unwrap_err().text.starts_with("invalid keyword: bogus"));
        assert!(keyword("suspend").unwrap_err().text.contains("scancel -s STOP"));
    }

    #[test]
    fn reboots() {
        let read =
            |words: &[&str]| RebootCall::read(&words.iter().map(ToString::to_string).collect::<Vec<_>>());
        let all = RebootCall { nodes: Vec::new(), asap: false, next: NextState::Before, reason: None };
        assert_eq!(read(&["ALL"]).unwrap(), all);
        let some = read(&["asap", "nextstate=down", "reason=new kernel", "n[1-2]"]).unwrap();
        assert_eq!((some.nodes.len(), some.asap, some.next), (2, true, NextState::Down));
        assert_eq!(some.reason.as_deref(), Some("new kernel"));
        assert!(read(&["ASAP"]).unwrap_err().text.contains("node list"));
        assert!(read(&["nextstate=idle", "n1"]).unwrap_err().text.contains("RESUME or DOWN"));
        assert!(read(&["when=now", "n1"]).unwrap_err().text.contains("when=now"));
        assert!(
            update_of(&["nodename=n1", "state=power_down"]).unwrap_err().text.contains("scontrol reboot")
        );
        assert!(update_of(&["nodename=n1", "state=future"]).unwrap_err().text.contains("future"));
        let cancelled = update_of(&["nodename=n1", "state=cancel_reboot"]).unwrap();
        assert_eq!(cancelled.state, NodeStateChange::CancelReboot);
    }

    #[test]
    fn node_updates() {
        let drained = update_of(&["nodename=n[1-2]", "state=drain", "reason=bad disk"]).unwrap();
        assert_eq!(drained.nodes.as_ref().map(Vec::len), Some(2));
        assert_eq!(update_of(&["NodeName=all", "state=resume"]).unwrap().nodes, None);
        assert_eq!(drained.state, NodeStateChange::Drain);
        assert!(
            update_of(&["nodename=n6", "state=drain"])
                .unwrap_err()
                .text
                .starts_with("You must specify a reason")
        );
        assert!(
            update_of(&["nodename=n6", "state=bogus"])
                .unwrap_err()
                .text
                .starts_with("Invalid input: state=bogus")
        );
        assert!(update_of(&["nodename=n6", "CPUs=8"]).unwrap_err().text.contains("not supported: CPUs=8"));
        assert_eq!(update_of(&["nodename=n6"]).unwrap_err().text, "No changes specified");
        assert!(update_of(&["JobId=3", "Nice=4"]).unwrap_err().text.contains("hold, release and requeue"));
    }

    #[test]
    fn a_refusal_names_the_job_behind_the_reason() {
        assert_eq!(
            about("Invalid job id specified: 12 is not known", "12"),
            "Invalid job id specified for job 12: 12 is not known"
        );
        assert_eq!(about("Job has already finished", "12"), "Job has already finished for job 12");
    }

    #[test]
    fn lists_of_ids() {
        assert_eq!(split("1,2_[3,4],5"), ["1", "2_[3,4]", "5"]);
    }
}
