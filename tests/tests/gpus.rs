//! GPUs of a node from detection to the container: a library that stands in for NVIDIA's, recorded files, and real character devices
//! made by the test.

mod environment;
mod idle;
mod imex;
mod makers;
mod mismatch;
mod mps;
mod parts;
mod xids;

use berth_tests::{Cmd, Sandbox, Who, images, machine, sandbox};
use std::fs;
use std::path::{Path, PathBuf};

const VERSION: &str = "535.54.03";
/// Devices that any program may open, and the minor numbers under which they are GPUs here.
const NODES: [(u32, &str); 2] = [(240, "10 229"), (241, "10 200")];

/// A node with two GPUs, its cluster, and what goes with it.
struct Node {
    sandbox: Sandbox,
    made: Vec<PathBuf>,
    /// Device files have one name on a machine.
    _alone: nix::fcntl::Flock<fs::File>,
}

impl Node {
    fn start() -> Node {
        Node::with(|_, _| ())
    }

    /// With what else the node has: its files, and a directory to make them in.
    fn with(more: impl FnOnce(&Path, &Path)) -> Node {
        Node::configured("", more)
    }

    /// And with what `berth.toml` says besides.
    fn configured(sections: &str, more: impl FnOnce(&Path, &Path)) -> Node {
        let _alone = machine::lock("gpus");
        let mut made = Vec::new();
        for (minor, number) in NODES {
            let file = PathBuf::from(format!("/dev/nvidia{minor}"));
            assert!(!file.exists(), "{} is there: an earlier test left it", file.display());
            let words = number.split(' ');
            Cmd::new("mknod").args(["-m", "666"]).arg(&file).arg("c").args(words).ok();
            made.push(file);
        }
        let mut sandbox = Sandbox::empty(Who::root());
        let work = sandbox.work();
        let tree = work.join("tree");
        record(&tree);
        compile(&work, &tree);
        more(&tree, &work);
        sandbox.write("mode", "links");
        // Heartbeats and looks every second.
        let config = format!("node_timeout_seconds = 6\n[gpus]\nsample_seconds = 1\n{sections}");
        fs::write(sandbox.state().join("berth.toml"), config).unwrap();
        up(&mut sandbox);
        Node { sandbox, made, _alone }
    }

    fn gres(&self) -> String {
        self.sandbox.cmd("sinfo").args(["-h", "-N", "-o", "%G"]).ok().text().trim().to_string()
    }

    /// What GPUs do from now on, as `standin.c` reads it.
    fn does(&self, text: &str) {
        fs::write(self.sandbox.work().join("use.new"), text).unwrap();
        fs::rename(self.sandbox.work().join("use.new"), self.sandbox.work().join("use")).unwrap();
    }

    /// What `sstat` says of a job's steps, once it is what is expected.
    fn sees(&self, job: u64, fields: &str, expected: &str) {
        let words = ["-n", "-P", "-a", "-j", &job.to_string(), "-o", fields].map(str::to_string);
        let ask = || self.sandbox.cmd("sstat").args(&words).ok().text();
        let seen = sandbox::wait(30, || ask().contains(expected).then_some(()));
        assert!(seen.is_some(), "sstat does not say {expected}: {}", ask());
    }

    fn again(&mut self) {
        self.sandbox.kill_9(self.sandbox.agent());
        up(&mut self.sandbox);
    }

