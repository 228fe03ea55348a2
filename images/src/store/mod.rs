//! The content store: verified blobs and unpacked layers on a local disk, shared by processes without a daemon.
//!
//! ```text
//! ROOT/            0700, of the identity that unpacks
//!   version        layout version
//!   blobs/         manifests and configurations, sha256-HEX
//!   form           in which form new layers are kept, until the machine starts anew
//!   room.json      by which rules an agent keeps room, and what it last removed
//!   layers/        sha256-HEX of the uncompressed tar: fs/ (the directory to mount) or fs.erofs (an image to mount),
//!                  layer.json, synced; files.zst, what is in fs/; skeleton.zst, the tar without the files' content, and
//!                  replaced, what files of it had whose place others took;
//!                  shown.json, which users have shown that they have it.
//!                  merged-sha256-HEX is several layers as one, below more than can be mounted at once;
//!                  sha256-HEX.replaced-N was damaged, and something may still run on it
//!   images/        sha256-HEX.json, written when everything an image needs is on disk; .pending, or .UID.pending, while it is not,
//!                  .partial or .UID.partial after an import that failed on a full disk; .grant-UID, that a user may read it;
//!                  .released after one gave it back; .signatures, what is known of them; .seen, through which files all of
//!                  it was read here
//!   locks/         flock(2) files: quota-, fetch-, use-, layer-, place-, and store
//!   tmp/           work in progress, each with a lock that dies with its process
//! ```
//!
//! Crash safety: a layer becomes visible by one rename and counts until the next boot; a record of an image is
//! written after syncfs(2), which also lets its layers outlive the boot: a mark in each says so. Whatever instant a process or
//! the machine dies at, the next `ensure` sees either a complete thing or none, also of an image that was listed and whose layers
//! were being made anew.
//!
//! Order of locks: a user's quota, then fetch, then use, then layer, then place, then store. Nobody waits for a layer while holding
//! another. Quota, fetch, use and layer are held while a source is read, which may be slow or hostile: the first two are each user's
//! own, the third is shared, and of the fourth see [`turn`]. Place and store never are: all wait for them, and so for nobody's source.

mod archive;
mod bundle;
mod ensure;
mod export;
mod files;
mod form;
mod grant;
mod granted;
mod hashing;
mod history;
mod layer;
mod lock;
mod made;
mod manage;
mod memory;
mod merge;
mod offer;
mod pipeline;
mod probe;
mod push;
mod quota;
mod record;
mod room;
mod seen;
mod short;
mod shown;
mod signed;
mod space;
mod sum;
mod travel;
mod turn;
mod verify;
mod window;
mod work;

use std::collections::HashSet;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, chownat, fchmod, fchown, fstat, mkdirat, openat, statat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid, geteuid};

pub use ensure::{PreparedImage, UseGuard};
pub use form::{LayerForm, MountImage, TryImage, layer_place, settled_form, try_image};
pub use granted::{GrantedImage, Usage, find_granted};
pub use history::HistoryEntry;
pub use made::MadeForms;
pub use manage::{DiskUsage, ImageDetails, ImageInfo, LayerDetails, PruneOptions, Removed, find_listed};
pub use merge::most_layers;
pub use offer::{Offer, Part};
pub use probe::{InMemory, in_memory, unfit_filesystem};
pub use push::Pushed;
pub(crate) use quota::Charge;
pub use room::{Collected, CollectedImage, RoomRules, RoomState, Wanted};
pub(crate) use seen::SeenFile;
pub use verify::{Damage, Problem, Thing, VerifyReport};

use crate::digest::Digest;
use crate::error::{Error, ErrorKind, Result};
use crate::manifest::Platform;
use crate::unpack::Limits;
use lock::{Hold, Lock};
use memory::Unwanted;

/// Where a store can be instead.
const ELSEWHERE: &str = "name a place on a local disk: images.path in berth.toml, or another state directory with --state or \
                         BERTH_STATE";

/// A store, open in this process.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    root_fd: OwnedFd,
    blobs: OwnedFd,
    layers: OwnedFd,
    images: OwnedFd,
    locks: OwnedFd,
    tmp: OwnedFd,
    /// Set where root works in the store of another identity: what root makes is given to it.
    give_to: Option<(Uid, Gid)>,
    limits: Limits,
    platform: Platform,
    /// Form of new layers.
    form: LayerForm,
    /// How images are mounted to read their files.
    mount: Option<MountImage>,
    /// Bytes of a blob below which a layer is a directory in any case.
    smallest_image: u64,
    /// Whether layers that are images can be mounted.
    images_mount: bool,
    /// How many images one container's layers may be.
    most_images: Option<usize>,
    /// How many layers one container can be mounted of.
    most_layers: usize,
    /// Layers that are directories whatever the form is.
    flat: Mutex<HashSet<Digest>>,
    /// Of the user for whom it is filled.
    quota: Option<quota::Quota>,
    /// For which of its users work is done; nobody where it is for those whose store it is.
    user: Option<u32>,
    /// Whether it serves users, of whom each has to show what they have.
    shared: bool,
    /// How long another user's source is waited for that brings next to nothing.
    span: Duration,
    /// They opened the file through which all of the image was read before, as it was then.
    has_file: bool,
    /// Something that they have was not read for that: it was known already.
    unread: AtomicBool,
    /// Read-only images of layers come from other nodes, and it is noted which this one makes.
    travels: bool,
    /// Set by whoever wants no image any more for which it was opened.
    stopped: Option<Arc<AtomicBool>>,
}

