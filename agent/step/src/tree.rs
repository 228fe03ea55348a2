//! Trees that a user filled, and how they are removed.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// Removes a tree that its user may have filled: directories that refuse their own owner (as overlay's
/// working directories do) are opened first. Symbolic links are removed, never followed.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            open_up(path)?;
            fs::remove_dir_all(path)
        }
        Err(e) => Err(e),
    }
}

/// As [`remove_tree`], and what the user's containers wrote with the user's subordinate ids as well. Of an ordinary user's
/// processes only one in a user namespace with those ids may remove that: `program`, which is `berth`, makes it.
///
/// # Errors
/// What cannot be removed, or why there can be no such namespace.
pub fn remove_written(path: &Path, program: &Path) -> io::Result<()> {
    match remove_tree(path) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !nix::unistd::geteuid().is_root() => {}
        result => return result,
    }
    let output = Command::new(program)
        .arg0("berth")
        .arg("internal-remove")
        .arg(path)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(io::Error::new(io::ErrorKind::PermissionDenied, said.trim().to_string()))
}

/// Gives the owner back every directory of a tree that is the caller's own.
fn open_up(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.is_dir() {
        return Ok(());
    }
    fs::set_permissions(path, Permissions::from_mode(0o700))?;
    for entry in fs::read_dir(path)? {
        open_up(&entry?.path())?;
    }
    Ok(())
}
