//! `--x11`: a step reaches the display of whoever submits it, with a cookie that nobody else sees.

use berth_tests::command::Running;
use berth_tests::sandbox::wait;
use berth_tests::{Cmd, Hosts, Sandbox, Who, each_user, images, machine};
use std::path::PathBuf;

const COOKIE: &str = "00112233445566778899aabbccddeeff";
/// The tools are the node's: its `/usr` is mounted over the image's.
const TOOLS: &str = "--container-mounts=/usr:/usr:ro";

/// A real X server that lets nobody in without the cookie, and the file by which its user gets in.
struct Server {
    xvfb: Running,
    number: String,
    authority: PathBuf,
    directory: tempfile::TempDir,
}

impl Server {
    /// `options`: such as `-listen tcp`.
    fn start(who: &Who, options: &[&str]) -> Server {
        let directory = tempfile::Builder::new().prefix("bt-x11-").tempdir_in("/tmp").unwrap();
        machine::give(directory.path(), who);
        let file = |name: &str| directory.path().join(name);
        let add = |name: &str, display: &str| {
            let line = Cmd::new("xauth").who(who).arg("-f").arg(file(name));
            line.args(["add", display, ".", COOKIE]).env("HOME", directory.path()).ok();
        };
        // Two servers that look for a free number may find the same one; each test is a process of its own.
        let number = (2000 + std::process::id() % 50_000).to_string();
        let display = format!(":{number}");
        add("server", &display);
        let line = Cmd::new("Xvfb").who(who).arg(&display).args(["-noreset", "-nolisten", "local", "-auth"]);
        let mut xvfb =
            line.arg(file("server")).args(options).args(["-screen", "0", "320x200x24"]).limit(200).spawn();
        let socket = format!("/tmp/.X11-unix/X{number}");
        let listens = || std::os::unix::net::UnixStream::connect(&socket).ok();
        assert!(wait(60, listens).is_some() && xvfb.alive(), "no X server listens at {socket}");
        add("user", &display);
        Server { xvfb, number, authority: file("user"), directory }
    }

    fn unix(&self) -> String {
        format!(":{}", self.number)
    }

    fn by(&self, line: Cmd, display: &str) -> Cmd {
        line.env("DISPLAY", display).env("XAUTHORITY", &self.authority).dir("/").limit(120)
    }

    fn end(self) {
        self.xvfb.signal(nix::sys::signal::Signal::SIGTERM);
        self.xvfb.finish();
        drop(self.directory);
    }
}

