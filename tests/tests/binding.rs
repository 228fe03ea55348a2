//! What differs from task to task: CPUs and memory (`--cpu-bind`, `--mem-bind`), and programs (`--multi-prog`); on the node and in
//! containers.

use berth_tests::{Sandbox, each_user, images};

/// The CPUs of this machine that tests may use: the nodes of sandboxes have no others.
fn own_cpus() -> Vec<u32> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let list =
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_string();
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        first.parse::<u32>().unwrap()..=last.parse::<u32>().unwrap()
    };
    list.split(',').flat_map(range).collect()
}

const ALLOWED: &str = "sed -n 's/^Cpus_allowed_list:[^0-9]*//p' /proc/self/status";

each_user! {
    fn tasks_run_where_they_were_bound(who) {
        let sandbox = Sandbox::start(who);
        let cpus = own_cpus();
        let (first, last) = (cpus[0], *cpus.last().unwrap());
        let host: &[String] = &[];
        for image in [host, &[format!("--container-image={}", images::busybox().display())]] {
            let run = |bind: &str| {
                let output = sandbox.srun(image).args(["-N1", "-n2", "--exclusive", "-l", bind, "sh", "-c", ALLOWED]).ok();
                let mut lines: Vec<String> = output.text().lines().map(str::to_string).collect();
                lines.sort();
                lines
            };
            assert_eq!(run(&format!("--cpu-bind=map_cpu:{last},{first}")), [format!("0: {last}"), format!("1: {first}")]);
            let mask = format!("--cpu-bind=mask_cpu:{:#x}*2", 1_u128 << first);
            assert_eq!(run(&mask), [format!("0: {first}"), format!("1: {first}")]);
            if cpus.len() > 1 {
                let lines = run("--cpu-bind=threads");
                assert_ne!(lines[0][3..], lines[1][3..], "two tasks on one of {cpus:?}");
            }
        }
        // Nobody asked: the step's CPUs, and no variable.
        let plain = sandbox.srun(["sh", "-c", "echo ${SLURM_CPU_BIND-none} ${SLURM_MEM_BIND-none}"]).ok();
        assert_eq!(plain.text(), "none none");
    }

    fn tasks_say_and_know_what_they_are_bound_to(who) {
        let sandbox = Sandbox::start(who);
        let first = own_cpus()[0];
        let say = "echo $SLURM_CPU_BIND $SLURM_CPU_BIND_TYPE $SLURM_CPU_BIND_LIST $SLURM_CPU_BIND_VERBOSE $SLURM_MEM_BIND_TYPE $$";
        let bind = format!("--cpu-bind=verbose,map_cpu:{first}");
        let output = sandbox.srun([&*bind, "--mem-bind=local", "sh", "-c", say]).ok();
        let text = output.text();
        let (variables, pid) = text.rsplit_once(' ').unwrap();
        assert_eq!(variables, format!("verbose,map_cpu:{first} map_cpu: {first} verbose local"));
        let line = format!("cpu-bind=MAP - {}, task  0  0 [{pid}]: mask {:#x} set", sandbox.node(), 1_u128 << first);
        assert!(output.err().lines().any(|said| said == line), "{line}\n{output}");
        // From the environment, and the command line over it.
        let srun = |args: &[&str]| sandbox.srun(args).args(["sh", "-c", "echo $SLURM_CPU_BIND"]).env("SLURM_CPU_BIND", "rank");
        assert_eq!(srun(&[]).ok().text(), "quiet,rank");
        assert_eq!(srun(&["--cpu-bind=none"]).ok().text(), "quiet,none");
    }

    fn memory_is_bound_by_the_kernel(who) {
        let sandbox = Sandbox::start(who);
        if !std::path::Path::new("/proc/self/numa_maps").exists() {
            sandbox.srun(["--mem-bind=map_mem:0", "true"]).fails().says(&["numa nodes"]);
            return;
        }
        for (bind, policy) in [("map_mem:0", "bind:0"), ("prefer,rank", "prefer"), ("none", "default")] {
            let option = format!("--mem-bind={bind}");
            // A stack that is touched has the policy of its process.
            let text = sandbox.srun([&*option, "grep", "stack", "/proc/self/numa_maps"]).ok().text();
            assert!(text.contains(policy), "{bind}: {text}");
        }
        sandbox.srun(["--mem-bind=verbose,map_mem:0", "true"]).ok().says(&["mem-bind=map - ", "mask 0x1 set"]);
    }

    fn masks_of_memory_are_what_the_kernel_has_of_the_tasks(who) {
        // What is bound could not be seen otherwise, and nothing would be shown here.
        let seen = std::path::Path::new("/proc/self/numa_maps").exists();
        assert!(seen, "this kernel does not say what memory is bound to: it is made without CONFIG_NUMA");
        let sandbox = Sandbox::start(who);
        let host: &[String] = &[];
        let bound = |policy: &str, text: &str| {
            let stacks: Vec<&str> = text.lines().filter(|line| line.contains("stack")).collect();
            stacks.len() == 2 && stacks.iter().all(|line| line.contains(policy))
        };
        for image in [host, &[format!("--container-image={}", images::busybox().display())]] {
            for (bind, policy) in [
                ("--mem-bind=mask_mem:0x1", " bind:0 "),
                ("--mem-bind=mask_mem:0x1,0x1", " bind:0 "),
                ("--mem-bind=prefer,mask_mem:0x1", " prefer"),
                ("--mem-bind=none", " default "),
            ] {
                // A stack that is touched has the policy of its process, also of one that the task starts.
                let look = "grep stack /proc/self/numa_maps; true";
                let text = sandbox.srun(image).args(["-N1", "-n2", bind, "sh", "-c", look]).ok().text();
                assert!(bound(policy, &text), "{bind}: {text}");
            }
        }
        let loud = sandbox.srun(["--mem-bind=verbose,mask_mem:0x1", "true"]).ok();
        loud.says(&["mem-bind=mask - ", "mask 0x1 set"]);
    }

    fn more_tasks_than_cpus(who) {
        let sandbox = Sandbox::start(who);
        let many = (own_cpus().len() * 3).to_string();
        sandbox.srun(["-n", &*many, "-N1", "true"]).fails();
        let show = "echo $SLURM_NTASKS $SLURM_OVERCOMMIT $SLURM_JOB_CPUS_PER_NODE";
        let told = sandbox.srun(["-O", "-n", &*many, "-N1", "sh", "-c", show]).ok().text();
        let lines: Vec<&str> = told.lines().collect();
        let expected = format!("{many} 1 ");
        assert!(lines.len().to_string() == many && lines.iter().all(|l| l.starts_with(&expected)), "{told}");
        // In a job that has all CPUs, and by what the job says.
        let script = format!("#!/bin/sh\nsrun -n{many} true || srun -O -n{many} echo step\n");
        sandbox.sbatch(&["-N1", "--exclusive", "-o", "out", "-e", "err", "--wait"], &script);
        assert_eq!(sandbox.read("out").lines().filter(|l| *l == "step").count().to_string(), many, "{}", sandbox.read("err"));
        sandbox.sbatch(&["-N1", "-O", "-n", &many, "-o", "job", "--wait"], "#!/bin/sh\nsrun echo step\n");
        assert_eq!(sandbox.read("job").lines().count().to_string(), many);
    }

    fn a_layout_over_sockets_binds_tasks(who) {
        let sandbox = Sandbox::start(who);
        let show = format!("echo $SLURM_DISTRIBUTION $({ALLOWED})");
        let cpus = own_cpus();
        let told = |output: berth_tests::Output| {
            let mut lines: Vec<String> = output.text().lines().map(str::to_string).collect();
            lines.sort();
            let bound: Vec<u32> = lines.iter().filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
            assert!(bound.len() == 2 && bound.iter().all(|cpu| cpus.contains(cpu)), "{lines:?} of {cpus:?}");
            assert!(cpus.len() == 1 || bound[0] != bound[1], "{lines:?}");
            lines
        };
        let lines = told(sandbox.srun(["-N1", "-n2", "--exclusive", "-l", "-m", "block:block", "sh", "-c", &show]).ok());
        assert!(lines[0].starts_with("0: block:block "), "{lines:?}");
        // As the job says, unless the step says otherwise. The script itself is not bound.
        let script = format!("#!/bin/sh\n{ALLOWED}\nsrun -l sh -c '{}' | sort\nsrun -n1 -m cyclic sh -c 'echo $SLURM_DISTRIBUTION'\n", show.replace('\'', "'\\''"));
        sandbox.sbatch(&["-N1", "-n2", "--exclusive", "-m", "cyclic:fcyclic", "-o", "out", "--wait"], &script);
        let out = sandbox.read("out");
        let lines: Vec<&str> = out.lines().collect();
        assert!(lines.len() == 4 && lines[1].starts_with("0: cyclic:fcyclic ") && lines[3] == "cyclic:fcyclic", "{out}");
        assert!(cpus.len() == 1 || lines[0].contains(['-', ',']), "{out}");
        sandbox.srun(["-m", "block:sockets", "true"]).fails().says(&["invalid --distribution", "block, cyclic or fcyclic"]);
    }

    fn a_task_that_cannot_be_bound_is_named_with_its_node(who) {
        let sandbox = Sandbox::start(who);
        let node = sandbox.node();
        let bind = format!("--cpu-bind=map_cpu:{},1000", own_cpus()[0]);
        sandbox
            .srun(["-n2", "-N1", "--exclusive", &*bind, "touch", "ran"])
            .fails()
            .says(&[&format!("{node}: task 1 cannot be bound by --cpu-bind"), "cpu 1000 is not the step's", "--exclusive"]);
        assert!(!sandbox.work().join("ran").exists(), "no task runs where one cannot");
        sandbox
            .srun(["--mem-bind=mask_mem:0x8000", "true"])
            .fails()
            .says(&[&format!("{node}: task 0 cannot be bound by --mem-bind"), "numa node 15 has no memory"]);
        sandbox.srun(["--cpu-bind=everywhere", "true"]).fails().says(&["unrecognized --cpu-bind argument \"everywhere\"", "write none, rank"]);
        let help = sandbox.srun(["--cpu-bind=help"]).args(["true"]).ok();
        assert!(help.text().contains("map_cpu:<list>"), "{help}");
    }

    fn each_task_runs_its_own_program(who) {
        let sandbox = Sandbox::start(who);
        let several = sandbox.write("several", "# a step of two kinds\n0 echo first %t '%t' \\\n  on two lines\n3,1 sh -c 'echo \"$0\" $1' place%o\n");
        let others = sandbox.write("others", "7 false\n* echo rest %t/%o\n");
        let host: &[String] = &[];
        for image in [host, &[format!("--container-image={}", images::busybox().display())]] {
            let run = |file: &std::path::Path| {
                let file = file.display().to_string();
                let output = sandbox.srun(image).args(["-N1", "-n2", "-l", "--multi-prog", &*file, "%t more"]).ok();
                let mut lines: Vec<String> = output.text().lines().map(str::to_string).collect();
                lines.sort();
                lines
            };
            assert_eq!(run(&several), ["0: first 0 %t on two lines %t more", "1: place1 %t more"]);
            assert_eq!(run(&others), ["0: rest 0/0 %t more", "1: rest 1/1 %t more"]);
        }
    }

    fn a_task_without_a_program_is_named_before_anything_runs(who) {
        let sandbox = Sandbox::start(who);
        let run = |text: &str, tasks: &[&str]| {
            let file = sandbox.write("programs", text);
            sandbox.srun(tasks).args(["--multi-prog", &*file.display().to_string()]).fails()
        };
        run("0 touch ran\n", &["-n2"]).says(&["configuration file ", " invalid, no record for task id 1: ", "begins with '*'"]);
        run("0-1 touch ran\n1 true\n", &["-n2"]).says(&["line 2 of configuration file ", " invalid: task 1 has a program already"]);
        run("0 'touch ran\n", &["-n1"]).says(&["line 1 of configuration file ", " invalid: a quote has no end"]);
        // The number of tasks is known to the node alone.
        run("1 touch ran\n", &[]).says(&[&format!("{}: --multi-prog: ", sandbox.node()), "no program is named for task 0"]);
        assert!(!sandbox.work().join("ran").exists());
        sandbox.srun(["--multi-prog", "/no/such"]).fails().says(&["could not open multi_prog config file /no/such", "no such file"]);
        // A program that is not there is its own task's failure.
        let file = sandbox.write("programs", "0 /no/such\n* echo here\n");
        let output = sandbox.srun(["-n2", "-N1", "--multi-prog", &*file.display().to_string()]).fails();
        assert!(output.text() == "here" && output.rc == 2, "{output}");
    }
}
