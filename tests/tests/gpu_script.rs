//! `tests/gpu/run.sh`, which waits for a machine with a GPU: what of it needs none is run here, so that it stays ready.

use berth_tests::{Sandbox, Who, machine};
use std::fs;
use std::path::Path;

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
    let dry = sandbox.cmd("bash").args(["gpu/run.sh", "--dry"]).env("RECORDED", &recorded);
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
}
