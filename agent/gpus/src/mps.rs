//! NVIDIA's Multi-Process Service: the control daemon that the administrator runs on a node, and the directory by which programs reach it.

use crate::tree::Tree;

/// The variable by which programs find it.
pub const VARIABLE: &str = "CUDA_MPS_PIPE_DIRECTORY";
/// Bytes that are read of the file that has its process's number.
const MOST_OF_PID: u64 = 64;

/// Says that a control daemon runs that has its pipes in `directory`, and that programs may be shown it.
///
/// # Errors
/// None runs there, or it is not root's: why, and what to do.
pub fn find(tree: &Tree, directory: &str) -> Result<String, String> {
    let nobodys = || {
        format!(
            "no control daemon of MPS runs on the node at {directory}, the only place that is looked at (mps_pipe_directory in [gpus] of \
             berth.toml names another one), so that nothing would keep programs to their part of the GPU: have root start it with \
             {VARIABLE}={directory} (nvidia-cuda-mps-control -d)"
        )
    };
    if !tree.is_named(directory) {
        return Err(nobodys());
    }
    // In a directory where anybody makes files: what some user put there would have programs of others as its clients, and whoever opens
    // what is in it would wait for that user.
    if !tree.is_own_dir(directory) || !tree.is_below_own_dirs(directory) {
        return Err(format!(
            "{directory} on the node is a link, or others than root can change what is in it or put another directory in its place: have \
             root remove it and start the control daemon of MPS anew (nvidia-cuda-mps-control -d), below directories that root alone changes"
        ));
    }
    // Its files outlive one that was killed, and its socket each one; it keeps its own number beside them. Others may have theirs there.
    let pid = tree.own_text(&format!("{directory}/nvidia-cuda-mps-control.pid"), MOST_OF_PID);
    let pid = pid.and_then(|pid| pid.parse::<u32>().ok());
    // The kernel's names of programs end after 15 letters.
    let lives =
        |pid: u32| tree.text(&format!("/proc/{pid}/comm")).is_some_and(|name| name == "nvidia-cuda-mps");
    match pid.is_some_and(lives) && tree.has(&format!("{directory}/control")) {
        true => Ok(directory.into()),
        false => Err(nobodys()),
    }
}
