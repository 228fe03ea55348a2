//! Layers that are read-only EROFS images, mounted from their files (Linux 6.12 and later), or from loop devices that read
//! those files and are gone with the mount.
//!
//! Each mount of a file is a filesystem of its own, with its own copy in memory of what is read. So an agent mounts an
//! image once, out of everybody's sight, and containers take copies of that mount (Linux 6.15 and later); whoever has no
//! such mount at hand mounts the file for one container.

use super::{Setup, SetupFailure};
use crate::plan::{Mode as PlanMode, Plan, RootPlan};
use crate::request::StoreOwner;
use crate::sys::{Errno, loopdev};
use berth_model::ByteStr;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The layer's file, where it is one: with images the kernel reads what the file says, so that nobody but its owner may
/// have written it. `None` for a directory.
pub(super) fn open(layer: &ByteStr, owner: Option<StoreOwner>) -> Setup<Option<Image>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(layer.as_os(), flags, Mode::empty());
    let file = file.map_err(|e| super::overlay::layer_failure(layer, e))?;
    let stat = rustix::fs::fstat(&file).map_err(|e| super::overlay::layer_failure(layer, e))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    if stat.st_uid != owner.map_or(0, |owner| owner.uid) || stat.st_mode & 0o022 != 0 {
        let hint = "an image that others than the store's owner can write is not mounted: remove the image (berth image \
                    rm) and pull it again";
        return Err(SetupFailure::refuse("use the layer", layer, hint));
    }
    Ok(Some(Image { name: name(&stat), file }))
}

/// An image's file, and its name among those that are mounted.
pub(super) struct Image {
    file: OwnedFd,
    name: String,
}

impl Image {
    /// A detached, read-only mount of the image.
    pub(super) fn mount(&self, mounted: Option<&OwnedFd>) -> Result<OwnedFd, Errno> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        match mounted.map(|all| rustix::mount::open_tree(all, &self.name, flags)) {
            Some(Ok(copy)) => Ok(copy),
            // It was not mounted beforehand, or was taken away meanwhile.
            _ => mount(self.file.as_fd()),
        }
    }
}

/// A file keeps its number while it is mounted, so that no other is taken for it.
fn name(stat: &Stat) -> String {
    format!("{:x}-{:x}", stat.st_dev, stat.st_ino)
}

/// Images that are mounted once for all containers of a node. Their mounts hang in no mount namespace: nobody sees them,
/// and they go with this value and the last container that has a copy.
#[derive(Debug)]
pub struct MountedImages {
    all: OwnedFd,
    files: Mutex<BTreeMap<String, OwnedFd>>,
}

impl MountedImages {
    /// None yet.
    ///
    /// # Errors
    /// The kernel's: before Linux 6.15 it mounts nothing where no mount namespace is.
    pub fn new() -> Result<MountedImages, Errno> {
        let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let tmpfs = || super::overlay::tmpfs(&[("mode", "700")], attrs);
        let images = MountedImages { all: tmpfs()?, files: Mutex::default() };
        // Tried once, so that not every layer of every start is mounted in vain.
        images.hang(&tmpfs()?, "trial")?;
        rustix::fs::unlinkat(&images.all, "trial", AtFlags::REMOVEDIR)?;
        Ok(images)
    }

    /// Mounts an image unless it is mounted, and then lets go of those whose files were removed.
    ///
    /// # Errors
    /// The kernel's: a container then mounts the image itself.
    pub fn add(&self, image: &Path) -> Result<(), Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(image, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        let name = name(&stat);
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || files.contains_key(&name) {
            return Ok(());
        }
        let removed = |file: &OwnedFd| rustix::fs::fstat(file).is_ok_and(|stat| stat.st_nlink == 0);
        files.retain(|name, file| {
            // The mount goes with the directory.
            !removed(file) || rustix::fs::unlinkat(&self.all, name, AtFlags::REMOVEDIR).is_err()
        });
        self.hang(&mount(file.as_fd())?, &name)?;
        files.insert(name, file);
        Ok(())
    }

