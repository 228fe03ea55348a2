//! An image's way with its job: pinned at submission, and what making it present took, on record.

use berth_tests::disk::store_owner;
use berth_tests::sandbox::wait;
use berth_tests::{Registry, Sandbox, Who, each_user, images, layout};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

/// The digest that a tag has now.
fn digest(sandbox: &Sandbox, image: &str) -> String {
    let inspect = sandbox.cmd("skopeo").args(["inspect", "--tls-verify=false", "--format={{.Digest}}"]);
    let image = format!("docker://{image}");
    inspect.arg(image).env("HOME", sandbox.work()).env("XDG_RUNTIME_DIR", sandbox.work()).ok().text()
}

/// A registry's front, by which a tag means something else each time that it is looked up: nobody is answered before as many have asked as
/// it has meanings.
struct Moving {
    address: String,
    asked: Arc<(Mutex<usize>, Condvar)>,
}

impl Moving {
    fn before(registry: &Registry, tag: &str, meanings: [&'static str; 2]) -> Moving {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let asked = Arc::new((Mutex::new(0), Condvar::new()));
        let (shared, host, tag) = (Arc::clone(&asked), registry.host(), format!("/manifests/{tag} "));
        std::thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let (shared, host, tag) = (Arc::clone(&shared), host.clone(), tag.clone());
                std::thread::spawn(move || pass(near, &host, &tag, meanings, &shared));
            }
        });
        Moving { address, asked }
    }

    fn lookups(&self) -> usize {
        *self.asked.0.lock().unwrap()
    }
}

/// Passes one request on.
fn pass(mut near: TcpStream, host: &str, tag: &str, meanings: [&str; 2], asked: &(Mutex<usize>, Condvar)) {
    let Some(mut head) = head(&mut near) else { return };
    if head.contains(tag) {
        let mut count = asked.0.lock().unwrap();
        let meaning = meanings[(*count).min(1)];
        *count += 1;
        asked.1.notify_all();
        let all = |count: &mut usize| *count < meanings.len();
        drop(asked.1.wait_timeout_while(count, Duration::from_secs(20), all).unwrap());
        head = head.replace(tag, &format!("/manifests/{meaning} "));
    }
    // Whoever does not listen any more needs nothing.
    let _ = ask(host, &head).and_then(|mut far| std::io::copy(&mut far, &mut near));
}

/// The head of the request that comes.
fn head(near: &mut TcpStream) -> Option<String> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        match near.read(&mut byte) {
            Ok(1) => head.push(byte[0]),
            _ => return None,
        }
    }
    Some(String::from_utf8(head).unwrap())
}

/// Asks the registry: one request a connection, on which the answer comes.
fn ask(host: &str, head: &str) -> std::io::Result<TcpStream> {
    let (line, rest) = head.split_once("\r\n").unwrap();
    let fields =
        rest.lines().filter(|line| !line.to_lowercase().starts_with("connection:") && !line.is_empty());
    let fields: String = fields.map(|line| format!("{line}\r\n")).collect();
    let mut far = TcpStream::connect(host)?;
    far.write_all(format!("{line}\r\n{fields}Connection: close\r\n\r\n").as_bytes())?;
    Ok(far)
}

/// A registry's front that gives blobs slowly, so many bytes a second on all connections together; its address.
fn slow(registry: &Registry, rate: f64) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (host, turn) = (registry.host(), Arc::new(Mutex::new(())));
    std::thread::spawn(move || {
        for near in listener.incoming().flatten() {
            let (host, turn) = (host.clone(), Arc::clone(&turn));
            std::thread::spawn(move || trickle(near, &host, rate, &turn));
        }
    });
    address
}

/// Passes one request on, and a blob piece by piece.
fn trickle(mut near: TcpStream, host: &str, rate: f64, turn: &Mutex<()>) -> Option<()> {
    let head = head(&mut near)?;
    let mut far = ask(host, &head).ok()?;
    let mut piece = vec![0; 64 << 10];
    loop {
        let read = far.read(&mut piece).ok().filter(|read| *read > 0)?;
        if head.contains("/blobs/") {
            let _turn = turn.lock().unwrap();
            std::thread::sleep(Duration::from_secs_f64(read as f64 / rate));
        }
        near.write_all(&piece[..read]).ok()?;
    }
}

