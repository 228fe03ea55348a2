//! `--explain`: one table of cases says what the documentation promises of environment, HOME, working directory and
//! mounts; it holds for the explanation and for what a container then really sees.

use berth_tests::{Sandbox, Who, each_user, images};
use serde_json::Value;
use std::collections::BTreeMap;

/// One row of the tables of `docs/containers.md`.
struct Case {
    options: &'static [&'static str],
    /// HOME; `~` stands for the user's home directory.
    home: &'static str,
    /// Working directory.
    cwd: &'static str,
    /// A variable, its value in the container (empty: it is not there) and where it comes from.
    variable: (&'static str, &'static str, &'static str),
    /// A mount: target (`~` as above), and whether it can be written.
    mount: Option<(&'static str, bool)>,
    /// User id inside; `None`: the user's own.
    uid: Option<u32>,
}

const CASES: &[Case] = &[
    Case {
        options: &[],
        home: "~",
        cwd: "/srv/here",
        variable: ("FROM_IMAGE", "yes", "image"),
        mount: None,
        uid: None,
    },
    Case {
        options: &["--container-env=FROM_IMAGE"],
        home: "~",
        cwd: "/srv/here",
        variable: ("FROM_IMAGE", "outside", "container-env"),
        mount: None,
        uid: None,
    },
    Case {
        options: &["--container-workdir=/bin"],
        home: "~",
        cwd: "/bin",
        variable: ("ONLY_OUTSIDE", "kept", "submitter"),
        mount: None,
        uid: None,
    },
    Case {
        options: &["--chdir=/bin"],
        home: "~",
        cwd: "/bin",
        variable: ("XDG_RUNTIME_DIR", "", ""),
        mount: None,
        uid: None,
    },
    Case {
        options: &["--container-workdir=/tmp", "--chdir=/bin"],
        home: "~",
        cwd: "/tmp",
        variable: ("LD_LIBRARY_PATH", "", ""),
        mount: Some(("/tmp", true)),
        uid: None,
    },
    Case {
        options: &["--container-mount-home"],
        home: "~",
        cwd: "/srv/here",
        variable: ("SLURM_NTASKS", "1", "job"),
        mount: Some(("~", true)),
        uid: None,
    },
    Case {
        options: &["--container-remap-root"],
        home: "/root",
        cwd: "/srv/here",
        variable: ("USER", "root", "berth"),
        mount: None,
        uid: Some(0),
    },
    Case {
        options: &["--container-remap-root", "--container-mount-home"],
        home: "~",
        cwd: "/srv/here",
        variable: ("LANG", "xx_XX", "image"),
        mount: Some(("~", true)),
        uid: Some(0),
    },
    Case {
        options: &["--container-mounts=/etc:/mnt/etc:ro"],
        home: "~",
        cwd: "/srv/here",
        variable: ("SLURM_JOB_NAME", "named", "job"),
        mount: Some(("/mnt/etc", false)),
        uid: None,
    },
    Case {
        options: &["--container-readonly"],
        home: "~",
        cwd: "/srv/here",
        variable: ("HOSTNAME", "*", "berth"),
        mount: Some(("/sys", false)),
        uid: None,
    },
    Case {
        options: &["--export=NONE"],
        home: "~",
        cwd: "/srv/here",
        variable: ("ONLY_OUTSIDE", "", ""),
        mount: None,
        uid: None,
    },
];

/// Differs from one run to the next, or from one job to the next.
const MOMENTARY: &[&str] =
    &["SLURM_JOB_START_TIME", "SLURM_JOB_END_TIME", "SLURM_JOB_SLUID", "SLURM_TASK_PID"];
/// What a shell sets by itself.
const OF_SHELLS: &[&str] = &["PWD", "OLDPWD", "SHLVL", "_"];

fn explained(json: &Value) -> BTreeMap<String, String> {
    let of = |list: &Value| {
        let text = |v: &Value| String::from_utf8(bytes(v)).unwrap();
        let pair = |v: &Value| (text(&v["name"]), text(&v["value"]));
        list.as_array().unwrap().iter().map(pair).collect::<BTreeMap<_, _>>()
    };
    let mut all = of(&json["plan"]["env"]);
    all.extend(of(&json["task_env"]));
    all.retain(|name, _| !MOMENTARY.contains(&name.as_str()));
    all
}

/// Bytes are written as text where they are text.
fn bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::String(text) => text.clone().into_bytes(),
        other => panic!("no text: {other}"),
    }
}

