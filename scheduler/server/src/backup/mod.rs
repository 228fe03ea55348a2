//! Backups: one file with the store, the keys and the configuration, and how it becomes a cluster again.
//!
//! The file is a tar archive. Its first member, `manifest.json`, says in which format the rest is, of which cluster and when it
//! was made, and size and SHA-256 of every member behind it: `db/cluster.db`, the keys below `private/`, and `berth.toml`.

mod landing;
pub(crate) mod noted;
mod restore;
mod write;

pub use landing::finish_interrupted;
pub use restore::{Restore, Restored, restore};
pub use write::backup;

use crate::ControllerError;
use berth_model::Time;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::path::Path;

/// The format that this version writes, and the latest that it reads.
pub const FORMAT: u32 = 1;
/// Name of the first member.
const MANIFEST: &str = "manifest.json";
/// Name of the database's member.
const DATABASE: &str = "db/cluster.db";
/// Name of the configuration's member.
const CONFIG: &str = "berth.toml";
/// Most bytes of the manifest and of each file but the database.
const SMALL: u64 = 1 << 20;

/// What a backup says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Form of the file.
    pub format: u32,
    /// Version of the program that wrote it.
    pub version: String,
    /// Name of the cluster.
    pub cluster: String,
    /// When it was made: microseconds since 1970, UTC.
    pub time: Time,
    /// Version of the database's tables.
    pub schema: i64,
    /// The term that had begun last.
    pub term: u64,
    /// The id of the next job.
    pub next_job: u32,
    /// What is in it, in order.
    pub members: Vec<Member>,
}

/// One file in a backup.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its path below the state directory.
    pub name: String,
    /// Its bytes.
    pub size: u64,
    /// Its permissions.
    pub mode: u32,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

fn trouble(path: &Path, why: impl std::fmt::Display) -> ControllerError {
    ControllerError::State { path: path.to_path_buf(), why: why.to_string() }
}

/// Makes names in a directory durable.
fn sync_dir(dir: &Path) -> Result<(), ControllerError> {
    std::fs::File::open(dir).and_then(|d| d.sync_all()).map_err(|e| trouble(dir, e))
}

/// Copies all of `from` to `to`; how many bytes, and their SHA-256.
fn copy_hashed(from: &mut impl Read, to: &mut impl Write) -> io::Result<(u64, String)> {
    use sha2::Digest;
    use std::fmt::Write as _;
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 1 << 18];
    let mut size = 0;
    loop {
        match from.read(&mut buffer)? {
            0 => break,
            n => {
                hash.update(&buffer[..n]);
                to.write_all(&buffer[..n])?;
                size += n as u64;
            }
        }
    }
    let mut text = String::new();
    for byte in hash.finalize() {
        // A String takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    Ok((size, text))
}
