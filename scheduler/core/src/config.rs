//! The configuration as the core uses it: names expanded and limits parsed once.

use berth_model::bytes::ByteStr;
use berth_model::carry::MOST_CARRIED;
use berth_model::config::{AccountConfig, Config, GresConfig, ImagesConfig, PartitionConfig, PartitionState};
use berth_model::devices::GPU;
use berth_model::gpus::GpusConfig;
use berth_model::hardware::{GresDevice, Hardware, Vendor};
use berth_model::hostlist;
use berth_model::ids::NodeName;
use berth_model::programs::ProgramsConfig;
use berth_model::spec::TimeLimit;
use berth_model::time::Span;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Something in `berth.toml` that cannot be meant.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("berth.toml: {place}: {why}")]
pub struct ConfigError {
    /// Section and name.
    pub place: String,
    /// What is wrong, and what to write instead.
    pub why: String,
}

/// Everything that the core must know of the site.
#[derive(Clone, Debug)]
pub struct CoreConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// From SIGTERM to SIGKILL.
    pub kill_wait: Span,
    /// For how long an agent waits after SIGKILL for what does not end.
    pub unkillable: Span,
    /// How long an ended job stays in memory.
    pub min_job_age: Span,
    /// Silence after which a node counts as not responding.
    pub node_timeout: Span,
    /// For how long runs go on without a word between their node and the controller; absent: for ever.
    pub lost_after: Option<Span>,
    /// How steps over many nodes are launched; absent: each node is told directly.
    pub tree: Option<TreeRules>,
    /// Largest index of an array plus one.
    pub max_array_size: u32,
    /// Most jobs that wait or run at once.
    pub max_jobs: u32,
    /// Whether root may run jobs; `None`: while no other machine belongs to the cluster.
    pub root_jobs: Option<bool>,
    /// Whether batch jobs go back to the queue when their node is lost, unless they say otherwise.
    pub requeue: bool,
    /// Partitions, in order; the default one first among equals.
    pub partitions: Arc<Vec<PartitionRules>>,
    /// Additions to nodes.
    pub nodes: Vec<NodeRules>,
    /// Nodes that fetch images for all others.
    pub gateways: BTreeSet<NodeName>,
    /// What is said of accounts.
    pub accounts: Vec<AccountConfig>,
    /// Which images jobs may have.
    pub images: ImagesConfig,
    /// What becomes of jobs that leave their GPUs idle; absent: nothing.
    pub idle: Option<IdleRules>,
    /// Whether the site has a program that `srun` runs before its steps.
    pub srun_prolog: bool,
    /// Within which time the client of a step that waits for such a program says that it has ended.
    pub told_within: Span,
    /// How silent nodes are powered off; absent: they are not.
    pub fence: Option<FenceRules>,
    /// The controller is not root: the cluster is its user's alone, with that user's rights on the controller's machine.
    pub user_mode: bool,
    /// What agents are told.
    pub for_agents: Arc<Config>,
}

/// How steps over many nodes are launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeRules {
    /// Those of so many nodes, and more.
    pub from: usize,
    /// By branches of so many.
    pub width: usize,
}

/// How nodes are powered off of which nothing is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceRules {
    /// After so long without a word.
    pub after: Span,
    /// By this program.
    pub program: ByteStr,
    /// Which has so many seconds.
    pub seconds: u32,
}

/// What becomes of jobs that leave their GPUs idle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdleRules {
    /// A GPU is idle below this, in per cent.
    pub percent: u32,
    /// For how long all of a job's must be idle until it is warned.
    pub warn: Span,
    /// How long after that it is ended.
    pub release: Option<Span>,
}

/// A partition with its texts parsed.
#[derive(Clone, Debug)]
pub struct PartitionRules {
    /// As configured.
    pub config: PartitionConfig,
    /// Its name.
    pub name: Arc<str>,
    /// Its nodes; `None` means all.
    pub nodes: Option<BTreeSet<NodeName>>,
    /// Longest limit.
    pub max_time: TimeLimit,
    /// Limit of jobs that give none.
    pub default_time: TimeLimit,
}

