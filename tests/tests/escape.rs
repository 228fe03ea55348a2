//! Attacks from inside a container, run and not mocked: each must fail, and the store must be what it was.

use berth_tests::{Cmd, Sandbox, Who, each_user, images};
use std::path::Path;

/// A digest over names, modes, owners and contents of the store.
fn fingerprint(store: &Path) -> String {
    let line = "find . -printf '%P %y %m %U %G %s\\n' | sort; find . -type f -print0 | sort -z | xargs -0 -r sha256sum";
    Cmd::new("sh").args(["-c", line]).dir(store).limit(120).ok().text()
}

/// What a container's user can try on layers with the tools of Debian's image: by path, by mount, by clone of a mount, by
/// descriptor.
const ATTACKS: &str = r#"
try() { "$@" >/dev/null 2>&1 && echo "WORKED: $*"; }
try touch /usr/bin/owned
try sh -c 'echo x >> /usr/bin/env'
try chmod 4755 /usr/bin/env
try mount -o remount,rw /
try mount -o remount,bind,rw /
try umount -l /
try umount /proc
for pid in /proc/[0-9]*; do
    for link in $pid/root $pid/cwd; do
        target=$(readlink $link 2>/dev/null) && try sh -c "echo x >> $link/../../../../usr/bin/env"
    done
    for fd in $pid/fd/*; do
        case $(readlink $fd 2>/dev/null) in
            /*images* | /*layers*) echo "WORKED: layer descriptor $fd -> $(readlink $fd)" ;;
        esac
    done
done
grep -o 'lowerdir[^ ]*' /proc/self/mountinfo | tr ':,' '\n\n' | grep '^/' | sort -u | while read -r layer; do
    try touch "$layer/owned"
done
unshare --user --map-root-user --mount sh -c '
    try() { "$@" >/dev/null 2>&1 && echo "WORKED in a nested namespace: $*"; }
    try mount -o remount,rw /
    try mount -o remount,bind,rw /
    mkdir -p /tmp/clone
    mount --rbind / /tmp/clone 2>/dev/null && {
        try mount -o remount,bind,rw /tmp/clone
        try sh -c "umount /tmp/clone/proc && echo"
    }
    try mount --bind /proc/1/root /tmp/clone
    true
' 2>/dev/null
echo tried
"#;

each_user! {
    fn the_store_cannot_be_written_from_a_container(who) {
        let sandbox = Sandbox::start(who);
        let image = images::debian();
        sandbox.srun_in(&image, ["true"]).limit(120).ok();
        let before = fingerprint(&sandbox.state().join("images"));
        for options in [vec![], vec!["--container-remap-root"], vec!["--container-remap-root", "--container-writable"], vec!["--container-readonly"]] {
            let mut words = options.clone();
            words.extend(["bash", "-c", ATTACKS]);
            let output = sandbox.srun_in(&image, &words).limit(120).run();
            let text = output.text();
            assert!(text.ends_with("tried"), "{options:?}: {output}");
            // In a writable container its own files may change; that is what it is for.
            let writable = |l: &&str| l.contains("/usr/bin/env") || l.contains("/usr/bin/owned") || l.contains("remount,rw") || l.contains("remount,bind,rw");
            let allowed = options.contains(&"--container-writable") || !options.contains(&"--container-readonly");
            // In user mode store and mounts are the user's own: whoever is shown as root there may unmount their own /proc.
            let own = |l: &&str| !sandbox.who().is_root() && options.contains(&"--container-remap-root") && l.ends_with("umount /proc");
            let worked: Vec<&str> = text.lines().filter(|l| l.starts_with("WORKED")).filter(|l| !(own(l) || allowed && writable(l))).collect();
            assert!(worked.is_empty(), "{options:?}: {worked:?}");
        }
        assert_eq!(fingerprint(&sandbox.state().join("images")), before, "the store was changed from inside a container");
        let text = sandbox.srun_in(&image, ["sh", "-c", "ls /usr/bin/owned 2>/dev/null; stat -c %a /usr/bin/env"]).ok().text();
        assert_eq!(text, "755");
    }

    fn a_container_holds_nothing_of_the_host(who) {
        let sandbox = Sandbox::start(who);
        let script = "WORK=$1; ls -l /proc/self/fd | grep -v -E '/dev/(null|pts)|pipe:|socket:|/proc/[0-9]+/fd' | grep -- '->'; \
                      ls -d /proc/*/root$WORK /proc/*/cwd$WORK 2>/dev/null; cat /proc/kcore 2>/dev/null | head -c 1; \
                      (echo 1 > /proc/sys/kernel/sysrq) 2>/dev/null && echo sysrq; \
                      (echo c > /proc/sysrq-trigger) 2>/dev/null && echo trigger; \
                      (echo x > /sys/kernel/uevent_helper) 2>/dev/null && echo uevent; \
                      ls /dev/mem /dev/kmsg /dev/sda /dev/vda /dev/fuse 2>/dev/null; \
                      grep -c . /proc/self/cgroup >/dev/null; echo end";
        let text = sandbox.srun_in(images::debian(), ["sh", "-c", script, "sh", &sandbox.work().display().to_string()]).ok().text();
        assert_eq!(text, "end");
    }

    fn a_step_sees_only_its_own_processes(who) {
        let sandbox = Sandbox::start(who);
        let text = sandbox.srun_in(images::busybox(), ["sh", "-c", "ls -d /proc/[0-9]* | wc -l; kill -9 1; echo lives"]).ok().text();
        let count: usize = text.lines().next().unwrap().parse().unwrap();
        assert!(count < 10, "{count} processes are visible");
        assert!(text.ends_with("lives"), "{text}");
    }
}

#[test]
fn a_setuid_file_of_an_image_gives_nothing_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let image = images::layers();
    let run = |script: &str| {
        sandbox.cmd_as(&user, "srun").dir("/").arg("--container-image").arg(&image).args(["sh", "-c", script])
    };
    let text =
        run("stat -c '%a' /data/kept; grep Cap /proc/self/status | sort -u | cut -f2 | sort -u").ok().text();
    assert!(text.contains("0000000000000000"), "{text}");
    // Nobody but its owner can even look into the store.
    let store = sandbox.state().join("images");
    let look = Cmd::new("ls").arg(&store).who(&user).run();
    assert_ne!(look.rc, 0, "a user can list the store: {look}");
    let found = Cmd::new("find").arg(&store).args(["-perm", "/6000", "-uid", "0"]).ok().text();
    assert_eq!(found, "", "setuid files of root in the store");
}

#[test]
fn another_user_cannot_read_what_is_private_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let (alice, bob) = (Who::user(), Who::stranger());
    let script = "#!/bin/sh\n# secret-of-the-script\nsleep 60\n";
    let line = sandbox
        .cmd_as(&alice, "sbatch")
        .dir("/tmp")
        .args(["--parsable", "-o", "/dev/null"])
        .env("SECRET", "secret-of-the-environment");
    let job = line.stdin(script).ok().text();
    sandbox.wait_state(job.parse().unwrap(), "RUNNING", 20);
    let state = sandbox.state();
    let found = Cmd::new("grep").args(["-r", "-s", "-l", "secret-of-the"]).arg(&state).who(&bob).run();
    assert_eq!(found.text(), "");
    let show = sandbox.cmd_as(&bob, "scontrol").dir("/").args(["show", "job", &job]).ok().text();
    assert!(!show.contains("secret-of-the-environment"), "{show}");
    let supervised: Vec<i32> =
        berth_tests::leftovers::processes(&state).into_iter().map(|(pid, _)| pid).collect();
    for pid in supervised {
        let read = Cmd::new("cat").arg(format!("/proc/{pid}/environ")).who(&bob).run();
        assert!(
            !read.text().contains("secret-of-the-environment"),
            "environment of {pid} is readable by others"
        );
        let signal = Cmd::new("kill").args(["-0", &pid.to_string()]).who(&bob).run();
        assert_ne!(signal.rc, 0, "another user may signal {pid}");
    }
    sandbox.cmd_as(&alice, "scancel").dir("/").arg(&job).ok();
}

#[test]
fn a_user_cannot_harm_the_supervisor_of_the_own_job_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let mut step =
        sandbox.cmd_as(&user, "srun").dir("/").args(["sh", "-c", "echo ready; sleep 2; exit 5"]).spawn();
    step.wait_for("ready", 20);
    for (pid, line) in berth_tests::leftovers::processes(&sandbox.state()) {
        if line.contains("berth") && !line.contains("srun") {
            let kill = Cmd::new("kill").args(["-9", &pid.to_string()]).who(&user).run();
            assert_ne!(kill.rc, 0, "the user killed {pid}: {line}");
        }
    }
    assert_eq!(step.finish().rc, 5);
}
