//! Containers with ranges of ids (`--container-subids`): ids are real in them, what they leave is removed and saved as it is
//! seen, and nobody gets more than the administrator gave.

use berth_tests::sandbox::{gone, wait};
use berth_tests::{Cmd, Sandbox, Who, each_user, images, machine};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// A cluster of root or of the user, whose commands the ordinary user gives: root itself has no range.
struct Users {
    sandbox: Sandbox,
    user: Who,
}

impl Users {
    fn of(who: Who) -> Users {
        Users::with(Sandbox::start(who))
    }

    fn with(sandbox: Sandbox) -> Users {
        let user = Who::user();
        machine::give(&sandbox.work(), &user);
        Users { sandbox, user }
    }

    fn cmd(&self, program: &str) -> Cmd {
        self.sandbox.cmd_as(&self.user, program).limit(120)
    }

    /// `srun` in Debian, with a script for sh.
    fn srun(&self, options: &[&str], script: &str) -> Cmd {
        let image = format!("--container-image={}", images::debian().display());
        self.cmd("srun").arg(image).args(options).args(["sh", "-c", script])
    }

    fn sbatch(&self, options: &[&str], script: &str) -> u64 {
        let path = self.sandbox.write("job.sh", script);
        machine::give(&path, &self.user);
        let image = format!("--container-image={}", images::debian().display());
        let output =
            self.cmd("sbatch").args(["--parsable", "--output=out", &image]).args(options).arg(path).ok();
        output.text().parse().unwrap()
    }

    /// The first id of the user's range.
    fn first(&self) -> u32 {
        let text = std::fs::read_to_string("/etc/subuid").unwrap();
        let line = text.lines().find_map(|l| l.strip_prefix(&format!("{}:", self.user.name)));
        let line = line.unwrap_or_else(|| panic!("{} has no range in /etc/subuid", self.user.name));
        line.split(':').next().unwrap().parse().unwrap()
    }

    /// What belongs to ids of the user's range below the state directory.
    fn of_the_range(&self) -> Vec<PathBuf> {
        let first = self.first();
        let of_range = |uid: u32| (first..first + 65536).contains(&uid);
        walk(&self.sandbox.state())
            .into_iter()
            .filter(|(_, uid)| of_range(*uid))
            .map(|(path, _)| path)
            .collect()
    }
}

/// Every file below a directory, with its owner. What cannot be listed is left out (who runs the tests as root sees all).
fn walk(dir: &Path) -> Vec<(PathBuf, u32)> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let Ok(meta) = entry.path().symlink_metadata() else { continue };
        all.push((entry.path(), meta.uid()));
        if meta.is_dir() {
            all.extend(walk(&entry.path()));
        }
    }
    all
}

const SUBIDS: &str = "--container-subids";

/// A package whose daemon runs as a user of its own, installed as anybody would.
const DAEMON: &str = r#"set -e
mkdir -p /repo/pkg/DEBIAN /repo/pkg/usr/sbin /repo/pkg/var/lib/keeper
cd /repo
cat > pkg/DEBIAN/control <<END
Package: keeper
Version: 1.0
Architecture: all
Maintainer: Nobody <nobody@example.invalid>
Description: a daemon with a user of its own
END
cat > pkg/DEBIAN/postinst <<END
#!/bin/sh
set -e
groupadd --system keepers
useradd --system --gid keepers --home-dir /var/lib/keeper --shell /bin/sh keeper
chown keeper:keepers /var/lib/keeper
chmod 2750 /var/lib/keeper
END
cat > pkg/usr/sbin/keeperd <<END
#!/bin/sh
exec setpriv --reuid keeper --regid keepers --init-groups sh -c 'id -un > /var/lib/keeper/started; touch /var/lib/other 2>/dev/null; exec sleep 600'
END
chmod 755 pkg/DEBIAN/postinst pkg/usr/sbin/keeperd
dpkg-deb --root-owner-group -b pkg keeper.deb >/dev/null
{ cat pkg/DEBIAN/control
  echo "Filename: ./keeper.deb"
  echo "Size: $(stat -c %s keeper.deb)"
  echo "SHA256: $(sha256sum keeper.deb | cut -d' ' -f1)"
} > Packages
rm -rf /etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/repo ./' > /etc/apt/sources.list
apt-get update -qq >/dev/null
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq keeper >/dev/null
keeperd &
for n in $(seq 100); do [ -s /var/lib/keeper/started ] && break; sleep 0.1; done
stat -c '%U %G' /var/lib/keeper/started /var/lib/keeper
stat -c %U /proc/$!
ls /var/lib/other 2>/dev/null || echo closed
"#;

