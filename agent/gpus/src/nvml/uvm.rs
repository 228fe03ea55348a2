//! CUDA's own device files: they come with the first program that uses CUDA, by a helper of the driver's (nvidia-modprobe, set-user-id)
//! that no container has. So they are made before: by that helper, and where it is not installed by root itself.

use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev, mknodat, renameat_with};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Files and their minor numbers.
const FILES: [(&str, u32); 2] = [("/dev/nvidia-uvm", 0), ("/dev/nvidia-uvm-tools", 1)];
/// What the kernel calls these devices.
const NAME: &str = "nvidia-uvm";

/// Has them made where the driver is there and they are not. Whether they are there then is seen by whoever looks next.
pub(super) fn make() {
    let is_there = || FILES.iter().all(|(file, _)| Path::new(file).exists());
    if !Path::new("/dev/nvidiactl").exists() || is_there() {
        return;
    }
    let quiet = Stdio::null;
    let mut helper = Command::new("nvidia-modprobe");
    // It loads the module, too.
    let _ = helper.args(["-u", "-c=0"]).stdin(quiet()).stdout(quiet()).stderr(quiet()).status();
    if is_there() || !rustix::process::geteuid().is_root() {
        return;
    }
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    if let Some(wanted) = Wanted::read(&text("/proc/devices"), &text("/proc/driver/nvidia/params")) {
        for (file, minor) in FILES.iter().filter(|(file, _)| !Path::new(file).exists()) {
            // Without the first one the GPU is fenced, with what to do.
            let _ = wanted.make(Path::new(file), *minor);
        }
    }
}

/// How the driver wants its files.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    major: u32,
    mode: u32,
    uid: u32,
    gid: u32,
}

impl Wanted {
    /// By the kernel's list of devices and the driver's parameters. Nothing where the module is not loaded, or the administrator has said
    /// that nobody but them makes such files.
    fn read(devices: &str, params: &str) -> Option<Wanted> {
        let major = devices.lines().take_while(|line| !line.starts_with("Block")).find_map(|line| {
            let (number, name) = line.trim().split_once(' ')?;
            (name.trim() == NAME).then(|| number.parse::<u32>().ok())?
        })?;
        let of = |name: &str| {
            let line = params.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|value| value.trim().parse::<u32>().ok())
        };
        if of("ModifyDeviceFiles") == Some(0) {
            return None;
        }
        Some(Wanted {
            major,
            mode: of("DeviceFileMode").unwrap_or(0o666) & 0o777,
            uid: of("DeviceFileUID").unwrap_or(0),
            gid: of("DeviceFileGID").unwrap_or(0),
        })
    }

    /// Whole or not at all: what is there under the name is never made again.
    fn make(&self, file: &Path, minor: u32) -> io::Result<()> {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let new = file.with_file_name(format!(".{name}.{}", std::process::id()));
        let made = self.make_as(&new, minor).and_then(|()| {
            // What somebody else has made meanwhile stays.
            Ok(renameat_with(CWD, &new, CWD, file, RenameFlags::NOREPLACE)?)
        });
        if made.is_err() {
            let _ = std::fs::remove_file(&new);
        }
        made
    }

    fn make_as(&self, file: &Path, minor: u32) -> io::Result<()> {
        // Nobody opens it before its owner and mode are what they are to be.
        mknodat(CWD, file, FileType::CharacterDevice, Mode::empty(), makedev(self.major, minor))?;
        std::os::unix::fs::chown(file, Some(self.uid), Some(self.gid))?;
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(self.mode))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    const DEVICES: &str = "Character devices:\n  1 mem\n195 nvidia\n235 nvidia-caps\n511 nvidia-uvm\n\nBlock devices:\n  7 loop\n";

    #[test]
    fn files_are_as_the_driver_says() {
        let usual = Wanted { major: 511, mode: 0o666, uid: 0, gid: 0 };
        assert_eq!(Wanted::read(DEVICES, ""), Some(usual));
        let params =
            "RmLogonRC: 1\nModifyDeviceFiles: 1\nDeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n";
        assert_eq!(Wanted::read(DEVICES, params), Some(Wanted { major: 511, mode: 0o660, uid: 0, gid: 44 }));
        assert_eq!(Wanted::read(DEVICES, "ModifyDeviceFiles: 0\n"), None, "the administrator makes them");
        assert_eq!(
            Wanted::read("Character devices:\n195 nvidia\n\nBlock devices:\n511 nvidia-uvm\n", ""),
            None
        );
        assert_eq!((Wanted::read("", ""), Wanted::read("x nvidia-uvm", "")), (None, None));
    }

    #[test]
    fn a_file_is_made_with_its_number_owner_and_mode() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("nvidia-uvm");
        let wanted = Wanted { major: 511, mode: 0o640, uid: 12345, gid: 23456 };
        match wanted.make(&file, 1) {
            // Nobody but the machine's root may.
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => return,
            made => made.unwrap(),
        }
        let meta = std::fs::symlink_metadata(&file).unwrap();
        assert!(meta.file_type().is_char_device());
        assert_eq!((meta.rdev(), meta.mode() & 0o777), (makedev(511, 1), 0o640));
        assert_eq!((meta.uid(), meta.gid()), (12345, 23456));
        // What somebody else has put there stays.
        assert!(wanted.make(&file, 0).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing half made is left");
        assert_eq!(std::fs::symlink_metadata(&file).unwrap().rdev(), makedev(511, 1));
    }
}
