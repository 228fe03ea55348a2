//! Where the image store is: in the state directory, or where the configuration says.

use crate::paths::Paths;
use berth_images::unfit_filesystem;
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
}
