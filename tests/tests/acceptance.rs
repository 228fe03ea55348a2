//! The batch script that people who train over several nodes write: two nodes of eight GPUs each, EFA, limits, a container and what is
//! mounted in it, from submission to the last task, which has met all others. The nodes' hardware is stand-ins: files as kernel and
//! driver show them, a library in the place of NVIDIA's, device files of other drivers.

use berth_tests::own_dev::OWN_DEV;
use berth_tests::{Cmd, Hosts, Sandbox, Who, images, machine};
use std::fs;
use std::path::Path;

const SCRIPT: &str = include_str!("../../examples/efa-training.sh");
const VERSION: &str = "535.54.03";

/// Begins a node: eight GPUs and two devices of EFA. What comes behind the directory of files is run there.
const NODE: &str = r#"
files=$1; shift
own_dev
mkdir "$dev/infiniband"
mknod -m 666 "$dev/infiniband/uverbs0" c 10 200
mknod -m 666 "$dev/infiniband/uverbs1" c 10 200
for n in 0 1 2 3 4 5 6 7; do mknod -m 666 "$dev/nvidia24$n" c 10 229; done
use_dev
for n in 0 1; do
    dir=/sys/class/infiniband/rdmap${n}s6
    mkdir -p "$dir/device" "$dir/ports/1" "/sys/class/infiniband_verbs/uverbs$n"
    ln -s /sys/bus/pci/drivers/efa "$dir/device/driver"
    echo 0x1d0f > "$dir/device/vendor"; echo '7: <unspecified>' > "$dir/node_type"
    echo Unspecified > "$dir/ports/1/link_layer"; echo '4: ACTIVE' > "$dir/ports/1/state"
    echo "rdmap${n}s6" > "/sys/class/infiniband_verbs/uverbs$n/ibdev"
done
export BERTH_GPU_TREE="$files" LD_LIBRARY_PATH="$files/management" STANDIN_GPUS=8 STANDIN_MINOR=240 STANDIN_MODE=switch
exec "$@"
"#;

/// What the driver's and the kernel's files say, and the libraries.
fn record(files: &Path) {
    let write = |path: &str, text: &str| {
        let file = files.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    };
    let line =
        format!("NVRM version: NVIDIA UNIX x86_64 Kernel Module  {VERSION}  Tue Jun  6 22:20:39 UTC 2023\n");
    write("proc/driver/nvidia/version", &line);
    for n in 0..8 {
        let text = format!("Model: \t\t NVIDIA A100-SXM4-40GB\nDevice Minor: \t {}\n", 240 + n);
        write(&format!("proc/driver/nvidia/gpus/0000:{:02x}:00.0/information", 0x80 - 0x10 * n), &text);
        write(&format!("dev/nvidia{}", 240 + n), "");
    }
    let cc = |words: &[&str]| Cmd::new("cc").args(words).ok();
    let source = machine::workspace().join("agent/gpus/tests/standin.c").display().to_string();
    let out = |path: &str| files.join(path).display().to_string();
    for dir in ["management", "usr/lib64"] {
        fs::create_dir_all(files.join(dir)).unwrap();
    }
    cc(&["-shared", "-fPIC", "-o", &out("management/libnvidia-ml.so.1"), &source]);
    write("cuda.c", "int cuInit(unsigned flags) { return 42 + flags; }\n");
    let cuda = format!("usr/lib64/libcuda.so.{VERSION}");
    cc(&["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", &out(&cuda), &out("cuda.c")]);
    let management = format!("usr/lib64/libnvidia-ml.so.{VERSION}");
    fs::copy(files.join("management/libnvidia-ml.so.1"), files.join(management)).unwrap();
    std::os::unix::fs::symlink(
        format!("libnvidia-ml.so.{VERSION}"),
        files.join("usr/lib64/libnvidia-ml.so.1"),
    )
    .unwrap();
}

