//! Devices are given once: real character devices, made by the test, that jobs and steps get apart from one another, and attacks on
//! those of others.

use berth_tests::{Cmd, Registry, Sandbox, Who, images, machine, sandbox};
use std::path::{Path, PathBuf};

/// Devices of the kernel's that any program may open, under names of our own.
const NUMBERS: [(u32, u32); 4] = [(10, 229), (10, 200), (10, 237), (7, 1)];

/// Four device files in a directory of `/dev` that goes with it.
struct Devices(PathBuf);

impl Devices {
    fn make() -> Devices {
        let dir = PathBuf::from(format!("/dev/bt-{}", std::process::id()));
        Devices::make_in(&dir);
        Devices(dir)
    }

    fn make_in(dir: &Path) {
        std::fs::create_dir(dir).unwrap();
        for (at, (major, minor)) in NUMBERS.iter().enumerate() {
            let file = dir.join(format!("acc{at}")).display().to_string();
            let made = std::process::Command::new("mknod")
                .args(["-m", "666", &file, "c", &major.to_string(), &minor.to_string()])
                .status();
            assert!(made.unwrap().success(), "{file}");
        }
    }

    /// The same devices by their numbers alone: other files, which root made in a directory, and which containers may have as `/numbers`. Says
    /// `number N` where one opens.
    fn by_number(dir: &Path) -> String {
        Devices::make_in(dir);
        let mut script = format!("dir={}; [ ! -e /numbers ] || dir=/numbers; ", dir.display());
        for at in 0..NUMBERS.len() {
            script += &format!("(exec 3<$dir/acc{at}) 2>/dev/null && echo number {at}; ");
        }
        script
    }

    fn config(&self) -> String {
        format!(
            "[[node]]\nname = \"ALL\"\n[[node.gres]]\nname = \"gpu\"\ntype = \"toy\"\nfiles = [\"{}/acc[0-3]\"]\n",
            self.0.display()
        )
    }

    /// The first two near the node's first core, the others near its second.
    fn near_cores(&self) -> String {
        let half = |files: &str, core: u32| {
            format!(
                "[[node.gres]]\nname = \"gpu\"\ntype = \"toy\"\nfiles = [\"{}/acc{files}\"]\ncores = \"{core}\"\n",
                self.0.display()
            )
        };
        format!("[[node]]\nname = \"ALL\"\n{}{}", half("[0-1]", 0), half("[2-3]", 1))
    }

    /// What a process can reach: `file N` where the device's own file opens, `made N` where one of the same numbers does that it
    /// made itself, `seen N` where a file is there that does not open.
    fn probe(&self) -> String {
        let mut script = "cd /tmp; ".to_string();
        for (at, (major, minor)) in NUMBERS.iter().enumerate() {
            let file = format!("{}/acc{at}", self.0.display());
            script += &format!(
                "if (exec 3<{file}) 2>/dev/null; then echo file {at}; elif [ -e {file} ]; then echo seen {at}; fi; \
                 rm -f m{at}; if mknod m{at} c {major} {minor} 2>/dev/null && (exec 3<m{at}) 2>/dev/null; then \
                 echo made {at}; fi; rm -f m{at}; "
            );
        }
        script + "echo end"
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The numbers behind a word of [`Devices::probe`].
fn of(word: &str, text: &str) -> Vec<u32> {
    assert!(text.lines().any(|line| line == "end"), "{text}");
    text.lines().filter_map(|line| line.strip_prefix(word)?.trim().parse().ok()).collect()
}

/// A program in the machine's path, which keeps logins for whoever names it.
struct Keeper(PathBuf);

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What the control groups of a fetch say, and that of all fetches of its user: nothing outside of one.
const LIMITS: &str = r#"at=$(sed -n 's#.*\(/berth-[^:/]*/fetch/[^:]*\)$#\1#p' /proc/self/cgroup | head -n 1)
[ -z "$at" ] || for place in $(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - cgroup2\{0,1\} .*/\1/p' /proc/self/mountinfo); do
    tell() { value=$(find "$place" -path "*$2/$3" -exec cat {} + 2>/dev/null); [ -z "$value" ] || echo "$1 $value"; }
    for file in memory.max memory.limit_in_bytes; do tell own_memory "$at" $file; tell users_memory "${at%/*}" $file; done
    tell own_pids "$at" pids.max
done
sed -n 's/^Cpus_allowed_list:[^0-9]*/cpus /p' /proc/self/status"#;

/// What follows a word there.
fn told<'a>(word: &str, text: &'a str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' '))
}

