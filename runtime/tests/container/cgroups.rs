//! Control groups on this machine: limits that bite, usage, killing and removing.

use crate::Test;
use crate::helper::{As, Dir, Order, busybox, is_root, launch, request};
use berth_runtime::cgroup::{
    Cgroup, CgroupFacts, CgroupLimits, Controller, DevicePolicy, Family, device_of, standard_devices,
};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

pub const TESTS: &[Test] = &[
    ("cgroups::memory_limit_kills_its_own", memory_limit_kills_its_own),
    ("cgroups::one_cpu_is_seen", one_cpu_is_seen),
    ("cgroups::processes_are_counted", processes_are_counted),
    ("cgroups::a_device_is_refused", a_device_is_refused),
    ("cgroups::a_device_program_is_accepted", a_device_program_is_accepted),
    ("cgroups::a_part_of_a_group_lacks_devices", a_part_of_a_group_lacks_devices),
    (
        "cgroups::a_group_is_kept_from_devices_that_come_while_its_processes_run",
        a_group_is_kept_from_devices_that_come_while_its_processes_run,
    ),
    (
        "cgroups::a_drivers_device_that_is_made_after_the_group_opens_where_it_is_the_own_one_alone",
        a_drivers_device_that_is_made_after_the_group_opens_where_it_is_the_own_one_alone,
    ),
    ("cgroups::kill_and_remove", kill_and_remove),
    ("cgroups::names_stay_below", names_stay_below),
    (
        "cgroups::a_parking_place_keeps_its_process_under_a_new_name",
        a_parking_place_keeps_its_process_under_a_new_name,
    ),
];

/// Facts, when this process can limit with this controller; an ordinary user without a delegated group
/// cannot, and is told why.
fn with(controller: Controller) -> Option<CgroupFacts> {
    let facts = CgroupFacts::detect();
    if facts.has(controller) {
        return Some(facts);
    }
    let reason = &facts.missing[&controller];
    assert!(!is_root() || !reason.contains("not writable"), "{reason}");
    assert!(!reason.is_empty());
    println!("not tried: {reason}");
    None
}

fn name(what: &str) -> String {
    format!("berth-test-{}/{what}", std::process::id())
}

fn clean(facts: &CgroupFacts) {
    let top = format!("berth-test-{}", std::process::id());
    let group = Cgroup::create(facts, &top, &CgroupLimits::default()).unwrap();
    group.kill_and_remove(Duration::from_secs(5)).unwrap();
}

fn run(what: &str, limits: CgroupLimits, script: &str, devices: &[&str]) -> crate::helper::Outcome {
    let dir = Dir::new();
    let mut r = request(&busybox(&dir, As::Root), As::Root);
    r.devices = devices.iter().map(|d| (*d).into()).collect();
    if !devices.is_empty() {
        // Root's own container: permission bits do not decide, so the control group must.
        (r.identity.uid, r.identity.gid) = (berth_model::Uid(0), berth_model::Gid(0));
    }
    let mut order = Order::new(r, script);
    order.cgroup = Some((name(what), limits));
    launch(&order, As::Root)
}

fn memory_limit_kills_its_own() {
    let Some(facts) = with(Controller::Memory) else { return };
    let limits = CgroupLimits { memory: Some(24 << 20), ..CgroupLimits::default() };
    // A neighbour that must live.
    let other = Cgroup::create(&facts, &name("other"), &CgroupLimits::default()).unwrap();
    let mut neighbour = Command::new("sleep").arg("60").spawn().unwrap();
    other.join(i32::try_from(neighbour.id()).unwrap()).unwrap();
    let outcome = run("oom", limits.clone(), "dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null", &[]);
    assert_eq!(outcome.code, 137, "{outcome:?}");
    assert!(neighbour.try_wait().unwrap().is_none(), "the neighbour died");
    // The count, on a group that is still there.
    let group = Cgroup::create(&facts, &name("count"), &limits).unwrap();
    let status = Command::new("sh")
        .arg("-c")
        .arg("read go; dd if=/dev/zero of=/dev/null bs=200M count=1 2>/dev/null")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .and_then(|mut c| {
            group.join(i32::try_from(c.id()).unwrap()).unwrap();
            std::io::Write::write_all(c.stdin.as_mut().unwrap(), b"go\n")?;
            c.wait()
        })
        .unwrap();
    assert!(!status.success());
    let usage = group.usage();
    assert_eq!(usage.oom_kills, Some(1), "{usage:?}");
    let peak = usage.peak_memory.unwrap();
    assert!((16 << 20..=24 << 20).contains(&peak), "{usage:?}");
    assert!(usage.user_us.is_some() && usage.system_us.is_some());
    neighbour.kill().unwrap();
    neighbour.wait().unwrap();
    clean(&facts);
}