/// Fields of one row of `sacct`.
fn fields(sandbox: &Sandbox, job: u64, row: usize, names: &str) -> Vec<String> {
    sandbox.sacct(job, names).swap_remove(row)
}

each_user! {
    fn array_tasks_requeues_and_steps_run_what_was_submitted(who) {
        let registry = Registry::open();
        let image = registry.push(&images::layers(), "team/moving:1", &[]);
        let mut sandbox = Sandbox::with_config(who, &registry.without_tls());
        let container = format!("--container-image={image}");
        let script = "#!/bin/sh\ncat /data/kept\nsrun cat /data/kept\n";
        let first = digest(&sandbox, &image);
        let job = sandbox.sbatch(&["--hold", "--array=1-2", "--mem=64M", "-c1", "--output=out.%a", "--open-mode=append", &container], script);
        // The tag has another image from now on, and the controller forgets what it had in memory.
        registry.push(&images::busybox(), "team/moving:1", &[]);
        assert_ne!(digest(&sandbox, &image), first);
        sandbox.down();
        sandbox.up();
        let shown = sandbox.cmd("scontrol").args(["show", "job", &job.to_string()]).ok().text();
        assert!(shown.contains(&format!("Container={image}\n   ImageDigest={first}\n")), "{shown}");
        sandbox.cmd("scontrol").args(["release", &job.to_string()]).ok();
        for task in [1, 2] {
            sandbox.wait_file(&format!("out.{task}"), "kept\nkept\n", 60);
        }
        let text = || sandbox.cmd("sacct").args(["-n", "-P", "-j", &job.to_string(), "-o", "state,imagedigest"]).ok().text();
        let wanted = format!("COMPLETED|{first}");
        let all = wait(60, || Some(text()).filter(|t| t.lines().all(|line| line == wanted)));
        assert_eq!(all.unwrap_or_else(text).lines().count(), 6, "two tasks, each with its script and a step: {}", text());
        // Again under the same id.
        sandbox.cmd("scontrol").args(["requeue", &format!("{job}_1")]).ok();
        sandbox.wait_file("out.1", "kept\nkept\nkept\nkept\n", 60);
        // What is submitted now means what the tag means now.
        sandbox.srun_in(&image, ["cat", "/data/kept"]).fails();
    }

    fn an_image_that_was_named_inside_a_container_is_kept_from_its_first_start_on(who) {
        let registry = Registry::open();
        let image = registry.push(&images::layers(), "team/moving:1", &[]);
        let mut sandbox = Sandbox::with_config(who, &registry.without_tls());
        let first = digest(&sandbox, &image);
        let inner = sandbox.write("inner.sh", "#!/bin/sh\ncat /data/kept\nsrun cat /data/kept\n");
        let (work, mount) = (sandbox.work().display().to_string(), format!("--container-mounts={}", sandbox.work().display()));
        let script = format!(
            "#!/bin/sh\ncd {work}\nsbatch --parsable --hold --array=1-2 --mem=64M -c1 -o {work}/out.%a --open-mode=append \
             --container-image=$IMAGE {}\n",
            inner.display()
        );
        let outer = sandbox.cmd("sbatch").args(["--wait", "--mem=64M", "-o", "outer", &mount, "--container-image", &image]);
        outer.arg(sandbox.write("outer.sh", script)).env("IMAGE", &image).ok();
        let job: u64 = sandbox.read("outer").trim().parse().unwrap();
        let show = |sandbox: &Sandbox| sandbox.cmd("scontrol").args(["show", "job", &job.to_string()]).ok().text();
        assert!(!show(&sandbox).contains("ImageDigest"), "nobody has looked yet");
        sandbox.cmd("scontrol").args(["release", &format!("{job}_1")]).ok();
        sandbox.wait_file("out.1", "kept\nkept\n", 60);
        sandbox.wait_state(job, "PENDING", 60);
        let told = wait(60, || show(&sandbox).contains(&format!("ImageDigest={first}")).then_some(()));
        assert!(told.is_some(), "{}", show(&sandbox));
        // The name means something else now, and the controller forgets what it had in memory.
        registry.push(&images::busybox(), "team/moving:1", &[]);
        sandbox.down();
        sandbox.up();
        sandbox.cmd("scontrol").args(["release", &job.to_string()]).ok();
        sandbox.wait_file("out.2", "kept\nkept\n", 60);
        sandbox.cmd("scontrol").args(["requeue", &format!("{job}_1")]).ok();
        sandbox.wait_file("out.1", "kept\nkept\nkept\nkept\n", 60);
    }

    fn tasks_that_start_at_once_have_one_image_although_its_tag_moves_between_them(who) {
        let registry = Registry::open();
        let image = registry.push(&images::layers(), "team/moving:first", &[]);
        let other = registry.push(&images::busybox(), "team/moving:later", &[]);
        // Nobody is answered what the tag means before both have asked, and then each is told something else.
        let moves = Moving::before(&registry, "now", ["first", "later"]);
        let config = format!("[images]\ninsecure_registries = [\"{}\", \"{}\"]\n", registry.host(), moves.address);
        let mut sandbox = Sandbox::with_config(who, &config);
        let either = [digest(&sandbox, &image), digest(&sandbox, &other)];
        let moving = format!("{}/team/moving:now", moves.address);
        let inner = sandbox.write("inner.sh", "#!/bin/sh\nls /data/kept 2>/dev/null || echo other\n");
        let (work, mount) = (sandbox.work().display().to_string(), format!("--container-mounts={}", sandbox.work().display()));
        let script = format!(
            "#!/bin/sh\ncd {work}\nsbatch --parsable --hold --array=1-2 --mem=64M -c1 -o {work}/out.%a --open-mode=append \
             --container-image=$IMAGE {}\n",
            inner.display()
        );
        let outer = sandbox.cmd("sbatch").args(["--wait", "--mem=64M", "-o", "outer", &mount, "--container-image", &image]);
        outer.arg(sandbox.write("outer.sh", script)).env("IMAGE", &moving).ok();
        let job: u64 = sandbox.read("outer").trim().parse().unwrap();
        sandbox.cmd("scontrol").args(["release", &job.to_string()]).ok();
        let digests = || {
            let told = sandbox.cmd("sacct").args(["-nXP", "-j", &job.to_string(), "-o", "state,imagedigest"]).ok().text();
            let lines: Vec<String> = told.lines().filter(|line| line.starts_with("COMPLETED|sha256:")).map(str::to_string).collect();
            (lines.len() == 2).then_some(lines)
        };
        let all = wait(90, digests).unwrap_or_else(|| panic!("{}", sandbox.cmd("sacct").args(["-P", "-j", &job.to_string()]).ok()));
        assert_eq!(moves.lookups(), 2, "each task asks for itself");
        assert_eq!(all[0], all[1]);
        let kept = all[0].split_once('|').unwrap().1.to_string();
        assert!(either.contains(&kept), "{kept} is none of {either:?}");
        let said = if kept == either[0] { "/data/kept\n" } else { "other\n" };
        assert_eq!((sandbox.read("out.1").as_str(), sandbox.read("out.2").as_str()), (said, said));
        // And so has a run that comes later, when the controller has forgotten what it had in memory.
        sandbox.down();
        sandbox.up();
        sandbox.cmd("scontrol").args(["requeue", &format!("{job}_1")]).ok();
        sandbox.wait_file("out.1", &said.repeat(2), 60);
        assert_eq!(moves.lookups(), 2);
    }

    fn what_a_pull_took_is_on_record(who) {
        let registry = Registry::open();
        let image = registry.push(&images::layers(), "team/layers:1", &[]);
        let config = format!("{}[[node]]\nname = \"ALL\"\ngres = [{{ name = \"gpu\", count = 2 }}]\n", registry.without_tls());
        let mut sandbox = Sandbox::with_config(who, &config);
        let container = format!("--container-image={image}");
        let names = "ImagePull,ImageBytes,ImageHit,GPUWait,ImageDigest";
        let work = sandbox.work().display().to_string();
        let mount = format!("--container-mounts={work}");
        let script = format!("#!/bin/sh\necho begun\nwhile [ ! -e {work}/go ]; do sleep 0.1; done\n");
        // The registry says nothing for a while: the job waits for its image, visibly.
        let job = sandbox.sbatch(&["--hold", "--gres=gpu:2", "--mem=64M", "--output=out", &mount, &container], &script);
        registry.freeze();
        sandbox.cmd("scontrol").args(["release", &job.to_string()]).ok();
        let id = job.to_string();
        let queue = || sandbox.cmd("squeue").args(["-h", "-j", &id, "-o", "%t %r %R"]).ok().text();
        let waiting = wait(20, || Some(queue()).filter(|line| line.starts_with("CF ImagePull")));
        assert!(waiting.is_some_and(|line| line.contains("(ImagePull")), "{}", queue());
        let shown = sandbox.cmd("scontrol").args(["show", "job", &id]).ok().text();
        assert!(shown.contains("JobState=CONFIGURING Reason=ImagePull"), "{shown}");
        let json: Value = serde_json::from_str(&sandbox.cmd("squeue").args(["--json", "-j", &id]).ok().text()).unwrap();
        assert!(json["jobs"][0]["state_reason"].as_str().is_some_and(|r| r.starts_with("ImagePull")), "{json}");
        // Nothing is said before it is known.
        assert_eq!(fields(&sandbox, job, 1, names)[..4], ["", "", "", ""]);
        std::thread::sleep(std::time::Duration::from_secs(1));
        registry.thaw();
        sandbox.wait_file("out", "begun", 60);
        let known = |row: usize| {
            let row = wait(20, || Some(fields(&sandbox, job, row, names)).filter(|f| !f[0].is_empty()));
            row.expect("nothing was recorded")
        };
        let record = known(1);
        let number = |text: &str| text.parse::<f64>().unwrap();
        assert!(number(&record[0]) >= 1.0 && number(&record[0]) < 60.0, "{record:?}");
        assert!(number(&record[1]) > 1000.0 && record[2] == "No", "{record:?}");
        assert!((number(&record[3]) - 2.0 * number(&record[0])).abs() < 0.01, "{record:?}");
        assert_eq!(record, known(0), "the job's line and its script's");
        let (agent, controller) = (sandbox.agent(), sandbox.controller());
        sandbox.kill_9(agent);
        sandbox.kill_9(controller);
        sandbox.up();
        assert_eq!(fields(&sandbox, job, 1, names), record, "while it runs, after both were killed");
        let step = sandbox.cmd("scontrol").args(["show", "step", &format!("{job}.batch")]).ok().text();
        let line = format!("ImagePull={} ImageBytes={} ImageHit=No GPUWait={}", record[0], record[1], record[3]);
        assert!(step.contains(&line) && step.contains(&format!("ImageDigest={}", record[4])), "{step}");
        let shown = sandbox.cmd("scontrol").args(["-d", "show", "job", &id]).ok().text();
        assert!(shown.contains(&line), "{shown}");
        sandbox.write("go", "");
        sandbox.wait_state(job, "COMPLETED", 60);
        assert_eq!(fields(&sandbox, job, 1, names), record, "after its end");
        // The second one finds all of it.
        let second = sandbox.sbatch(&["--wait", "--mem=64M", "--output=none", &container], "#!/bin/sh\nexit 0\n");
        let again = fields(&sandbox, second, 1, names);
        assert_eq!(again[1..], ["0", "Yes", "0.000", &record[4]]);
        let json: Value = serde_json::from_str(&sandbox.cmd("sacct").args(["--json", "-j", &second.to_string()]).ok().text()).unwrap();
        let step = &json["jobs"][0]["steps"][0]["image"];
        assert_eq!((&step["pull"]["hit"], &step["digest"]), (&Value::Bool(true), &Value::String(record[4].clone())));
        // Without an image there is nothing to say.
        let plain = sandbox.sbatch(&["--wait", "--mem=64M", "--output=none"], "#!/bin/sh\nexit 0\n");
        assert_eq!(fields(&sandbox, plain, 1, names), [""; 5]);
        assert!(sandbox.cmd("sacct").arg("--helpformat").ok().text().contains("ImagePull"));
    }
}

