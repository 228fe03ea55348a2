//! What a task finds in its environment, its limits and its arguments: bytes from end to end.

use berth_tests::{Sandbox, each_user, images};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

each_user! {
    fn bytes_that_are_no_text_survive(who) {
        let sandbox = Sandbox::start(who);
        let odd = OsStr::from_bytes(b"caf\xe9 \xff\x01 line\nbreak");
        for image in [None, Some(images::busybox())] {
            let step = match &image {
                None => sandbox.cmd("srun"),
                Some(path) => sandbox.cmd("srun").arg("--container-image").arg(path),
            };
            let output = step.arg("sh").arg("-c").arg("printf '%s|%s' \"$ODD\" \"$1\"").arg("sh").arg(odd).env("ODD", odd).ok();
            let expected = [odd.as_bytes(), b"|", odd.as_bytes()].concat();
            assert_eq!(output.stdout, expected, "{output}");
        }
        let path = sandbox.write("job.sh", b"#!/bin/sh\nprintf '%s|%s|caf\xe9' \"$ODD\" \"$1\" > got\n");
        sandbox.cmd("sbatch").arg("--wait").arg(path).arg(odd).env("ODD", odd).ok();
        let got = std::fs::read(sandbox.work().join("got")).unwrap();
        assert_eq!(got, [odd.as_bytes(), b"|", odd.as_bytes(), b"|caf\xe9"].concat());
        // Files of odd names, and exported shell functions, which span lines.
        let name = OsStr::from_bytes(b"out-\xff");
        sandbox.cmd("sbatch").arg("--wait").arg("-o").arg(name).args(["--wrap", "echo fine"]).ok();
        assert_eq!(std::fs::read(sandbox.work().join(name)).unwrap(), b"fine\n");
        let line = "f() { echo one; echo two; }; export -f f; srun bash -c f";
        assert_eq!(sandbox.cmd("bash").args(["-c", line]).ok().text(), "one\ntwo");
    }

    fn slurm_variables_are_set(who) {
        let sandbox = Sandbox::start(who.clone());
        let script = "#!/bin/sh\nenv | grep ^SLURM > batch.env\nsrun -n2 sh -c 'env | grep ^SLURM > step.$SLURM_PROCID.env'\n";
        let job = sandbox.sbatch(&["--wait", "-J", "vars", "-n2"], script);
        let batch = sandbox.read("batch.env");
        let node = sandbox.node();
        for line in [
            format!("SLURM_JOB_ID={job}"), format!("SLURM_JOBID={job}"), "SLURM_JOB_NAME=vars".into(),
            "SLURM_JOB_PARTITION=main".into(), "SLURM_NTASKS=2".into(), "SLURM_NPROCS=2".into(),
            format!("SLURM_JOB_NODELIST={node}"), "SLURM_JOB_NUM_NODES=1".into(), format!("SLURM_JOB_USER={}", who.name),
            format!("SLURM_SUBMIT_DIR={}", sandbox.work().display()), format!("SLURMD_NODENAME={node}"),
        ] {
            assert!(batch.lines().any(|l| l == line), "{line} is not in\n{batch}");
        }
        for rank in 0..2 {
            let step = sandbox.read(&format!("step.{rank}.env"));
            for line in [
                format!("SLURM_PROCID={rank}"), format!("SLURM_LOCALID={rank}"), "SLURM_STEP_ID=0".into(),
                "SLURM_NODEID=0".into(), "SLURM_STEP_NUM_TASKS=2".into(), format!("SLURM_JOB_ID={job}"),
            ] {
                assert!(step.lines().any(|l| l == line), "{line} is not in\n{step}");
            }
        }
        let array = sandbox.sbatch(&["--array=3,7", "-o", "a.%a"], "#!/bin/sh\nenv | grep ^SLURM_ARRAY\n");
        sandbox.wait_file("a.7", "SLURM_ARRAY_TASK_ID=7", 30);
        sandbox.wait_file("a.3", &format!("SLURM_ARRAY_JOB_ID={array}"), 30);
        sandbox.wait_file("a.3", "SLURM_ARRAY_TASK_COUNT=2", 30);
        sandbox.wait_file("a.3", "SLURM_ARRAY_TASK_MAX=7", 30);
    }

    fn layout_and_devices_of_tasks_are_told_in_the_job_and_followed_there(who) {
        // Devices that are only counted: every user's cluster may have them.
        let sandbox = Sandbox::with_config(who, "[[node]]\nname = \"ALL\"\ngres = [{ name = \"gpu\", count = 2 }]\n");
        let say = "$SLURM_TRES_PER_TASK $SLURM_DISTRIBUTION $SLURM_DIST_PLANESIZE";
        let none = "${SLURM_TRES_PER_TASK-none} ${SLURM_DISTRIBUTION-none} ${SLURM_DIST_PLANESIZE-none}";
        let script = format!(
            "#!/bin/sh\nexec > told\necho {say}\n\
             srun sh -c 'echo $SLURM_PROCID {say} [$CUDA_VISIBLE_DEVICES]' | sort\n\
             srun -m cyclic sh -c 'echo other $SLURM_DISTRIBUTION ${{SLURM_DIST_PLANESIZE-none}}' | sort -u\n\
             srun -n1 --tres-per-task=gres/gpu=2 sh -c 'echo own $SLURM_TRES_PER_TASK [$CUDA_VISIBLE_DEVICES]'\n\
             sbatch --mem=50M -o nested --wrap 'echo {none}'\n"
        );
        sandbox.sbatch(&["--wait", "-N1", "-n2", "--mem=100M", "-m", "plane=2", "--tres-per-task=gres/gpu=1", "-o", "log"], &script);
        let told = sandbox.read("told");
        let lines: Vec<&str> = told.lines().collect();
        let log = sandbox.read("log");
        assert_eq!(lines[0], "gres/gpu=1 plane=2 2", "{told}{log}");
        // Each task has a GPU of its own, as the job said.
        for (task, line) in lines[1..3].iter().enumerate() {
            assert!(line.starts_with(&format!("{task} gres/gpu=1 plane=2 2 [")) && !line.contains(','), "{told}{log}");
        }
        assert_eq!(lines[3..5], ["other cyclic none", "own gres/gpu=2 [0,1]"], "{told}{log}");
        sandbox.wait_file("nested", "none none none", 60);
    }

    fn the_size_of_a_terminal_is_told(who) {
        let sandbox = Sandbox::start(who);
        let line = "stty rows 30 cols 90; srun --pty sh -c 'echo size $SLURM_PTY_WIN_ROW $SLURM_PTY_WIN_COL ${SLURM_PTY_PORT-none}'";
        let mut srun = sandbox.cmd("script").args(["-qec", line, "/dev/null"]).stdin_open().spawn();
        srun.wait_for("size 30 90 none", 60);
        assert_eq!(srun.finish().rc, 0);
        assert_eq!(sandbox.srun(["sh", "-c", "echo ${SLURM_PTY_WIN_ROW-none}"]).ok().text(), "none");
    }

    fn export_decides_what_travels(who) {
        let sandbox = Sandbox::start(who);
        let get = |options: &[&str]| {
            sandbox.cmd("srun").args(options).args(["sh", "-c", "echo ${A-none} ${B-none}"]).env("A", "a").env("B", "b").ok().text()
        };
        assert_eq!(get(&[]), "a b");
        assert_eq!(get(&["--export=A"]), "a none");
        assert_eq!(get(&["--export=ALL,B=changed"]), "a changed");
        assert_eq!(get(&["--export=NONE"]), "none none");
        sandbox.cmd("sbatch").args(["--export=NONE", "--wait", "--wrap", "echo ${A-none} > got"]).env("A", "a").ok();
        assert_eq!(sandbox.read("got"), "none\n");
    }

    fn soft_limits_travel_into_the_container(who) {
        let sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::busybox().display());
        let script = format!("#!/bin/bash\nulimit -S -s 4096\nulimit -S -c 0\nsrun {image} sh -c 'ulimit -s; ulimit -c' > got\n");
        sandbox.sbatch(&["--wait", "-o", "log"], &script);
        assert_eq!(sandbox.read("got"), "4096\n0\n", "log: {}", sandbox.read("log"));
    }
}
