//! The client programs that containers see in `/run/berth/bin`: one small static program under many names.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

const NAMES: [&str; 11] = [
    "srun",
    "sbatch",
    "salloc",
    "sattach",
    "sbcast",
    "squeue",
    "sinfo",
    "scancel",
    "scontrol",
    "sacct",
    berth_model::mpirun::PROGRAM,
];

/// Makes the directory, or replaces what is in it when the program changed. The directory itself stays: containers have it mounted, and
/// what they start after an upgrade is what the node has by then.
pub fn install(program: &Path, dir: &Path) -> io::Result<()> {
    let source = fs::metadata(program)?;
    let same = fs::metadata(dir.join("berth-step"))
        .is_ok_and(|m| m.len() == source.len() && m.mtime() >= source.mtime());
    if same && NAMES.iter().all(|name| dir.join(name).exists()) {
        return Ok(());
    }
    match fs::create_dir(dir) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?,
    }
    let fresh = dir.join(".new");
    match fs::remove_file(&fresh) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // Whole at every moment, and what runs keeps its own.
    fs::copy(program, &fresh)?;
    fs::set_permissions(&fresh, fs::Permissions::from_mode(0o555))?;
    fs::rename(&fresh, dir.join("berth-step"))?;
    for name in NAMES {
        match symlink("berth-step", dir.join(name)) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
    }
    Ok(())
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
        // Containers that run have it mounted.
        assert_eq!(fs::metadata(&dir).unwrap().ino(), first);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), NAMES.len() + 1);
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 2);
    }
}
