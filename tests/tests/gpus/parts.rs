//! Parts of a divided GPU (MIG): whose they are, and how busy they were.

use super::{Node, end, find};
use berth_tests::{Cmd, images, machine, sandbox};
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

/// A node whose first GPU by the library's count has two parts.
fn divided(mode: &str) -> (Node, Option<Caps>) {
    let mut caps = None;
    let mut node = Node::with(|tree, _| caps = Some(Caps::make(tree)));
    node.sandbox.write("mode", mode);
    node.again();
    let divided = || node.gres().contains("1g.5gb").then_some(());
    assert!(sandbox::wait(30, divided).is_some(), "{}", node.gres());
    (node, caps)
}

#[test]
fn a_part_of_a_gpu_has_its_own_two_files_of_capabilities_and_the_other_parts_do_not_open() {
    if !machine::is_root() {
        return;
    }
    let (node, _caps) = divided("mig");
    // There are no such devices: what is permitted fails otherwise.
    let probe = "ls /dev/nvidia-caps | xargs echo has; ls /dev | grep nvidia2; echo sees $CUDA_VISIBLE_DEVICES; for n in 66 67 68 69; do \
                 f=/dev/nvidia-caps/nvidia-cap$n; mknod /tmp/bt-cap c 10 $n 2>/dev/null || ln -s /nothing /tmp/bt-cap; \
                 for f in $f /tmp/bt-cap; do [ -e $f ] || continue; \
                 (exec 3<$f) 2>&1 | grep -q permitted && echo $f $n is refused || echo $f $n is not; done; rm -f /tmp/bt-cap; done; echo end";
    let image = format!("--container-image={}", images::debian().display());
    let words = ["--gres=gpu:1g.5gb:1", "-n1", "--mem=50M"];
    let script = format!("#!/bin/sh\n{probe}\nsleep 600\n");
    let held = node.sandbox.sbatch(&[&words[..], &["-o", "held", &image]].concat(), &script);
    node.sandbox.wait_file("held", "end\n", 30);
    let first = node.sandbox.read("held");
    let step = |more: &[&str]| {
        node.sandbox.srun(words.iter().chain(more).copied().chain(["sh", "-c", probe])).ok().text()
    };
    let second = step(&[&image]);
    let numbers = |text: &str| match text.lines().next() {
        Some("has nvidia-cap66 nvidia-cap67") => [66, 67],
        Some("has nvidia-cap68 nvidia-cap69") => [68, 69],
        _ => panic!("not the two files of one part: {text}"),
    };
    assert_ne!(numbers(&first), numbers(&second), "{first}\n{second}");
    for text in [&first, &second] {
        // With its GPU's own, and none of the other GPU's.
        assert_eq!(text.lines().nth(1), Some("nvidia240"), "{text}");
        assert!(text.lines().nth(2).is_some_and(|line| line.starts_with("sees MIG-")), "{text}");
        for n in numbers(text) {
            assert!(text.contains(&format!("/dev/nvidia-caps/nvidia-cap{n} {n} is not\n")), "{text}");
        }
        let others = (66..70).filter(|n| !numbers(text).contains(n));
        for n in others {
            assert!(!text.contains(&format!(" {n} is not\n")), "{text}");
        }
    }
    // On the node's own filesystem all four are there. The first job still has its part.
    let host = step(&[]);
    assert!(host.starts_with("has nvidia-cap66 nvidia-cap67 nvidia-cap68 nvidia-cap69\n"), "{host}");
    for n in numbers(&second) {
        assert!(host.contains(&format!("/dev/nvidia-caps/nvidia-cap{n} {n} is not\n")), "{host}");
    }
    for n in numbers(&first) {
        assert!(host.contains(&format!("/dev/nvidia-caps/nvidia-cap{n} {n} is refused\n")), "{host}");
        assert!(!host.contains(&format!(" {n} is not\n")), "{host}");
    }
    // Without a part none of them opens.
    let none = node.sandbox.srun(["-n1", "--mem=50M", "sh", "-c", probe]).ok().text();
    assert!(none.contains("nvidia-cap66 66 is refused\n") && !none.contains(" is not\n"), "{none}");
    node.sandbox.cmd("scancel").arg(held.to_string()).ok();
    node.sandbox.wait_state(held, "CANCELLED", 30);
}

#[test]
fn how_busy_a_part_of_a_gpu_was_is_on_record_where_the_driver_counts_it_and_is_nothing_where_it_does_not() {
    if !machine::is_root() {
        return;
    }
    let (node, _caps) = divided("gpm");
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