/// Meets all other tasks, as torch.distributed does with `env://`: the first one listens, and answers when all are there; each comes to it by
/// MASTER_ADDR and MASTER_PORT, the first itself, too. Perl is in every Debian.
const MEET: &str = r#"#!/usr/bin/perl
use strict;
use IO::Socket::INET;
my ($rank, $world, $host, $port) = @ENV{qw(RANK WORLD_SIZE MASTER_ADDR MASTER_PORT)};
if ($rank == 0) {
    my $listener = IO::Socket::INET->new(LocalPort => $port, Listen => 64, ReuseAddr => 1) or die "port $port: $!";
    my $child = fork;
    die "fork: $!" unless defined $child;
    if ($child == 0) {
        my %there;
        while (keys %there < $world) {
            my $from = $listener->accept or next;
            chomp(my $who = <$from>);
            $there{$who} = $from;
        }
        my $all = join ",", sort { $a <=> $b } keys %there;
        print { $_ } "$all\n" for values %there;
        exit 0;
    }
    close $listener;
}
my $to;
for (1 .. 600) {
    last if $to = IO::Socket::INET->new(PeerAddr => $host, PeerPort => $port, Timeout => 10);
    select undef, undef, undef, 0.1;
}
die "rank $rank cannot reach $host:$port: $@" unless $to;
print $to "$rank\n";
my $met = <$to>;
wait if $rank == 0;
print "rank=$rank/$world local=$ENV{LOCAL_RANK} by=$host met=$met";
"#;

/// In the place of an interpreter: says where it is, what it has and whom it met.
const PYTHON: &str = r#"#!/bin/sh
met=$(meet)
gpus=$(ls /dev | grep -c '^nvidia24')
efa=$(ls /dev/infiniband | tr '\n' ,)
cuda=$(ls /usr/local/nvidia/lib64 | grep -c libcuda.so.1)
echo "task $SLURM_NODEID $SLURM_PROCID gpus=$gpus visible=$CUDA_VISIBLE_DEVICES efa=$efa cuda=$cuda memlock=$(ulimit -l) \
stack=$(ulimit -s) $met $FI_PROVIDER $FI_EFA_USE_DEVICE_RDMA $NCCL_DEBUG $* $(cat /shared/data)"
"#;

