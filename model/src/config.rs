//! `berth.toml`: the controller's typed configuration, every key with its default. No file is needed.

use crate::admission::{ImageRule, places};
use crate::bytes::ByteStr;
use crate::gpus::GpusConfig;
use crate::programs::ProgramsConfig;
use crate::quota::QuotaConfig;
use crate::signature::{SignaturePolicy, SignatureRule};
use serde::{Deserialize, Deserializer, Serialize};

mod told;

pub use told::{Understood, restricts};

/// The controller's port for other machines. Slurm's are 6817 and 6818: both can run side by side.
pub const PORT: u16 = 7817;
/// The port at which nodes give images to each other.
pub const PEERS: u16 = 7818;
/// Seconds that the start of a step may take on a node.
pub const START_TIMEOUT: u32 = 120;

/// The whole file. Unknown keys are errors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Name of the cluster.
    pub cluster: String,
    /// Where the controller listens for other machines, from the first token on: `address:port`.
    pub listen: String,
    /// Seconds for which a machine's certificate is good; it is renewed when two thirds of them are over.
    pub certificate_seconds: u32,
    /// Seconds from SIGTERM to SIGKILL.
    pub kill_wait_seconds: u32,
    /// Seconds after SIGKILL for which the end of processes is waited for. Then their job ends without them, and their node takes
    /// nothing new until they are gone.
    pub unkillable_seconds: u32,
    /// Seconds that the start of a step may take on a node, from its image's being there and the end of the prolog until its tasks run,
    /// before it is given up; 0 lets it take as long as it likes.
    pub start_timeout_seconds: u32,
    /// Seconds for which an ended job stays in `squeue`'s and `scontrol`'s sight.
    pub min_job_age_seconds: u32,
    /// Seconds without a word from an agent until its node counts as not responding.
    pub node_timeout_seconds: u32,
    /// Seconds without a word between a node and the controller after which jobs there end by themselves, so that they can run
    /// elsewhere; 0 lets them go on for ever.
    pub lost_after_seconds: u32,
    /// Nodes from which on a step is launched by a tree: the controller tells some of its nodes, which carry to the others what it signed
    /// for them; 0 tells every node directly.
    pub launch_tree_from: u32,
    /// Nodes of each branch of that tree, the one that carries among them.
    pub launch_tree_width: u32,
    /// Largest index of an array plus one.
    pub max_array_size: u32,
    /// Most jobs that wait or run at once.
    pub max_jobs: u32,
    /// Whether root may run jobs. Where nothing is said, it may as long as no other machine has joined the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub root_jobs: Option<bool>,
    /// Whether a failed or lost job goes back to the queue unless it says otherwise.
    pub requeue: bool,
    /// Days for which ended jobs stay on record for `sacct`; 0 means for ever.
    pub keep_records_days: u32,
    /// Users who may act on everything, by name. Root and the controller's own user always may.
    pub administrators: Vec<String>,
    /// Users who may act on all jobs and nodes, by name, and not on the cluster itself.
    pub operators: Vec<String>,
    /// Defaults of containers.
    pub container: ContainerConfig,
    /// Programs around jobs.
    pub programs: ProgramsConfig,
    /// GPUs: use, and idle ones.
    pub gpus: GpusConfig,
    /// The daemons' logs.
    pub logs: LogsConfig,
    /// Images: sources and the nodes' stores.
    pub images: ImagesConfig,
    /// Accounts of which something is to be said.
    #[serde(rename = "account")]
    pub accounts: Vec<AccountConfig>,
    /// Partitions; without any there is one, `main`, of all nodes.
    #[serde(rename = "partition")]
    pub partitions: Vec<PartitionConfig>,
    /// What is said of nodes beyond what they detect.
    #[serde(rename = "node")]
    pub nodes: Vec<NodeConfig>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            cluster: "berth".to_string(),
            listen: format!("0.0.0.0:{PORT}"),
            certificate_seconds: 30 * 24 * 3600,
            kill_wait_seconds: 30,
            unkillable_seconds: 60,
            start_timeout_seconds: START_TIMEOUT,
            min_job_age_seconds: 300,
            node_timeout_seconds: 60,
            lost_after_seconds: 0,
            launch_tree_from: 512,
            launch_tree_width: 64,
            max_array_size: 1001,
            max_jobs: 1_000_000,
            root_jobs: None,
            requeue: true,
            keep_records_days: 0,
            administrators: Vec::new(),
            operators: Vec::new(),
            container: ContainerConfig::default(),
            programs: ProgramsConfig::default(),
            gpus: GpusConfig::default(),
            logs: LogsConfig::default(),
            images: ImagesConfig::default(),
            accounts: Vec::new(),
            partitions: Vec::new(),
            nodes: Vec::new(),
        }
    }
}

