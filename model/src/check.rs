//! Validation of `berth.toml` beyond its syntax: every problem at once, by key, with the next step.

use crate::config::{Config, ImagesConfig, NodeConfig, PartitionConfig};
use crate::spec::TimeLimit;
use crate::{array, hostlist};
use std::collections::BTreeSet;
use std::fmt;

mod gres;
mod twice;

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The key, such as `partition[2].max_time`; tables are counted from 1.
    pub key: String,
    /// What is wrong and what to write.
    pub why: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.why)
    }
}

struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, key: impl Into<String>, why: impl Into<String>) {
        self.0.push(Problem { key: key.into(), why: why.into() });
    }
}

/// Seconds for which certificates may be good. One that is renewed more often than every few seconds is not worth its
/// connections.
const CERTIFICATES: std::ops::RangeInclusive<u32> = 10..=366 * 24 * 3600;

impl Config {
    /// All problems, in the order of the file; none means that a controller will take it.
    pub fn check(&self) -> Vec<Problem> {
        let mut out = Problems(Vec::new());
        if !is_word(&self.cluster) {
            out.add(
                "cluster",
                format!("'{}' is not a name; write letters, digits, '_' and '-'", self.cluster),
            );
        }
        if !CERTIFICATES.contains(&self.certificate_seconds) {
            out.add(
                "certificate_seconds",
                format!(
                    "write for how many seconds a machine's certificate is good, from {} to {} (a year)",
                    CERTIFICATES.start(),
                    CERTIFICATES.end()
                ),
            );
        }
        if self.kill_wait_seconds > 65_533 {
            out.add("kill_wait_seconds", "it is more than 65533; write the seconds from SIGTERM to SIGKILL");
        }
        if !(1..=65_533).contains(&self.unkillable_seconds) {
            out.add(
                "unkillable_seconds",
                "write for how many seconds the end of killed processes is waited for, from 1 to 65533",
            );
        }
        if self.start_timeout_seconds > 65_533 {
            out.add(
                "start_timeout_seconds",
                "it is more than 65533; write the seconds that the start of a step may take, or 0 for no limit",
            );
        }
        if self.lost_after_seconds != 0 && self.lost_after_seconds < self.node_timeout_seconds.max(5) {
            out.add(
                "lost_after_seconds",
                "jobs would end on nodes that do not even count as not responding: write node_timeout_seconds at least, \
                 or 0 for never",
            );
        }
        let programs = &self.programs;
        if !programs.fence.is_empty() && programs.fence_after_seconds < self.node_timeout_seconds.max(5) {
            out.add(
                "programs.fence_after_seconds",
                "nodes would be powered off that do not even count as not responding: write node_timeout_seconds at least",
            );
        }
        if programs.fence.is_empty() && programs.fence_after_seconds != 0 {
            out.add(
                "programs.fence",
                "write which program powers a node off, or leave fence_after_seconds out",
            );
        }
        if self.node_timeout_seconds < 5 {
            out.add(
                "node_timeout_seconds",
                "a shorter time than 5 seconds would lose nodes that are merely busy",
            );
        }
        if self.max_array_size == 0 || self.max_array_size > array::MOST_INDEX + 1 {
            out.add("max_array_size", format!("write a number from 1 to {}", array::MOST_INDEX + 1));
        }
        if self.max_jobs == 0 {
            out.add("max_jobs", "with 0 no job could be submitted; write how many may wait and run at once");
        }
        for user in self.administrators.iter().filter(|user| !is_user(user)) {
            out.add(
                "administrators",
                format!("'{user}' is not a user's name: name users one by one, groups are not looked up"),
            );
        }
        for user in self.operators.iter().filter(|user| !is_user(user)) {
            out.add(
                "operators",
                format!("'{user}' is not a user's name: name users one by one, groups are not looked up"),
            );
        }
        for registry in &self.images.insecure_registries {
            if registry.is_empty() || registry.contains(['/', ' ', '@', '#']) {
                out.add("images.insecure_registries", format!("'{registry}' is not HOST or HOST:PORT"));
            }
        }
        self.images.check_mirrors(&mut out);
        for file in self.images.certificate_authorities.iter().filter(|file| !file.0.starts_with(b"/")) {
            out.add(
                "images.certificate_authorities",
                format!("'{}' is not an absolute path", file.display()),
            );
        }
        if self.images.peers > u32::from(u16::MAX) {
            out.add("images.peers", format!("{} is no port: write one, or \"off\"", self.images.peers));
        }
        if !self.images.gateways.is_empty()
            && let Err(error) = crate::hostlist::expand(&self.images.gateways)
        {
            out.add("images.gateways", error.to_string());
        }
        if !self.images.gateways.is_empty() && self.images.peers == 0 {
            out.add("images.gateways", "nodes give images to others only with a port in images.peers");
        }
        if self.images.forms_agreed > ImagesConfig::MOST_AGREED {
            let most = ImagesConfig::MOST_AGREED;
            out.add(
                "images.forms_agreed",
                format!("write how many nodes have to agree, {most} at most, or 0"),
            );
        }
        self.images.check_place(&mut out);
        self.check_room(&mut out);
        self.images.check_quotas(&mut |key, why| out.add(key, why));
        self.images.check_rules(&mut |key, why| out.add(key, why));
        self.images.check_signatures(&mut |key, why| out.add(key, why));
        self.programs.check(&mut |key, why| out.add(key, why));
        self.gpus.check(&mut |key, why| out.add(key, why));
        self.logs.check(&mut |key, why| out.add(key, why));
        for dir in self.container.hooks_dirs.iter().filter(|dir| !dir.0.starts_with(b"/")) {
            out.add("container.hooks_dirs", format!("'{}' is not an absolute path", dir.display()));
        }
        self.check_accounts(&mut out);
        self.check_partitions(&mut out);
        for (at, node) in self.nodes.iter().enumerate() {
            check_node(&format!("node[{}]", at + 1), node, &mut out);
        }
        twice::check(&self.nodes, &mut out);
        out.0
    }

