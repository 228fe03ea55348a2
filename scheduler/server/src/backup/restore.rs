//! Making a cluster of a backup: the new database is made beside the old one and exchanged with it in one step.

use super::landing::{FILES, LEFT, PLAN, Plan, STAGE, finish, private};
use super::{CONFIG, DATABASE, FORMAT, MANIFEST, Manifest, SMALL, copy_hashed, sync_dir, trouble};
use crate::ControllerError;
use crate::state::StateDir;
use berth_model::Term;
use berth_store::backup::Facts;
use berth_store::{DirectoryLock, StoreError};
use ring::rand::{SecureRandom, SystemRandom};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use serde::Deserialize;
use std::fs::{File, OpenOptions};
use std::io::{BufReader, ErrorKind, Read};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

/// What is to be restored, and where.
#[derive(Debug, Clone)]
pub struct Restore<'a> {
    /// The cluster's state directory.
    pub state_dir: &'a Path,
    /// The backup.
    pub file: &'a Path,
    /// Whether a database that is there may be put aside.
    pub replace: bool,
    /// A date and time, for the name of the directory in which what is replaced is kept.
    pub label: &'a str,
}

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// What the backup says of itself.
    pub manifest: Manifest,
    /// Where that is which was replaced, if anything was.
    pub aside: Option<PathBuf>,
}

/// Makes the cluster of a backup. Until its database has been exchanged with the old one, which is one step, nothing of the
/// old cluster is touched; from then on the rest is finished by this or by the next controller, whatever is killed.
///
/// # Errors
/// A controller runs; a database is there and is not to be replaced; the file is no backup, is of a later version, or is not
/// what its manifest says.
pub fn restore(what: &Restore<'_>) -> Result<Restored, ControllerError> {
    if let Err(e) = std::fs::File::open(what.file) {
        return Err(trouble(what.file, format!("{e}; name a file that 'berth backup' wrote")));
    }
    let dir = StateDir::prepare(what.state_dir)?;
    let root = dir.root().to_path_buf();
    let (db, stage) = (dir.database(), root.join(STAGE));
    let old = db.is_dir().then(|| DirectoryLock::take(&db)).transpose().map_err(|e| match e {
        StoreError::InUse { pid, .. } => trouble(
            &root,
            format!("a controller runs there (process {pid}): stop it first, with 'berth down --keep-jobs' if steps are to run on"),
        ),
        other => other.into(),
    })?;
    finish(&root)?;
    if db.join("cluster.db").exists() && !what.replace {
        let why = "there is a database: with --replace it is kept aside, under the date, and replaced";
        return Err(trouble(&db, why));
    }
    clear(&stage)?;
    let left = stage.join(LEFT);
    private(&left)?;
    let manifest = unpack(what.file, &stage)?;
    berth_store::backup::check(&stage.join("cluster.db"))?;
    let mut random = [0; 8];
    SystemRandom::new()
        .fill(&mut random)
        .map_err(|_| trouble(&stage, "the system gives no random numbers; try again"))?;
    berth_store::backup::make_fit(&stage, beyond(&root, &db), u64::from_le_bytes(random))?;
    let aside = free_name(&root, what.label);
    let plan = left.join(PLAN);
    let text = serde_json::to_vec(&Plan { aside }).map_err(|e| trouble(&plan, e))?;
    store(&plan, 0o600, &mut text.as_slice())?;
    for dir in [&left, &stage] {
        sync_dir(dir)?;
    }
    // Whoever finds the new one waits until it is finished.
    let _new = DirectoryLock::take(&stage)?;
    let flags = if old.is_some() { RenameFlags::EXCHANGE } else { RenameFlags::NOREPLACE };
    renameat_with(CWD, &stage, CWD, &db, flags).map_err(|e| trouble(&db, std::io::Error::from(e)))?;
    sync_dir(&root)?;
    let aside = finish(&root)?;
    Ok(Restored { manifest, aside })
}

/// Removes what a restore that was killed had begun.
fn clear(stage: &Path) -> Result<(), ControllerError> {
    if !stage.exists() {
        return Ok(());
    }
    if stage.join("cluster.db").exists() && !stage.join(LEFT).exists() {
        return Err(trouble(stage, "has a database that no restore left half made; move it away"));
    }
    std::fs::remove_dir_all(stage).map_err(|e| trouble(stage, e))
}