    /// Mounts what is detached under a name.
    fn hang(&self, mounted: &OwnedFd, name: &str) -> Result<(), Errno> {
        rustix::fs::mkdirat(&self.all, name, Mode::RWXU)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        if let Err(e) = rustix::mount::move_mount(mounted, "", &self.all, name, flags) {
            rustix::fs::unlinkat(&self.all, name, AtFlags::REMOVEDIR)?;
            return Err(e);
        }
        Ok(())
    }
}

impl AsFd for MountedImages {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.all.as_fd()
    }
}

/// Mounts an image, detached and read-only, to read its files; the mount goes with what is opened on it.
///
/// # Errors
/// The kernel's.
pub fn mount_image(file: &File) -> std::io::Result<OwnedFd> {
    Ok(mount(file.as_fd())?)
}

/// From which kernel on images are mounted from their files.
const FILES: (u32, u32) = (6, 12);
/// Most layers whose mounts are handed to a container's init, in one message (`SCM_MAX_FD` is 253).
const MOST_LOOPS: usize = 200;

/// Mounts of a plan's layers that are images, by their numbers, where the kernel wants block devices: here, and not in the
/// container, whose control group may use none.
pub(crate) fn by_loop(plan: &Plan) -> Setup<Vec<(usize, OwnedFd)>> {
    let RootPlan::Overlay { layers, owner: Some(owner), .. } = &plan.root else { return Ok(Vec::new()) };
    if plan.mode != PlanMode::System || crate::facts::running_kernel() >= FILES {
        return Ok(Vec::new());
    }
    let mut mounts = Vec::new();
    for (number, layer) in layers.iter().enumerate() {
        let Some(image) = open(layer, Some(*owner))? else { continue };
        if mounts.len() == MOST_LOOPS {
            let hint = "it is one of more than 200 that need loop devices: remove the image (berth image rm), write \
                        layer_form = \"directory\" in [images] of berth.toml, and pull it again";
            return Err(SetupFailure::refuse("use the layer", layer, hint));
        }
        let mounted = mount(image.file.as_fd()).map_err(|e| super::overlay::layer_failure(layer, e))?;
        mounts.push((number, mounted));
    }
    Ok(mounts)
}

/// From which kernel on the owners of files in an EROFS image can be shown as others.
const MAPPED: (u32, u32) = (5, 19);

/// How the kernel gets at an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ImageWay {
    /// From its file (Linux 6.12 and later).
    File,
    /// By a read-only loop device.
    Loop,
}

impl std::fmt::Display for ImageWay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ImageWay::File => "from its file",
            ImageWay::Loop => "by a read-only loop device",
        })
    }
}

fn mount(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    mount_somehow(file).map(|(mounted, _)| mounted)
}

fn mount_somehow(file: BorrowedFd<'_>) -> Result<(OwnedFd, ImageWay), Errno> {
    match mount_source(&format!("/proc/self/fd/{}", file.as_raw_fd())) {
        Ok(mounted) => Ok((mounted, ImageWay::File)),
        // The kernel wants a block device, and tells whoever has none what it wanted.
        Err(Errno::NOTBLK) => {
            mount_by_loop(file).map(|mounted| (mounted, ImageWay::Loop)).map_err(|e| match e {
                Errno::NOENT | Errno::NODEV | Errno::NXIO => Errno::NOTBLK,
                other => other,
            })
        }
        Err(e) => Err(e),
    }
}

/// The mount holds the device, and the device the file.
fn mount_by_loop(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    // What only names a file cannot be read.
    let own = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = rustix::fs::open(own, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let (device, path) = loopdev::attach(file.as_fd(), loopdev::Access::ReadOnly)?;
    let mounted = mount_source(&path);
    drop(device);
    mounted
}

fn mount_source(source: &str) -> Result<OwnedFd, Errno> {
    let fs = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, "source", source)?;
    rustix::mount::fsconfig_set_flag(&fs, "ro")?;
    rustix::mount::fsconfig_create(&fs)?;
    let attrs = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs)
}

