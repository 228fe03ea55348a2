//! Keeps the runtime's own program file out of a container's reach.
//!
//! A container can make the runtime run `/proc/self/exe` (as its program, or as a script's interpreter) and
//! then hold the file open for writing. So whatever becomes a container runs from a read-only mount of the
//! file that is attached nowhere, or from a sealed copy in memory.

use super::error::{Naming, Result, invalid};
use crate::setup::mounts::clone_tree;
use crate::sys::exec::{ExecVectors, execve};
use crate::sys::mountattr;
use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags};
use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

const SELF: &str = "/proc/self/exe";
/// Set for the second run alone; neither containers nor hooks inherit the runtime's environment.
const MARK: &str = "BERTH_OCI_SEALED";

fn sealed(exe: &OwnedFd) -> bool {
    let read_only = rustix::fs::fstatvfs(exe).is_ok_and(|s| s.f_flag.contains(StatVfsMountFlags::RDONLY));
    read_only || rustix::fs::fcntl_get_seals(exe).is_ok_and(|s| s.contains(SealFlags::WRITE))
}

/// Runs this program again from where it cannot be written; returns when it already does.
///
/// # Errors
/// Neither a mount nor a copy can be made.
pub fn seal(argv: Vec<OsString>) -> Result<()> {
    let exe =
        rustix::fs::open(SELF, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).named_at("open", SELF)?;
    if sealed(&exe) {
        // The kernel took the name from a descriptor's number.
        let _ = rustix::thread::set_name(c"berth");
        return Ok(());
    }
    let action = "protect the runtime's program file";
    if std::env::var_os(MARK).is_some() {
        return Err(invalid("the runtime's program file can be written", "report this"));
    }
    let file = match read_only_mount(&exe) {
        Some(mount) => mount,
        None => copy(exe).named(action)?,
    };
    let c = |s: OsString| CString::new(s.into_vec()).unwrap_or_default();
    let mut env: Vec<CString> = std::env::vars_os()
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            c(name)
        })
        .collect();
    env.push(c(format!("{MARK}=1").into()));
    let vectors = ExecVectors::new(argv.into_iter().map(c).collect(), env);
    let path = c(format!("/proc/self/fd/{}", file.as_raw_fd()).into());
    Err(execve(&path, &vectors)).named(action)
}

/// The file through a mount of its own that is read-only and in no namespace: nobody can change its flags.
fn read_only_mount(exe: &OwnedFd) -> Option<OwnedFd> {
    let tree = clone_tree(exe, false).ok()?;
    let change = mountattr::Change { set: mountattr::RDONLY, ..mountattr::Change::default() };
    mountattr::mount_setattr(tree.as_fd(), change).ok()?;
    Some(tree)
}

/// A copy in memory that nobody can change.
fn copy(exe: OwnedFd) -> std::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let made = rustix::fs::memfd_create("berth", flags)?;
    let mut to = std::fs::File::from(made);
    std::io::copy(&mut std::fs::File::from(exe), &mut to)?;
    let made = OwnedFd::from(to);
    rustix::fs::fcntl_add_seals(
        &made,
        SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE,
    )?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_copy_cannot_be_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        std::fs::write(&path, "content").unwrap();
        let open = || OwnedFd::from(std::fs::OpenOptions::new().read(true).write(true).open(&path).unwrap());
        assert!(!sealed(&open()));
        let made = copy(open()).unwrap();
        assert!(sealed(&made));
        let again =
            std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", made.as_raw_fd()));
        assert!(again.and_then(|mut f| f.write_all(b"x")).is_err());
        if let Some(mount) = read_only_mount(&open()) {
            assert!(sealed(&mount));
            assert!(
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(format!("/proc/self/fd/{}", mount.as_raw_fd()))
                    .is_err()
            );
        }
    }
}
