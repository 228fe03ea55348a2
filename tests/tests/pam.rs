//! Logins to a node by PAM: who is let in, where they are, and when they end. With su, whose lines in /etc/pam.d are others in a mount
//! namespace of its own.

use berth_tests::sandbox::{gone, wait};
use berth_tests::{Cmd, Sandbox, Who, machine};
use std::path::PathBuf;

const CONFIG: &str =
    "[[node]]\nname = \"ALL\"\n[[node.gres]]\nname = \"thing\"\nfiles = [\"/dev/full\", \"/dev/fuse\"]\n";

struct Doors {
    sandbox: Sandbox,
    user: Who,
    lines: PathBuf,
}

impl Doors {
    fn new(config: &str) -> Doors {
        let sandbox = Sandbox::with_config(Who::root(), config);
        let lines = sandbox.work().join("pam.d");
        std::fs::create_dir(&lines).unwrap();
        let doors = Doors { sandbox, user: Who::user(), lines };
        doors.lines("");
        doors
    }

    /// su's lines, with these options and what else a session does.
    fn lines(&self, options: &str) {
        let helper = format!(
            "required pam_exec.so quiet stdout {} --state {} pam {options}",
            machine::programs().join("berth").display(),
            self.sandbox.state().display()
        );
        let lines = format!("auth sufficient pam_rootok.so\naccount {helper}\nsession {helper}\n");
        for service in ["su", "other"] {
            std::fs::write(self.lines.join(service), &lines).unwrap();
        }
    }

    /// Logs a user in and runs a script.
    fn login(&self, who: &str, script: &str) -> Cmd {
        let as_there = "mount --bind \"$0\" /etc/pam.d && exec su \"$@\"";
        let cmd = Cmd::new("unshare").args(["--mount", "sh", "-c", as_there]);
        cmd.arg(&self.lines).args([who, "-s", "/bin/sh", "-c", script])
    }

    /// A job of the user's that runs until it is ended.
    fn job(&self, options: &[&str]) -> u64 {
        let cmd =
            self.sandbox.cmd_as(&self.user, "sbatch").args(["--parsable", "-o", "/dev/null", "-D", "/"]);
        let text = cmd.args(options).args(["--wrap", "exec sleep 300"]).ok().text();
        let job = text.trim().parse().unwrap();
        self.sandbox.wait_state(job, "RUNNING", 30);
        job
    }
}

#[test]
fn only_those_whose_jobs_run_on_a_node_log_in_as_root() {
    let doors = Doors::new("");
    let user = doors.user.name.clone();
    let refused = doors.login(&user, "echo in").fails();
    let node = doors.sandbox.node();
    assert!(refused.text().contains(&format!("no job of {user} runs on {node}")), "{refused}");
    assert!(refused.text().contains("salloc") && !refused.text().contains("\nin"), "{refused}");
    // A job that waits is none that runs.
    let waits =
        doors.sandbox.cmd_as(&doors.user, "sbatch").args(["-D", "/", "--hold", "--wrap", "true"]).ok();
    assert!(waits.text().contains("Submitted"));
    doors.login(&user, "echo in").fails();
    // Somebody else's job lets nobody in.
    let of_root = doors.sandbox.sbatch(&["-c1", "--mem=64M"], "#!/bin/sh\nexec sleep 300\n");
    doors.sandbox.wait_state(of_root, "RUNNING", 30);
    doors.login(&user, "echo in").fails();
    doors.sandbox.cmd("scancel").arg(of_root.to_string()).ok();
    assert_eq!(doors.login("root", "echo in").ok().text(), "in");
    doors.lines(&format!("--exempt nobody,{user}"));
    assert_eq!(doors.login(&user, "echo in").ok().text(), "in");
    doors.lines("");
    let job = doors.job(&["-c1", "--mem=64M"]);
    assert_eq!(doors.login(&user, "echo in").ok().text(), "in");
    // While there is no agent, too.
    doors.sandbox.kill_9(doors.sandbox.agent());
    assert_eq!(doors.login(&user, "echo in").ok().text(), "in");
    doors.sandbox.cmd("berth").args(["up", "--detach"]).ok();
    doors.sandbox.cmd("scancel").arg(job.to_string()).ok();
    doors.sandbox.wait_state(job, "CANCELLED", 30);
    let out = wait(20, || (doors.login(&user, "true").run().rc != 0).then_some(()));
    assert!(out.is_some(), "the job is over, and its user still gets in");
    // Records are root's.
    doors
        .sandbox
        .cmd_as(&doors.user, "berth")
        .arg("pam")
        .env("PAM_USER", &user)
        .env("PAM_TYPE", "account")
        .fails()
        .says(&["root's"]);
    doors.sandbox.cmd("berth").arg("pam").fails().says(&["PAM_USER", "pam_exec.so"]);
    doors
        .sandbox
        .cmd("berth")
        .arg("pam")
        .env("PAM_USER", &user)
        .env("PAM_TYPE", "auth")
        .fails()
        .says(&["identity"]);
}

