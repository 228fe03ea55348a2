//! Parts of a divided GPU (MIG): how busy they were.

use super::{Node, end, find};
use berth_tests::{Cmd, machine, sandbox};
use std::fs;
use std::path::{Path, PathBuf};

/// What a divided GPU has beside its own file: that of each of two instances, and that of the one part in each; they are there for as long
/// as this lives.
struct Caps(Vec<PathBuf>);

impl Caps {
    const DIRECTORY: &str = "/dev/nvidia-caps";

    fn make(tree: &Path) -> Caps {
        let mut made = Vec::new();
        fs::create_dir_all(Caps::DIRECTORY).unwrap();
        fs::create_dir_all(tree.join("dev/nvidia-caps")).unwrap();
        // No nvidia-smi says which instances these are: the library does.
        for (instance, minor) in [(7, 66), (9, 68)] {
            let dir = tree.join(format!("proc/driver/nvidia/capabilities/gpu240/mig/gi{instance}"));
            fs::create_dir_all(dir.join("ci0")).unwrap();
            for (access, minor) in [("access", minor), ("ci0/access", minor + 1)] {
                fs::write(dir.join(access), format!("DeviceFileMinor: {minor}\n")).unwrap();
                let name = format!("nvidia-cap{minor}");
                fs::write(tree.join("dev/nvidia-caps").join(&name), "").unwrap();
                let file = Path::new(Caps::DIRECTORY).join(name);
                Cmd::new("mknod").arg(&file).args(["c", "10", &minor.to_string()]).ok();
                made.push(file);
            }
        }
        Caps(made)
    }
}

impl Drop for Caps {
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = fs::remove_file(file);
        }
        let _ = fs::remove_dir(Caps::DIRECTORY);
    }
}

#[test]
fn how_busy_a_part_of_a_gpu_was_is_on_record_where_the_driver_counts_it_and_is_nothing_where_it_does_not() {
    if !machine::is_root() {
        return;
    }
    let mut caps = None;
    let mut node = Node::with(|tree, _| caps = Some(Caps::make(tree)));
    let _caps = caps;
    node.sandbox.write("mode", "gpm");
    node.again();
    let divided = || node.gres().contains("1g.5gb").then_some(());
    assert!(sandbox::wait(30, divided).is_some(), "{}", node.gres());
    // Whichever part the job has.
    let does = |busy: u32, memory: u32, pid: Option<u32>| {
        let of_part = |(part, instance): (u32, u32)| {
            let process = pid.map(|pid| format!("process {part} {pid} {memory} -1\n")).unwrap_or_default();
            format!("device {part} 0 {memory}\ninstance {instance} {busy}\n{process}")
        };
        node.does(&[(100, 7), (101, 9)].map(of_part).concat());
    };
    let run = |sleeps: &str, seen: &str| {
        does(0, 0, None);
        let script = format!("#!/bin/sh\nsrun sleep {sleeps}\nsleep 1\n");
        let job = node.sandbox.sbatch(&["--gres=gpu:1g.5gb:1"], &script);
        let pid = find(&["sleep", sleeps]);
        does(64, 600, Some(pid));
        node.sees(job, "jobid,maxgpuutil,maxgpumem", &format!("{job}.0|{seen}|614400K"));
        does(0, 0, None);
        end(pid);
        node.sandbox.wait_state(job, "COMPLETED", 30);
        let step = format!("{job}.0");
        let rows = node.sandbox.sacct(job, "jobid,maxgpuutil,avegpuutil,gputime,tresusageinmax");
        rows.into_iter().find(|row| row[0] == step).unwrap()
    };
    let row = run("77006", "64");
    assert_eq!(row[1], "64", "{row:?}");
    assert!(!row[2].is_empty() && !row[3].is_empty() && row[4].contains("gres/gpuutil=64"), "{row:?}");
    // The same GPU with a driver that does not count it.
    node.sandbox.write("mode", "mig");
    let row = run("77007", "");
    assert_eq!(row[1..4], ["", "", ""], "{row:?}");
    assert!(row[4].contains("gres/gpumem=614400K") && !row[4].contains("gpuutil"), "{row:?}");
    let log = fs::read_to_string(node.sandbox.state().join("log/agent.log")).unwrap();
    assert!(log.contains("is not measured and counts as busy: the driver has no counters"), "{log}");
}
