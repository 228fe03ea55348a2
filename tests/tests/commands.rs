//! What the commands print and accept, as scripts written for Slurm rely on it.

use berth_tests::{Sandbox, each_user, sandbox::wait};

each_user! {
    fn squeue_rows_and_columns(who) {
        let sandbox = Sandbox::start(who.clone());
        let job = sandbox.sbatch(&["-J", "a-long-name-indeed", "-c1"], "#!/bin/sh\nsleep 60\n");
        let held = sandbox.sbatch(&["--hold", "-J", "held"], "#!/bin/sh\n:\n");
        // Until its first task runs, squeue says that it is being configured.
        let shown = || sandbox.cmd("squeue").args(["-h", "-o", "%t", "-j", &job.to_string()]).ok().text();
        assert!(wait(20, || (shown().trim() == "R").then_some(())).is_some(), "{}", shown());
        let text = sandbox.cmd("squeue").ok().text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "             JOBID PARTITION     NAME     USER ST       TIME  NODES NODELIST(REASON)", "{text}");
        let row = |id: u64| lines.iter().find(|l| l.split_whitespace().next() == Some(&id.to_string())).unwrap().to_string();
        let running: Vec<String> = row(job).split_whitespace().map(str::to_string).collect();
        assert_eq!(&running[..1], [job.to_string()]);
        assert_eq!(running[2], "a-long-n");
        assert_eq!(running[3], who.name[..who.name.len().min(8)]);
        assert_eq!(running[4], "R");
        assert!(row(held).contains("PD") && row(held).ends_with("(JobHeldUser)"), "{text}");
        let format = sandbox.cmd("squeue").args(["-h", "-o", "%i|%T|%j", "-j", &held.to_string()]).ok().text();
        assert_eq!(format, format!("{held}|PENDING|held"));
        sandbox.cmd("scontrol").args(["release", &held.to_string()]).ok();
        sandbox.wait_state(held, "COMPLETED", 20);
        sandbox.cmd("scancel").args(["-u", &who.name]).ok();
        sandbox.wait_state(job, "CANCELLED", 20);
    }

    fn scontrol_shows_and_updates(who) {
        let sandbox = Sandbox::start(who);
        let node = sandbox.node();
        let show = sandbox.cmd("scontrol").args(["show", "node", &node]).ok().text();
        for key in ["NodeName=", "CPUTot=", "RealMemory=", "State=IDLE", "CfgTRES="] {
            assert!(show.contains(key), "{key} is not in {show}");
        }
        let partition = sandbox.cmd("scontrol").args(["show", "partition"]).ok().text();
        assert!(partition.contains("PartitionName=main") && partition.contains("State=UP"), "{partition}");
        let name = format!("NodeName={node}");
        sandbox.cmd("scontrol").args(["update", &name, "State=DRAIN", "Reason=a test"]).ok();
        let show = sandbox.cmd("scontrol").args(["show", "node", &node]).ok().text();
        assert!(show.contains("DRAIN") && show.contains("Reason=a test"), "{show}");
        let job = sandbox.sbatch(&[], "#!/bin/sh\n:\n");
        std::thread::sleep(std::time::Duration::from_millis(500));
        assert_eq!(sandbox.job_state(job), "PENDING", "a drained node takes no job");
        sandbox.cmd("scontrol").args(["update", &name, "State=RESUME"]).ok();
        sandbox.wait_state(job, "COMPLETED", 20);
        let show = sandbox.cmd("scontrol").args(["show", "job", &job.to_string()]).ok().text();
        for key in [format!("JobId={job} "), "JobState=COMPLETED".into(), "ExitCode=0:0".into(), "NumCPUs=".into()] {
            assert!(show.contains(&key), "{key} is not in {show}");
        }
    }

    fn scancel_knows_arrays_tasks_and_signals(who) {
        let sandbox = Sandbox::start(who);
        let array = sandbox.sbatch(&["--array=1-4%1", "--output=%a.out"], "#!/bin/sh\nsleep 60\n");
        let running = wait(20, || sandbox.cmd("squeue").arg("-h").ok().text().contains(" R ").then_some(()));
        assert!(running.is_some(), "no task of the array runs");
        let rows = sandbox.cmd("squeue").args(["-h", "-o", "%i %t"]).ok().text();
        assert!(rows.contains(&format!("{array}_1 R")) && rows.contains(&format!("{array}_[2-4%1] PD")), "{rows}");
        sandbox.cmd("scancel").arg(format!("{array}_3")).ok();
        let rows = sandbox.cmd("squeue").args(["-h", "-o", "%i"]).ok().text();
        assert!(rows.contains(&format!("{array}_[2,4%1]")), "{rows}");
        // Of tasks that wait, those alone that are named, when it asks.
        let asks = sandbox.cmd("scancel").args(["-i", &format!("{array}_4")]).stdin("y\n").ok();
        assert!(asks.text().contains(&format!("Cancel job_id={array}_4 ")), "{asks}");
        let rows = sandbox.cmd("squeue").args(["-h", "-o", "%i %t"]).ok().text();
        assert!(rows.contains(&format!("{array}_1 R")) && rows.contains(&format!("{array}_[2%1] PD")), "{rows}");
        // The id that sbatch printed is known to scancel.
        sandbox.cmd("scancel").arg(array.to_string()).ok();
        let empty = wait(20, || sandbox.cmd("squeue").arg("-h").ok().text().is_empty().then_some(()));
        assert!(empty.is_some(), "{}", sandbox.cmd("squeue").ok());
        let job = sandbox.sbatch(&["--output=caught"], "#!/bin/bash\ntrap 'echo caught; exit 3' USR1\necho ready\nwhile :; do sleep 0.1; done\n");
        sandbox.wait_file("caught", "ready", 20);
        sandbox.cmd("scancel").args(["-b", "-s", "USR1", &job.to_string()]).ok();
        sandbox.wait_state(job, "FAILED", 20);
        assert!(sandbox.read("caught").contains("caught"));
        assert_eq!(sandbox.sacct(job, "ExitCode")[0], ["3:0"]);
    }

    fn variables_stand_for_options_of_the_commands_that_look_and_act(who) {
        let sandbox = Sandbox::start(who);
        let chosen = sandbox.sbatch(&["--hold", "-J", "chosen"], "#!/bin/sh\n:\n");
        let other = sandbox.sbatch(&["--hold", "-J", "other"], "#!/bin/sh\n:\n");
        sandbox.cmd("scancel").env("SCANCEL_NAME", "chosen").env("SCANCEL_STATE", "PENDING").ok();
        sandbox.wait_state(chosen, "CANCELLED", 20);
        assert_eq!(sandbox.job_state(other), "PENDING");
        sandbox.cmd("scancel").env("SCANCEL_STATE", "LATE").fails().says(&["Unrecognized SCANCEL_STATE value: LATE"]);
        let refused = sandbox.cmd("squeue").env("SQUEUE_QOS", "high").fails();
        refused.says(&["squeue: error: --qos (environment variable SQUEUE_QOS) is not supported: "]);
        let loud = sandbox.cmd("sbatch").env("SBATCH_DEBUG", "1").args(["--hold", "-J", "third", "--wrap", ":"]).ok();
        assert!(loud.err().contains("sbatch: asking "), "{loud}");
        let quiet = sandbox.cmd("sbatch").env("SBATCH_DEBUG", "1").args(["-Q", "--hold", "--wrap", ":"]).ok();
        assert!(!quiet.err().contains("asking"), "{quiet}");
        // What is typed comes before the variable.
        sandbox.cmd("scancel").env("SCANCEL_NAME", "other").args(["-n", "third"]).ok();
        assert_eq!(sandbox.job_state(other), "PENDING");
        sandbox.cmd("scancel").env("SCANCEL_NAME", "other").ok();
        sandbox.wait_state(other, "CANCELLED", 20);
        sandbox.cmd("scancel").args(["-n", "wrap"]).ok();
    }

    fn sbatch_options_and_directives(who) {
        let sandbox = Sandbox::start(who);
        let script = "#!/bin/bash\n#SBATCH --job-name=from-directive\n#SBATCH --output=%x-%j.out   # a comment\n##SBATCH --bogus\n\n#SBATCH --mem=10mb\n\
                      echo \"$SLURM_JOB_NAME:$1:$2:$(umask)\"\n#SBATCH --job-name=too-late\n";
        let path = sandbox.write("job.sh", script);
        let submit = sandbox.cmd("sh").arg("-c").arg(format!("umask 027; sbatch --wait --parsable {} one 'two words'", path.display()));
        let job = submit.ok().text();
        assert_eq!(sandbox.read(&format!("from-directive-{job}.out")).trim(), "from-directive:one:two words:0027");
        let text = sandbox.cmd("sbatch").arg(&path).ok().text();
        assert!(text.starts_with("Submitted batch job "), "{text}");
        let output = sandbox.cmd("sbatch").args(["--wait", "--wrap", "exit 3"]).run();
        assert_eq!(output.rc, 3, "{output}");
        let output = sandbox.cmd("sbatch").args(["--test-only", "--wrap", ":"]).ok();
        assert!(output.err().contains("to start at"), "{output}");
        assert!(!sandbox.cmd("squeue").arg("-h").ok().text().contains("wrap"));
        let text = sandbox.cmd("sbatch").arg("--wait").stdin("#!/bin/sh\necho from stdin > stdin.txt\n").ok().text();
        assert!(text.contains("Submitted"), "{text}");
        assert_eq!(sandbox.read("stdin.txt").trim(), "from stdin");
    }

    fn what_a_partition_adds_is_told_and_impossible_wishes_are_named(who) {
        let partition = "[[partition]]\nname = \"debug\"\ndefault = true\ndefault_mem_per_cpu = 20\n";
        let sandbox = Sandbox::with_config(who, partition);
        let held = sandbox.sbatch(&["--hold"], "#!/bin/sh\n:\n");
        let show = sandbox.cmd("scontrol").args(["show", "job", &held.to_string()]).ok().text();
        for words in ["EligibleTime=Unknown", "NumNodes=1-1 NumCPUs=1", "ReqTRES=cpu=1,mem=20M,node=1,billing=1", "MinMemoryCPU=20M"] {
            assert!(show.contains(words), "{words}\n{show}");
        }
        sandbox.cmd("scancel").arg(held.to_string()).ok();
        let env = sandbox.srun(["sh", "-c", "echo $SLURM_MEM_PER_CPU:$SLURM_MEM_PER_NODE"]).ok();
        assert_eq!(env.text(), "20:", "{env}");
        let refused = |options: &[&str], lines: &[&str]| {
            let output = sandbox.cmd("sbatch").args(options).args(["--wrap", ":"]).run();
            assert_eq!(output.rc, 1, "{output}");
            let said = output.err();
            let said: Vec<&str> = said.lines().map(|l| l.strip_prefix("sbatch: error: ").unwrap_or(l)).collect();
            for (line, start) in said.iter().zip(lines) {
                assert!(line.starts_with(start), "{start}\n{output}");
            }
            assert!(said.len() >= lines.len(), "{output}");
        };
        let failed = "Batch job submission failed: Requested node configuration is not available: ";
        refused(&["--mem=900000G"], &["Memory specification can not be satisfied", failed]);
        refused(&["-c", "5000"], &["CPU count per node can not be satisfied", failed]);
        refused(&["--gres=bogus:1"], &["Invalid generic resource (gres) specification", failed]);
        refused(&["-p", "nosuch"], &["invalid partition specified: nosuch", "Batch job submission failed: Invalid partition name specified"]);
        refused(&["--array=3-1"], &["Batch job submission failed: Invalid job array specification: "]);
        let output = sandbox.srun(["--jobid=999999", "true"]).fails();
        assert!(output.err().contains("srun: Check SLURM_JOB_ID environment variable. Expired or invalid job 999999"), "{output}");
        // A step that may not wait is refused while another has the CPUs, and says nothing of waiting.
        let script = "#!/bin/sh\nsrun sleep 30 &\nfor i in $(seq 100); do squeue -s -h | grep -q '\\.0 ' && break; sleep 0.1; done\n\
                      srun -I true\necho rc=$?\nscancel $SLURM_JOB_ID.0\nwait\n";
        let job = sandbox.sbatch(&["--output=busy"], script);
        sandbox.wait_state(job, "COMPLETED", 40);
        let said = sandbox.read("busy");
        assert!(said.contains("Requested nodes are busy") && said.contains("rc=1"), "{said}");
        assert!(said.contains(&format!("*** STEP {job}.0 ON ")) && said.contains("DUE to SIGNAL Terminated ***"), "{said}");
        assert!(said.contains("srun: Job step aborted: Waiting up to 32 seconds for job step to finish."), "{said}");
    }

    fn what_is_wrong_about_gpus_ends_with_1_and_a_binding_is_told(who) {
        let sandbox = Sandbox::with_config(who, "[[node]]\nname = \"ALL\"\ngres = [{ name = \"gpu\", type = \"test\", count = 2 }]\n");
        let refused = |options: &[&str], code: i32, lines: &[&str]| {
            let output = sandbox.cmd("sbatch").args(options).args(["--wrap", ":"]).run();
            assert_eq!(output.rc, code, "{output}");
            let said = output.err();
            for (line, start) in said.lines().zip(lines) {
                assert!(line.starts_with(start), "{start}\n{output}");
            }
            assert!(said.lines().count() >= lines.len(), "{output}");
        };
        let last = "sbatch: error: Invalid generic resource (gres) specification: ";
        let first = "sbatch: error: Requested cpus_per_tres=gres/gpu:2 but did not request any GPU.";
        refused(&["--cpus-per-gpu=2"], 1, &[first, last]);
        refused(&["--gpus-per-task=1"], 1, &["sbatch: error: Failed to validate job spec. --gpus-per-task or --tres-per-task used", last]);
        refused(&["--tres-per-task=bogus=1", "-n2"], 1, &["sbatch: error: Batch job submission failed: Invalid Trackable RESource (TRES) specification"]);
        refused(&["--gpu-bind=bogus", "--gpus=1"], 255, &["sbatch: error: Invalid --gpu-bind argument: bogus"]);
        for (options, code, text) in [
            ("--mpi=bogus", 1, "srun: error: Invalid MPI type 'bogus', --mpi=list for acceptable types"),
            ("--cpu-bind=bogus", 1, "srun: error: unrecognized --cpu-bind argument \"bogus\"\nsrun: fatal: Failed to parse --cpu-bind= values."),
            ("--relative=1", 1, "srun: fatal: --relative option invalid for job allocation request"),
        ] {
            let output = sandbox.srun([options, "true"]).run();
            assert!(output.rc == code && output.err().starts_with(text), "{options}\n{output}");
        }
        let held = sandbox.sbatch(&["--hold", "--gpus=1", "--gpu-bind=closest", "--mem-per-gpu=20"], "#!/bin/sh\n:\n");
        let show = sandbox.cmd("scontrol").args(["show", "job", &held.to_string()]).ok().text();
        for words in ["TresBind=gres/gpu:closest\n   TresPerJob=gres/gpu:1", "MinMemoryTRES=20M ", "MemPerTres=gres/gpu:20\n"] {
            assert!(show.contains(words), "{words}\n{show}");
        }
        // Nobody has nodes of its own yet, and one that is over never will.
        let waits = sandbox.cmd("timeout").args(["1", "scontrol", "wait_job", &held.to_string()]).run();
        assert_eq!(waits.rc, 124, "{waits}");
        sandbox.cmd("scancel").arg(held.to_string()).ok();
        let over = sandbox.cmd("scontrol").args(["wait_job", &held.to_string()]).run();
        let text = format!("scontrol: Problem running job {held}: it is CANCELLED");
        assert!(over.rc == 1 && over.err().starts_with(&text), "{over}");
        let job = sandbox.sbatch(&["--gres=gpu:1"], "#!/bin/sh\nsleep 300\n");
        let ready = sandbox.cmd("scontrol").args(["wait_job", &job.to_string()]).ok();
        assert!(ready.err().contains(&format!("scontrol: Nodes are ready for job {job}")), "{ready}");
        let states = sandbox.cmd("squeue").args(["--only-job-state", "-h"]).ok().text();
        assert_eq!(states.split_whitespace().collect::<Vec<_>>(), [job.to_string().as_str(), "R"]);
        let node = sandbox.cmd("scontrol").args(["-d", "show", "node"]).ok().text();
        assert!(node.contains("\n   GresDrain=N/A\n   GresUsed=gpu:test:1(IDX:0)\n"), "{node}");
        let used = sandbox.cmd("sinfo").args(["-h", "-O", "gresused:40"]).ok().text();
        assert_eq!(used.trim(), "gpu:test:1(IDX:0)");
        sandbox.cmd("scancel").arg(job.to_string()).ok();
    }

    fn time_limit_ends_a_job_at_once(who) {
        let sandbox = Sandbox::with_config(who, "kill_wait_seconds = 1\n");
        let job = sandbox.sbatch(&["--time=1", "--output=out"], "#!/bin/sh\necho begun\nsleep 300\n");
        sandbox.wait_file("out", "begun", 20);
        sandbox.wait_state(job, "TIMEOUT", 75);
        let elapsed: u64 = sandbox.sacct(job, "ElapsedRaw")[0][0].parse().unwrap();
        assert!((60..=63).contains(&elapsed), "a limit of 60 s was enforced after {elapsed} s");
        assert!(sandbox.read("out").contains("DUE TO TIME LIMIT"), "{}", sandbox.read("out"));
    }

    fn requeue_runs_a_job_again_under_the_same_id(who) {
        let sandbox = Sandbox::start(who);
        let script = "#!/bin/sh\necho run ${SLURM_RESTART_COUNT:-0} >> runs\n[ -n \"$SLURM_RESTART_COUNT\" ] || sleep 60\n";
        let job = sandbox.sbatch(&["--requeue"], script);
        sandbox.wait_file("runs", "run 0", 20);
        sandbox.cmd("scontrol").args(["requeue", &job.to_string()]).ok();
        sandbox.wait_file("runs", "run 1", 30);
        sandbox.wait_state(job, "COMPLETED", 20);
        assert_eq!(sandbox.read("runs"), "run 0\nrun 1\n");
    }

    fn machine_readable_output(who) {
        let sandbox = Sandbox::start(who);
        let job = sandbox.sbatch(&["--wait"], "#!/bin/sh\n:\n");
        let header = sandbox.cmd("sacct").args(["-j", &job.to_string()]).ok().text();
        let first = header.lines().next().unwrap();
        assert_eq!(first.split_whitespace().collect::<Vec<_>>(), ["JobID", "JobName", "Partition", "Account", "AllocCPUS", "State", "ExitCode"]);
        assert_eq!(header.lines().nth(1).unwrap(), "------------ ---------- ---------- ---------- ---------- ---------- -------- ", "{header}");
        sandbox.cmd("scontrol").args(["show", "hostnames", "n[1-3]"]).ok();
        let doctor = sandbox.cmd("berth").arg("doctor").run();
        assert!(!doctor.text().is_empty(), "{doctor}");
        let config = sandbox.cmd("berth").args(["config", "show"]).ok().text();
        assert!(config.contains("kill_wait_seconds"), "{config}");
    }
}
