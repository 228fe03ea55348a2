//! `--gpu-bind`: which of a step's GPUs each of its tasks is told of.

use super::{Runs, hex, listed, mask, number, parts, runs, unknown};
use crate::grammar::BadText;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How tasks are bound to GPUs. Lists count the step's own GPUs on the node from 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuHow {
    /// Each may use all of the step's.
    None,
    /// To those near its CPUs; to all where none is.
    Closest,
    /// To one each: the first for so many tasks, the next for as many.
    Single(u32),
    /// To so many each, which no other task has; near its CPUs where possible.
    PerTask(u32),
    /// To one each.
    Map(Runs<u32>),
    /// To a set each.
    Mask(Runs<Vec<u32>>),
}

/// `--gpu-bind`. It is kept and sent as its text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct GpuBind {
    /// Each task says on its standard error what it was bound to.
    pub verbose: bool,
    /// How.
    pub how: GpuHow,
}

const GPU: &str = "a way to bind tasks to GPUs";

impl GpuBind {
    /// That way, without a word about it.
    pub fn quiet(how: GpuHow) -> GpuBind {
        GpuBind { verbose: false, how }
    }
}

impl std::str::FromStr for GpuBind {
    type Err = BadText;
    fn from_str(text: &str) -> Result<GpuBind, BadText> {
        let mut bind = GpuBind { verbose: false, how: GpuHow::None };
        let mut given = false;
        for part in parts(text, GPU)? {
            let count = |list: &[&str]| match list {
                [one] => crate::count::positive(one)
                    .map_err(|_| BadText::new(text, GPU, "behind the colon stands a number from 1")),
                _ => Err(BadText::new(text, GPU, "behind the colon stands one number, from 1")),
            };
            let how = match (part.word.as_str(), part.list) {
                ("quiet" | "q", None) => {
                    bind.verbose = false;
                    continue;
                }
                ("verbose" | "v", None) => {
                    bind.verbose = true;
                    continue;
                }
                ("none", None) => GpuHow::None,
                ("closest", None) => GpuHow::Closest,
                ("single", Some(list)) => GpuHow::Single(count(&list)?),
                ("per_task", Some(list)) => GpuHow::PerTask(count(&list)?),
                ("map" | "map_gpu", Some(list)) => GpuHow::Map(runs(list, GPU, number)?),
                ("mask" | "mask_gpu", Some(list)) => GpuHow::Mask(runs(list, GPU, mask)?),
                (word, list) => {
                    let right = "none, closest, single:TASKS, per_task:GPUS, map:LIST or mask:LIST, before it quiet or \
                                 verbose";
                    return Err(unknown(word, list, GPU, right));
                }
            };
            if std::mem::replace(&mut given, true) {
                return Err(BadText::new(text, GPU, "it names two ways: name one"));
            }
            bind.how = how;
        }
        Ok(bind)
    }
}

impl fmt::Display for GpuBind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.verbose {
            f.write_str("verbose,")?;
        }
        match &self.how {
            GpuHow::None => f.write_str("none"),
            GpuHow::Closest => f.write_str("closest"),
            GpuHow::Single(n) => write!(f, "single:{n}"),
            GpuHow::PerTask(n) => write!(f, "per_task:{n}"),
            // As agents of earlier versions read it.
            GpuHow::Map(list) => write!(f, "map_gpu:{}", listed(list, u32::to_string)),
            GpuHow::Mask(list) => write!(f, "mask_gpu:{}", listed(list, |bits: &Vec<u32>| hex(bits))),
        }
    }
}

impl From<GpuBind> for String {
    fn from(bind: GpuBind) -> String {
        bind.to_string()
    }
}

impl TryFrom<String> for GpuBind {
    type Error = BadText;
    fn try_from(text: String) -> Result<GpuBind, BadText> {
        text.parse()
    }
}