/// While an image is fetched, a program that the user's settings name runs as the user on the node.
#[test]
fn what_a_users_settings_start_to_fetch_an_image_has_the_devices_of_its_job_alone_as_root() {
    use std::os::unix::fs::PermissionsExt;
    assert!(machine::is_root(), "devices are made, and users become others, by root");
    let devices = Devices::make();
    let registry = Registry::with_login();
    let image = registry.push(&images::busybox(), "team/private:1", &[]);
    let sandbox =
        Sandbox::with_config(Who::root(), &format!("{}{}", registry.without_tls(), devices.config()));
    let user = Who::user();
    let home = sandbox.work().join("keeps");
    std::fs::create_dir(&home).unwrap();
    let name = format!("bt-{}", std::process::id());
    let config = format!("{{\"credHelpers\": {{\"{}\": \"{name}\"}}}}", registry.host());
    std::fs::write(home.join("config.json"), config).unwrap();
    for path in [&home, &home.join("config.json")] {
        berth_tests::machine::give(path, &user);
    }
    // What it can reach, and where it is; then the login.
    let login = format!(
        "{{\"ServerURL\":\"\",\"Username\":\"{}\",\"Secret\":\"{}\"}}",
        berth_tests::registry::LOGIN.0,
        berth_tests::registry::LOGIN.1
    );
    let said = home.join("said");
    let script = format!(
        "#!/bin/sh\n{{ cat /proc/self/cgroup\n{LIMITS}\n{}; }} > {}.$$ 2>&1\necho '{login}'\n",
        devices.probe(),
        said.display()
    );
    let keeper = Keeper(PathBuf::from(format!("/usr/local/bin/docker-credential-{name}")));
    std::fs::write(&keeper.0, script).unwrap();
    std::fs::set_permissions(&keeper.0, std::fs::Permissions::from_mode(0o755)).unwrap();
    // Somebody else has the first device.
    let holder = sandbox.sbatch(&["--gres=gpu:toy:1", "--mem=50M", "-o", "held"], "#!/bin/sh\nsleep 600\n");
    sandbox.wait_state(holder, "RUNNING", 30);
    let container = format!("--container-image={image}");
    let as_user = |program: &str, words: &[&str]| {
        sandbox.cmd_as(&user, program).dir(&home).env("DOCKER_CONFIG", &home).args(words).limit(90)
    };
    // The login is not carried, so that the node asks for it.
    let cpus = "sed -n 's/^Cpus_allowed_list:[^0-9]*//p' /proc/self/status";
    let options = ["--no-container-login", "--gres=gpu:toy:1", "--mem=50M", "--cpu-bind=none", &container];
    let words: Vec<&str> = options.into_iter().chain(["sh", "-c", cpus]).collect();
    let cpus = as_user("srun", &words).ok().text();
    let entries = std::fs::read_dir(&home).unwrap().flatten();
    let said = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("said."));
    let all: Vec<String> = said.map(|entry| std::fs::read_to_string(entry.path()).unwrap()).collect();
    // `srun` asked for it, too, where its user is.
    let group = format!("/fetch/user_{}/job_", user.uid);
    let of_job: Vec<&String> = all.iter().filter(|text| text.contains(&group)).collect();
    assert!(!of_job.is_empty(), "the node did not ask for the login in a place of its job's: {all:?}");
    for text in of_job {
        assert_eq!(of("file", text), [1], "{text}");
        assert_eq!(of("seen", text), [0, 2, 3], "{text}");
        // Bounds of its own, one of its user's that leaves others theirs, and its job's cores.
        let told = |word: &str| told(word, text).unwrap_or_default();
        assert_eq!((told("own_memory"), told("users_memory")), ("1073741824", "2147483648"), "{text}");
        assert_eq!((told("own_pids"), told("cpus")), ("1024", cpus.trim()), "{text}");
    }
}

#[test]
fn a_job_reaches_its_own_devices_and_no_others_as_root() {
    assert!(machine::is_root(), "devices are made, and users become others, by root");
    let devices = Devices::make();
    let sandbox = Sandbox::with_config(Who::root(), &devices.config());
    let user = Who::user();
    let image = format!("--container-image={}", images::debian().display());
    let numbers = sandbox.work().join("numbers");
    let (probe, all) = (format!("{}{}", Devices::by_number(&numbers), devices.probe()), [0, 1, 2, 3]);
    let outside = sandbox.cmd("sh").args(["-c", &probe]).ok().text();
    assert_eq!(
        (of("number", &outside), of("made", &outside)),
        (all.to_vec(), all.to_vec()),
        "outside of jobs"
    );
    let mount = format!("--container-mounts={}:/numbers", numbers.display());
    let script = format!("#!/bin/sh\n{probe}\nsrun sh -c '{}'\n", probe.replace('\'', ""));
    let script = sandbox.write("probe.sh", script);
    let theirs = sandbox.work().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    machine::give(&theirs, &user);
    // Somebody else has the first one, in a step in a container.
    let holder =
        sandbox.sbatch(&["--gres=gpu:toy:1", "--mem=50M", "-o", "held", &image], "#!/bin/sh\nsleep 600\n");
    sandbox.wait_state(holder, "RUNNING", 30);
    for container in [None, Some(image.as_str())] {
        for who in [None, Some(&user)] {
            let mut words = vec!["--gpus=2", "--mem=50M"];
            words.extend(container);
            words.extend(container.map(|_| mount.as_str()));
            let what = format!("{words:?} {}", who.is_some());
            let step = words.iter().copied().chain(["sh", "-c", &probe]).collect::<Vec<_>>();
            let step = match who {
                None => sandbox.srun(&step).ok().text(),
                Some(user) => sandbox.cmd_as(user, "srun").dir("/").args(&step).ok().text(),
            };
            let mut texts = vec![step];
            // The script of a batch job, and a step of it.
            let mut words = vec!["--wait", "-o", "probe.out", "--gpus=2", "--mem=50M"];
            words.extend(container);
            words.extend(container.map(|_| mount.as_str()));
            let dir = who.map_or(sandbox.work(), |_| theirs.clone());
            let batch = sandbox.cmd_as(who.unwrap_or(sandbox.who()), "sbatch");
            batch.dir(&dir).args(&words).arg(&script).ok();
            let both = std::fs::read_to_string(dir.join("probe.out")).unwrap();
            let (batch, step) = both.split_once("end\n").unwrap();
            texts.extend([format!("{batch}end\n"), step.to_string()]);
            for text in texts {
                assert_eq!(of("file", &text), [1, 2], "{what}: {text}");
                let others: Vec<u32> = all.into_iter().filter(|at| of("made", &text).contains(at)).collect();
                let made: &[u32] = if container.is_none() && who.is_none() { &[1, 2] } else { &[] };
                assert_eq!(others, made, "{what}: {text}");
                // By the numbers of a device it opens where it is the job's, and a container opens none so: it has its devices in /dev.
                let opened = if container.is_none() { vec![1, 2] } else { Vec::new() };
                assert_eq!(of("number", &text), opened, "{what}: {text}");
                // In a container there is not even a file of the others; on the node's own filesystem it does not open.
                assert_eq!(of("seen", &text).is_empty(), container.is_some(), "{what}: {text}");
            }
        }
    }
    // What somebody has is not given again, and all of it comes back.
    sandbox.srun(["--immediate", "--gpus=4", "true"]).fails();
    sandbox.cmd("scancel").arg(holder.to_string()).ok();
    sandbox.wait_state(holder, "CANCELLED", 30);
    let text = sandbox.srun(["--gpus=4", "sh", "-c", &probe]).ok().text();
    assert_eq!(of("file", &text), all, "{text}");
    // Without a word of devices there are none, in a shell of root's own, too.
    let text = sandbox.srun(["sh", "-c", &probe]).ok().text();
    assert_eq!((of("file", &text), of("made", &text)), (vec![], vec![]), "{text}");
}

