//! What is asked of devices beyond so many on each node: GPUs of a whole job, of tasks and sockets, and what comes with each.

use crate::gres::Wanted;
use crate::hardware::GresDevice;
use crate::tres::GresKey;
use serde::{Deserialize, Serialize};

/// The name of devices that the options about GPUs mean.
pub const GPU: &str = "gpu";

/// Whether devices are near the cores of a job.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Nearness {
    /// Where that is possible.
    #[default]
    Preferred,
    /// All of them, or the job waits (`--gres-flags=enforce-binding`).
    Enforced,
    /// It does not matter (`--gres-flags=disable-binding`).
    Ignored,
}

/// What is asked of devices beyond so many on each node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRequest {
    /// `--gpus`: of the whole job or step, on as many of its nodes as it has, one at least on each.
    #[serde(skip_serializing_if = "Wanted::is_empty")]
    pub total: Wanted,
    /// `--gpus-per-task`, `--tres-per-task`: for each task.
    #[serde(skip_serializing_if = "Wanted::is_empty")]
    pub per_task: Wanted,
    /// `--gpus-per-socket`: for each socket of which the job has cores, near it.
    #[serde(skip_serializing_if = "Wanted::is_empty")]
    pub per_socket: Wanted,
    /// `--cpus-per-gpu`.
    pub cpus_per_gpu: Option<u32>,
    /// `--ntasks-per-gpu`, where the number of tasks decides that of GPUs.
    pub tasks_per_gpu: Option<u32>,
    /// `--gres-flags`.
    pub nearness: Nearness,
}

impl DeviceRequest {
    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        *self == DeviceRequest::default()
    }

    /// Whether it names devices at all; the rest only says what comes with them.
    pub fn names_devices(&self) -> bool {
        !(self.total.is_empty() && self.per_task.is_empty() && self.per_socket.is_empty())
            || self.tasks_per_gpu.is_some()
    }

    /// What a node with so many tasks needs, apart from its part of the total and from what sockets bring.
    pub fn for_tasks(&self, tasks: u32) -> Wanted {
        let mut wanted: Wanted = self
            .per_task
            .iter()
            .map(|(key, n)| (key.clone(), n.saturating_mul(u64::from(tasks))))
            .filter(|(_, n)| *n > 0)
            .collect();
        if let Some(each) = self.tasks_per_gpu {
            let gpus = u64::from(tasks.div_ceil(each.max(1)));
            add(&mut wanted, GresKey { name: GPU.to_string(), kind: None }, gpus);
        }
        wanted
    }
}

/// Adds to a request.
pub fn add(wanted: &mut Wanted, key: GresKey, count: u64) {
    if count > 0 {
        let slot = wanted.entry(key).or_default();
        *slot = slot.saturating_add(count);
    }
}

/// Both requests together.
pub fn sum(a: &Wanted, b: &Wanted) -> Wanted {
    let mut all = a.clone();
    for (key, count) in b {
        add(&mut all, key.clone(), *count);
    }
    all
}

/// GPUs of a request, of whatever type.
pub fn gpus(wanted: &Wanted) -> u64 {
    wanted.iter().filter(|(key, _)| key.name == GPU).fold(0, |sum, (_, n)| sum.saturating_add(*n))
}

/// Those of some devices that lie together, a node's or a job's, that a type means, by their places: where some of these have that
/// very type, they alone; else those of whose types it is a part. Without a type: all. `among`: whether a device is of the kind that
/// is asked for at all.
///
/// Detected types are long (`nvidia_a100-sxm4-40gb`), and whoever asks need not know all of one: `a100`, `a100-sxm4` and `sxm4-40gb`
/// are parts of it, between `_` and `-`, in small letters or large ones. A part of a divided GPU, whose type ends with its profile
/// (`nvidia_a100-sxm4-40gb_1g.5gb`), is meant only where the profile is named (`1g.5gb`, `40gb_1g.5gb`): who asks for an `a100`
/// gets a whole one. Slurm's `AutoDetect` takes any part of the name, and makes no such difference.
pub fn of_type(
    devices: &[GresDevice],
    among: impl Fn(&GresDevice) -> bool,
    wanted: Option<&str>,
) -> Vec<usize> {
    let among = &among;
    let all = || devices.iter().enumerate().filter(move |one| among(one.1));
    let places = |means: &dyn Fn(&str) -> bool| -> Vec<usize> {
        all().filter(|one| one.1.kind.as_deref().is_some_and(means)).map(|(at, _)| at).collect()
    };
    let Some(wanted) = wanted else { return all().map(|(at, _)| at).collect() };
    let exact = places(&|own| own == wanted);
    if exact.is_empty() { places(&|own| is_type(own, wanted)) } else { exact }
}

/// Whether a type that is asked for means a device's own, as a part of it.
fn is_type(own: &str, wanted: &str) -> bool {
    has_words(own.as_bytes(), wanted.as_bytes()) && (!names_profile(own) || names_profile(wanted))
}