#[test]
fn administrators_log_in_without_a_job_as_root() {
    let user = Who::user().name;
    let doors = Doors::new(&format!("administrators = [\"{user}\"]\n"));
    assert_eq!(doors.login(&user, "echo in").ok().text(), "in");
}

#[test]
fn a_login_has_what_its_job_has_and_ends_with_it_as_root() {
    let doors = Doors::new(CONFIG);
    let user = doors.user.name.clone();
    let first = doors.job(&["-c1", "--mem=64M"]);
    let last = doors.job(&["-c1", "--mem=80M", "--gres=thing:1"]);
    // The job that came last; its cores, and its devices alone.
    let look = "cat /proc/self/cgroup; nproc; for d in /dev/full /dev/fuse; do (exec 3< $d) 2>/dev/null && echo opens $d; done; true";
    let told = doors.login(&user, look).ok().text();
    assert!(
        told.contains(&format!("/job_{last}/extern")) && !told.contains(&format!("/job_{first}/")),
        "{told}"
    );
    assert!(told.lines().any(|l| l == "1"), "more cores than the job's: {told}");
    assert_eq!(
        told.matches("opens /dev/full").count() + told.matches("opens /dev/fuse").count(),
        1,
        "{told}"
    );
    // Its memory: what takes more is ended, and no other.
    let hungry = doors.login(&user, "head -c 200M /dev/zero | tail | wc -c").run();
    assert_ne!(hungry.text(), "209715200", "{hungry}");
    doors.sandbox.wait_state(last, "RUNNING", 1);
    // The one that is chosen, and nobody else's by its number.
    let other = doors.sandbox.sbatch(&["-c1", "--mem=64M"], "#!/bin/sh\nexec sleep 300\n");
    for (chosen, expected) in [(first, first), (other, last)] {
        let env = doors.lines.join("environment");
        std::fs::write(&env, format!("SLURM_JOB_ID={chosen}\n")).unwrap();
        let lines = std::fs::read_to_string(doors.lines.join("su")).unwrap();
        let with = format!("session required pam_env.so envfile={}\n{lines}", env.display());
        std::fs::write(doors.lines.join("su"), with).unwrap();
        let told = doors.login(&user, "cat /proc/self/cgroup").ok().text();
        assert!(told.contains(&format!("/job_{expected}/extern")), "chosen {chosen}: {told}");
        doors.lines("");
    }
    // What it started is gone when the job is, however it hides.
    let script = "setsid sh -c 'trap \"\" TERM HUP; echo $$; while :; do sleep 1; done' & wait";
    let mut login = doors.login(&user, script).spawn();
    login.wait_for("\n", 20);
    let pid: i32 = String::from_utf8_lossy(&login.stdout()).trim().parse().unwrap();
    doors.sandbox.cmd("scancel").arg(last.to_string()).ok();
    assert!(wait(20, || gone(pid).then_some(())).is_some(), "the login outlives its job");
    login.finish();
    doors.sandbox.wait_state(last, "CANCELLED", 30);
    doors.sandbox.wait_state(first, "RUNNING", 1);
}
