//! Steps and jobs in containers: what the image says counts, what the options say counts more.

use berth_tests::{Sandbox, each_user, images};

each_user! {
    fn the_command_runs_in_the_image(who) {
        let sandbox = Sandbox::start(who.clone());
        let text = sandbox.srun_in(images::debian(), ["cat", "/etc/os-release"]).ok().text();
        assert!(text.contains("ID=debian"), "{text}");
        let script = "echo $(id -u):$(id -g):$(id -un):$HOME; ls /; cat /proc/1/comm; ps 2>/dev/null | wc -l";
        let text = sandbox.srun_in(images::busybox(), ["sh", "-c", script]).ok().text();
        assert!(text.starts_with(&format!("{}:{}:{}:", who.uid, who.gid, who.name)), "{text}");
        assert!(!text.contains("boot\n") && text.contains("proc\n"), "the root is not the host's: {text}");
    }

    fn env_workdir_entrypoint_and_user_of_the_image(who) {
        let sandbox = Sandbox::start(who);
        let image = images::configured();
        let text = sandbox.srun_in(&image, ["sh", "-c", "echo $FROM_IMAGE; pwd; echo $PATH"]).ok().text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "yes", "ENV: {text}");
        assert_eq!(lines[1], "/srv/here", "WORKDIR: {text}");
        assert!(lines[2].starts_with("/bin:/usr/bin"), "PATH is the image's: {text}");
        let text = sandbox.srun_in(&image, ["--container-entrypoint", "echo", "hello"]).ok().text();
        assert_eq!(text, "entrypoint: echo hello\nhello");
        let text = sandbox.srun_in(&image, ["--no-container-entrypoint", "echo", "hello"]).ok().text();
        assert_eq!(text, "hello");
        let text = sandbox.srun_in(&image, ["--container-workdir=/bin", "pwd"]).ok().text();
        assert_eq!(text, "/bin");
        let text = sandbox.cmd("berth").args(["image", "inspect"]).arg(&image).ok().text();
        for word in ["/srv/here", "FROM_IMAGE", "nobody", "/bin/entry"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
    }

    fn layers_lie_over_each_other(who) {
        let sandbox = Sandbox::start(who);
        let script = "cd /data && find . | sort | grep -v nnn && cat kept replaced emptied/c && stat -c %h hard1 && ls | grep -c nnnnn";
        let text = sandbox.srun_in(images::layers(), ["sh", "-c", script]).ok().text();
        let expected = "./emptied\n./emptied/c\n./hard1\n./hard2\n./kept\n./link\n./opaque\n./opaque/new\n./replaced\n\
                        kept\na file now\nchanged\n2\n1";
        assert_eq!(text.trim_start_matches(".\n"), expected);
    }

    fn mounts_home_and_environment(who) {
        let sandbox = Sandbox::start(who.clone());
        sandbox.write("given", "from the host\n");
        let work = sandbox.work();
        let image = images::busybox();
        let mount = format!("--container-mounts={}:/mnt/in:ro", work.display());
        let text = sandbox.srun_in(&image, [&mount, "sh", "-c", "cat /mnt/in/given; touch /mnt/in/x 2>/dev/null || echo read-only"]).ok().text();
        assert_eq!(text, "from the host\nread-only");
        let mount = format!("--container-mounts={}:/mnt/rw", work.display());
        sandbox.srun_in(&image, [&mount, "sh", "-c", "echo back > /mnt/rw/made"]).ok();
        assert_eq!(sandbox.read("made"), "back\n");
        use std::os::unix::fs::MetadataExt;
        assert_eq!(std::fs::metadata(work.join("made")).unwrap().uid(), who.uid);
        let home = who.home.display().to_string();
        let look = format!("ls -d {home} 2>/dev/null || echo none");
        let text = sandbox.srun_in(&image, ["--no-container-mount-home", "sh", "-c", &format!("ls {home}/.bashrc 2>/dev/null || echo none")]).ok().text();
        assert_eq!(text, "none");
        let text = sandbox.srun_in(&image, ["--container-mount-home", "sh", "-c", &look]).ok().text();
        assert_eq!(text, home);
        let text = sandbox.srun_in(images::configured(), ["--container-env=FROM_IMAGE", "sh", "-c", "echo $FROM_IMAGE"]).env("FROM_IMAGE", "host").ok().text();
        assert_eq!(text, "host");
        let text = sandbox.srun_in(images::configured(), ["sh", "-c", "echo $FROM_IMAGE"]).env("FROM_IMAGE", "host").ok().text();
        assert_eq!(text, "yes", "the image's value wins over the login environment");
    }

    fn writable_readonly_and_remap_root(who) {
        let sandbox = Sandbox::start(who);
        let image = images::busybox();
        let try_write = "touch /root-file 2>/dev/null && echo writable || echo read-only";
        assert_eq!(sandbox.srun_in(&image, ["--container-writable", "--container-remap-root", "sh", "-c", try_write]).ok().text(), "writable");
        assert_eq!(sandbox.srun_in(&image, ["--container-readonly", "--container-remap-root", "sh", "-c", try_write]).ok().text(), "read-only");
        assert_eq!(sandbox.srun_in(&image, ["--container-remap-root", "id", "-u"]).ok().text(), "0");
        let text = sandbox.srun_in(&image, ["ls", "/root-file"]).run();
        assert_ne!(text.rc, 0, "what one step wrote is not in the next: {text}");
        sandbox.srun_in(&image, ["--container-writable", "--container-readonly", "true"]).fails().says(&["container-writable", "container-readonly"]);
    }

    fn srun_inside_a_containerised_script_makes_steps_in_the_image(who) {
        let sandbox = Sandbox::start(who);
        let image = format!("--container-image={}", images::debian().display());
        let script = "#!/bin/bash\nset -e\nsrun -n2 --label bash -c '. /etc/os-release; echo $ID $SLURM_STEP_ID'\nsqueue -h -j $SLURM_JOB_ID -o %T\n";
        let job = sandbox.sbatch(&[&image, "-n2", "--output=out", "--wait"], script);
        let out = sandbox.read("out");
        assert!(out.contains("0: debian 0\n") && out.contains("1: debian 0\n") && out.contains("RUNNING"), "{out}");
        assert_eq!(sandbox.job_state(job), "COMPLETED");
    }

    fn the_kernel_files_a_program_needs_are_there(who) {
        let sandbox = Sandbox::start(who);
        let script = "set -e; test -c /dev/null; test -c /dev/urandom; test -d /dev/shm; echo x > /dev/shm/f; echo x > /tmp/f; \
                      test -r /proc/self/status; test -d /sys/devices; ls -l /proc/self/fd/0 >/dev/null; test -e /dev/ptmx; \
                      grep -q 'NoNewPrivs:.1' /proc/self/status; grep -q 'Seccomp:.2' /proc/self/status; \
                      grep -q 'CapInh:.0000000000000000' /proc/self/status; test -s /etc/resolv.conf; echo fine";
        assert_eq!(sandbox.srun_in(images::debian(), ["sh", "-c", script]).ok().text(), "fine");
    }

    fn several_tasks_share_one_container(who) {
        let sandbox = Sandbox::start(who);
        let script = "[ $SLURM_PROCID = 0 ] && { sleep 0.3; echo met > /tmp/meeting; exit; }; \
                      for i in $(seq 100); do [ -e /tmp/meeting ] && { cat /tmp/meeting; exit; }; sleep 0.1; done; exit 1";
        let text = sandbox.srun_in(images::busybox(), ["-n2", "sh", "-c", script]).ok().text();
        assert_eq!(text, "met");
    }

    fn berth_run_needs_no_cluster(who) {
        let sandbox = Sandbox::empty(who);
        let image = images::busybox();
        let run = |words: &[&str]| sandbox.cmd("berth").arg("run").arg(&image).args(words);
        assert_eq!(run(&["echo", "no scheduler"]).ok().text(), "no scheduler");
        assert_eq!(run(&["sh", "-c", "exit 9"]).run().rc, 9);
        assert_eq!(run(&["cat"]).stdin("through\n").ok().text(), "through");
        run(&["no-such-command"]).fails().says(&["no-such-command"]);
    }
}
