//! Jobs of several components: which place a job has in one, and what its steps are told of the others.

use crate::bytes::ByteStr;
use crate::hostlist;
use crate::ids::{JobId, StepKey};
use crate::launch::Layout;
use crate::runs;
use crate::spec::{MemoryRequest, ResourceRequest};
use serde::{Deserialize, Serialize};

/// Most components of one job.
pub const MOST: usize = 128;

/// A job's place among the components of a heterogeneous job. Their ids follow one another, from the leader's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HetPlace {
    /// The first component, by whose id all are named.
    pub leader: JobId,
    /// Which component, from 0.
    pub offset: u32,
    /// How many there are.
    pub size: u32,
}

impl HetPlace {
    /// The ids of all components, in order.
    pub fn members(&self) -> impl Iterator<Item = JobId> + use<> {
        let first = self.leader.0;
        (first..first.saturating_add(self.size)).map(JobId)
    }

    /// Whether it is the first component: the one that the whole is named by, and where a batch script runs.
    pub fn leads(&self) -> bool {
        self.offset == 0
    }

    /// `12-14`: the ids of all components.
    pub fn id_set(&self) -> String {
        match self.size {
            0 | 1 => self.leader.to_string(),
            size => format!("{}-{}", self.leader, self.leader.0.saturating_add(size - 1)),
        }
    }
}

/// What the steps of one component are told of each component.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HetGroup {
    /// Its job.
    pub job: JobId,
    /// Its partition.
    pub partition: String,
    /// What it has.
    pub layout: Layout,
    /// Tasks, where they were asked for.
    #[serde(default)]
    pub tasks: Option<u32>,
    /// Given with `--ntasks-per-node`.
    #[serde(default)]
    pub tasks_per_node: Option<u32>,
    /// Given with `-c`.
    #[serde(default)]
    pub cpus_per_task: Option<u32>,
    /// Given or defaulted memory on each node, in MiB.
    #[serde(default)]
    pub mem_per_node: Option<u64>,
    /// Given with `--mem-per-cpu`, in MiB.
    #[serde(default)]
    pub mem_per_cpu: Option<u64>,
}

impl HetGroup {
    /// Of a component with these nodes, which asked for this; and the memory that it has on the first of them.
    pub fn new(
        job: JobId,
        partition: String,
        layout: Layout,
        asked: &ResourceRequest,
        memory: Option<u64>,
    ) -> HetGroup {
        let given = asked.tasks.is_some() || asked.tasks_per_node.is_some();
        let total = || layout.tasks.iter().map(Vec::len).sum::<usize>();
        HetGroup {
            job,
            partition,
            tasks: given.then(|| u32::try_from(total()).unwrap_or(u32::MAX)),
            tasks_per_node: asked.tasks_per_node,
            cpus_per_task: asked.cpus_per_task,
            mem_per_node: memory,
            mem_per_cpu: match asked.memory {
                MemoryRequest::PerCpu(mib) => Some(mib),
                _ => None,
            },
            layout,
        }
    }

    /// The variables of this component, each with its number behind the usual name.
    pub fn variables(&self, group: usize) -> Vec<(String, ByteStr)> {
        let nodes: Vec<&str> = self.layout.nodes.iter().map(|n| n.0.as_str()).collect();
        let list = hostlist::compress(&nodes);
        let tasks: Vec<u32> =
            self.layout.tasks.iter().map(|tasks| u32::try_from(tasks.len()).unwrap_or(u32::MAX)).collect();
        let count = nodes.len().to_string();
        let mut all: Vec<(&str, String)> = vec![
            ("SLURM_JOB_ID", self.job.to_string()),
            ("SLURM_JOBID", self.job.to_string()),
            ("SLURM_JOB_NODELIST", list.clone()),
            ("SLURM_NODELIST", list),
            ("SLURM_JOB_NUM_NODES", count.clone()),
            ("SLURM_NNODES", count),
            ("SLURM_JOB_CPUS_PER_NODE", runs::print(&self.layout.cpus)),
            ("SLURM_TASKS_PER_NODE", runs::print(&tasks)),
            ("SLURM_JOB_PARTITION", self.partition.clone()),
        ];
        let mut maybe = |name: &'static str, value: Option<String>| {
            all.extend(value.map(|value| (name, value)));
        };
        maybe("SLURM_NTASKS", self.tasks.map(|n| n.to_string()));
        maybe("SLURM_NPROCS", self.tasks.map(|n| n.to_string()));
        maybe("SLURM_NTASKS_PER_NODE", self.tasks_per_node.map(|n| n.to_string()));
        maybe("SLURM_CPUS_PER_TASK", self.cpus_per_task.map(|n| n.to_string()));
        match (self.mem_per_cpu, self.mem_per_node) {
            (Some(mib), _) => maybe("SLURM_MEM_PER_CPU", Some(mib.to_string())),
            (None, mib) => maybe("SLURM_MEM_PER_NODE", mib.map(|mib| mib.to_string())),
        }
        all.into_iter().map(|(name, value)| (format!("{name}_HET_GROUP_{group}"), value.into())).collect()
    }
}