    fn srun(&self, words: &[&str]) -> Cmd {
        let image = format!("--container-image={}", images::debian().display());
        let mount = format!("--container-mounts={0}:{0}", self.sandbox.work().join("cuda").display());
        self.sandbox.srun([image, mount].iter().map(String::as_str).chain(words.iter().copied()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for file in &self.made {
            let _ = fs::remove_file(file);
        }
    }
}

fn up(sandbox: &mut Sandbox) {
    let work = sandbox.work();
    let words = [
        format!("BERTH_GPU_TREE={}", work.join("tree").display()),
        format!("LD_LIBRARY_PATH={}", work.display()),
        "STANDIN_GPUS=2".into(),
        "STANDIN_MINOR=240".into(),
        "STANDIN_INSTANCES=1".into(),
        format!("STANDIN_MODE={}", work.join("mode").display()),
        format!("STANDIN_USE={}", work.join("use").display()),
        "berth".into(),
        "up".into(),
        "--detach".into(),
    ];
    sandbox.up_by("env", &words);
}

/// What the driver's and the kernel's files say.
fn record(tree: &Path) {
    let write = |path: &str, text: &str| {
        let file = tree.join(path.trim_start_matches('/'));
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    let line =
        format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  Tue Jun  6 22:20:39 UTC 2023\n");
    write("/proc/driver/nvidia/version", &line);
    for (at, (minor, _)) in NODES.iter().enumerate() {
        let bus = format!("0000:{:02x}:00.0", 0x80 - 0x10 * at);
        let text = format!("Model: \t\t NVIDIA A100-SXM4-40GB\nDevice Minor: \t {minor}\n");
        write(&format!("/proc/driver/nvidia/gpus/{bus}/information"), &text);
        write(&format!("/dev/nvidia{minor}"), "");
    }
    write("/usr/bin/nvidia-smi", "#!/bin/sh\necho smi\n");
    let smi = tree.join("usr/bin/nvidia-smi");
    fs::set_permissions(smi, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
}

/// The library of management, a library of CUDA that answers 42, and a program that asks it.
fn compile(work: &Path, tree: &Path) {
    let cc = |words: &[&str]| Cmd::new("cc").args(words).ok();
    let source = machine::workspace().join("agent/gpus/tests/standin.c");
    let out = work.join("libnvidia-ml.so.1");
    cc(&["-shared", "-fPIC", "-o", &out.display().to_string(), &source.display().to_string()]);
    let dir = tree.join("usr/lib64");
    fs::create_dir_all(&dir).unwrap();
    fs::create_dir_all(work.join("cuda")).unwrap();
    let (library, program) = (work.join("cuda.c"), work.join("program.c"));
    fs::write(&library, "int cuInit(unsigned flags) { return 42 + flags; }\n").unwrap();
    fs::write(&program, "extern int cuInit(unsigned); int main(void) { return cuInit(0); }\n").unwrap();
    let cuda = dir.join(format!("libcuda.so.{VERSION}")).display().to_string();
    cc(&["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", &cuda, &library.display().to_string()]);
    let out = work.join("cuda/program").display().to_string();
    cc(&["-o", &out, &program.display().to_string(), &cuda]);
    fs::copy(work.join("libnvidia-ml.so.1"), dir.join(format!("libnvidia-ml.so.{VERSION}"))).unwrap();
    std::os::unix::fs::symlink(format!("libnvidia-ml.so.{VERSION}"), dir.join("libnvidia-ml.so.1")).unwrap();
}

/// The number of the one process with this command line.
fn find(words: &[&str]) -> u32 {
    let wanted: Vec<u8> = words.iter().flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
    let found = sandbox::wait(20, || {
        fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid = entry.file_name().to_str()?.parse::<u32>().ok()?;
            (fs::read(entry.path().join("cmdline")).ok()? == wanted).then_some(pid)
        })
    });
    found.unwrap_or_else(|| panic!("{words:?} does not run"))
}

fn end(pid: u32) {
    let _ = nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid.try_into().unwrap()),
        nix::sys::signal::SIGKILL,
    );
}

#[test]
fn what_a_step_uses_of_its_gpu_is_seen_while_it_runs_and_on_record_when_it_has_ended() {
    if !machine::is_root() {
        return;
    }
    let mut node = Node::start();
    let job = node.sandbox.sbatch(&["--gres=gpu:1"], "#!/bin/sh\nsrun sleep 77001\nsleep 1\n");
    let pid = find(&["sleep", "77001"]);
    // Its first GPU is the library's second one.
    node.does(&format!("device 1 80 2100\nprocess 1 {pid} 2000 80\n"));
    node.sees(job, "jobid,maxgpuutil,maxgpumem", &format!("{job}.0|80|2048000K"));
    node.sees(job, "jobid,maxgpuutil,maxgpumem", &format!("{job}.batch|0|0"));
    let time = |text: String| {
        text.trim().split(':').map(|n| n.parse::<u64>().unwrap()).fold(0, |sum, n| sum * 60 + n)
    };
    let step = format!("{job}.0");
    let busy = || {
        let out = node.sandbox.cmd("sstat").args(["-n", "-P", "-j", &step, "-o", "gputime"]).ok().text();
        (time(out) >= 2).then_some(())
    };
    assert!(sandbox::wait(30, busy).is_some());
    // Another agent goes on with what the first one saw, and another controller hears it again.
    node.again();
    node.does(&format!("device 1 10 3100\nprocess 1 {pid} 3000 10\n"));
    node.sees(job, "jobid,maxgpuutil,maxgpumem", &format!("{job}.0|80|3072000K"));
    node.sandbox.kill_9(node.sandbox.controller());
    up(&mut node.sandbox);
    node.sees(job, "jobid,maxgpuutil,maxgpumem", &format!("{job}.0|80|3072000K"));
    node.does("device 1 0 0\n");
    end(pid);
    node.sandbox.wait_state(job, "COMPLETED", 30);
    let rows = node.sandbox.sacct(job, "jobid,maxgpuutil,maxgpumem,tresusageinmax,gputime,alloctres");
    let row = rows.iter().find(|row| row[0] == step).unwrap();
    assert_eq!(row[1..3], ["80", "3072000K"], "{rows:?}");
    assert!(row[3].contains("gres/gpumem=3072000K,gres/gpuutil=80,mem="), "{rows:?}");
    assert!(time(row[4].clone()) >= 2 && row[5].contains("gres/gpu=1"), "{rows:?}");
    // No GPU, no word of one.
    let plain = node.sandbox.sbatch(&[], "#!/bin/sh\ntrue\n");
    node.sandbox.wait_state(plain, "COMPLETED", 30);
    let rows = node.sandbox.sacct(plain, "jobid,tresusageinmax,gputime");
    assert!(rows.iter().all(|row| !row[1].contains("gpu") && row[2].is_empty()), "{rows:?}");
}

