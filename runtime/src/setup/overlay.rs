//! The root filesystem: read-only layers under a writable one.

use super::{Doing, Setup, SetupFailure, SetupFds, attach, image, open_path, open_root_dir, rights};
use crate::plan::{Mode, Plan, RootPlan, most_in_one};
use crate::request::{StoreOwner, WritableLayer};
use crate::sys::{Errno, mountattr};
use berth_model::ByteStr;
use rustix::fs::{CWD, Mode as FileMode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// A directory that every kernel with `/proc` has, that is always empty, and below which no mount source
/// lies: the kernel keeps it for a filesystem of the NFS server.
const STAGING_PLACE: &str = "/proc/fs/nfsd";

/// A tmpfs that exists only while the container is made, in this mount namespace alone; it goes with the
/// node's root. (Mounted over `/` itself it would do as well, but need an unmount of its own, and each
/// waits for a grace period of the kernel: 0.1 to 0.4 ms.)
///
/// It holds the writable layer (overlayfs keeps its own reference), attached layers, and files for `/etc`.
pub(super) fn staging(plan: &Plan) -> Setup<OwnedFd> {
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    // The limit of the writable layer, of which the files that are made for the container take a little.
    let size = match &plan.root {
        RootPlan::Overlay { upper: WritableLayer::Tmpfs, size: Some(bytes), .. } => Some(bytes.to_string()),
        _ => None,
    };
    let mut options = vec![("mode", "755")];
    options.extend(size.as_deref().map(|bytes| ("size", bytes)));
    let staging = tmpfs(&options, attrs)
        .doing("make a filesystem in memory")
        .map_err(|f| if plan.mode == Mode::User { f.hint(super::enter::USERNS_HINT) } else { f })?;
    attach(staging.as_fd(), CWD, STAGING_PLACE)
        .or_else(|_| attach(staging.as_fd(), CWD, "/"))
        .doing("attach a filesystem in memory")?;
    Ok(staging)
}

/// A detached tmpfs with these options.
pub(crate) fn tmpfs(options: &[(&str, &str)], attrs: MountAttrFlags) -> Result<OwnedFd, Errno> {
    filesystem("tmpfs", options, attrs)
}

/// A detached mount of a filesystem without a device.
pub(crate) fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attrs: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&fs, "source", kind)?;
    for (key, value) in options {
        rustix::mount::fsconfig_set_string(&fs, *key, *value)?;
    }
    rustix::mount::fsconfig_create(&fs)?;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs)
}