/// The heterogeneous job of a step, as its processes are told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HetFacts {
    /// The first component.
    pub leader: JobId,
    /// Which component this is.
    pub offset: u32,
    /// All components, in order.
    pub groups: Vec<HetGroup>,
}

impl HetFacts {
    /// `SLURM_HET_SIZE`, and the variables of each component.
    pub fn variables(&self) -> Vec<(String, ByteStr)> {
        let size = self.groups.len().to_string();
        let mut all = vec![("SLURM_HET_SIZE".to_string(), ByteStr::from(size.as_str()))];
        all.extend(self.groups.iter().enumerate().flat_map(|(at, group)| group.variables(at)));
        all
    }
}

/// A step's part in one component of several: the whole, and where in it this part is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HetStep {
    /// The parts, a component each, in the order of their tasks.
    pub parts: Vec<StepKey>,
    /// Nodes and tasks of all parts, one behind the other. A node on which two components have something is there twice.
    pub layout: Layout,
    /// Where in the nodes of `layout` this part begins.
    pub first_node: u32,
    /// Where each part begins; of steps that an earlier version made, nothing.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub begins: Vec<u32>,
}

impl HetStep {
    /// The part that each of its nodes has; none where that is not known.
    pub fn of_nodes(&self) -> Vec<StepKey> {
        let parts: Vec<(StepKey, u32)> =
            self.parts.iter().copied().zip(self.begins.iter().copied()).collect();
        parts_of_nodes(&parts, self.layout.nodes.len())
    }
}

/// The part that each of so many nodes has, where the first node of each part is known.
pub fn parts_of_nodes(parts: &[(StepKey, u32)], nodes: usize) -> Vec<StepKey> {
    let of = |node: usize| parts.iter().rev().find(|(_, first)| *first as usize <= node).map(|(key, _)| *key);
    (0..nodes).filter_map(of).collect()
}

/// The parts of a step one behind the other: the tasks of each are numbered on from those before it. Also where the nodes
/// of each part begin.
pub fn join(parts: &[Layout]) -> (Layout, Vec<u32>) {
    let mut whole = Layout::default();
    let mut begins = Vec::with_capacity(parts.len());
    let mut first_task = 0u32;
    for part in parts {
        begins.push(u32::try_from(whole.nodes.len()).unwrap_or(u32::MAX));
        whole.nodes.extend(part.nodes.iter().cloned());
        whole.cpus.extend(part.cpus.iter().copied());
        let numbered = |tasks: &Vec<u32>| tasks.iter().map(|task| task.saturating_add(first_task)).collect();
        whole.tasks.extend(part.tasks.iter().map(numbered));
        let count = part.tasks.iter().map(Vec::len).sum::<usize>();
        first_task = first_task.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
    }
    (whole, begins)
}

