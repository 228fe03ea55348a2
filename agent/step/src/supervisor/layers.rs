//! Where a step's container writes to its root, when that is not memory: a place on the node's disk that goes with the step.

use super::as_user::as_user;
use super::step::LaunchFailure;
use crate::spool::LaunchFile;
use crate::tree::{remove_tree, remove_written};
use berth_model::ByteStr;
use berth_model::spec::{ContainerSpec, LayerKind};
use berth_runtime::{ContainerRequest, WritableLayer};
use std::path::PathBuf;

/// Asks the runtime for the layer that `--container-writable-layer` names.
pub fn ask(
    file: &LaunchFile,
    container: &ContainerSpec,
    request: &mut ContainerRequest,
) -> Result<(), LaunchFailure> {
    if let Some(kept) = &file.node.kept {
        if container.layer.is_some_and(|l| l.kind == LayerKind::Tmpfs || l.size.is_some()) {
            return Err(LaunchFailure::new(format!(
                "the container '{}' (--container-name) is kept on the node's disk: leave --container-writable-layer out",
                kept.name
            )));
        }
        request.writable_layer = WritableLayer::Dir(kept.written.clone());
        return Ok(());
    }
    let Some(layer) = container.layer else { return Ok(()) };
    request.writable_size = layer.size.map(|mib| mib << 20);
    if layer.kind == LayerKind::Tmpfs {
        return Ok(());
    }
    let (Some(place), Some(job)) = (place(file), file.node.scratch.as_ref()) else {
        return Err(LaunchFailure::new(
            "--container-writable-layer=disk: the job has no directory on this node",
        ));
    };
    if layer.size.is_some() && file.node.system {
        // Beside the user's directory, in one of root's: the kernel mounts only what root made.
        let image = job.as_path().with_extension(format!("layer-{}", file.launch.key.step));
        request.writable_layer = WritableLayer::Image(ByteStr::from(image.as_path()));
        return Ok(());
    }
    request.writable_layer = WritableLayer::Dir(ByteStr::from(place.as_path()));
    Ok(())
}

/// Makes the directory of a layer that [`ask`] put on disk.
pub fn make(file: &LaunchFile, request: &ContainerRequest) -> Result<(), LaunchFailure> {
    if let Some(kept) = file.node.kept.as_ref().filter(|kept| kept.join.is_none()) {
        let made = as_user(&file.launch.identity, 0o077, || std::fs::create_dir(kept.written.as_path()));
        return match made.and_then(|made| made) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(LaunchFailure::new(format!("cannot make the directory {}: {e}", kept.written.display())))
            }
            _ => Ok(()),
        };
    }
    let Some(place) = place(file) else { return Ok(()) };
    let asked = matches!(&request.writable_layer, WritableLayer::Dir(dir) if dir.as_path() == place);
    // One with a size is refused by the planner, in words of its own.
    if !asked || request.writable_size.is_some() {
        return Ok(());
    }
    as_user(&file.launch.identity, 0o077, || std::fs::create_dir(&place))
        .and_then(|made| made)
        .map_err(|e| LaunchFailure::new(format!("cannot make the directory {}: {e}", place.display())))
}

/// The step's own directory in the one that the job's user can write.
fn place(file: &LaunchFile) -> Option<PathBuf> {
    let scratch = file.node.scratch.as_ref()?;
    Some(scratch.as_path().join(format!("layer-{}", file.launch.key.step)))
}

/// A layer in a directory of the step's own: removed when it is dropped.
pub struct OnDisk {
    place: PathBuf,
    /// The `berth` program, which removes what belongs to other ids.
    program: Option<ByteStr>,
}

impl OnDisk {
    /// The one of this request.
    pub fn of(file: &LaunchFile, request: &ContainerRequest) -> Option<OnDisk> {
        let place = place(file)?;
        match &request.writable_layer {
            WritableLayer::Dir(dir) if dir.as_path() == place => {
                Some(OnDisk { place, program: file.node.program.clone() })
            }
            _ => None,
        }
    }
}

impl Drop for OnDisk {
    fn drop(&mut self) {
        let removed = match &self.program {
            Some(program) => remove_written(&self.place, program.as_path()),
            None => remove_tree(&self.place),
        };
        if let Err(e) = removed {
            crate::log::say(&format!("{}: {e}", self.place.display()));
        }
    }
}
