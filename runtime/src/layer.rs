//! The filesystem in a file that bounds what a container writes on disk (system mode).
//!
//! The kernel reads only what root made here: the file lies in a directory of root's, is made anew, and loses its name when
//! it is mounted.

use crate::launch::LaunchError;
use crate::plan::{Plan, RootPlan};
use crate::request::WritableLayer;
use crate::setup::{SetupFailure, errno_text};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

const PROGRAMS: [&str; 4] =
    ["/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4", "/usr/bin/mkfs.ext4", "/usr/local/sbin/mkfs.ext4"];

/// Makes the filesystem of a plan that wants one, and mounts it: here, and not in the container, whose control group may
/// use no block device. The mount is detached; the file goes with it.
pub(crate) fn make(plan: &Plan) -> Result<Option<OwnedFd>, LaunchError> {
    let RootPlan::Overlay { upper: WritableLayer::Image(file), size: Some(bytes), .. } = &plan.root else {
        return Ok(None);
    };
    let path = file.as_path();
    let failed = |why: String, hint: &str| {
        LaunchError::Setup(SetupFailure {
            action: format!("make the filesystem of the writable layer: {why}"),
            path: None,
            errno: 0,
            hint: Some(hint.into()),
        })
    };
    let io = |e: io::Error| failed(format!("{}: {e}", file.display()), ELSEWHERE);
    let place =
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
    let made = place.set_len(*bytes).map_err(io).and_then(|()| {
        format(path, (plan.identity.uid, plan.identity.gid)).map_err(|(why, hint)| failed(why, hint))?;
        mount(&place).map_err(|(why, hint)| failed(why, hint))
    });
    std::fs::remove_file(path).map_err(io)?;
    made.map(Some)
}

fn mount(file: &File) -> Result<OwnedFd, (String, &'static str)> {
    let (device, path) = crate::sys::loopdev::attach(file.as_fd(), crate::sys::loopdev::Access::Full)
        .map_err(|e| (format!("no loop device can be had: {}", errno_text(e.raw_os_error())), ELSEWHERE))?;
    let ext4 = || {
        let fs = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&fs, "source", &path)?;
        rustix::mount::fsconfig_create(&fs)?;
        let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs)
    };
    let mounted =
        ext4().map_err(|e| (format!("ext4 on {path}: {}", errno_text(e.raw_os_error())), ELSEWHERE));
    // The mount holds the device from here on, and the device the file.
    drop(device);
    mounted
}

const ELSEWHERE: &str = "use --container-writable-layer=tmpfs:SIZE";

fn format(path: &Path, owner: (u32, u32)) -> Result<(), (String, &'static str)> {
    let program = PROGRAMS.iter().map(Path::new).find(|p| p.exists());
    let program =
        program.ok_or_else(|| ("the node has no mkfs.ext4".to_string(), "install e2fsprogs on the node"))?;
    // Nothing outlives the container, so nothing is journalled, and no space is kept for root.
    let owner = format!("root_owner={}:{},lazy_itable_init=1,nodiscard", owner.0, owner.1);
    let result = Command::new(program)
        .args(["-q", "-F", "-m", "0", "-O", "^has_journal", "-E", &owner])
        .arg(path)
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .map_err(|e| (format!("{}: {e}", program.display()), ELSEWHERE))?;
    if result.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&result.stderr);
    Err((format!("{}: {}", program.display(), said.lines().last().unwrap_or("failed")), ELSEWHERE))
}
