//! What runs: entrypoint, command, arguments.

use crate::request::ContainerRequest;
use berth_model::ByteStr;

/// The complete command, and the prefix for tasks that bring their own.
///
/// The image's entrypoint runs where it was asked for, and where no command was given: then the image is
/// run as docker would run it.
pub(super) fn plan(request: &ContainerRequest) -> (Vec<ByteStr>, Vec<ByteStr>) {
    let image = &request.image;
    let prefix = if request.entrypoint { image.entrypoint.clone() } else { Vec::new() };
    let argv = if request.command.is_empty() {
        image.entrypoint.iter().chain(&image.cmd).cloned().collect()
    } else {
        prefix.iter().chain(&request.command).cloned().collect()
    };
    (argv, prefix)
}
