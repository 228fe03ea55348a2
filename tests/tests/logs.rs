//! Logs of the daemons: bounds, other programs that move them away, the foreground.

use berth_tests::{Sandbox, each_user, machine, sandbox::wait};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::path::{Path, PathBuf};

fn text(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn log(sandbox: &Sandbox, name: &str) -> PathBuf {
    sandbox.state().join("log").join(name)
}

each_user! {
    fn a_log_stays_within_its_bounds(who) {
        let mut sandbox = Sandbox::empty(who.clone());
        let config = sandbox.state().join("berth.toml");
        fs::create_dir_all(sandbox.state().join("log")).unwrap();
        fs::write(&config, "[logs]\nmax_size = \"1M\"\nkeep = 1\n").unwrap();
        let full = "an earlier line\n".repeat((1 << 20) / 16);
        for name in ["controller.log", "agent.log", "controller.log.1"] {
            fs::write(log(&sandbox, name), if name.ends_with('1') { "the oldest" } else { &full }).unwrap();
        }
        for path in [sandbox.state(), sandbox.state().join("log"), config.clone()] {
            machine::give(&path, &who);
        }
        for entry in fs::read_dir(sandbox.state().join("log")).unwrap() {
            machine::give(&entry.unwrap().path(), &who);
        }
        sandbox.up();
        // The rules come with the configuration, the bound with the next line after it.
        for (name, word) in [("controller.log", "controller serves"), ("agent.log", "started, state in")] {
            let earlier = text(&log(&sandbox, &format!("{name}.1")));
            assert!(earlier.starts_with(&full), "{name}.1 is not what {name} was");
            assert!(earlier.len() < full.len() + 4096, "the bound was late");
            let now = text(&log(&sandbox, name));
            assert!(now.contains(word) && now.len() < 1 << 20, "{name}: {now}");
            assert!(!log(&sandbox, &format!("{name}.2")).exists());
        }
        // Another rule counts at once, for the controller in the same process.
        fs::write(&config, "[logs]\nmax_size = \"2M\"\nkeep = 0\n").unwrap();
        sandbox.cmd("scontrol").arg("reconfigure").ok();
        fs::write(log(&sandbox, "controller.log"), full.repeat(2)).unwrap();
        sandbox.cmd("scontrol").arg("reconfigure").ok();
        let now = text(&log(&sandbox, "controller.log"));
        assert!(now.contains("is in force") && now.len() < 4096, "{} bytes", now.len());
        fs::write(&config, "[logs]\nmax_size = \"0\"\n").unwrap();
        sandbox.cmd("scontrol").arg("reconfigure").fails().says(&["logs.max_size", "1M"]);
    }

    fn logs_are_moved_away_and_cut_off_under_the_daemons(who) {
        let sandbox = Sandbox::start(who);
        let pids = [sandbox.controller(), sandbox.agent()];
        for (pid, name) in pids.into_iter().zip(["controller.log", "agent.log"]) {
            let path = log(&sandbox, name);
            let moved = log(&sandbox, &format!("{name}-moved"));
            // logrotate's create, then its postrotate.
            fs::rename(&path, &moved).unwrap();
            for (signal, times) in [(Signal::SIGHUP, 1), (Signal::SIGUSR2, 2)] {
                kill(Pid::from_raw(pid), signal).unwrap();
                let again = || text(&path).matches("the log was opened again").count() == times;
                assert!(wait(30, || again().then_some(())).is_some(), "{}", text(&path));
            }
            assert!(!text(&moved).contains("opened again"));
            // Its copytruncate.
            fs::OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
            kill(Pid::from_raw(pid), Signal::SIGHUP).unwrap();
            let at_the_start = || text(&path).contains("opened again") && !text(&path).starts_with('\0');
            assert!(wait(30, || at_the_start().then_some(())).is_some(), "{:?}", text(&path));
        }
        assert_eq!([sandbox.controller(), sandbox.agent()], pids);
        assert_eq!(sandbox.srun(["echo", "goes on"]).ok().text(), "goes on");
    }

    fn in_the_foreground_each_v_tells_more(who) {
        let sandbox = Sandbox::empty(who);
        let run = |options: &[&str], level: &str| {
            let running = sandbox.cmd("berth").arg("controller").args(options).env("BERTH_LOG", level).spawn();
            let socket = sandbox.state().join("run/controller.sock");
            assert!(wait(20, || socket.exists().then_some(())).is_some());
            assert!(wait(20, || sandbox.cmd("berth").arg("status").run().text().contains("pid").then_some(())).is_some());
            running.signal(Signal::SIGTERM);
            let ended = running.finish();
            assert_eq!(ended.rc, 0, "{ended}");
            ended.err()
        };
        let plain = run(&["-D"], "");
        assert!(plain.contains("controller serves") && !plain.contains("TRACE"), "{plain}");
        assert!(!sandbox.state().join("log/controller.log").exists());
        assert!(run(&["-D", "-vvv"], "").contains("TRACE"));
        let named = run(&["-vvv"], "warn");
        assert!(!named.contains("TRACE") && !named.contains("INFO"), "BERTH_LOG is not stronger: {named}");
    }

    fn an_agent_in_the_foreground_tells_as_much(who) {
        let mut sandbox = Sandbox::empty(who);
        let controller = sandbox.cmd("berth").arg("controller").spawn();
        let connected = sandbox.state().join("run/connected");
        let run = |options: &[&str], level: &str| {
            let running = sandbox.cmd("berth").arg("agent").args(options).env("BERTH_LOG", level).spawn();
            assert!(wait(30, || connected.exists().then_some(())).is_some(), "it does not come to its controller");
            running.signal(Signal::SIGTERM);
            let ended = running.finish();
            assert_eq!(ended.rc, 0, "{ended}");
            assert!(!connected.exists(), "it is gone, and said to be connected");
            ended.err()
        };
        let plain = run(&["-D"], "");
        assert!(plain.contains("started, state in") && !plain.contains("TRACE"), "{plain}");
        assert!(!sandbox.state().join("log/agent.log").exists());
        assert!(run(&["-D", "-vvv"], "").contains("TRACE"));
        let named = run(&["-vvv"], "warn");
        assert!(!named.contains("TRACE") && !named.contains("INFO"), "BERTH_LOG is not stronger: {named}");
        controller.signal(Signal::SIGTERM);
        assert_eq!(controller.finish().rc, 0);
        // What an agent makes on the node for the next one goes with the cluster.
        assert_eq!(sandbox.down().rc, 0);
    }
}