each_user! {
    fn ids_are_real_and_daemons_drop_to_their_own(who) {
        let users = Users::of(who);
        // The image that an ordinary user makes is not configured: it has no rules for PAM, without which su ends.
        let su = if machine::is_root() { "su -s /bin/sh -c" } else { "setpriv --reuid mail sh -c" };
        let script = "set -e; id -u; cd /tmp; for n in 1 33 1000 65535; do echo $n > f$n; chown $n:$n f$n; done; stat -c %u:%g f*; \
            setpriv --reuid 1000 --regid 1000 --clear-groups sh -c 'id -u; cat f1000; echo x 2>/dev/null >> f33 || echo refused; chown 0 f1000 2>/dev/null || echo refused'; \
            SU 'id -un; touch /tmp/of-mail; stat -c %U /tmp/of-mail' mail; \
            tar -cf a.tar f1 f33; mkdir out; tar -C out --same-owner -xf a.tar; stat -c %u out/f33; \
            chown 65536 f1 2>/dev/null || echo no-such-id; mknod /dev/x c 1 3 2>/dev/null || echo no-device; \
            grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t' ' '; awk '{print $1, $3}' /proc/self/uid_map /proc/self/gid_map";
        let text = users.srun(&[SUBIDS], &script.replace("SU ", &format!("{su} "))).ok().text();
        let expected = "0\n1:1\n1000:1000\n33:33\n65535:65535\n1000\n1000\nrefused\nrefused\nmail\nmail\n33\nno-such-id\nno-device\n\
            NoNewPrivs: 1\nSeccomp: 2\n0 1\n1 65535\n0 1\n1 65535";
        assert_eq!(text, expected);
        let text = users.srun(&[SUBIDS], DAEMON).ok().text();
        assert_eq!(text, "keeper keepers\nkeeper keepers\nkeeper\nclosed");
        // Without a cluster, and by the front door of apptainer.
        let image = images::debian().display().to_string();
        let own = users.sandbox.cmd_as(&users.user, "berth").env("BERTH_STATE", users.sandbox.work().join("own")).limit(120);
        let look = "touch /tmp/x /x; chown 7:8 /x; stat -c %u:%g /x; grep -c . /proc/self/uid_map";
        assert_eq!(own.args(["run", "--subids", &image, "sh", "-c", look]).ok().text(), "7:8\n2");
    }

    fn what_is_left_with_other_ids_is_removed(who) {
        let users = Users::of(who);
        let fill = "mkdir -p /tmp/d /d/e; touch /tmp/d/f /d/e/f; chown -R 33:33 /tmp/d /d; chmod 0 /tmp/d /d/e; \
            setsid setpriv --reuid 33 --clear-groups sleep 98765 & sleep 0.2; echo $!";
        // The job's own /tmp, a layer on disk and in memory, a process of another id.
        for layer in ["--container-writable-layer=tmpfs", "--container-writable-layer=disk"] {
            users.srun(&[SUBIDS, layer], fill).ok();
        }
        // The job goes a moment after its last step.
        assert!(wait(20, || users.of_the_range().is_empty().then_some(())).is_some(), "{:?}", users.of_the_range());
        // A step's layer and processes go with the step, while its job lives on.
        let script = format!("#!/bin/sh\nsrun --container-writable-layer=disk sh -c '{fill}'\necho ended; sleep 60\n");
        let job = users.sbatch(&[SUBIDS], &script);
        users.sandbox.wait_file("out", "ended", 60);
        let layers = |path: &PathBuf| path.components().any(|c| c.as_os_str().to_string_lossy().starts_with("layer-"));
        assert!(!users.of_the_range().iter().any(layers), "{:?}", users.of_the_range());
        let first = users.first();
        let of_range = || {
            let all = std::fs::read_dir("/proc").unwrap().flatten();
            all.filter(|e| e.metadata().is_ok_and(|m| m.uid() == first + 32))
                .filter_map(|e| e.file_name().to_str()?.parse().ok())
                .filter(|pid: &i32| !gone(*pid))
                .collect::<Vec<i32>>()
        };
        assert!(wait(30, || of_range().is_empty().then_some(())).is_some(), "{:?} go on", of_range());
        users.cmd("scancel").arg(job.to_string()).ok();
        assert!(wait(20, || users.of_the_range().is_empty().then_some(())).is_some(), "{:?}", users.of_the_range());
        // A container that is kept keeps its ids, whoever enters it, and goes whole.
        let name = ["--container-name=kept", "--container-scope=user"];
        users.srun(&[SUBIDS, name[0], name[1]], fill).ok();
        assert!(!users.of_the_range().is_empty() || !machine::is_root());
        let look = ["stat", "-c", "%u:%g %a", "/d/e"];
        assert_eq!(users.cmd("srun").args([SUBIDS, name[0], name[1]]).args(look).ok().text(), "33:33 0");
        if users.sandbox.who().is_root() {
            assert_eq!(users.cmd("srun").args(name).args(look).ok().text(), "33:33 0", "the container knows its ids");
        } else {
            users.cmd("srun").args(name).args(look).fails().says(&["--container-subids", "the job was submitted without it"]);
        }
        users.cmd("srun").args(name).args([SUBIDS, "--no-container-remap-root", "true"]).fails()
            .says(&["both --container-subids and --no-container-remap-root", "leave one of them out"]);
        users.cmd("srun").args(name).args(["--no-container-subids", "true"]).fails()
            .says(&["--no-container-subids", "was made with --container-subids"]);
        users.cmd("berth").args(["container", "rm", "kept"]).ok();
        assert!(users.of_the_range().is_empty(), "{:?}", users.of_the_range());
        users.srun(&name, "true").ok();
        users.cmd("srun").args(name).args([SUBIDS, "true"]).fails().says(&["'kept' was made without it", "another name"]);
    }

    fn steps_share_the_ids_of_their_job(who) {
        let users = Users::of(who);
        let script = "#!/bin/sh\nsrun -n2 sh -c 'id -u'\nsrun -n1 --overlap sh -c 'echo x > /tmp/x; chown 44:45 /tmp/x'\nstat -c %u:%g /tmp/x\n\
            srun -n1 --no-container-subids sh -c 'id -u; chown 46 /tmp/own 2>/dev/null; grep -c . /proc/self/uid_map'\n\
            srun -n1 --no-container-remap-root id -u\ntouch /here; chown 9:9 /here; echo ready; sleep 60\n";
        let job = users.sbatch(&[SUBIDS, "-n2"], script);
        users.sandbox.wait_file("out", "ready", 60);
        let expected = format!("0\n0\n44:45\n0\n1\n{}\nready\n", users.user.uid);
        assert_eq!(users.sandbox.read("out"), expected);
        let enter = "stat -c %u:%g /here; chown 10:10 /here; setpriv --reuid 10 --clear-groups stat -c %u:%g /here";
        let text = users.cmd("berth").args(["exec", &job.to_string(), "sh", "-c", enter]).ok().text();
        assert_eq!(text, "9:9\n10:10");
        users.cmd("scancel").arg(job.to_string()).ok();
        // A step asks for what its job did not: root's cluster makes it a namespace of its own, a user's cannot.
        let script = format!("#!/bin/sh\nsrun {SUBIDS} sh -c 'chown 5 /tmp; stat -c %u /tmp'; echo done\n");
        users.sbatch(&["--wait"], &script);
        let text = users.sandbox.read("out");
        if users.sandbox.who().is_root() {
            assert_eq!(text, "5\ndone\n");
        } else {
            assert!(text.contains("the job was submitted without it") && text.ends_with("done\n"), "{text}");
        }
        // What is explained is what is made.
        let explained = users.srun(&["--explain", SUBIDS], "true").ok().text();
        let first = users.first();
        let map = format!("uid map: 0 is {} on the node, 1-65535 are {first}-{} on the node", users.user.uid, first + 65534);
        assert!(explained.contains(&map) && explained.contains("pretended id changes off"), "{explained}");
        let found = users.cmd("berth").arg("doctor").run().text();
        assert!(found.lines().any(|l| l.starts_with("good") && l.contains("ranges of ids")), "{found}");
    }

    fn what_is_saved_has_the_owners_that_the_container_sees(who) {
        let users = Users::of(who);
        let fill = "mkdir /made; echo x > /made/f; chown 33:34 /made/f; chmod 4750 /made/f; ln -s f /made/l; chown -h 35:36 /made/l; \
            mkfifo /made/p; chown 65535 /made/p; chown 37:0 /made; chmod 700 /made";
        let names = ["--container-name=box", "--container-scope=user", SUBIDS];
        users.srun(&[&names[..], &["--container-save=out.sqsh"]].concat(), fill).ok();
        users.cmd("srun").args(names).args(["--container-save=out.oci", "true"]).ok();
        let path = |name: &str| users.sandbox.work().join(name).display().to_string();
        let list = Cmd::new("unsquashfs").args(["-lln", &path("out.sqsh")]).ok().text();
        let owner = |end: &str| {
            let line = list.lines().find(|l| l.contains(end)).unwrap_or_else(|| panic!("{end} is not in {list}"));
            line.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(owner("root/made/f"), "-rwsr-x--- 33/34");
        assert_eq!(owner("root/made/l -> f"), "lrwxrwxrwx 35/36");
        assert_eq!(owner("root/made/p"), "prw-r--r-- 65535/0");
        assert_eq!(owner("root/etc/passwd"), "-rw-r--r-- 0/0");
        let blobs = format!("cd {} && for b in blobs/sha256/*; do tar -tvzf $b --numeric-owner 2>/dev/null; done | grep made", path("out.oci"));
        let list = Cmd::new("sh").args(["-c", &blobs]).ok().text();
        for (owner, name) in [("33/34", "made/f"), ("35/36", "made/l"), ("65535/0", "made/p"), ("37/0", "made/")] {
            let there = list.lines().any(|l| l.contains(&format!(" {owner} ")) && l.contains(name));
            assert!(there, "{owner} {name}: {list}");
        }
        // Layers have one owner: run again, what was saved is root's.
        let text = users.cmd("srun").args([SUBIDS, "--container-image=./out.sqsh", "stat", "-c", "%u:%g", "/made/f"]).ok().text();
        assert_eq!(text, "0:0");
        // An ordinary user's test could not remove what belongs to other ids.
        users.cmd("berth").args(["container", "rm", "box"]).ok();
    }

    fn the_range_reaches_nothing_of_others(who) {
        let users = Users::of(who);
        // Closed files of somebody else, of root, and of the user's.
        let place = tempfile::Builder::new().prefix("bt-closed-").tempdir_in("/var/tmp").unwrap();
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut closed = Vec::new();
        let owners = if machine::is_root() { vec![Who::root(), Who::stranger()] } else { Vec::new() };
        for owner in &owners {
            let file = place.path().join(&owner.name);
            std::fs::write(&file, "secret").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
            machine::give(&file, owner);
            closed.push(file);
        }
        let mount = format!("--container-mounts={0}:/seen", place.path().display());
        let host_first = users.first();
        let script = format!(
            "for f in /seen/*; do [ -e $f ] || continue; cat $f 2>/dev/null && echo READ $f; chown 33 $f 2>/dev/null && echo TAKEN $f; chmod 777 $f 2>/dev/null && echo OPENED $f; done; \
             for id in $(seq 1 400 65535); do setpriv --reuid $id --regid $id --clear-groups sh -c 'cat /seen/* 2>/dev/null' && [ -n \"$(ls -A /seen)\" ] && echo READ as $id; done; \
             unshare -U sleep 30 & sleep 0.3; for m in '0 1000 70000' '0 65536 1' '0 {host_first} 200000'; do echo $m 2>/dev/null > /proc/$!/uid_map && echo MAPPED $m; done; kill $!; \
             kill -0 1 2>/dev/null && [ $(readlink /proc/1/ns/pid) != $(readlink /proc/self/ns/pid) ] && echo KILLS; \
             cp /bin/sh /seen/sh; chown 33:33 /seen/sh; chmod 6755 /seen/sh; cp /bin/sh /own; chown 0:0 /own; chmod 6755 /own; \
             setpriv --reuid 1000 --clear-groups /own -p -c 'id -u'; mount -t tmpfs none /mnt 2>/dev/null && echo mounts; mount -o remount,suid / 2>/dev/null && echo REMOUNTED; echo tried"
        );
        let text = users.srun(&[SUBIDS, &mount, "--container-writable-layer=disk"], &script).ok().text();
        let bad: Vec<&str> = text.lines().filter(|l| l.starts_with(|c: char| c.is_ascii_uppercase())).collect();
        assert!(bad.is_empty() && !text.contains("secret") && text.ends_with("tried"), "{text}");
        assert!(text.lines().any(|l| l == "1000"), "a setuid file gave something: {text}");
        for file in &closed {
            assert_eq!(std::fs::read_to_string(file).unwrap(), "secret");
        }
        // What the user gave away in a mounted directory is an id of the user's own range outside.
        let meta = std::fs::metadata(place.path().join("sh")).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (host_first + 32, host_first + 32));
        // Files of other ids that a container leaves on disk lie where nobody else comes.
        if machine::is_root() {
            let name = ["--container-name=left", "--container-scope=user", SUBIDS];
            users.srun(&name, "cp /bin/sh /sh; chown 33:33 /sh; chmod 6755 /sh").ok();
            let left = users.of_the_range().into_iter().find(|p| p.ends_with("upper/sh")).unwrap();
            let tried = users.sandbox.cmd_as(&Who::stranger(), "sh").args(["-c", &format!("{} -p -c id", left.display())]).run();
            assert!(tried.err().contains("ermission denied"), "{tried}");
        }
        // Whoever gave files away takes them back in a container of the same kind.
        users.srun(&[SUBIDS, &mount], "rm /seen/sh").ok();
    }
}

