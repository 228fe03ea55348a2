//! What says that an image's file is the one that was named: it is as it was, wherever the filesystem is mounted.

use serde::{Deserialize, Serialize};

/// Inode, size and time of a file. The device is left out: each machine numbers the same network filesystem otherwise. It says
/// that nobody wrote the file, and shows nobody's right to what is in it: whoever writes elsewhere can make these three what
/// they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FilePin {
    /// Inode.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// When its content was last written: nanoseconds since the epoch.
    pub modified: i64,
}

/// How canonical sources begin that are files or directories of files, named by an absolute path behind it.
const FILES: [&str; 5] = ["sqsh:", "sif:", "oci:", "oci-archive:", "docker-archive:"];

/// The path of a source that is a file, or a directory of files.
pub fn file_of(source: &str) -> Option<&str> {
    FILES.iter().find_map(|scheme| source.strip_prefix(scheme)).filter(|path| path.starts_with('/'))
}

/// Whether an image from this source may travel between the cluster's nodes: from a registry, or from a file of which each node can
/// tell that it is the one that was named. What is in an engine's store is one machine's.
pub fn travels(source: &str, pin: Option<&FilePin>) -> bool {
    source.starts_with("docker://") || (pin.is_some() && file_of(source).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_and_what_travels() {
        assert_eq!(file_of("sqsh:/home/u/x.sqsh"), Some("/home/u/x.sqsh"));
        assert_eq!(file_of("oci-archive:/a:b"), Some("/a:b"));
        for other in
            ["sqsh:x", "docker://r.io/x", "containers-storage:0", "oci:", "/x", "", "docker-daemon:/x"]
        {
            assert_eq!(file_of(other), None, "{other}");
        }
        let pin = FilePin { inode: 1, size: 2, modified: -3 };
        assert!(travels("docker://r.io/x", None) && travels("sif:/x", Some(&pin)));
        assert!(!travels("sif:/x", None) && !travels("docker-daemon:0", Some(&pin)));
    }
}
