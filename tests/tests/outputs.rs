//! Files of steps over several nodes: which name each task's has, whole files that all tasks share, and much data in and out.

use berth_tests::sandbox::wait;
use berth_tests::{Hosts, images};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

fn read(hosts: &Hosts, name: &str) -> String {
    std::fs::read_to_string(hosts.work().join(name)).unwrap_or_default()
}

/// The supervisors of steps on all hosts: what they have to complain of is in a file of their step's.
fn supervisors(hosts: &Hosts) -> Vec<i32> {
    let work = hosts.work();
    let of_ours = |pid: &i32| {
        let log = std::fs::read_link(format!("/proc/{pid}/fd/2")).unwrap_or_default();
        log.starts_with(work.parent().unwrap()) && log.to_string_lossy().contains("/supervisor.log")
    };
    let names = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.file_name());
    names.filter_map(|name| name.to_str()?.parse().ok()).filter(of_ours).collect()
}

fn sorted(text: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = text.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn each_task_has_the_files_that_every_pattern_names_on_all_nodes_as_root() {
    let hosts = Hosts::cluster(2, "");
    // Of blocks of two, the first node has tasks 0 and 1.
    let places = [("n1", 0, 0), ("n1", 0, 1), ("n2", 1, 2), ("n2", 1, 3)];
    for (node, _, task) in places {
        std::fs::write(hosts.work().join(format!("in.{node}.{task}")), format!("for {task}\n")).unwrap();
    }
    let out = "out/%A.%a.%b.%j.%J.%N.%n.%r.%s.%3t.%u.%x.%%";
    let script = format!(
        "#!/bin/sh\nmkdir out err\n\
         srun -N2 -n4 -O -i in.%N.%t -o '{out}' -e err/%s.%2n.%4t.%12j sh -c 'cat; echo error $SLURM_PROCID >&2'\n\
         echo $? $SLURM_ARRAY_JOB_ID $SLURM_JOB_ID > ids\n\
         srun -N2 -n2 -i in.n1.0 -o 'out/plain\\%t.%j' cat\n\
         srun -N2 -n2 -o none -e err/%t sh -c 'echo lost; echo $SLURM_NODEID >&2'\n\
         srun -N2 -n2 -o 1 sh -c 'echo heard $SLURM_PROCID'\n"
    );
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    let options = ["-N2", "--exclusive", "-J", "named", "--array=17", "-o", "said", "--wait", "job.sh"];
    hosts.cmd("n1", "sbatch").args(options).limit(90).ok();
    let (ids, user) = (read(&hosts, "ids"), &hosts.user().name);
    let ids: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
    let &[code, array, job] = ids.as_slice() else { panic!("{ids:?}: {}", read(&hosts, "said")) };
    assert_eq!(code, 0, "{}", read(&hosts, "said"));
    for (node, index, task) in places {
        let name = format!("out/{array}.17.7.{job}.{job}.0.{node}.{index}.0.0.{task:03}.{user}.named.%");
        assert_eq!(read(&hosts, &name), format!("for {task}\n"), "{name}");
        let name = format!("err/0.{index:02}.{task:04}.{job:010}");
        assert_eq!(read(&hosts, &name), format!("error {task}\n"), "{name}");
    }
    // A backslash switches patterns off, and then all have one file.
    assert_eq!(read(&hosts, "out/plain%t.%j"), "for 0\nfor 0\n");
    assert_eq!((read(&hosts, "err/0").as_str(), read(&hosts, "err/1").as_str()), ("0\n", "1\n"));
    let said = read(&hosts, "said");
    assert!(said.lines().any(|line| line == "heard 1") && !said.contains("heard 0"), "{said}");
    assert!(!said.contains("lost"), "{said}");
    let count = |dir: &str| std::fs::read_dir(hosts.work().join(dir)).unwrap().count();
    assert_eq!((count("out"), count("err")), (5, 6), "no others are there");
}

#[test]
fn a_file_that_tasks_of_several_nodes_share_has_the_words_of_all_as_root() {
    let hosts = Hosts::cluster(3, "");
    let srun = |words: &[&str]| hosts.cmd("n1", "srun").args(words).limit(60);
    // A node that begins late finds what the others wrote: it cuts nothing off.
    let late = Pid::from_raw(hosts.pid("n3", "agent"));
    kill(late, Signal::SIGSTOP).unwrap();
    let words = ["-N3", "-o", "words", "sh", "-c", "echo out $SLURM_PROCID; echo err $SLURM_PROCID >&2"];
    let step = srun(&words).spawn();
    let early = || (read(&hosts, "words").lines().count() == 4).then_some(());
    let early = wait(30, early);
    kill(late, Signal::SIGCONT).unwrap();
    let told = step.finish();
    assert!(early.is_some() && told.rc == 0, "{told}{}", read(&hosts, "words"));
    let all = ["err 0", "err 1", "err 2", "out 0", "out 1", "out 2"];
    assert_eq!(sorted(&read(&hosts, "words")), all);
    assert_eq!(told.text(), "", "{told}");
    // Anew each time, or behind it.
    srun(&["-N3", "-o", "words", "sh", "-c", "echo $SLURM_PROCID"]).ok();
    srun(&["-N2", "-w", "n[2-3]", "-o", "words", "--open-mode=append", "echo", "more"]).ok();
    assert_eq!(sorted(&read(&hosts, "words")), ["0", "1", "2", "more", "more"]);
    // With labels lines stay whole, and much of them keeps its order; in containers, too.
    let image = format!("--container-image={}", images::busybox().display());
    for inside in [&[][..], &[image.as_str()]] {
        let words = [&["-N3", "-l", "-o", "many.%j", "-e", "many.%j"], inside, &["seq", "20000"]].concat();
        srun(&words).ok();
        let names: Vec<String> = std::fs::read_dir(hosts.work())
            .unwrap()
            .filter_map(|entry| entry.unwrap().file_name().into_string().ok())
            .filter(|name| name.starts_with("many."))
            .collect();
        let [name] = names.as_slice() else { panic!("{names:?}") };
        let mut next = [1; 3];
        for line in read(&hosts, name).lines() {
            let (task, number) = line.split_once(": ").unwrap();
            let next = &mut next[task.parse::<usize>().unwrap()];
            assert_eq!(number, next.to_string());
            *next += 1;
        }
        assert_eq!(next, [20_001; 3]);
        std::fs::remove_file(hosts.work().join(name)).unwrap();
    }
    srun(&["-N1", "-n2", "-O", "-l", "-o", "labelled", "sh", "-c", "echo $SLURM_PROCID"]).ok();
    assert_eq!(sorted(&read(&hosts, "labelled")), ["0: 0", "1: 1"]);
    // From a batch script on another node, and over components, which go on with one set of ranks.
    let script = "#!/bin/sh\nsrun -o step.%s sh -c 'echo $SLURM_PROCID'\n";
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    let options = ["-N2", "-w", "n[2-3]", "-o", "said", "--wait", "job.sh"];
    hosts.cmd("n1", "sbatch").args(options).limit(60).ok();
    assert_eq!(sorted(&read(&hosts, "step.0")), ["0", "1"], "{}", read(&hosts, "said"));
    srun(&["-w", "n1", "-o", "parts", ":", "-w", "n[2-3]", "-N2", "sh", "-c", "echo $SLURM_PROCID"]).ok();
    assert_eq!(sorted(&read(&hosts, "parts")), ["0", "1", "2"]);
    // What cannot be written is named, and nothing is left.
    srun(&["-N2", "-o", "/dev/full", "echo", "lost"])
        .fails()
        .says(&["cannot write to /dev/full", "no space"]);
    // Nor of a step whose file cannot be opened: no supervisor waits for a client that does not come.
    let stubborn = ["sh", "-c", "trap '' TERM; sleep 600; sleep 600"];
    let mut step = srun(&["-N3", "sh", "-c", "echo here; exec sleep 600"]).spawn();
    step.wait_for("here\nhere\nhere\n", 60);
    let all = || (supervisors(&hosts).len() >= 3).then_some(());
    assert!(wait(30, all).is_some(), "supervisors are not found: {:?}", supervisors(&hosts));
    step.signal(Signal::SIGTERM);
    assert_ne!(step.finish().rc, 0);
    for parts in [&["-N3"][..], &["-w", "n1", ":", "-w", "n[2-3]", "-N2"]] {
        let words = [&["-o", "/nonexistent/words"], parts, &stubborn].concat();
        let told = srun(&words).fails();
        let told = told.says(&["could not open output file /nonexistent/words", "no such file", "--output"]);
        // Sooner than the time that such a task has between SIGTERM and SIGKILL.
        assert!(told.took < Duration::from_secs(28), "{told}");
        let none = || supervisors(&hosts).is_empty().then_some(());
        assert!(wait(30, none).is_some(), "supervisors are left: {:?}", supervisors(&hosts));
    }
    let idle = wait(30, || hosts.cmd("n1", "squeue").arg("-h").run().text().is_empty().then_some(()));
    assert!(idle.is_some(), "jobs are left");
    ["n1", "n2", "n3"].iter().for_each(|node| hosts.wait_node(node, "idle", 60));
}

#[test]
fn a_gibibyte_goes_to_tasks_on_several_nodes_and_comes_from_one_unchanged_as_root() {
    let hosts = Hosts::cluster(3, "");
    // No part of it is like another one: what is lost, doubled or exchanged makes another sum.
    hosts.cmd("n1", "sh").args(["-c", "head -c 1G /dev/urandom > bytes"]).limit(60).ok();
    let sums = |line: &str| {
        let told = hosts.cmd("n1", "sh").args(["-c", line]).limit(120).ok().text();
        let sum = |line: &str| line.split_whitespace().next().unwrap_or_default().to_string();
        told.lines().map(sum).collect::<Vec<String>>()
    };
    let sum = sums("sha256sum bytes").remove(0);
    assert_eq!(sums("srun -N2 -w n[2-3] sha256sum < bytes"), [sum.clone(), sum.clone()]);
    assert_eq!(sums("srun -N1 -w n3 cat bytes | sha256sum"), [sum]);
}
