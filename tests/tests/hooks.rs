//! The administrator's OCI hooks: each kind where and when it belongs, failures that name themselves, and nobody else's hand.

use berth_tests::bundle::give_all;
use berth_tests::{Sandbox, Who, each_user, images, layout, leftovers, machine, sandbox};
use serde_json::{Value, json};
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

const KINDS: [&str; 6] =
    ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];

/// What a hook that runs on the node notes of itself: a line of JSON in `log`.
const NOTE: &str = r#"#!/bin/sh
state=$(cat)
bundle=$(echo "$state" | sed 's/.*"bundle":"\([^"]*\)".*/\1/')
pid=$(echo "$state" | sed -n 's/.*"pid":\([0-9]*\).*/\1/p')
here=no; [ -e "$bundle/rootfs/bin/busybox" ] && here=yes
lives=no; [ -n "$pid" ] && [ -e /proc/$pid ] && lives=yes
names=$(env | grep -v '^_=' | cut -d= -f1 | sort | tr '\n' ' ')
echo "{\"kind\":\"$1\",\"uid\":$(id -u),\"dir\":\"$(pwd)\",\"names\":\"$names\",\"root\":\"$here\",\"lives\":\"$lives\",\"state\":$state,\"config\":$(cat $bundle/config.json)}" >> LOG
"#;

struct Site {
    sandbox: Sandbox,
}

impl Site {
    fn new(who: Who) -> Site {
        let site = Site { sandbox: Sandbox::empty(who) };
        for dir in ["first", "second"] {
            let path = site.sandbox.work().join(dir);
            fs::create_dir(&path).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
            machine::give(&path, site.sandbox.who());
        }
        site.configure(&["first", "second"]);
        site
    }

    fn configure(&self, dirs: &[&str]) {
        let paths: Vec<PathBuf> = dirs.iter().map(|dir| self.sandbox.work().join(dir)).collect();
        let path = self.sandbox.state().join("berth.toml");
        fs::write(&path, format!("[container]\nhooks_dirs = {paths:?}\n")).unwrap();
        machine::give(&path, self.sandbox.who());
    }

    /// A hook file; `hook` is a shell script, or for a program in the container the words to run.
    fn add(&self, file: &str, program: Value, when: Value, stages: &[&str]) {
        let text = json!({"version": "1.0.0", "hook": program, "when": when, "stages": stages}).to_string();
        self.sandbox.write(file, text);
    }

    /// A hook of this job that runs lines of shell, with the job's number as name of its file.
    fn of_job(&self, job: usize, kind: &str, lines: &str) {
        let mark = format!("MARK={}", self.mark(job).display());
        let hook = json!({"path": "/bin/sh", "args": ["sh", "-c", lines], "env": ["PATH=/usr/bin:/bin", mark], "timeout": 3600});
        let when = json!({"annotations": {"^berth\\.job$": format!("^{job}$")}});
        self.add(&format!("first/{job}.json"), hook, when, &[kind]);
    }

    fn mark(&self, job: usize) -> PathBuf {
        self.sandbox.work().join(format!("hook-{job}-"))
    }

    /// Processes of that hook.
    fn hook_runs(&self, job: usize) -> bool {
        !leftovers::processes(&self.mark(job)).is_empty()
    }

    fn wait_hook(&self, job: usize, runs: bool) {
        let seen = sandbox::wait(30, || (self.hook_runs(job) == runs).then_some(()));
        assert!(seen.is_some(), "the hook of job {job} {}", if runs { "does not run" } else { "runs on" });
    }

    /// A batch job in a container, whose hook hangs by now.
    fn submit_hanging(&self, job: usize, options: &str) -> u64 {
        let script = format!(
            "#!/bin/sh\n#SBATCH --container-image={} {options}\nsleep 600\n",
            images::busybox().display()
        );
        let id = self.sandbox.sbatch(&[], &script);
        assert_eq!(id, job as u64, "hooks of this test go by the number of their job");
        self.wait_hook(job, true);
        id
    }

    fn script(&self, name: &str, text: &str) -> PathBuf {
        let log = self.sandbox.work().join("log").display().to_string();
        self.sandbox.write(name, text.replace("LOG", &log))
    }

