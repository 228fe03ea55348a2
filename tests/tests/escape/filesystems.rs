//! Filesystems that a user made, in files that are given as images: our own code reads them, and never the kernel.

use berth_tests::{Cmd, Sandbox, Who, sandbox::wait};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The mounts of all namespaces, and the loop devices, that are of files below a directory. Which processes have ended and only wait to be
/// asked is noted: there may be thousands, and they would be most of the work.
fn of_files_below(directory: &Path, ended: &mut BTreeSet<OsString>) -> BTreeSet<String> {
    let below = |file: &str| Path::new(file).starts_with(directory);
    let (mut found, mut devices) = (BTreeSet::new(), BTreeSet::new());
    for device in std::fs::read_dir("/sys/block").unwrap().flatten() {
        let name = device.file_name().to_string_lossy().into_owned();
        let file = std::fs::read_to_string(device.path().join("loop/backing_file")).unwrap_or_default();
        if below(file.trim_end()) {
            found.insert(format!("{name} shows {file}"));
            devices.insert(format!("/dev/{name}"));
        }
    }
    let mut namespaces = BTreeSet::new();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        if ended.contains(&process.file_name()) {
            continue;
        }
        let Ok(namespace) = std::fs::read_link(process.path().join("ns/mnt")) else {
            ended.insert(process.file_name());
            continue;
        };
        if !namespaces.insert(namespace) {
            continue;
        }
        let mounts = std::fs::read(process.path().join("mountinfo")).unwrap_or_default();
        for line in String::from_utf8_lossy(&mounts).lines() {
            let source = line.split_once(" - ").and_then(|(_, of)| of.split(' ').nth(1)).unwrap_or_default();
            if below(source) || devices.contains(source) {
                found.insert(line.to_string());
            }
        }
    }
    found
}

/// Ends a watch, also where the test fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Does something, and gives what was to be seen of files below a directory meanwhile, and how often it was looked for.
fn watched(directory: &Path, act: impl FnOnce()) -> (BTreeSet<String>, u32) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let ending = Ending(&over);
        let watch = scope.spawn(|| {
            let (mut seen, mut ended, mut looks) = (BTreeSet::new(), BTreeSet::new(), 0);
            while !over.load(Ordering::Relaxed) {
                seen.extend(of_files_below(directory, &mut ended));
                looks += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            (seen, looks)
        });
        act();
        drop(ending);
        watch.join().unwrap()
    })
}

/// Makes an EROFS image, an ext4, and squashfs images of which one is whole and two are damaged.
fn make(work: &Path) {
    let tree = work.join("tree");
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    let noise: Vec<u8> =
        (0..1u64 << 20).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) as u8).collect();
    std::fs::write(tree.join("bin/noise"), noise).unwrap();
    std::fs::write(tree.join("bin/text"), "text\n".repeat(20_000)).unwrap();
    let run = |line: &str| drop(Cmd::new("sh").args(["-ec", line]).dir(work).limit(60).ok());
    run("mkfs.erofs image.erofs tree");
    run("truncate -s 8M image.ext4 && mkfs.ext4 -q -d tree image.ext4");
    run("mksquashfs tree whole.sqsh -quiet -no-progress");
    let whole = std::fs::read(work.join("whole.sqsh")).unwrap();
    std::fs::write(work.join("cut.sqsh"), &whole[..whole.len() / 2]).unwrap();
    let mut bent = whole;
    // The tables' offsets in the superblock lead nowhere.
    bent[64..96].fill(0xee);
    std::fs::write(work.join("bent.sqsh"), bent).unwrap();
}

#[test]
fn the_kernel_mounts_no_filesystem_of_a_users_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let (user, work) = (Who::user(), sandbox.work());
    make(&work);
    let script = sandbox.write("job.sh", "#!/bin/sh\ntrue\n");

    // Such a mount, made by root out of sight of everybody, is seen.
    std::fs::create_dir(work.join("place")).unwrap();
    let line = "mount -o loop,ro image.ext4 place && echo mounted && exec sleep 100";
    let mut own = Cmd::new("unshare").args(["-m", "sh", "-c", line]).dir(&work).limit(120).spawn();
    own.wait_for("mounted", 30);
    let now = || of_files_below(&work, &mut BTreeSet::new());
    let seen = now();
    assert!(seen.iter().any(|line| line.contains(" - ext4 ")) && seen.len() > 1, "the watch sees {seen:?}");
    drop(own);
    assert!(wait(30, || now().is_empty().then_some(())).is_some(), "a mount stays");

    let given = [
        ("image.erofs", ["an EROFS filesystem", "fsck.erofs --extract=DIR"]),
        ("image.ext4", ["ext4 filesystem", "debugfs -R"]),
        ("cut.sqsh", ["it is cut off", "copy it again"]),
        ("bent.sqsh", ["damaged or hostile", "copy it again"]),
    ];
    let (seen, looks) = watched(&work, || {
        for (name, [what, instead]) in given {
            let image = format!("./{name}");
            let run = |program: &str, words: &[&str]| {
                let said = sandbox.cmd_as(&user, program).args(words).limit(60).fails();
                said.says(&[name, what, instead]);
            };
            let option = format!("--container-image={image}");
            run("srun", &[&option, "true"]);
            run("sbatch", &[&option, &script.display().to_string()]);
            run("berth", &["image", "pull", "--quiet", &image]);
        }
        // What was an image when it was submitted reaches the node.
        for (name, _) in given {
            std::fs::copy(work.join("whole.sqsh"), work.join("late.sqsh")).unwrap();
            let submit = sandbox.cmd_as(&user, "sbatch").args(["--parsable", "--hold", "--output=/dev/null"]);
            let job = submit.arg("--container-image=./late.sqsh").arg(&script).ok().text();
            std::fs::copy(work.join(name), work.join("late.sqsh")).unwrap();
            sandbox.cmd_as(&user, "scontrol").args(["release", &job]).ok();
            sandbox.wait_state(job.parse().unwrap(), "FAILED", 60);
            let shown = sandbox.cmd("scontrol").args(["show", "job", &job]).ok().text();
            let told = shown.lines().find(|line| line.contains("SystemComment=")).unwrap_or_default();
            assert!(told.contains("late.sqsh"), "{name}: {shown}");
        }
    });
    assert!(seen.is_empty(), "{seen:?}");
    assert!(looks > 10, "the watch looked {looks} times");
}
