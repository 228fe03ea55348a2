//! A local container's root filesystem as an image file: the container is made, nothing runs in it, and its first process
//! reads its files.

use super::{Container, follow, image, request};
use crate::images;
use berth_client::error::{Failure, Kind};
use berth_images::{ImageConfig, SaveForm, save_root};
use berth_runtime::{HostFacts, Rootfs, StartOptions, plan, start_init};
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// Writes it to `path`.
pub fn save(container: &Container, path: &Path, form: SaveForm) -> Result<(), Failure> {
    let (root, config, guard) = image::prepare_for(container)?;
    if root == Rootfs::Host {
        return Err(Failure::user("the node's own filesystem is no image".to_string()));
    }
    let saved: ImageConfig = serde_json::from_value(config.saved())
        .map_err(|e| Failure::new(Kind::Internal, format!("the image's configuration: {e}")))?;
    let mut request = request(container, root, config)?;
    request.export = true;
    let facts = HostFacts::gather(&request);
    let plan = plan(&request, &facts).map_err(|e| Failure::user(e.to_string()))?;
    let mut init = start_init(&plan, StartOptions::default()).map_err(|e| follow::launch(&e))?;
    let pipe = || {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
            .map_err(|e| Failure::new(Kind::Internal, format!("cannot make a pipe: {e}")))
    };
    let ((archive, archive_in), (unread, unread_in)) = (pipe()?, pipe()?);
    init.export(archive_in, unread_in).map_err(|e| follow::launch(&e))?;
    let written = save_root(File::from(archive), path, form, &saved);
    let mut why = String::new();
    // What could not be read is the better reason for what could not be written.
    let _ = File::from(unread).take(4096).read_to_string(&mut why);
    drop((init, guard));
    match written {
        _ if !why.trim().is_empty() => Err(Failure::user(why.trim().to_string())),
        result => result.map_err(|e| images::failed(&e)),
    }
}
