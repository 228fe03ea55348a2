//! Small filesystems of their own for stores and states: root mounts one for a test, and it is gone with it.

use crate::sandbox::wait;
use crate::{Cmd, Who};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

/// A mounted filesystem. Declared after the sandbox that uses it, it is unmounted before that is removed, also when the test fails.
pub struct Disk {
    place: PathBuf,
    /// What holds the file that it is in.
    _file: Option<tempfile::TempDir>,
    mounted: bool,
}

/// What a filesystem still has for others than root.
#[derive(Clone, Copy, Debug)]
pub struct Free {
    /// Bytes.
    pub bytes: u64,
    /// Files that can be made.
    pub files: u64,
}

impl Disk {
    /// One in memory, of this size as mount(8) takes it, at a place that is made.
    pub fn in_memory(at: &Path, owner: u32, size: &str) -> Disk {
        std::fs::create_dir(at).unwrap();
        let options = format!("size={size},mode=700,uid={owner},gid={owner}");
        Cmd::new("mount").args(["-t", "tmpfs", "-o", &options, "store"]).arg(at).ok();
        Disk { place: at.to_path_buf(), _file: None, mounted: true }
    }

    /// An ext4 of so many MiB in blocks of 4 KiB, with room for 64 files in each MiB, in a file that a loop device shows, at a place that is made.
    pub fn in_file(at: &Path, owner: u32, mib: u64) -> Disk {
        let directory = tempfile::Builder::new().prefix("bt-disk-").tempdir_in("/var/tmp").unwrap();
        let file = directory.path().join("file");
        Cmd::new("truncate").arg(format!("--size={mib}M")).arg(&file).ok();
        Cmd::new("mkfs.ext4").args(["-q", "-b", "4096", "-i", "16384"]).arg(&file).ok();
        std::fs::create_dir(at).unwrap();
        Cmd::new("mount").args(["-o", "loop"]).arg(&file).arg(at).ok();
        let disk = Disk { place: at.to_path_buf(), _file: Some(directory), mounted: true };
        std::fs::remove_dir(at.join("lost+found")).unwrap();
        chown(at, Some(owner), Some(owner)).unwrap();
        std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o700)).unwrap();
        disk
    }

    /// What it still has.
    pub fn free(&self) -> Free {
        let text = Cmd::new("stat").args(["-f", "-c", "%a %S %d"]).arg(&self.place).ok().text();
        let numbers: Vec<u64> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
        Free { bytes: numbers[0] * numbers[1], files: numbers[2] }
    }

    /// Unmounts it; whoever still has something of it open fails the test.
    pub fn unmount(mut self) {
        let unmount = || Cmd::new("umount").arg(&self.place).run();
        let done = wait(30, || (unmount().rc == 0).then_some(()));
        assert!(done.is_some(), "{}", unmount());
        self.mounted = false;
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            // The test failed, and something of it may be in use.
            let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.place).status();
        }
    }
}

/// Who owns the store of images of this user's cluster; in root's that is nobody else (`STORE_ID` of berth-agent).
pub fn store_owner(who: &Who) -> u32 {
    if who.is_root() { 0x7000_0001 } else { who.uid }
}
