//! What images say themselves of GPUs, as those of NVIDIA's do: it gives nothing, says what of the driver comes, and is refused where the
//! node cannot keep it.

use super::Node;
use berth_tests::{Cmd, images, machine};

/// Debian's image with these variables, as the word that names it.
fn saying(node: &Node, name: &str, env: &[&str]) -> String {
    let copy = node.sandbox.work().join(name);
    Cmd::new("cp").args(["-r", "--"]).arg(images::debian()).arg(&copy).ok();
    let layout = format!("{}:latest", copy.display());
    let mut words = vec!["--log=error", "config", "--image", &layout];
    for pair in env {
        words.extend(["--config.env", *pair]);
    }
    node.sandbox.cmd("umoci").args(&words).ok();
    format!("--container-image={}", copy.display())
}

#[test]
fn what_an_image_says_of_gpus_widens_nothing_and_is_followed_or_refused() {
    if !machine::is_root() {
        return;
    }
    let node = Node::start();
    let all = [
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_DRIVER_CAPABILITIES=utility",
        "NVIDIA_REQUIRE_CUDA=cuda>=12.1 brand=tesla,driver>=470,driver<471",
    ];
    let own = saying(&node, "own", &all);
    let look = "echo \"has $SLURM_STEP_GPUS.\"; ls /dev | grep nvidia2; echo \"sees $NVIDIA_VISIBLE_DEVICES.\"; \
                for n in 229 200; do mknod /tmp/n$n c 10 $n && (exec 3</tmp/n$n) && echo opened $n; done 2>/dev/null; \
                ls /usr/local/nvidia/lib64; echo end";
    let run = |words: &[&str]| {
        let words = [own.as_str()].into_iter().chain(words.iter().copied()).chain(["sh", "-c", look]);
        node.sandbox.srun(words).ok().text()
    };
    let text = run(&["--gres=gpu:1"]);
    let mut lines = text.lines();
    // The first one may still be looked at after the job that had it, so that either is given.
    let (file, uuid, other) = match lines.next() {
        Some("has 0.") => ("nvidia241", "GPU-00000001", "opened 229"),
        Some("has 1.") => ("nvidia240", "GPU-00000000", "opened 200"),
        _ => panic!("{text}"),
    };
    assert_eq!(lines.next(), Some(file), "{text}");
    assert_eq!(lines.next(), Some(format!("sees {uuid}-0000-0000-0000-000000000000.").as_str()), "{text}");
    let rest: Vec<&str> = lines.collect();
    assert!(!rest.contains(&other), "{text}");
    // Tools alone come, as it says.
    assert!(rest.contains(&"libnvidia-ml.so.1") && !text.contains("libcuda"), "{text}");
    // The submitter's word stands over it.
    let text = run(&["--gres=gpu:1", "--export=ALL,NVIDIA_DRIVER_CAPABILITIES=compute"]);
    assert!(text.contains("libcuda.so.1"), "{text}");
    // Without a GPU there is none, and tools that go by the variable find none.
    let text = run(&[]);
    assert_eq!(text.lines().collect::<Vec<_>>(), ["has .", "sees void.", "end"], "{text}");
    // What needs a newer driver does not begin, unless its user wants to try.
    let newer = saying(&node, "newer", &["NVIDIA_VISIBLE_DEVICES=all", "NVIDIA_REQUIRE_CUDA=cuda>=13.0"]);
    node.sandbox.srun([newer.as_str(), "--gres=gpu:1", "true"]).fails().says(&[
        "the image requires 'cuda>=13.0' (NVIDIA_REQUIRE_CUDA)",
        "driver 535.54.03 with CUDA 12.2",
        "NVIDIA_DISABLE_REQUIRE=1",
    ]);
    let tries = "--export=ALL,NVIDIA_DISABLE_REQUIRE=1";
    node.sandbox.srun([newer.as_str(), "--gres=gpu:1", tries, "true"]).ok();
    node.sandbox.srun([newer.as_str(), "true"]).ok();
    // So does what brings a newer CUDA and says no more; a shell's variable says nothing of an image.
    let brings = saying(&node, "brings", &["CUDA_VERSION=13.0.1"]);
    let run = |image: &str| node.sandbox.srun([image, "--gres=gpu:1", "true"]);
    run(&brings).fails().says(&["the image brings CUDA 13.0.1", "driver 535.54.03 runs CUDA 12.2"]);
    node.sandbox.srun([brings.as_str(), "--gres=gpu:1", tries, "true"]).ok();
    let same = saying(&node, "same", &["CUDA_VERSION=12.8.1"]);
    run(&same).env("CUDA_VERSION", "13.0.1").ok();
}
