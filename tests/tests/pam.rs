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
        for service in ["su", "sshd", "other"] {
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

/// Whoever logged in by a job is not there any more when the job may run elsewhere.
#[test]
fn a_login_ends_when_its_job_is_out_of_touch_for_too_long_as_root() {
    let mut doors = Doors::new("node_timeout_seconds = 5\nlost_after_seconds = 6\n");
    let user = doors.user.name.clone();
    let job = doors.job(&["-c1", "--mem=64M", "--no-requeue"]);
    let mut login = doors
        .login(&user, "setsid sh -c 'trap \"\" TERM HUP; echo $$; while :; do sleep 1; done' & wait")
        .spawn();
    login.wait_for("\n", 20);
    let pid: i32 = String::from_utf8_lossy(&login.stdout()).trim().parse().unwrap();
    // As long as the controller is heard, it stays.
    std::thread::sleep(std::time::Duration::from_secs(8));
    assert!(!gone(pid));
    doors.sandbox.kill_9(doors.sandbox.controller());
    assert!(wait(20, || gone(pid).then_some(())).is_some(), "the login outlives its job's time out of touch");
    login.finish();
    doors.sandbox.up();
    doors.sandbox.wait_state(job, "NODE_FAIL", 30);
}

/// Nor where there is no agent that could end it, and nobody else is let in by that job.
#[test]
fn a_login_ends_without_an_agent_when_its_job_is_out_of_touch_for_too_long_as_root() {
    let mut doors = Doors::new("node_timeout_seconds = 5\nlost_after_seconds = 6\n");
    let user = doors.user.name.clone();
    let job = doors.job(&["-c1", "--mem=64M", "--no-requeue"]);
    let mut login = doors
        .login(&user, "setsid sh -c 'trap \"\" TERM HUP; echo $$; while :; do sleep 1; done' & wait")
        .spawn();
    login.wait_for("\n", 20);
    let pid: i32 = String::from_utf8_lossy(&login.stdout()).trim().parse().unwrap();
    doors.sandbox.kill_9(doors.sandbox.agent());
    doors.sandbox.kill_9(doors.sandbox.controller());
    assert!(!gone(pid));
    assert!(wait(30, || gone(pid).then_some(())).is_some(), "the login outlives its job's time out of touch");
    login.finish();
    let told = doors.login(&user, "true").fails().text();
    assert!(told.contains("no job of"), "{told}");
    doors.sandbox.up();
    doors.sandbox.wait_state(job, "NODE_FAIL", 30);
}

/// A real sshd with lines of its own for PAM, asked by key, as on a node.
#[test]
fn ssh_admits_those_with_a_job_into_its_group_and_ends_with_it_as_root() {
    let doors = Doors::new("");
    let user = doors.user.name.clone();
    let dir = doors.sandbox.work().join("ssh");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for key in ["host", "key"] {
        Cmd::new("ssh-keygen").args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.join(key)).ok();
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let at = dir.display();
    let config = format!(
        "ListenAddress 127.0.0.1\nPort {port}\nHostKey {at}/host\nAuthorizedKeysFile {at}/key.pub\nStrictModes no\nUsePAM yes\n\
         PasswordAuthentication no\nKbdInteractiveAuthentication no\nPidFile none\n"
    );
    std::fs::write(dir.join("config"), config).unwrap();
    // In mounts of its own: the machine's lines stay as they are, and nothing is left in /run.
    let as_there = "mount --bind \"$0\" /etc/pam.d && mount -t tmpfs -o mode=755 run /run && mkdir -m 755 /run/sshd && exec /usr/sbin/sshd -D -e -f \"$1\"";
    let sshd = Cmd::new("unshare").args(["--mount", "sh", "-c", as_there]);
    let mut sshd = sshd.arg(&doors.lines).arg(dir.join("config")).limit(120).spawn();
    let listens = || std::net::TcpStream::connect(("127.0.0.1", port)).ok().map(drop);
    assert!(wait(20, listens).is_some() && sshd.alive(), "sshd does not listen");
    let ssh = |script: &str| {
        let options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
        ];
        let cmd = Cmd::new("ssh").args(["-F", "none", "-p", &port.to_string(), "-i"]).arg(dir.join("key"));
        let cmd = options.into_iter().fold(cmd, |cmd, option| cmd.args(["-o", option]));
        cmd.arg(format!("{user}@127.0.0.1")).arg(script).limit(60)
    };
    let refused = ssh("echo in").run();
    assert!(refused.rc == 255 && !refused.text().contains("in"), "{refused}");
    let job = doors.job(&["-c1", "--mem=64M"]);
    let told = ssh("cat /proc/self/cgroup; nproc").ok().text();
    assert!(told.contains(&format!("/job_{job}/extern")), "{told}");
    // With the job the session ends, whatever it ignores.
    let mut session = ssh("trap '' TERM HUP; echo $$; while :; do sleep 1; done").spawn();
    session.wait_for("\n", 20);
    let pid: i32 = String::from_utf8_lossy(&session.stdout()).trim().parse().unwrap();
    doors.sandbox.cmd("scancel").arg(job.to_string()).ok();
    assert!(wait(20, || gone(pid).then_some(())).is_some(), "the session outlives its job");
    assert_eq!(session.finish().rc, 255);
    doors.sandbox.wait_state(job, "CANCELLED", 30);
    let again = ssh("echo in").run();
    assert!(again.rc == 255 && !again.text().contains("in"), "{again}");
    sshd.signal(nix::sys::signal::Signal::SIGTERM);
    let log = sshd.finish();
    assert!(log.err().contains("denied"), "{log}");
}