/// Whether `words` stand in `all`, with `_` or `-` around them, or nothing.
fn has_words(all: &[u8], words: &[u8]) -> bool {
    let splits = |at: usize| all.get(at).is_none_or(|b| matches!(b, b'_' | b'-'));
    let begins = |at: usize| at == 0 || splits(at - 1);
    !words.is_empty()
        && all
            .windows(words.len())
            .enumerate()
            .any(|(at, some)| some.eq_ignore_ascii_case(words) && begins(at) && splits(at + words.len()))
}

/// Whether a word of a type is a profile of NVIDIA's MIG: `1g.5gb`, `1g.10gb+me`, or with compute slices `1c.3g.20gb`.
fn names_profile(kind: &str) -> bool {
    fn unit(word: &str) -> Option<&str> {
        let unit = word.trim_start_matches(|c: char| c.is_ascii_digit());
        (unit.len() < word.len()).then_some(unit)
    }
    let is_profile = |word: &str| {
        let mut units = word.split('.').map(unit).skip_while(|unit| *unit == Some("c"));
        units.next() == Some(Some("g"))
            && units.next().flatten().is_some_and(|memory| memory.starts_with("gb"))
    };
    kind.to_ascii_lowercase().split(['_', '-']).any(is_profile)
}

/// Shares of a device that several jobs may have at once; 1 where it is given whole.
pub fn shares(device: &GresDevice) -> u32 {
    device.shares.max(1)
}

/// CPUs near a device; none where all are, or nothing is known.
pub fn near(device: &GresDevice) -> &[u32] {
    &device.cpus
}

/// Slices of a device's time, as Slurm names them.
pub const SHARD: &str = "shard";
/// Hundredths of what a device computes, which NVIDIA's Multi-Process Service keeps apart.
pub const MPS: &str = "mps";

/// Whether a name is that of shares, and not of devices.
pub fn is_share(name: &str) -> bool {
    name == SHARD || name == MPS
}

/// What shares of a device are called.
pub fn share_name(device: &GresDevice) -> &str {
    match device.mps {
        _ if is_share(&device.name) => &device.name,
        true => MPS,
        false => SHARD,
    }
}

/// Whether a device is kept from new work.
pub fn is_fenced(device: &GresDevice) -> bool {
    device.fault.is_some()
}

/// For each device the first one of its island: devices of one name that fast links join, directly or by others.
pub fn islands(devices: &[GresDevice]) -> Vec<usize> {
    let mut first: Vec<usize> = (0..devices.len()).collect();
    // Labels only sink; as many rounds as there are devices in a chain are enough.
    loop {
        let mut changed = false;
        for (at, device) in devices.iter().enumerate() {
            for (other, neighbour) in devices.iter().enumerate() {
                let joined =
                    device.links.contains(&neighbour.index) || neighbour.links.contains(&device.index);
                if joined && device.name == neighbour.name && first[other] > first[at] {
                    first[other] = first[at];
                    changed = true;
                }
            }
        }
        if !changed {
            return first;
        }
    }
}

