//! Reading and writing the files of a control group.

use super::{CgroupError, Result};
use std::fs;
use std::io::{self, Write};
use std::path::Path;

/// Writes a value in one call, as the kernel wants it.
pub(crate) fn write(dir: &Path, file: &str, value: &str) -> Result<()> {
    let path = dir.join(file);
    fs::OpenOptions::new()
        .write(true)
        .open(&path)
        .and_then(|mut f| f.write_all(value.as_bytes()))
        .map_err(|e| CgroupError::new("write", &path, &e))
}

/// Writes several values into one file, each in one call.
pub(crate) fn write_each(dir: &Path, file: &str, values: impl IntoIterator<Item = String>) -> Result<()> {
    let path = dir.join(file);
    let failed = |e: io::Error| CgroupError::new("write", &path, &e);
    let mut open = fs::OpenOptions::new().write(true).open(&path).map_err(failed)?;
    values.into_iter().try_for_each(|value| open.write_all(value.as_bytes()).map_err(failed))
}

/// A file's text, without the line end.
pub(crate) fn read(dir: &Path, file: &str) -> Option<String> {
    fs::read_to_string(dir.join(file)).ok().map(|s| s.trim_end().to_string())
}

/// A file that holds one number.
pub(crate) fn number(dir: &Path, file: &str) -> Option<u64> {
    read(dir, file)?.parse().ok()
}

/// The number behind a key, in a file of `key number` lines.
pub(crate) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Makes one directory; an existing one is no error.
pub(crate) fn make_dir(path: &Path) -> Result<()> {
    match fs::create_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
            Err(CgroupError::new("make the group", path, &e))
        }
        _ => Ok(()),
    }
}

/// Adds the pids in a group and in those below it.
pub(crate) fn processes(dir: &Path, into: &mut Vec<i32>) {
    if let Some(text) = read(dir, "cgroup.procs") {
        // 0 is a process that this pid namespace does not see.
        into.extend(text.lines().filter_map(|l| l.parse::<i32>().ok()).filter(|pid| *pid > 0));
    }
    for child in children(dir) {
        processes(&child, into);
    }
}

/// The groups directly below.
pub(crate) fn children(dir: &Path) -> Vec<std::path::PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

/// Removes a group and those below it.
pub(crate) fn remove(dir: &Path) -> Result<()> {
    let gone = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
    match fs::remove_dir(dir) {
        // Processes, or groups below.
        Err(e) if e.raw_os_error() == Some(libc::EBUSY) => {}
        Err(e) if !gone(&e) => return Err(CgroupError::new("remove the group", dir, &e)),
        _ => return Ok(()),
    }
    for child in children(dir) {
        remove(&child)?;
    }
    match fs::remove_dir(dir) {
        Err(e) if !gone(&e) => Err(CgroupError::new("remove the group", dir, &e)),
        _ => Ok(()),
    }
}

/// CPU numbers as the kernel lists them: `0-2,5`.
pub(crate) fn cpu_list(cpus: &[u32]) -> String {
    let mut sorted = cpus.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut parts: Vec<String> = Vec::new();
    let mut at = 0;
    while at < sorted.len() {
        let first = sorted[at];
        let mut last = first;
        while sorted.get(at + 1) == Some(&(last + 1)) {
            last += 1;
            at += 1;
        }
        at += 1;
        parts.push(if first == last { first.to_string() } else { format!("{first}-{last}") });
    }
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lists_and_keys() {
        assert_eq!(cpu_list(&[5, 0, 1, 2, 1]), "0-2,5");
        assert_eq!(cpu_list(&[]), "");
        assert_eq!(keyed("oom 1\noom_kill 3\n", "oom_kill"), Some(3));
        assert_eq!(keyed("oom_kill_disable 0\n", "oom_kill"), None);
    }

    proptest! {
        #[test]
        fn a_cpu_list_names_exactly_its_cpus(cpus in proptest::collection::btree_set(0u32..200, 0..40)) {
            let list: Vec<u32> = cpus.iter().copied().collect();
            let mut back = Vec::new();
            for part in cpu_list(&list).split(',').filter(|p| !p.is_empty()) {
                let (a, b) = part.split_once('-').unwrap_or((part, part));
                back.extend(a.parse::<u32>().unwrap()..=b.parse::<u32>().unwrap());
            }
            prop_assert_eq!(back, list);
        }
    }
}