each_user! {
    fn a_step_reaches_the_display_and_nobody_without_its_cookie(who) {
        let sandbox = Sandbox::start(who);
        let user = Who::user();
        let server = Server::start(&user, &["-nolisten", "tcp"]);
        let image = format!("--container-image={}", images::debian().display());
        let srun = |words: &[&str]| server.by(sandbox.cmd_as(&user, "srun").args(words), &server.unix());
        let look = "xdpyinfo | grep -E 'dimensions:|^name of display'; echo $DISPLAY; stat -c '%a %u' $XAUTHORITY; env | grep -c COOKIE";
        let shown = |text: String| {
            assert!(text.contains("320x200") && text.contains(&format!("\n{}\n600 {}\n0", server.unix(), user.uid)), "{text}");
        };
        // On the node's own filesystem and in containers: as oneself, as root inside, without a network.
        shown(srun(&["--x11", "sh", "-c", look]).run().text());
        for options in [&[][..], &["--container-remap-root"], &["--container-readonly"], &["--container-unshare=net"]] {
            let words = [&["--x11", &image, TOOLS], options, &["sh", "-c", look]].concat();
            let text = srun(&words).run().text();
            let own = if options.contains(&"--container-remap-root") { text.replace("600 0\n", &format!("600 {}\n", user.uid)) } else { text };
            shown(own);
        }
        for which in ["all", "first", "last", "batch"] {
            srun(&[&format!("--x11={which}"), &image, TOOLS, "xdpyinfo"]).ok();
        }
        // Without the flag a container has no cookie, and the server lets nobody in.
        let refused = srun(&[&image, TOOLS, "--container-mounts=/tmp/.X11-unix:/tmp/.X11-unix", "xdpyinfo"]).fails();
        refused.says(&["unable to open display"]);
        // It is the step's: private to the user, in no record, and gone with the step.
        let mut held = srun(&["--x11", &image, TOOLS, "sh", "-c", "echo $XAUTHORITY $SLURM_JOB_ID; cat"]).stdin_open().spawn();
        let said = wait(60, || {
            let text = String::from_utf8_lossy(&held.stdout()).into_owned();
            text.strip_suffix('\n').map(str::to_string)
        });
        let said = said.expect("the step runs");
        let (path, job) = said.split_once(' ').unwrap();
        assert_eq!(path, "/run/berth/xauthority-0");
        let file = sandbox.state().join(format!("jobs/{job}/client/xauthority-0"));
        let by = |who: &Who| Cmd::new("cat").arg(&file).who(who).run();
        assert_eq!(by(&user).rc, 0);
        // Only root's tests have somebody else at hand.
        let strangers: Vec<Who> = machine::is_root().then(Who::stranger).into_iter().collect();
        assert!(strangers.iter().all(|who| by(who).rc != 0), "another user reads the cookie");
        // A command that enters the step has the display, too, and a step beside it has not.
        let enter = |words: &[&str]| sandbox.cmd_as(&user, "berth").dir("/").args(words);
        enter(&["exec", job, "xdpyinfo"]).ok();
        for words in [
            &["scontrol", "-d", "--json", "show", "step"][..],
            &["scontrol", "--json", "show", "job"],
            &["sacct", "--json"],
            &["squeue", "--json"],
        ] {
            for who in [&user].into_iter().chain(&strangers) {
                let text = sandbox.cmd_as(who, words[0]).dir("/").args(&words[1..]).run().text();
                assert!(!text.contains(COOKIE), "{words:?}");
            }
        }
        let explained = srun(&["--x11", &image, TOOLS, "--explain", "true"]).ok().text();
        assert!(explained.contains(&format!("DISPLAY={}", server.unix())) && !explained.contains(COOKIE), "{explained}");
        let environment = |pid: &str| std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let tasks = Cmd::new("pgrep").args(["-u", &user.uid.to_string()]).run().text();
        for pid in tasks.lines() {
            let text = String::from_utf8_lossy(&environment(pid)).into_owned();
            assert!(!text.contains(COOKIE), "process {pid} has the cookie in its environment");
        }
        held.close();
        held.finish();
        assert!(wait(20, || (!file.exists()).then_some(())).is_some(), "the cookie outlives the step");
        // Steps of an allocation that was asked for with it.
        let steps = format!("srun {image} {TOOLS} xdpyinfo > /dev/null && echo reached; srun sh -c 'echo $SLURM_X11-'");
        let told = server.by(sandbox.cmd_as(&user, "salloc").args(["--x11", "sh", "-c", &steps]), &server.unix()).ok();
        assert_eq!(told.text(), "reached\n-");
        // A container that runs without the display cannot show it to one that joins.
        let join = format!(
            "srun --overlap {image} {TOOLS} --container-name=box sh -c 'touch /tmp/up; sleep 600' & a=$!; \
             while ! srun --overlap {image} ls /tmp/up 2>/dev/null; do sleep 0.1; done; \
             srun --overlap --x11 --container-name=box true; kill $a; wait");
        let told = server.by(sandbox.cmd_as(&user, "salloc").args(["sh", "-c", &join]), &server.unix()).run();
        assert!(told.err().contains("--x11 cannot be fulfilled"), "{told}");
        server.end();
    }

    fn a_display_that_is_reached_by_tcp(who) {
        let sandbox = Sandbox::start(who);
        let user = Who::user();
        let server = Server::start(&user, &["-listen", "tcp"]);
        let display = format!("localhost:{}.0", server.number);
        let image = format!("--container-image={}", images::debian().display());
        let srun = |words: &[&str]| server.by(sandbox.cmd_as(&user, "srun").args(words), &display);
        let look = "xdpyinfo | grep -c dimensions:.*320x200; echo $DISPLAY";
        for options in [&[][..], &[&image, TOOLS]] {
            let words = [&["--x11"], options, &["sh", "-c", look]].concat();
            assert_eq!(srun(&words).ok().text(), format!("1\n{display}"));
        }
        srun(&[&image, TOOLS, "xdpyinfo"]).fails().says(&["unable to open display"]);
        srun(&["--x11", &image, "--container-unshare=net", "true"]).fails()
            .says(&["--x11", &display, "--container-unshare=net", "leave one"]);
        server.end();
    }

    fn what_is_missing_is_told_at_submit(who) {
        let sandbox = Sandbox::start(who);
        let user = Who::user();
        let server = Server::start(&user, &["-nolisten", "tcp"]);
        for command in ["srun", "salloc"] {
            let run = |words: &[&str]| server.by(sandbox.cmd_as(&user, command).args(words).arg("true"), &server.unix());
            run(&["--x11"]).env("DISPLAY", "").fails().says(&["No DISPLAY variable set, cannot setup x11 forwarding", "ssh -X"]);
            run(&["--x11"]).env("DISPLAY", "nonsense").fails().says(&["nonsense", "[host]:number"]);
            run(&["--x11"]).env("DISPLAY", ":59999").fails().says(&["no X server listens", "/tmp/.X11-unix/X59999"]);
            run(&["--x11"]).env("XAUTHORITY", "/dev/null").fails().says(&["Could not retrieve magic cookie", "xauth list"]);
            let bare = format!("PATH=/nowhere exec {} --x11 true", sandbox.work().parent().unwrap().join("bin").join(command).display());
            let line = sandbox.cmd_as(&user, "sh").args(["-c", &bare]);
            server.by(line, &server.unix()).fails().says(&["xauth is not here", "install it"]);
            run(&["--x11=some"]).fails().says(&["--x11", "some", "all, first, last"]);
        }
        // Nothing was submitted.
        assert_eq!(sandbox.cmd("squeue").args(["-h", "-t", "all"]).ok().text(), "");
        sandbox.cmd("sbatch").args(["--x11", "--wrap", "true"]).fails().says(&["x11"]);
        server.end();
    }
}

