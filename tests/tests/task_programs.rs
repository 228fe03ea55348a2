//! Programs around tasks: the site's and the user's, on the node and in containers, and those that fail or hang.

use berth_tests::programs::{self, drained, runs};
use berth_tests::{Sandbox, Who, each_user, images, sandbox};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

/// A cluster whose task prolog and task epilog are these lines of shell.
fn site(who: Who, prolog: &str, epilog: &str, seconds: u32) -> Sandbox {
    programs::site(who, "task", prolog, epilog, seconds)
}

each_user! {
    fn what_a_prolog_says_is_done_and_an_epilog_follows_each_task(who) {
        let prolog = "echo export SITE=one two\necho export PID=$SLURM_TASK_PID\necho export BOTH=site\necho print of the site $SLURM_PROCID\n\
                      echo unset TAKEN\necho told >&2\nexport NOT_SAID=1\necho exportNOT=1";
        let sandbox = site(who, prolog, "echo after $SLURM_PROCID pid $SLURM_TASK_PID $SITE.$TAKEN.", 60);
        let own = sandbox.write("own", "#!/bin/sh\necho export BOTH=$BOTH,own\necho print of the user\n");
        let own_after = sandbox.write("own_after", "#!/bin/sh\necho first after $SLURM_PROCID\n");
        let say = "echo task $SLURM_PROCID $SITE/$BOTH/$TAKEN/$NOT_SAID/$NOT $([ \"$PID\" = \"$SLURM_TASK_PID\" ] && [ \"$PID\" = $$ ] && echo same)";
        let both = [format!("--task-prolog={}", own.display()), format!("--task-epilog={}", own_after.display())];
        let run = |image: &[String], tasks: &str| {
            sandbox.srun(image).args(&both).args(["-l", tasks, "--mem=100", "sh", "-c", say]).env("TAKEN", "here").ok()
        };
        let lines = |task: u32| {
            [format!("of the site {task}"), "of the user".into(), format!("task {task} one two/site,own/// same"), format!("first after {task}"), format!("after {task} pid PID .here.")]
                .map(|line| format!("{task}: {line}"))
        };
        let plain = |text: &str| -> Vec<String> {
            text.lines().map(|line| match line.split_once(" pid ") {
                Some((before, rest)) => {
                    let (pid, after) = rest.split_once(' ').unwrap();
                    assert!(pid.parse::<u32>().is_ok(), "{line}");
                    format!("{before} pid PID {after}")
                }
                None => line.to_string(),
            }).collect()
        };
        let told = run(&[], "-n1");
        assert_eq!(plain(&told.text()), lines(0), "{told}");
        assert!(told.err().contains("0: told"), "{told}");
        let two = format!("--container-image={}", images::busybox().display());
        // The user's own are there by their paths.
        let seen = format!("--container-mounts={}", sandbox.work().display());
        let contained = run(&[two, seen], "-n1");
        assert_eq!(plain(&contained.text()), lines(0), "{contained}");
        // A batch script is a task, too.
        let job = sandbox.sbatch(&["-o", "out"], "#!/bin/sh\necho script $BOTH\n");
        sandbox.wait_state(job, "COMPLETED", 30);
        assert_eq!(plain(&sandbox.read("out"))[..3], ["told", "of the site 0", "script site"].map(String::from));
        assert!(sandbox.read("out").lines().last().unwrap().starts_with("after 0 pid"));
        // And one that is ended from outside has its epilog.
        let job = sandbox.sbatch(&["-o", "ended"], "#!/bin/sh\necho begun\nsleep 600\n");
        sandbox.wait_file("ended", "begun", 20);
        sandbox.cmd("scancel").arg(job.to_string()).ok();
        sandbox.wait_state(job, "CANCELLED", 20);
        sandbox.wait_file("ended", "after 0 pid", 20);
    }

    fn a_task_whose_prolog_fails_is_not_started(who) {
        let sandbox = site(who, "[ -z \"$BAD\" ] || exit 7", "", 60);
        let name = sandbox.work().join("task_prolog");
        let why = format!("task prolog {} failed: exit code 7; the task was not started", name.display());
        let output = sandbox.srun(["sh", "-c", "echo ran"]).env("BAD", "1").fails().says(&[&why]);
        assert_eq!((output.rc, output.text().as_str()), (7, ""), "{output}");
        sandbox.srun(["--task-prolog=/no/such", "true"]).fails().says(&["task prolog /no/such failed", "no such program where the task runs"]);
        // A program that is not there is said to be so, with programs before it as without.
        sandbox.srun(["no-such-command"]).fails().says(&["no-such-command", "no such program in PATH"]);
        // No reason for the node to stay away, and the next runs.
        assert_eq!(drained(&sandbox), "");
        assert_eq!(sandbox.srun(["echo", "next"]).ok().text(), "next");
    }

    fn one_that_hangs_is_killed_with_what_it_started_and_the_exit_stays(who) {
        let hang = |when: &str| format!("[ \"$HANG\" != {when} ] || {{ ./left_over & wait; }}");
        let sandbox = site(who, &hang("before"), &hang("after"), 2);
        let program = sandbox.write("left_over", "#!/bin/sh\necho x > begun_too\nsleep 600\n");
        let gone = |what: &str| {
            assert_eq!(sandbox.read("begun_too"), "x\n");
            fs::remove_file(sandbox.work().join("begun_too")).unwrap();
            assert!(sandbox::wait(30, || (!runs(&program)).then_some(())).is_some(), "{what}");
        };
        sandbox.srun(["sh", "-c", "echo ran"]).env("HANG", "before").fails().says(&["ran longer than its 2 s and was killed"]);
        gone("what the prolog started");
        let output = sandbox.srun(["sh", "-c", "echo ran; exit 5"]).env("HANG", "after").fails().says(&["task epilog", "ran longer than its 2 s"]);
        assert_eq!((output.rc, output.text().as_str()), (5, "ran"), "{output}");
        gone("what the epilog started");
        // Who ends the step does not wait for its prolog.
        let user = sandbox.write("forever", "#!/bin/sh\necho x > begun\nsleep 600\n");
        let job = sandbox.sbatch(&[], &format!("#!/bin/sh\nsrun --task-prolog={} sh -c 'echo ran > ran'\n", user.display()));
        sandbox.wait_file("begun", "x", 20);
        sandbox.cmd("scancel").arg(job.to_string()).ok();
        sandbox.wait_state(job, "CANCELLED", 20);
        assert!(!sandbox.work().join("ran").exists());
        assert_eq!(drained(&sandbox), "");
    }
}

/// The site's program comes from the node, whatever the image has under its name, and one that others could exchange is not run for anyone.
#[test]
fn an_image_has_no_say_in_the_sites_program_as_root() {
    let sandbox = site(Who::root(), "echo print of the node", "", 60);
    let program = sandbox.work().join("task_prolog");
    let other = sandbox.write("other", "#!/bin/sh\necho print of somebody else\n");
    let mounts = format!("--container-mounts={}:{}", other.display(), program.display());
    let image = images::busybox();
    let output = sandbox.srun_in(&image, [mounts.as_str(), "true"]).ok();
    assert_eq!(output.text(), "of the node");
    fs::set_permissions(&program, Permissions::from_mode(0o757)).unwrap();
    sandbox.srun(["true"]).fails().says(&["the site's task prolog", "can be written by others"]);
}