impl PartitionRules {
    /// Whether the node is in it.
    pub fn has(&self, node: &NodeName) -> bool {
        self.nodes.as_ref().is_none_or(|set| set.contains(node))
    }
}

/// What is said of some nodes beyond what they detect.
#[derive(Clone, Debug)]
pub struct NodeRules {
    /// The nodes; `None` means all.
    pub nodes: Option<BTreeSet<NodeName>>,
    /// Memory held back, in MiB.
    pub memory_reserved: Option<u64>,
    /// Devices, without index.
    pub gres: Vec<DeviceRule>,
}

/// A device that the configuration names, or what it says of those that a node finds.
#[derive(Clone, Debug)]
pub struct DeviceRule {
    /// As far as it is known without the node.
    pub device: GresDevice,
    /// Numbers of cores near to it; none where that was not said.
    pub cores: Vec<u32>,
    /// It is nothing where the node finds no such device: it only describes them.
    pub describes: bool,
}

fn idle_rules(gpus: &GpusConfig) -> Option<IdleRules> {
    let span = |seconds: u64| i64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Span::from_secs);
    let warn = span(gpus.idle_warn())?;
    Some(IdleRules { percent: gpus.idle_percent, warn, release: span(gpus.idle_release()) })
}

fn fence_rules(programs: &ProgramsConfig) -> Option<FenceRules> {
    let after = Span::from_secs(programs.fence_after_seconds.into());
    let rules = FenceRules { after, program: programs.fence.clone(), seconds: programs.fence_seconds };
    Some(rules).filter(|rules| !rules.program.is_empty() && rules.after.0 > 0)
}

fn tree_rules(config: &Config) -> Option<TreeRules> {
    let from = usize::try_from(config.launch_tree_from).ok().filter(|from| *from > 0)?;
    let width = usize::try_from(config.launch_tree_width.clamp(2, MOST_CARRIED)).ok()?;
    Some(TreeRules { from, width })
}

impl CoreConfig {
    /// Reads the file's texts; without a partition there is one, `main`, of all nodes.
    ///
    /// # Errors
    /// Names the section, what is wrong there, and what to write.
    pub fn new(config: &Config) -> Result<CoreConfig, ConfigError> {
        let mut partitions = Vec::new();
        if config.partitions.is_empty() {
            partitions.push(partition(&PartitionConfig { default: true, ..PartitionConfig::default() })?);
        }
        for p in &config.partitions {
            partitions.push(partition(p)?);
        }
        let mut names = BTreeSet::new();
        for p in &partitions {
            if !names.insert(p.name.clone()) {
                return Err(ConfigError {
                    place: format!("[[partition]] '{}'", p.name),
                    why: "the name is used twice; rename one of them".into(),
                });
            }
        }
        if partitions.iter().filter(|p| p.config.default).count() > 1 {
            return Err(ConfigError {
                place: "[[partition]]".into(),
                why: "more than one partition says `default = true`; keep one".into(),
            });
        }
        if let [only] = partitions.as_mut_slice() {
            only.config.default = true;
        }
        let mut nodes = Vec::new();
        for n in &config.nodes {
            let place = format!("[[node]] '{}'", n.name);
            let mut gres = Vec::new();
            for g in &n.gres {
                devices(g, &place, &mut gres)?;
            }
            nodes.push(NodeRules {
                nodes: node_set(&n.name, &place)?,
                memory_reserved: n.memory_reserved,
                gres,
            });
        }
        Ok(CoreConfig {
            cluster: config.cluster.clone(),
            kill_wait: Span::from_secs(config.kill_wait_seconds.into()),
            unkillable: Span::from_secs(config.unkillable_seconds.into()),
            min_job_age: Span::from_secs(config.min_job_age_seconds.into()),
            node_timeout: Span::from_secs(config.node_timeout_seconds.into()),
            idle: idle_rules(&config.gpus),
            lost_after: Some(Span::from_secs(config.lost_after_seconds.into())).filter(|span| span.0 > 0),
            tree: tree_rules(config),
            max_array_size: config.max_array_size,
            max_jobs: config.max_jobs,
            root_jobs: config.root_jobs,
            requeue: config.requeue,
            partitions: Arc::new(partitions),
            nodes,
            gateways: match config.images.gateways.as_str() {
                "" => BTreeSet::new(),
                text => {
                    let gateways = hostlist::expand(text)
                        .map_err(|e| ConfigError { place: "images.gateways".into(), why: e.to_string() })?;
                    gateways.into_iter().map(NodeName).collect()
                }
            },
            accounts: config.accounts.clone(),
            images: config.images.clone(),
            srun_prolog: !config.programs.srun_prolog.is_empty(),
            // The program's own time, and some for its client to come and to say so.
            told_within: Span::from_secs(i64::from(config.programs.srun_prolog_seconds) + 30),
            fence: fence_rules(&config.programs),
            user_mode: false,
            for_agents: Arc::new(config.for_agents()),
        })
    }