    fn check_room(&self, out: &mut Problems) {
        let images = &self.images;
        if images.high_watermark == 0 || images.high_watermark > 100 {
            let why = format!("{} is no percentage from 1 to 100", images.high_watermark);
            out.add("images.high_watermark", why);
        }
        if images.low_watermark > images.high_watermark {
            let why = format!("{} is above high_watermark, {}", images.low_watermark, images.high_watermark);
            out.add("images.low_watermark", why);
        }
        if images.max_size.is_empty() {
            return;
        }
        match crate::memory::parse(&images.max_size) {
            Ok(0) => out.add("images.max_size", "with 0 no image could stay; leave it out for no bound"),
            Ok(_) => {}
            Err(error) => out.add("images.max_size", error.to_string()),
        }
    }

    fn check_accounts(&self, out: &mut Problems) {
        let mut seen = BTreeSet::new();
        for (at, account) in self.accounts.iter().enumerate() {
            let (key, name) = (format!("account[{}]", at + 1), account.name.as_str());
            if name.is_empty() || name.trim() != name {
                out.add(
                    format!("{key}.name"),
                    format!("'{name}' is no account; write it as --account has it"),
                );
            }
            if !seen.insert(name.to_ascii_lowercase()) {
                out.add(
                    format!("{key}.name"),
                    format!("account '{name}' is there twice, capitals apart; keep one"),
                );
            }
            if account.coordinators.is_empty() {
                out.add(
                    format!("{key}.coordinators"),
                    "there is none, so the table says nothing; name users, or remove it",
                );
            }
            for user in account.coordinators.iter().filter(|user| !is_user(user)) {
                out.add(
                    format!("{key}.coordinators"),
                    format!("'{user}' is not a user's name: name users one by one, groups are not looked up"),
                );
            }
        }
    }