each_user! {
    fn squeue_shows_how_much_of_an_image_has_come(who) {
        let registry = Registry::open();
        let mut noise = vec![0; 10 << 20];
        std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
        let place = tempfile::tempdir().unwrap();
        layout::write(place.path(), vec![layout::busybox().file("noise", 0o644, &noise)], json!({}));
        registry.push(place.path(), "team/heavy:1", &[]);
        // Five seconds or so.
        let address = slow(&registry, 2e6);
        let sandbox = Sandbox::with_config(who, &format!("[images]\ninsecure_registries = [\"{address}\"]\n"));
        let container = format!("--container-image={address}/team/heavy:1");
        let job = sandbox.sbatch(&["--mem=64M", "--output=out", &container], "#!/bin/sh\necho begun\n");
        let id = job.to_string();
        let begun = || std::fs::read(sandbox.work().join("out")).is_ok_and(|out| out.starts_with(b"begun"));
        let percent = |reason: &str| reason.strip_prefix("ImagePull_")?.strip_suffix('%')?.parse::<u8>().ok();
        let (mut table, mut document) = (Vec::new(), Vec::new());
        wait(60, || {
            let line = sandbox.cmd("squeue").args(["-h", "-j", &id, "-o", "%t %r"]).run().text();
            table.extend(line.strip_prefix("CF ").and_then(percent));
            let text = sandbox.cmd("squeue").args(["--json", "-j", &id]).run().text();
            let shown: Value = serde_json::from_str(&text).unwrap_or_default();
            document.extend(shown["jobs"][0]["state_reason"].as_str().and_then(percent));
            begun().then_some(())
        })
        .unwrap_or_else(|| panic!("{}", sandbox.cmd("scontrol").args(["show", "job", &id]).ok()));
        for seen in [table, document] {
            assert!(seen.is_sorted() && seen.iter().all(|percent| *percent <= 100), "{seen:?}");
            let mut growing = seen.clone();
            growing.dedup();
            assert!(growing.len() >= 2, "{seen:?}");
        }
        sandbox.wait_state(job, "COMPLETED", 60);
    }
}

