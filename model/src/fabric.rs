//! Fabrics: fast networks that programs use past the kernel, by device files (InfiniBand, RoCE, EFA).

use crate::bytes::ByteStr;
use crate::grammar::BadText;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What a device of a fabric speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FabricKind {
    /// InfiniBand's own links.
    Infiniband,
    /// RDMA over Ethernet.
    Roce,
    /// RDMA over TCP.
    Iwarp,
    /// Amazon's Elastic Fabric Adapter.
    Efa,
}

impl fmt::Display for FabricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FabricKind::Infiniband => "InfiniBand",
            FabricKind::Roce => "RoCE",
            FabricKind::Iwarp => "iWARP",
            FabricKind::Efa => "EFA",
        })
    }
}

/// A device of a fabric on a node. Such devices are not allocated: every step may use them, unless it does without.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricDevice {
    /// The kernel's name, such as `mlx5_0`.
    pub name: String,
    /// What it speaks.
    pub kind: FabricKind,
    /// NUMA node that it is near to, where that is known.
    #[serde(default)]
    pub numa: Option<u32>,
    /// Its own device files.
    #[serde(default)]
    pub files: Vec<ByteStr>,
}

/// `--fabric`: which fabrics a step needs, or does without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FabricChoice {
    /// All that a node has; none is needed.
    #[default]
    Auto,
    /// InfiniBand, RoCE or iWARP.
    Ib,
    /// EFA.
    Efa,
    /// None, even where there are some.
    None,
}

impl FabricChoice {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            FabricChoice::Auto => "auto",
            FabricChoice::Ib => "ib",
            FabricChoice::Efa => "efa",
            FabricChoice::None => "none",
        }
    }

    /// Whether the step may use devices of this kind.
    pub fn takes(self, kind: FabricKind) -> bool {
        match self {
            FabricChoice::Auto => true,
            FabricChoice::Ib => kind != FabricKind::Efa,
            FabricChoice::Efa => kind == FabricKind::Efa,
            FabricChoice::None => false,
        }
    }

    /// What a node that has only these lacks of what is needed; nothing where it has it, or nothing is needed.
    pub fn lacks(self, devices: &[FabricDevice]) -> Option<String> {
        let what = match self {
            FabricChoice::Auto | FabricChoice::None => return None,
            FabricChoice::Ib => "InfiniBand or RoCE device",
            FabricChoice::Efa => "EFA device",
        };
        (!devices.iter().any(|device| self.takes(device.kind))).then(|| format!("no {what}"))
    }
}

impl fmt::Display for FabricChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for FabricChoice {
    type Err = BadText;

    fn from_str(text: &str) -> Result<FabricChoice, BadText> {
        let all = [FabricChoice::Auto, FabricChoice::Ib, FabricChoice::Efa, FabricChoice::None];
        all.into_iter()
            .find(|choice| choice.name() == text)
            .ok_or_else(|| BadText::new(text, "a fabric", "write auto, ib, efa or none"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_needed_and_not_there_is_named() {
        let device =
            |name: &str, kind| [FabricDevice { name: name.into(), kind, numa: None, files: Vec::new() }];
        let (roce, efa) = (device("mlx5_0", FabricKind::Roce), device("rdmap0s6", FabricKind::Efa));
        assert_eq!(FabricChoice::Ib.lacks(&roce), None);
        assert_eq!(FabricChoice::Ib.lacks(&device("mlx5_0", FabricKind::Infiniband)), None);
        assert_eq!(FabricChoice::Efa.lacks(&efa), None);
        assert_eq!(FabricChoice::Auto.lacks(&[]), None);
        assert_eq!(FabricChoice::None.lacks(&[]), None);
        assert_eq!(FabricChoice::Ib.lacks(&efa).unwrap(), "no InfiniBand or RoCE device");
        assert_eq!(FabricChoice::Efa.lacks(&roce).unwrap(), "no EFA device");
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for choice in [FabricChoice::Auto, FabricChoice::Ib, FabricChoice::Efa, FabricChoice::None] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        for wrong in ["", "IB", "infiniband", "auto "] {
            assert!(wrong.parse::<FabricChoice>().is_err(), "{wrong:?}");
        }
    }
}