#[test]
fn jobs_share_a_device_by_its_shards_until_these_are_gone_as_root() {
    if !machine::is_root() {
        return;
    }
    let devices = Devices::make();
    let device = |at: u32, kind: &str, more: &str| {
        let file = format!("{}/acc{at}", devices.0.display());
        format!("[[node.gres]]\nname = \"gpu\"\ntype = \"{kind}\"\nfiles = [\"{file}\"]\n{more}")
    };
    let config = format!(
        "[[node]]\nname = \"ALL\"\n{}{}",
        device(0, "shared", "shards = 4\n"),
        device(1, "whole", "")
    );
    let sandbox = Sandbox::with_config(Who::root(), &config);
    let image = format!("--container-image={}", images::debian().display());
    let tell = format!("echo shards $SLURM_SHARDS_ON_NODE; {}", devices.probe());
    let script = format!("#!/bin/sh\n{tell}\nsleep 600\n");
    let holds = |name: &str, more: &[&str]| {
        let words = [&["--gres=shard:2", "-n1", "--mem=50M", "-o", name][..], more].concat();
        let job = sandbox.sbatch(&words, &script);
        sandbox.wait_file(name, "end\n", 30);
        job
    };
    // Two at once, the second one in a container.
    let (first, second) = (holds("first", &[]), holds("second", &[&image]));
    let own = |text: &str, shards: u32| {
        assert!(text.starts_with(&format!("shards {shards}\n")), "{text}");
        let opened: Vec<u32> = [of("file", text), of("made", text)].concat();
        assert!(opened.contains(&0) && !opened.contains(&1), "{text}");
    };
    ["first", "second"].iter().for_each(|name| own(&sandbox.read(name), 2));
    for wish in ["--gres=shard:1", "--gres=gpu:shared:1"] {
        sandbox.srun(["--immediate", wish, "-n1", "--mem=50M", "true"]).fails();
    }
    // With a processor to spare it is the shards that are waited for.
    sandbox.cmd("scancel").arg(second.to_string()).ok();
    sandbox.wait_state(second, "CANCELLED", 30);
    let free = || {
        let left = || sandbox.cmd("squeue").args(["-h", "-t", "completing"]).ok().text();
        assert!(sandbox::wait(30, || left().is_empty().then_some(())).is_some(), "{}", left());
    };
    free();
    sandbox.srun(["--immediate", "--gres=shard:2", "-n1", "--mem=50M", "true"]).ok();
    free();
    for wish in ["--gres=shard:3", "--gres=gpu:shared:1"] {
        sandbox.srun(["--immediate", wish, "-n1", "--mem=50M", "true"]).fails();
    }
    let third = sandbox
        .sbatch(&["--gres=shard:3", "-n1", "--mem=50M", "-o", "third"], &format!("#!/bin/sh\n{tell}\n"));
    let shown = || sandbox.cmd("squeue").args(["-h", "-j", &third.to_string(), "-o", "%T %r"]).ok().text();
    let waits = sandbox::wait(30, || (shown() == "PENDING Resources").then_some(()));
    assert!(waits.is_some(), "{}", shown());
    sandbox.cmd("scancel").arg(first.to_string()).ok();
    sandbox.wait_state(third, "COMPLETED", 30);
    own(&sandbox.read("third"), 3);
    free();
    // Nobody shares what somebody has whole, and a device without shards has none.
    let words = ["--gres=gpu:shared:1", "-n1", "--mem=50M", "-o", "whole"];
    let whole = sandbox.sbatch(&words, &format!("#!/bin/sh\n{tell}\nsleep 600\n"));
    sandbox.wait_file("whole", "end\n", 30);
    assert!(sandbox.read("whole").starts_with("shards\n"), "{}", sandbox.read("whole"));
    sandbox.srun(["--immediate", "--gres=shard:1", "-n1", "--mem=50M", "true"]).fails();
    sandbox.srun(["--immediate", "--gres=gpu:whole:1", "-n1", "--mem=50M", "true"]).ok();
    sandbox.cmd("scancel").arg(whole.to_string()).ok();
    sandbox.wait_state(whole, "CANCELLED", 30);
}