#[test]
fn what_a_job_leaves_on_its_gpu_is_ended_or_fences_it_until_it_is_free() {
    if !machine::is_root() {
        return;
    }
    let node = Node::start();
    let log = node.sandbox.state().join("log/agent.log");
    let left = |own: bool, seconds: &str| {
        let job = node.sandbox.sbatch(&["--gres=gpu:1"], "#!/bin/sh\nsleep 77002\n");
        let sleeps = find(&["sleep", "77002"]);
        // What was there before is not the job's.
        let noted = node.sandbox.state().join(format!("jobs/{job}/gpus-before-0.json"));
        assert!(sandbox::wait(30, || noted.exists().then_some(())).is_some(), "nobody looked");
        let mut stray = std::process::Command::new("sleep");
        stray.arg(seconds);
        if own {
            stray.env("SLURM_JOB_ID", job.to_string());
        }
        let mut stray = stray.spawn().unwrap();
        node.does(&format!("device 1 0 100\nprocess 1 {} 100 0\n", stray.id()));
        end(sleeps);
        node.sandbox.wait_state(job, "FAILED", 30);
        (sandbox::wait(if own { 30 } else { 1 }, || stray.try_wait().unwrap()).is_some(), stray)
    };
    let (gone, _) = left(true, "77003");
    assert!(gone, "a process that says itself to be the job's");
    node.does("");
    assert_eq!(node.srun(&["--gres=gpu:2", "true"]).run().rc, 0);
    let (gone, mut stray) = left(false, "77004");
    assert!(!gone, "somebody else's is not ours to end");
    let fenced = || fs::read_to_string(&log).unwrap_or_default().contains("leaves GPU 0 unfit").then_some(());
    assert!(sandbox::wait(30, fenced).is_some(), "the log does not say it");
    let text = node.srun(&["--gres=gpu:1", "sh", "-c", "ls /dev | grep nvidia"]).ok().text();
    assert_eq!(text.trim(), "nvidia240", "the other one");
    stray.kill().unwrap();
    stray.wait().unwrap();
    node.does("");
    let both = || (node.srun(&["--immediate=2", "--gres=gpu:2", "true"]).run().rc == 0).then_some(());
    assert!(sandbox::wait(60, both).is_some(), "it is free and not given");
}

#[test]
fn a_job_is_told_that_a_gpu_of_its_own_is_fenced() {
    if !machine::is_root() {
        return;
    }
    let mut node = Node::start();
    let job = node.sandbox.sbatch(&["--gres=gpu:2", "-o", "out"], "#!/bin/sh\nsleep 77005\n");
    find(&["sleep", "77005"]);
    node.sandbox.write("mode", "lost");
    node.again();
    node.sandbox.wait_file("out", "*** GPU 1 (0000:80:00.0) of", 30);
    node.sandbox.wait_file("out", "is fenced: it fell off the bus", 30);
    let show = node.sandbox.cmd("scontrol").args(["show", "job", &job.to_string()]).ok().text();
    assert!(show.contains("SystemComment=GPU 1 (0000:80:00.0) of"), "{show}");
    node.sandbox.cmd("scancel").arg(job.to_string()).ok();
    node.sandbox.wait_state(job, "CANCELLED", 30);
}