#[test]
fn the_script_of_two_nodes_with_eight_gpus_each_runs_as_it_is_written_as_root() {
    let hosts = Hosts::new(&["n1", "n2"]);
    let work = hosts.work();
    // In root's own directory: what is found there is believed.
    let files = work.parent().unwrap().join("files");
    record(&files);
    Cmd::new("umoci")
        .args(["--log=error", "unpack", "--image", &format!("{}:latest", images::debian().display())])
        .arg(files.join("bundle"))
        .ok();
    let root = files.join("bundle/rootfs");
    for dir in [root.parent().unwrap(), &root] {
        fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    for (name, text) in [("python", PYTHON), ("meet", MEET)] {
        let program = root.join("usr/bin").join(name);
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    }
    fs::write(hosts.state("n1").join("berth.toml"), "[[partition]]\nname = \"p4d\"\ndefault = true\n")
        .unwrap();
    let files = files.display().to_string();
    let begin = |host: &str, words: &[&str]| {
        let script = format!("{OWN_DEV}{NODE}");
        let all = ["-m", "bash", "-c", &script, "node", &files].into_iter().chain(words.iter().copied());
        hosts.root(host, "unshare").args(all).limit(60).ok();
    };
    begin("n1", &["berth", "up", "--detach"]);
    let token = hosts.token("n1", &["--uses", "1"]);
    begin("n2", &["berth", "join", "10.77.0.1", &token, "--detach"]);
    for name in ["n1", "n2"] {
        hosts.wait_node(name, "idle", 60);
    }
    let gres = hosts.root("n1", "sinfo").args(["-h", "-N", "-o", "%G"]).ok().text();
    assert_eq!(gres.lines().filter(|line| line.contains("gpu:nvidia_a100-sxm4-40gb:8")).count(), 2, "{gres}");
    let shared = work.join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("data"), "from the shared directory").unwrap();
    let script = work.join("train.sh");
    fs::write(&script, SCRIPT).unwrap();
    // The machine that tests this may have fewer cores than such a node.
    let submit = |options: &[&str]| {
        let all = ["--wait", "--overcommit"].into_iter().chain(options.iter().copied());
        let cmd = hosts.cmd("n1", "sbatch").args(all).arg(&script).limit(120);
        cmd.env("IMAGE", &root).env("SHARED", &shared).env("TRAIN", "/shared/train.py")
    };
    let told = submit(&["-o", "out"]).run();
    let text = fs::read_to_string(work.join("out")).unwrap_or_default();
    assert_eq!(told.rc, 0, "{told}\n{text}");
    let mut tasks: Vec<&str> = text.lines().filter(|line| line.starts_with("task ")).collect();
    tasks.sort_by_key(|line| line.split(' ').nth(2).and_then(|n| n.parse::<u32>().ok()));
    assert_eq!(tasks.len(), 16, "{text}");
    let all: Vec<String> = (0..16).map(|rank| rank.to_string()).collect();
    let all = all.join(",");
    for (number, line) in tasks.iter().enumerate() {
        let begins = format!(
            "task {} {number} gpus=8 visible=0,1,2,3,4,5,6,7 efa=uverbs0,uverbs1, cuda=1 memlock=",
            number / 8
        );
        assert!(line.starts_with(&begins), "{line}\n{text}");
        // The first node, which is the controller's machine, is itself; the other finds it by its address: there is no name service here.
        let by = if number < 8 { "127.0.0.1" } else { "10.77.0.1" };
        let ends = format!(
            " rank={number}/16 local={} by={by} met={all} efa 1 INFO -u /shared/train.py from the shared directory",
            number % 8
        );
        assert!(line.ends_with(&ends), "{line}\n{text}");
    }
    // What the script's shell could set is what tasks have, on both nodes alike.
    let limits = |line: &&str| {
        line.split(' ')
            .filter(|word| word.starts_with("memlock=") || word.starts_with("stack="))
            .collect::<Vec<_>>()
            .join(" ")
    };
    let mut seen: Vec<String> = tasks.iter().map(limits).collect();
    seen.dedup();
    assert_eq!(seen.len(), 1, "{seen:?}");
    if !text.contains("ulimit: ") {
        assert_eq!(seen, ["memlock=unlimited stack=unlimited"]);
    }
}

/// Which part is missing is said, one after the other.
#[test]
fn where_a_part_of_the_hardware_is_missing_it_is_named_as_root() {
    let script =
        SCRIPT.replace("--nodes=2", "--nodes=1").replace("--ntasks-per-node=8", "--ntasks-per-node=1");
    let sandbox = Sandbox::start(Who::root());
    sandbox.write("train.sh", &script);
    sandbox.cmd("sbatch").arg("train.sh").fails().says(&["p4d"]);
    let mut sandbox = sandbox;
    sandbox.down();
    fs::write(sandbox.state().join("berth.toml"), "[[partition]]\nname = \"p4d\"\n").unwrap();
    sandbox.up();
    sandbox.cmd("sbatch").arg("train.sh").fails().says(&["8 x gpu"]);
    // As it is written: the second node is what is missing first.
    sandbox.write("whole.sh", SCRIPT);
    sandbox.cmd("sbatch").arg("whole.sh").fails().says(&["2 nodes were asked for, partition p4d has 1"]);
    sandbox.down();
    // GPUs are there, and no EFA.
    let config =
        "[[partition]]\nname = \"p4d\"\n[[node]]\nname = \"ALL\"\n[[node.gres]]\nname = \"gpu\"\ncount = 8\n";
    fs::write(sandbox.state().join("berth.toml"), config).unwrap();
    sandbox.up();
    fs::create_dir(sandbox.work().join("shared")).unwrap();
    let image = images::debian();
    let cmd = sandbox.cmd("sbatch").args(["--wait", "-o", "out", "train.sh"]).limit(60);
    cmd.env("IMAGE", &image).env("SHARED", sandbox.work().join("shared")).env("TRAIN", "x").fails();
    let text = sandbox.read("out");
    assert!(text.contains("FI_PROVIDER=efa is set, and this node has no EFA device"), "{text}");
    assert!(text.contains("python"), "{text}");
}
