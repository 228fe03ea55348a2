//! Jobs without an image see the machine as a login does.

use berth_tests::{Cmd, Hosts, Sandbox, Who, each_user, processes, sandbox::wait};

each_user! {
    fn a_host_job_is_like_a_login(who) {
        let sandbox = Sandbox::start(who.clone());
        sandbox.write("given", "x");
        let text = sandbox.srun(["sh", "-c", "pwd; id -u; id -g; ls given; echo $HOME"]).ok().text();
        let home = who.home.display();
        assert_eq!(text, format!("{}\n{}\n{}\ngiven\n{home}", sandbox.work().display(), who.uid, who.gid));
        let groups = |text: String| {
            let mut list: Vec<String> = text.split_whitespace().map(str::to_string).collect();
            list.sort();
            list
        };
        let outside = Cmd::new("id").arg("-G").who(&who).ok().text();
        assert_eq!(groups(sandbox.srun(["id", "-G"]).ok().text()), groups(outside));
        let text = sandbox.srun(["--container-image=host:", "cat", "/etc/hostname"]).run();
        assert_eq!(text.rc, 0, "{text}");
    }
}

#[test]
fn sudo_and_newgrp_work_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let group = "berthtestgroup";
    // The group may be there from an earlier run.
    Cmd::new("groupadd").args(["-f", group]).ok();
    Cmd::new("usermod").args(["-aG", group, &user.name]).ok();
    let rule = format!("/etc/sudoers.d/{}", user.name);
    std::fs::write(&rule, format!("{} ALL=(root) NOPASSWD: /usr/bin/id\n", user.name)).unwrap();
    std::fs::set_permissions(&rule, std::os::unix::fs::PermissionsExt::from_mode(0o440)).unwrap();
    let srun = |words: &[&str]| sandbox.cmd_as(&user, "srun").dir("/").args(words);
    let sudo = srun(&["sudo", "-n", "/usr/bin/id", "-u"]).run();
    let newgrp = srun(&["sh", "-c", &format!("echo id -gn | newgrp {group}")]).run();
    std::fs::remove_file(&rule).unwrap();
    Cmd::new("gpasswd").args(["-d", &user.name, group]).ok();
    Cmd::new("groupdel").arg(group).ok();
    assert_eq!((sudo.rc, sudo.text().as_str()), (0, "0"), "{sudo}");
    assert_eq!((newgrp.rc, newgrp.text().as_str()), (0, group), "{newgrp}");
}

#[test]
fn ping_and_nothing_filtered_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let status = sandbox.cmd_as(&user, "srun").dir("/").args(["cat", "/proc/self/status"]).ok().text();
    let field = |name: &str| {
        status.lines().find(|l| l.starts_with(name)).unwrap().split_whitespace().nth(1).unwrap().to_string()
    };
    assert_eq!(field("NoNewPrivs:"), "0");
    assert_eq!(field("Seccomp:"), "0");
    assert_eq!(field("CapEff:"), "0000000000000000");
    let namespace =
        sandbox.cmd_as(&user, "srun").dir("/").args(["readlink", "/proc/self/ns/user"]).ok().text();
    assert_eq!(namespace, std::fs::read_link("/proc/self/ns/user").unwrap().display().to_string());
}

/// On the controller's machine a script reaches the agent by everybody's socket, and is known by what the kernel says of it.
#[test]
fn nobody_waits_for_a_killed_srun_of_a_script_that_is_over_as_root() {
    let hosts = Hosts::cluster(2, "");
    let script = "#!/bin/sh\nsrun -N1 -n1 -w n2 sh -c 'echo begun; exec sleep 600' > said &\n\
                  until grep -q begun said; do sleep 0.1; done\nkill -9 $!\n: > killed\n\
                  until [ -e go ]; do sleep 0.1; done\n";
    std::fs::write(hosts.work().join("job.sh"), script).unwrap();
    let options = ["--parsable", "-N2", "-w", "n[1-2]", "-o", "told", "job.sh"];
    let job = hosts.cmd("n1", "sbatch").args(options).ok().text().trim().to_string();
    let told = || std::fs::read_to_string(hosts.work().join("told")).unwrap_or_default();
    let killed = wait(60, || hosts.work().join("killed").exists().then_some(()));
    assert!(killed.is_some(), "the step does not begin: {}", told());
    // While the script runs it may be a connection that broke.
    let left = || processes::supervisors(&hosts.state("n2"), &format!("{job}.0.0"));
    assert!(!left().is_empty(), "the step was ended before its time: {}", told());
    std::fs::write(hosts.work().join("go"), "").unwrap();
    let over = wait(30, || left().is_empty().then_some(()));
    assert!(over.is_some(), "n2 waits for an srun that is gone: {:?}; {}", left(), told());
    hosts.wait_node("n2", "idle", 30);
}