#[test]
fn a_container_has_its_gpu_its_driver_and_nothing_of_the_other_gpu() {
    if !machine::is_root() {
        return;
    }
    let node = Node::start();
    assert!(node.gres().contains("gpu:nvidia_a100-sxm4-40gb:2"), "{}", node.gres());
    let program = node.sandbox.work().join("cuda/program").display().to_string();
    // GPUs are in the order of their addresses: the first one is the one with the higher number.
    let one = node.srun(&[
        "--gres=gpu:1",
        "sh",
        "-c",
        "ls /dev | grep nvidia; ls /usr/local/nvidia/lib64; nvidia-smi",
    ]);
    let text = one.ok().text();
    let lines: Vec<&str> = text.lines().collect();
    let names = [
        "libcuda.so",
        "libcuda.so.1",
        "libcuda.so.535.54.03",
        "libnvidia-ml.so.1",
        "libnvidia-ml.so.535.54.03",
    ];
    assert_eq!(lines[0], "nvidia241", "{text}");
    assert_eq!((&lines[1..6], lines[6]), (&names[..], "smi"), "{text}");
    // By the search path that Berth sets, and by the loader's cache where a script sets another.
    for before in ["", "LD_LIBRARY_PATH=/nothing ", "unset LD_LIBRARY_PATH; "] {
        let ran = node.srun(&["--gres=gpu:1", "sh", "-c", &format!("{before}{program}")]).run();
        assert_eq!(ran.rc, 42, "{before}: {ran}");
    }
    // A root directory is a container like others.
    let layout = format!("{}:latest", images::debian().display());
    node.sandbox.cmd("umoci").args(["--log=error", "unpack", "--image", &layout, "bundle"]).ok();
    let root = format!("--container-image={}", node.sandbox.work().join("bundle/rootfs").display());
    let mount = format!("--container-mounts={0}:{0}", node.sandbox.work().join("cuda").display());
    let ran = node.sandbox.srun([&root, &mount, "--gres=gpu:1", &program]).run();
    assert_eq!(ran.rc, 42, "{ran}");
    // What an image or a user says never widens it; and the other one cannot be opened by its number.
    let attack = "ls /dev | grep -c nvidia; mknod /tmp/n c 10 229 && exec 3</tmp/n && echo opened; true";
    let text = node
        .srun(&["--gres=gpu:1", "--export=ALL,NVIDIA_VISIBLE_DEVICES=all", "sh", "-c", attack])
        .ok()
        .text();
    assert_eq!(text.trim(), "1");
    // On the node's own filesystem the other one is there and does not open.
    let host = "echo $SLURM_STEP_GPUS; for f in 240 241; do (exec 3</dev/nvidia$f) 2>/dev/null && echo $f; done; true";
    let text = node.sandbox.srun(["--gres=gpu:1", "sh", "-c", host]).ok().text();
    // The first one may still be looked at after the job that had it.
    assert!(["0\n241", "1\n240"].contains(&text.trim()), "{text}");
    // Without a GPU there is nothing.
    let none = node.srun(&["sh", "-c", "ls /dev | grep nvidia; ls -d /usr/local/nvidia; true"]).ok().text();
    assert!(!none.contains("nvidia241") && !none.contains("lib64"), "{none}");
    assert_eq!(node.sandbox.srun(["sh", "-c", host]).ok().text().trim(), "");
    // What of the driver comes is said by the variable.
    let text = node.srun(&[
        "--gres=gpu:1",
        "--export=ALL,NVIDIA_DRIVER_CAPABILITIES=utility",
        "ls",
        "/usr/local/nvidia/lib64",
    ]);
    assert!(!text.ok().text().contains("libcuda"));
}