/// Mounts the overlay over `/` and returns its root.
pub(super) fn mount(plan: &Plan, staging: &OwnedFd, fds: &SetupFds) -> Setup<OwnedFd> {
    let RootPlan::Overlay { layers, owner, as_user, upper, one_string, .. } = &plan.root else {
        return Err(SetupFailure::new("mount an overlay", Errno::INVAL));
    };
    let most = most_in_one(*one_string);
    // An overlay lies on another once. Nothing lies below the lowest layers, so that what their overlay shows of them is all
    // that they say: whiteouts and opaque directories of an overlay's layers are not to be seen through it.
    let direct = if layers.len() > most { most - 1 } else { layers.len() };
    let (upper_layers, lowest) = layers.split_at(direct);
    if plan.mode == Mode::System && !as_user {
        rustix::fs::mkdirat(staging, "layers", FileMode::from_raw_mode(0o700)).doing("make a directory")?;
    }
    // First, so that its layers' descriptors are closed before the others are open.
    let below = if lowest.is_empty() {
        None
    } else {
        let layers = lower_layers(plan.mode, lowest, direct, *owner, staging, fds)?;
        let merged = as_one(&layers.paths, staging, *one_string);
        Some(merged.map_err(|e| match e {
            OverlayError::Layer(n, e) => layer_failure(&lowest[n], e),
            OverlayError::Create(e) => SetupFailure::new("mount the overlay of the image's lowest layers", e),
        })?)
    };
    let mut lower = if *as_user {
        let mut lower = Lower::default();
        rights::act_as_user(plan)?;
        for layer in upper_layers {
            let fd = open_root_dir(plan, layer)?;
            lower.paths.push(fd_path(&fd));
            lower.held.push(fd);
        }
        rights::act_as_root(plan)?;
        lower
    } else {
        lower_layers(plan.mode, upper_layers, 0, *owner, staging, fds)?
    };
    if let Some(merged) = below {
        lower.paths.push(fd_path(&merged));
        lower.held.push(merged);
    }
    let lower_paths = &lower.paths;
    let (upper_dir, work_dir, volatile) = writable(plan, staging, upper, fds)?;
    let (upper_path, work_path) = (fd_path(&upper_dir), fd_path(&work_dir));
    let failure = |e: OverlayError| match e {
        OverlayError::Layer(n, e) => layer_failure(&layers[n], e),
        OverlayError::Create(Errno::INVAL) if !lowest.is_empty() => {
            let failure = SetupFailure::new("mount the overlay of the image's layers", Errno::INVAL);
            failure.hint(format!(
                "of more than {most} layers the lowest are an overlay below it, and the kernel takes no more than two filesystems \
                 on one another: rebuild the image with fewer, or keep the store on a disk, with layer_form = \"directory\" in \
                 [images] of berth.toml"
            ))
        }
        OverlayError::Create(e) => create_failure(layers, upper, e),
    };
    if *one_string {
        let root = old_api(staging, lower_paths, &upper_path, &work_path, volatile).map_err(failure)?;
        if plan.hooks.is_none() {
            return Ok(root);
        }
        // The mount itself stays in the staging filesystem, which goes with the node's root.
        let flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let copy = rustix::mount::open_tree(&root, "", flags).doing("mount the root filesystem")?;
        super::place_root(plan, copy.as_fd()).doing("mount the root filesystem")?;
        return Ok(copy);
    }
    let root = new_api(lower_paths, &upper_path, &work_path, volatile).map_err(failure)?;
    super::place_root(plan, root.as_fd()).doing("mount the root filesystem")?;
    Ok(root)
}

/// Layers as an overlay takes them: paths, and what keeps these until the overlay holds its own references.
#[derive(Default)]
struct Lower {
    paths: Vec<ByteStr>,
    held: Vec<OwnedFd>,
}

/// Layers of the store, the first of which has the number `first` in the plan.
fn lower_layers(
    mode: Mode,
    layers: &[ByteStr],
    first: usize,
    owner: Option<StoreOwner>,
    staging: &OwnedFd,
    fds: &SetupFds,
) -> Setup<Lower> {
    if mode == Mode::User {
        return Ok(Lower { paths: layers.to_vec(), held: Vec::new() });
    }
    let mut lower = Lower::default();
    for (number, layer) in (first..).zip(layers) {
        let fd = layer_mount(layer, number, owner, fds)?;
        let place = format!("layers/{number}");
        rustix::fs::mkdirat(staging, &place, FileMode::from_raw_mode(0o700)).doing("make a directory")?;
        attach(fd.as_fd(), staging, &place).doing_at("attach the layer", layer)?;
        lower.paths.push(fd_path(&fd));
        lower.held.push(fd);
    }
    Ok(lower)
}

/// A read-only overlay of layers, attached below the staging directory: another one lies on nothing else.
fn as_one(lower: &[ByteStr], staging: &OwnedFd, one_string: bool) -> Result<OwnedFd, OverlayError> {
    let create = OverlayError::Create;
    let place = "lowest";
    rustix::fs::mkdirat(staging, place, FileMode::from_raw_mode(0o700)).map_err(create)?;
    if one_string {
        let (layers, _held) = in_one_string(lower)?;
        return mount_at(staging, place, &format!("lowerdir={layers},userxattr")).map_err(create);
    }
    let merged = created(&overlay_of(lower)?).map_err(create)?;
    attach(merged.as_fd(), staging, place).map_err(create)?;
    Ok(merged)
}

pub(super) fn layer_failure(layer: &ByteStr, errno: Errno) -> SetupFailure {
    SetupFailure::at("use the layer", layer, errno).hint(
        "the image's layer is missing or unreadable: remove the image (berth image rm) and pull it again",
    )
}