    fn log(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.sandbox.work().join("log")).unwrap_or_default();
        text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{e}: {l}"))).collect()
    }
}

each_user! {
    fn each_kind_runs_in_its_order_where_it_belongs(who) {
        let mut site = Site::new(who.clone());
        let note = site.script("note", NOTE);
        for kind in KINDS.iter().filter(|kind| **kind != "startContainer") {
            let program = json!({"path": note, "args": ["note", kind], "env": ["PATH=/usr/bin:/bin"]});
            site.add(&format!("first/10-{kind}.json"), program, json!({"always": true}), &[kind]);
        }
        let inside = json!({"path": "/bin/sh", "args": ["sh", "-c", "/bin/busybox id -u > /tmp/inside; /bin/busybox env >> /tmp/inside"]});
        site.add("first/20-inside.json", inside, json!({"always": true}), &["startContainer"]);
        site.sandbox.up();
        let srun = |words: &[&str]| site.sandbox.srun_in(images::busybox(), words).env("SECRET", "of the user").env("NVIDIA_VISIBLE_DEVICES", "all").ok();
        let seen = srun(&["cat", "/tmp/inside"]).text();
        assert_eq!(seen.lines().next(), Some(who.uid.to_string().as_str()), "as the user: {seen}");
        assert!(!seen.contains("SECRET") && !seen.contains("SLURM"), "{seen}");

        let log = site.log();
        let order: Vec<&str> = log.iter().map(|l| l["kind"].as_str().unwrap()).collect();
        assert_eq!(order, ["prestart", "createRuntime", "createContainer", "poststart", "poststop"]);
        for (line, status) in log.iter().zip(["creating", "creating", "creating", "running", "stopped"]) {
            let kind = &line["kind"];
            assert_eq!((line["uid"].as_u64(), line["dir"].as_str()), (Some(u64::from(who.uid)), Some("/")), "{kind}");
            assert_eq!(line["names"], "PATH PWD ", "{kind}: nothing of anyone's environment");
            assert_eq!(line["state"]["status"], status, "{kind}");
            // Its mount namespace alone has the container's root.
            assert_eq!(line["root"], if kind == "createContainer" { "yes" } else { "no" }, "{kind}");
            if kind != "createContainer" {
                assert_eq!(line["lives"], if kind == "poststop" { "no" } else { "yes" }, "{kind}: the pid is the node's");
            }
            assert_eq!(line["state"]["annotations"]["berth.uid"], who.uid.to_string(), "{kind}");
            let config = &line["config"];
            assert_eq!(config["process"]["args"][0], "cat");
            let env: Vec<&str> = config["process"]["env"].as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect();
            assert!(env.contains(&"NVIDIA_VISIBLE_DEVICES=void") && !env.iter().any(|v| v.contains("SECRET")), "{env:?}");
        }
        // A root that is written in place lies there too.
        let dir = site.sandbox.work().join("root");
        for name in ["bin", "tmp", "proc", "sys", "dev", "etc"] {
            fs::create_dir_all(dir.join(name)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|p| fs::exists(p).unwrap()).unwrap();
        fs::copy(busybox, dir.join("bin/busybox")).unwrap();
        std::os::unix::fs::symlink("busybox", dir.join("bin/sh")).unwrap();
        give_all(&dir, &who);
        let _ = fs::remove_file(site.sandbox.work().join("log"));
        site.sandbox.srun_in(&dir, ["--container-writable", "sh", "-c", "echo > /made"]).ok();
        assert!(dir.join("made").exists());
        let roots: Vec<String> = site.log().iter().map(|l| l["root"].as_str().unwrap().to_string()).collect();
        assert_eq!(roots, ["no", "no", "yes", "no", "no"]);
        // Without a container there is nothing to hook into.
        site.sandbox.srun(["true"]).ok();
        assert_eq!(site.log().len(), 5);
        let told = site.sandbox.srun_in(images::busybox(), ["--explain", "true"]).ok().text();
        assert!(told.contains("hook: createRuntime ") && told.contains("(10-createRuntime.json)"), "{told}");
        assert!(site.sandbox.cmd("scontrol").args(["show", "config"]).ok().text().contains("container.hooks_dirs"));
    }

    fn steps_that_are_over_before_their_hooks_are_end_at_once(who) {
        let mut site = Site::new(who);
        for kind in ["poststart", "poststop"] {
            let program = json!({"path": "/bin/sh", "args": ["sh", "-c", "sleep 0.02"], "env": ["PATH=/usr/bin:/bin"]});
            site.add(&format!("first/10-{kind}.json"), program, json!({"always": true}), &[kind]);
        }
        site.sandbox.up();
        // How far a task is when its supervisor looks is chance.
        for n in 0..40 {
            assert_eq!(site.sandbox.srun_in(images::busybox(), ["echo", "here"]).limit(20).ok().text(), "here", "{n}");
        }
    }

    fn a_hook_that_fails_or_hangs_fails_the_step_and_says_so(who) {
        let mut site = Site::new(who);
        let fails = site.script("fails", "#!/bin/sh\necho first >&2; printf '\\033[31mno licence left\\n\\n' >&2; exit 7\n");
        let hangs = site.script("hangs", "#!/bin/sh\nsleep 600 & echo $! > LOG.pid; wait\n");
        // A job each: their numbers begin with 1.
        for (n, kind) in KINDS.iter().enumerate() {
            let path = if *kind == "startContainer" { json!({"path": "/bin/sh", "args": ["sh", "-c", "echo 'no licence left' >&2; exit 7"]}) } else { json!({"path": fails}) };
            site.add(&format!("first/{kind}.json"), path, json!({"annotations": {"^berth\\.job$": format!("^{}$", n + 1)}}), &[kind]);
        }
        site.add("first/hangs.json", json!({"path": hangs, "timeout": 1}), json!({"annotations": {"^berth\\.job$": "^7$"}}), &["createRuntime"]);
        site.sandbox.up();
        let run = |n: usize| site.sandbox.srun_in(images::busybox(), [format!("--container-mounts={}:/w", site.sandbox.work().display()), "sh".into(), "-c".into(), format!("echo > /w/ran-{n}; sleep 2")]);
        for (n, kind) in KINDS.iter().enumerate() {
            let failed = format!("the {kind} hook ");
            let file = format!("({kind}.json) failed: exit code 7: ");
            if *kind == "poststop" {
                // A warning: the container did what it was to do.
                run(n).ok().says(&[&failed, &file, "no licence left"]);
                continue;
            }
            run(n).fails().says(&[&failed, &file, "no licence left", "container.hooks_dirs"]);
            assert!(*kind == "poststart" || !site.sandbox.work().join(format!("ran-{n}")).exists(), "{kind}");
        }
        run(6).fails().says(&["the createRuntime hook ", "(hangs.json)", "ran longer than its timeout of 1 s"]);
        // Killed with it; whoever adopted it may still have to reap it.
        let left = fs::read_to_string(site.sandbox.work().join("log.pid")).unwrap();
        let stat = format!("/proc/{}/stat", left.trim());
        let gone = || fs::read_to_string(&stat).map_or(true, |s| s.contains(") Z ") || !s.contains("(sleep)"));
        assert!(sandbox::wait(30, || gone().then_some(())).is_some(), "what a hook started ends with it");
        site.sandbox.srun_in(images::busybox(), ["true"]).ok();
    }

    fn whoever_ends_a_step_ends_the_hooks_with_which_it_begins(who) {
        let mut site = Site::new(who);
        let hang = "sleep 600 & wait";
        site.of_job(1, "prestart", hang);
        for (kind, n) in KINDS.iter().zip(2..=6) {
            site.of_job(n, kind, hang);
        }
        site.of_job(7, "createRuntime", hang);
        let until = |name: &str| format!("until [ -e {} ]; do sleep 0.1; done", site.sandbox.work().join(name).display());
        site.of_job(8, "prestart", &until("go"));
        site.of_job(9, "poststop", &format!("{}; echo over > {}", until("clear"), site.sandbox.work().join("cleared").display()));
        site.of_job(10, "createContainer", hang);
        // None of them ends because the cluster's patience does.
        let config = site.sandbox.state().join("berth.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("kill_wait_seconds = 600\n{text}")).unwrap();
        site.sandbox.up();
        let scancel = |options: &[&str], job: u64| { site.sandbox.cmd("scancel").args(options).arg(job.to_string()).ok(); };
        // The shortest limit is a minute: it runs out beside the others.
        let limited = site.submit_hanging(1, "--time=1");
        for n in 2..=6 {
            let job = site.submit_hanging(n, "");
            scancel(&[], job);
            site.sandbox.wait_state(job, "CANCELLED", 30);
            site.wait_hook(n, false);
        }
        // Its client is gone.
        let srun = site.sandbox.srun_in(images::busybox(), ["sleep", "600"]).spawn();
        site.wait_hook(7, true);
        site.sandbox.kill_9(srun.pid());
        site.wait_hook(7, false);
        drop(srun);
        // What is meant for the tasks waits for them.
        let srun = site.sandbox.srun_in(images::busybox(), ["sleep", "600"]).spawn();
        site.wait_hook(8, true);
        scancel(&["--signal=USR1"], 8);
        site.sandbox.write("go", "");
        assert_eq!(srun.finish().rc, 128 + 10);
        // What clears up is the administrator's, and nobody else cuts it short.
        let srun = site.sandbox.srun_in(images::busybox(), ["true"]).spawn();
        site.wait_hook(9, true);
        scancel(&["--signal=KILL"], 9);
        scancel(&[], 9);
        site.sandbox.write("clear", "");
        site.sandbox.wait_file("cleared", "over", 30);
        site.wait_hook(9, false);
        drop(srun);
        site.sandbox.wait_state(limited, "TIMEOUT", 120);
        site.wait_hook(1, false);
        // Without an agent too.
        site.submit_hanging(10, "");
        site.sandbox.kill_9(site.sandbox.agent());
        assert!(site.hook_runs(10), "hooks do not depend on the agent");
        let output = site.sandbox.down();
        assert!(!site.hook_runs(10), "{output}");
    }

    fn a_hook_that_does_not_end_keeps_no_cluster_up(who) {
        let mut site = Site::new(who);
        site.of_job(1, "poststop", "sleep 600 & wait");
        let config = site.sandbox.state().join("berth.toml");
        let text = fs::read_to_string(&config).unwrap();
        fs::write(&config, format!("kill_wait_seconds = 1\n{text}")).unwrap();
        site.sandbox.up();
        let srun = site.sandbox.srun_in(images::busybox(), ["true"]).spawn();
        site.wait_hook(1, true);
        let output = site.sandbox.down();
        assert!(!site.hook_runs(1) && !output.err().contains("do not end"), "{output}");
        drop(srun);
    }

    fn conditions_choose_and_names_order(who) {
        let mut site = Site::new(who.clone());
        let say = site.script("say", "#!/bin/sh\necho \"{\\\"say\\\":\\\"$1\\\"}\" >> LOG\n");
        let add = |file: &str, word: &str, when: Value| {
            site.add(file, json!({"path": say, "args": ["say", word]}), when, &["prestart"]);
        };
        add("second/10.json", "masks", json!({"always": true}));
        add("first/10.json", "masked", json!({"always": true}));
        add("first/05.json", "early", json!({"annotations": {"^berth\\.user$": format!("^{}$", who.name), "partition": "main"}}));
        add("second/20.json", "command", json!({"commands": ["^/bin/t.*e$", "^nothing$"]}));
        add("second/30.json", "mounts", json!({"hasBindMounts": true}));
        add("second/40.json", "both", json!({"hasBindMounts": true, "commands": ["^/bin/true$"]}));
        add("second/50.json", "never", json!({"always": false}));
        add("second/60.json", "another", json!({"annotations": {"^berth\\.user$": "^nobody-else$"}}));
        site.sandbox.write("second/readme.txt", "not a hook file");
        site.sandbox.up();
        let said = |options: &[&str]| -> Vec<String> {
            let _ = fs::remove_file(site.sandbox.work().join("log"));
            site.sandbox.srun_in(images::busybox(), options).ok();
            site.log().iter().map(|l| l["say"].as_str().unwrap().to_string()).collect()
        };
        assert_eq!(said(&["sh", "-c", "true"]), ["early", "masks"]);
        assert_eq!(said(&["/bin/true"]), ["early", "masks", "command"]);
        let mount = format!("--container-mounts={}:/w", site.sandbox.work().display());
        assert_eq!(said(&[&mount, "/bin/true"]), ["early", "masks", "command", "mounts", "both"]);
        assert_eq!(said(&[&mount, "sh", "-c", "true"]), ["early", "masks", "mounts"]);
        let saved = format!("--container-image={}", images::busybox().display());
        let script = format!("#!/bin/sh\n#SBATCH {saved}\ntrue\n");
        let _ = fs::remove_file(site.sandbox.work().join("log"));
        let job = site.sandbox.sbatch(&[], &script);
        site.sandbox.wait_state(job, "COMPLETED", 30);
        assert_eq!(site.log().len(), 2, "a batch script's container too");
    }

    fn a_file_that_cannot_be_meant_is_refused_before_anything_starts(who) {
        let site = Site::new(who);
        let good = site.script("good", "#!/bin/sh\n");
        let plain = site.sandbox.write("plain", "no program");
        let file = |text: &str| { site.sandbox.write("first/x.json", text); };
        let hook = |change: &dyn Fn(&mut Value)| {
            let mut value = json!({"version": "1.0.0", "hook": {"path": good}, "when": {"always": true}, "stages": ["prestart"]});
            change(&mut value);
            file(&value.to_string());
        };
        let refused = |words: &[&str]| {
            let words: Vec<&str> = words.iter().copied().chain(["container.hooks_dirs", "x.json"]).collect();
            site.sandbox.cmd("berth").args(["config", "check"]).fails().says(&words);
        };
        file("{");
        refused(&["line 1"]);
        hook(&|v| v["version"] = json!("0.1.0"));
        refused(&["version '0.1.0'", "1.0.0"]);
        hook(&|v| v["stages"] = json!(["prestop"]));
        refused(&["no stage 'prestop'", "createContainer"]);
        hook(&|v| v["stages"] = json!([]));
        refused(&["no stage"]);
        hook(&|v| v["when"] = json!({}));
        refused(&["no condition", "always"]);
        hook(&|v| v["when"] = json!({"allways": true}));
        refused(&["allways"]);
        hook(&|v| v["when"] = json!({"commands": ["("]}));
        refused(&["'('", "regular expression"]);
        hook(&|v| v["hook"]["path"] = json!("good"));
        refused(&["'good' is not absolute"]);
        hook(&|v| v["hook"]["path"] = json!("/nonexistent/hook"));
        refused(&["/nonexistent", "No such file"]);
        hook(&|v| v["hook"]["path"] = json!(plain));
        refused(&["is no program", "chmod a+x"]);
        hook(&|v| v["hook"]["timeout"] = json!(0));
        refused(&["timeout is 0"]);
        hook(&|v| v["hook"]["env"] = json!(["NAME"]));
        refused(&["'NAME'", "NAME=value"]);
        hook(&|_| ());
        site.sandbox.cmd("berth").args(["config", "check"]).ok();
        site.configure(&["third"]);
        site.sandbox.cmd("berth").args(["up", "--detach"]).fails().says(&["container.hooks_dirs", "third", "No such file"]);
    }
}

/// Attack: somebody else can write to a directory, a file or a program, before the start or after it.
#[test]
fn what_others_could_change_is_not_run_as_root() {
    let mut site = Site::new(Who::root());
    let mine = site.script("mine", "#!/bin/sh\n");
    site.add("first/x.json", json!({"path": mine}), json!({"always": true}), &["prestart"]);
    let at = |name: &str| site.sandbox.work().join(name);
    let refused = |name: &str, words: &[&str]| {
        let shown = at(name).display().to_string();
        let words: Vec<&str> =
            words.iter().copied().chain([shown.as_str(), "container.hooks_dirs"]).collect();
        site.sandbox.cmd("berth").args(["up", "--detach"]).fails().says(&words);
    };
    for (name, right) in [("first", 0o755), ("first/x.json", 0o644), ("mine", 0o755)] {
        for wrong in [right | 0o020, right | 0o002] {
            fs::set_permissions(at(name), Permissions::from_mode(wrong)).unwrap();
            refused(name, &["can be written by others", "chmod go-w"]);
        }
        fs::set_permissions(at(name), Permissions::from_mode(right)).unwrap();
        machine::give(&at(name), &Who::user());
        refused(name, &["belongs to uid", "chown root"]);
        machine::give(&at(name), &Who::root());
    }
    site.sandbox.up();
    let run = |site: &Site| site.sandbox.srun_in(images::busybox(), ["true"]);
    run(&site).ok();
    fs::set_permissions(&mine, Permissions::from_mode(0o777)).unwrap();
    run(&site).fails().says(&["prestart hook", "can be written by others"]);
    fs::set_permissions(&mine, Permissions::from_mode(0o755)).unwrap();
    // Exchanged for a link into the user's own directory.
    let stranger = Who::stranger();
    let theirs = site.script("theirs", "#!/bin/sh\n");
    machine::give(&theirs, &stranger);
    fs::remove_file(&mine).unwrap();
    std::os::unix::fs::symlink(&theirs, &mine).unwrap();
    run(&site).fails().says(&["prestart hook", "belongs to uid"]);
}

/// Attack: an image and its user bring hooks and annotations of their own, and feed those of the administrator.
#[test]
fn neither_image_nor_user_adds_or_feeds_hooks_as_root() {
    let mut site = Site::new(Who::root());
    let note = site.script("note", NOTE);
    let program = json!({"path": note, "args": ["note", "createRuntime"], "env": ["PATH=/usr/bin:/bin"]});
    site.add("first/all.json", program.clone(), json!({"always": true}), &["createRuntime"]);
    site.add(
        "first/label.json",
        program,
        json!({"annotations": {"org.evil.run|berth.evil": ".*"}}),
        &["createRuntime"],
    );
    site.sandbox.up();
    let image = site.sandbox.work().join("evil");
    let hook = json!({"version": "1.0.0", "hook": {"path": "/evil"}, "when": {"always": true}, "stages": ["prestart", "startContainer"]}).to_string();
    let layer = layout::busybox()
        .file("evil", 0o755, b"#!/bin/busybox sh\necho evil > /tmp/evil\n")
        .directory("etc/oci")
        .directory("etc/oci/hooks.d")
        .file("etc/oci/hooks.d/evil.json", 0o644, hook.as_bytes());
    let config = json!({
        "Env": ["NVIDIA_VISIBLE_DEVICES=all", "LD_PRELOAD=/evil", "PATH=/bin"],
        "Labels": {"org.evil.run": "yes", "berth.evil": "yes", "berth.uid": "0"},
    });
    layout::write(&image, vec![layer], config);
    let index = image.join("index.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&index).unwrap()).unwrap();
    value["manifests"][0]["annotations"]["org.evil.run"] = json!("yes");
    fs::write(&index, value.to_string()).unwrap();
    give_all(&image, &Who::user());
    let user = Who::user();
    let output = site
        .sandbox
        .cmd_as(&user, "srun")
        .arg("--container-image")
        .arg(&image)
        .args([
            "--job-name=berth.evil",
            "--container-env=NVIDIA_VISIBLE_DEVICES",
            "sh",
            "-c",
            "ls /tmp/evil 2>/dev/null || echo none",
        ])
        .env("NVIDIA_VISIBLE_DEVICES", "all")
        .env("BERTH_ANNOTATION", "org.evil.run")
        .dir("/tmp")
        .ok();
    assert_eq!(output.text(), "none");
    let log = site.log();
    assert_eq!(log.len(), 1, "the other one matched: {log:?}");
    let (state, config) = (&log[0]["state"], &log[0]["config"]);
    assert_eq!(state["annotations"]["berth.uid"], user.uid.to_string());
    let names: Vec<&String> = state["annotations"].as_object().unwrap().keys().collect();
    assert!(names.iter().all(|name| name.starts_with("berth.") && *name != "berth.evil"), "{names:?}");
    let env = config["process"]["env"].to_string();
    assert!(
        env.contains("NVIDIA_VISIBLE_DEVICES=void") && !env.contains("all") && !env.contains("evil"),
        "{env}"
    );
    assert_eq!((log[0]["uid"].as_u64(), log[0]["names"].as_str()), (Some(0), Some("PATH PWD ")));
    // What hooks read lies where the user cannot enter.
    let bundle = state["bundle"].as_str().unwrap();
    assert!(bundle.starts_with(site.sandbox.state().join("spool").to_str().unwrap()), "{bundle}");
    site.sandbox.cmd_as(&user, "ls").arg(site.sandbox.state().join("spool")).dir("/tmp").fails();
}