#[test]
fn a_node_without_the_libraries_of_its_driver_starts_no_container_that_computes() {
    if !machine::is_root() {
        return;
    }
    let node = Node::with(|tree, _| {
        fs::remove_file(tree.join(format!("usr/lib64/libcuda.so.{VERSION}"))).unwrap();
    });
    let lacks =
        format!("libcuda.so.{VERSION}, which belongs to the loaded kernel module, is not on the node");
    node.srun(&["--gres=gpu:1", "true"]).fails().says(&[&lacks, "NVIDIA_DISABLE_REQUIRE=1"]);
    // Who looks is told, and who tries may.
    for word in ["NVIDIA_DRIVER_CAPABILITIES=utility", "NVIDIA_DISABLE_REQUIRE=1"] {
        let ran = node.srun(&["--gres=gpu:1", &format!("--export=ALL,{word}"), "true"]).run();
        assert!(ran.rc == 0 && ran.err().contains(&lacks), "{word}: {ran}");
    }
    // What an image says for every machine is no word about this one.
    let copy = node.sandbox.work().join("own");
    Cmd::new("cp").args(["-r", "--"]).arg(images::debian()).arg(&copy).ok();
    let layout = format!("{}:latest", copy.display());
    let config = ["--log=error", "config", "--config.env", "NVIDIA_DISABLE_REQUIRE=1", "--image", &layout];
    node.sandbox.cmd("umoci").args(config).ok();
    let image = format!("--container-image={}", copy.display());
    node.sandbox.srun([image.as_str(), "--gres=gpu:1", "true"]).fails().says(&[&lacks]);
    node.srun(&["true"]).ok();
    node.sandbox.srun(["--gres=gpu:1", "true"]).ok();
}

/// Files by which the node's GPUs draw: real ones, under names that no machine has, for as long as this lives.
#[derive(Default)]
struct Drawing(Vec<PathBuf>);

impl Drawing {
    const DIRECTORY: &str = "/dev/dri";
    /// By the minor numbers of their GPUs.
    const NUMBERS: [(u32, &str); 2] = [(240, "10 237"), (241, "7 1")];

    fn make(&mut self, tree: &Path) {
        if !Path::new(Self::DIRECTORY).exists() {
            fs::create_dir(Self::DIRECTORY).unwrap();
            self.0.push(Self::DIRECTORY.into());
        }
        for (at, (minor, number)) in Self::NUMBERS.iter().enumerate() {
            let file = Path::new(Self::DIRECTORY).join(format!("renderD{minor}"));
            assert!(!file.exists(), "{} is there: an earlier test left it", file.display());
            Cmd::new("mknod").args(["-m", "666"]).arg(&file).arg("c").args(number.split(' ')).ok();
            let bus = format!("sys/bus/pci/devices/0000:{:02x}:00.0/drm/renderD{minor}", 0x80 - 0x10 * at);
            fs::create_dir_all(tree.join(bus)).unwrap();
            fs::create_dir_all(tree.join("dev/dri")).unwrap();
            fs::write(tree.join(format!("dev/dri/renderD{minor}")), "").unwrap();
            self.0.push(file);
        }
    }
}

impl Drop for Drawing {
    fn drop(&mut self) {
        for path in self.0.iter().rev() {
            // The directory goes when nobody else has put something there.
            let _ = if path.is_dir() { fs::remove_dir(path) } else { fs::remove_file(path) };
        }
    }
}

#[test]
fn the_files_by_which_a_gpu_draws_are_its_jobs_and_come_into_containers_with_graphics_alone() {
    if !machine::is_root() {
        return;
    }
    let mut drawing = Drawing::default();
    let node = Node::with(|tree, _| drawing.make(tree));
    let opens = "for n in 240 241; do (exec 3</dev/dri/renderD$n) 2>/dev/null && echo $n; done; true";
    // On the node's own filesystem all are there: its own alone opens, and without a GPU none.
    let host = format!("echo $SLURM_STEP_GPUS; {opens}");
    let text = node.sandbox.srun(["--gres=gpu:1", "sh", "-c", &host]).ok().text();
    assert!(["0\n241", "1\n240"].contains(&text.trim()), "{text}");
    assert_eq!(node.sandbox.srun(["sh", "-c", opens]).ok().text().trim(), "");
    // A container has none that did not ask for graphics, and cannot make one: neither of its own GPU's nor of the other's.
    let made = format!(
        "ls /dev/dri; {opens}; mknod /tmp/a c 10 237 && exec 3</tmp/a && echo opened; mknod /tmp/b c 7 1 && exec 3</tmp/b && echo opened; true"
    );
    assert_eq!(node.srun(&["--gres=gpu:1", "sh", "-c", &made]).ok().text().trim(), "");
    assert_eq!(node.srun(&["sh", "-c", &made]).ok().text().trim(), "");
    let wants = "--export=ALL,NVIDIA_DRIVER_CAPABILITIES=graphics";
    let shown = format!("echo $SLURM_STEP_GPUS; ls /dev/dri; {opens}");
    let text = node.srun(&["--gres=gpu:1", wants, "sh", "-c", &shown]).ok().text();
    assert!(["0\nrenderD241\n241", "1\nrenderD240\n240"].contains(&text.trim()), "{text}");
    assert_eq!(
        node.srun(&[wants, "sh", "-c", &made]).ok().text().trim(),
        "",
        "without a GPU words give nothing"
    );
}

