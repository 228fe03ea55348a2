//! MPI programs: unmodified MPICH, and Slurm's own library of PMI-2, find their ranks by what a step serves its tasks.

use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Hosts, Sandbox, each_user, images, machine};
use std::path::{Path, PathBuf};

/// `ring`, which MPICH's compiler made, and `keys`, which is linked with Slurm's `libpmi2`.
fn programs(to: &Path) -> (PathBuf, PathBuf) {
    let source = |name: &str| machine::workspace().join("tests/mpi").join(name);
    let (ring, keys) = (to.join("ring"), to.join("keys"));
    Cmd::new("mpicc.mpich").arg("-o").arg(&ring).arg(source("ring.c")).ok();
    Cmd::new("cc").arg("-o").arg(&keys).arg(source("keys.c")).arg("-lpmi2").ok();
    (ring, keys)
}

/// How often each MPI program is run in each way: tests/mpi.sh says more.
fn runs() -> usize {
    runs_or(2)
}

/// The same, where the suite has another number of them.
fn runs_or(usual: usize) -> usize {
    std::env::var("BERTH_MPI_RUNS").ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// What makes a step run in the image, with the programs in sight.
fn contained(work: &Path) -> [String; 2] {
    contained_in(&images::mpich(), work)
}

fn contained_in(image: &Path, work: &Path) -> [String; 2] {
    [format!("--container-image={}", image.display()), format!("--container-mounts={}", work.display())]
}

each_user! {
    fn ranks_on_one_node_find_one_another(who) {
        let sandbox = Sandbox::with_config(who, "kill_wait_seconds = 2\n");
        let (ring, keys) = programs(&sandbox.work());
        let inside = contained(&sandbox.work());
        for container in [&[][..], &inside[..]] {
            let run = |options: &[&str]| sandbox.srun(container).args(["--mem=400"]).args(options).limit(60);
            for _ in 0..runs() {
                let told = run(&["-n2"]).arg(&ring).ok().text();
                assert_eq!(told, "ranks 2 token 2 sum 3 here 2");
            }
            // Slurm's own library, in both of the ways in which it may be asked for.
            for mpi in [&["-n2"][..], &["-n2", "--mpi=pmi2"], &["-n1", "--mpi=pmi2"]] {
                let told = run(mpi).arg(&keys).ok().text();
                let tasks = &mpi[0][2..];
                assert!(told.starts_with(&format!("{tasks} of ")) && told.ends_with(&format!(": (vector,(0,1,{tasks}))")), "{told}");
            }
            // Who is not served is alone; one task is not served unless it asks.
            let told = run(&["-n2", "--mpi=none"]).arg(&ring).ok().text();
            assert_eq!(told, ["ranks 1 token 1 sum 1 here 1"; 2].join("\n"));
            let fd = "echo ${PMI_FD-none} $PMI_RANK/$PMI_SIZE";
            assert_eq!(run(&["-n1", "sh", "-c", fd]).env("PMI_FD", "9").ok().text(), "none /");
            // The step ends as the rank that aborts has it, and not as those that it ends.
            let aborted = run(&["-n2"]).arg(&ring).args(["abort", "1", "7"]).run();
            assert_eq!(aborted.rc, 7, "{aborted}");
            aborted.says(&["task 1 called MPI_Abort with exit code 7"]);
            // Nobody waits for ever for one that will not come.
            let left = run(&["-n2"]).arg(&ring).args(["leave", "1"]).run();
            assert!(left.rc != 0, "{left}");
            left.says(&["the PMI barrier at which task 0 waits will not be reached by task 1"]);
            // What is not there is refused by name, and the program goes on.
            let spawned = run(&["-n1", "--mpi=pmi2"]).arg(&keys).arg("spawn").ok();
            assert_eq!(spawned.text(), "spawn: refused");
            spawned.says(&["task 0: MPI_Comm_spawn is not supported"]);
        }
        let listed = sandbox.srun(["--mpi=list"]).ok().text();
        assert_eq!(listed, "MPI plugin types are...\n\tnone\n\tpmi1\n\tpmi2\n\tpmix");
        sandbox.srun(["-n2", "--mpi=pmi1"]).arg(&keys).fails().says(&["use --mpi=pmi2"]);
        sandbox.srun(["-n2"]).arg(&ring).env("SLURM_MPI_TYPE", "pmi1").ok();
    }

    fn a_task_that_speaks_no_pmi_breaks_nothing(who) {
        let sandbox = Sandbox::start(who);
        // Garbage, floods that read no answer, and ends in the middle: the step's exit is that of its tasks.
        let hostile = [
            "echo GET / HTTP/1.1 >&62; exit 0",
            "head -c 1000000 /dev/urandom >&62 2>/dev/null; exit 0",
            "echo cmd=init pmi_version=1 pmi_subversion=1 >&62; yes cmd=get_maxes 2>/dev/null | timeout 1 head -c 50000000 >&62 2>/dev/null; exit 0",
            "printf 'cmd=init pmi_version=2 pmi_subversion=0\\n999999' >&62; exit 0",
            "printf 'cmd=init pmi_' >&62; exec 62>&-; exit 0",
        ];
        for script in hostile {
            let told = sandbox.srun(["-n2", "bash", "-c", script]).limit(60).ok();
            let heard_no_more = told.err().contains("is heard no more");
            assert_eq!(heard_no_more, script.contains("GET") || script.contains("urandom") || script.contains("999999"), "{told}");
        }
    }
}

/// `ring` as Open MPI's compiler makes it.
fn open_mpis(to: &Path) -> PathBuf {
    let ring = to.join("ring.openmpi");
    Cmd::new("mpicc.openmpi").arg("-o").arg(&ring).arg(machine::workspace().join("tests/mpi/ring.c")).ok();
    ring
}

each_user! {
    fn ranks_of_open_mpi_find_one_another_by_pmix(who) {
        let sandbox = Sandbox::with_config(who, "kill_wait_seconds = 2\n");
        let ring = open_mpis(&sandbox.work());
        let inside = contained(&sandbox.work());
        for container in [&[][..], &inside[..]] {
            let run = |options: &[&str]| {
                sandbox.srun(container).args(["--mpi=pmix", "--mem=400"]).args(options).limit(60)
            };
            for _ in 0..runs() {
                let told = run(&["-n2"]).arg(&ring).ok().text();
                assert_eq!(told, "ranks 2 token 2 sum 3 here 2");
            }
            let aborted = run(&["-n2"]).arg(&ring).args(["abort", "1", "7"]).run();
            assert_eq!(aborted.rc, 7, "{aborted}");
            aborted.says(&["task 1 called MPI_Abort with exit code 7"]);
            // One that never comes, and one that came and died.
            let left = run(&["-n2"]).arg(&ring).args(["leave", "1"]).run();
            assert!(left.rc != 0, "{left}");
            left.says(&["task 0 came to PMIx and waits for task 1"]);
            let died = run(&["-n2"]).arg(&ring).args(["die", "1"]).run();
            assert_eq!(died.rc, 137, "{died}");
            died.says(&["task 1 ended without MPI_Finalize"]);
            // What another step or launcher left in the environment is not what the tasks find.
            let told = run(&["-n1", "sh", "-c", "echo $PMIX_RANK ${PMIX_ID-none}"]);
            let told = told.env("PMIX_ID", "x.9").env("PMIX_RANK", "9").ok().text();
            assert_eq!(told, "0 none");
        }
        sandbox.srun(["-n2", "--mem=400"]).arg(&ring).env("SLURM_MPI_TYPE", "pmix_v4").limit(60).ok();
        // As root inside, tasks come as root; without the node's network they could not come at all.
        let told = sandbox.srun(&inside).args(["-n2", "--mem=400", "--mpi=pmix", "--container-remap-root"]).arg(&ring);
        assert_eq!(told.env("OMPI_ALLOW_RUN_AS_ROOT", "1").limit(60).ok().text(), "ranks 2 token 2 sum 3 here 2");
        let refused = sandbox.srun(&inside).args(["-n2", "--mpi=pmix", "--container-unshare=net", "true"]);
        refused.fails().says(&["--mpi=pmix", "--container-unshare=net"]);
    }
}

each_user! {
    fn who_does_not_say_by_what_its_ranks_find_one_another_has_both(who) {
        let sandbox = Sandbox::with_config(who, "kill_wait_seconds = 2\n");
        let (open, (mpich, _)) = (open_mpis(&sandbox.work()), programs(&sandbox.work()));
        let inside = contained(&sandbox.work());
        for container in [&[][..], &inside[..]] {
            let run = |options: &[&str]| sandbox.srun(container).args(["--mem=400"]).args(options).limit(60);
            for ring in [&open, &mpich] {
                for _ in 0..runs() {
                    let told = run(&["-n2"]).arg(ring).ok();
                    assert_eq!(told.text(), "ranks 2 token 2 sum 3 here 2");
                    // Parts of Open MPI for networks that the image has no library of.
                    let err = told.err();
                    let said: Vec<&str> = err.lines().filter(|line| !line.contains("mca_base_component_repository_open")).collect();
                    assert!(said.iter().all(|line| line.is_empty()), "{said:?}");
                }
                let aborted = run(&["-n2"]).arg(ring).args(["abort", "1", "7"]).run();
                assert_eq!(aborted.rc, 7, "{aborted}");
                aborted.says(&["task 1 called MPI_Abort with exit code 7"]);
                let left = run(&["-n2"]).arg(ring).args(["leave", "1"]).run();
                assert!(left.rc != 0, "{left}");
            }
            let died = run(&["-n2"]).arg(&open).args(["die", "1"]).run();
            assert_eq!(died.rc, 137, "{died}");
            died.says(&["task 1 ended without MPI_Finalize"]);
            // One kind alone where that was asked for; of Open MPI without PMIx each rank says why it cannot start under srun.
            for mpi in ["--mpi=pmi2", "--mpi=none"] {
                assert!(run(&["-n2", mpi]).arg(&open).run().rc != 0);
            }
            assert!(run(&["-n2", "--mpi=pmix"]).arg(&open).ok().text().starts_with("ranks 2"));
            let variables = "echo ${PMIX_RANK-none} ${PMI_FD-none}";
            assert_eq!(run(&["-n1", "sh", "-c", variables]).ok().text(), "0 none");
            assert_eq!(run(&["-n1", "--mpi=none", "sh", "-c", variables]).ok().text(), "none none");
            let told = run(&["-n2", "--label", "sh", "-c", variables]).ok().text();
            let mut lines: Vec<&str> = told.lines().collect();
            lines.sort_unstable();
            assert_eq!(lines, ["0: 0 62", "1: 1 62"]);
        }
        // A task that speaks no PMIx starts nobody who serves it, and one that does is served until its step is over.
        let script = "echo here > there; exec sleep 60";
        let step = sandbox.srun(["-n2", "sh", "-c", script]).limit(60).spawn();
        sandbox.wait_file("there", "here", 20);
        assert_eq!(pmix_server(&sandbox.state()), None);
        step.signal(nix::sys::signal::Signal::SIGTERM);
        step.finish();
        let told = sandbox.srun(&inside).args(["-n2", "--container-unshare=net", "sh", "-c", "echo ${PMIX_RANK-none}"]).ok();
        assert_eq!(told.text(), "none\nnone");
    }
}

each_user! {
    fn a_single_task_of_open_mpi_starts_unasked(who) {
        let sandbox = Sandbox::with_config(who, "kill_wait_seconds = 2\n");
        let (open, (mpich, _)) = (open_mpis(&sandbox.work()), programs(&sandbox.work()));
        let inside = contained(&sandbox.work());
        let alone = "ranks 1 token 1 sum 1 here 1";
        for container in [&[][..], &inside[..]] {
            let run = |options: &[&str]| sandbox.srun(container).arg("--mem=400").args(options).limit(60);
            for options in [&["-n1"][..], &[]] {
                assert_eq!(run(options).arg(&open).ok().text(), alone);
                assert_eq!(run(options).arg(&mpich).ok().text(), alone);
            }
            // One after the other, as the same task.
            let twice = format!("{0} && {0}", open.display());
            assert_eq!(run(&["-n1", "sh", "-c", &twice]).ok().text(), [alone; 2].join("\n"));
            // Nobody waits for it: its exit is the step's, and nothing else is said.
            let aborted = run(&["-n1"]).arg(&open).args(["abort", "0", "7"]).run();
            assert_eq!(aborted.rc, 7, "{aborted}");
            let died = run(&["-n1"]).arg(&open).args(["die", "0"]).run();
            assert_eq!((died.rc, died.err().contains("would wait for it")), (137, false), "{died}");
            // Without any of it Open MPI says why it does not start under srun.
            assert!(run(&["-n1", "--mpi=none"]).arg(&open).run().rc != 0);
        }
        // In a job of its own, and by a launcher that asks for nothing of the kind.
        let script = format!("#!/bin/sh\nsrun -n1 {0}\nsrun -n1 mpirun.openmpi -n 1 {0}\n", open.display());
        let job = sandbox.cmd("sbatch").args(["--wait", "-n1", "--mem=400", "-o", "out"]);
        job.arg(sandbox.write("job.sh", &script)).env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1").limit(90).ok();
        assert_eq!(sandbox.read("out"), format!("{alone}\n{alone}\n"));
        // What speaks none of it pays for no process.
        let step = sandbox.srun(["-n1", "sh", "-c", "echo here > there; exec sleep 60"]).limit(60).spawn();
        sandbox.wait_file("there", "here", 20);
        assert_eq!(pmix_server(&sandbox.state()), None);
        step.signal(nix::sys::signal::Signal::SIGTERM);
        step.finish();
    }
}

#[test]
fn ranks_of_open_mpi_on_several_nodes_find_one_another_unasked_as_root() {
    let hosts = Hosts::cluster(3, "kill_wait_seconds = 2\n");
    let ring = open_mpis(&hosts.work());
    let inside = contained(&hosts.work());
    for container in [&[][..], &inside[..]] {
        let run = |options: &[&str]| {
            let cmd = hosts.cmd("n1", "srun").args(container).args(["--mem=300"]).args(options);
            cmd.limit(60)
        };
        for _ in 0..runs() {
            let told = run(&["-N3", "-n3"]).arg(&ring).ok().text();
            assert_eq!(told, "ranks 3 token 3 sum 6 here 1");
        }
        // One node's server asks another's, of which no task may have come yet.
        let told = run(&["-N3", "-n3"]).arg(&ring).env("OMPI_MCA_pmix_base_async_modex", "1");
        let told = told.env("OMPI_MCA_pmix_base_collect_data", "0").ok().text();
        assert_eq!(told, "ranks 3 token 3 sum 6 here 1");
        let left = run(&["-w", "n[1-2]", "-n2"]).arg(&ring).args(["leave", "1"]).run();
        assert!(left.rc != 0, "{left}");
        left.says(&["will not be reached by task 1 of n2"]);
    }
}

#[test]
fn ranks_of_open_mpi_on_several_nodes_find_one_another_by_pmix_as_root() {
    let hosts = Hosts::cluster(4, "kill_wait_seconds = 2\n");
    let ring = open_mpis(&hosts.work());
    let inside = contained(&hosts.work());
    for container in [&[][..], &inside[..]] {
        let run = |options: &[&str]| {
            let cmd = hosts.cmd("n1", "srun").args(container).args(["--mpi=pmix", "--mem=300"]).args(options);
            cmd.limit(60)
        };
        let shapes: [(&[&str], u32, u32, u32); 3] = [
            (&["-N2", "-n2"], 2, 3, 1),
            (&["-N4", "-n4"], 4, 10, 1),
            (&["-N2", "-n4", "--distribution=cyclic"], 4, 10, 2),
        ];
        for (options, ranks, sum, here) in shapes {
            for _ in 0..runs() {
                let told = run(options).arg(&ring).ok().text();
                assert_eq!(told, format!("ranks {ranks} token {ranks} sum {sum} here {here}"));
            }
        }
        // Nothing is collected at the fence: ranks fetch what others told from their nodes.
        let told = run(&["-N3", "-n3"]).arg(&ring).env("OMPI_MCA_pmix_base_async_modex", "1");
        let told = told.env("OMPI_MCA_pmix_base_collect_data", "0").ok().text();
        assert_eq!(told, "ranks 3 token 3 sum 6 here 1");
        let aborted = run(&["-N3", "-n3"]).arg(&ring).args(["abort", "2", "9"]).run();
        assert_eq!(aborted.rc, 9, "{aborted}");
        aborted.says(&["task 2 called MPI_Abort with exit code 9"]);
        let left = run(&["-w", "n[1-2]", "-n2"]).arg(&ring).args(["leave", "1"]).run();
        assert!(left.rc != 0, "{left}");
        left.says(&["will not be reached by task 1 of n2"]);
        let died = run(&["-N2", "-n2"]).arg(&ring).args(["die", "1"]).run();
        assert_eq!(died.rc, 137, "{died}");
        died.says(&["task 1 ended without MPI_Finalize"]);
    }
}

/// The process with libpmix of a cluster in this state directory.
fn pmix_server(state: &Path) -> Option<i32> {
    let state = state.as_os_str().as_encoded_bytes();
    let has = |pid: &i32, file: &str, what: &[u8]| {
        std::fs::read(format!("/proc/{pid}/{file}"))
            .is_ok_and(|text| text.windows(what.len()).any(|w| w == what))
    };
    let mut pids =
        std::fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    pids.find(|pid| has(pid, "cmdline", b"internal-pmix") && has(pid, "environ", state))
}

/// Where the tasks of a step without `--mpi` come to PMIx is a port of the node, to which everybody there can connect.
#[test]
fn somebody_elses_connection_starts_no_pmix_as_root() {
    let sandbox = Sandbox::with_config(berth_tests::Who::root(), "kill_wait_seconds = 2\n");
    let user = berth_tests::Who::user();
    let script = "env | grep -o 'tcp4://127.0.0.1:[0-9]*' | head -1; exec sleep 60";
    let mut step = sandbox.cmd_as(&user, "srun").dir("/").args(["-n2", "sh", "-c", script]).limit(60).spawn();
    step.wait_for("\n", 20);
    let line = String::from_utf8_lossy(&step.stdout()).into_owned();
    let port = line.lines().next().and_then(|line| line.rsplit(':').next()?.parse::<u16>().ok());
    let port = port.unwrap_or_else(|| panic!("{line}"));
    for _ in 0..200 {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        connection.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let read = std::io::Read::read(&mut connection, &mut [0; 1]);
        assert!(!matches!(&read, Ok(n) if *n > 0), "{read:?}");
        assert!(!matches!(&read, Err(e) if e.kind() == std::io::ErrorKind::WouldBlock), "it is not closed");
    }
    assert_eq!(pmix_server(&sandbox.state()), None, "it was started for somebody else");
    step.signal(nix::sys::signal::Signal::SIGTERM);
    let told = step.finish();
    assert!(!told.err().contains("PMIx"), "{told}");
}

#[test]
fn a_libpmix_that_is_missing_or_dies_is_told_as_root() {
    let sandbox = Sandbox::with_config(berth_tests::Who::root(), "kill_wait_seconds = 2\n");
    // It goes with the step, and the step with it.
    let script = "echo here > there; exec sleep 60";
    let step = sandbox.srun(["-n2", "--mpi=pmix", "sh", "-c", script]).limit(60).spawn();
    sandbox.wait_file("there", "here", 20);
    let pid = pmix_server(&sandbox.state()).expect("a process with libpmix");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    berth_tests::sandbox::kill_9(pid);
    let told = step.finish();
    assert!(told.rc != 0, "{told}");
    told.says(&["the PMIx server of this node is gone", "signal: 9"]);
    sandbox.srun(["-n2", "--mpi=pmix", "true"]).ok();
    let gone = wait(30, || pmix_server(&sandbox.state()).is_none().then_some(()));
    assert!(gone.is_some(), "it is left behind");
    // A node without it.
    let mut sandbox = Sandbox::empty(berth_tests::Who::root());
    let library = std::fs::canonicalize("/usr/lib/x86_64-linux-gnu/libpmix.so.2").unwrap();
    let hide =
        format!("mount -t tmpfs none {} && exec berth up --detach", library.parent().unwrap().display());
    sandbox.up_by("unshare", &["-m", "sh", "-c", &hide].map(String::from));
    let node = sandbox.node();
    let without = sandbox.srun(["-n2", "--mpi=pmix", "true"]).limit(60).fails();
    without.says(&["--mpi=pmix", "libpmix.so.2", "install the package libpmix2", &node]);
    // Who did not ask for it has the rest.
    let (ring, _) = programs(&sandbox.work());
    assert_eq!(sandbox.srun(["-n2"]).arg(&ring).limit(60).ok().text(), "ranks 2 token 2 sum 3 here 2");
}

#[test]
fn a_batch_script_has_no_pmi_and_its_steps_and_mpirun_do_as_root() {
    let sandbox = Sandbox::start(berth_tests::Who::root());
    let (ring, _) = programs(&sandbox.work());
    let mpirun = "mpiexec.hydra -n 2"; // the name that no other MPI has
    let script =
        format!("#!/bin/sh\necho fd ${{PMI_FD-none}}\nsrun {0}\nsrun {0}\n{mpirun} {0}\n", ring.display());
    let job = sandbox.sbatch(&["-n2", "-o", "out"], &script);
    sandbox.wait_state(job, "COMPLETED", 60);
    let lines = "ranks 2 token 2 sum 3 here 2\n".repeat(3);
    let seen = wait(30, || (sandbox.read("out") == format!("fd none\n{lines}")).then_some(()));
    assert!(seen.is_some(), "{}", sandbox.read("out"));
    // MPICH's mpirun starts what it needs by our srun.
    let names: Vec<String> = sandbox.sacct(job, "jobname").into_iter().flatten().collect();
    assert!(names.iter().any(|name| name.starts_with("hydra_pmi")), "{names:?}");
}

#[test]
fn ranks_on_several_nodes_find_one_another_as_root() {
    let hosts = Hosts::cluster(4, "kill_wait_seconds = 2\n");
    let (ring, keys) = programs(&hosts.work());
    // Over TCP, MPICH 4.0 of Debian 12 waits for ever in MPI_Finalize now and then, with its own mpiexec as well, and the more ranks
    // the oftener: no setting avoids it. So it is Debian 13's MPICH 4.2, as it comes from Debian, outside of containers too, and each
    // run has to end.
    let inside = contained_in(&images::newer_mpich(), &hosts.work());
    let outside = images::newer_mpich_outside();
    for (container, starter) in [(&[][..], Some(&outside)), (&inside[..], None)] {
        for (options, ranks, sum) in [(["-N2", "-n2"], 2, 3), (["-N3", "-n3"], 3, 6), (["-N4", "-n4"], 4, 10)]
        {
            for turn in 0..runs() {
                let cmd = hosts.cmd("n1", "srun").args(container).arg("--mem=200").args(options);
                let told = cmd.args(starter).arg(&ring).env("UCX_TLS", "tcp,self").limit(60).ok();
                let expected = format!("ranks {ranks} token {ranks} sum {sum} here 1");
                assert_eq!(told.text(), expected, "turn {turn}: {told}");
            }
        }
    }
    let inside = contained(&hosts.work());
    for container in [&[][..], &inside[..]] {
        // These hosts are one machine, and UCX knows it: it is to go by the network.
        let run = |options: &[&str]| {
            let cmd = hosts.cmd("n1", "srun").args(container).arg("--mem=200").args(options);
            cmd.env("UCX_TLS", "tcp,self").limit(60)
        };
        // Whole nodes, or what the job before is just leaving would decide.
        let layouts: [(&[&str], &str); 3] = [
            (&["-N4", "-n4"], "(0,4,1)"),
            (&["-N3", "-n4", "--exclusive"], "(0,1,2),(1,2,1)"),
            (&["-N4", "-n8"], "(0,4,2)"),
        ];
        for (options, mapping) in layouts {
            let told = run(options).arg(&keys).ok().text();
            assert!(
                told.starts_with(&options[1][2..]) && told.ends_with(&format!(": (vector,{mapping})")),
                "{told}"
            );
        }
        // An abort on one node ends all of them, with its code.
        let aborted = run(&["-N3", "-n3"]).arg(&ring).args(["abort", "2", "9"]).run();
        assert_eq!(aborted.rc, 9, "{aborted}");
        aborted.says(&["task 2 called MPI_Abort with exit code 9"]);
        let left = run(&["-w", "n[1-2]", "-n2"]).arg(&ring).args(["leave", "1"]).run();
        assert!(left.rc != 0, "{left}");
        left.says(&["the PMI barrier at which the tasks of n1 wait will not be reached by task 1 of n2"]);
    }
}

/// Of both kinds, each with what it finds the others by, in images of their own. No run is tried again: each has to end.
#[test]
fn ranks_on_eight_nodes_find_one_another_in_containers_as_root() {
    let hosts = Hosts::cluster(8, "kill_wait_seconds = 2\n");
    let (mpich, _) = programs(&hosts.work());
    let open = open_mpis(&hosts.work());
    let of_mpich = contained_in(&images::newer_mpich(), &hosts.work());
    let of_open = contained(&hosts.work());
    let kinds = [("UCX_TLS=tcp,self", &mpich, &of_mpich), ("SLURM_MPI_TYPE=pmix", &open, &of_open)];
    for turn in 0..runs_or(1) {
        for (said, ring, inside) in kinds {
            let (name, value) = said.split_once('=').unwrap();
            let cmd = hosts.cmd("n1", "srun").args(inside).args(["-N8", "-n8", "--mem=200"]).arg(ring);
            let told = cmd.env(name, value).limit(90).ok();
            assert_eq!(told.text(), "ranks 8 token 8 sum 36 here 1", "turn {turn}: {told}");
        }
    }
}

#[test]
fn open_mpis_mpirun_starts_its_daemons_on_all_nodes_by_our_srun_as_root() {
    let hosts = Hosts::cluster(3, "kill_wait_seconds = 2\n");
    let ring = hosts.work().join("ring");
    let source = machine::workspace().join("tests/mpi/ring.c");
    Cmd::new("mpicc.openmpi").arg("-o").arg(&ring).arg(source).ok();
    let salloc = |options: &[&str]| {
        let cmd = hosts.cmd("n1", "salloc").args(["-Q", "--mem=500"]).args(options);
        cmd.arg("mpirun.openmpi").arg(&ring).limit(60)
    };
    for (options, ranks, sum, here) in [(["-N1", "-n2"], 2, 3, 2), (["-N3", "-n3"], 3, 6, 1)] {
        for _ in 0..runs() {
            let told = salloc(&options).ok().text();
            assert_eq!(told, format!("ranks {ranks} token {ranks} sum {sum} here {here}"));
        }
    }
    // An abort on one node ends the daemons on all of them.
    let aborted = salloc(&["-N3", "-n3"]).args(["abort", "2", "9"]).run();
    assert_eq!(aborted.rc, 9, "{aborted}");
}

#[test]
fn mpichs_mpirun_starts_its_processes_on_all_nodes_by_our_srun_as_root() {
    let hosts = Hosts::cluster(3, "kill_wait_seconds = 2\n");
    let (ring, _) = programs(&hosts.work());
    // These hosts have one name service, in which they have no names: the processes are told where to call back.
    // By an MPICH whose every run ends, see above.
    let starter = images::newer_mpich_outside();
    for _ in 0..runs() {
        let cmd = hosts.cmd("n1", "salloc").args(["-Q", "-N3", "-n3", "--mem=500"]);
        let cmd = cmd.args(["mpiexec.hydra", "-localhost", &hosts.address("n1")]).arg(&starter).arg(&ring);
        let told = cmd.env("UCX_TLS", "tcp,self").limit(60).ok();
        assert_eq!(told.text(), "ranks 3 token 3 sum 6 here 1", "{told}");
    }
}

#[test]
fn mpirun_in_a_container_starts_its_processes_in_the_image_on_all_nodes_by_our_srun_as_root() {
    let hosts = Hosts::cluster(2, "kill_wait_seconds = 2\n");
    let (mpich, _) = programs(&hosts.work());
    let open = open_mpis(&hosts.work());
    // These hosts have no names and are one machine, see above.
    let hydra = format!("env UCX_TLS=tcp,self mpiexec.hydra -localhost {}", hosts.address("n1"));
    // Clients are at this place in containers alone.
    let inside = "sh -c '[ -x /run/berth/bin/srun ] && echo inside on $(hostname)'";
    let with_open_mpi = ("mpirun.openmpi", &open, "orted", contained(&hosts.work()));
    // Whose MPICH waits for nobody at the end, see above.
    let with_mpich =
        (hydra.as_str(), &mpich, "hydra_pmi", contained_in(&images::newer_mpich(), &hosts.work()));
    // As one that was made without Slurm: it starts its daemons by what stands there for ssh.
    // It is told of no nodes on its command line.
    let unaware = "env OMPI_MCA_plm=^slurm OMPI_MCA_ras=^slurm mpirun.openmpi";
    let without_slurm = (unaware, &open, "sh", contained(&hosts.work()));
    for (mpirun, ring, starter, container) in [with_open_mpi, with_mpich, without_slurm] {
        let script = format!("#!/bin/sh\n{mpirun} {inside}\n{mpirun} {}\n", ring.display());
        std::fs::write(hosts.work().join("job.sh"), script).unwrap();
        let options = ["--parsable", "--wait", "-N2", "-n2", "--mem=500", "-o", "out", "-e", "err"];
        let told = hosts.cmd("n1", "sbatch").args(options).args(container).arg("job.sh").limit(120).run();
        let read = |name: &str| std::fs::read_to_string(hosts.work().join(name)).unwrap_or_default();
        let out = read("out");
        let mut lines: Vec<&str> = out.lines().collect();
        lines.sort_unstable();
        let expected = ["inside on n1", "inside on n2", "ranks 2 token 2 sum 3 here 1"];
        assert_eq!((told.rc, &lines[..]), (0, &expected[..]), "{mpirun}: {told}\n{}", read("err"));
        // Who waits for the ranks on the other node is a step of the job.
        let steps =
            hosts.cmd("n1", "sacct").args(["-n", "-P", "-o", "jobname", "-j", &told.text()]).ok().text();
        assert!(steps.lines().any(|name| name.starts_with(starter)), "{steps}");
    }
}

/// As one that was made without Slurm: nobody names nodes, tasks or what stands for ssh, in a batch script, by a step and under salloc. There
/// is no sshd on these hosts.
#[test]
fn mpirun_of_an_open_mpi_that_knows_no_slurm_starts_its_processes_on_all_nodes_as_root() {
    let hosts = Hosts::cluster(4, "kill_wait_seconds = 2\n");
    let ring = open_mpis(&hosts.work());
    let line = format!("env OMPI_MCA_plm=^slurm OMPI_MCA_ras=^slurm mpirun.openmpi {}", ring.display());
    let all = "ranks 5 token 5 sum 15";
    // Two nodes have two tasks, and the third has one.
    let layout = ["-w", "n[2-4]", "-n5", "--ntasks-per-node=2", "--mem=300"];
    std::fs::write(
        hosts.work().join("job.sh"),
        format!("#!/bin/sh\n{line}\nsrun -N1 -n1 --overlap {line}\n"),
    )
    .unwrap();
    let options = ["--parsable", "--wait", "-o", "out", "-e", "err"];
    let told = hosts.cmd("n1", "sbatch").args(options).args(layout).arg("job.sh").limit(120).run();
    let read = |name: &str| std::fs::read_to_string(hosts.work().join(name)).unwrap_or_default();
    let out = read("out");
    let of_all = out.lines().filter(|line| line.starts_with(all)).count();
    assert!(told.rc == 0 && of_all == 2, "{told}\n{out}\n{}", read("err"));
    let salloc = hosts.cmd("n1", "salloc").arg("-Q").args(layout).args(line.split(' ')).limit(60).ok();
    assert!(salloc.text().starts_with(all), "{salloc}");
    // Who chooses others has those.
    let show = "echo $OMPI_MCA_plm_rsh_agent $OMPI_MCA_orte_default_hostfile";
    let chosen = |cmd: Cmd| {
        let cmd = cmd.env("OMPI_MCA_plm_rsh_agent", "ssh").env("OMPI_MCA_orte_default_hostfile", "mine");
        cmd.args(["sh", "-c", show]).limit(60).ok().text()
    };
    assert_eq!(chosen(hosts.cmd("n1", "srun").arg("-n1")), "ssh mine");
    assert_eq!(chosen(hosts.cmd("n1", "salloc").args(["-Q", "-n1"])), "ssh mine");
}
