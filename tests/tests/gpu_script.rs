//! `tests/gpu/run.sh`, which waits for a machine with a GPU: what of it needs none is run here, so that it stays ready.

use berth_tests::{Cmd, Sandbox, Who, machine};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

#[test]
fn the_script_for_machines_with_a_gpu_packs_itself_and_what_it_packed_runs_dry_as_root() {
    if !machine::is_root() {
        return;
    }
    let sandbox = Sandbox::empty(Who::root());
    let script = machine::workspace().join("tests/gpu/run.sh");
    // Not compressed, as its name says: these programs are large.
    let pack = sandbox.cmd("bash").arg(&script).args(["--pack", "gpu.tar"]).arg(machine::programs());
    let packed = pack.limit(240).ok();
    assert!(packed.text().contains("run gpu/run.sh as root"), "{packed}");
    assert!(!script.with_file_name("image").exists(), "it leaves something in the checkout");
    sandbox.cmd("tar").args(["-xf", "gpu.tar"]).ok();
    assert!(sandbox.work().join("gpu/image/usr/bin/cuda-probe").exists());
    if Path::new("/proc/driver/nvidia/version").exists() {
        // Here it tries all of it, which is nothing for a test among others.
        return;
    }
    // With the programs and the image of the archive alone.
    let recorded = sandbox.work().join("recorded");
    let report = sandbox.work().join("report.md");
    let dry = sandbox.cmd("bash").args(["gpu/run.sh", "--dry"]).env("RECORDED", &recorded);
    let dry = dry.env("REPORT", &report);
    let ran = dry.limit(240).run();
    let text = ran.text();
    assert_eq!(ran.rc, 0, "{ran}");
    for line in [
        "ok    a container without a GPU runs",
        "ok    it sees no GPU",
        "ok    CUDA without a driver",
        "dry   needs a GPU",
    ] {
        assert!(text.lines().any(|said| said.starts_with(line)), "{line}\n{ran}");
    }
    assert!(!text.lines().any(|said| said.starts_with("BAD")), "{ran}");
    // What is kept of the machine is a tree in which GPUs can be looked for.
    let devices = fs::read_to_string(recorded.join("tree/proc/devices")).unwrap();
    assert!(devices.contains("Character devices:"), "{devices}");
    assert!(recorded.join("devices").exists() && recorded.join("libraries").exists());
    // And what it said is a section of the page.
    let report = fs::read_to_string(report).unwrap();
    assert!(report.starts_with("### ") && report.contains("no GPU, driver none"), "{report}");
    assert!(report.contains("ok    it sees no GPU\n") && report.ends_with("```\n"), "{report}");
}

const VERSION: &str = "535.54.03";

/// Minor numbers of GPUs, their addresses, and the devices that stand for them, which any program may open.
const GPUS: [(u32, &str, &str); 2] = [(240, "0000:80:00.0", "229"), (241, "0000:70:00.0", "200")];

/// The files of these devices, for as long as this lives.
#[derive(Default)]
struct Made(Vec<PathBuf>);

impl Made {
    fn make() -> Made {
        let mut made = Made::default();
        for (minor, _, number) in GPUS {
            let file = PathBuf::from(format!("/dev/nvidia{minor}"));
            assert!(!file.exists(), "{} is there: an earlier test left it", file.display());
            Cmd::new("mknod").args(["-m", "666"]).arg(&file).args(["c", "10", number]).ok();
            made.0.push(file);
        }
        made
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = fs::remove_file(file);
        }
    }
}

fn program(file: &Path, text: &str) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(file, text).unwrap();
    fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The driver of the GPUs below `work`: `tree` has its files, `lib` libraries of management and of CUDA, `bin` its program and a compiler.