fn one_cpu_is_seen() {
    let Some(facts) = with(Controller::Cpuset) else { return };
    let limits = CgroupLimits { cpus: vec![0], ..CgroupLimits::default() };
    let outcome = run("cpu", limits, "nproc; grep Cpus_allowed_list /proc/self/status | cut -f2", &[]);
    assert_eq!(outcome.out, "1\n0\n", "{outcome:?}");
    clean(&facts);
}

fn processes_are_counted() {
    let Some(facts) = with(Controller::Pids) else { return };
    let limits = CgroupLimits { pids: Some(12), ..CgroupLimits::default() };
    let outcome =
        run("pids", limits, "i=0; while [ $i -lt 40 ]; do sleep 1 & i=$((i+1)); done; echo started", &[]);
    assert!(outcome.err.contains("fork") && !outcome.out.contains("started"), "{outcome:?}");
    clean(&facts);
}

fn a_device_is_refused() {
    let Some(facts) = with(Controller::Devices) else { return };
    let device = "/dev/loop-control";
    let Ok(rule) = device_of(Path::new(device)) else {
        return println!("not tried: this node has no {device}");
    };
    // Present in both, allowed in one: the control group alone makes the difference.
    let look = "head -c0 /dev/null && echo null; if (exec 3< /dev/loop-control) 2>/tmp/e; then echo opened; else grep -o 'not permitted' /tmp/e; fi";
    let only =
        |rules| CgroupLimits { devices: Some(DevicePolicy::AllowOnly(rules)), ..CgroupLimits::default() };
    let refused = run("dev", only(standard_devices()), look, &[device]);
    assert_eq!(refused.out, "null\nnot permitted\n", "{refused:?}");
    let mut rules = standard_devices();
    rules.push(rule);
    let allowed = run("dev", only(rules), look, &[device]);
    assert_eq!(allowed.out, "null\nopened\n", "{allowed:?}");
    clean(&facts);
}

fn a_device_program_is_accepted() {
    let mut facts = CgroupFacts::detect();
    if !is_root() || facts.v2.is_none() {
        return println!("not tried: needs root and a v2 hierarchy");
    }
    // The kernel's verifier judges the program, on the v2 hierarchy that a hybrid node has beside v1.
    facts.v1.clear();
    facts.v2_controllers = vec![Controller::Devices];
    let limits = CgroupLimits {
        devices: Some(DevicePolicy::AllowOnly(standard_devices())),
        ..CgroupLimits::default()
    };
    let group = Cgroup::create(&facts, &name("bpf"), &limits).unwrap();
    let mut child = Command::new("sh")
        .arg("-c")
        .arg("read go; : < /dev/null || exit 1; (: < /dev/kmsg) 2>/dev/null && exit 2; exit 0")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    group.join(i32::try_from(child.id()).unwrap()).unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
    clean(&facts);
}