fn create_failure(layers: &[ByteStr], upper: &WritableLayer, errno: Errno) -> SetupFailure {
    let failure = SetupFailure::new("mount the overlay of the image's layers", errno);
    if let [only] = layers
        && !only.as_path().is_dir()
    {
        return SetupFailure::at("use as root directory", only, Errno::NOTDIR)
            .hint("name an unpacked root directory or an image");
    }
    match (upper, errno) {
        (WritableLayer::Dir(d), Errno::INVAL) => failure.hint(format!(
            "the filesystem of {} cannot hold a writable layer (network filesystems and overlays cannot): \
             use a local disk",
            d.display()
        )),
        (_, Errno::NODEV) => failure.hint("the kernel has no overlay filesystem: modprobe overlay"),
        (_, Errno::PERM) => {
            failure.hint("this kernel refuses overlays to ordinary users (it must be 5.11 or later)")
        }
        _ => failure,
    }
}

fn fd_path(fd: &OwnedFd) -> ByteStr {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// A read-only mount of a layer, its owner shown as the user.
fn layer_mount(layer: &ByteStr, number: usize, owner: Option<StoreOwner>, fds: &SetupFds) -> Setup<OwnedFd> {
    let beforehand = fds.loops.iter().find(|(n, _)| *n == number).map(|(_, mount)| mount);
    let tree = match image::open(layer, owner)? {
        Some(_) if let Some(mount) = beforehand => {
            rustix::io::fcntl_dupfd_cloexec(mount, 3).map_err(|e| layer_failure(layer, e))?
        }
        Some(image) => image.mount(fds.images.as_ref()).map_err(|e| {
            layer_failure(layer, e).hint(
                "the kernel does not mount the image that holds the layer: remove it (berth image rm), write layer_form = \
                 \"directory\" in [images] of berth.toml, and pull it again",
            )
        })?,
        None => {
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            rustix::mount::open_tree(CWD, layer.as_os(), flags).map_err(|e| layer_failure(layer, e))?
        }
    };
    let ns = fds.idmap_ns.as_ref().filter(|_| owner.is_some());
    if owner.is_some() && ns.is_none() {
        return Err(SetupFailure::at("map the owner of the layer", layer, Errno::INVAL));
    }
    let change = mountattr::Change {
        set: mountattr::RDONLY | mountattr::NOSUID | mountattr::NODEV,
        idmap: ns.map(AsFd::as_fd),
        ..mountattr::Change::default()
    };
    mountattr::mount_setattr(tree.as_fd(), change).map_err(|e| {
        SetupFailure::at("map the owner of the layer", layer, e)
            .hint("its filesystem must support idmapped mounts (ext4, xfs, btrfs, tmpfs from kernel 6.3)")
    })?;
    Ok(tree)
}

/// Upper and work directory, on one mount, and whether they may be lost.
fn writable(
    plan: &Plan,
    staging: &OwnedFd,
    upper: &WritableLayer,
    fds: &SetupFds,
) -> Setup<(OwnedFd, OwnedFd, bool)> {
    let dir_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |base: &OwnedFd, name: &str| rustix::fs::openat(base, name, dir_flags, FileMode::empty());
    let own;
    let (base, volatile) = match upper {
        WritableLayer::Tmpfs => (staging, true),
        WritableLayer::Image(file) => {
            let mount = fds.layer.as_ref();
            let mount =
                mount.ok_or_else(|| SetupFailure::at("use the writable layer", file, Errno::INVAL))?;
            rustix::fs::mkdirat(staging, "disk", FileMode::from_raw_mode(0o700)).doing("make a directory")?;
            attach(mount.as_fd(), staging, "disk").doing_at("attach the writable layer", file)?;
            (mount, true)
        }
        WritableLayer::Dir(dir) => {
            rights::act_as_user(plan)?;
            own = rustix::fs::open(dir.as_os(), dir_flags, FileMode::empty())
                .doing_at("open the directory of the writable layer", dir)?;
            (&own, false)
        }
    };
    let what = "make the writable layer";
    for name in ["upper", "work"] {
        match rustix::fs::mkdirat(base, name, FileMode::from_raw_mode(0o755)) {
            Ok(()) => {}
            // Kept from an earlier start of the same directory.
            Err(Errno::EXIST) if !volatile => {}
            Err(e) => return Err(SetupFailure::new(what, e)),
        }
    }
    let (upper_dir, work) = (open(base, "upper").doing(what)?, open(base, "work").doing(what)?);
    if volatile && plan.mode == Mode::System {
        // The merged root directory shows the upper one's owner.
        let id = &plan.identity;
        rustix::fs::chownat(
            &upper_dir,
            "",
            Some(rustix::fs::Uid::from_raw(id.uid)),
            Some(rustix::fs::Gid::from_raw(id.gid)),
            rustix::fs::AtFlags::EMPTY_PATH,
        )
        .doing(what)?;
    }
    if !volatile {
        rights::act_as_root(plan)?;
    }
    Ok((upper_dir, work, volatile))
}

enum OverlayError {
    /// This layer was refused.
    Layer(usize, Errno),
    /// The whole was refused.
    Create(Errno),
}

fn new_api(
    lower: &[ByteStr],
    upper: &ByteStr,
    work: &ByteStr,
    volatile: bool,
) -> Result<OwnedFd, OverlayError> {
    use rustix::mount::{fsconfig_set_flag, fsconfig_set_string};
    let create = OverlayError::Create;
    let fs = overlay_of(lower)?;
    fsconfig_set_string(&fs, "upperdir", upper.as_os()).map_err(create)?;
    fsconfig_set_string(&fs, "workdir", work.as_os()).map_err(create)?;
    if volatile {
        fsconfig_set_flag(&fs, "volatile").map_err(create)?;
    }
    created(&fs).map_err(create)
}

/// An overlay to be, with its layers.
fn overlay_of(lower: &[ByteStr]) -> Result<OwnedFd, OverlayError> {
    use rustix::mount::{fsconfig_set_flag, fsconfig_set_string};
    let create = OverlayError::Create;
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(create)?;
    fsconfig_set_string(&fs, "source", "berth").map_err(create)?;
    for (n, layer) in lower.iter().enumerate() {
        fsconfig_set_string(&fs, "lowerdir+", layer.as_os()).map_err(|e| OverlayError::Layer(n, e))?;
    }
    fsconfig_set_flag(&fs, "userxattr").map_err(create)?;
    Ok(fs)
}

fn created(fs: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::mount::fsconfig_create(fs)?;
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs)
}