/// The process that fetches for a user, with the image of a job of this agent's.
fn fetcher(agent: i32, user: &Who) -> Option<i32> {
    helper(agent, user.uid, "internal-fetch\0--image")
}

/// A process of this agent's that brings an image, by who it is and the words that it was started with.
pub(crate) fn helper(agent: i32, uid: u32, words: &str) -> Option<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.find(|pid| {
        let read = |name: &str| std::fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let status = String::from_utf8_lossy(&read("status")).into_owned();
        let line = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            line.split_whitespace().next().unwrap_or_default().to_string()
        };
        let brings = String::from_utf8_lossy(&read("cmdline")).contains(words);
        brings && line("PPid:") == agent.to_string() && line("Uid:") == uid.to_string()
    })
}

/// What the control groups of a process say that unpacks an image: of its own, and of all of its user's; and what it may have for itself.
const BOUNDS: &str = r#"at=$(sed -n 's#.*\(/berth-[^:/]*/unpack/[^:]*\)$#\1#p' "/proc/$1/cgroup" | head -n 1)
[ -n "$at" ] || exit 1
for place in $(sed -n 's/^[^ ]* [^ ]* [^ ]* [^ ]* \([^ ]*\) .* - cgroup2\{0,1\} .*/\1/p' /proc/self/mountinfo); do
    for file in memory.max memory.limit_in_bytes; do
        for group in "$at" "${at%/*}"; do find "$place" -path "*$group/$file" -exec cat {} + 2>/dev/null; done
    done