/// Mounts a trial image of the store's as a start would, and looks whether the kernel shows by which attribute a
/// directory hides what lies below: without it, deleted files of an image would come back. Gives how it was mounted, and how many layers
/// of one container can be, where that is bounded.
///
/// # Errors
/// What the kernel cannot do, of kind `Unsupported`; any other where the machine lacked something for the trial.
pub fn try_image(file: &File) -> std::io::Result<(String, Option<usize>)> {
    let cannot = |text: String| std::io::Error::new(std::io::ErrorKind::Unsupported, text);
    let failed = |e: Errno, text: String| match e {
        // These say nothing of what the kernel can do.
        Errno::NOMEM
        | Errno::MFILE
        | Errno::NFILE
        | Errno::NOSPC
        | Errno::DQUOT
        | Errno::IO
        | Errno::INTR
        | Errno::AGAIN => std::io::Error::new(std::io::Error::from(e).kind(), text),
        _ => cannot(text),
    };
    let (mounted, way) = mount_somehow(file.as_fd()).map_err(|e| {
        let text = match e {
            Errno::NODEV => "this kernel has no EROFS (CONFIG_EROFS_FS; modprobe erofs)".to_string(),
            Errno::NOTBLK => {
                "this kernel mounts no EROFS image from a file of this filesystem (6.12 and later do, with \
                 CONFIG_EROFS_FS_BACKED_BY_FILE), and no loop device can be had (modprobe loop)"
                    .to_string()
            }
            other => {
                let text = super::errno_text(other.raw_os_error());
                format!("this kernel does not mount an EROFS image: {text}")
            }
        };
        failed(e, text)
    })?;
    let kernel = crate::facts::running_kernel();
    if way == ImageWay::Loop && kernel < MAPPED {
        let text = "this kernel does not map the owners of files in EROFS images (5.19 and later do)";
        return Err(cannot(text.to_string()));
    }
    if way == ImageWay::Loop && kernel >= FILES {
        let text = "this kernel mounts no EROFS image from a file of this filesystem (CONFIG_EROFS_FS_BACKED_BY_FILE)";
        return Err(cannot(text.to_string()));
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut value = [0; 8];
    let marked = rustix::fs::openat(&mounted, ".", flags, Mode::empty())
        .and_then(|root| rustix::fs::fgetxattr(&root, "user.overlay.opaque", &mut value));
    match marked {
        Ok(1) if value[0] == b'y' => Ok((way.to_string(), (way == ImageWay::Loop).then_some(MOST_LOOPS))),
        other => {
            let text = "this kernel shows no attributes of EROFS images (CONFIG_EROFS_FS_XATTR)".to_string();
            Err(failed(other.err().unwrap_or(Errno::NODATA), text))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Files behind loop devices.
    fn behind() -> Vec<String> {
        let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
        let files = devices.map(|device| std::fs::read_to_string(device.path().join("loop/backing_file")));
        files.flatten().collect()
    }

    #[test]
    fn a_loop_device_is_read_only_and_goes_with_the_mount_as_root() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("tree")).unwrap();
        std::fs::write(dir.path().join("tree/name"), "content").unwrap();
        let image = dir.path().join("a.erofs");
        let made = std::process::Command::new("mkfs.erofs").arg(&image).arg(dir.path().join("tree")).output();
        let made = made.expect("mkfs.erofs of package erofs-utils");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // As a start has it: a descriptor by which the file is only named.
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(&image, flags, Mode::empty()).unwrap();
        let mounted = mount_by_loop(file.as_fd()).unwrap();
        let inside = rustix::fs::openat(&mounted, "name", OFlags::RDONLY, Mode::empty()).unwrap();
        assert_eq!(std::io::read_to_string(File::from(inside)).unwrap(), "content");
        let used = behind().iter().filter(|f| f.contains(dir.path().to_str().unwrap())).count();
        assert_eq!(used, 1, "{:?}", behind());
        let write = OFlags::WRONLY | OFlags::CLOEXEC;
        assert_eq!(rustix::fs::openat(&mounted, "name", write, Mode::empty()).unwrap_err(), Errno::ROFS);
        drop(mounted);
        // The kernel lets go of a mount, and of the device with it, when the process next returns from it.
        let gone = || behind().iter().all(|f| !f.contains(dir.path().to_str().unwrap()));
        assert!((0..500).any(|_| gone() || {
            std::thread::sleep(std::time::Duration::from_millis(20));
            false
        }));
        let store = File::open(&image).unwrap();
        assert!(try_image(&store).is_err(), "an image without the mark of an opaque directory");
    }
}
