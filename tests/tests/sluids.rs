//! Jobs by their SLUIDs: told wherever a job is told of, and taken wherever its id is.

use berth_tests::{Sandbox, each_user, sandbox::wait};

/// What `squeue` says that the job's is.
fn sluid(sandbox: &Sandbox, job: u64) -> String {
    let text =
        sandbox.cmd("squeue").args(["-h", "-t", "all", "-o", "%s", "-j", &job.to_string()]).ok().text();
    let sluid = text.trim().to_string();
    assert!(sluid.len() == 14 && sluid.starts_with('s') && sluid != "s0000000000000", "{sluid}");
    sluid
}

each_user! {
    fn a_sluid_is_told_everywhere_and_taken_in_place_of_an_id(who) {
        let sandbox = Sandbox::start(who);
        let script = "#!/bin/sh\necho $SLURM_JOB_SLUID\nsrun sh -c 'echo $SLURM_JOB_SLUID'\necho ready\nsleep 300\n";
        let job = sandbox.sbatch(&["-c1", "--output=%S.out"], script);
        let sluid = sluid(&sandbox, job);
        let file = format!("{sluid}.out");
        sandbox.wait_file(&file, "ready", 60);
        assert_eq!(sandbox.read(&file), format!("{sluid}\n{sluid}\nready\n"));

        let text = |program: &str, args: &[&str]| sandbox.cmd(program).args(args).ok().text();
        assert_eq!(text("squeue", &["-h", "-O", "SLUID", "-j", &sluid]).trim(), sluid);
        assert_eq!(text("squeue", &["-h", "-o", "%A", "-j", &sluid]).trim(), job.to_string());
        let fields = "JobIDRaw,SLUID,OriginalSLUID";
        assert_eq!(text("sacct", &["-nXP", "-o", fields, "-j", &sluid]).trim(), format!("{job}|{sluid}|{sluid}"));
        let batch = format!("{sluid}.batch");
        assert_eq!(text("sstat", &["-nP", "-o", "JobID,SLUID", "-j", &batch]).trim(), format!("{job}.batch|{sluid}"));
        let shown = text("scontrol", &["-d", "show", "job", &sluid.to_lowercase()]);
        assert!(shown.contains(&format!("JobId={job} ")) && shown.contains(&format!("\n   SLUID={sluid}\n")), "{shown}");
        assert!(!text("scontrol", &["show", "job", &sluid]).contains("SLUID="));
        let step = text("scontrol", &["-d", "show", "step", &batch]);
        assert!(step.contains(&format!("StepId={job}.batch ")) && step.contains(&format!("SLUID={sluid}")), "{step}");
        assert!(text("squeue", &["--json", "-j", &sluid]).contains(&format!("\"sluid\": \"{sluid}\"")));
        let account = text("sacct", &["--json", "-j", &sluid]);
        for key in ["sluid", "original_sluid"] {
            assert!(account.contains(&format!("\"{key}\": \"{sluid}\"")), "{account}");
        }
        let inside = ["--overlap", "--jobid", &sluid, "sh", "-c", "echo $SLURM_JOB_ID $SLURM_JOB_SLUID"];
        assert_eq!(text("srun", &inside), format!("{job} {sluid}"));

        sandbox.cmd("scancel").arg(&sluid).ok();
        sandbox.wait_state(job, "CANCELLED", 60);
        let state = text("sacct", &["-nXP", "-o", "JobIDRaw,State", "-j", &sluid]);
        assert!(state.starts_with(&format!("{job}|CANCELLED")), "{state}");
    }

    fn an_unknown_sluid_is_refused_as_an_unknown_id(who) {
        let sandbox = Sandbox::start(who);
        let unknown = "sCN1M7XK76CZ00";
        sandbox.cmd("scancel").arg(unknown).fails().says(&[unknown, "Invalid job id specified"]);
        sandbox.cmd("squeue").args(["-j", unknown]).fails().says(&["Invalid job id specified"]);
        sandbox.cmd("scontrol").args(["show", "job", unknown]).fails().says(&["Invalid job id specified"]);
        sandbox.cmd("scontrol").args(["hold", unknown]).fails().says(&["Invalid job id specified", unknown]);
        let jobid = format!("--jobid={unknown}");
        sandbox.cmd("srun").args([jobid.as_str(), "true"]).fails().says(&[unknown, "Invalid job id specified"]);
        sandbox.cmd("sattach").arg(format!("{unknown}.0")).fails().says(&["there is no job", unknown]);
        assert_eq!(sandbox.cmd("sacct").args(["-nP", "-j", unknown]).ok().text(), "");
        // What only begins as one is no job.
        for word in ["s", "sCN1M7XK76CZ0", "sCN1M7XK76CZ0U"] {
            sandbox.cmd("scancel").arg(word).fails().says(&["Invalid job id", word, "SLUID"]);
        }
    }

    fn each_task_has_its_own_and_the_last_one_that_of_the_array(who) {
        let sandbox = Sandbox::start(who);
        let array = sandbox.sbatch(&["--hold", "--array=1-3", "--output=%a.out"], "#!/bin/sh\necho $SLURM_JOB_SLUID\n");
        let of_array = sluid(&sandbox, array);
        sandbox.cmd("scontrol").args(["release", &of_array]).ok();
        let told = |task: u32| sandbox.work().join(format!("{task}.out")).exists().then(|| sandbox.read(&format!("{task}.out")));
        let all = wait(60, || (1..=3).map(|task| told(task).filter(|text| text.ends_with('\n'))).collect::<Option<Vec<String>>>());
        let all: Vec<String> = all.expect("a task does not end").iter().map(|text| text.trim().to_string()).collect();
        assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2], "{all:?}");
        assert_eq!(all[2], of_array);
    }

    fn a_requeue_keeps_it_and_an_allocation_is_told_its_own(who) {
        let sandbox = Sandbox::start(who);
        let script = "#!/bin/sh\necho run ${SLURM_RESTART_COUNT:-0} $SLURM_JOB_SLUID >> runs\n[ -n \"$SLURM_RESTART_COUNT\" ] || sleep 300\n";
        let job = sandbox.sbatch(&["--requeue"], script);
        let sluid = sluid(&sandbox, job);
        sandbox.wait_file("runs", "run 0", 60);
        sandbox.cmd("scontrol").args(["requeue", &sluid]).ok();
        sandbox.wait_state(job, "COMPLETED", 60);
        assert_eq!(sandbox.read("runs"), format!("run 0 {sluid}\nrun 1 {sluid}\n"));
        let said = sandbox.cmd("salloc").args(["-Q", "sh", "-c", "echo $SLURM_JOB_SLUID; srun sh -c 'echo $SLURM_JOB_SLUID'"]).ok().text();
        let lines: Vec<&str> = said.lines().collect();
        assert!(lines.len() == 2 && lines[0] == lines[1] && lines[0].len() == 14 && lines[0] != sluid, "{said}");
    }
}
