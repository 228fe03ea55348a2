//! Parts of GPUs by MPS: who holds them to it, and where the administrator has that daemon.

use super::Node;
use berth_tests::machine;
use std::fs;
use std::path::Path;

#[test]
fn a_part_of_a_gpu_by_mps_is_refused_where_its_control_daemon_does_not_run() {
    if !machine::is_root() {
        return;
    }
    let shared = "[[node]]\nname = \"ALL\"\n[[node.gres]]\nname = \"gpu\"\nmps = true\n";
    let node = Node::configured(shared, |_, _| ());
    let lacks = ["no control daemon of MPS runs on the node", "CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps"];
    node.srun(&["--gres=mps:30", "true"]).fails().says(&lacks);
    node.sandbox.srun(["--gres=mps:30", "true"]).fails().says(&lacks);
    node.srun(&["--gres=gpu:1", "true"]).ok();
    // One that has come since the node was looked at.
    let dir = node.sandbox.work().join("tree/tmp/nvidia-mps");
    fs::create_dir_all(&dir).unwrap();
    for dir in [dir.as_path(), dir.parent().unwrap()] {
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    fs::write(dir.join("control"), "").unwrap();
    let pid = "nvidia-cuda-mps-control.pid";
    fs::write(dir.join(pid), "77\n").unwrap();
    // One that was killed leaves both.
    node.srun(&["--gres=mps:30", "true"]).fails().says(&lacks);
    let process = node.sandbox.work().join("tree/proc/77");
    fs::create_dir_all(&process).unwrap();
    fs::write(process.join("comm"), "nvidia-cuda-mps\n").unwrap();
    let told = ["--gres=mps:30", "sh", "-c", "ls /tmp/nvidia-mps; echo $CUDA_MPS_ACTIVE_THREAD_PERCENTAGE"];
    let text = node.srun(&told).ok().text();
    // Below the job's own /tmp, which is another.
    assert_eq!(text.lines().collect::<Vec<_>>(), ["control", pid, "30"], "{text}");
}

#[test]
fn the_control_daemon_of_mps_is_found_where_the_administrator_has_it() {
    if !machine::is_root() {
        return;
    }
    let config = "mps_pipe_directory = \"/run/bt-mps\"\n[[node]]\nname = \"ALL\"\n[[node.gres]]\nname = \"gpu\"\nmps = true\n";
    let pid = "nvidia-cuda-mps-control.pid";
    let daemon = |tree: &Path, at: &str| {
        let dir = tree.join(at);
        fs::create_dir_all(&dir).unwrap();
        for dir in [tree, dir.parent().unwrap(), dir.as_path()] {
            fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        fs::write(dir.join("control"), "").unwrap();
        fs::write(dir.join(pid), "77\n").unwrap();
    };
    let node = Node::configured(config, |tree, _| {
        fs::create_dir_all(tree.join("proc/77")).unwrap();
        fs::write(tree.join("proc/77/comm"), "nvidia-cuda-mps\n").unwrap();
        // Another's, which nobody means.
        daemon(tree, "tmp/nvidia-mps");
    });
    let lacks = ["no control daemon of MPS runs on the node", "CUDA_MPS_PIPE_DIRECTORY=/run/bt-mps"];
    node.srun(&["--gres=mps:30", "true"]).fails().says(&lacks);
    daemon(&node.sandbox.work().join("tree"), "run/bt-mps");
    let look = "ls $CUDA_MPS_PIPE_DIRECTORY; echo $CUDA_MPS_PIPE_DIRECTORY";
    let text = node.srun(&["--gres=mps:30", "sh", "-c", look]).ok().text();
    assert_eq!(text.lines().collect::<Vec<_>>(), ["control", pid, "/run/bt-mps"], "{text}");
    // On the node's own filesystem, too; and nobody has a part by another daemon.
    let said = ["sh", "-c", "echo $CUDA_MPS_PIPE_DIRECTORY"];
    let other = "--export=ALL,CUDA_MPS_PIPE_DIRECTORY=/tmp/own";
    for first in [&["--gres=mps:30"][..], &["--gres=mps:30", other]] {
        let text = node.sandbox.srun(first.iter().chain(&said).copied()).ok().text();
        assert_eq!(text.trim(), "/run/bt-mps", "{first:?}");
    }
    let text = node.srun(&[&["--gres=mps:30", other][..], &said].concat()).ok().text();
    assert_eq!(text.trim(), "/run/bt-mps");
    // With whole GPUs it is the user's affair.
    let text = node.srun(&[&["--gres=gpu:1"][..], &said].concat()).ok().text();
    assert_eq!(text.trim(), "/run/bt-mps");
    let text = node.sandbox.srun(["--gres=gpu:1", other].iter().chain(&said).copied()).ok().text();
    assert_eq!(text.trim(), "/tmp/own");
    // A step without GPUs is told nothing.
    let text = node.sandbox.srun(said).ok().text();
    assert_eq!(text.trim(), "");
}