impl Config {
    /// Seconds that the start of a step may take on a node, the site's task prolog included, which has seconds of its own; `None`: as long
    /// as it likes.
    pub fn start_seconds(&self) -> Option<u32> {
        let programs = &self.programs;
        let prolog = if programs.task_prolog.is_empty() { 0 } else { programs.task_prolog_seconds };
        (self.start_timeout_seconds > 0).then(|| self.start_timeout_seconds.saturating_add(prolog))
    }
}

/// `[container]`: what container options mean when they are not given, and what is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ContainerConfig {
    /// Mount the home directory.
    pub mount_home: bool,
    /// Show the user as root.
    pub remap_root: bool,
    /// Run the image's entrypoint.
    pub entrypoint: bool,
    /// Directories with OCI hooks (`*.json`, oci-hooks(5)), absolute; a file in a later one takes the place of one of the
    /// same name.
    pub hooks_dirs: Vec<ByteStr>,
    /// Days after which a container that is kept for a user (`--container-scope=user`) and was not used is removed; 0
    /// keeps it until its user removes it.
    pub keep_days: u32,
}

/// `[logs]`: how much the daemons keep of their logs in the state directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LogsConfig {
    /// Most that one file holds, such as `16M`; then another is begun.
    pub max_size: String,
    /// How many earlier files of each daemon stay.
    pub keep: u32,
}

impl Default for LogsConfig {
    fn default() -> Self {
        LogsConfig { max_size: "16M".to_string(), keep: 4 }
    }
}

impl LogsConfig {
    /// Most earlier files.
    const MOST: u32 = 1000;

    /// Bytes of [`LogsConfig::max_size`]; without end for a text that [`Config::check`] refuses.
    pub fn max_bytes(&self) -> u64 {
        crate::memory::parse(&self.max_size).ok().and_then(|mib| mib.checked_mul(1 << 20)).unwrap_or(u64::MAX)
    }

    /// Tells `wrong` each key with what is wrong with it.
    pub(crate) fn check(&self, wrong: &mut dyn FnMut(String, String)) {
        match crate::memory::parse(&self.max_size) {
            Ok(0) => wrong("logs.max_size".into(), "nothing fits into 0: write 1M at least".into()),
            Ok(_) => {}
            Err(error) => wrong("logs.max_size".into(), error.to_string()),
        }
        if self.keep > Self::MOST {
            wrong("logs.keep".into(), format!("write how many earlier files stay, {} at most", Self::MOST));
        }
    }
}

/// `[images]`: where images come from and how nodes keep them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImagesConfig {
    /// Registries spoken to without TLS, as `host:port`.
    pub insecure_registries: Vec<String>,
    /// How layers of images are kept.
    pub layer_form: LayerForm,
    /// PEM files on each node with authorities whose certificates registries may have, beside the system's; absolute.
    pub certificate_authorities: Vec<ByteStr>,
    /// Where each node keeps its store: an absolute path on a local disk; empty means `images` in the state directory.
    pub path: ByteStr,
    /// Most that the store may take in each node's memory, where it is then, such as `8G`; empty keeps it on a disk.
    pub memory: String,
    /// For how many waiting jobs a node may be told to fetch images before they start; 0 is written `"off"`.
    #[serde(with = "prefetch")]
    pub prefetch: u32,
    /// The port at which each node gives images to others; 0 is written `"off"`: each node fetches by itself then.
    #[serde(with = "peers")]
    pub peers: u32,
    /// Hostlist of nodes that fetch images for those without a way to registries: where it names one that is up, no other node asks
    /// a registry. Empty: each node may.
    pub gateways: String,
    /// So many nodes have to have made a layer's read-only image alike, each by itself, before others take it as it is instead of making their
    /// own of the layer's archive; 0, the default: none is taken, and kernels mount what their own node made alone.
    pub forms_agreed: u32,
    /// Percent of the filesystem with a node's store in use above which images that nobody needs are removed, those not
    /// used for longest first; 100 waits until it is full.
    pub high_watermark: u32,
    /// Percent down to which they are removed then.
    pub low_watermark: u32,
    /// Most that the layers in a node's store may take, such as `200G`; empty sets no bound of its own.
    pub max_size: String,
    /// Days after which an image that was not used and that nobody needs is removed in any case; 0 keeps it, which is also what
    /// agents take it for where they are told nothing.
    pub keep_days: u32,
    /// Most that the images of one user may take on a node that users share, such as `200G`; empty sets no bound.
    pub user_quota: String,
    /// Other quotas for some users.
    #[serde(rename = "quota")]
    pub quotas: Vec<QuotaConfig>,
    /// Places that are asked before a registry.
    #[serde(rename = "mirror")]
    pub mirrors: Vec<MirrorConfig>,
    /// Where images of jobs may come from, where that is not everywhere: registries, repositories and paths, each with all
    /// below it, and the stores of podman (`containers-storage:`) and docker (`docker-daemon:`).
    #[serde(deserialize_with = "places", skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Where they may not come from, whatever is allowed; `host:` stands for jobs without an image.
    #[serde(deserialize_with = "places", skip_serializing_if = "Vec::is_empty")]
    pub deny: Vec<String>,
    /// What holds for jobs of some accounts beside that.
    #[serde(rename = "rule")]
    pub rules: Vec<ImageRule>,
    /// What comes of images without a signature for which there is no rule.
    pub signatures: SignaturePolicy,
    /// Whose signatures images need.
    #[serde(rename = "signature")]
    pub signature_rules: Vec<SignatureRule>,
}