#[test]
fn a_display_of_one_machine_is_refused_on_every_other_as_root() {
    let hosts = Hosts::cluster(2, "");
    let server = Server::start(hosts.user(), &["-nolisten", "tcp"]);
    // Cookies are kept by the names of machines.
    let add = hosts.cmd("n1", "xauth").arg("-f").arg(&server.authority);
    add.args(["add", &server.unix(), ".", COOKIE]).ok();
    let srun = |display: &str, words: &[&str]| server.by(hosts.cmd("n1", "srun").args(words), display);
    let look = "xdpyinfo | grep -c dimensions:.*320x200; hostname";
    let told = srun(&server.unix(), &["--x11", "-w", "n1", "sh", "-c", look]).ok();
    assert_eq!(told.text(), "1\nn1");
    // Hosts of one machine have one `/tmp`: there is a socket of that name, and it is somebody else's for all that is known.
    for display in [server.unix(), format!("localhost:{}.0", server.number)] {
        let told = srun(&display, &["--x11", "-w", "n2", "true"]).fails();
        told.says(&[
            "n2: --x11: the display",
            &display,
            "that of n1",
            "n2 does not reach it",
            "-w n1",
            "ssh -X",
        ]);
    }
    srun(&server.unix(), &["--x11", "-N2", "true"]).fails().says(&["n2: --x11: the display"]);
    // The others of its job do without.
    let told = srun(&server.unix(), &["--x11=first", "-N2", "-l", "sh", "-c", "echo $XAUTHORITY"]).ok();
    let own: Vec<String> =
        told.text().lines().filter(|line| line.contains("/xauthority-")).map(str::to_string).collect();
    assert!(own.len() == 1 && own[0].starts_with("0: "), "{told}");
    // Over components each says for itself.
    let line = ["-l", "--x11", "-w", "n1", ":", "-w", "n2", "sh", "-c", "echo $XAUTHORITY"];
    let told = srun(&server.unix(), &line).ok();
    let own = told.text().lines().filter(|line| line.contains("/xauthority-")).count();
    assert!(own == 1 && told.text().contains("0: ") && told.text().contains("1: "), "{told}");
    let line = ["--x11", "-w", "n1", "true", ":", "--x11", "-w", "n2", "true"];
    srun(&server.unix(), &line).fails().says(&["n2: --x11: the display", "that of n1"]);
    server.end();
}
