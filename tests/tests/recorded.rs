//! Records what this version's supervisors leave for later agents: `agent/tests/recorded` keeps it for each version, and a test of the
//! agent adopts it. docs/admin.md says what that is for.

use berth_tests::{Sandbox, Who, images, machine, sandbox::wait};
use std::os::fd::AsRawFd;
use std::path::Path;

/// The node's state directory, and where everything else is, in what is recorded.
const STATE: &str = "/var/lib/berth";
const ELSEWHERE: &str = "/srv/recorded";

const SCRIPT: &str = "#!/bin/sh
srun -n2 --overlap sh -c 'echo begun; while [ ! -e /tmp/end-step ]; do sleep 0.1; done; exit $((SLURM_PROCID + 6))' &
while [ ! -e /tmp/end-job ]; do sleep 0.1; done
exit 3
";

/// What a supervisor says first to whoever connects.
fn first_packet(socket: &Path) -> String {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, socket as make,
    };
    let fd = make(AddressFamily::Unix, SockType::SeqPacket, SockFlag::empty(), None).unwrap();
    connect(fd.as_raw_fd(), &UnixAddr::new(socket).unwrap()).unwrap();
    let mut bytes = [0; 4096];
    let length = recv(fd.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
    String::from_utf8(bytes[..length].to_vec()).unwrap()
}

/// A file without what is this machine's alone.
fn without_machine(sandbox: &Sandbox, text: &str) -> String {
    let mut text = text.replace(sandbox.state().to_str().unwrap(), STATE);
    text = text.replace(sandbox.work().parent().unwrap().to_str().unwrap(), ELSEWHERE);
    text = text.replace(machine::programs().to_str().unwrap(), "/usr/bin");
    text = text.replace(machine::cache().to_str().unwrap(), "/srv");
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    text = text.replace(boot.trim(), "11111111-2222-3333-4444-555555555555");
    text = text.replace(&format!("\"{}\"", sandbox.node()), "\"n1\"");
    // Where the hierarchies of control groups are.
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    for place in ["/cgroup/v1/bases", "/node/cgroup/v1/bases"] {
        for (controller, base) in value.pointer(place).and_then(|v| v.as_object()).into_iter().flatten() {
            text = text.replace(base.as_str().unwrap(), &format!("/sys/fs/cgroup/{controller}"));
        }
    }
    text + "\n"
}

#[test]
#[ignore = "writes a directory that later versions are tested with: BERTH_RECORD=VERSION names it"]
fn what_supervisors_leave_is_recorded_as_root() {
    let version = std::env::var("BERTH_RECORD").expect("BERTH_RECORD names the version that is recorded");
    let to = machine::workspace().join("agent/tests/recorded").join(version);
    let mut sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    std::fs::set_permissions(sandbox.work(), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
    let image = format!("--container-image={}", images::busybox().display());
    let script = sandbox.write("job.sh", SCRIPT);
    let bin = sandbox.work().parent().unwrap().join("bin");
    let job = sandbox
        .cmd_as(&user, "env")
        .args(["-i", "HOME=/", &format!("PATH={}:/usr/bin:/bin", bin.display())])
        .arg(format!("BERTH_STATE={}", sandbox.state().display()))
        .args(["sbatch", "--parsable", "-n2", "--mem=64M", "--output=out", &image])
        .arg(&script)
        .ok()
        .text();
    sandbox.wait_file("out", "begun\nbegun", 60);
    let steps = ["0", "batch"].map(|step| format!("{}.0.{step}", job.trim()));
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let write = |name: String, text: &str| {
        let path = to.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    for step in &steps {
        let from = sandbox.state().join("spool").join(step);
        for file in ["launch.json", "state.json", "timers.json"] {
            write(format!("spool/{step}/{file}"), &without_machine(&sandbox, &read(&from.join(file))));
        }
        write(format!("spool/{step}/first-packet"), &first_packet(&from.join("control.sock")));
    }
    let record = read(&sandbox.state().join("jobs").join(job.trim()).join("job.json"));
    write(format!("jobs/{}/job.json", job.trim()), &without_machine(&sandbox, &record));
    // Nobody acknowledges an end while there is no controller.
    let node = sandbox.node();
    sandbox.kill_9(sandbox.controller());
    for (step, file) in steps.iter().zip(["end-step", "end-job"]) {
        // Their own /tmp, which the job's containers share.
        let own = sandbox.state().join("scratch").join(job.trim()).join("tmp");
        std::fs::write(own.join(file), "").unwrap();
        let state = sandbox.state().join("spool").join(step).join("state.json");
        assert!(
            wait(30, || read(&state).contains("exited").then_some(())).is_some(),
            "{step}: {}",
            read(&state)
        );
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let text = read(&state).replace(boot.trim(), "11111111-2222-3333-4444-555555555555");
        write(format!("spool/{step}/exited.json"), &(text.replace(&format!("\"{node}\""), "\"n1\"") + "\n"));
    }
    sandbox.up();
}
