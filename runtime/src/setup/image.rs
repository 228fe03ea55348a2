//! Layers that are read-only EROFS images, mounted from their files (Linux 6.12 and later).
//!
//! Each mount of a file is a filesystem of its own, with its own copy in memory of what is read. So an agent mounts an
//! image once, out of everybody's sight, and containers take copies of that mount (Linux 6.15 and later); whoever has no
//! such mount at hand mounts the file for one container.

use super::{Setup, SetupFailure};
use crate::request::StoreOwner;
use crate::sys::Errno;
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

fn mount(file: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    let fs = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, "source", format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    rustix::mount::fsconfig_create(&fs)?;
    let attrs = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs)
}

/// Mounts a trial image of the store's as a start would, and looks whether the kernel shows by which attribute a
/// directory hides what lies below: without it, deleted files of an image would come back.
///
/// # Errors
/// What the kernel cannot do, of kind `Unsupported`; any other where the machine lacked something for the trial.
pub fn try_image(file: &File) -> std::io::Result<()> {
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
    let mounted = mount(file.as_fd()).map_err(|e| {
        failed(e, match e {
        Errno::NODEV => "this kernel has no EROFS (CONFIG_EROFS_FS; modprobe erofs)".to_string(),
        Errno::NOTBLK => {
            "this kernel mounts no EROFS image from a file of this filesystem (it must be 6.12 or later, \
                          with CONFIG_EROFS_FS_BACKED_BY_FILE)"
                .to_string()
        }
        other => {
            format!("this kernel does not mount an EROFS image: {}", super::errno_text(other.raw_os_error()))
        }
    })
    })?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut value = [0; 8];
    let marked = rustix::fs::openat(&mounted, ".", flags, Mode::empty())
        .and_then(|root| rustix::fs::fgetxattr(&root, "user.overlay.opaque", &mut value));
    match marked {
        Ok(1) if value[0] == b'y' => Ok(()),
        other => {
            let text = "this kernel shows no attributes of EROFS images (CONFIG_EROFS_FS_XATTR)".to_string();
            Err(failed(other.err().unwrap_or(Errno::NODATA), text))
        }
    }
}