done
echo "$at"
sed -n 's/^Max data size *\([^ ]*\) .*/\1/p' "/proc/$1/limits""#;

/// Bytes of 1.5 GiB, which such a process may have for itself where the store is in memory.
const OWN_MEMORY: &str = "1610612736";

/// What is said of the process that unpacks an image for a job of the user: the bounds of its groups, its group, and the most that it may
/// have for itself.
fn unpacking(config: &str) -> Vec<String> {
    let registry = Registry::open();
    let image = registry.push(&images::layers(), "team/layers:1", &[]);
    let sandbox = Sandbox::with_config(Who::root(), &format!("{}{config}", registry.without_tls()));
    let container = format!("--container-image={image}");
    let words =
        ["--parsable", "--hold", "--mem=64M", "-o", "/dev/null", &container, "--wrap", "cat /data/kept"];
    let user = Who::user();
    let job = sandbox.cmd_as(&user, "sbatch").dir("/").args(words).ok().text().trim().parse::<u64>().unwrap();
    registry.freeze();
    sandbox.cmd("scontrol").args(["release", &job.to_string()]).ok();
    let told = wait(30, || {
        let pid = helper(sandbox.agent(), store_owner(&Who::root()), "internal-unpack\0")?;
        let said = berth_tests::Cmd::new("sh").args(["-c", BOUNDS, "sh", &pid.to_string()]).run();
        (said.rc == 0).then(|| said.text())
    });
    registry.thaw();
    let told = told.expect("what unpacks is in no group of its own");
    sandbox.wait_state(job, "COMPLETED", 90);
    let lines: Vec<String> = told.lines().map(str::to_owned).collect();
    assert!(lines.iter().any(|line| line.contains(&format!("/unpack/user_{}/", user.uid))), "{told}");
    lines
}

