//! A control group from systemd for a cluster that is started where the caller's own is not ours to divide: in a
//! login session, above all. systemd makes a scope that is delegated and moves this process there; what it starts
//! is born there.

use berth_client::site::StateDir;
use berth_runtime::cgroup::{Controller, LEAF, Unified};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Comes with systemd.
const BUSCTL: &str = "/usr/bin/busctl";
/// How long systemd may take to move a process.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a cluster that is started now has its control groups.
#[derive(Debug)]
pub enum Place {
    /// Below this process's own group: it is ours, or nobody else looks after it, or the node has v1 controllers.
    Here,
    /// In a scope of systemd's, with these controllers.
    Scope(Vec<Controller>),
    /// Below this process's own group, which is not ours, because systemd can give no other.
    Refused(String),
}

/// Looks where it would be.
pub fn find() -> Place {
    let Some(unified) = Unified::detect() else { return Place::Here };
    if !Path::new("/run/systemd/system").exists() || unified.is_delegated() {
        return Place::Here;
    }
    if !Path::new(BUSCTL).exists() {
        return Place::Refused(format!("{BUSCTL} is not there to ask systemd for a control group"));
    }
    let uid = nix::unistd::geteuid();
    if uid.is_root() {
        return Place::Scope(Unified::controllers(&unified.mount));
    }
    if !runtime_dir().join("bus").exists() {
        return Place::Refused(format!(
            "this user has no systemd manager to ask for a control group ({} has no bus): log in, or as root: \
             loginctl enable-linger {uid}",
            runtime_dir().display()
        ));
    }
    let manager = format!("user.slice/user-{uid}.slice/user@{uid}.service");
    Place::Scope(Unified::controllers(&unified.mount.join(manager)))
}

fn runtime_dir() -> PathBuf {
    PathBuf::from(format!("/run/user/{}", nix::unistd::geteuid()))
}

/// Moves this process into the cluster's scope where [`find`] says so. The scope lasts as long as anything in it.
///
/// # Errors
/// What systemd said.
pub fn enter(dir: &StateDir) -> Result<(), String> {
    match find() {
        Place::Here => return Ok(()),
        Place::Refused(why) => return Err(why),
        Place::Scope(_) => {}
    }
    let name = format!("{}.scope", berth_agent::tree_name(&dir.0));
    let pid = std::process::id().to_string();
    let description = format!("Berth cluster in {}", dir.0.display());
    let most = u64::MAX.to_string();
    let properties: [&[&str]; 5] = [
        &["Description", "s", description.as_str()],
        &["PIDs", "au", "1", pid.as_str()],
        &["Delegate", "b", "true"],
        &["TasksMax", "t", most.as_str()],
        &["CollectMode", "s", "inactive-or-failed"],
    ];
    let count = properties.len().to_string();
    let start: Vec<&str> = ["StartTransientUnit", "ssa(sv)a(sa(sv))", name.as_str(), "fail", count.as_str()]
        .into_iter()
        .chain(properties.into_iter().flatten().copied())
        .chain(["0"])
        .collect();
    let leaf = format!("/{LEAF}");
    call(&start).or_else(|refused| {
        // Steps that outlived their agent keep its scope.
        call(&["AttachProcessesToUnit", "ssau", &name, &leaf, "1", &pid]).map_err(|_| refused)
    })?;
    let end = Instant::now() + PATIENCE;
    while !Unified::detect().is_some_and(|own| own.own.ends_with(&name)) {
        if Instant::now() > end {
            return Err(format!("systemd did not move this process into {name}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Calls a method of the manager: the machine's for root, a user's own for everyone else.
fn call(words: &[&str]) -> Result<(), String> {
    let manager = "org.freedesktop.systemd1";
    let mut command = Command::new(BUSCTL);
    command.env_clear().stdin(Stdio::null());
    if !nix::unistd::geteuid().is_root() {
        command.env("XDG_RUNTIME_DIR", runtime_dir()).arg("--user");
    }
    command
        .args(["--quiet", "call", manager, "/org/freedesktop/systemd1"])
        .arg(format!("{manager}.Manager"))
        .args(words);
    let output = command.output().map_err(|e| format!("{BUSCTL}: {e}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(String::from_utf8_lossy(&output.stderr).trim().to_string())
}
