//! Asks systemd's manager for units: the machine's for root, a user's own for everyone else. By busctl, which comes with
//! systemd, so that no program of ours speaks D-Bus.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Comes with systemd.
const BUSCTL: &str = "/usr/bin/busctl";
const MANAGER: &str = "org.freedesktop.systemd1";

/// A property of a unit, in busctl's words: the value behind its D-Bus signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Property {
    /// As systemd's D-Bus interface has it.
    pub name: String,
    /// D-Bus signature of the value.
    pub signature: String,
    /// The value.
    pub words: Vec<String>,
}

impl Property {
    /// A property with a value of one word.
    pub fn new(name: &str, signature: &str, value: impl ToString) -> Property {
        Property { name: name.into(), signature: signature.into(), words: vec![value.to_string()] }
    }

    /// A property that is a list.
    pub fn list(name: &str, signature: &str, values: impl IntoIterator<Item = impl ToString>) -> Property {
        let mut words: Vec<String> = values.into_iter().map(|v| v.to_string()).collect();
        words.insert(0, words.len().to_string());
        Property { name: name.into(), signature: signature.into(), words }
    }
}

/// Why no unit can be asked for, and what to do.
pub fn missing() -> Option<String> {
    if !Path::new("/run/systemd/system").exists() {
        return Some("systemd does not run this node".into());
    }
    if !Path::new(BUSCTL).exists() {
        return Some(format!("{BUSCTL} is not there to ask systemd"));
    }
    let uid = user()?;
    let dir = runtime_dir(uid);
    if dir.join("bus").exists() {
        return None;
    }
    Some(format!(
        "this user has no systemd manager ({} has no bus): log in, or as root: loginctl enable-linger {uid}",
        dir.display()
    ))
}

/// Whose manager is asked; `None` is the machine's. Who is root in a user namespace alone is the user who made it.
pub fn user() -> Option<u32> {
    let own = rustix::process::geteuid().as_raw();
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    let uid = on_the_node(&map, own);
    (uid != 0).then_some(uid)
}

/// What the node calls an id of this user namespace.
fn on_the_node(map: &str, id: u32) -> u32 {
    let ranges = map.lines().filter_map(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u32>);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?))
    });
    ranges
        .filter_map(|(inside, outside, count)| {
            let at = id.checked_sub(inside).filter(|at| *at < count)?;
            outside.checked_add(at)
        })
        .next()
        .unwrap_or(id)
}

fn runtime_dir(uid: u32) -> PathBuf {
    PathBuf::from(format!("/run/user/{uid}"))
}

/// Calls a method of the manager.
///
/// # Errors
/// What systemd, or busctl, said.
pub fn call(words: &[&str]) -> Result<(), String> {
    let mut command = Command::new(BUSCTL);
    command.env_clear().stdin(Stdio::null());
    if let Some(uid) = user() {
        command.env("XDG_RUNTIME_DIR", runtime_dir(uid)).arg("--user");
    }
    // A slice's name may begin with a hyphen.
    command
        .args(["--quiet", "--", "call", MANAGER, "/org/freedesktop/systemd1"])
        .arg(format!("{MANAGER}.Manager"))
        .args(words);
    let output = command.output().map_err(|e| format!("{BUSCTL}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.trim();
    Err(said.strip_prefix("Call failed: ").unwrap_or(said).to_string())
}

/// Has systemd make a scope; it moves the processes of its property `PIDs` there soon after.
///
/// # Errors
/// What systemd said.
pub fn start_scope(name: &str, properties: &[Property]) -> Result<(), String> {
    let words = words(properties);
    let mut all = vec!["StartTransientUnit", "ssa(sv)a(sa(sv))", name, "fail"];
    all.extend(words.iter().map(String::as_str));
    all.push("0");
    call(&all)
}

/// Has systemd put a process into the delegated scope of this name, which lasts as long as anything in it: a new one, or the
/// one that there is, in the group `leaf` below it. Comes back when the process is there.
///
/// # Errors
/// What systemd said, or that it takes longer than `patience`.
pub fn take_scope(
    name: &str,
    description: &str,
    leaf: &str,
    pid: u32,
    patience: Duration,
) -> Result<(), String> {
    let properties = [
        Property::new("Description", "s", description),
        Property::list("PIDs", "au", [pid]),
        Property::new("Delegate", "b", true),
        Property::new("TasksMax", "t", u64::MAX),
        Property::new("CollectMode", "s", "inactive-or-failed"),
    ];
    let end = Instant::now() + patience;
    loop {
        // What outlived an earlier process keeps its scope; one whose last process has just gone is neither there nor gone.
        match start_scope(name, &properties)
            .or_else(|refused| attach(name, &format!("/{leaf}"), pid).map_err(|_| refused))
        {
            Ok(()) => break,
            Err(why) if Instant::now() > end => return Err(why),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    let is_there = || {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        text.lines().any(|line| line.starts_with("0::") && line.split('/').any(|part| part == name))
    };
    while !is_there() {
        if Instant::now() > end {
            return Err(format!("systemd did not move process {pid} into {name}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Changes properties of a unit, until the next boot.
///
/// # Errors
/// What systemd said.
pub fn set(name: &str, properties: &[Property]) -> Result<(), String> {
    let words = words(properties);
    let mut all = vec!["SetUnitProperties", "sba(sv)", name, "true"];
    all.extend(words.iter().map(String::as_str));
    call(&all)
}

/// Has systemd move a process into a unit's control group, or one below it.
///
/// # Errors
/// What systemd said.
pub fn attach(name: &str, below: &str, pid: u32) -> Result<(), String> {
    call(&["AttachProcessesToUnit", "ssau", name, below, "1", &pid.to_string()])
}

/// Has systemd stop a unit.
///
/// # Errors
/// What systemd said; that there is no such unit, too.
pub fn stop(name: &str) -> Result<(), String> {
    call(&["StopUnit", "ss", name, "replace"])
}

fn words(properties: &[Property]) -> Vec<String> {
    let mut all = vec![properties.len().to_string()];
    for property in properties {
        all.extend([property.name.clone(), property.signature.clone()]);
        all.extend(property.words.iter().cloned());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_in_words() {
        let properties = [
            Property::new("Delegate", "b", true),
            Property::list("PIDs", "au", [7, 8]),
            Property::new("A", "t", 1),
        ];
        assert_eq!(words(&properties).join(" "), "3 Delegate b true PIDs au 2 7 8 A t 1");
    }

    #[test]
    fn the_node_knows_ids_of_a_namespace() {
        assert_eq!(on_the_node("         0          0 4294967295\n", 1000), 1000);
        let map = "         0       1000          1\n         1     100000      65536\n";
        assert_eq!(on_the_node(map, 0), 1000);
        assert_eq!(on_the_node(map, 5), 100_004);
    }
}