impl Store {
    /// Opens the store at an absolute path, and makes it if there is none.
    ///
    /// # Errors
    /// The directory cannot be made, belongs to someone else, is open to others, is on a filesystem that machines share or
    /// that a program serves, or was written by a newer version.
    pub fn open(root: &Path) -> Result<Self> {
        Self::open_for(root, None)
    }

    /// As [`Store::open`], for root: a store made now belongs to `owner` (uid, gid), the unprivileged identity
    /// that unpacks images.
    ///
    /// # Errors
    /// As for [`Store::open`].
    pub fn open_for(root: &Path, owner: Option<(u32, u32)>) -> Result<Self> {
        let what = format!("image store {}", root.display());
        if !root.is_absolute() {
            return Err(Error::new(ErrorKind::Reference, what, "is not an absolute path"));
        }
        let owner = owner.map(|(uid, gid)| (Uid::from_raw(uid), Gid::from_raw(gid)));
        let io = |e: Errno| Error::io(what.clone(), e);
        // Before anything is made there, or asked of a server.
        if let Some(why) = unfit_filesystem(root).map_err(|e| out_of_reach(&what, e))? {
            return Err(Error::new(ErrorKind::Unsupported, what, format!("is on {why}")).next(ELSEWHERE));
        }
        make_root(root, owner).map_err(|e| out_of_reach(&what, e))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root_fd =
            rustix::fs::open(root, flags, Mode::empty()).map_err(|e| out_of_reach(&what, e.into()))?;
        let stat = fstat(&root_fd).map_err(io)?;
        let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
        check_owner(&what, &root_fd, uid, stat.st_mode, owner)?;
        let give_to = (geteuid().is_root() && !uid.is_root()).then_some((uid, gid));
        let sub = |name: &str| -> Result<OwnedFd> {
            let io = |e: Errno| Error::io(format!("{what}/{name}"), e);
            match mkdirat(&root_fd, name, Mode::RWXU) {
                Ok(()) => {
                    if let Some((uid, gid)) = give_to {
                        chownat(&root_fd, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                            .map_err(io)?;
                    }
                }
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(io(errno)),
            }
            openat(&root_fd, name, flags, Mode::empty()).map_err(io)
        };
        let mut store = Self {
            blobs: sub("blobs")?,
            layers: sub("layers")?,
            images: sub("images")?,
            locks: sub("locks")?,
            tmp: sub("tmp")?,
            root: root.to_path_buf(),
            root_fd,
            give_to,
            limits: Limits::default(),
            platform: Platform::default(),
            form: LayerForm::default(),
            mount: None,
            smallest_image: 0,
            images_mount: false,
            most_images: None,
            most_layers: merge::most_layers_here(),
            flat: Mutex::default(),
            quota: None,
            user: None,
            shared: false,
            span: turn::SPAN,
            has_file: false,
            unread: AtomicBool::new(false),
            travels: false,
            stopped: None,
        };
        store.check_version()?;
        store.read_form()?;
        Ok(store)
    }

    /// The same store with other bounds for hostile images.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// The same store, filled for somebody who sets `stopped` when they do not want the image any more. A layer that waits for memory which
    /// others have is given up then, within a second; what is being fetched comes to its end, and serves the next.
    #[must_use]
    pub fn wanted_until(mut self, stopped: Arc<AtomicBool>) -> Self {
        self.stopped = Some(stopped);
        self
    }

    /// What ends the waiting of a layer; `failed` where others of its image are made beside it.
    fn unwanted<'a>(&'a self, failed: Option<&'a AtomicBool>) -> Unwanted<'a> {
        Unwanted { stopped: self.stopped.as_deref(), failed }
    }

    /// The same store, which serves several users, with work to be done for `uid`.
    ///
    /// # Errors
    /// The store cannot be read.
    pub(crate) fn working_for(mut self, uid: u32) -> Result<Self> {
        (self.user, self.shared) = (self.user_of(uid)?, true);
        Ok(self)
    }

    /// `uid` as one of the users that the store serves: nobody, where it is theirs, or root's.
    pub(crate) fn user_of(&self, uid: u32) -> Result<Option<u32>> {
        let owner = fstat(&self.root_fd).map_err(|e| Error::io("image store", e))?.st_uid;
        Ok((uid != 0 && uid != owner).then_some(uid))
    }

    /// Where the store is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn check_version(&self) -> Result<()> {
        match files::read(self.root_fd.as_fd(), "version")? {
            None => {
                // Written last, by whoever comes first; every opener writes the same.
                files::write(
                    self.root_fd.as_fd(),
                    "version",
                    format!("{}\n", record::VERSION).as_bytes(),
                    self.give_to,
                )
            }
            Some(text) => match String::from_utf8_lossy(&text).trim().parse::<u32>() {
                Ok(version) if version <= record::VERSION => Ok(()),
                Ok(_) => Err(record::newer()),
                Err(_) => Err(Error::new(
                    ErrorKind::Corrupt,
                    format!("image store {}", self.root.display()),
                    "its version file is damaged",
                )
                .next("move the directory away; images are fetched again")),
            },
        }
    }