    /// That of a controller that is not root, or is: no file says it.
    #[must_use]
    pub fn in_user_mode(self, user_mode: bool) -> CoreConfig {
        CoreConfig { user_mode, ..self }
    }

    /// The partition of that name.
    pub fn partition(&self, name: &str) -> Option<&PartitionRules> {
        self.partitions.iter().find(|p| &*p.name == name)
    }

    /// The partition of jobs that name none.
    pub fn default_partition(&self) -> Option<&PartitionRules> {
        self.partitions.iter().find(|p| p.config.default)
    }

    /// What an agent detected, with what the configuration adds.
    pub fn complete(&self, node: &NodeName, detected: &Hardware) -> Hardware {
        let mut hw = detected.clone();
        for rules in self.nodes.iter().filter(|r| r.nodes.as_ref().is_none_or(|set| set.contains(node))) {
            if let Some(mib) = rules.memory_reserved {
                // What the store of images takes the agent has counted in what it detected, and no rule takes it back.
                hw.memory_reserved = mib.saturating_add(self.images.memory_mib());
            }
            for rule in &rules.gres {
                add(rule, &mut hw);
            }
        }
        hw.memory_reserved = hw.memory_reserved.min(hw.memory);
        hw.gres.sort_by(|a, b| (&a.name, a.index).cmp(&(&b.name, b.index)));
        hw
    }
}

fn partition(p: &PartitionConfig) -> Result<PartitionRules, ConfigError> {
    let place = format!("[[partition]] '{}'", p.name);
    let max_time = time_limit(&p.max_time, "max_time", &place)?;
    let default_time = if p.default_time.is_empty() {
        max_time
    } else {
        time_limit(&p.default_time, "default_time", &place)?
    };
    if default_time > max_time {
        return Err(ConfigError {
            place,
            why: "default_time is longer than max_time; shorten it or raise max_time".into(),
        });
    }
    Ok(PartitionRules {
        nodes: node_set(&p.nodes, &place)?,
        name: Arc::from(p.name.as_str()),
        max_time,
        default_time,
        config: p.clone(),
    })
}

impl PartitionRules {
    /// Whether it starts jobs.
    pub fn starts(&self) -> bool {
        matches!(self.config.state, PartitionState::Up | PartitionState::Drain)
    }

    /// Whether it takes jobs.
    pub fn takes(&self) -> bool {
        matches!(self.config.state, PartitionState::Up | PartitionState::Down)
    }
}

fn time_limit(text: &str, key: &str, place: &str) -> Result<TimeLimit, ConfigError> {
    let bad = |why: String| ConfigError { place: place.to_string(), why };
    text.parse().map_err(|e| bad(format!("{key}: {e}")))
}

fn node_set(text: &str, place: &str) -> Result<Option<BTreeSet<NodeName>>, ConfigError> {
    if text.eq_ignore_ascii_case("all") {
        return Ok(None);
    }
    let names = hostlist::expand(text)
        .map_err(|e| ConfigError { place: place.to_string(), why: format!("node names: {e}") })?;
    if names.is_empty() {
        return Err(ConfigError {
            place: place.to_string(),
            why: "no node is named; write a hostlist such as n[1-4], or ALL".into(),
        });
    }
    Ok(Some(names.into_iter().map(NodeName).collect()))
}

