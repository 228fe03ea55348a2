//! The shared store of layers: by path, by clone, by descriptor, by set-user-id files.

use berth_tests::attacks::TOOLS;
use berth_tests::{Cmd, Sandbox, Who, each_user, images, layout, machine};
use serde_json::json;
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
        let script = format!("{TOOLS}{ATTACKS}");
        let before = fingerprint(&sandbox.state().join("images"));
        for options in [vec![], vec!["--container-remap-root"], vec!["--container-remap-root", "--container-writable"], vec!["--container-readonly"]] {
            let mut words = options.clone();
            words.extend(["bash", "-c", &script]);
            let output = sandbox.srun_in(&image, &words).limit(120).run();
            let text = output.text();
            assert!(text.ends_with("tried") && !text.contains("MISSING"), "{options:?}: {output}");
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
}

/// Words of shell for the places in which a container could meet a layer.
const PLACES: &str = "/ /usr /usr/bin /proc/[0-9]*/root /proc/[0-9]*/cwd /proc/[0-9]*/fd/* \
     $(cut -d' ' -f5 /proc/self/mountinfo | sort -u)";

/// Where the attack works: a mount of one's own, on the node.
const OWN_MOUNT: &str = "mkdir -p own && mount -t tmpfs -o mode=755 none own && mkdir -p own/usr/bin && \
     echo > own/usr/bin/env && mount -o remount,bind,ro own && exec ./clones own";

each_user! {
    /// By the calls that make and change detached mounts, which the tools of an image do not speak.
    fn clones_of_mounts_do_not_lead_into_the_store(who) {
        use std::os::unix::fs::PermissionsExt;
        let sandbox = Sandbox::start(who);
        let (image, program) = (images::debian(), sandbox.work().join("clones"));
        let source = machine::workspace().join("tests/escape/clones.c");
        Cmd::new("cc").args(["-static", "-o"]).arg(&program).arg(source).ok();
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        let worked = sandbox.cmd("unshare").args(["-U", "-r", "-m", "sh", "-c", OWN_MOUNT]).ok().text();
        for line in ["open own (as it is, alone): EROFS", "WROTE other usr/bin/env of own (read-only cleared, alone)"] {
            assert!(worked.lines().any(|found| found == line), "the attack is none, without {line}: {worked}");
        }

        let mut people = vec![sandbox.who().clone()];
        if sandbox.who().is_root() {
            people.push(Who::user());
        }
        let srun = |person: &Who| sandbox.cmd_as(person, "srun").dir("/").arg("--container-image").arg(&image).limit(120);
        // Whose image it is, too, is written down in the store.
        people.iter().for_each(|person| drop(srun(person).arg("true").ok()));
        let store = sandbox.state().join("images");
        let before = fingerprint(&store);
        let mount = format!("--container-mounts={}:/attack:ro", sandbox.work().display());
        let script = format!("/attack/clones {PLACES} && echo tried");
        let sets: [&[&str]; 4] =
            [&[], &["--container-remap-root"], &["--container-remap-root", "--container-writable"], &["--container-readonly"]];
        for options in sets {
            for person in &people {
                let output = srun(person).arg(&mount).args(options).args(["sh", "-c", &script]).ok();
                let text = output.text();
                let what = format!("{options:?}, for {}", person.name);
                // It ran to its end; below, with every capability, it had clones to try.
                let (_, nested) = text.split_once("\nNESTED\n").unwrap_or_else(|| panic!("{what}: {output}"));
                assert!(nested.ends_with("\ntried"), "{what}: {output}");
                for whole in ["as it is", "read-only cleared", "mapped"] {
                    let made = format!("clone / ({whole}, with what is below): done");
                    assert!(nested.lines().any(|line| line == made), "{what}: no {made} among\n{nested}");
                }
                // Through its overlay a container writes into files of its own, unless it is read-only.
                let read_only = options.contains(&"--container-readonly");
                let wrong = |line: &&str| line.starts_with("WROTE ") && (read_only || !line.starts_with("WROTE overlay "));
                let wrote: Vec<&str> = text.lines().filter(wrong).collect();
                assert!(wrote.is_empty(), "{what}: {wrote:?}");
                assert_eq!(fingerprint(&store), before, "{what}: the store was changed from inside a container");
            }
        }
    }
}

/// Says what it may. Not busybox, which gives up what it gained before it does anything.
const RIGHTS: &str = r#"
#define _GNU_SOURCE
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(void) {
    uid_t u[3];
    gid_t g[3];
    char line[200];
    FILE *status = fopen("/proc/self/status", "r");
    if (!status || getresuid(u, u + 1, u + 2) || getresgid(g, g + 1, g + 2)) return 1;
    printf("%d %d %d %d %d %d\n", u[0], u[1], u[2], g[0], g[1], g[2]);
    while (fgets(line, sizeof line, status)) if (!strncmp(line, "CapEff:", 7)) fputs(line + 8, stdout);
    return 0;
}
"#;

#[test]
fn a_setuid_file_of_an_image_gives_nothing_as_root() {
    use std::os::unix::fs::PermissionsExt;
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    // In a directory from which the node itself honours the bit: there the attack works.
    let node = tempfile::Builder::new().prefix("bt-setuid-").tempdir_in("/var/tmp").unwrap();
    let (source, program) = (node.path().join("rights.c"), node.path().join("rights"));
    std::fs::set_permissions(node.path(), PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::write(&source, RIGHTS).unwrap();
    Cmd::new("cc").args(["-static", "-o"]).arg(&program).arg(&source).ok();
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o6755)).unwrap();
    let (uid, gid) = (user.uid, user.gid);
    let gained = Cmd::new(&program).who(&user).ok().text();
    assert!(gained.starts_with(&format!("{uid} 0 0 {gid} 0 0\n")), "the attack is none: {gained}");
    let nothing = format!("{uid} {uid} {uid} {gid} {gid} {gid}\n0000000000000000");
    assert_ne!(gained, nothing);

    let image = sandbox.work().join("setuid");
    let file = layout::Layer::default().file("bin/rights", 0o6755, &std::fs::read(&program).unwrap());
    layout::write(&image, vec![layout::busybox(), file], json!({}));
    for option in ["-n1", "--container-readonly", "--container-writable-layer=disk"] {
        let line = sandbox.cmd_as(&user, "srun").dir("/").args([option, "--container-image"]).arg(&image);
        let text = line.args(["sh", "-c", "stat -c %a /bin/rights; rights"]).ok().text();
        assert_eq!(text, format!("6755\n{nothing}"), "{option}");
    }
    // Nobody but its owner can even look into the store.
    let store = sandbox.state().join("images");
    let look = Cmd::new("ls").arg(&store).who(&user).run();
    assert_ne!(look.rc, 0, "a user can list the store: {look}");
    let found =
        |words: &[&str]| Cmd::new("find").arg(&store).args(["-perm", "/6000"]).args(words).ok().text();
    assert!(found(&[]).ends_with("bin/rights"), "the store does not keep the bit: {}", found(&[]));
    assert_eq!(found(&["-uid", "0"]), "", "setuid files of root in the store");
}
