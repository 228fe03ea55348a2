//! Standard input, output and error of steps: byte for byte, at once, whatever the size.

use berth_tests::{Cmd, Sandbox, each_user, images};
use nix::sys::signal::Signal;
use std::time::Duration;

each_user! {
    fn bytes_of_every_value_pass_unchanged(who) {
        let sandbox = Sandbox::start(who);
        let bytes: Vec<u8> = (0..=255_u8).cycle().take(5 << 20).collect();
        let output = sandbox.srun(["cat"]).stdin(&bytes).ok();
        assert!(output.stdout == bytes, "{} of {} bytes came back", output.stdout.len(), bytes.len());
        let output = sandbox.srun_in(images::busybox(), ["cat"]).stdin(&bytes).ok();
        assert!(output.stdout == bytes, "{} of {} bytes came back", output.stdout.len(), bytes.len());
        let output = sandbox.srun(["sh", "-c", "cat >&2"]).stdin(&bytes).ok();
        assert!(output.stderr == bytes, "{} of {} bytes came back on stderr", output.stderr.len(), bytes.len());
    }

    fn output_comes_when_it_is_written(who) {
        let sandbox = Sandbox::start(who);
        let words = "printf first; until [ -e go ]; do sleep 0.1; done; printf second";
        let mut step = sandbox.srun(["sh", "-c", words]).spawn();
        // It comes although the second one is not said before.
        step.wait_for("first", 30);
        sandbox.write("go", "");
        step.wait_for("second", 30);
        step.finish();
    }

    fn what_has_no_line_feed_yet_is_seen_under_its_label_where_that_is_asked_for(who) {
        let sandbox = Sandbox::start(who);
        let words = "printf 'name? '; read x; printf $x; read x; echo $x";
        let mut step = sandbox.srun(["-l", "-u", "sh", "-c", words]).stdin_open().spawn();
        step.wait_for("0: name? ", 30);
        step.write(b"one\n");
        step.wait_for("0: name? one", 30);
        step.write(b"two\n");
        let output = step.finish();
        assert_eq!((output.rc, output.text().as_str()), (0, "0: name? onetwo"), "{output}");
        // A long line is one, with a label and without line feeds of ours.
        let words = "head -c 300000 /dev/zero | tr '\\0' x; echo; echo end";
        let output = sandbox.srun(["-l", "sh", "-c", words]).ok();
        let text = output.text();
        let mut lines = text.lines();
        assert_eq!(lines.next().map(|line| (line.len(), line.starts_with("0: xxx"))), Some((300_003, true)));
        assert_eq!((lines.next(), lines.next()), (Some("0: end"), None));
    }

    fn input_is_interactive(who) {
        let sandbox = Sandbox::start(who);
        let mut step = sandbox.srun_in(images::busybox(), ["sh", "-c", "while read x; do echo got $x; done; echo end"]).stdin_open().spawn();
        step.write(b"one\n");
        step.wait_for("got one", 30);
        step.write(b"two\n");
        step.wait_for("got two", 30);
        step.close();
        step.wait_for("end", 30);
        assert_eq!(step.finish().rc, 0);
    }

    fn the_exit_is_noticed_at_once_undisturbed(who) {
        let sandbox = Sandbox::start(who);
        sandbox.srun(["true"]).ok();
        let mut times: Vec<Duration> = (0..5).map(|_| sandbox.srun(["true"]).ok().took).collect();
        times.sort();
        assert!(times[2] < Duration::from_millis(700), "srun true takes {times:?}; an exit found by polling looks like this");
    }

    fn labels_and_exit_codes_of_several_tasks(who) {
        let sandbox = Sandbox::start(who);
        let output = sandbox.srun(["-n2", "--label", "sh", "-c", "echo task $SLURM_PROCID; exit $((SLURM_PROCID * 2))"]).run();
        let text = output.text();
        let mut lines: Vec<&str> = text.lines().collect();
        lines.sort_unstable();
        assert_eq!(lines, ["0: task 0", "1: task 1"], "{output}");
        assert_eq!(output.rc, 2, "the highest exit code: {output}");
        assert!(output.err().contains("Exited with exit code 2"), "{output}");
        let output = sandbox.srun(["sh", "-c", "kill -9 $$"]).run();
        assert_eq!(output.rc, 137, "{output}");
        assert!(output.err().contains("Killed"), "{output}");
        assert!(output.err().contains("Force Terminated StepId="), "{output}");
    }

    fn input_for_one_task_leaves_the_others_without(who) {
        let sandbox = Sandbox::start(who);
        for task in ["0", "1"] {
            let output = sandbox.srun(["-n2", "--label", "--input", task, "cat"]).stdin(b"word\n").limit(60).ok();
            assert_eq!(output.text(), format!("{task}: word"));
        }
        assert_eq!(sandbox.srun(["-n2", "--input=none", "cat"]).stdin(b"word\n").limit(60).ok().text(), "");
    }

    fn signals_are_forwarded(who) {
        let sandbox = Sandbox::start(who);
        let mut step = sandbox.srun(["bash", "-c", "trap 'echo caught; exit 4' TERM; echo ready; while :; do sleep 0.05; done"]).spawn();
        step.wait_for("ready", 30);
        step.signal(Signal::SIGTERM);
        step.wait_for("caught", 30);
        assert_eq!(step.finish().rc, 4);
    }

    fn a_single_ctrl_c_does_what_was_asked_for(who) {
        let sandbox = Sandbox::start(who);
        let waits = "trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.1; done";
        for (option, variable, code) in [("-X", "", 4), ("-Q", "SLURM_DISABLE_STATUS", 4), ("--quit-on-interrupt", "", 137)] {
            let mut step = sandbox.srun([option, "sh", "-c", waits]);
            if !variable.is_empty() {
                step = step.env(variable, "1");
            }
            let mut step = step.spawn();
            step.wait_for("ready", 60);
            step.signal(Signal::SIGINT);
            let told = step.finish();
            assert_eq!(told.rc, code, "{option} {variable}: {told}");
            assert_eq!(told.text().contains("caught"), code == 4, "{told}");
            assert!(!told.err().contains("one more within"), "{told}");
        }
    }

    fn a_terminal_is_a_terminal(who) {
        let sandbox = Sandbox::start(who);
        for image in [None, Some(images::busybox())] {
            let option = image.map(|i| format!("--container-image={} ", i.display())).unwrap_or_default();
            let line = format!("srun {option}--pty sh -c 'test -t 0 && test -t 1 && echo terminal $(tty)'");
            let output = sandbox.cmd("script").args(["-qec", &line, "/dev/null"]).ok();
            assert!(output.text().contains("terminal /dev/pts/"), "{output}");
        }
    }

    fn a_reader_that_goes_away_ends_the_step(who) {
        let sandbox = Sandbox::start(who);
        let output = sandbox.cmd("sh").args(["-c", "srun yes | head -n 2"]).limit(30).ok();
        assert_eq!(output.text(), "y\ny");
        let idle = berth_tests::sandbox::wait(40, || sandbox.cmd("squeue").arg("-h").ok().text().is_empty().then_some(()));
        assert!(idle.is_some(), "the step of a closed pipe lives on");
    }

    fn output_that_cannot_be_written_is_said(who) {
        let sandbox = Sandbox::start(who);
        for options in ["", "--label ", "-n2 "] {
            let line = format!("srun {options}echo lost > /dev/full");
            sandbox.cmd("sh").args(["-c", &line]).fails().says(&["srun: error: cannot write to standard output", "No space left"]);
        }
        for command in ["squeue", "sinfo", "sacct", "scontrol show node", "berth status", "berth --help", "srun --help", "sbatch --wrap :"] {
            let line = format!("{command} > /dev/full");
            sandbox.cmd("sh").args(["-c", &line]).fails().says(&["cannot write to standard output"]);
        }
        // A reader that leaves is no error of anybody's.
        for command in ["squeue", "sinfo", "sacct", "scontrol show job", "scontrol show node", "berth config show", "srun seq 100000"] {
            let line = format!("{command} | head -n 0; exit 0");
            let output = sandbox.cmd("sh").args(["-c", &line]).ok();
            assert!(!output.err().contains("panicked") && !output.err().contains("cannot write"), "{command}: {output}");
        }
    }

    fn a_gibibyte_of_random_bytes_in_and_out(who) {
        let sandbox = Sandbox::start(who.clone());
        let file = sandbox.work().join("random");
        Cmd::new("sh").args(["-c", &format!("head -c 1G /dev/urandom > {}", file.display())]).who(&who).ok();
        let line = format!("srun cat < {0} > {0}.back && cmp {0} {0}.back", file.display());
        sandbox.cmd("sh").args(["-c", &line]).limit(240).ok();
    }

    fn output_files_of_steps_and_their_patterns(who) {
        let sandbox = Sandbox::start(who);
        sandbox.srun(["-n2", "--output=step-%t.out", "--error=step-%t.err", "sh", "-c", "echo out $SLURM_PROCID; echo err $SLURM_PROCID >&2"]).ok();
        for task in 0..2 {
            assert_eq!(sandbox.read(&format!("step-{task}.out")), format!("out {task}\n"));
            assert_eq!(sandbox.read(&format!("step-{task}.err")), format!("err {task}\n"));
        }
        sandbox.write("input", "from a file\n");
        assert_eq!(sandbox.srun(["--input=input", "cat"]).ok().text(), "from a file");
        let job = sandbox.sbatch(&["--output=o", "--error=e", "--wait"], "#!/bin/sh\necho out\necho err >&2\n");
        assert_eq!((sandbox.read("o").as_str(), sandbox.read("e").as_str()), ("out\n", "err\n"), "job {job}");
        sandbox.sbatch(&["--output=o", "--open-mode=append", "--wait"], "#!/bin/sh\necho more\n");
        assert_eq!(sandbox.read("o"), "out\nmore\n");
    }
}