    fn check_partitions(&self, out: &mut Problems) {
        let mut seen = BTreeSet::new();
        for (at, partition) in self.partitions.iter().enumerate() {
            let key = format!("partition[{}]", at + 1);
            if !seen.insert(partition.name.as_str()) {
                out.add(
                    format!("{key}.name"),
                    format!("there are two partitions '{}'; rename one", partition.name),
                );
            }
            check_partition(&key, partition, out);
        }
        let defaults: Vec<&str> =
            self.partitions.iter().filter(|p| p.default).map(|p| p.name.as_str()).collect();
        if defaults.len() > 1 {
            out.add(
                "partition",
                format!("{} are all the default; keep 'default = true' in one", defaults.join(", ")),
            );
        }
    }
}

impl ImagesConfig {
    fn check_place(&self, out: &mut Problems) {
        use std::path::Component;
        let path = self.path.as_path();
        if !self.memory.is_empty() {
            match crate::memory::parse(&self.memory) {
                Ok(0) => out.add(
                    "images.memory",
                    "with 0 no image could stay; leave it out to keep images on a disk",
                ),
                Ok(_) if !self.path.0.is_empty() => {
                    out.add("images.memory", "images.path names a disk, too; keep one of them");
                }
                Ok(_) => {}
                Err(error) => out.add("images.memory", error.to_string()),
            }
        }
        let plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        if path.as_os_str().is_empty() {
            return;
        }
        if !path.is_absolute() || path.file_name().is_none() || !path.components().all(plain) {
            let why = format!(
                "'{}' is not the absolute path of a directory without '..', such as /local/berth-images",
                path.display()
            );
            out.add("images.path", why);
        }
    }

    fn check_mirrors(&self, out: &mut Problems) {
        let mut seen = BTreeSet::new();
        for (at, mirror) in self.mirrors.iter().enumerate() {
            let key = format!("images.mirror[{}]", at + 1);
            let registry = mirror.registry.as_str();
            if registry.is_empty() || registry.contains(['/', ' ', '@', '#']) {
                out.add(format!("{key}.registry"), format!("'{registry}' is not HOST or HOST:PORT"));
            } else if !seen.insert(registry) {
                out.add(
                    format!("{key}.registry"),
                    format!("there are two entries of '{registry}'; write all mirrors into urls of one"),
                );
            }
            if mirror.urls.is_empty() {
                out.add(
                    format!("{key}.urls"),
                    "there is none; write the addresses of mirrors, or remove the entry",
                );
            }
            for url in mirror.urls.iter().filter(|url| !is_address(url)) {
                out.add(
                    format!("{key}.urls"),
                    format!(
                        "'{url}' is not http:// or https:// with HOST, perhaps :PORT and /PATH; logins are each user's own"
                    ),
                );
            }
        }
    }
}

/// Whether it is an address without a login.
fn is_address(url: &str) -> bool {
    let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
    rest.is_some_and(|rest| {
        !rest.is_empty()
            && !rest.starts_with('/')
            && !rest.contains(|c: char| c.is_whitespace() || c.is_control() || "@?#".contains(c))
    })
}

fn check_partition(key: &str, partition: &PartitionConfig, out: &mut Problems) {
    if !is_word(&partition.name) {
        out.add(
            format!("{key}.name"),
            format!("'{}' is not a name; write letters, digits, '_' and '-'", partition.name),
        );
    }
    check_nodes(&format!("{key}.nodes"), &partition.nodes, out);
    let mut limit = |name: &str, text: &str| match text.parse::<TimeLimit>() {
        Ok(limit) => Some(limit),
        Err(error) => {
            out.add(format!("{key}.{name}"), error.to_string());
            None
        }
    };
    let most = limit("max_time", &partition.max_time);
    let default =
        if partition.default_time.is_empty() { None } else { limit("default_time", &partition.default_time) };
    // `Unlimited` is greater than any number of minutes.
    if let (Some(most), Some(default)) = (most, default)
        && default > most
    {
        out.add(format!("{key}.default_time"), format!("{default} is more than max_time, {most}; lower it"));
    }
}