fn stand_in(work: &Path) {
    let write = |path: &str, text: &str| {
        let file = work.join("tree").join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    let line =
        format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  Tue Jun  6 22:20:39 UTC 2023\n");
    write("proc/driver/nvidia/version", &line);
    let mut busy = String::new();
    for (at, (minor, bus, _)) in GPUS.iter().enumerate() {
        let information = format!("Model: \t\t NVIDIA A100-SXM4-40GB\nDevice Minor: \t {minor}\n");
        write(&format!("proc/driver/nvidia/gpus/{bus}/information"), &information);
        write(&format!("dev/nvidia{minor}"), "");
        // By somebody whom no step knows: then it counts for the step that has the GPU.
        busy += &format!("device {at} 80 100\nprocess {at} 4194300 100 80\n");
    }
    fs::write(work.join("use"), busy).unwrap();
    let smi = "#!/bin/sh\ncase $1 in *=name) echo 'NVIDIA A100-SXM4-40GB' ;; *=driver_version) echo 535.54.03 ;; esac\n\
               [ \"$1\" = -L ] && for n in 240 241; do (exec 3< /dev/nvidia$n) 2> /dev/null && echo \"GPU 0: A100 (UUID: GPU-$n)\"; done\n";
    program(&work.join("tree/usr/bin/nvidia-smi"), smi);
    program(&work.join("bin/nvidia-smi"), smi);
    let nvcc = "#!/bin/sh\nwhile [ \"$1\" != -o ]; do shift; done\n\
                printf '#!/bin/sh\\necho 42\\n' > \"$2\" && chmod 755 \"$2\"\n";
    program(&work.join("bin/nvcc"), nvcc);
    let (lib, installed) = (work.join("lib"), work.join("tree/usr/lib64"));
    for dir in [&lib, &installed] {
        fs::create_dir_all(dir).unwrap();
    }
    for (name, source) in [("libnvidia-ml", "agent/gpus/tests/standin.c"), ("libcuda", "tests/gpu/standin.c")]
    {
        let (own, file) = (lib.join(format!("{name}.so.1")), format!("{name}.so.{VERSION}"));
        let soname = format!("-Wl,-soname,{name}.so.1");
        let cc = Cmd::new("cc").args(["-shared", "-fPIC", "-Wall", "-Werror", &soname, "-o"]).arg(&own);
        cc.arg(machine::workspace().join(source)).ok();
        fs::copy(&own, installed.join(&file)).unwrap();
        symlink(&file, installed.join(format!("{name}.so.1"))).unwrap();
    }
}

#[test]
fn the_script_tries_all_of_it_where_files_and_libraries_stand_in_for_a_gpu_as_root() {
    if !machine::is_root() || Path::new("/proc/driver/nvidia/version").exists() {
        return;
    }
    // Device files have one name on a machine.
    let _alone = machine::lock("gpus");
    let _made = Made::make();
    let sandbox = Sandbox::empty(Who::root());
    let work = sandbox.work();
    stand_in(&work);
    let script = machine::workspace().join("tests/gpu/run.sh");
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let run = sandbox.cmd("bash").arg(&script).arg(machine::programs());
    let run = run
        .env("PATH", format!("{}:{path}", work.join("bin").display()))
        .env("REPORT", work.join("report.md"))
        .env("RECORDED", work.join("recorded.tar.gz"))
        .env("BERTH_GPU_TREE", work.join("tree"))
        .env("LD_LIBRARY_PATH", work.join("lib"))
        .env("STANDIN_GPUS", "2")
        .env("STANDIN_MINOR", "240")
        .env("STANDIN_MODE", "ok")
        .env("STANDIN_USE", work.join("use"));
    let ran = run.limit(400).run();
    let text = ran.text();
    assert!(!text.lines().any(|said| said.starts_with("BAD")), "{ran}");
    assert_eq!(ran.rc, 0, "{ran}");
    for line in [
        "ok    found: gpu:nvidia_a100-sxm4-40gb:2",
        "ok    a container with one GPU sees one",
        "ok    one with all sees 2",
        "ok    NVIDIA_VISIBLE_DEVICES=all shows no more",
        "ok    CUDA in a container",
        "ok    CUDA there with the driver's library mounted: CUDA error 100",
        "ok    CUDA on the node's own filesystem with an allocation",
        "ok    CUDA on the node's own filesystem without one: CUDA error 100",
        "INFO  five runs of it: ",
        "ok    a program of nvcc's in a container",
        "ok    two tasks have one GPU each",
        "ok    without an allocation on the node: /dev/nvidia240",
        "ok    without one a device file made by hand cannot be had",
        "ok    a second step on one GPU is not started beside the first",
        "ok    and none with one",
        "ok    sstat sees what a step uses while it runs",
        "ok    what was used is recorded",
        "ok    and how busy it was",
    ] {
        assert!(text.lines().any(|said| said.starts_with(line)), "{line}\n{ran}");
    }
    let report = fs::read_to_string(work.join("report.md")).unwrap();
    assert!(report.contains(": 1 NVIDIA A100-SXM4-40GB, driver 535.54.03\n"), "{report}");
    assert!(report.contains("ok    and how busy it was") && report.ends_with("```\n"), "{report}");
    let listed = sandbox.cmd("tar").args(["-tzf", "recorded.tar.gz"]).ok().text();
    assert!(listed.contains("./tree/dev/nvidia240"), "{listed}");
}