/// `--tres-per-task`: what it says of CPUs and of devices.
///
/// # Errors
/// A resource that no task can be given.
pub fn parse_per_task(text: &str) -> Result<(Option<u32>, Wanted), crate::grammar::BadText> {
    const WHAT: &str = "resources of a task";
    let (mut cpus, mut wanted) = (None, Wanted::new());
    for item in text.split(',') {
        let bad = |why: &str| crate::grammar::BadText::new(item, WHAT, why);
        let (head, count) = item.split_once(['=', ':']).unwrap_or((item, ""));
        match head {
            "cpu" => {
                let count =
                    crate::count::positive(count).map_err(|_| bad("behind cpu= stands a number from 1"))?;
                if cpus.replace(count).is_some() {
                    return Err(bad("cpu stands there twice"));
                }
            }
            _ if head.starts_with("gres") => {
                for (key, count) in crate::gres::parse(item)? {
                    add(&mut wanted, key, count);
                }
            }
            "mem" => return Err(bad("ask for memory with --mem, --mem-per-cpu or --mem-per-gpu")),
            _ => return Err(bad("write cpu=COUNT and gres/NAME[:TYPE]=COUNT, such as cpu=4,gres/gpu=1")),
        }
    }
    Ok((cpus, wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(text: &str) -> Wanted {
        crate::gres::parse(text).unwrap()
    }

    #[test]
    fn tasks_bring_their_devices() {
        let per_task = DeviceRequest { per_task: wanted("gpu:a100:2,nic:1"), ..DeviceRequest::default() };
        assert_eq!(per_task.for_tasks(3), wanted("gpu:a100:6,nic:3"));
        assert_eq!(per_task.for_tasks(0), Wanted::new());
        let per_gpu = DeviceRequest { tasks_per_gpu: Some(2), ..DeviceRequest::default() };
        assert_eq!(per_gpu.for_tasks(5), wanted("gpu:3"));
        assert!(per_gpu.names_devices() && !per_gpu.is_empty());
        let cpus = DeviceRequest { cpus_per_gpu: Some(4), ..DeviceRequest::default() };
        assert!(!cpus.names_devices() && !cpus.is_empty());
    }

    /// Places of those that a type means, of GPUs of these types.
    fn meant(types: &[&str], wanted: &str) -> Vec<usize> {
        let gpu = |kind: &&str| GresDevice {
            name: GPU.into(),
            kind: (!kind.is_empty()).then(|| (*kind).to_string()),
            ..GresDevice::default()
        };
        let devices: Vec<GresDevice> = types.iter().map(gpu).collect();
        of_type(&devices, |device| device.name == GPU, (!wanted.is_empty()).then_some(wanted))
    }

    #[test]
    fn a_type_is_named_by_words_of_it() {
        let [a100, h100, none] = ["nvidia_a100-sxm4-40gb", "nvidia_h100_80gb_hbm3", ""];
        for wanted in [
            a100,
            "a100",
            "A100",
            "nvidia_a100",
            "a100-sxm4",
            "sxm4",
            "sxm4-40gb",
            "40gb",
            "NVIDIA_A100-SXM4-40GB",
        ] {
            assert_eq!(meant(&[a100, h100, none], wanted), [0], "{wanted}");
        }
        for wanted in [
            "a10",
            "100",
            "a100_sxm4",
            "sxm4-40",
            "a100-",
            "_a100",
            "nvidia-a100",
            "a100-40gb",
            "v100",
            "gpu",
        ] {
            assert_eq!(meant(&[a100, h100, none], wanted), [] as [usize; 0], "{wanted}");
        }
        assert_eq!(meant(&[a100, h100, none], "nvidia"), [0, 1]);
        assert_eq!(meant(&[a100, h100, none], ""), [0, 1, 2]);
        assert_eq!(meant(&["nvidia_geforce_rtx_4090"], "rtx_4090"), [0]);
        assert_eq!(meant(&["ünï_a100"], "a100"), [0], "bytes that are no letters of ours");
    }

    #[test]
    fn the_very_type_wins_over_those_of_which_it_is_a_part() {
        assert_eq!(meant(&["nvidia_a100-sxm4-40gb", "a100", "a100"], "a100"), [1, 2]);
        assert_eq!(meant(&["nvidia_a100-sxm4-40gb", "a100"], "nvidia_a100-sxm4-40gb"), [0]);
        assert_eq!(meant(&["rtx_4090_d", "rtx_4090"], "rtx_4090"), [1]);
        // An administrator's type is what he calls it, whatever it looks like.
        assert_eq!(meant(&["big", "small"], "small"), [1]);
    }

    #[test]
    fn a_part_of_a_divided_gpu_is_given_to_those_who_name_its_profile() {
        let [whole, small, large] =
            ["nvidia_a100-sxm4-40gb", "nvidia_a100-sxm4-40gb_1g.5gb", "nvidia_a100-sxm4-40gb_3g.20gb"];
        let all = [whole, small, large];
        let cases: [(&str, &[usize]); 12] = [
            ("a100", &[0]),
            (whole, &[0]),
            ("nvidia", &[0]),
            ("1g.5gb", &[1]),
            ("1G.5GB", &[1]),
            ("3g.20gb", &[2]),
            ("40gb_1g.5gb", &[1]),
            (small, &[1]),
            ("1g", &[]),
            ("5gb", &[]),
            ("2g.10gb", &[]),
            ("", &[0, 1, 2]),
        ];
        for (wanted, expected) in cases {
            assert_eq!(meant(&all, wanted), expected, "{wanted}");
        }
        assert_eq!(meant(&[small, large], "a100"), [] as [usize; 0], "no whole one is there");
        for profile in ["1g.5gb", "7g.80gb", "1g.10gb+me", "1c.3g.20gb", "1g.24gb-me", "1g.10gb.me"] {
            assert!(names_profile(&format!("nvidia_x_{profile}")), "{profile}");
        }
        for kind in ["nvidia_a100-sxm4-40gb", "1g", "5gb", "g.gb", "1x.5gb", "1g.5mb", "4g.lte", ""] {
            assert!(!names_profile(kind), "{kind}");
        }
    }

    #[test]
    fn what_a_task_has_is_read() {
        assert_eq!(parse_per_task("cpu=4,gres/gpu=1").unwrap(), (Some(4), wanted("gpu:1")));
        assert_eq!(parse_per_task("gres/gpu:a100:2").unwrap(), (None, wanted("gpu:a100:2")));
        for text in ["", "cpu=0", "cpu=1,cpu=2", "mem=1G", "license/x=1", "gpu=x", "gres/gpu=x"] {
            assert!(parse_per_task(text).is_err(), "{text}");
        }
    }
}
