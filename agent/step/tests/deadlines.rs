//! The process that ends what is past its time: with a real control group, while an agent is there and without one.
#![allow(clippy::unwrap_used, clippy::panic)] // a failure is a failed test

mod rig;

use berth_model::ByteStr;
use berth_model::time::Span;
use berth_runtime::cgroup::{Cgroup, CgroupFacts, CgroupLimits};
use berth_step::control::ForkRequest;
use berth_step::deadlines::{Deadline, boot_clock};
use berth_step::spool::boot_id;
use rig::Rig;
use rustix::event::{PollFd, PollFlags, poll};
use std::io::Write;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::{Duration, Instant};

#[test]
fn what_is_past_its_time_is_killed_and_what_is_renewed_is_not_as_root() {
    let facts = CgroupFacts::detect();
    if !rustix::process::geteuid().is_root() || (facts.v1.is_empty() && facts.v2.is_none()) {
        return; // nothing can be killed from outside
    }
    let rig = Rig::new();
    let [jobs, lock] = ["jobs", "lock"].map(|name| rig.dir.path().join(name));
    let dir = jobs.join("1");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(&lock, "").unwrap();
    let name = format!("berth-deadlines-{}/job_1", std::process::id());
    let group = Cgroup::create(&facts, &name, &CgroupLimits::default()).unwrap();
    let mut process = Command::new("sleep").arg("600").spawn().unwrap();
    group.join(i32::try_from(process.id()).unwrap()).unwrap();
    let (reader, mut agent) = std::io::pipe().unwrap();
    let paths = [&jobs, &lock].map(|path| ByteStr::from(path.as_path()));
    let [jobs_word, lock_word] = paths;
    let (_, keeper) =
        rig.ask(&ForkRequest::Deadlines { jobs: jobs_word, lock: lock_word }, &[reader.as_fd()]);
    drop(reader);
    let until = |seconds| {
        let until = boot_clock() + Span::from_secs(seconds);
        let deadline = Deadline { boot_id: boot_id().unwrap(), until, group: group.clone() };
        deadline.keep(&dir).unwrap();
    };
    until(1);
    agent.write_all(&[0]).unwrap();
    // Renewed before it is over.
    std::thread::sleep(Duration::from_millis(500));
    until(5);
    std::thread::sleep(Duration::from_secs(4));
    assert!(process.try_wait().unwrap().is_none(), "it was renewed");
    let end = Instant::now() + Duration::from_secs(20);
    while process.try_wait().unwrap().is_none() {
        assert!(Instant::now() < end, "it lives on");
        std::thread::sleep(Duration::from_millis(20));
    }
    // Without an agent it stays for as long as there is something to see to.
    drop(agent);
    let ended = |seconds: u64| {
        let wait = rustix::time::Timespec::try_from(Duration::from_secs(seconds)).unwrap();
        poll(&mut [PollFd::new(&keeper, PollFlags::IN)], Some(&wait)).unwrap() > 0
    };
    assert!(!ended(3));
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(ended(20), "it stays for nothing");
    group.kill_and_remove(Duration::from_secs(5)).unwrap();
    let above = Cgroup::named(&facts, name.split('/').next().unwrap());
    above.remove().unwrap();
}
