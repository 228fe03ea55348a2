//! Jobs without an image see the machine as a login does.

use berth_tests::{Cmd, Sandbox, Who, each_user};

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
