//! A control group from systemd for a cluster that is started where the caller's own is not ours to divide: in a
//! login session, above all. systemd makes a scope that is delegated and moves this process there; what it starts
//! is born there.

use berth_client::site::StateDir;
use berth_runtime::cgroup::{Controller, LEAF, Unified};
use berth_runtime::systemd;
use std::path::Path;
use std::time::Duration;

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
    if let Some(why) = systemd::missing() {
        return Place::Refused(why);
    }
    let Some(uid) = systemd::user() else { return Place::Scope(Unified::controllers(&unified.mount)) };
    let manager = format!("user.slice/user-{uid}.slice/user@{uid}.service");
    Place::Scope(Unified::controllers(&unified.mount.join(manager)))
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
    let description = format!("Berth cluster in {}", dir.0.display());
    systemd::take_scope(&name, &description, LEAF, std::process::id(), PATIENCE)
}