/// Layers for kernels before 6.8: the options of mount(2) are one string of at most a page, so they are named by short
/// descriptor paths. Gives what keeps these, too.
fn in_one_string(lower: &[ByteStr]) -> Result<(String, Vec<OwnedFd>), OverlayError> {
    let mut held = Vec::new();
    let mut short = Vec::new();
    for (n, layer) in lower.iter().enumerate() {
        let fd = open_path(layer).map_err(|e| OverlayError::Layer(n, e))?;
        short.push(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        held.push(fd);
    }
    Ok((short.join(":"), held))
}

/// mount(2) of an overlay on a directory that is there.
fn mount_at(staging: &OwnedFd, name: &str, options: &str) -> Result<OwnedFd, Errno> {
    use rustix::mount::MountFlags;
    let place = format!("/proc/self/fd/{}/{name}", staging.as_raw_fd());
    let options = std::ffi::CString::new(options).map_err(|_| Errno::INVAL)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("berth", &place, "overlay", flags, Some(options.as_c_str()))?;
    rustix::fs::openat(staging, name, OFlags::PATH | OFlags::CLOEXEC, FileMode::empty())
}

fn old_api(
    staging: &OwnedFd,
    lower: &[ByteStr],
    upper: &ByteStr,
    work: &ByteStr,
    volatile: bool,
) -> Result<OwnedFd, OverlayError> {
    let create = OverlayError::Create;
    let (layers, _held) = in_one_string(lower)?;
    let volatile = if volatile { ",volatile" } else { "" };
    let options = format!(
        "lowerdir={layers},upperdir={},workdir={},userxattr{volatile}",
        upper.display(),
        work.display()
    );
    rustix::fs::mkdirat(staging, "root", FileMode::from_raw_mode(0o755)).map_err(create)?;
    mount_at(staging, "root", &options).map_err(create)
}