#[test]
fn an_image_that_wants_a_newer_driver_is_refused_before_it_starts() {
    if !machine::is_root() {
        return;
    }
    let node = Node::start();
    let wants = |what: &str, more: &[&str]| {
        let mut words = vec!["--gres=gpu:1", "true"];
        words.splice(1..1, more.iter().copied());
        let mut run = node.srun(&words);
        run = run.env("NVIDIA_REQUIRE_CUDA", what);
        run.run()
    };
    let refused = wants("cuda>=13.0", &[]);
    assert!(refused.rc != 0 && refused.to_string().contains("driver 535.54.03 with CUDA 12.2"), "{refused}");
    assert_eq!(wants("cuda>=12.1", &[]).rc, 0);
    assert_eq!(wants("cuda>=13.0", &["--export=ALL,NVIDIA_DISABLE_REQUIRE=1"]).rc, 0);
}

/// What NVIDIA calls forward compatibility: an image for a newer CUDA names older drivers for which it brings the newer libraries.
#[test]
fn an_image_that_allows_an_older_driver_runs_with_the_newer_libraries_that_it_brings() {
    if !machine::is_root() {
        return;
    }
    let node = Node::with(|_, work| {
        let dir = work.join("compat");
        fs::create_dir(&dir).unwrap();
        let source = work.join("compat.c");
        fs::write(&source, "int cuInit(unsigned flags) { return 43 + flags; }\n").unwrap();
        let library = dir.join("libcuda.so.1").display().to_string();
        let words =
            ["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", &library, &source.display().to_string()];
        Cmd::new("cc").args(words).ok();
    });
    let work = node.sandbox.work();
    let program = work.join("cuda/program").display().to_string();
    let mounts = format!(
        "--container-mounts={0}:{0},{1}:/usr/local/cuda/compat",
        work.join("cuda").display(),
        work.join("compat").display()
    );
    let image = format!("--container-image={}", images::debian().display());
    let run = |wants: &str| {
        let run = node.sandbox.srun([image.as_str(), &mounts, "--gres=gpu:1", &program]);
        run.env("NVIDIA_REQUIRE_CUDA", wants).run()
    };
    // The stand-in is a Tesla with CUDA 12.2.
    let ran = run("cuda>=13.0 brand=tesla,driver>=535,driver<536");
    assert_eq!(ran.rc, 43, "{ran}");
    // Where the driver is new enough its own library is the one.
    assert_eq!(run("cuda>=12.1 brand=tesla,driver>=470,driver<471").rc, 42);
    let refused = run("cuda>=13.0 brand=tesla,driver>=550,driver<551");
    assert!(![0, 42, 43].contains(&refused.rc), "{refused}");
    refused.says(&["driver 535.54.03 with CUDA 12.2"]);
}

#[test]
fn a_gpu_that_is_lost_is_fenced_and_the_other_one_works() {
    if !machine::is_root() {
        return;
    }
    let mut node = Node::start();
    node.sandbox.write("mode", "lost");
    node.sandbox.kill_9(node.sandbox.agent());
    up(&mut node.sandbox);
    let log = node.sandbox.state().join("log/agent.log");
    let said = || {
        fs::read_to_string(&log).unwrap_or_default().contains("is fenced: it fell off the bus").then_some(())
    };
    assert!(sandbox::wait(20, said).is_some(), "the log does not say it");
    let text = node.srun(&["--gres=gpu:1", "sh", "-c", "ls /dev | grep nvidia"]).ok().text();
    assert_eq!(text.trim(), "nvidia241");
    // The agent hears that it is well again when it looks anew.
    node.sandbox.write("mode", "ok");
    node.sandbox.kill_9(node.sandbox.agent());
    up(&mut node.sandbox);
    assert_eq!(node.srun(&["--gres=gpu:2", "sh", "-c", "ls /dev | grep -c nvidia"]).ok().text().trim(), "2");
}

