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
        Server::by_line(Cmd::new("Xvfb").who(who), who, options)
    }

    /// `line`: runs the server, as that user.
    fn by_line(line: Cmd, who: &Who, options: &[&str]) -> Server {
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
        let line = line.arg(&display).args(["-noreset", "-nolisten", "local", "-auth"]);
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

/// A cluster of two, an X server on the first that listens on its loopback device, too, and the cookie by the name of that host.
fn two_hosts() -> (Hosts, Server) {
    let hosts = Hosts::cluster(2, "");
    let server = Server::by_line(hosts.cmd("n1", "Xvfb"), hosts.user(), &["-listen", "tcp"]);
    // Cookies are kept by the names of machines.
    let add = hosts.cmd("n1", "xauth").arg("-f").arg(&server.authority);
    add.args(["add", &server.unix(), ".", COOKIE]).ok();
    (hosts, server)
}

#[test]
fn a_display_of_one_machine_is_carried_to_every_other_as_root() {
    let (hosts, server) = two_hosts();
    let srun = |display: &str, words: &[&str]| server.by(hosts.cmd("n1", "srun").args(words), display);
    let look = "xdpyinfo | grep -c dimensions:.*320x200; echo $DISPLAY $SLURMD_NODENAME; env | grep -c ^BERTH_X11; true";
    let told = srun(&server.unix(), &["--x11", "-w", "n1", "sh", "-c", look]).ok();
    assert_eq!(told.text(), format!("1\n{} n1\n0", server.unix()), "where it is reached it is not carried");
    let image = format!("--container-image={}", images::debian().display());
    for display in [server.unix(), format!("localhost:{}.0", server.number)] {
        let there = |options: &[&str]| {
            let words = [&["--x11", "-w", "n2"], options, &["sh", "-c", look]].concat();
            srun(&display, &words).ok().text()
        };
        assert_eq!(there(&[]), "1\nlocalhost:10.0 n2\n0");
        assert_eq!(there(&[&image, TOOLS]), "1\nlocalhost:10.0 n2\n0");
        assert_eq!(there(&[&image, TOOLS, "--container-remap-root"]), "1\nlocalhost:10.0 n2\n0");
        // What has no loopback device in common with the node has a socket.
        assert_eq!(there(&[&image, TOOLS, "--container-unshare=net"]), "1\n:10 n2\n0");
    }
    // Each node in its way, and several steps of a node beside one another.
    let told = srun(&server.unix(), &["--x11", "-N2", "-l", "sh", "-c", look]).ok().text();
    for line in [format!("0: {} n1", server.unix()), "1: localhost:10.0 n2".to_string()] {
        assert!(told.lines().any(|told| told == line), "{told}");
    }
    let both = "srun --overlap --x11 sh -c \"$LOOK\" > one & srun --overlap --x11 sh -c \"$LOOK\" > two; \
                wait; cat one two | sort | uniq -c | tr -s ' '";
    let alloc = hosts.cmd("n1", "salloc").args(["-w", "n2", "sh", "-c", both]).env("LOOK", look);
    let told = server.by(alloc, &server.unix()).dir(hosts.work()).ok().text();
    assert!(told.contains(" 2 1"), "both see the display: {told}");
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
    let line = ["-l", "--x11", "-w", "n1", ":", "--x11", "-w", "n2", "sh", "-c", look];
    let told = srun(&server.unix(), &line).ok().text();
    assert!(
        told.contains("0: 1\n") && told.contains("1: 1\n") && told.contains("1: localhost:10.0 n2"),
        "{told}"
    );
    // What it would be, without its being made.
    let told = srun(&server.unix(), &["--x11", "-w", "n2", &image, TOOLS, "--explain", "true"]).ok().text();
    assert!(told.contains("DISPLAY=localhost:10.0") && !told.contains(COOKIE), "{told}");
    server.end();
}

#[test]
fn a_carried_display_is_the_steps_alone_and_its_own_cookie_stays_as_root() {
    let (hosts, server) = two_hosts();
    let shown = "localhost:10.0";
    let script = "echo $SLURM_JOB_ID; cat > /dev/null";
    let step = hosts.cmd("n1", "srun").args(["--x11", "-w", "n2", "sh", "-c", script]).stdin_open();
    let mut step = server.by(step, &server.unix()).spawn();
    step.wait_for("\n", 60);
    let job = String::from_utf8_lossy(&step.stdout()).trim().to_string();
    // Nothing on the other machine has the display's own cookie: not what starts the step, not its file.
    let state = hosts.state("n2");
    let found = |text: &str| hosts.root("n2", "grep").args(["-rls", text]).arg(&state).run().text();
    assert_ne!(found("BERTH_X11_CARRIED"), "", "this would be found");
    assert_eq!(found(COOKIE), "");
    let file = state.join(format!("jobs/{job}/client/xauthority-0"));
    let bytes = std::fs::read(&file).unwrap();
    let own: Vec<u8> = (0..16).map(|n| n * 0x11).collect();
    assert!(!bytes.windows(16).any(|part| part == own), "the file has the display's own cookie");
    let look = |who: &Who, authority: &std::path::Path| {
        let line = hosts.on("n2", who, "xdpyinfo").env("DISPLAY", shown).env("XAUTHORITY", authority);
        line.dir("/").limit(60)
    };
    let (user, stranger, none) = (hosts.user(), Who::stranger(), std::path::Path::new("/dev/null"));
    look(user, &file).ok();
    // Another user of the node cannot read it, and without it nobody is let in.
    look(&stranger, &file).fails().says(&["unable to open display"]);
    for who in [user, &stranger] {
        look(who, none).fails().says(&["Invalid MIT-MAGIC-COOKIE-1 key", "unable to open display"]);
    }
    // Nor by the display's own cookie, which is good on its machine alone.
    let other = hosts.work().join("other");
    let add = hosts.cmd("n2", "xauth").arg("-f").arg(&other);
    add.args(["add", ":10", ".", COOKIE]).ok();
    look(user, &other).fails().says(&["Invalid MIT-MAGIC-COOKIE-1 key"]);
    // Those who connect and say nothing, or something else, keep nobody out.
    let crowd = "for i in $(seq 100); do sleep 60 <> /dev/tcp/127.0.0.1/6010 & done; \
                 exec 3<> /dev/tcp/127.0.0.1/6010; echo GET / >&3; echo there; cat; kill $(jobs -p)";
    let mut crowd =
        hosts.on("n2", &stranger, "bash").args(["-c", crowd]).dir("/").stdin_open().limit(120).spawn();
    crowd.wait_for("there", 60);
    look(user, &file).ok();
    crowd.close();
    crowd.finish();
    look(user, &file).ok();
    // With the step it is over.
    step.close();
    assert_eq!(step.finish().rc, 0);
    let over = wait(20, || (!file.exists()).then_some(()));
    assert!(over.is_some(), "the cookie outlives the step");
    let closed = || look(user, none).run().err();
    let seen = wait(20, || (!closed().contains("Invalid")).then_some(()));
    assert!(seen.is_some(), "somebody listens for a step that is over: {}", closed());
    server.end();
}

#[test]
fn a_carried_display_goes_on_when_connections_break_and_takes_as_much_as_there_is_as_root() {
    let (hosts, server) = two_hosts();
    let srun = |words: &[&str]| server.by(hosts.cmd("n1", "srun").args(words), &server.unix());
    let here =
        |words: &[&str]| server.by(hosts.cmd("n1", "xprop").args(["-root"]).args(words), &server.unix());
    // More than any window, out of one connection; and into the server in pieces that nearly fill one.
    let much = "v=$(head -c 100000 /dev/zero | tr '\\0' x); \
                for i in 0 1 2 3 4 5 6 7 8 9; do xprop -root -f B$i 8s -set B$i $v; done; xprop -root | tr -cd x | wc -c";
    let told = srun(&["--x11", "-w", "n2", "sh", "-c", much]).ok().text();
    assert!(told.trim().parse::<u32>().unwrap() >= 1_000_000, "{told}");
    // Somebody who stays connected hears what happens here, whatever breaks in between. A name has to be there to be listened for.
    here(&["-f", "WORD", "8s", "-set", "WORD", "first"]).ok();
    let mut spy =
        srun(&["--x11", "-w", "n2", "--mem=100", "stdbuf", "-oL", "xprop", "-root", "-spy", "WORD"]).spawn();
    spy.wait_for("first", 60);
    for (round, daemon) in ["agent", "controller"].into_iter().enumerate() {
        let word = format!("round{round}");
        here(&["-f", "WORD", "8s", "-set", "WORD", &word]).ok();
        spy.wait_for(&word, 60);
        hosts.kill_9("n1", daemon);
        hosts.root("n1", "berth").args(["up", "--detach"]).ok();
    }
    here(&["-f", "WORD", "8s", "-set", "WORD", "last"]).ok();
    spy.wait_for("last", 60);
    // A server that stands still holds up nothing but its own: the step says on what it has to say.
    server.xvfb.signal(nix::sys::signal::Signal::SIGSTOP);
    let alive = "timeout 5 xdpyinfo > /dev/null; echo gave up; seq 100000 | tail -n1";
    let told = srun(&["--x11", "-w", "n2", "--mem=100", "sh", "-c", alive]).run();
    server.xvfb.signal(nix::sys::signal::Signal::SIGCONT);
    assert_eq!(told.text(), "gave up\n100000");
    spy.signal(nix::sys::signal::Signal::SIGTERM);
    spy.finish();
    server.end();
}