impl Default for ImagesConfig {
    fn default() -> Self {
        ImagesConfig {
            insecure_registries: Vec::new(),
            layer_form: LayerForm::Auto,
            certificate_authorities: Vec::new(),
            path: ByteStr::default(),
            memory: String::new(),
            prefetch: 2,
            peers: u32::from(PEERS),
            gateways: String::new(),
            forms_agreed: 0,
            high_watermark: 85,
            low_watermark: 75,
            max_size: String::new(),
            keep_days: 90,
            user_quota: String::new(),
            quotas: Vec::new(),
            mirrors: Vec::new(),
            allow: Vec::new(),
            deny: Vec::new(),
            rules: Vec::new(),
            signatures: SignaturePolicy::default(),
            signature_rules: Vec::new(),
        }
    }
}

impl ImagesConfig {
    /// Most that [`ImagesConfig::forms_agreed`] may be: of so many nodes the controller remembers what they made.
    pub const MOST_AGREED: u32 = 64;

    /// MiB of [`ImagesConfig::memory`]; 0 for a store on a disk, and for a text that [`Config::check`] refuses.
    pub fn memory_mib(&self) -> u64 {
        crate::memory::parse(&self.memory).unwrap_or(0)
    }

    /// The port of [`ImagesConfig::peers`]; nothing where it is off.
    pub fn peer_port(&self) -> Option<u16> {
        u16::try_from(self.peers).ok().filter(|port| *port > 0)
    }

    /// Bytes of [`ImagesConfig::max_size`]; `None` without a bound, and for a text that [`Config::check`] refuses.
    pub fn max_bytes(&self) -> Option<u64> {
        crate::memory::parse(&self.max_size).ok().map(|mib| mib << 20)
    }
}

/// A port, or `"off"`.
mod peers {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(value: &u32, to: S) -> Result<S::Ok, S::Error> {
        super::prefetch::serialize(value, to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        use super::prefetch::Written;
        match Written::deserialize(from) {
            Ok(Written::Number(port)) => Ok(port),
            Ok(Written::Word(word)) if word == "off" => Ok(0),
            _ => Err(D::Error::custom("write the port at which nodes give images to each other, or \"off\"")),
        }
    }
}

/// A number, or `"off"`.
mod prefetch {
    use serde::de::Error;
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    pub(super) enum Written {
        Number(u32),
        Word(String),
    }

    pub fn serialize<S: Serializer>(value: &u32, to: S) -> Result<S::Ok, S::Error> {
        if *value == 0 { to.serialize_str("off") } else { to.serialize_u32(*value) }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
        match Written::deserialize(from) {
            Ok(Written::Number(value)) => Ok(value),
            Ok(Written::Word(word)) if word == "off" => Ok(0),
            _ => Err(D::Error::custom("write for how many waiting jobs a node may fetch images, or \"off\"")),
        }
    }
}

/// `[[images.mirror]]`: what has the images of a registry too.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MirrorConfig {
    /// The registry, as `host` or `host:port`; docker's is `docker.io`.
    pub registry: String,
    /// `http://` or `https://`, a host, and perhaps a port and a path; asked in this order, and then the registry.
    pub urls: Vec<String>,
    /// Whether whoever these mirrors give an image to may use it on a node that users share; else the registry itself is
    /// asked whether they may.
    pub grants: bool,
}

/// How nodes keep layers of images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerForm {
    /// As images where root acts for users and the node's kernel mounts them, elsewhere as directories.
    #[default]
    Auto,
    /// As directories.
    Directory,
    /// As read-only EROFS images.
    Erofs,
}

