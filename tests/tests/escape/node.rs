//! The node as a container sees it: its processes, its control groups, its programs, its settings.

use berth_tests::attacks::TOOLS;
use berth_tests::{Sandbox, Who, each_user, images};

/// Ways to a control group's files, and what is written to them there. Prints what was changed, and in which group the
/// process is in the end.
const ON_GROUPS: &str = r#"
before=$(cat /proc/self/cgroup)
put() { # a value into a file of a control group's
    [ -e "$2" ] && case $(stat -f -c %T "$2") in cgroup*) (echo "$1" > "$2") 2>/dev/null && echo "WROTE $1 to $2" ;; esac
}
tamper() { # with a directory that is a control group
    case $(stat -f -c %T "$1") in cgroup*) ;; *) return ;; esac
    mkdir $1/evil 2>/dev/null && echo "MADE $1/evil" && put $$ $1/evil/cgroup.procs
    for above in . .. ../..; do put $$ $1/$above/cgroup.procs; done
    for file in memory.limit_in_bytes memory.max memory.memsw.limit_in_bytes pids.max; do put max $1/$file; put -1 $1/$file; done
    put 0-63 $1/cpuset.cpus
    put 'a *:* rwm' $1/devices.allow
    put /tmp/agent $1/release_agent
    put 1 $1/notify_on_release
}
mount -o remount,rw /sys/fs/cgroup && echo REMOUNTED
# The own group, as the node names it: the last one made.
for dir in /sys/fs/cgroup/* $(find /sys/fs/cgroup -type d -path '*berth-*/job_*' | tail -n 20); do tamper $dir; done
export -f put
export -f tamper
unshare --user --map-root-user --mount --cgroup bash -c '
    mkdir -p /tmp/m
    for kind in memory cpuset devices pids freezer cpu,cpuacct; do
        mount -t cgroup -o $kind none /tmp/m && { tamper /tmp/m; umount -l /tmp/m; }
    done
    mount -t cgroup2 none /tmp/m && tamper /tmp/m'
[ "$before" = "$(cat /proc/self/cgroup)" ] || { echo "MOVED"; cat /proc/self/cgroup; }
echo tried
"#;

each_user! {
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

    fn the_programs_of_the_node_cannot_be_written(who) {
        let sandbox = Sandbox::start(who);
        // The client in the container is one file for all jobs; a running one is a way to it as well.
        let script = "srun --version >/dev/null || echo no client; file=$(readlink -f /run/berth/bin/srun)\n\
            for f in $file /run/berth/bin/srun /proc/1/exe /proc/$PPID/exe; do\n\
              (echo evil > $f) && echo \"wrote $f\"; (echo evil >> $f) && echo \"wrote $f\"; chmod 4777 $f && echo \"chmod $f\"\n\
              cp /bin/true $f && echo \"replaced $f\"; rm -f $f && [ ! -e $f ] && echo \"removed $f\"\n\
            done\n\
            srun --help > /dev/null & (echo evil > /proc/$!/exe) && echo \"wrote by exe\"; wait\n\
            mount -o remount,bind,rw /run/berth/bin && echo remounted\n\
            unshare -Urm sh -c 'mount -o remount,bind,rw /run/berth/bin; mount --bind /run/berth/bin /mnt; mount -o remount,bind,rw /mnt; \
              (echo evil > /mnt/srun) && echo wrote by clone'\n\
            echo tried";
        let programs = |sandbox: &Sandbox| {
            let line = "sha256sum $(find . -type f | sort) && find . -printf '%p %m %U %G\\n' | sort";
            let dir = sandbox.state().join("clients");
            let dir = if dir.exists() { dir } else { find_clients(sandbox) };
            berth_tests::Cmd::new("sh").args(["-c", line]).dir(dir).ok().text()
        };
        let before = programs(&sandbox);
        for options in [&["-n1"][..], &["--container-remap-root"]] {
            let script = format!("{TOOLS}{script}");
            let words = options.iter().chain(&["sh", "-c"]).copied().chain([script.as_str()]);
            let output = sandbox.srun_in(images::debian(), words).ok();
            assert_eq!(output.text(), "tried", "{options:?}: {output}");
        }
        assert_eq!(programs(&sandbox), before);
    }

    fn a_container_commands_no_control_group(who) {
        let sandbox = Sandbox::start(who.clone());
        // Root of the node that is shown as root keeps rights over its own groups: `docs/security.md` says so.
        let all = [&["-n1"][..], &["--container-remap-root"]];
        for options in all.into_iter().take(if who.is_root() { 1 } else { 2 }) {
            let script = format!("{TOOLS}{ON_GROUPS}");
            let words = options.iter().chain(&["bash", "-c"]).copied().chain([script.as_str()]);
            let output = sandbox.srun_in(images::debian(), words).limit(120).ok();
            assert_eq!(output.text(), "tried", "{options:?}: {output}");
        }
    }
}

fn find_clients(sandbox: &Sandbox) -> std::path::PathBuf {
    let line = "dirname $(find . -path ./images -prune -o -name srun -print | head -n 1)";
    let found = berth_tests::Cmd::new("sh").args(["-c", line]).dir(sandbox.state()).ok().text();
    sandbox.state().join(found)
}

/// The user's own container in a cluster of root's; and the limits hold afterwards.
#[test]
fn limits_hold_whatever_a_container_writes_as_root() {
    let sandbox = Sandbox::start(Who::root());
    let user = Who::user();
    let image = format!("--container-image={}", images::debian().display());
    let srun = |words: &[&str]| sandbox.cmd_as(&user, "srun").dir("/").args(words).limit(120);
    let eat = format!("{{ {TOOLS} {ON_GROUPS} }} 2>/dev/null; nproc; head -c 800M /dev/zero | tail | wc -c");
    for options in [&["-n1"][..], &["--container-remap-root"]] {
        let mut words = vec![image.as_str(), "--mem=64M", "-c1"];
        words.extend(options);
        words.extend(["bash", "-o", "pipefail", "-c", &eat]);
        let output = srun(&words).run();
        let one = sandbox.srun(["-n1", "-c1", "nproc"]).ok().text();
        assert_eq!(output.text(), format!("tried\n{one}\n0"), "{options:?}: {output}");
        assert_ne!(output.rc, 0, "{options:?}: more memory than allowed was used: {output}");
    }
}
