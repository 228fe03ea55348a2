//! By what the tasks of a step find one another (`--mpi`).

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What is served to the tasks. A step that was asked for nothing ([`offered`]) has PMI where it has several tasks, and PMIx in any
/// case where the node can serve that (`StepLaunch::mpi_is_open`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MpiType {
    /// Nothing.
    None,
    /// PMI-1 alone.
    Pmi1,
    /// PMI-2, and PMI-1 for those that speak it, as Slurm's has it.
    Pmi2,
    /// PMIx, by the node's libpmix.
    Pmix,
}

impl MpiType {
    /// All of them, with their names.
    pub const NAMES: [(&'static str, MpiType); 4] =
        [("none", MpiType::None), ("pmi1", MpiType::Pmi1), ("pmi2", MpiType::Pmi2), ("pmix", MpiType::Pmix)];
}

/// What a step of so many tasks is served beside PMIx: a single task of MPICH's is an MPI program by itself, and needs nobody.
#[must_use]
pub fn offered(asked: Option<MpiType>, tasks: usize) -> MpiType {
    match asked {
        Some(asked) => asked,
        None if tasks > 1 => MpiType::Pmi2,
        None => MpiType::None,
    }
}

impl fmt::Display for MpiType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = MpiType::NAMES.iter().find(|(_, which)| which == self).map_or("none", |(name, _)| *name);
        f.pad(name)
    }
}

impl FromStr for MpiType {
    type Err = String;
    fn from_str(text: &str) -> Result<MpiType, String> {
        if let Some((_, found)) = MpiType::NAMES.iter().find(|(name, _)| *name == text) {
            return Ok(*found);
        }
        // As Slurm names what it was built with: which version is spoken is agreed on with each task.
        if text.strip_prefix("pmix_v").is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        {
            return Ok(MpiType::Pmix);
        }
        if text == "openmpi" {
            return Err("'openmpi' is Slurm's name of long ago for Open MPI 1.x: use --mpi=pmix".to_string());
        }
        Err(format!("'{text}' is none of none, pmi1, pmi2 and pmix; --mpi=list lists them"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_back_and_others_say_what_to_use() {
        for (name, which) in MpiType::NAMES {
            assert_eq!((name.parse(), which.to_string()), (Ok(which), name.to_string()));
        }
        for name in ["pmix_v3", "pmix_v4", "pmix_v5"] {
            assert_eq!(name.parse(), Ok(MpiType::Pmix));
        }
        for (name, says) in [("pmix_v", "--mpi=list"), ("openmpi", "--mpi=pmix"), ("pmi3", "--mpi=list")] {
            let why = name.parse::<MpiType>().unwrap_err();
            assert!(why.contains(says) && why.contains(name), "{why}");
        }
    }

    #[test]
    fn several_tasks_are_served_unasked_and_one_is_not() {
        assert_eq!(offered(None, 1), MpiType::None);
        assert_eq!(offered(None, 2), MpiType::Pmi2);
        assert_eq!(offered(Some(MpiType::None), 2), MpiType::None);
        assert_eq!(offered(Some(MpiType::Pmi1), 1), MpiType::Pmi1);
    }
}