#[test]
fn steps_and_tasks_have_their_part_of_the_jobs_devices_as_root() {
    if !machine::is_root() {
        return;
    }
    let devices = Devices::make();
    let sandbox = Sandbox::with_config(Who::root(), &devices.config());
    let image = format!("--container-image={}", images::debian().display());
    let dir = devices.0.display();
    let see = format!(
        "n=; for i in 0 1 2 3; do (exec 3<{dir}/acc$i) 2>/dev/null && n=$n$i; done; \
         echo $SLURM_STEP_GPUS $CUDA_VISIBLE_DEVICES $n"
    );
    // Two steps at once have one each, others of the job's wait or are refused, and those that overlap share.
    let script = format!(
        "#!/bin/bash\nset -e\nmkfifo go\n\
         srun --exact -n1 --gpus=1 --mem=20M sh -c '{see} > one; cat go' &\n\
         while ! [ -s one ]; do sleep 0.05; done\n\
         srun --exact -n1 --gpus=1 --mem=20M {image} sh -c '{see}' > two\n\
         srun --immediate --exact -n1 --gpus=2 --mem=20M true 2> three || echo refused >> three\n\
         srun --overlap --gpus=2 sh -c '{see}' > four\n\
         srun --gpus=3 --overlap true 2> five || echo refused >> five\n\
         echo > go; wait\nsrun sh -c '{see}' > six\n"
    );
    let job = sandbox.sbatch(&["--wait", "-n2", "--gpus=2", "--mem=100M", "-o", "log"], &script);
    assert_eq!(sandbox.job_state(job), "COMPLETED", "{}", sandbox.read("log"));
    assert_eq!(sandbox.read("one").trim(), "0 0 0");
    assert_eq!(sandbox.read("two").trim(), "1 0 1");
    assert!(
        sandbox.read("three").contains("refused") && sandbox.read("three").contains("busy"),
        "{}",
        sandbox.read("three")
    );
    assert_eq!(sandbox.read("four").lines().next(), Some("0,1 0,1 01"));
    let five = sandbox.read("five");
    assert!(five.contains("refused") && five.contains("the job has 2"), "{five}");
    assert_eq!(sandbox.read("six").lines().next(), Some("0,1 0,1 01"));
    // Tasks have their own, on the node and in a container, and are told of them as they see them: what opens stands last.
    let tell = &format!(
        "n=; for i in 0 1 2 3; do (exec 3<{dir}/acc$i) 2>/dev/null && n=$n$i; done; \
         echo $SLURM_PROCID $CUDA_VISIBLE_DEVICES $ROCR_VISIBLE_DEVICES $n"
    );
    let tasks = |words: &[&str]| {
        let words: Vec<&str> = words.iter().copied().chain(["--mem=50M", "sh", "-c", tell]).collect();
        let mut lines: Vec<String> = sandbox.srun(&words).ok().text().lines().map(str::to_string).collect();
        lines.sort();
        lines
    };
    assert_eq!(tasks(&["-n2", "--gpus-per-task=1"]), ["0 0 0 0", "1 0 0 1"]);
    assert_eq!(tasks(&["-n2", "--gpus-per-task=2", &image]), ["0 0,1 0,1 01", "1 0,1 0,1 23"]);
    assert_eq!(tasks(&["-n2", "--ntasks-per-gpu=2"]), ["0 0 0 0", "1 0 0 0"]);
    assert_eq!(tasks(&["-n2", "--gpus=2", "--gpu-bind=map_gpu:1,0"]), ["0 0 0 1", "1 0 0 0"]);
    assert_eq!(tasks(&["-n2", "--gpus=2", "--gpu-bind=map:1,0"]), ["0 0 0 1", "1 0 0 0"]);
    assert_eq!(
        tasks(&["-n2", "--gpus=2", "--gpu-bind=mask_gpu:0x2,0x3", &image]),
        ["0 0 0 1", "1 0,1 0,1 01"]
    );
    assert_eq!(tasks(&["-n2", "--gpus-per-task=1", "--gpu-bind=none"]), ["0 0,1 0,1 01", "1 0,1 0,1 01"]);
    assert_eq!(tasks(&["-n2", "--gpus=2"]), ["0 0,1 0,1 01", "1 0,1 0,1 01"]);
    // Nor do the others' open by their numbers, for what a task starts, and for programs before and after it.
    let probe = devices.probe();
    for container in [None, Some(image.as_str())] {
        let words = ["-n2", "--gpus-per-task=1", "--mem=50M"].into_iter().chain(container);
        let words: Vec<&str> = words.chain(["-o", "task%t", "sh", "-c", &probe]).collect();
        sandbox.srun(&words).ok();
        for task in [0, 1] {
            let text = sandbox.read(&format!("task{task}"));
            assert_eq!(of("file", &text), [task], "{container:?}: {text}");
            assert!(of("made", &text).iter().all(|at| *at == task), "{container:?}: {text}");
        }
    }
    let around = sandbox.write("around", format!("#!/bin/sh\nexec >> around.$SLURM_PROCID\n{probe}\n"));
    std::fs::set_permissions(&around, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let [prolog, epilog] = ["prolog", "epilog"].map(|name| format!("--task-{name}={}", around.display()));
    sandbox.srun(["-n2", "--gpus-per-task=1", "--mem=50M", &prolog, &epilog, "true"]).ok();
    for task in [0, 1] {
        let text = sandbox.read(&format!("around.{task}"));
        assert_eq!(of("file", &text), [task, task], "{text}");
    }
    let loud = sandbox.srun(["-n1", "--gpus=2", "--gpu-bind=verbose,single:1", "true"]).ok();
    assert!(
        loud.err()
            .contains("gpu-bind: usable_gres=0x1; bit_alloc=0x3; local_inx=2; global_list=0; local_list=0"),
        "{loud}"
    );
    sandbox.srun(["-n1", "--gpus=1", "--gpu-bind=map_gpu:3", "true"]).fails().says(&[
        "task 0",
        "--gpu-bind=map_gpu:3",
        "counted from 0",
    ]);
}

#[test]
fn a_device_that_comes_while_steps_run_opens_in_none_of_them_as_root() {
    if !berth_tests::machine::is_root() {
        return;
    }
    let devices = Devices::make();
    let dir = devices.0.display();
    let config = |files: &str| {
        format!(
            "[[node]]\nname = \"ALL\"\n[[node.gres]]\nname = \"gpu\"\ntype = \"toy\"\nfiles = [\"{dir}/acc{files}\"]\n"
        )
    };
    let sandbox = Sandbox::with_config(Who::root(), &config("[0-1]"));
    let work = sandbox.work();
    let work = work.display();
    // A script, and tasks that have a group each below their step's, say again and again what opens.
    let look = sandbox.write(
        "look",
        format!(
            "#!/bin/sh\nwho=${{1:-$SLURM_PROCID}}\nuntil [ -e {work}/stop ]; do\nn=; for i in 0 1 2 3; do \
             (exec 3<{dir}/acc$i) 2>/dev/null && n=$n$i; done\necho $n > {work}/new.$who; \
             mv {work}/new.$who {work}/opens.$who; sleep 0.1\ndone\n"
        ),
    );
    let look = look.display();
    let job = sandbox.sbatch(
        &["-n2", "--gpus=2", "--mem=100M", "-o", "log"],
        &format!("#!/bin/sh\n{look} script &\nsrun -n2 --gpus-per-task=1 {look}\nwait\n"),
    );
    let comes_to = |expected: [&str; 3]| {
        let opens = || {
            ["script", "0", "1"].map(|who| {
                let file = sandbox.work().join(format!("opens.{who}"));
                std::fs::read_to_string(file).unwrap_or_default().trim().to_string()
            })
        };
        let same = || (opens() == expected).then_some(());
        let came = sandbox::wait(30, same).is_some();
        assert!(came, "{:?} open, and not {expected:?}: {}", opens(), sandbox.read("log"));
    };
    // What nobody allocates is there for all.
    comes_to(["0123", "023", "123"]);
    std::fs::write(sandbox.state().join("berth.toml"), config("[0-2]")).unwrap();
    sandbox.cmd("scontrol").arg("reconfigure").ok();
    comes_to(["013", "03", "13"]);
    // And once more, by a device of which the first of these agents knew nothing.
    std::fs::write(sandbox.state().join("berth.toml"), config("[0-3]")).unwrap();
    sandbox.cmd("scontrol").arg("reconfigure").ok();
    comes_to(["01", "0", "1"]);
    sandbox.write("stop", "");
    sandbox.wait_state(job, "COMPLETED", 30);
}

#[test]
fn jobs_and_tasks_have_the_devices_near_their_cores_as_root() {
    if !machine::is_root() {
        return;
    }
    let devices = Devices::make();
    let sandbox = Sandbox::with_config(Who::root(), &devices.near_cores());
    let shape = sandbox.cmd("sinfo").args(["-h", "-o", "%X %Y"]).ok().text();
    let cores: u32 = shape.split_whitespace().map(|word| word.parse::<u32>().unwrap()).product();
    if cores < 2 {
        println!("not run: this machine has one core");
        return;
    }
    let image = format!("--container-image={}", images::debian().display());
    let dir = devices.0.display();
    let tell = &format!(
        "n=; for i in 0 1 2 3; do (exec 3<{dir}/acc$i) 2>/dev/null && n=$n$i; done; \
         echo $SLURM_PROCID $CUDA_VISIBLE_DEVICES $n"
    );
    // Cores and devices of a job are free a moment after its end is told.
    let free = || {
        let left = || sandbox.cmd("squeue").args(["-h", "-t", "completing"]).ok().text();
        assert!(berth_tests::sandbox::wait(30, || left().is_empty().then_some(())).is_some(), "{}", left());
    };
    let tasks = |words: &[&str]| {
        free();
        let words: Vec<&str> = words.iter().copied().chain(["--mem=50M", "sh", "-c", tell]).collect();
        let mut lines: Vec<String> = sandbox.srun(&words).ok().text().lines().map(str::to_string).collect();
        lines.sort();
        lines
    };
    // The lowest core that is free, by its first CPU: the first one, and the second while a job has the first.
    let allowed = "sed -n 's/^Cpus_allowed_list:[^0-9]*//p' /proc/self/status";
    let lowest = || -> String {
        free();
        let list = sandbox.srun(["-n1", "-c1", "--mem=50M", "sh", "-c", allowed]).ok().text();
        list.split([',', '-']).next().unwrap_or_default().to_string()
    };
    let first = lowest();
    let one = ["-n1", "-c1", "--gpus=1"];
    assert_eq!(tasks(&one), ["0 0 0"]);
    free();
    let holder = sandbox.sbatch(&["-n1", "-c1", "--mem=50M", "-o", "/dev/null"], "#!/bin/sh\nsleep 600\n");
    sandbox.wait_state(holder, "RUNNING", 30);
    let second = lowest();
    assert_ne!(first, second);
    // A job gets devices near the cores that are left for it, unless that does not matter to it.
    assert_eq!(tasks(&one), ["0 0 2"]);
    assert_eq!(tasks(&["-n1", "-c1", "--gpus=1", "--gres-flags=disable-binding"]), ["0 0 0"]);
    assert_eq!(tasks(&["-n1", "-c1", "--gpus=1", "--gres-flags=enforce-binding"]), ["0 0 2"]);
    sandbox.cmd("scancel").arg(holder.to_string()).ok();
    sandbox.wait_state(holder, "CANCELLED", 30);
    // Tasks are told of those near the CPUs that they are bound to, and open no others; on the node and in a container.
    let (straight, crossed) =
        (format!("--cpu-bind=map_cpu:{first},{second}"), format!("--cpu-bind=map_cpu:{second},{first}"));
    let whole = ["-N1", "-n2", "--exclusive", "--gpus=4", "--gpu-bind=closest"];
    let bound = |bind: &str, more: Option<&str>| {
        tasks(&whole.into_iter().chain([bind]).chain(more).collect::<Vec<&str>>())
    };
    for container in [None, Some(image.as_str())] {
        assert_eq!(bound(&straight, container), ["0 0,1 01", "1 0,1 23"], "{container:?}");
        assert_eq!(bound(&crossed, container), ["0 0,1 23", "1 0,1 01"], "{container:?}");
    }
    // Near all of them where a task is bound to no CPU; and those of its own are near ones, too.
    assert_eq!(bound("--cpu-bind=none", None), ["0 0,1,2,3 0123", "1 0,1,2,3 0123"]);
    let own = ["-N1", "-n2", "--exclusive", "--gpus-per-task=2", crossed.as_str()];
    assert_eq!(tasks(&own), ["0 0,1 23", "1 0,1 01"]);
}

/// A control group as a service manager makes it for login sessions, at the top of the hierarchy in which devices are limited, with one
/// session below it.
struct Slice {
    name: String,
    dir: PathBuf,
}

impl Slice {
    fn new() -> Slice {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let point = |of: &dyn Fn(&str, &str) -> bool| {
            let mut lines = mounts.lines().filter_map(|line| line.split_once(" - "));
            let found = lines.find(|(_, right)| {
                let words: Vec<&str> = right.split(' ').collect();
                of(words[0], words[words.len() - 1])
            });
            found.map(|(left, _)| PathBuf::from(left.split(' ').nth(4).unwrap()))
        };
        let v1 = point(&|kind, options| kind == "cgroup" && options.split(',').any(|word| word == "devices"));
        let top = v1.or_else(|| point(&|kind, _| kind == "cgroup2")).unwrap();
        let name = format!("bt-{}.slice", std::process::id());
        Slice { dir: top.join(&name), name }
    }

    /// A session begins: its group, and that above it where it is not there.
    fn begin(&self) {
        std::fs::create_dir_all(self.dir.join("session")).unwrap();
    }

    /// It is over, and the service manager cleans up.
    fn end(&self) {
        let _ = std::fs::remove_dir(self.dir.join("session"));
        let _ = std::fs::remove_dir(&self.dir);
    }

    /// Which devices open for a user in the session.
    fn opens(&self, devices: &Devices) -> Vec<u32> {
        let user = Who::user();
        let script = format!(
            "echo $$ > {}/session/cgroup.procs && exec setpriv --reuid={} --regid={} --clear-groups sh -c '{}'",
            self.dir.display(),
            user.uid,
            user.gid,
            devices.probe()
        );
        of("file", &Cmd::new("sh").args(["-c", &script]).ok().text())
    }

    /// Waits until just these open there.
    fn comes_to(&self, devices: &Devices, expected: &[u32]) {
        let same = || (self.opens(devices) == expected).then_some(());
        assert!(sandbox::wait(30, same).is_some(), "{:?} open, and not {expected:?}", self.opens(devices));
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn sessions_outside_of_jobs_open_no_devices_where_the_administrator_says_so_as_root() {
    if !machine::is_root() {
        return;
    }
    let devices = Devices::make();
    let slice = Slice::new();
    slice.begin();
    let (all, none): ([u32; 4], [u32; 0]) = ([0, 1, 2, 3], []);
    let kept = format!("{}[gpus]\nkept_from = [\"{}\"]\n", devices.config(), slice.name);
    let mut sandbox = Sandbox::with_config(Who::root(), &devices.config());
    assert_eq!(slice.opens(&devices), all, "it is no policy unless it is written");
    let configure = |sandbox: &Sandbox, text: &str| {
        std::fs::write(sandbox.state().join("berth.toml"), text).unwrap();
        sandbox.cmd("scontrol").arg("reconfigure").ok();
    };
    configure(&sandbox, &kept);
    slice.comes_to(&devices, &none);
    // Jobs have theirs, and other processes of the node are not concerned.
    let probe = devices.probe();
    assert_eq!(of("file", &sandbox.srun(["--gpus=1", "sh", "-c", &probe]).ok().text()).len(), 1);
    assert_eq!(of("file", &Cmd::new("sh").args(["-c", &probe]).ok().text()), all);
    // The agent need not be there.
    sandbox.kill_9(sandbox.agent());
    assert_eq!(slice.opens(&devices), none);
    sandbox.up();
    // All sessions end, and another one begins.
    slice.end();
    assert!(!slice.dir.exists(), "{} is still there", slice.dir.display());
    slice.begin();
    slice.comes_to(&devices, &none);
    configure(&sandbox, &devices.config());
    slice.comes_to(&devices, &all);
    // What is kept from them at the end goes with the cluster.
    configure(&sandbox, &kept);
    slice.comes_to(&devices, &none);
    sandbox.down();
    assert_eq!(slice.opens(&devices), all);
}

/// A CDI file of the administrator's, in the place of those that are made at each boot.
struct CdiFile(PathBuf);

impl CdiFile {
    fn write(kind: &str, devices: &Devices, files: &std::path::Path) -> CdiFile {
        let node = |at: u32| format!(r#""deviceNodes":[{{"path":"{}/acc{at}"}}]"#, devices.0.display());
        let own = |name: &str, at: u32| {
            format!(
                r#"{{"name":"{name}","containerEdits":{{{},"env":["ACC={name}"],"additionalGids":[0,4242],
                "mounts":[{{"hostPath":"{}/{name}","containerPath":"/opt/acc/{name}","options":["ro","bind"]}}]}}}}"#,
                node(at),
                files.display()
            )
        };
        let evil = format!(
            r#"{{"name":"c","containerEdits":{{{},"hooks":[{{"hookName":"prestart","path":"/bin/evil"}}]}}}}"#,
            node(2)
        );
        let text = format!(
            r#"{{"cdiVersion":"0.6.0","kind":"{kind}","devices":[{},{},{evil}],"containerEdits":{{{},"env":["MAKER=berth"]}}}}"#,
            own("a", 0),
            own("b", 1),
            node(3)
        );
        std::fs::create_dir_all("/var/run/cdi").unwrap();
        let file = CdiFile(PathBuf::from(format!("/var/run/cdi/bt-{}.json", std::process::id())));
        std::fs::write(&file.0, text).unwrap();
        std::fs::set_permissions(&file.0, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
        file
    }
}

impl Drop for CdiFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        // Where nobody else has files there.
        let _ = std::fs::remove_dir("/var/run/cdi");
    }
}

