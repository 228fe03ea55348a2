//! Where the image store is: in the state directory, or where the configuration says.

use crate::paths::Paths;
use berth_images::{InMemory, in_memory, unfit_filesystem};
use berth_model::config::ImagesConfig;
use berth_runtime::hooks::unchangeable_place;
use std::path::{Path, PathBuf};

/// Where the store of a state directory is. Nothing is made: a place that the configuration names is made by whoever opens
/// the store, and the directory that it is in has to be there.
///
/// # Errors
/// Somebody else could exchange the directory, or it cannot be looked at.
pub fn store_place(config: &ImagesConfig, state: &Path) -> Result<PathBuf, String> {
    if !config.memory.is_empty() {
        return Ok(Paths::new(state).images_in_memory());
    }
    let path = config.path.as_path();
    if path.as_os_str().is_empty() {
        return Ok(Paths::new(state).images());
    }
    let wrong = |why: String| format!("images.path: {why}");
    let (Some(above), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(wrong(format!(
            "'{}' is no directory's path; write one such as /local/berth-images",
            path.display()
        )));
    };
    match unfit_filesystem(path) {
        Ok(None) => {}
        Ok(Some(why)) => {
            return Err(wrong(format!("{} is on {why}: name a directory on a local disk", path.display())));
        }
        Err(e) => return Err(wrong(format!("{}: {e}: name a directory on a local disk", path.display()))),
    }
    // A service unit that makes it, or a disk that is mounted, must be there first: made here it would be on another disk.
    let above = unchangeable_place(above, rustix::process::geteuid().as_raw()).map_err(|why| {
        wrong(format!("{why}; the directory that the store is to be in has to be there and to be safe"))
    })?;
    Ok(above.join(name))
}

/// What images may take of the machine's memory, where their store is in it without `images.memory`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreMemory {
    /// The filesystem, for people.
    pub kind: String,
    /// MiB; `None` without a bound.
    pub mib: Option<u64>,
}

/// Whether the store at `place` is the machine's memory: a tmpfs, say, or a machine that runs from the network.
pub fn store_memory(config: &ImagesConfig, place: &Path) -> Option<StoreMemory> {
    let InMemory { kind, bytes, .. } = in_memory(place)?;
    let most = match (bytes, config.max_bytes()) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    };
    Some(StoreMemory { kind, mib: most.map(|bytes| bytes.div_ceil(1 << 20)) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    fn at(path: &Path) -> ImagesConfig {
        ImagesConfig { path: path.into(), ..ImagesConfig::default() }
    }

    #[test]
    fn a_place_that_is_named_is_looked_at_and_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        assert_eq!(store_place(&ImagesConfig::default(), &state).unwrap(), state.join("images"));
        let memory = ImagesConfig { memory: "1G".into(), ..ImagesConfig::default() };
        assert_eq!(store_place(&memory, &state).unwrap(), state.join("images-memory"));
        let place = dir.path().join("disk/images");
        let missing = store_place(&at(&place), &state).unwrap_err();
        assert!(missing.contains("images.path") && missing.contains("No such file"), "{missing}");
        fs::create_dir(dir.path().join("disk")).unwrap();
        let mode = |mode| fs::set_permissions(dir.path().join("disk"), Permissions::from_mode(mode)).unwrap();
        mode(0o755);
        let real = fs::canonicalize(dir.path()).unwrap().join("disk/images");
        assert_eq!(store_place(&at(&place), &state).unwrap(), real);
        assert!(!place.exists());
        // Where everybody may write, names of others stay theirs only with the sticky bit.
        mode(0o777);
        assert!(store_place(&at(&place), &state).unwrap_err().contains("chmod go-w"));
        mode(0o1777);
        assert_eq!(store_place(&at(&place), &state).unwrap(), real);
        std::os::unix::fs::symlink("disk", dir.path().join("link")).unwrap();
        assert_eq!(store_place(&at(&dir.path().join("link/images")), &state).unwrap(), real);
    }

    #[test]
    fn a_store_in_memory_takes_what_it_may_hold() {
        let config = |max_size: &str| ImagesConfig { max_size: max_size.into(), ..ImagesConfig::default() };
        let shm = Path::new("/dev/shm/images");
        let whole = store_memory(&config(""), shm).unwrap();
        assert_eq!(whole.kind, "tmpfs");
        assert_eq!(store_memory(&config("1M"), shm).unwrap().mib, Some(1));
        assert_eq!(store_memory(&config("900T"), shm).unwrap().mib, whole.mib.or(Some(900 << 20)));
        assert_eq!(store_memory(&config(""), Path::new("/proc/self")), None);
    }
}