/// Numbers of components such as `0,2-4`, in order and without repetition.
///
/// # Errors
/// Says what is wrong with the text.
pub fn groups(text: &str) -> Result<Vec<u32>, crate::grammar::BadText> {
    let bad = |why: &str| crate::grammar::BadText::new(text, "a list of components", why);
    const FORMS: &str = "write numbers and ranges from 0, such as 0,2-4";
    let number = |word: &str| {
        crate::grammar::digits(word).and_then(|n| u32::try_from(n).ok()).ok_or_else(|| bad(FORMS))
    };
    let mut all = std::collections::BTreeSet::new();
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
    for word in inner.split(',') {
        let (first, last) = match word.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(word)?, number(word)?),
        };
        if last < first {
            return Err(bad("a range runs backwards"));
        }
        if last as usize >= MOST {
            return Err(bad(&format!("no job has more than {MOST} components")));
        }
        all.extend(first..=last);
    }
    Ok(all.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grammar::soup;
    use crate::ids::{Attempt, StepId};
    use proptest::prelude::*;

    fn layout(nodes: &[&str], tasks: &[&[u32]], cpus: &[u32]) -> Layout {
        Layout {
            nodes: nodes.iter().map(|n| (*n).into()).collect(),
            tasks: tasks.iter().map(|t| t.to_vec()).collect(),
            cpus: cpus.to_vec(),
        }
    }

    #[test]
    fn ids_follow_one_another() {
        let place = HetPlace { leader: JobId(12), offset: 1, size: 3 };
        assert_eq!(place.members().collect::<Vec<_>>(), [JobId(12), JobId(13), JobId(14)]);
        assert_eq!((place.id_set().as_str(), place.leads()), ("12-14", false));
        let last = HetPlace { leader: JobId(u32::MAX), offset: 0, size: 3 };
        assert_eq!(last.members().count(), 0, "and no panic");
    }

    #[test]
    fn tasks_are_numbered_on_over_the_components() {
        let parts = [
            layout(&["a", "b"], &[&[0, 2], &[1]], &[2, 1]),
            layout(&["a"], &[&[0, 1]], &[4]),
            layout(&["c"], &[&[0]], &[1]),
        ];
        let (whole, begins) = join(&parts);
        assert_eq!(whole, layout(&["a", "b", "a", "c"], &[&[0, 2], &[1], &[3, 4], &[5]], &[2, 1, 4, 1]));
        assert_eq!(begins, [0, 2, 3]);
        let key = |job| StepKey { job: JobId(job), attempt: Attempt(0), step: StepId::Number(4) };
        let step = HetStep { parts: [7, 8, 9].map(key).to_vec(), layout: whole, first_node: 2, begins };
        assert_eq!(step.of_nodes(), [7, 7, 8, 9].map(key));
        assert!(HetStep { begins: Vec::new(), ..step }.of_nodes().is_empty(), "of one of before");
    }

    #[test]
    fn each_component_is_told_under_its_number() {
        let group = HetGroup {
            job: JobId(13),
            partition: "gpu".into(),
            layout: layout(&["n1", "n2"], &[&[0], &[1]], &[2, 2]),
            tasks: Some(2),
            tasks_per_node: None,
            cpus_per_task: None,
            mem_per_node: Some(64),
            mem_per_cpu: None,
        };
        let facts = HetFacts { leader: JobId(12), offset: 0, groups: vec![group.clone(), group] };
        let all = facts.variables();
        let get = |name: &str| all.iter().find(|(n, _)| n == name).map(|(_, v)| v.display().into_owned());
        assert_eq!(get("SLURM_HET_SIZE").as_deref(), Some("2"));
        assert_eq!(get("SLURM_JOB_ID_HET_GROUP_1").as_deref(), Some("13"));
        assert_eq!(get("SLURM_JOB_NODELIST_HET_GROUP_0").as_deref(), Some("n[1-2]"));
        assert_eq!(get("SLURM_NNODES_HET_GROUP_1").as_deref(), Some("2"));
        assert_eq!(get("SLURM_JOB_CPUS_PER_NODE_HET_GROUP_1").as_deref(), Some("2(x2)"));
        assert_eq!(get("SLURM_MEM_PER_NODE_HET_GROUP_1").as_deref(), Some("64"));
        assert_eq!(get("SLURM_NTASKS_PER_NODE_HET_GROUP_1"), None);
    }

    #[test]
    fn lists_of_components() {
        assert_eq!(groups("0,2-4").unwrap(), [0, 2, 3, 4]);
        assert_eq!(groups("[1,0]").unwrap(), [0, 1]);
        for text in ["", ",", "a", "3-1", "-1", "0,", "128", "0-4294967295", "1-"] {
            assert!(groups(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in soup()) {
            let _ = groups(&text);
        }

        #[test]
        fn every_task_of_the_whole_has_its_own_number(counts in proptest::collection::vec(0usize..5, 1..6)) {
            let parts: Vec<Layout> = counts
                .iter()
                .map(|n| layout(&["a"], &[&(0..u32::try_from(*n).unwrap()).collect::<Vec<_>>()], &[1]))
                .collect();
            let (whole, _) = join(&parts);
            let all: Vec<u32> = whole.tasks.into_iter().flatten().collect();
            let total = u32::try_from(counts.iter().sum::<usize>()).unwrap();
            prop_assert_eq!(all, (0..total).collect::<Vec<_>>());
        }
    }
}
