//! The bundle that hooks of a step's container find: a `config.json` that says what is made, and the place of its root.

use super::ContainerHooks;
use crate::plan::{MountKind, Ns, Plan};
use serde_json::{Value, json};
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;

/// Version of the specification that state and configuration are written by.
pub(super) const VERSION: &str = "1.2.0";

/// Makes the directory, for its owner alone, and what hooks read of the container.
///
/// # Errors
/// Names the file.
pub fn make(hooks: &ContainerHooks, plan: &Plan) -> io::Result<()> {
    let named =
        |path: &std::path::Path, e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    let place = hooks.rootfs();
    let place = place.as_path();
    fs::DirBuilder::new().recursive(true).mode(0o700).create(place).map_err(|e| named(place, e))?;
    let config = hooks.bundle.as_path().join("config.json");
    let text = serde_json::to_vec(&describe(hooks, plan)).map_err(io::Error::other)?;
    fs::write(&config, text).map_err(|e| named(&config, e))
}

/// The container in the specification's words. Of the environment it has what the cluster itself says: a variable of the
/// image or of the user would steer hooks that look for their own in it.
fn describe(hooks: &ContainerHooks, plan: &Plan) -> Value {
    let ns = &plan.namespaces;
    let kinds = [
        (ns.user != Ns::Node, "user"),
        (ns.mount, "mount"),
        (ns.pid != Ns::Node, "pid"),
        (ns.ipc != Ns::Node, "ipc"),
        (ns.cgroup, "cgroup"),
        (ns.uts, "uts"),
        (ns.net, "network"),
    ];
    let namespaces: Vec<Value> =
        kinds.iter().filter(|(on, _)| *on).map(|(_, kind)| json!({"type": kind})).collect();
    let map = |ids: &[crate::plan::IdMap]| -> Vec<Value> {
        ids.iter().map(|m| json!({"containerID": m.inside, "hostID": m.outside, "size": m.count})).collect()
    };
    let args: Vec<_> = plan.argv.iter().map(|a| a.display().into_owned()).collect();
    let mounts: Vec<Value> = plan
        .mounts
        .iter()
        .filter_map(|m| match &m.kind {
            MountKind::Bind { source, .. } => Some(json!({
                "destination": m.target.display(), "type": "bind", "source": source.display(), "options": ["rbind"],
            })),
            _ => None,
        })
        .collect();
    // Numbers are those inside: the groups that come with devices have none there, and are kept from outside.
    let id = &plan.identity;
    json!({
        "ociVersion": VERSION,
        "root": {"path": hooks.rootfs().display()},
        "process": {
            "cwd": plan.workdir.path.display(),
            "args": args,
            "env": hooks.env,
            "user": {"uid": id.inside_uid, "gid": id.inside_gid, "additionalGids": id.inside_groups},
        },
        "mounts": mounts,
        "annotations": hooks.annotations,
        "linux": {"namespaces": namespaces, "uidMappings": map(&plan.uid_map), "gidMappings": map(&plan.gid_map)},
    })
}
