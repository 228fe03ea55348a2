//! Processes that do not end although they were killed: in state D, in a filesystem whose server reads requests and answers none.

use berth_tests::{Sandbox, each_user, images, machine, sandbox};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// `FUSE_INIT` of linux/fuse.h.
const INIT: u32 = 26;

/// A mounted filesystem of which every question but the first stays unanswered. Who asks waits in state D: a question that was read
/// cannot be taken back. Dropping it lets them go.
struct Hanging {
    at: PathBuf,
    device: Option<Arc<File>>,
}

impl Hanging {
    fn mounted(at: PathBuf) -> Hanging {
        fs::create_dir_all(&at).unwrap();
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        mount(Some("hanging"), &at, Some("fuse.hanging"), MsFlags::empty(), Some(options.as_str())).unwrap();
        let device = Arc::new(device);
        let served = Arc::downgrade(&device);
        std::thread::spawn(move || {
            let mut question = vec![0u8; 1 << 17];
            loop {
                // The thread ends with the device: it must not keep it open while it waits.
                let Some(device) = served.upgrade() else { return };
                let mut polled = [nix::poll::PollFd::new(
                    std::os::fd::AsFd::as_fd(&*device),
                    nix::poll::PollFlags::POLLIN,
                )];
                if nix::poll::poll(&mut polled, 50u16) != Ok(1) {
                    continue;
                }
                let Ok(n) = (&*device).read(&mut question) else { return };
                let word = |at: usize| u32::from_ne_bytes(question[at..at + 4].try_into().unwrap());
                if n >= 16 && word(4) == INIT {
                    let mut answer = vec![0u8; 16 + 64];
                    answer[..4].copy_from_slice(&80u32.to_ne_bytes());
                    answer[8..16].copy_from_slice(&question[8..16]);
                    // Version 7.31; at most one page at once.
                    answer[16..20].copy_from_slice(&7u32.to_ne_bytes());
                    answer[20..24].copy_from_slice(&31u32.to_ne_bytes());
                    answer[24..28].copy_from_slice(&4096u32.to_ne_bytes());
                    answer[36..40].copy_from_slice(&4096u32.to_ne_bytes());
                    (&*device).write_all(&answer).unwrap();
                }
            }
        });
        Hanging { at, device: Some(device) }
    }

    /// Nobody answers any more, which the kernel tells those who wait.
    fn let_go(&mut self) {
        self.device = None;
    }
}

impl Drop for Hanging {
    fn drop(&mut self) {
        self.let_go();
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

fn drained(sandbox: &Sandbox) -> String {
    sandbox.cmd("sinfo").args(["-h", "-R", "-o", "%E|%u|%N"]).ok().text()
}

fn seen(what: &str, seconds: u64, mut is: impl FnMut() -> bool) {
    assert!(sandbox::wait(seconds, || is().then_some(())).is_some(), "not seen: {what}");
}

/// The process that hangs, as the node numbers it.
fn hanging(program: &str) -> i32 {
    let found = |entry: &Path| {
        let read = |name: &str| fs::read_to_string(entry.join(name)).unwrap_or_default();
        (read("comm").trim() == program && read("wchan").contains("request_wait")).then_some(())?;
        entry.file_name()?.to_str()?.parse().ok()
    };
    let look = || fs::read_dir("/proc").unwrap().find_map(|entry| found(&entry.unwrap().path()));
    sandbox::wait(20, look).expect("no process hangs")
}

each_user! {
    fn a_job_ends_without_what_cannot_die(who) {
        if !machine::is_root() {
            return; // only root can mount what hangs
        }
        let system = who.is_root();
        let mut sandbox = Sandbox::with_config(who, "kill_wait_seconds = 1\nunkillable_seconds = 2\n");
        let mut hangs = Hanging::mounted(sandbox.work().join("hangs"));
        // A name of its own, so that it is found among others.
        let own = format!("h{}", std::process::id());
        fs::copy("/bin/cat", sandbox.work().join(&own)).unwrap();
        // In user mode only the processes of containers are known when their parents are gone.
        let image = format!("--container-image={}", images::busybox().display());
        let seen_inside = format!("--container-mounts={}", sandbox.work().display());
        let place = format!("--container-workdir={}", sandbox.work().display());
        let (name, run, options) = match system {
            true => (own.as_str(), format!("./{own}"), vec!["--mem=50"]),
            false => ("cat", "cat".to_string(), vec!["--mem=50", &image, &seen_inside, &place]),
        };
        let job = sandbox.sbatch(&options, &format!("#!/bin/sh\n{run} hangs/file\n"));
        let pid = hanging(name);
        sandbox.cmd("scancel").arg(job.to_string()).ok();
        // For its user it is over.
        sandbox.wait_state(job, "CANCELLED", 60);
        let place = sandbox.work().join("hangs");
        let why = format!("pid {pid} ({name}), state D, waits in request_wait_answer on {} (fuse.hanging)", place.display());
        seen("a node that is drained and says why", 60, || drained(&sandbox).contains(&why));
        let told = drained(&sandbox);
        assert!(told.contains(&format!("Kill task failed: job {job}: ")) && told.contains("|berth"), "{told}");
        assert_eq!(sandbox.cmd("squeue").args(["-h", "-j", &job.to_string()]).run().text(), "");
        // Nothing new starts there, whatever an administrator says of it.
        let node = format!("nodename={}", sandbox.node());
        sandbox.cmd("scontrol").args(["update", node.as_str(), "state=resume"]).ok();
        let next = sandbox.sbatch(&["--mem=50"], "#!/bin/sh\necho ran > ran\n");
        // The agent may come and go.
        sandbox.kill_9(sandbox.agent());
        sandbox.up();
        seen("the word of the next agent", 60, || drained(&sandbox).contains(&why));
        assert_eq!(sandbox.job_state(next), "PENDING");
        assert!(!sandbox.work().join("ran").exists());
        // The last one goes, and the node is back by itself.
        hangs.let_go();
        sandbox.wait_state(next, "COMPLETED", 60);
        seen("a node without a word", 20, || drained(&sandbox).is_empty());

        // What an administrator says stays.
        drop(hangs);
        let mut hangs = Hanging::mounted(sandbox.work().join("hangs"));
        let job = sandbox.sbatch(&options, &format!("#!/bin/sh\n{run} hangs/file &\nuntil [ -e go ]; do sleep 0.1; done\nexit 3\n"));
        hanging(name);
        sandbox.write("go", "");
        // It ended by itself, and its exit is its own.
        sandbox.wait_state(job, "FAILED", 60);
        assert_eq!(sandbox.sacct(job, "ExitCode")[0], ["3:0"]);
        seen("a node that is drained", 60, || drained(&sandbox).contains("Kill task failed"));
        sandbox.cmd("scontrol").args(["update", node.as_str(), "state=drain", "reason=new disk"]).ok();
        seen("the administrator's reason", 10, || drained(&sandbox).starts_with("new disk|"));
        hangs.let_go();
        seen("its end", 60, || !sandbox.cmd("scontrol").args(["show", "node"]).ok().text().contains("COMPLETING"));
        assert!(drained(&sandbox).starts_with("new disk|"), "{}", drained(&sandbox));
    }
}
