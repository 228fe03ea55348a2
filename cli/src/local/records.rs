//! The containers that run on this machine without a cluster, so that they can be listed: one small file each in
//! the state directory, gone with the container. What a killed process left is removed by the next look.

use berth_client::error::{Failure, Kind};
use berth_client::site::StateDir;
use berth_step::spool::start_ticks;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;

/// One running container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name.
    pub name: String,
    /// The image as it was named.
    pub image: String,
    /// What runs in it.
    pub command: String,
    /// The process that made it and follows it.
    pub pid: i32,
    /// When that process started, which tells it from a later one of the same number.
    pub ticks: u64,
    /// The container's first process.
    pub init: i32,
    /// When it was made, in seconds since 1970.
    pub created: i64,
    /// The job in whose allocation it runs.
    #[serde(default)]
    pub job: Option<String>,
}

/// A record's file, removed when dropped.
#[derive(Debug)]
pub struct Kept(PathBuf);

impl Drop for Kept {
    fn drop(&mut self) {
        // One that stays names a process that is gone, and is swept.
        let _ = std::fs::remove_file(&self.0);
    }
}

fn dir(state: &StateDir) -> PathBuf {
    state.0.join("local")
}

fn fault(path: &std::path::Path, e: &std::io::Error) -> Failure {
    Failure::new(Kind::Internal, format!("{}: {e}", path.display()))
}

/// Records a container. A name that a running container has is refused.
pub fn keep(state: &StateDir, record: &Record) -> Result<Kept, Failure> {
    let dir = dir(state);
    let path = dir.join(format!("{}.json", record.name));
    let text = serde_json::to_vec(record).map_err(|e| fault(&path, &std::io::Error::other(e)))?;
    let exists = |e: &std::io::Error| e.kind() == std::io::ErrorKind::AlreadyExists;
    let create = || std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let mut file = create();
    if file.as_ref().is_err_and(exists) {
        // Of a container that runs, or left by a process that was killed: then looking removes it.
        if let Some(other) = list(state)?.iter().find(|r| r.name == record.name) {
            return Err(taken(&record.name, &format!("pid {}", other.pid)));
        }
        file = create();
    }
    let mut file = match file {
        // Another one was quicker, and may not have written it yet.
        Err(e) if exists(&e) => return Err(taken(&record.name, "it has just started")),
        file => file.map_err(|e| fault(&path, &e))?,
    };
    // Ours from here on, and removed with us.
    let kept = Kept(path);
    std::io::Write::write_all(&mut file, &text).map_err(|e| fault(&kept.0, &e))?;
    Ok(kept)
}

/// Makes the directory of records and sockets.
pub fn prepare(state: &StateDir) -> Result<(), Failure> {
    let dir = dir(state);
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
    made.map_err(|e| fault(&dir, &e))
}

fn taken(name: &str, which: &str) -> Failure {
    Failure::user(format!(
        "a container named '{name}' runs already ({which}): choose another name, or end that one"
    ))
}

/// Those that run, the newest first.
pub fn list(state: &StateDir) -> Result<Vec<Record>, Failure> {
    let dir = dir(state);
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(fault(&dir, &e)),
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let read = std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Record>(&text).ok());
        match read {
            Some(record) if start_ticks(record.pid) == Some(record.ticks) => found.push(record),
            // Half a record may be being written by a process that lives.
            Some(_) => {
                // Its socket, as far as there is one.
                let _ = std::fs::remove_file(path.with_extension("sock"));
                drop(Kept(path));
            }
            None => {}
        }
    }
    found.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.name.cmp(&b.name)));
    Ok(found)
}

/// Whether a name can be that of a container: it is part of a file's name.
pub fn is_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    !name.is_empty()
        && name.len() <= 128
        && name.bytes().all(plain)
        && name.as_bytes()[0].is_ascii_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_removed_by_its_own_container_alone() {
        let state = tempfile::tempdir().unwrap();
        let state = StateDir(state.path().to_path_buf());
        prepare(&state).unwrap();
        let pid = std::process::id().cast_signed();
        let record = Record {
            name: "web".into(),
            image: "i".into(),
            command: "c".into(),
            pid,
            ticks: start_ticks(pid).unwrap(),
            init: pid,
            created: 0,
            job: None,
        };
        let file = dir(&state).join("web.json");
        // Whoever makes it has not written it yet.
        std::fs::write(&file, "").unwrap();
        assert!(keep(&state, &record).unwrap_err().text.contains("'web' runs already"));
        assert!(file.exists(), "somebody else's record is gone");
        std::fs::remove_file(&file).unwrap();
        let kept = keep(&state, &record).unwrap();
        assert!(keep(&state, &record).unwrap_err().text.contains(&format!("pid {pid}")));
        assert!(file.exists());
        drop(kept);
        assert!(!file.exists());
        // One of a process that is gone makes room.
        std::fs::write(&file, serde_json::to_vec(&Record { ticks: 1, ..record.clone() }).unwrap()).unwrap();
        keep(&state, &record).unwrap();
    }

    #[test]
    fn names_are_parts_of_paths() {
        assert!(is_name("web-1.a_b"));
        for bad in ["", ".", "..", "a/b", "-a", "a b", "ä"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
