//! One controller for each directory, for as long as its process lives.

use crate::error::StoreError;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

/// Makes the directory if need be: for its owner only.
pub(crate) fn private_directory(dir: &Path) -> Result<(), StoreError> {
    if let Err(e) = DirBuilder::new().mode(0o700).create(dir)
        && e.kind() != std::io::ErrorKind::AlreadyExists
    {
        return Err(StoreError::file(dir, format!("cannot create the directory: {e}")));
    }
    let meta = std::fs::symlink_metadata(dir).map_err(|e| StoreError::file(dir, e))?;
    if !meta.is_dir() {
        return Err(StoreError::file(dir, "is not a directory"));
    }
    let own = nix::unistd::geteuid().as_raw();
    if meta.uid() != own {
        let why = format!("belongs to user id {}, not to this controller's {own}", meta.uid());
        return Err(StoreError::file(dir, why));
    }
    if meta.mode() & 0o077 != 0 {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o700))
            .map_err(|e| StoreError::file(dir, e))?;
    }
    Ok(())
}

/// Held while a controller uses the directory; the kernel releases it with the process, however it ends.
#[derive(Debug)]
pub struct DirectoryLock {
    _file: Flock<File>,
}

impl DirectoryLock {
    /// Takes it.
    ///
    /// # Errors
    /// A controller has it; the message names its process.
    pub fn take(dir: &Path) -> Result<DirectoryLock, StoreError> {
        DirectoryLock::take_within(dir, DYING)
    }

    /// As [`DirectoryLock::take`], waiting for as long for a controller that is going.
    pub(crate) fn take_within(dir: &Path, patience: Duration) -> Result<DirectoryLock, StoreError> {
        let path = dir.join("lock");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(|e| StoreError::file(&path, e))?;
        match patient(file, patience) {
            Ok(mut file) => {
                // The pid is only for the message below.
                let noted = file
                    .set_len(0)
                    .and_then(|()| file.rewind())
                    .and_then(|()| write!(file, "{}", std::process::id()));
                if let Err(e) = noted {
                    tracing::warn!("{}: cannot note the process id: {e}", path.display());
                }
                Ok(DirectoryLock { _file: file })
            }
            Err((mut file, nix::errno::Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let known = file.read_to_string(&mut pid).is_ok() && !pid.is_empty();
                let pid = if known { pid } else { "unknown".to_string() };
                Err(StoreError::InUse { dir: dir.to_path_buf(), pid })
            }
            Err((_, e)) => Err(StoreError::file(&path, format!("cannot lock: {e}"))),
        }
    }
}

/// Locks it. A controller that was killed a moment ago holds it until the last of its threads is gone.
fn patient(mut file: File, patience: Duration) -> Result<Flock<File>, (File, nix::errno::Errno)> {
    let begun = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((back, nix::errno::Errno::EWOULDBLOCK)) if begun.elapsed() < patience => {
                file = back;
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

/// How long a killed controller may take to let go of its lock.
const DYING: Duration = Duration::from_secs(1);