/// `--tres-bind`: `gres/gpu:closest` and its like, of which GPUs alone can be bound.
///
/// # Errors
/// Another resource, or no way to bind.
pub fn of_tres(text: &str) -> Result<GpuBind, BadText> {
    const WHAT: &str = "a way to bind tasks to resources";
    let how = text.strip_prefix("gres/gpu:").or_else(|| text.strip_prefix("gpu:"));
    match how {
        Some(how) => how.parse(),
        None => {
            Err(BadText::new(text, WHAT, "write gres/gpu:HOW, with HOW as for --gpu-bind, such as closest"))
        }
    }
}

/// The GPUs of each of `tasks` tasks on a node, as places among the step's GPUs there. `near`: for each GPU the CPUs near
/// it, none where all are. `cpus`: the CPUs of a task.
///
/// # Errors
/// The task (by its number on the node) that cannot be bound, and why.
pub fn places<'a>(
    how: &GpuHow,
    near: &[&[u32]],
    tasks: u32,
    cpus: impl Fn(u32) -> &'a [u32],
) -> Result<Vec<Vec<u32>>, (u32, String)> {
    let count = u32::try_from(near.len()).unwrap_or(u32::MAX);
    let is_near = |gpu: u32, task: u32| {
        let near = near.get(gpu as usize).copied().unwrap_or_default();
        near.is_empty() || near.iter().any(|cpu| cpus(task).contains(cpu))
    };
    let mut taken = vec![false; near.len()];
    (0..tasks)
        .map(|task| {
            let all = || (0..count).collect::<Vec<u32>>();
            let own = |gpus: &[u32]| match gpus.iter().find(|gpu| **gpu >= count) {
                Some(gpu) => Err((
                    task,
                    format!("GPU {gpu} is none of the step's, which has {count} on the node, counted from 0"),
                )),
                None => Ok(gpus.to_vec()),
            };
            match how {
                _ if count == 0 => Ok(Vec::new()),
                GpuHow::None => Ok(all()),
                GpuHow::Closest => {
                    let near: Vec<u32> = all().into_iter().filter(|gpu| is_near(*gpu, task)).collect();
                    Ok(if near.is_empty() { all() } else { near })
                }
                GpuHow::Single(each) => Ok(vec![task / (*each).max(1) % count]),
                GpuHow::PerTask(each) => {
                    let free = all().into_iter().filter(|gpu| !taken[*gpu as usize]);
                    let (near, far): (Vec<u32>, Vec<u32>) = free.partition(|gpu| is_near(*gpu, task));
                    let mut got: Vec<u32> = near.into_iter().chain(far).take(*each as usize).collect();
                    if got.len() < *each as usize {
                        let left = got.len();
                        return Err((
                            task,
                            format!("{left} of the step's {count} GPUs on the node are left"),
                        ));
                    }
                    got.sort_unstable();
                    got.iter().for_each(|gpu| taken[*gpu as usize] = true);
                    Ok(got)
                }
                GpuHow::Map(list) => own(&list.at(task).copied().into_iter().collect::<Vec<u32>>()),
                GpuHow::Mask(list) => own(list.at(task).map_or(&[][..], Vec::as_slice)),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use proptest::prelude::*;

    fn of(text: &str, near: &[&[u32]], tasks: u32) -> Result<Vec<Vec<u32>>, String> {
        let bind: GpuBind = text.parse().unwrap();
        let cpus = [[0], [4], [1], [5]];
        places(&bind.how, near, tasks, |task| cpus[task as usize].as_slice())
            .map_err(|(t, why)| format!("{t}: {why}"))
    }

    #[test]
    fn every_way_is_read_and_printed() {
        for (text, printed) in [
            ("closest", "closest"),
            ("none", "none"),
            ("verbose,single:2", "verbose,single:2"),
            ("v,per_task:1", "verbose,per_task:1"),
            ("map_gpu:0,1*2", "map_gpu:0,1*2"),
            ("mask_gpu:0x3,4", "mask_gpu:0x3,0x4"),
            ("map:0,1*2", "map_gpu:0,1*2"),
            ("verbose,mask:0x3,4", "verbose,mask_gpu:0x3,0x4"),
            ("quiet,closest", "closest"),
            ("verbose", "verbose,none"),
        ] {
            assert_eq!(text.parse::<GpuBind>().unwrap().to_string(), printed, "{text}");
        }
        for text in [
            "",
            "single",
            "single:0",
            "single:1,2",
            "map_gpu:x",
            "map",
            "map:",
            "map:x",
            "mask",
            "mask:0",
            "map:0,mask:1",
            "map_cpu:0",
            "nearest",
            "closest,none",
            "per_task:",
        ] {
            assert!(text.parse::<GpuBind>().is_err(), "{text}");
        }
        assert_eq!(of_tres("gres/gpu:single:2").unwrap().to_string(), "single:2");
        assert_eq!(of_tres("gres/gpu:map:1,0").unwrap().to_string(), "map_gpu:1,0");
        assert!(of_tres("gres/nic:closest").is_err() && of_tres("closest").is_err());
    }

    #[test]
    fn tasks_get_the_gpus_that_the_way_says() {
        let near: [&[u32]; 4] = [&[0, 1], &[0, 1], &[4, 5], &[4, 5]];
        let all = vec![0, 1, 2, 3];
        assert_eq!(of("none", &near, 2).unwrap(), [all.clone(), all.clone()]);
        assert_eq!(of("closest", &near, 2).unwrap(), [vec![0, 1], vec![2, 3]]);
        assert_eq!(of("closest", &[&[9], &[9]], 1).unwrap(), [vec![0, 1]], "none is near");
        assert_eq!(of("closest", &[&[], &[]], 1).unwrap(), [vec![0, 1]], "nothing is known");
        assert_eq!(of("single:2", &near, 4).unwrap(), [vec![0], vec![0], vec![1], vec![1]]);
        assert_eq!(of("single:1", &near[..2], 3).unwrap(), [vec![0], vec![1], vec![0]]);
        assert_eq!(of("per_task:1", &near, 4).unwrap(), [vec![0], vec![2], vec![1], vec![3]]);
        assert_eq!(of("per_task:2", &near, 2).unwrap(), [vec![0, 1], vec![2, 3]]);
        assert_eq!(of("per_task:3", &near, 2).unwrap_err(), "1: 1 of the step's 4 GPUs on the node are left");
        assert_eq!(of("map_gpu:3,1", &near, 3).unwrap(), [vec![3], vec![1], vec![3]]);
        assert_eq!(of("map:3,1", &near, 3).unwrap(), of("map_gpu:3,1", &near, 3).unwrap());
        assert_eq!(of("mask_gpu:0x5,0xa", &near, 2).unwrap(), [vec![0, 2], vec![1, 3]]);
        assert_eq!(of("mask:0x5,0xa", &near, 2).unwrap(), [vec![0, 2], vec![1, 3]]);
        assert!(of("map_gpu:4", &near, 1).unwrap_err().contains("GPU 4 is none of the step's"));
        assert_eq!(of("per_task:1", &[], 2).unwrap(), [vec![], vec![]] as [Vec<u32>; 2]);
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in soup()) {
            if let Ok(bind) = text.parse::<GpuBind>() {
                prop_assert_eq!(bind.to_string().parse::<GpuBind>().unwrap(), bind);
            }
        }

        #[test]
        fn no_gpu_is_given_twice_by_per_task(gpus in 0usize..9, each in 1u32..4, tasks in 1u32..6) {
            let near = vec![&[][..]; gpus];
            if let Ok(all) = places(&GpuHow::PerTask(each), &near, tasks, |_| &[]) {
                let mut flat: Vec<u32> = all.into_iter().flatten().collect();
                let before = flat.len();
                flat.sort_unstable();
                flat.dedup();
                prop_assert_eq!(flat.len(), before);
            }
        }
    }
}