impl Default for ContainerConfig {
    fn default() -> Self {
        ContainerConfig {
            mount_home: false,
            remap_root: false,
            entrypoint: false,
            hooks_dirs: Vec::new(),
            keep_days: 30,
        }
    }
}

/// `[[account]]`: what jobs are submitted under (`--account`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AccountConfig {
    /// Its name.
    pub name: String,
    /// Users who may act on the jobs of others that are submitted under it, by name.
    pub coordinators: Vec<String>,
    /// Users who may submit under it, by name, where not everybody may; its coordinators may, too.
    #[serde(deserialize_with = "users", skip_serializing_if = "Vec::is_empty")]
    pub users: Vec<String>,
}

/// A list that is written down and empty could be meant as "nobody" and as "everybody".
fn users<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<String>, D::Error> {
    let list = Vec::deserialize(from)?;
    if list.is_empty() {
        return Err(serde::de::Error::custom(
            "the list is empty: name the users who may submit under the account, or leave it out",
        ));
    }
    Ok(list)
}

impl AccountConfig {
    /// Whether a user of this name may submit under it.
    pub fn takes(&self, user: &str) -> bool {
        self.users.is_empty() || self.users.iter().chain(&self.coordinators).any(|own| own == user)
    }
}

/// `[[partition]]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PartitionConfig {
    /// Its name.
    pub name: String,
    /// Hostlist of its nodes, or `ALL`.
    pub nodes: String,
    /// Whether it takes jobs that name no partition.
    pub default: bool,
    /// Longest time limit, such as `1-00:00:00` or `UNLIMITED`.
    pub max_time: String,
    /// Time limit of jobs that give none; empty means `max_time`.
    pub default_time: String,
    /// Most nodes a job may have; 0 means no bound.
    pub max_nodes: u32,
    /// Memory in MiB for each CPU of a job that gives none; 0 means the node's share.
    pub default_mem_per_cpu: u64,
    /// CPUs that come with each GPU of a job that asks for GPUs and says nothing of CPUs; 0 means the node's share.
    pub default_cpus_per_gpu: u32,
    /// Memory in MiB that comes with each GPU of a job that gives none; 0 means the node's share, or what
    /// `default_mem_per_cpu` says.
    pub default_mem_per_gpu: u64,
    /// `UP` or `DOWN` (takes jobs, starts none), `DRAIN` (takes none, starts what it has), `INACTIVE` (neither).
    pub state: PartitionState,
}

impl Default for PartitionConfig {
    fn default() -> Self {
        PartitionConfig {
            name: "main".to_string(),
            nodes: "ALL".to_string(),
            default: false,
            max_time: "UNLIMITED".to_string(),
            default_time: String::new(),
            max_nodes: 0,
            default_mem_per_cpu: 0,
            default_cpus_per_gpu: 0,
            default_mem_per_gpu: 0,
            state: PartitionState::Up,
        }
    }
}

/// Whether a partition takes and starts jobs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum PartitionState {
    /// Takes and starts.
    #[default]
    Up,
    /// Takes, starts none.
    Down,
    /// Takes none, starts what waits.
    Drain,
    /// Neither.
    Inactive,
}

/// `[[node]]`: additions to what agents detect.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// Hostlist of the nodes it is about, or `ALL`.
    pub name: String,
    /// Memory held back for the system, in MiB; absent means a default by size.
    pub memory_reserved: Option<u64>,
    /// Generic resources.
    pub gres: Vec<GresConfig>,
}

/// `[[node.gres]]`: devices that agents do not detect by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GresConfig {
    /// Resource name, such as `gpu`.
    pub name: String,
    /// Type, such as `a100`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Device files, one device each; hostlist brackets allowed (`/dev/nvidia[0-7]`).
    pub files: Vec<ByteStr>,
    /// Names of devices in the administrator's CDI files, one device each; hostlist brackets allowed (`vendor.com/class=card[0-3]`).
    pub cdi: Vec<String>,
    /// How many, where there are no files.
    pub count: Option<u32>,
    /// Cores near to them, by their numbers from 0 (`0-7,16`), where the node does not say that itself.
    pub cores: Option<String>,
    /// How many may share each by slices of time: `--gres=shard:N` asks for so many of them.
    pub shards: Option<u32>,
    /// Each is shared by NVIDIA's Multi-Process Service: `--gres=mps:PERCENT` asks for a part of one.
    pub mps: bool,
    /// Words of Slurm's gres.conf: `CountOnly`, `one_sharing`.
    pub flags: Vec<String>,
}