fn a_part_of_a_group_lacks_devices() {
    use std::os::unix::process::CommandExt;
    let detected = CgroupFacts::detect();
    if !is_root() {
        return println!("not tried: needs root");
    }
    let rule = device_of(Path::new("/dev/full")).unwrap();
    // In both versions, also on the v2 hierarchy that a hybrid node has beside v1.
    let second =
        CgroupFacts { v1: Default::default(), v2_controllers: vec![Controller::Devices], ..detected.clone() };
    for facts in [detected, second].into_iter().filter(|facts| facts.has(Controller::Devices)) {
        if facts.v1.is_empty() && facts.v2.is_none() {
            continue;
        }
        let group = Cgroup::create(&facts, &name("whole"), &CgroupLimits::default()).unwrap();
        assert!(group.without("part", Vec::new()).unwrap().is_none(), "nothing to do without");
        let list = group.without("part", vec![rule]).unwrap().unwrap();
        // By somebody who has no right to the group, but the descriptor.
        let look = "for f in full null; do (exec 3< /dev/$f) && echo $f; done; echo 0 >&0 || exit 1; \
                    for f in full null; do (exec 3< /dev/$f) 2>&1 && echo $f in; done";
        let mut command = Command::new("sh");
        let out = command.args(["-c", look]).uid(65534).gid(65534).stdin(list).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(text.contains("not permitted") && !text.contains("full in"), "{out:?}");
        assert_eq!(text.lines().filter(|l| ["full", "null", "null in"].contains(l)).count(), 3, "{out:?}");
        clean(&facts);
    }
}

fn a_group_is_kept_from_devices_that_come_while_its_processes_run() {
    let detected = CgroupFacts::detect();
    if !is_root() {
        return println!("not tried: needs root");
    }
    let second =
        CgroupFacts { v1: Default::default(), v2_controllers: vec![Controller::Devices], ..detected.clone() };
    let [full, zero] = ["/dev/full", "/dev/zero"].map(|file| device_of(Path::new(file)).unwrap());
    for facts in [detected, second].into_iter().filter(|facts| facts.has(Controller::Devices)) {
        if facts.v1.is_empty() && facts.v2.is_none() {
            continue;
        }
        let limits =
            CgroupLimits { devices: Some(DevicePolicy::DenyOnly(vec![full])), ..CgroupLimits::default() };
        let group = Cgroup::create(&facts, &name("later"), &limits).unwrap();
        let opens = |list: std::os::fd::OwnedFd| {
            let look = "echo 0 >&0 || exit 1; for f in full zero urandom; do (exec 3< /dev/$f) 2>/dev/null && echo $f; done";
            let out = Command::new("sh").args(["-c", look]).stdin(list).output().unwrap();
            String::from_utf8_lossy(&out.stdout).split_whitespace().collect::<Vec<_>>().join(" ")
        };
        // A group below it, as tasks have one, that was made before.
        let urandom = device_of(Path::new("/dev/urandom")).unwrap();
        let list = || group.without("task_0", vec![urandom]).unwrap().unwrap();
        assert_eq!(opens(list()), "zero");
        for _ in 0..2 {
            group.narrow(&DevicePolicy::DenyOnly(vec![zero]), "berth_later").unwrap();
            assert_eq!(opens(list()), "");
        }
        clean(&facts);
    }
}

fn a_drivers_device_that_is_made_after_the_group_opens_where_it_is_the_own_one_alone() {
    let detected = CgroupFacts::detect();
    if !is_root() {
        return println!("not tried: needs root");
    }
    let second =
        CgroupFacts { v1: Default::default(), v2_controllers: vec![Controller::Devices], ..detected.clone() };
    let at = |minor: u32| format!("/dev/berth-test-{}-{minor}", std::process::id());
    for facts in [detected, second].into_iter().filter(|facts| facts.has(Controller::Devices)) {
        if facts.v1.is_empty() && facts.v2.is_none() {
            continue;
        }
        // The kernel's own: null, zero and, behind the last of the family, urandom.
        let family = Family { major: 1, count: 9, own: Some(3) };
        let policy = DevicePolicy::DenyOthers { denied: Vec::new(), family };
        let limits = CgroupLimits { devices: Some(policy), ..CgroupLimits::default() };
        let group = Cgroup::create(&facts, &name("family"), &limits).unwrap();
        let look = format!(
            "read go; for f in {} {} {}; do (exec 3< $f) 2>&1 && echo $f opens; done",
            at(3),
            at(5),
            at(9)
        );
        let mut child = Command::new("sh")
            .args(["-c", &look])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        group.join(i32::try_from(child.id()).unwrap()).unwrap();
        for minor in [3, 5, 9] {
            let mut make = Command::new("mknod");
            let made = make.arg(at(minor)).args(["c", "1"]).arg(minor.to_string()).status();
            assert!(made.unwrap().success());
        }
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
        let out = child.wait_with_output().unwrap();
        for minor in [3, 5, 9] {
            std::fs::remove_file(at(minor)).unwrap();
        }
        let text = String::from_utf8_lossy(&out.stdout);
        let opens: Vec<&str> = text.lines().filter(|line| line.ends_with(" opens")).collect();
        assert_eq!(opens, [format!("{} opens", at(3)), format!("{} opens", at(9))], "{text}");
        assert!(text.contains("not permitted"), "{text}");
        clean(&facts);
    }
}