/// Each import has a process of its own that unpacks, whose memory no job is charged with.
#[test]
fn what_unpacks_for_a_user_has_bounds_of_its_own_as_root() {
    let told = unpacking("");
    assert_eq!(told[..2], ["1073741824", "2147483648"], "{told:?}");
    assert_ne!(told.last().unwrap(), OWN_MEMORY, "{told:?}");
}

/// What it writes is charged to its groups then, and may be as much as the store holds, with 2 KiB for each of its 16,384 files.
#[test]
fn what_unpacks_into_memory_has_bounds_of_its_own_beside_the_stores_as_root() {
    let store = (64 << 20) + 16_384 * 2048_u64;
    let told = unpacking("memory = \"64M\"\n");
    assert_eq!(told[..2], [(1 << 30) + store, (2 << 30) + store].map(|bytes| bytes.to_string()), "{told:?}");
    assert_eq!(told.last().unwrap(), OWN_MEMORY, "{told:?}");
}

/// The process that speaks to the registry is the user's, who may stop it; it holds the image's lock by way of the other one.
#[test]
fn a_user_who_stops_their_own_fetching_holds_up_nobody_for_long_as_root() {
    let registry = Registry::open();
    let image = registry.push(&images::layers(), "team/layers:1", &[]);
    let sandbox = Sandbox::with_config(Who::root(), &registry.without_tls());
    let container = format!("--container-image={image}");
    let submit = |who: &Who| {
        let words = [
            "--parsable",
            "--hold",
            "--mem=64M",
            "-c1",
            "-o",
            "/dev/null",
            &container,
            "--wrap",
            "cat /data/kept",
        ];
        sandbox.cmd_as(who, "sbatch").dir("/").args(words).ok().text().trim().parse::<u64>().unwrap()
    };
    let release = |job: u64| sandbox.cmd("scontrol").args(["release", &job.to_string()]).ok();
    let (one, other) = (Who::user(), Who::stranger());
    let (first, second) = (submit(&one), submit(&other));
    registry.freeze();
    release(first);
    let agent = sandbox.agent();
    let pid = wait(30, || fetcher(agent, &one)).expect("nothing is fetched");
    let pid = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP).unwrap();
    release(second);
    let waits = || fetcher(agent, &other);
    wait(30, waits).expect("the other does not fetch");
    registry.thaw();
    sandbox.wait_state(second, "COMPLETED", 90);
    sandbox.wait_state(first, "FAILED", 60);
    let shown = sandbox.cmd("scontrol").args(["show", "job", &first.to_string()]).ok().text();
    assert!(shown.contains("no sign of life"), "{shown}");
}
