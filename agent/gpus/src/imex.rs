//! IMEX channels, by which processes on several nodes share the memory of NVIDIA's GPUs: what the kernel module says of them. Its device
//! files are made by whoever gives a channel to somebody.

use crate::tree::Tree;
use serde::{Deserialize, Serialize};

/// Directory of the device files.
pub const DIRECTORY: &str = "/dev/nvidia-caps-imex-channels";
/// What the kernel calls the devices.
const NAME: &str = "nvidia-caps-imex-channels";
/// As many as the module makes where nobody says otherwise (`NVreg_ImexChannelCount`).
const USUAL: u32 = 2048;

/// The channels of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imex {
    /// Major number of their device files; the minor numbers are theirs.
    pub major: u32,
    /// How many there are.
    pub count: u32,
}

impl Imex {
    /// What this node has; `None` where its driver knows no channels.
    pub fn look(tree: &Tree) -> Option<Imex> {
        let devices = tree.text("/proc/devices")?;
        let major = devices.lines().find_map(|line| {
            let (number, name) = line.trim().split_once(' ')?;
            (name.trim() == NAME).then(|| number.parse().ok())?
        })?;
        let parameters = tree.text("/proc/driver/nvidia/params").unwrap_or_default();
        let count =
            parameters.lines().find_map(|line| line.strip_prefix("ImexChannelCount:")?.trim().parse().ok());
        Some(Imex { major, count: count.unwrap_or(USUAL) }).filter(|imex| imex.count > 0)
    }

    /// The device file of a channel.
    pub fn file(channel: u32) -> String {
        format!("{DIRECTORY}/channel{channel}")
    }

    /// The channel whose device file it is.
    pub fn of(file: &str) -> Option<u32> {
        file.strip_prefix(DIRECTORY)?.strip_prefix("/channel")?.parse().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(devices: &str, parameters: &str) -> (tempfile::TempDir, Tree) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc/driver/nvidia")).unwrap();
        std::fs::write(dir.path().join("proc/devices"), devices).unwrap();
        std::fs::write(dir.path().join("proc/driver/nvidia/params"), parameters).unwrap();
        let tree = Tree::at(dir.path());
        (dir, tree)
    }

    #[test]
    fn channels_are_what_the_module_says() {
        let devices = "Character devices:\n  1 mem\n195 nvidia\n234 nvidia-caps-imex-channels\n237 nvidia-caps\n\nBlock devices:\n";
        let of = |devices, parameters| Imex::look(&tree(devices, parameters).1);
        assert_eq!(of(devices, "ImexChannelCount: 64\n"), Some(Imex { major: 234, count: 64 }));
        assert_eq!(of(devices, "CreateImexChannel0: 1\n"), Some(Imex { major: 234, count: 2048 }));
        assert_eq!(of(devices, "ImexChannelCount: 0\n"), None);
        assert_eq!(of("195 nvidia\nx nvidia-caps-imex-channels\n", ""), None);
        assert_eq!(of("", ""), None);
        assert_eq!(Imex::of(&Imex::file(17)), Some(17));
        assert_eq!(Imex::of("/dev/nvidia17"), None);
    }
}