fn kill_and_remove() {
    let facts = CgroupFacts::detect();
    if facts.v1.is_empty() && facts.v2.is_none() {
        return println!("not tried: {:?}", facts.missing);
    }
    let group = Cgroup::create(&facts, &name("kill/inner"), &CgroupLimits::default()).unwrap();
    let text = serde_json::to_string(&group).unwrap();
    let mut child = Command::new("sh")
        .args(["-c", "read go; trap '' TERM; (setsid sleep 77 &) ; sleep 77"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    group.join(i32::try_from(child.id()).unwrap()).unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"go\n").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(group.processes().len() >= 2, "{:?}", group.processes());
    assert_eq!(group.remove().unwrap_err().errno, libc_ebusy());
    // A later process finds it again by its record.
    let again: Cgroup = serde_json::from_str(&text).unwrap();
    let reaper = std::thread::spawn(move || child.wait().unwrap());
    again.kill_and_remove(Duration::from_secs(5)).unwrap();
    assert!(!reaper.join().unwrap().success());
    assert!(group.processes().is_empty());
    clean(&facts);
}

/// `EBUSY`.
fn libc_ebusy() -> i32 {
    rustix::io::Errno::BUSY.raw_os_error()
}

fn names_stay_below() {
    let facts = CgroupFacts::detect();
    for bad in ["", "a/../../b", "/a", "a//b", "."] {
        let error = Cgroup::create(&facts, bad, &CgroupLimits::default()).unwrap_err();
        assert!(error.to_string().contains("relative path"), "{bad}: {error}");
    }
}

fn a_parking_place_keeps_its_process_under_a_new_name() {
    let facts = CgroupFacts::detect();
    if facts.v1.is_empty() {
        println!("not tried: no controller of v1 can be used");
        assert!(Cgroup::parking(&facts, &name("slot")).unwrap().is_none());
        return;
    }
    let mut slot = Cgroup::parking(&facts, &name("slot")).unwrap().unwrap();
    let next = Cgroup::parking(&facts, &name("slot/next")).unwrap().unwrap();
    let mut parked = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = i32::try_from(parked.id()).unwrap();
    next.join(pid).unwrap();
    slot.rename(&name("job_1")).unwrap();
    // Its limits come with the name, and the group is the same as one that was made so.
    let limits = CgroupLimits { cpus: vec![0], memory: Some(64 << 20), ..CgroupLimits::default() };
    let next = Cgroup::parked(&facts, &name("job_1/next")).unwrap();
    next.apply(&CgroupLimits { cpus: vec![0], ..CgroupLimits::default() }).unwrap();
    assert!(
        Cgroup::complete(&facts, &name("job_1"), &limits).is_ok(),
        "the step has CPUs that its job lacks"
    );
    let step = Cgroup::complete(&facts, &name("job_1/next"), &limits).unwrap();
    assert_eq!(step.processes(), [pid]);
    assert!(step.has(pid) && !step.has(1));
    assert_eq!(step, Cgroup::create(&facts, &name("job_1/next"), &limits).unwrap());
    assert!(!facts.v1.values().any(|base| base.join(name("slot")).exists()));
    // A name that is taken is refused.
    let mut other = Cgroup::parking(&facts, &name("other")).unwrap().unwrap();
    assert!(other.rename(&name("job_1")).is_err());
    parked.kill().unwrap();
    parked.wait().unwrap();
    clean(&facts);
}
