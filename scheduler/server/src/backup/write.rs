//! Writing a backup: whole or not at all, beside a controller that runs.

use super::{CONFIG, DATABASE, FORMAT, MANIFEST, Manifest, Member, SMALL, copy_hashed, sync_dir, trouble};
use crate::{ControllerError, load_config};
use berth_model::Time;
use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Directories in directories below `private/` that are looked through.
const DEEP: usize = 8;

/// Writes a backup of the cluster in `state_dir` to `file` (0600), in place of what bears that name. A controller may
/// run: the database is copied as it is at one moment.
///
/// # Errors
/// There is no cluster, it is somebody else's, its database is damaged, or the file cannot be written; what bore the name
/// is then left as it was.
pub fn backup(state_dir: &Path, file: &Path, version: &str, now: Time) -> Result<Manifest, ControllerError> {
    if file.file_name().is_none() {
        return Err(trouble(file, "names no file"));
    }
    let part = |end: &str| {
        let mut name = file.as_os_str().to_os_string();
        name.push(end);
        PathBuf::from(name)
    };
    // What a backup that was killed left.
    let (copy, whole) = (part(".part.db"), part(".part"));
    let made = [&copy, &whole].into_iter().try_for_each(|path| remove(path)).and_then(|()| {
        probe(&whole, file)?;
        let manifest = write(state_dir, &copy, &whole, version, now)?;
        super::noted::leave(state_dir, file, now)?;
        std::fs::rename(&whole, file).map_err(|e| trouble(file, e))?;
        sync_dir(file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))?;
        Ok(manifest)
    });
    for path in [&copy, &whole] {
        if let Err(e) = remove(path) {
            tracing::warn!("{e}");
        }
    }
    made
}

/// Whether a file can be made there: said of the name that was given, and before the database is read.
fn probe(whole: &Path, file: &Path) -> Result<(), ControllerError> {
    if file.is_dir() {
        return Err(trouble(file, "is a directory; name a file in it"));
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(whole).map_err(|e| {
        let next = "name a file in a directory that is there and that you may write";
        trouble(file, format!("cannot be made: {e}; {next}"))
    })?;
    remove(whole)
}

fn remove(path: &Path) -> Result<(), ControllerError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(trouble(path, e)),
        _ => Ok(()),
    }
}

/// A file that goes into the backup.
struct Source {
    name: String,
    path: PathBuf,
    mode: u32,
}

fn write(
    state_dir: &Path,
    copy: &Path,
    whole: &Path,
    version: &str,
    now: Time,
) -> Result<Manifest, ControllerError> {
    let facts = berth_store::backup::copy(&state_dir.join("db"), copy)?;
    let mut sources = vec![Source { name: DATABASE.to_string(), path: copy.to_path_buf(), mode: 0o600 }];
    keys(&state_dir.join("private"), "private", false, 0, &mut sources)?;
    let config = state_dir.join(CONFIG);
    if config.exists() {
        sources.push(Source { name: CONFIG.to_string(), path: config, mode: 0o644 });
    }
    let mut manifest = Manifest {
        format: FORMAT,
        version: version.to_string(),
        // A configuration that cannot be read is in the backup as it is.
        cluster: load_config(state_dir, None).map(|config| config.cluster).unwrap_or_default(),
        time: now,
        schema: facts.schema,
        term: facts.term,
        next_job: facts.next_job,
        members: Vec::new(),
    };
    for source in &sources {
        let (size, sha256) = File::open(&source.path)
            .and_then(|mut file| copy_hashed(&mut file, &mut io::sink()))
            .map_err(|e| trouble(&source.path, e))?;
        let (name, mode) = (source.name.clone(), source.mode);
        manifest.members.push(Member { name, size, mode, sha256 });
    }
    archive(whole, &manifest, &sources)?;
    Ok(manifest)
}

fn archive(whole: &Path, manifest: &Manifest, sources: &[Source]) -> Result<(), ControllerError> {
    let failed = |e: io::Error| trouble(whole, e);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(whole).map_err(failed)?;
    let mut archive = tar::Builder::new(BufWriter::with_capacity(1 << 18, file));
    let mut text = serde_json::to_vec_pretty(manifest).map_err(|e| failed(e.into()))?;
    text.push(b'\n');
    let seconds = u64::try_from(manifest.time.0 / 1_000_000).unwrap_or(0);
    let mut put = |name: &str, size: u64, mode: u32, content: &mut dyn Read| {
        let mut header = tar::Header::new_gnu();
        header.set_size(size);
        header.set_mode(mode);
        header.set_mtime(seconds);
        archive.append_data(&mut header, name, content)
    };
    put(MANIFEST, text.len() as u64, 0o600, &mut text.as_slice()).map_err(failed)?;
    for (source, member) in sources.iter().zip(&manifest.members) {
        let opened = File::open(&source.path).map_err(|e| trouble(&source.path, e))?;
        // What grows meanwhile is as long as it was; what it is then, its sum tells.
        put(&member.name, member.size, member.mode, &mut opened.take(member.size)).map_err(failed)?;
    }
    let mut file = archive.into_inner().map_err(failed)?;
    file.flush().map_err(failed)?;
    file.get_ref().sync_all().map_err(failed)
}

/// Keys: `*.key` and `*.pem`, all of the controller's own, and all of the cluster's authority.
fn keys(
    dir: &Path,
    name: &str,
    all: bool,
    depth: usize,
    sources: &mut Vec<Source>,
) -> Result<(), ControllerError> {
    let mut entries: Vec<_> = match std::fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
        Ok(entries) => entries,
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(trouble(dir, e)),
    };
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let (path, word) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let inner = format!("{name}/{word}");
        let meta = std::fs::symlink_metadata(&path).map_err(|e| trouble(&path, e))?;
        if meta.is_dir() && depth < DEEP {
            keys(&path, &inner, all || (depth == 0 && word == "authority"), depth + 1, sources)?;
            continue;
        }
        let end = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
        let wanted = match end {
            "lock" | "sock" | "new" => false,
            "key" | "pem" => true,
            _ => word != "lock" && (all || (depth == 0 && word.starts_with("controller."))),
        };
        if !wanted || !meta.is_file() {
            continue;
        }
        if meta.len() > SMALL {
            return Err(trouble(&path, "is larger than any key; move it away"));
        }
        sources.push(Source { name: inner, path, mode: meta.mode() & 0o777 });
    }
    Ok(())
}
