//! Space on the disk: a ballast file that is let go when the disk is full, so that exits and cancellations
//! stay durable while new work is refused.

use crate::error::StoreError;
use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;

/// With less than this a database of ours cannot even be opened: its log's index alone takes 32 KiB.
const NOTHING: u64 = 256 << 10;

/// Whether there is room for new work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Room {
    /// There is.
    Enough,
    /// There is not; says why and what to do.
    Full(String),
}

#[derive(Clone, Debug)]
pub(crate) struct Ballast {
    dir: PathBuf,
    file: PathBuf,
    size: u64,
}

impl Ballast {
    /// Sized to the disk: a sixteenth of it, 1 to 64 MiB.
    pub(crate) fn new(dir: &Path) -> Ballast {
        let total = space(dir).map_or(0, |(_, total)| total);
        let size = (total / 16).clamp(MIB, 64 * MIB);
        Ballast { dir: dir.to_path_buf(), file: dir.join("ballast"), size }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.file
    }

    /// In bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Gives its space to the database.
    pub(crate) fn release(&self) {
        match std::fs::remove_file(&self.file) {
            Ok(()) => tracing::error!("{}: released, the disk is full", self.file.display()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => tracing::error!("{}: cannot be released: {e}", self.file.display()),
        }
    }

    /// Gives its space to the database where there is none at all.
    pub(crate) fn release_if_full(&self) {
        if space(&self.dir).is_ok_and(|(free, _)| free < NOTHING) {
            self.release();
        }
    }

    /// Why something failed, where the disk is what was in its way.
    pub(crate) fn explain(&self, error: StoreError) -> StoreError {
        let why = match &error {
            StoreError::Database { why, .. } | StoreError::File { why, .. } => why.clone(),
            _ => return error,
        };
        match space(&self.dir) {
            Ok((free, _)) if free < NOTHING => {
                StoreError::Full { dir: self.dir.clone(), free, needed: self.size * 2, why }
            }
            _ => error,
        }
    }

    fn is_there(&self) -> bool {
        std::fs::metadata(&self.file).is_ok_and(|meta| meta.len() == self.size)
    }

    /// Looks at the disk. There is room when the ballast is in place, or can be put there with as much again
    /// left over: the margin keeps a disk that is nearly full from going back and forth.
    pub(crate) fn check(&self) -> Room {
        let free = match space(&self.dir) {
            Ok((free, _)) => free,
            Err(e) => return Room::Full(format!("{}: {e}", self.dir.display())),
        };
        // New work stops before the disk is full, so that the rest is never needed in a hurry.
        if self.is_there() {
            return if free >= self.size / 4 { Room::Enough } else { self.full(free) };
        }
        if free < self.size * 2 {
            return self.full(free);
        }
        match self.place() {
            Ok(()) => Room::Enough,
            Err(e) => {
                self.release();
                Room::Full(format!("{}: {e}", self.file.display()))
            }
        }
    }

    fn full(&self, free: u64) -> Room {
        Room::Full(format!(
            "the disk of {} is full ({} MiB free); free at least {} MiB, no restart is needed",
            self.dir.display(),
            free / MIB,
            (self.size * 2).div_ceil(MIB)
        ))
    }

    fn place(&self) -> io::Result<()> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.file)?;
        let size = i64::try_from(self.size).map_err(io::Error::other)?;
        posix_fallocate(&file, 0, size)?;
        file.sync_all()
    }
}

/// Bytes free for us, and in all.
fn space(dir: &Path) -> io::Result<(u64, u64)> {
    let stat = statvfs(dir)?;
    Ok((stat.blocks_available() * stat.fragment_size(), stat.blocks() * stat.fragment_size()))
}
