//! The client programs that containers see in `/run/berth/bin`: one small static program under many names.

use berth_step::tree::remove_tree;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

const NAMES: [&str; 10] =
    ["srun", "sbatch", "salloc", "sattach", "sbcast", "squeue", "sinfo", "scancel", "scontrol", "sacct"];

/// Makes the directory, or replaces it when the program changed. Containers that have the old one keep it.
pub fn install(program: &Path, dir: &Path) -> io::Result<()> {
    let source = fs::metadata(program)?;
    let same = fs::metadata(dir.join("berth-step"))
        .is_ok_and(|m| m.len() == source.len() && m.mtime() >= source.mtime());
    if same && NAMES.iter().all(|name| dir.join(name).exists()) {
        return Ok(());
    }
    let (new, old) = (dir.with_extension("new"), dir.with_extension("old"));
    remove_tree(&new)?;
    remove_tree(&old)?;
    fs::create_dir(&new)?;
    fs::copy(program, new.join("berth-step"))?;
    fs::set_permissions(new.join("berth-step"), fs::Permissions::from_mode(0o555))?;
    for name in NAMES {
        symlink("berth-step", new.join(name))?;
    }
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755))?;
    if dir.exists() {
        fs::rename(dir, &old)?;
    }
    fs::rename(&new, dir)?;
    remove_tree(&old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_are_installed_once_and_replaced_when_they_change() {
        let state = tempfile::tempdir().unwrap();
        let (program, dir) = (state.path().join("berth-step"), state.path().join("client-bin"));
        fs::write(&program, b"one").unwrap();
        install(&program, &dir).unwrap();
        let first = fs::metadata(&dir).unwrap().ino();
        install(&program, &dir).unwrap();
        assert_eq!(fs::metadata(&dir).unwrap().ino(), first);
        fs::write(&program, b"another").unwrap();
        install(&program, &dir).unwrap();
        assert_eq!(fs::read(dir.join("srun")).unwrap(), b"another");
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 2);
    }
}
