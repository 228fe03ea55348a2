//! Finds what a cluster left behind: processes, mounts and control groups that carry its directory or its marker.

use std::path::{Path, PathBuf};

/// Processes that belong to the directory: by command line, environment, working directory or root.
pub fn processes(directory: &Path) -> Vec<(i32, String)> {
    let needle = directory.as_os_str().as_encoded_bytes();
    let mut result = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else { continue };
        if pid == i32::try_from(std::process::id()).unwrap() {
            continue;
        }
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let link = |name: &str| std::fs::read_link(entry.path().join(name)).unwrap_or_default();
        let ours = contains(&read("cmdline"), needle)
            || contains(&read("environ"), needle)
            || link("cwd").starts_with(directory)
            || link("root").starts_with(directory);
        let state =
            String::from_utf8_lossy(&read("stat")).rsplit(')').next().unwrap_or("").trim().to_string();
        if ours && !state.starts_with('Z') {
            let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            result.push((pid, line));
        }
    }
    result
}

fn contains(hay: &[u8], needle: &[u8]) -> bool {
    hay.windows(needle.len()).any(|w| w == needle)
}

/// Mounts of our own namespace at or from below the directory.
pub fn mounts(directory: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let needle = directory.to_string_lossy().into_owned();
    text.lines().filter(|l| l.contains(&needle)).map(str::to_string).collect()
}

/// Trees of control groups of the cluster with this state directory, on every hierarchy. They are named after the
/// directory, by FNV-1a.
pub fn control_groups(state: &Path) -> Vec<PathBuf> {
    let bytes = state.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193));
    control_groups_named(&format!("berth-{hash:08x}"))
}

/// What there is of control groups that should be gone: each of them, and the processes in it.
pub fn of_control_groups(state: &Path) -> Vec<String> {
    let groups = control_groups(state);
    let Some(name) = groups.first().and_then(|group| group.file_name()) else { return Vec::new() };
    let needle = format!("/{}", name.to_string_lossy());
    let held = std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| {
        let read = |name: &str| std::fs::read_to_string(entry.path().join(name)).ok();
        let group = read("cgroup")?;
        if !group.contains(&needle) {
            return None;
        }
        let stat = read("stat")?;
        let open = std::fs::read_dir(entry.path().join("fd")).into_iter().flatten().flatten();
        let open: Vec<String> = open
            .filter_map(|fd| Some(std::fs::read_link(fd.path()).ok()?.display().to_string()))
            .filter(|path| path.starts_with('/'))
            .collect();
        Some(format!("a process is in it that has {} open: {}", open.join(" "), stat.trim()))
    });
    groups.iter().map(|group| format!("a control group is left: {}", group.display())).chain(held).collect()
}

/// Control groups of this name, on every hierarchy.
pub fn control_groups_named(name: &str) -> Vec<PathBuf> {
    let mut result = Vec::new();
    let mut left = vec![(PathBuf::from("/sys/fs/cgroup"), 0)];
    while let Some((path, depth)) = left.pop() {
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            if !entry.file_type().is_ok_and(|t| t.is_dir()) {
                continue;
            }
            if entry.file_name().to_string_lossy() == name {
                result.push(entry.path());
            }
            if depth < 6 {
                left.push((entry.path(), depth + 1));
            }
        }
    }
    result.sort();
    result
}
