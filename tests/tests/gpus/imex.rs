//! IMEX channels: each job's own, and files of them that come late.

use super::Node;
use berth_tests::{Cmd, images, machine, sandbox};
use std::fs;
use std::path::Path;

#[test]
fn each_job_has_an_imex_channel_of_its_own() {
    if !machine::is_root() {
        return;
    }
    // The kernel's own numbers: none of these devices is there, so that one that is permitted does not open otherwise.
    let channels = |tree: &Path, _: &Path| {
        fs::write(tree.join("proc/devices"), "Character devices:\n 10 nvidia-caps-imex-channels\n").unwrap();
        fs::write(tree.join("proc/driver/nvidia/params"), "ImexChannelCount: 3\n").unwrap();
    };
    let node = Node::with(channels);
    let dir = "/dev/nvidia-caps-imex-channels";
    let image = format!("--container-image={}", images::debian().display());
    let probe = format!(
        "echo $NVIDIA_IMEX_CHANNELS; ls {dir}; for n in 1 2; do mknod /tmp/bt-c$n c 10 $n; for f in {dir}/channel$n /tmp/bt-c$n; do \
         sh -c \"exec 3<$f\" 2>&1 | grep -q permitted && echo $f is refused; done; rm -f /tmp/bt-c$n; done 2>/dev/null; echo end"
    );
    let script = format!("#!/bin/sh\n{probe}\nsleep 600\n");
    let held = node.sandbox.sbatch(&["--gres=gpu:1", "-n1", "--mem=50M", "-o", "held", &image], &script);
    node.sandbox.wait_file("held", "end", 30);
    let text = node.sandbox.read("held");
    // The first one is the driver's, for everybody.
    assert_eq!(text.lines().collect::<Vec<_>>(), ["1", "channel1", "end"], "{text}");
    let meta = fs::metadata(format!("{dir}/channel1")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&meta) & 0o777, 0o600);
    // Another job at the same time, in a step and on the node's own filesystem; what it says itself changes nothing.
    let words = ["--gres=gpu:1", "-n1", "--mem=50M", "--export=ALL,NVIDIA_IMEX_CHANNELS=1"];
    let text = node.sandbox.srun(words.iter().copied().chain([&image[..], "sh", "-c", &probe])).ok().text();
    assert_eq!(text.lines().collect::<Vec<_>>(), ["2", "channel2", "end"], "{text}");
    let text = node.sandbox.srun(words.iter().copied().chain(["sh", "-c", &probe])).ok().text();
    // Not even a file of its number can be made.
    let refused = format!("{dir}/channel1 is refused");
    let all = ["2", "channel1", "channel2", &refused, "end"];
    assert_eq!(text.lines().collect::<Vec<_>>(), all, "{text}");
    // Steps without a GPU have none.
    let text = node.sandbox.srun(["--mem=50M", &image, "sh", "-c", &probe]).ok().text();
    assert_eq!(text.lines().filter(|l| l.starts_with("channel")).count(), 0, "{text}");
    node.sandbox.cmd("scancel").arg(held.to_string()).ok();
    let left = || fs::read_dir(dir).unwrap().next().is_none().then_some(());
    assert!(sandbox::wait(20, left).is_some(), "a channel's file outlives its job");
    fs::remove_dir(dir).unwrap();
}

#[test]
fn a_channel_that_comes_late_opens_for_later_steps_of_its_job_and_for_no_other_job() {
    if !machine::is_root() {
        return;
    }
    let node = Node::with(|tree, _| {
        fs::write(tree.join("proc/devices"), "Character devices:\n 10 nvidia-caps-imex-channels\n").unwrap();
        fs::write(tree.join("proc/driver/nvidia/params"), "ImexChannelCount: 4\n").unwrap();
    });
    let dir = "/dev/nvidia-caps-imex-channels";
    // The jobs are root's: no mode of a file keeps them from anything. None of the devices is there, and what is permitted fails otherwise.
    let probe = format!(
        "for n in 1 2; do (exec 3<{dir}/channel$n) 2>&1 | grep -q permitted && echo $n is refused || echo $n is not; done; echo end"
    );
    let waits = |name: &str| {
        let script = format!(
            "#!/bin/sh\necho begins >{name}\nuntil [ -e go ]; do sleep 0.05; done\n{probe}\nsleep 600\n"
        );
        let file = format!("{name}.out");
        let job = node.sandbox.sbatch(&["--gres=gpu:1", "-n1", "--mem=50M", "-o", &file], &script);
        node.sandbox.wait_file(name, "begins", 30);
        job
    };
    // Each begins when the channels of those behind it have no file.
    let (first, second) = (waits("first"), waits("second"));
    assert!(fs::exists(format!("{dir}/channel2")).unwrap());
    fs::write(node.sandbox.work().join("go"), "").unwrap();
    for (name, said) in [("first", ["1 is not", "2 is refused"]), ("second", ["1 is refused", "2 is not"])] {
        let file = format!("{name}.out");
        node.sandbox.wait_file(&file, "end", 30);
        let text = node.sandbox.read(&file);
        assert_eq!(text.lines().take(2).collect::<Vec<_>>(), said, "{text}");
    }
    // A file that is gone, and one of a driver that had another number, is made anew for the job's next step.
    let image = format!("--container-image={}", images::debian().display());
    let id = format!("--jobid={first}");
    let look = format!("stat -c '%n %t:%T' {dir}/channel*");
    let file = format!("{dir}/channel1");
    for other in [false, true] {
        fs::remove_file(&file).unwrap();
        if other {
            Cmd::new("mknod").args([file.as_str(), "c", "11", "1"]).ok();
        }
        let words = [id.as_str(), "--overlap", "--gres=gpu:1", &image, "sh", "-c", &look];
        let text = node.sandbox.srun(words).ok().text();
        assert_eq!(text.trim(), format!("{file} a:1"), "{other}");
    }
    for job in [first, second] {
        node.sandbox.cmd("scancel").arg(job.to_string()).ok();
    }
    let left = || fs::read_dir(dir).unwrap().next().is_none().then_some(());
    assert!(sandbox::wait(20, left).is_some(), "a channel's file outlives its job");
    fs::remove_dir(dir).unwrap();
}