    fn lock(&self, name: &str, hold: Hold) -> Result<Lock> {
        Lock::wait(self.locks.as_fd(), name, hold, self.give_to)
            .map_err(|e| Error::io(format!("image store: lock {name}"), e))
    }

    fn try_lock(&self, name: &str, hold: Hold) -> Result<Option<Lock>> {
        Lock::try_take(self.locks.as_fd(), name, hold, self.give_to)
            .map_err(|e| Error::io(format!("image store: lock {name}"), e))
    }

    fn layer_path(&self, diff_id: &Digest) -> PathBuf {
        let name = diff_id.file_name();
        self.form_of(&name).unwrap_or(self.form).place(&self.root.join("layers").join(name))
    }

    /// Whether a directory stands at `name`.
    fn has_directory(directory: BorrowedFd<'_>, name: &str) -> bool {
        has(directory, name, FileType::Directory)
    }

    /// Whether a file stands at `name`.
    fn has_file(directory: BorrowedFd<'_>, name: &str) -> bool {
        has(directory, name, FileType::RegularFile)
    }
}

fn has(directory: BorrowedFd<'_>, name: &str, kind: FileType) -> bool {
    statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == kind)
}

/// The store could not be made or entered.
fn out_of_reach(what: &str, error: std::io::Error) -> Error {
    let denied = error.kind() == std::io::ErrorKind::PermissionDenied;
    let error = Error::io(what, error);
    if !denied {
        return error;
    }
    error.next(format!(
        "user {} unpacks images into it and has to get there: open the directories above it (chmod o+x), or name another \
         place: images.path in berth.toml, --state or BERTH_STATE",
        geteuid().as_raw()
    ))
}

/// Makes the root directory, closed to others from the start.
fn make_root(root: &Path, owner: Option<(Uid, Gid)>) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if let Some(parent) = root.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::DirBuilder::new().mode(0o700).create(root) {
        Ok(()) => {
            if let (Some((uid, gid)), true) = (owner, geteuid().is_root()) {
                fchown(File::open(root)?, Some(uid), Some(gid))?;
            }
            Ok(())
        }
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(e),
    }
}

/// The store belongs to us, or we are root; and nobody else may enter: a set-user-id file of an image would
/// otherwise run with the store's identity outside any container.
fn check_owner(what: &str, root: &OwnedFd, uid: Uid, mode: u32, wanted: Option<(Uid, Gid)>) -> Result<()> {
    let me = geteuid();
    if uid != me && !me.is_root() {
        return Err(Error::new(
            ErrorKind::Denied,
            what,
            format!("belongs to uid {} and not to you", uid.as_raw()),
        )
        .next("use a place of your own: images.path in berth.toml, --state or BERTH_STATE"));
    }
    if let Some((wanted, _)) = wanted
        && wanted != uid
    {
        return Err(Error::new(
            ErrorKind::Denied,
            what,
            format!("belongs to uid {} and not to uid {}", uid.as_raw(), wanted.as_raw()),
        )
        .next("use another place (images.path in berth.toml, or another state directory), or move this one away; images are fetched again"));
    }
    if mode & 0o077 != 0 {
        fchmod(root, Mode::RWXU).map_err(|e| Error::io(what, e))?;
    }
    Ok(())
}

/// Unix seconds.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// This boot of the machine, so that work which was not synced can be told from work that a power cut tore.
fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Doors for the fuzz targets.
#[cfg(any(test, fuzzing))]
pub(crate) mod doors {
    use super::bundle::Head;
    use super::record::{ImageRecord, LayerRecord, PendingRecord, parse, print};

    /// # Panics
    /// What was read is another when it is written and read again.
    pub(crate) fn records(bytes: &[u8]) {
        macro_rules! again {
            ($($kind:ty)*) => { $(
                if let Ok(written) = parse::<$kind>("fuzz", bytes).and_then(|record| print(&record)) {
                    let again = parse::<$kind>("fuzz", &written).and_then(|record| print(&record));
                    assert!(again.is_ok_and(|again| again == written), "another record");
                }
            )* };
        }
        again!(ImageRecord LayerRecord PendingRecord Head);
    }
}
