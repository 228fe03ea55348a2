//! Debuggers, profilers and other container engines in a container, with the default filter.

use berth_tests::{Cmd, Sandbox, Who, each_user, images, machine};

/// The tools are the node's: its `/usr` is mounted over the image's.
const TOOLS: &str = "--container-mounts=/usr:/usr:ro";

/// One line for each tool: its name, and what came of it.
const DEBUG: &str = r#"
say() { echo "$1: $2"; }
gdb -nx -q -batch -ex starti -ex 'info registers' -ex kill /bin/true > /tmp/gdb 2>&1
grep -q -E '^(rip|pc) ' /tmp/gdb && say 'gdb run' works || cat /tmp/gdb
sleep 1000 & pid=$!
gdb -nx -q -batch -p $pid -ex 'info registers' -ex detach > /tmp/gdb 2>&1
grep -q -E '^(rip|pc) ' /tmp/gdb && say 'gdb attach' works || cat /tmp/gdb
kill $pid
strace -f -o /tmp/trace sh -c 'true | /bin/cat; /bin/true' || cat /tmp/trace
say 'strace -f' "$(grep -c 'execve.* = 0$' /tmp/trace) programs"
"#;

/// What depends on the kernel and on the machine: the same inside and outside.
const AS_OUTSIDE: &[&str] = &[
    "perf stat -x, -e task-clock true",
    "perf record -q -o /dev/null -e task-clock true",
    "numactl --show",
    "numactl --physcpubind=+0 true",
    "numactl --membind=0 true",
    "numactl --interleave=all true",
    "numactl --localalloc true",
];

const ENGINES: &str = r#"
bwrap --unshare-user --unshare-pid --unshare-ipc --unshare-uts --ro-bind / / --proc /proc --dev /dev --tmpfs /tmp sh -c \
    'echo bwrap: $(ls -d /proc/[0-9]* | wc -l) processes' 2>&1 | tail -n 1
unshare --user --map-root-user --mount --pid --fork --mount-proc sh -c 'echo unshare: pid $$ uid $(id -u)' 2>&1
mkdir -p /tmp/state
BERTH_STATE=/tmp/state /opt/berth/berth run /opt/image sh -c 'echo berth: uid $(id -u) in $(grep -c . /etc/passwd) lines' 2>&1
"#;

/// `srun` of an ordinary user, whoever started the cluster, in Debian's image.
fn srun(sandbox: &Sandbox, words: &[&str]) -> Cmd {
    let line = sandbox.cmd_as(&Who::user(), "srun").dir("/").arg("--container-image").arg(images::debian());
    line.args(words).limit(120)
}

each_user! {
    fn debuggers_work_in_containers(who) {
        let sandbox = Sandbox::start(who);
        for options in [&["-n1"][..], &["--container-remap-root"]] {
            let run = |script: &str| srun(&sandbox, &[options, &[TOOLS, "bash", "-c", script]].concat());
            let text = run(DEBUG).ok().text();
            assert_eq!(text, "gdb run: works\ngdb attach: works\nstrace -f: 3 programs", "{options:?}");
            let script = AS_OUTSIDE.iter().map(|line| format!("{line} >/dev/null 2>/tmp/said; echo $?\n")).collect::<String>();
            let inside = run(&script).ok().text();
            let outside = Cmd::new("bash").args(["-c", &script.replace("/tmp/said", "/dev/null")]).who(&Who::user()).ok().text();
            assert_eq!(inside, outside, "{options:?}: exit statuses of {AS_OUTSIDE:?}");
        }
    }

    fn another_engine_works_in_a_container(who) {
        let sandbox = Sandbox::start(who);
        let (programs, image) = (machine::programs().display(), images::busybox());
        let mounts = format!("{TOOLS},{programs}:/opt/berth:ro,{}:/opt/image:ro", image.display());
        for options in [&["-n1"][..], &["--container-remap-root"]] {
            let text = srun(&sandbox, &[options, &[mounts.as_str(), "bash", "-c", ENGINES]].concat()).ok().text();
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(lines.len(), 3, "{options:?}: {text}");
            assert!(lines[0].starts_with("bwrap: ") && lines[0].ends_with(" processes"), "{options:?}: {text}");
            assert_eq!(lines[1], "unshare: pid 1 uid 0", "{options:?}: {text}");
            let uid = if options.contains(&"--container-remap-root") { 0 } else { Who::user().uid };
            assert!(lines[2].starts_with(&format!("berth: uid {uid} in ")), "{options:?}: {text}");
        }
    }
}