fn check_node(key: &str, node: &NodeConfig, out: &mut Problems) {
    check_nodes(&format!("{key}.name"), &node.name, out);
    for (at, gres) in node.gres.iter().enumerate() {
        gres::check(&format!("{key}.gres[{}]", at + 1), gres, out);
    }
}

fn check_nodes(key: &str, text: &str, out: &mut Problems) {
    if text.eq_ignore_ascii_case("all") {
        return;
    }
    match hostlist::expand(text) {
        Ok(names) if names.is_empty() => {
            out.add(key, "it names no node; write a hostlist such as n[1-4], or ALL")
        }
        Ok(_) => {}
        Err(error) => out.add(key, error.to_string()),
    }
}

fn is_word(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

pub(crate) fn is_user(text: &str) -> bool {
    // '@' stands before groups in other systems' lists: it would name nobody here, and say nothing of it.
    !text.is_empty() && !text.starts_with(['-', '@']) && !text.contains([':', ',', '\n', '/', ' '])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ByteStr;
    use crate::config::{AccountConfig, GresConfig, MirrorConfig};

    fn keys(config: &Config) -> Vec<String> {
        config.check().into_iter().map(|p| p.key).collect()
    }

    fn gres(name: &str, files: &[&str], count: Option<u32>) -> GresConfig {
        GresConfig {
            name: name.into(),
            kind: None,
            files: files.iter().map(|f| ByteStr::from(*f)).collect(),
            count,
            ..GresConfig::default()
        }
    }

    #[test]
    fn as_many_nodes_have_to_agree_as_are_remembered_at_most() {
        for (agreed, problems) in [(0, 0), (2, 0), (ImagesConfig::MOST_AGREED, 0), (65, 1), (u32::MAX, 1)] {
            let mut config = Config::default();
            config.images.forms_agreed = agreed;
            assert_eq!(keys(&config), vec!["images.forms_agreed"; problems], "{agreed}");
        }
    }

    #[test]
    fn a_good_configuration_has_no_problems() {
        let config = Config {
            administrators: vec!["alice".into(), "DOMAIN\\bob".into()],
            operators: vec!["carol".into(), "alice".into()],
            accounts: vec![account("physics", &["ann"]), account("bio", &["ann", "DOMAIN\\bob"])],
            partitions: vec![
                PartitionConfig {
                    name: "debug".into(),
                    default: true,
                    default_time: "30".into(),
                    max_time: "1-0".into(),
                    ..Default::default()
                },
                PartitionConfig { name: "gpu".into(), nodes: "n[5-8],m1".into(), ..Default::default() },
            ],
            nodes: vec![NodeConfig {
                name: "ALL".into(),
                memory_reserved: None,
                gres: vec![
                    GresConfig { kind: Some("a100".into()), ..gres("gpu", &["/dev/nvidia[0-7]"], Some(8)) },
                    gres("license", &[], Some(4)),
                ],
            }],
            ..Default::default()
        };
        assert_eq!(config.check(), []);
        assert_eq!(Config::default().check(), []);
        assert_eq!(config.nodes[0].gres[0].device_files().unwrap().len(), 8);
    }

    fn account(name: &str, coordinators: &[&str]) -> AccountConfig {
        let coordinators = coordinators.iter().map(|user| (*user).to_string()).collect();
        AccountConfig { name: name.into(), coordinators }
    }

    fn mirror(registry: &str, urls: &[&str]) -> MirrorConfig {
        MirrorConfig {
            registry: registry.into(),
            urls: urls.iter().map(|url| (*url).to_string()).collect(),
            grants: false,
        }
    }

    #[test]
    fn images_are_in_memory_or_at_a_place() {
        let config = |path: &str, memory: &str| Config {
            images: ImagesConfig { path: path.into(), memory: memory.into(), ..Default::default() },
            ..Default::default()
        };
        assert_eq!(keys(&config("/local/images", "")), Vec::<String>::new());
        assert_eq!(keys(&config("", "8G")), Vec::<String>::new());
        assert_eq!(config("", "8G").images.memory_mib(), 8192);
        assert_eq!(keys(&config("/local/images", "8G")), ["images.memory"]);
        assert_eq!(keys(&config("", "0")), ["images.memory"]);
        for path in ["/", "/local/../images", "images"] {
            assert_eq!(keys(&config(path, "")), ["images.path"], "{path}");
        }
    }

    #[test]
    fn every_problem_is_named_at_once_by_its_key() {
        let config = Config {
            cluster: "a b".into(),
            kill_wait_seconds: 70_000,
            unkillable_seconds: 0,
            start_timeout_seconds: 70_000,
            node_timeout_seconds: 0,
            max_array_size: 0,
            max_jobs: 0,
            administrators: vec!["a:b".into()],
            operators: vec!["@staff".into(), "-x".into()],
            accounts: vec![
                account("physics", &[]),
                account("Physics", &["ann", "a b"]),
                account("", &["ann"]),
                account(" x", &["ann"]),
            ],
            container: crate::config::ContainerConfig {
                hooks_dirs: vec!["hooks.d".into(), "/etc/berth/hooks.d".into()],
                ..Default::default()
            },
            gpus: crate::gpus::GpusConfig { idle_percent: 0, ..Default::default() },
            logs: crate::config::LogsConfig { max_size: "0".into(), keep: 5000 },
            images: ImagesConfig {
                insecure_registries: vec!["http://x".into()],
                certificate_authorities: vec!["ca.pem".into(), "/etc/berth/ca.pem".into()],
                mirrors: vec![
                    mirror("docker.io", &["https://m.local:5000", "http://cache/path"]),
                    mirror("docker.io", &["m.local"]),
                    mirror("https://quay.io", &[]),
                    mirror("quay.io", &["https://user:secret@m.local"]),
                ],
                path: "local/images".into(),
                memory: "1X".into(),
                high_watermark: 101,
                low_watermark: 102,
                max_size: "much".into(),
                ..Default::default()
            },
            partitions: vec![
                PartitionConfig {
                    name: "p".into(),
                    default: true,
                    nodes: "n[1".into(),
                    ..Default::default()
                },
                PartitionConfig {
                    name: "p".into(),
                    default: true,
                    nodes: String::new(),
                    max_time: "1h".into(),
                    default_time: "x".into(),
                    ..Default::default()
                },
                PartitionConfig {
                    name: "q!".into(),
                    max_time: "10".into(),
                    default_time: "20".into(),
                    ..Default::default()
                },
            ],
            nodes: vec![NodeConfig {
                name: "n[3-1]".into(),
                memory_reserved: None,
                gres: vec![
                    gres("9", &["/dev/x"], None),
                    gres("gpu", &["dev/x"], None),
                    gres("gpu", &["/dev/x[1-"], None),
                    gres("gpu", &[], None),
                    gres("gpu", &["/dev/x[1-2]"], Some(3)),
                    GresConfig { kind: Some("7".into()), ..gres("gpu", &["/dev/y"], None) },
                    gres("nic", &["/srv/x"], None),
                    gres("nic", &["/dev/../srv/x"], None),
                ],
            }],
            ..Default::default()
        };
        assert_eq!(
            keys(&config),
            [
                "cluster",
                "kill_wait_seconds",
                "unkillable_seconds",
                "start_timeout_seconds",
                "node_timeout_seconds",
                "max_array_size",
                "max_jobs",
                "administrators",
                "operators",
                "operators",
                "images.insecure_registries",
                "images.mirror[2].registry",
                "images.mirror[2].urls",
                "images.mirror[3].registry",
                "images.mirror[3].urls",
                "images.mirror[4].urls",
                "images.certificate_authorities",
                "images.memory",
                "images.path",
                "images.high_watermark",
                "images.low_watermark",
                "images.max_size",
                "gpus.idle_percent",
                "logs.max_size",
                "logs.keep",
                "container.hooks_dirs",
                "account[1].coordinators",
                "account[2].name",
                "account[2].coordinators",
                "account[3].name",
                "account[4].name",
                "partition[1].nodes",
                "partition[2].name",
                "partition[2].nodes",
                "partition[2].max_time",
                "partition[2].default_time",
                "partition[3].name",
                "partition[3].default_time",
                "partition",
                "node[1].name",
                "node[1].gres[1].name",
                "node[1].gres[2].files",
                "node[1].gres[3].files",
                "node[1].gres[4]",
                "node[1].gres[5].count",
                "node[1].gres[6].type",
                "node[1].gres[7].files",
                "node[1].gres[8].files",
            ]
        );
        assert!(config.check().iter().all(|problem| problem.to_string().len() > problem.key.len() + 10));
    }

    #[test]
    fn how_devices_are_shared_is_judged_and_what_is_not_done_is_named() {
        let check = |gres: GresConfig| {
            let nodes = vec![NodeConfig { name: "ALL".into(), gres: vec![gres], ..Default::default() }];
            let problems = Config { nodes, ..Default::default() }.check();
            problems.into_iter().map(|p| format!("{} {}", p.key, p.why)).collect::<Vec<_>>().join("; ")
        };
        let gpu = || gres("gpu", &[], None);
        let cdi = |names: &[&str], count| GresConfig {
            cdi: names.iter().map(|name| (*name).to_string()).collect(),
            ..gres("nic", &[], count)
        };
        for good in [
            GresConfig { shards: Some(4), ..gpu() },
            GresConfig { mps: true, flags: vec!["one_sharing".into()], ..gpu() },
            GresConfig { cores: Some("0-3, 8".into()), ..gres("gpu", &["/dev/x[0-1]"], None) },
            GresConfig { flags: vec!["CountOnly".into()], ..gres("nic", &[], Some(2)) },
            cdi(&["vendor.com/nic=port[0-3]", "vendor.com/nic=x"], None),
        ] {
            assert_eq!(check(good), "");
        }
        for (bad, said) in [
            (gpu(), "write 'files'"),
            (GresConfig { shards: Some(4), ..gres("nic", &[], Some(2)) }, "only devices named 'gpu'"),
            (GresConfig { shards: Some(0), ..gpu() }, "1 to 4096"),
            (cdi(&["nic0"], None), "'nic0' is not of the form vendor.com/class=name"),
            (cdi(&["vendor.com/nic="], None), "'vendor.com/nic=' is not of the form"),
            (cdi(&["v.com/nic=a1", "v.com/nic=a[1-2]"], None), "'v.com/nic=a1' is there twice"),
            (cdi(&[""], None), "it names no device"),
            (cdi(&["v.com/nic=a"], Some(1)), "is one device: leave it out"),
            (
                GresConfig { files: vec!["/dev/x".into()], ..cdi(&["v.com/nic=a"], None) },
                "that the CDI file names",
            ),
            (GresConfig { shards: Some(2), mps: true, ..gpu() }, "leave one out"),
            (GresConfig { cores: Some("3-1".into()), ..gpu() }, "numbers of cores"),
            (GresConfig { flags: vec!["nvidia_gpu_env".into()], mps: true, ..gpu() }, "the device's maker"),
            (GresConfig { flags: vec!["odd".into()], mps: true, ..gpu() }, "known are CountOnly"),
        ] {
            let wrong = check(bad);
            assert!(wrong.contains(said), "{said}: {wrong}");
        }
    }
}
