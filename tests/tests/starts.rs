//! Many starts, several at a time, and what is left of them: nothing.

use berth_tests::{Sandbox, each_user, images, leftovers};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Everything below a directory, by path.
fn files(directory: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut left = vec![directory.to_path_buf()];
    while let Some(path) = left.pop() {
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|t| t.is_dir()) {
                left.push(entry.path());
            }
            found.insert(entry.path());
        }
    }
    found
}

/// Asks again until the answer is empty.
fn becomes_empty<T: std::fmt::Debug>(what: &str, look: impl Fn() -> Vec<T>) {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        let left = look();
        if left.is_empty() {
            return;
        }
        assert!(Instant::now() < end, "{what}: {left:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

each_user! {
    fn two_hundred_starts_eight_at_a_time_leave_nothing_behind(who) {
        let sandbox = Sandbox::empty(who);
        let image = images::busybox();
        let run = || sandbox.cmd("berth").arg("run").arg(&image).arg("true").limit(120).ok();
        // One that runs for long enough to be listed makes the list's directory.
        sandbox.cmd("berth").arg("run").arg(&image).args(["sleep", "0.2"]).ok();
        let before = files(&sandbox.state());
        // Other tests' clusters come and go meanwhile.
        let mounts = || leftovers::mounts(Path::new("/")).iter().filter(|m| !m.contains("berth-steps")).count();
        let standing = mounts();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..25).for_each(|_| drop(run())));
            }
        });
        let after = files(&sandbox.state());
        assert_eq!(after.symmetric_difference(&before).collect::<Vec<_>>(), Vec::<&PathBuf>::new());
        becomes_empty("processes", || leftovers::processes(&sandbox.state()));
        assert_eq!(mounts(), standing);
    }

    fn an_array_leaves_nothing_of_its_tasks_on_the_node(who) {
        let sandbox = Sandbox::start(who);
        let image = images::busybox();
        let image = format!("--container-image={}", image.display());
        let array = sandbox.sbatch(&["--array=1-40", "--mem=16M", "--output=/dev/null", &image], "#!/bin/sh\n:\n");
        becomes_empty("jobs in the queue", || sandbox.cmd("squeue").arg("-h").ok().text().lines().map(str::to_string).collect());
        let rows = sandbox.sacct(array, "JobID,State,ExitCode");
        let tasks: Vec<_> = rows.iter().filter(|r| !r[0].contains('.')).collect();
        assert_eq!(tasks.len(), 40, "{tasks:?}");
        assert!(tasks.iter().all(|r| r[1..] == ["COMPLETED", "0:0"]), "{tasks:?}");
        for part in ["spool", "jobs", "scratch"] {
            becomes_empty(part, || files(&sandbox.state().join(part)).into_iter().collect());
        }
        let trees = || leftovers::control_groups(&sandbox.state()).into_iter();
        assert!(trees().next().is_some() || !sandbox.who().is_root(), "the cluster has no control groups");
        becomes_empty("control groups", || {
            let groups = trees().flat_map(|g| std::fs::read_dir(g).into_iter().flatten().flatten());
            groups.map(|e| e.path()).filter(|g| g.file_name().is_some_and(|n| n.to_string_lossy().starts_with("job_"))).collect()
        });
    }
}
