//! The root filesystem: read-only layers under a writable one.

use super::{Doing, Setup, SetupFailure, SetupFds, attach, image, open_path, rights, root_dir_failure};
use crate::plan::{Mode, Plan, RootPlan};
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
    // Descriptors stay open until the overlay holds its own references.
    let mut held = Vec::new();
    let mut lower = Vec::new();
    if plan.mode == Mode::User {
        lower.extend(layers.iter().cloned());
    } else if *as_user {
        rights::act_as_user(plan)?;
        for layer in layers {
            let fd = open_path(layer).map_err(|e| root_dir_failure(layer, e))?;
            lower.push(fd_path(&fd));
            held.push(fd);
        }
        rights::act_as_root(plan)?;
    } else {
        rustix::fs::mkdirat(staging, "layers", FileMode::from_raw_mode(0o700)).doing("make a directory")?;
        for (number, layer) in layers.iter().enumerate() {
            let fd = layer_mount(layer, number, *owner, fds)?;
            let place = format!("layers/{number}");
            rustix::fs::mkdirat(staging, &place, FileMode::from_raw_mode(0o700)).doing("make a directory")?;
            attach(fd.as_fd(), staging, &place).doing_at("attach the layer", layer)?;
            lower.push(fd_path(&fd));
            held.push(fd);
        }
    }
    let (upper_dir, work_dir, volatile) = writable(plan, staging, upper, fds)?;
    let (upper_path, work_path) = (fd_path(&upper_dir), fd_path(&work_dir));
    if *one_string {
        let root = old_api(staging, &lower, &upper_path, &work_path, volatile)?;
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
    let root = new_api(&lower, &upper_path, &work_path, volatile).map_err(|e| match e {
        OverlayError::Layer(n, e) => layer_failure(&layers[n], e),
        OverlayError::Create(e) => create_failure(layers, upper, e),
    })?;
    super::place_root(plan, root.as_fd()).doing("mount the root filesystem")?;
    Ok(root)
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
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(create)?;
    fsconfig_set_string(&fs, "source", "berth").map_err(create)?;
    for (n, layer) in lower.iter().enumerate() {
        fsconfig_set_string(&fs, "lowerdir+", layer.as_os()).map_err(|e| OverlayError::Layer(n, e))?;
    }
    fsconfig_set_string(&fs, "upperdir", upper.as_os()).map_err(create)?;
    fsconfig_set_string(&fs, "workdir", work.as_os()).map_err(create)?;
    fsconfig_set_flag(&fs, "userxattr").map_err(create)?;
    if volatile {
        fsconfig_set_flag(&fs, "volatile").map_err(create)?;
    }
    rustix::mount::fsconfig_create(&fs).map_err(create)?;
    let attrs = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    rustix::mount::fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attrs).map_err(create)
}

/// mount(2) for kernels before 6.8: its options are one string of at most a page, so layers are named by
/// short descriptor paths.
fn old_api(
    staging: &OwnedFd,
    lower: &[ByteStr],
    upper: &ByteStr,
    work: &ByteStr,
    volatile: bool,
) -> Setup<OwnedFd> {
    use rustix::mount::MountFlags;
    let what = "mount the overlay of the image's layers";
    let mut held = Vec::new();
    let mut short = Vec::new();
    for layer in lower {
        let fd = open_path(layer).map_err(|e| layer_failure(layer, e))?;
        short.push(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        held.push(fd);
    }
    let volatile = if volatile { ",volatile" } else { "" };
    let options = format!(
        "lowerdir={},upperdir={},workdir={},userxattr{volatile}",
        short.join(":"),
        upper.display(),
        work.display()
    );
    if options.len() > 4095 {
        return Err(SetupFailure::new(what, Errno::TOOBIG)
            .hint("kernels before 6.8 take about 200 layers: rebuild the image with fewer"));
    }
    rustix::fs::mkdirat(staging, "root", FileMode::from_raw_mode(0o755)).doing(what)?;
    let place = format!("/proc/self/fd/{}/root", staging.as_raw_fd());
    let options = std::ffi::CString::new(options).map_err(|_| SetupFailure::new(what, Errno::INVAL))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("berth", &place, "overlay", flags, Some(options.as_c_str())).doing(what)?;
    rustix::fs::openat(staging, "root", OFlags::PATH | OFlags::CLOEXEC, FileMode::empty()).doing(what)
}