fn seen(output: &[u8]) -> BTreeMap<String, String> {
    let text = String::from_utf8(output.to_vec()).unwrap();
    let pairs = text.split('\0').filter_map(|v| v.split_once('='));
    pairs
        .map(|(n, v)| (n.to_string(), v.to_string()))
        // What libpmix says its node knows alone.
        .filter(|(n, _)| !MOMENTARY.contains(&n.as_str()) && !n.starts_with("PMIX_"))
        .collect()
}

fn json(output: &berth_tests::Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}\n{output}"))
}

fn at_home(text: &str, who: &Who) -> String {
    if text == "~" { who.home.display().to_string() } else { text.to_string() }
}

each_user! {
    fn an_explanation_is_what_the_container_then_has(who) {
        let sandbox = Sandbox::start(who.clone());
        let image = images::configured();
        let srun = |case: &Case, words: &[&str]| {
            sandbox.srun_in(&image, case.options.iter().chain(["--job-name=named"].iter()).chain(words))
                .env("FROM_IMAGE", "outside").env("ONLY_OUTSIDE", "kept").env("XDG_RUNTIME_DIR", "/run/user/1").env("LD_LIBRARY_PATH", "/x")
        };
        for case in CASES {
            let told = json(&srun(case, &["--explain=json", "env", "-0"]).ok());
            let real = seen(&srun(case, &["env", "-0"]).ok().stdout);
            let plan = &told["plan"];
            let shown = explained(&told);
            assert_eq!(shown, real, "environment with {:?}", case.options);

            let home = at_home(case.home, &who);
            assert_eq!(real.get("HOME"), Some(&home), "HOME with {:?}", case.options);
            let (name, value, origin) = case.variable;
            let stated = plan["env"].as_array().unwrap().iter().find(|v| v["name"] == name);
            match value {
                "" => assert!(stated.is_none() && !real.contains_key(name), "{name} with {:?}", case.options),
                "*" => assert_eq!(stated.unwrap()["origin"], origin, "{name}"),
                value => {
                    assert_eq!((real[name].as_str(), stated.unwrap()["origin"].as_str()), (value, Some(origin)), "{name} with {:?}", case.options);
                }
            }

            let look = "pwd; id -u; id -g; grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | cut -f2 | tr '\\n' ' '; echo; tr -s ' ' < /proc/self/uid_map | sed 's/^ //'; cat /proc/self/mountinfo";
            let text = srun(case, &["sh", "-c", look]).ok().text();
            let mut lines = text.lines();
            assert_eq!(lines.next(), Some(case.cwd), "working directory with {:?}", case.options);
            assert_eq!(plan["workdir"]["path"], case.cwd, "{:?}", case.options);
            let uid = case.uid.unwrap_or(who.uid).to_string();
            assert_eq!(lines.next(), Some(uid.as_str()), "{:?}", case.options);
            assert_eq!(plan["identity"]["inside_uid"].to_string(), uid);
            assert_eq!(lines.next(), Some(plan["identity"]["inside_gid"].to_string().as_str()));
            let (nnp, seccomp) = (plan["confinement"]["no_new_privs"] == true, plan["confinement"]["seccomp"] == true);
            assert!(nnp && seccomp);
            assert_eq!(lines.next().map(str::trim), Some("1 2"), "{:?}", case.options);
            assert_eq!(plan["uid_map"][0]["inside"].to_string(), uid);
            assert_eq!(plan["uid_map"][0]["outside"].to_string(), who.uid.to_string());
            assert!(lines.next().unwrap().starts_with(&format!("{uid} ")), "{text}");

            let mounted: Vec<Vec<&str>> = lines.map(|l| l.split(' ').collect()).collect();
            for mount in plan["mounts"].as_array().unwrap() {
                let (target, kind) = (mount["target"].as_str().unwrap(), mount["kind"].to_string());
                if ["\"read_only\"", "\"mask\""].contains(&kind.as_str()) && !std::path::Path::new(target).exists() {
                    continue; // not every kernel has all of /proc
                }
                let there = mounted.iter().rfind(|m| m[4] == target);
                let there = there.unwrap_or_else(|| panic!("{target} is explained ({kind}) and not mounted\n{text}"));
                let read_only = mount["attrs"]["read_only"] == true;
                assert!(!read_only || there[5].split(',').any(|o| o == "ro"), "{target}: {there:?}");
            }
            if let Some((target, writable)) = case.mount {
                let target = at_home(target, &who);
                let told = plan["mounts"].as_array().unwrap().iter().rfind(|m| m["target"] == target.as_str());
                assert_eq!(told.unwrap()["attrs"]["read_only"] == false, writable, "{target}");
                let there = mounted.iter().rfind(|m| m[4] == target).unwrap();
                assert_eq!(there[5].split(',').any(|o| o == "rw"), writable, "{target}: {there:?}");
            }
        }
    }

    fn explaining_submits_nothing_and_says_what_was_resolved(who) {
        let sandbox = Sandbox::start(who);
        let image = images::busybox();
        let script = sandbox.write("job.sh", "#!/bin/sh\n#SBATCH --mem=64M\nenv -0\n");
        let option = format!("--container-image={}", image.display());
        let batch = json(&sandbox.cmd("sbatch").args(["--explain=json", &option]).arg(&script).ok());
        assert_eq!(batch["control_group"]["memory_mib"], 64);
        let digest = batch["image"]["resolved"]["digest"].as_str().unwrap().to_string();
        assert!(digest.starts_with("sha256:") && digest.len() == 71, "{digest}");
        let text = sandbox.cmd("salloc").args(["--explain", "-n2", &option]).ok().text();
        for word in ["image:", &digest, "control group: memory", "namespaces:", "uid map:", "confinement:", "mount: /proc", "(image)", "note: salloc's own command runs here"] {
            assert!(text.contains(word), "{word} is not in {text}");
        }
        assert_eq!(sandbox.cmd("squeue").arg("-h").ok().text(), "");
        assert_eq!(sandbox.cmd("sacct").args(["-n", "-X"]).ok().text(), "");
        // What the batch script then sees.
        sandbox.cmd("sbatch").args(["--wait", "-o", "out", &option]).arg(&script).ok();
        let mut real = seen(&std::fs::read(sandbox.work().join("out")).unwrap());
        let mut shown = explained(&batch);
        for name in OF_SHELLS {
            real.remove(*name);
            shown.remove(*name);
        }
        assert_eq!(shown, real);
    }

    fn a_step_of_a_running_job_and_a_step_without_an_image(who) {
        let sandbox = Sandbox::start(who);
        let script = "#!/bin/sh\nsrun --explain=json env -0 > told\nsrun env -0 > seen\n";
        sandbox.sbatch(&["--wait", "-n2", "-o", "log"], script);
        let told: Value = serde_json::from_slice(sandbox.read("told").as_bytes()).unwrap_or_else(|e| panic!("{e} {}", sandbox.read("log")));
        assert_eq!(told["start"], Value::Null);
        assert_eq!(told["image"], Value::Null);
        let real = seen(&std::fs::read(sandbox.work().join("seen")).unwrap());
        let tasks: Vec<&str> = real.keys().filter(|k| k.starts_with("SLURM_")).map(String::as_str).collect();
        assert!(tasks.len() > 10);
        let shown = explained(&told);
        for (name, value) in &real {
            // Two tasks print, one after the other; what differs between them is of the last.
            if !["SLURM_PROCID", "SLURM_LOCALID", "PMI_RANK"].contains(&name.as_str()) {
                assert_eq!(shown.get(name), Some(value), "{name}");
            }
        }
    }

    fn what_would_be_refused_is_refused(who) {
        let sandbox = Sandbox::start(who);
        let image = images::busybox();
        sandbox.srun_in(&image, ["--explain=xml", "true"]).fails().says(&["--explain", "json"]);
        sandbox.srun_in(&image, ["--explain", "--gres=nosuch:1", "true"]).fails().says(&["nosuch"]);
        sandbox.srun_in("/nowhere/image", ["--explain", "true"]).fails().says(&["/nowhere/image"]);
        sandbox.srun_in(&image, ["--explain", "--container-mounts=/nowhere:/x", "true"]).fails().says(&["/nowhere"]);
        sandbox.cmd("berth").args(["run", "--explain=xml", "host:"]).fails().says(&["--explain", "json"]);
        let told = sandbox.cmd("berth").args(["run", "--explain", "-e", "A=b"]).arg(&image).arg("true").ok().text();
        assert!(told.contains("env: A=b (--container-env)") && told.contains("command: true"), "{told}");
    }
}