#[test]
fn a_job_does_not_begin_on_a_gpu_that_fell_off_the_bus_since_the_last_look() {
    if !machine::is_root() {
        return;
    }
    let node = Node::start();
    // A device that does not answer reads as ones. The agent would look in a minute.
    let config = node.sandbox.work().join("tree/sys/bus/pci/devices/0000:80:00.0/config");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    fs::write(&config, [0xff; 64]).unwrap();
    node.srun(&["--gres=gpu:2", "true"]).fails().says(&[
        "GPU 1 does not work any more",
        "it fell off the bus",
        "submit this one again",
    ]);
    let shown = || node.sandbox.cmd("scontrol").args(["show", "node"]).ok().text();
    let fenced = sandbox::wait(30, || shown().contains("GresFault=gpu:1(it fell off the bus").then_some(()));
    assert!(fenced.is_some(), "{}", shown());
    let reasons = node.sandbox.cmd("sinfo").args(["-h", "-R", "-o", "%E|%u|%H"]).ok().text();
    assert!(
        reasons.starts_with("fenced gpu:1: it fell off the bus")
            && reasons.trim().ends_with("|berth|Unknown"),
        "{reasons}"
    );
    let text = node.srun(&["--gres=gpu:1", "sh", "-c", "ls /dev | grep nvidia"]).ok().text();
    assert_eq!(text.trim(), "nvidia241", "the other one works");
    assert!(!shown().contains("DRAIN"), "{}", shown());
}

#[test]
fn a_batch_job_whose_gpu_fell_off_the_bus_before_it_began_gets_the_other_one() {
    if !machine::is_root() {
        return;
    }
    let node = Node::start();
    // Has one of the two.
    let own = "#!/bin/sh\necho \"gpu $SLURM_JOB_GPUS.\"\n";
    let first =
        node.sandbox.sbatch(&["--mem=50", "--gres=gpu:1", "-o", "first"], &format!("{own}sleep 77006\n"));
    node.sandbox.wait_file("first", ".", 30);
    let has = node.sandbox.read("first");
    let (sick, bus) = match has.trim() {
        "gpu 0." => (1, "0000:80:00.0"),
        "gpu 1." => (0, "0000:70:00.0"),
        other => panic!("{other}"),
    };
    let config = node.sandbox.work().join("tree/sys/bus/pci/devices").join(bus).join("config");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    fs::write(&config, [0xff; 64]).unwrap();
    let job = node.sandbox.sbatch(&["--requeue", "--mem=50", "--gres=gpu:1", "-o", "out"], own);
    let show = || node.sandbox.cmd("scontrol").args(["show", "job", &job.to_string()]).ok().text();
    let waits = || {
        let text = show();
        (text.contains("JobState=PENDING") && text.contains("Restarts=1")).then_some(())
    };
    assert!(sandbox::wait(30, waits).is_some(), "it does not wait again: {}", show());
    let shown = node.sandbox.cmd("scontrol").args(["show", "node"]).ok().text();
    assert!(shown.contains(&format!("GresFault=gpu:{sick}(it fell off the bus")), "{shown}");
    assert!(!shown.contains("DRAIN"), "{shown}");
    node.sandbox.cmd("scancel").arg(first.to_string()).ok();
    node.sandbox.wait_state(job, "COMPLETED", 30);
    assert_eq!(node.sandbox.read("out"), has);
    assert!(show().contains("Restarts=1"), "{}", show());
}

/// A library of the driver's that was built against a glibc which nobody has.
fn from_the_future(tree: &Path, work: &Path) {
    let cc = |words: &[&str]| Cmd::new("cc").args(words).ok();
    let at = |name: &str| work.join(name).display().to_string();
    fs::write(at("libc.c"), "int future(void) { return 0; }\n").unwrap();
    fs::write(at("libc.map"), "GLIBC_2.2.5 { };\nGLIBC_2.99 { future; } GLIBC_2.2.5;\n").unwrap();
    fs::write(at("jit.c"), "int future(void);\nint jit(void) { return future(); }\n").unwrap();
    let map = format!("-Wl,--version-script={}", at("libc.map"));
    let libc = at("libfuture.so");
    cc(&["-shared", "-fPIC", "-nostdlib", "-Wl,-soname,libc.so.6", &map, "-o", &libc, &at("libc.c")]);
    let jit = tree.join(format!("usr/lib64/libnvidia-ptxjitcompiler.so.{VERSION}")).display().to_string();
    cc(&["-shared", "-fPIC", "-nostdlib", "-o", &jit, &at("jit.c"), &libc]);
}