#[test]
fn a_job_has_what_the_administrators_file_says_of_its_devices_and_nothing_of_others_as_root() {
    if !machine::is_root() {
        return;
    }
    let devices = Devices::make();
    let mut sandbox = Sandbox::empty(Who::root());
    let work = sandbox.work();
    for name in ["a", "b"] {
        sandbox.write(name, format!("library of {name}\n"));
    }
    let kind = format!("bt{}.local/acc", std::process::id());
    let _file = CdiFile::write(&kind, &devices, &work);
    let config = format!(
        "[[node]]\nname = \"ALL\"\n[[node.gres]]\nname = \"acc\"\ntype = \"toy\"\n\
         cdi = [\"{kind}=a\", \"{kind}=b\", \"{kind}=c\", \"{kind}=gone\"]\n"
    );
    std::fs::write(sandbox.state().join("berth.toml"), config).unwrap();
    sandbox.up();
    // What cannot be given as the file says is fenced, and why is said.
    let log = std::fs::read_to_string(sandbox.state().join("log/agent.log")).unwrap();
    for part in [
        format!("acc 2 ({kind}=c) is fenced"),
        "/bin/evil".into(),
        format!("acc 3 ({kind}=gone) is fenced: no file"),
    ] {
        assert!(log.contains(&part), "{part}: {log}");
    }
    sandbox.srun(["--immediate", "--gres=acc:3", "true"]).fails();
    let image = format!("--container-image={}", images::debian().display());
    let look =
        format!("{}; echo \"acc=$ACC maker=$MAKER\"; cat /opt/acc/* 2>/dev/null; true", devices.probe());
    let holder = sandbox.sbatch(
        &["--gres=acc:toy:1", "--mem=50M", "-o", "held", &image],
        &format!("#!/bin/sh\n{look}\nsleep 600\n"),
    );
    sandbox.wait_file("held", "library of", 30);
    let check = |text: &str, name: &str, opens: [u32; 2], other: u32| {
        assert_eq!(of("file", text), opens, "{text}");
        let made = of("made", text);
        assert!(!made.contains(&other) && !made.contains(&2), "{text}");
        assert!(of("seen", text).is_empty(), "{text}");
        assert!(text.contains(&format!("acc={name} maker=berth\nlibrary of {name}\n")), "{text}");
        assert_eq!(text.matches("library of").count(), 1, "{text}");
    };
    check(&sandbox.read("held"), "a", [0, 3], 1);
    let second = ["--gres=acc:1", "--mem=50M"];
    let text = sandbox.srun(second.iter().copied().chain([&*image, "sh", "-c", &look])).ok().text();
    check(&format!("{text}\n"), "b", [1, 3], 0);
    // On the node's own filesystem nothing is brought in, and the same devices open.
    let text = sandbox.srun(second.iter().copied().chain(["sh", "-c", &look])).ok().text();
    assert_eq!(of("file", &text), [1, 3], "{text}");
    assert!(text.contains("acc= maker="), "{text}");
    // Without a device there is nothing of the file's, what all of its devices have included.
    let text = sandbox.srun(["--mem=50M", &*image, "sh", "-c", &look]).ok().text();
    assert!(of("file", &text).is_empty() && of("made", &text).is_empty(), "{text}");
    assert!(text.contains("acc= maker=") && !text.contains("library"), "{text}");
    // A user's own container outside of jobs takes one by its name.
    let name = format!("{kind}=b");
    let words = ["run", "--device", &name, &images::debian().display().to_string(), "sh", "-c", &look]
        .map(str::to_string);
    let text = sandbox.cmd("berth").args(words).ok().text();
    assert!(text.contains("acc=b maker=berth\nlibrary of b"), "{text}");
    let words = ["run", "--device", &format!("{kind}=c"), &images::debian().display().to_string(), "true"]
        .map(str::to_string);
    sandbox.cmd("berth").args(words).fails().says(&["/bin/evil"]);
    // A device file that is a group's alone opens in a container of whoever was given the device, and nowhere else for them.
    let file = devices.0.join("acc1");
    std::os::unix::fs::chown(&file, None, Some(4242)).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o660)).unwrap();
    let user = Who::user();
    let opens = |container: Option<&str>| {
        let words = second.iter().copied().chain(container).chain(["sh", "-c", &look]);
        of("file", &sandbox.cmd_as(&user, "srun").dir("/").args(words).ok().text())
    };
    assert_eq!((opens(Some(&image)), opens(None)), (vec![1, 3], vec![3]));
    sandbox.cmd("scancel").arg(holder.to_string()).ok();
    sandbox.wait_state(holder, "CANCELLED", 30);
}