/// Adds a device to a node's, or what is said of those that it found itself: of these it knows all else better, and nothing is counted twice.
fn add(rule: &DeviceRule, hw: &mut Hardware) {
    let device = &rule.device;
    let cores = rule.cores.iter().filter_map(|core| hw.cores.get(*core as usize));
    let mut near: Vec<u32> = cores.flat_map(|core| core.cpus.iter().copied()).collect();
    near.sort_unstable();
    let same = |d: &&mut GresDevice| {
        let mine = d.name == device.name && device.files.iter().all(|f| d.files.contains(f));
        match &device.cdi {
            // Its node's agent has read the file that names it.
            Some(_) => d.cdi == device.cdi && d.name == device.name,
            // Of its files the agent names those alone that cannot be given.
            None => mine && (d.vendor != Vendor::Generic || d.cdi.is_none() && !device.files.is_empty()),
        }
    };
    // With a file or a name it is one device; without one it is about all.
    let most = if device.files.is_empty() && device.cdi.is_none() { usize::MAX } else { 1 };
    let mut is_found = false;
    for found in hw.gres.iter_mut().filter(same).take(most) {
        is_found = true;
        if !device.files.is_empty() && device.kind.is_some() {
            found.kind.clone_from(&device.kind);
        }
        if device.shares > 1 {
            (found.shares, found.mps) = (device.shares, device.mps);
        }
        if !near.is_empty() {
            found.cpus.clone_from(&near);
        }
    }
    if is_found || rule.describes {
        return;
    }
    let index = hw.gres.iter().filter(|d| d.name == device.name).count();
    let index = u32::try_from(index).unwrap_or(u32::MAX);
    hw.gres.push(GresDevice { index, cpus: near, ..device.clone() });
}

fn devices(g: &GresConfig, place: &str, out: &mut Vec<DeviceRule>) -> Result<(), ConfigError> {
    let bad = |why: String| ConfigError { place: format!("{place} gres '{}'", g.name), why };
    if g.name.is_empty() {
        return Err(bad("a resource needs a name, such as gpu".into()));
    }
    let mut files = Vec::new();
    for pattern in &g.files {
        match std::str::from_utf8(&pattern.0) {
            Ok(text) if text.contains('[') => {
                let names = hostlist::expand(text).map_err(|e| bad(format!("files: {e}")))?;
                files.extend(names.into_iter().map(berth_model::ByteStr::from));
            }
            _ => files.push(pattern.clone()),
        }
    }
    let cores = g.near_cores().map_err(|e| bad(format!("cores: {e}")))?;
    let named = g.cdi_names().map_err(|e| bad(format!("cdi: {e}")))?;
    let device = |files, cdi| DeviceRule {
        device: GresDevice {
            name: g.name.clone(),
            kind: g.kind.clone(),
            files,
            cdi,
            // Of MPS they are hundredths.
            shares: if g.mps { 100 } else { g.shards.unwrap_or(1).max(1) },
            mps: g.mps,
            ..GresDevice::default()
        },
        cores: cores.clone(),
        describes: g.files.is_empty() && g.count.is_none(),
    };
    if !named.is_empty() {
        out.extend(named.into_iter().map(|name| device(Vec::new(), Some(name))));
        return Ok(());
    }
    match (files.is_empty(), g.count) {
        (true, None) if g.name == GPU && g.describes() => {
            out.push(device(Vec::new(), None));
            Ok(())
        }
        (true, None) => Err(bad("neither files nor count is given; give one of them".into())),
        (true, Some(n)) if n > 4096 => Err(bad(format!("count = {n} is more than 4096"))),
        (true, Some(n)) => {
            out.extend((0..n).map(|_| device(Vec::new(), None)));
            Ok(())
        }
        (false, Some(n)) if n as usize != files.len() => {
            Err(bad(format!("count = {n}, but {} files are named; leave count out", files.len())))
        }
        (false, _) => {
            out.extend(files.into_iter().map(|f| device(vec![f], None)));
            Ok(())
        }
    }
}
