//! Where the control daemon of MPS has its pipes: what is believed of that place, and who may not put what there.

use crate::trees::Recorded;
use std::path::Path;
use std::time::Duration;

/// Anybody can make a directory of that name, wait for the agent, and be the server of other people's programs.
#[test]
fn a_directory_of_mps_that_a_user_made_is_given_to_nobody() {
    let tree = Recorded::debian("535.54.03").gpus(1);
    let dir = tree.tree().path("/tmp/nvidia-mps");
    let find = |dir: &str| berth_gpus::mps::find(&tree.tree(), dir);
    let mps = || find("/tmp/nvidia-mps").ok();
    let why = || find("/tmp/nvidia-mps").unwrap_err();
    assert_eq!(mps(), None);
    assert!(why().contains("no control daemon of MPS runs"), "{}", why());
    tree.write("/tmp/nvidia-mps/control", "");
    let of = |dir: &Path, mode| {
        std::fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
    };
    let above = dir.parent().unwrap();
    of(above, 0o1777);
    let mode = |mode| of(&dir, mode);
    mode(0o755);
    assert_eq!(mps(), None, "whoever made it is gone");
    tree.write("/tmp/nvidia-mps/nvidia-cuda-mps-control.pid", "77\n");
    assert_eq!(mps(), None, "there is no such process");
    tree.write("/proc/77/comm", "bash\n");
    assert_eq!(mps(), None, "another has its number");
    assert!(why().contains("CUDA_MPS_PIPE_DIRECTORY=/tmp/nvidia-mps"), "{}", why());
    tree.write("/proc/77/comm", "nvidia-cuda-mps\n");
    assert_eq!(mps().as_deref(), Some("/tmp/nvidia-mps"));
    mode(0o777);
    assert_eq!(mps(), None, "others may write there");
    assert!(why().contains("others than root can change what is in it"), "{}", why());
    mode(0o1777);
    assert!(mps().is_some(), "others may write there, and change nothing of its owner's");
    of(above, 0o777);
    assert_eq!(mps(), None, "others may put another one in its place");
    assert!(why().contains("put another directory in its place"), "{}", why());
    of(above, 0o755);
    assert!(mps().is_some());
    // Where the administrator has it elsewhere, that place alone counts.
    let elsewhere = find("/run/nvidia-mps").unwrap_err();
    assert!(elsewhere.contains("CUDA_MPS_PIPE_DIRECTORY=/run/nvidia-mps"), "{elsewhere}");
    tree.write("/run/nvidia-mps/control", "");
    tree.write("/run/nvidia-mps/nvidia-cuda-mps-control.pid", "77\n");
    of(&tree.tree().path("/run"), 0o755);
    of(&tree.tree().path("/run/nvidia-mps"), 0o755);
    assert_eq!(find("/run/nvidia-mps").unwrap(), "/run/nvidia-mps");
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&dir, Some(12345), None).unwrap();
        assert_eq!(mps(), None, "a user's");
        std::os::unix::fs::chown(&dir, Some(0), None).unwrap();
    }
    let moved = dir.with_file_name("elsewhere");
    std::fs::rename(&dir, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &dir).unwrap();
    assert_eq!(mps(), None, "a link");
    assert!(why().contains("is a link"), "{}", why());
}

/// The agent looks there as root, before each step with a GPU: it opens nothing that would have it wait, or read without end.
#[test]
fn what_a_user_puts_in_the_place_of_the_number_of_mps_holds_nobody_up() {
    use std::os::unix::fs::PermissionsExt;
    let tree = Recorded::debian("535.54.03").gpus(1);
    tree.write("/tmp/nvidia-mps/control", "");
    tree.write("/proc/77/comm", "nvidia-cuda-mps\n");
    tree.write("/elsewhere", "77\n");
    let dir = tree.tree().path("/tmp/nvidia-mps");
    let number = dir.join("nvidia-cuda-mps-control.pid");
    let mode = |dir: &Path, mode| std::fs::set_permissions(dir, PermissionsExt::from_mode(mode)).unwrap();
    mode(dir.parent().unwrap(), 0o1777);
    // Nobody waits for the test itself.
    let find = || {
        let (said, heard) = std::sync::mpsc::channel();
        let tree = tree.tree();
        std::thread::spawn(move || said.send(berth_gpus::mps::find(&tree, "/tmp/nvidia-mps")));
        heard.recv_timeout(Duration::from_secs(60)).expect("it waits for what a user put there")
    };
    let fifo = || {
        let made = std::process::Command::new("mkfifo").arg(&number).status();
        assert!(made.unwrap().success());
    };
    let link = |to: &Path| std::os::unix::fs::symlink(to, &number).unwrap();
    // Root's own directory, in which others make files, and a user's.
    for (open, why) in [(0o1777, "no control daemon of MPS runs"), (0o777, "others than root can change")] {
        mode(&dir, open);
        let refused = |what: &str| {
            let said = find().unwrap_err();
            assert!(said.contains(why), "{what}: {said}");
            std::fs::remove_file(&number).unwrap();
        };
        fifo();
        refused("a pipe that nobody writes to");
        link(Path::new("/dev/zero"));
        refused("bytes without end");
        link(&tree.tree().path("/elsewhere"));
        refused("a link to the right number");
        std::fs::write(&number, format!("{}77\n", " ".repeat(1 << 20))).unwrap();
        refused("more than a number");
        if rustix::process::geteuid().is_root() {
            std::fs::write(&number, "77\n").unwrap();
            std::os::unix::fs::chown(&number, Some(12345), None).unwrap();
            refused("a user's file");
        }
    }
    mode(&dir, 0o1777);
    std::fs::write(&number, "77\n").unwrap();
    assert_eq!(find().unwrap(), "/tmp/nvidia-mps");
}