/// A shell in a mount namespace in which a file has other contents, and what it runs there.
fn with_file(file: &str, content: &Path, then: &str) -> Vec<String> {
    let script = format!("mount --bind {} {file} && {then}", content.display());
    vec!["-m".into(), "sh".into(), "-c".into(), script]
}

#[test]
fn a_range_is_given_to_its_user_alone_as_root() {
    let user = Who::user();
    let place = tempfile::Builder::new().prefix("bt-subuid-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let file = place.path().join("subuid");
    let (name, uid) = (&user.name, user.uid);
    std::fs::write(&file, "").unwrap();
    // The agent of root's cluster reads it: what the client says is not asked.
    let mut sandbox = Sandbox::empty(Who::root());
    sandbox.up_by("unshare", &with_file("/etc/subuid", &file, "exec berth up --detach"));
    let users = Users::with(sandbox);
    for (lines, words) in [
        (format!("{name}x:700000:65536\n"), "has no range of ids"),
        (format!("{}:700000:65536\n", &name[..name.len() - 1]), "has no range of ids"),
        (format!("{uid}0:700000:65536\n0{uid}:800000:65536\n"), "has no range of ids"),
        (format!("{name}:700000\n:{name}:700000:65536\n #{name}:700000:65536\n"), "has no range of ids"),
        (format!("{name}:0:65536\n"), "holds root's id"),
        (format!("{name}:{uid}:65536\n"), "holds the own id"),
        (format!("{name}:700000:1000\n"), "has 1000 ids"),
    ] {
        std::fs::write(&file, &lines).unwrap();
        let image = format!("--container-image={}", images::busybox().display());
        users.cmd("srun").args([&image, SUBIDS, "cat", "/proc/self/uid_map"]).fails().says(&[
            "--container-subids",
            words,
            "in /etc/subuid",
        ]);
    }
    // A file that others can write is nobody's word.
    std::fs::write(&file, format!("{name}:700000:65536\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o666)).unwrap();
    let run = |then: &str| Cmd::new("unshare").args(with_file("/etc/subuid", &file, then)).limit(60);
    let berth = machine::programs().join("berth").display().to_string();
    let state = place.path().join("state").display().to_string();
    let image = images::busybox().display().to_string();
    let as_user = format!(
        "exec setpriv --reuid {uid} --regid {} --init-groups env HOME={} BERTH_STATE={state} ",
        user.gid,
        user.home.display()
    );
    std::fs::create_dir(place.path().join("state")).unwrap();
    machine::give(&place.path().join("state"), &user);
    run(&format!("{as_user} {berth} run --subids {image} true"))
        .fails()
        .says(&["can be written by others", "chmod go-w"]);
}

#[test]
fn helpers_that_are_missing_or_weak_are_named_as_root() {
    let user = Who::user();
    let place = tempfile::Builder::new().prefix("bt-helper-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let weak = place.path().join("newuidmap");
    std::fs::copy("/usr/bin/newuidmap", &weak).unwrap();
    std::fs::set_permissions(&weak, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::create_dir(place.path().join("state")).unwrap();
    machine::give(&place.path().join("state"), &user);
    let berth = machine::programs().join("berth").display().to_string();
    let run = format!(
        "exec setpriv --reuid {} --regid {} --init-groups env HOME={} BERTH_STATE={} {berth} run --subids {} true",
        user.uid,
        user.gid,
        user.home.display(),
        place.path().join("state").display(),
        images::busybox().display()
    );
    Cmd::new("unshare")
        .args(with_file("/usr/bin/newuidmap", &weak, &run))
        .limit(60)
        .fails()
        .says(&["/usr/bin/newuidmap has neither its setuid bit nor its file capabilities", "chmod u+s"]);
    let plain = run.replace("setpriv ", "setpriv --no-new-privs ");
    Cmd::new("sh").args(["-c", &plain]).limit(60).fails().says(&["no_new_privs", "start it outside of that"]);
}