/// What is known here of terms and jobs that were given out after the backup.
fn beyond(root: &Path, db: &Path) -> Facts {
    let mut known = berth_store::backup::look(db).unwrap_or_default();
    let noted = std::fs::read(root.join("private/agent-term.json")).unwrap_or_default();
    if let Ok(Term(term)) = serde_json::from_slice(&noted) {
        known.term = known.term.max(term);
    }
    known
}

fn free_name(root: &Path, label: &str) -> String {
    let name = format!("replaced-{label}");
    let numbered = (2..).map(|n| format!("{name}-{n}"));
    let mut names = std::iter::once(name.clone()).chain(numbered);
    names.find(|name| !root.join(name).exists()).unwrap_or(name)
}

/// Unpacks all members into the stage, each compared with what the manifest says of it.
fn unpack(file: &Path, stage: &Path) -> Result<Manifest, ControllerError> {
    let bad = |why: String| trouble(file, format!("{why}; take another backup"));
    let opened = File::open(file).map_err(|e| trouble(file, e))?;
    let mut archive = tar::Archive::new(BufReader::with_capacity(1 << 18, opened));
    let mut entries = archive.entries().map_err(|e| bad(format!("is no backup: {e}")))?;
    let mut next = || -> Result<_, ControllerError> {
        let Some(entry) = entries.next() else { return Ok(None) };
        let entry = entry.map_err(|e| bad(format!("cannot be read: {e}")))?;
        let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        if !entry.header().entry_type().is_file() {
            return Err(bad(format!("{name} in it is no file")));
        }
        Ok(Some((name, entry)))
    };
    let manifest = match next()? {
        Some((name, entry)) if name == MANIFEST => read_manifest(file, entry)?,
        _ => return Err(bad("is no backup of berth's".to_string())),
    };
    for member in &manifest.members {
        let Some((name, mut entry)) = next()? else {
            return Err(bad(format!("ends before {}", member.name)));
        };
        if name != member.name || entry.size() != member.size {
            return Err(bad(format!("has {name} where its manifest has {}", member.name)));
        }
        let place = place(&name).ok_or_else(|| bad(format!("{name} belongs to no cluster")))?;
        let target = stage.join(place);
        private(target.parent().unwrap_or(stage))?;
        let sum = store(&target, member.mode & 0o755, &mut entry)?;
        if sum != (member.size, member.sha256.clone()) {
            return Err(bad(format!(
                "{name} is not what was saved: its SHA-256 is {}, not {}",
                sum.1, member.sha256
            )));
        }
    }
    if let Some((name, _)) = next()? {
        return Err(bad(format!("has {name}, of which its manifest says nothing")));
    }
    if !manifest.members.iter().any(|m| m.name == DATABASE) {
        return Err(bad("has no database".to_string()));
    }
    Ok(manifest)
}

fn read_manifest(file: &Path, entry: impl Read) -> Result<Manifest, ControllerError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
        version: String,
    }
    let bad = |e: &dyn std::fmt::Display| trouble(file, format!("its manifest cannot be read: {e}"));
    let mut text = Vec::new();
    entry.take(SMALL).read_to_end(&mut text).map_err(|e| bad(&e))?;
    let format: Format = serde_json::from_slice(&text).map_err(|e| bad(&e))?;
    if format.format > FORMAT {
        let why = format!(
            "is a backup of format {}, which berth {} wrote; this version reads up to format {FORMAT}: restore it with that \
             version or a later one",
            format.format, format.version
        );
        return Err(trouble(file, why));
    }
    serde_json::from_slice(&text).map_err(|e| bad(&e))
}

/// Where a member goes in the stage: the database where it will be, all else to be put in its place at the end. None where
/// no member can be.
fn place(name: &str) -> Option<PathBuf> {
    let path = Path::new(name);
    let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
    match name {
        DATABASE => Some(PathBuf::from("cluster.db")),
        _ if name == CONFIG || (plain && path.starts_with("private") && name != "private") => {
            Some(Path::new(LEFT).join(FILES).join(path))
        }
        _ => None,
    }
}

/// Writes a new file durably; its size and SHA-256.
fn store(path: &Path, mode: u32, from: &mut impl Read) -> Result<(u64, String), ControllerError> {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|e| {
            match e.kind() {
                ErrorKind::AlreadyExists => trouble(path, "is in the backup twice"),
                _ => trouble(path, e),
            }
        })?;
    let mut write = || {
        let sum = copy_hashed(from, &mut file)?;
        // Whatever the umask.
        file.set_permissions(PermissionsExt::from_mode(mode))?;
        file.sync_all()?;
        Ok(sum)
    };
    write().map_err(|e: std::io::Error| trouble(path, e))
}