#[test]
fn an_image_whose_c_library_cannot_load_the_driver_is_refused_with_both_versions() {
    if !machine::is_root() {
        return;
    }
    let node = Node::with(from_the_future);
    let refused = node.srun(&["--gres=gpu:1", "true"]).fails();
    refused.says(&[
        "libnvidia-ptxjitcompiler.so.535.54.03 needs glibc 2.99",
        "the image has glibc 2.",
        "newer distribution",
    ]);
    // What does not come cannot fail, and who wants to try may.
    node.srun(&["--gres=gpu:1", "--export=ALL,NVIDIA_DRIVER_CAPABILITIES=utility", "true"]).ok();
    node.srun(&["--gres=gpu:1", "--export=ALL,NVIDIA_DISABLE_REQUIRE=1", "true"]).ok();
    node.srun(&["true"]).ok();
    let root = node.sandbox.work().join("musl");
    ["lib", "bin"].iter().for_each(|dir| fs::create_dir_all(root.join(dir)).unwrap());
    fs::write(root.join("lib/ld-musl-x86_64.so.1"), "").unwrap();
    fs::write(root.join("lib/ld-musl-aarch64.so.1"), "").unwrap();
    let image = format!("--container-image={}", root.display());
    let refused = node.sandbox.srun([&image, "--gres=gpu:1", "true"]).fails();
    refused.says(&[
        "the image has musl instead of glibc (/lib/ld-musl-",
        "Debian",
        "NVIDIA_DISABLE_REQUIRE=1",
    ]);
}

#[test]
fn outside_of_jobs_a_machine_that_no_cluster_has_gives_its_gpus() {
    if !machine::is_root() {
        return;
    }
    let mut node = Node::start();
    let work = node.sandbox.work();
    let image = images::debian().display().to_string();
    let program = work.join("cuda/program").display().to_string();
    let run = |sandbox: &Sandbox| {
        let look = format!("ls /dev | grep nvidia; echo $CUDA_VISIBLE_DEVICES; {program}");
        let mount = format!("--container-mounts={0}:{0}", work.join("cuda").display());
        let cmd = sandbox.cmd("berth").args(["run", "--gpus", &mount, &image, "sh", "-c", &look]);
        let cmd = cmd.env("BERTH_GPU_TREE", work.join("tree")).env("LD_LIBRARY_PATH", &work);
        cmd.env("STANDIN_GPUS", "2").env("STANDIN_MINOR", "240").env("STANDIN_MODE", work.join("mode")).run()
    };
    let refused = run(&node.sandbox);
    assert!(refused.rc != 0 && refused.err().contains("gives this machine's GPUs to jobs"), "{refused}");
    node.sandbox.down();
    let ran = run(&node.sandbox);
    assert_eq!(
        (ran.rc, ran.text().lines().collect::<Vec<_>>()),
        (42, vec!["nvidia240", "nvidia241", "0,1"]),
        "{ran}"
    );
    node.sandbox.write("mode", "lost");
    let ran = run(&node.sandbox);
    assert_eq!((ran.rc, ran.text().lines().next()), (42, Some("nvidia241")), "{ran}");
}

/// GPUs that the node found itself, and of which no configuration speaks.
#[test]
fn a_login_into_a_job_reaches_its_gpus_alone() {
    if !machine::is_root() {
        return;
    }
    let node = Node::start();
    let user = Who::user();
    let words = [
        "--parsable",
        "--gres=gpu:1",
        "-n1",
        "--mem=50M",
        "-o",
        "/dev/null",
        "-D",
        "/",
        "--wrap",
        "sleep 300",
    ];
    let job: u64 = node.sandbox.cmd_as(&user, "sbatch").args(words).ok().text().trim().parse().unwrap();
    node.sandbox.wait_state(job, "RUNNING", 30);
    // As pam_exec starts it in the process that logs somebody in.
    let look = "for f in 240 241; do (exec 3</dev/nvidia$f) 2>/dev/null && echo $f; done; true";
    let script = format!("berth pam && {look}");
    let login = node.sandbox.cmd("sh").args(["-c", &script]);
    let text = login.env("PAM_USER", &user.name).env("PAM_TYPE", "open_session").ok().text();
    assert_eq!(text.trim(), "241");
    node.sandbox.cmd("scancel").arg(job.to_string()).ok();
}