#[test]
fn a_device_that_two_lines_name_is_given_once_and_the_other_is_shown_with_the_reason_as_root() {
    if !machine::is_root() {
        return;
    }
    let devices = Devices::make();
    let mut sandbox = Sandbox::empty(Who::root());
    let (work, dir) = (sandbox.work(), devices.0.display().to_string());
    let kind = format!("bt{}.local/acc", std::process::id());
    let _file = CdiFile::write(&kind, &devices, &work);
    std::os::unix::fs::symlink(devices.0.join("acc0"), devices.0.join("link")).unwrap();
    let config = |files: &str, cdi: &str| {
        format!(
            "[[node]]\nname = \"ALL\"\n[[node.gres]]\nname = \"acc\"\nfiles = [{files}]\n\
             [[node.gres]]\nname = \"nic\"\ncdi = [{cdi}]\n"
        )
    };
    let toml = sandbox.state().join("berth.toml");
    // What is no device of jobs is open to everybody who may open its file.
    let cdi = format!("\"{kind}=a\", \"{kind}=b\", \"{kind}=c\"");
    // What can be seen in the file is refused there.
    std::fs::write(&toml, config(&format!("\"{dir}/acc0\", \"{dir}/acc[0-1]\""), &cdi)).unwrap();
    let twice = format!("'{dir}/acc0' is there twice");
    sandbox.cmd("berth").args(["config", "check"]).fails().says(&["node[1].gres[1].files", &twice]);
    // What only the node can see, a link to a device and one that a CDI file names as well, is fenced.
    std::fs::write(&toml, config(&format!("\"{dir}/acc0\", \"{dir}/link\", \"{dir}/gone\""), &cdi)).unwrap();
    sandbox.cmd("berth").args(["config", "check"]).ok();
    sandbox.up();
    let shown = sandbox.cmd("scontrol").args(["show", "node"]).ok().text();
    for part in [
        format!("acc:0(its file {dir}/link is the same device as {dir}/acc0, "),
        format!("acc:1(its file {dir}/gone is no device of this node: No such file or directory"),
        format!("nic:0(one of its device files is {dir}/acc0, which 'files' gives as acc: "),
    ] {
        assert!(shown.contains("GresFault=") && shown.contains(&part), "{part}: {shown}");
    }
    let probe = devices.probe();
    let opens = |words: &[&str]| {
        let words: Vec<&str> = words.iter().copied().chain(["--mem=50M", "sh", "-c", &probe]).collect();
        of("file", &sandbox.srun(&words).ok().text())
    };
    assert_eq!((opens(&["--gres=acc:1"]), opens(&["--gres=nic:1"])), (vec![0], vec![1, 3]));
    let image = format!("--container-image={}", images::debian().display());
    assert_eq!(opens(&["--gres=acc:1", &image]), [0]);
    for words in ["--gres=acc:2", "--gres=nic:2"] {
        sandbox.srun(["--immediate", words, "true"]).fails();
    }
}
