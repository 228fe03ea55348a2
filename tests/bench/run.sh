#!/usr/bin/env bash
# Measures Berth beside its peers in one run and prints one table: ours, peer, ratio, target, met or not.
# A row whose peer is not installed says so. usage: tests/bench/run.sh [--quick | --big | --import]; peers are listed in
# tests/packages.txt. --big: only what 100,000 waiting jobs cost; --import: only what images cost.
set -uo pipefail
cd "$(dirname "$0")/../.."

rounds=40
array=2000
submissions=200
requests=20000
only=
import_rounds=2
if [ "${1-}" = --quick ]; then
    rounds=20 array=200 submissions=50 requests=4000 import_rounds=1
elif [ "${1-}" = --big ] || [ "${1-}" = --import ]; then
    only=$1
elif [ $# -gt 0 ]; then
    printf 'bench: error: unknown argument %s; usage: tests/bench/run.sh [--quick | --big | --import]\n' "$1" >&2
    exit 1
fi

. tests/bench/common.sh
. tests/bench/import.sh

am_root=no
[ "$(id -u)" -ne 0 ] || am_root=yes
work=$(mktemp -d /tmp/bt-bench.XXXXXX)
chmod 755 "$work"
pids=()
finish() {
    [ -z "${BERTH_STATE-}" ] || berth down >/dev/null 2>&1
    for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null; done
    wait 2>/dev/null
    # Slurm's daemons detach from us; their pid files name them.
    for file in "$work"/slurm/*.pid; do [ ! -e "$file" ] || kill "$(cat "$file")" 2>/dev/null; done
    # podman and buildah leave their stores mounted; as an ordinary user their files have ids that only their own namespace can remove.
    for tool in podman buildah; do
        if [ $am_root = yes ]; then umount "$work/$tool"/*/root/overlay 2>/dev/null; else ! has $tool || $tool unshare rm -rf "$work/$tool"; fi
    done
    chmod -R u+rwX "$work"
    rm -rf "$work"
}
trap finish EXIT

note "building (release)"
cargo xtask build >/dev/null || die "the build failed"
cargo build --quiet --release --package berth-tests --bin bench-alternate || die "the build failed"
cargo build --quiet --release --package berth-rpc --example submissions || die "the build failed"
# Nothing that is released has the second engine: for its row the OCI command line is built with it, as a program of its own.
[ -n "$only" ] || cargo build --quiet --release --package berth-oci --features libcontainer || note "berth-oci does not build with libcontainer: its row is left out"
submissions_by_api=$PWD/target/release/examples/submissions
PATH=$PWD/target/release:$PATH
cc -O2 -static -o "$work/smallest" tests/bench/smallest.c || die "cannot compile tests/bench/smallest.c; install build-essential"
mkdir -p "$work/bin" "$work/scratch"
berth install-links "$work/bin" >/dev/null || die "berth install-links failed"

pid_of() { berth status --json | jq .controller.pid; }
resident() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }
# Processor time of a process in milliseconds, in steps of ten.
cpu_ms() { awk '{ print ($14 + $15) * 10 }' "/proc/$1/stat"; }
since() { printf '%s' $((${EPOCHREALTIME/./} - $1)); }

fsync=$(bench-alternate fsync "$work" 200) || die "cannot measure fsync"

# ---------------------------------------------------------------- 100,000 waiting jobs
if [ "$only" = --big ]; then
    note "100,000 waiting jobs"
    jobs=100000
    export BERTH_STATE=$work/state
    berth up --detach || die "berth up fails"
    b=$work/bin
    socket=$BERTH_STATE/run/controller.sock
    "$submissions_by_api" "$socket" 1000 8 32 8192 >/dev/null || die "submissions fail"
    before=$(resident "$(pid_of)")
    took=$("$submissions_by_api" "$socket" $jobs 8 32 8192) || die "submissions fail"
    above "submissions through the API, 8 clients with 32 outstanding, 8 KiB each, per second" "$(per_second $jobs "$took")" 10000
    controller=$(pid_of)
    below "controller, resident bytes a waiting job" $((($(resident "$controller") - before) * 1024 / jobs)) 1025
    listings=5
    for form in "" --json; do
        busy=$(cpu_ms "$controller") begin=${EPOCHREALTIME/./}
        for _ in $(seq $listings); do "$b/squeue" $form > "$work/listing" || die "squeue fails"; done
        took=$(since "$begin")
        [ -n "$form" ] || [ "$(wc -l < "$work/listing")" -eq $((jobs + 1001)) ] || die "squeue does not list all jobs"
        [ -n "$form" ] || below "squeue of $jobs jobs, controller's processor time, ms" $((($(cpu_ms "$controller") - busy) / listings)) 50
        limit=500
        [ -z "$form" ] || limit=2000
        below "squeue $form of $jobs jobs, ms" "$(ms $((took / listings)))" $limit
    done
    kill -9 "$controller"
    begin=${EPOCHREALTIME/./}
    berth up --detach >/dev/null || die "berth up fails after kill -9"
    "$b/srun" true || die "srun fails after kill -9"
    below "from kill -9 with $jobs waiting jobs to the end of the next srun true, ms" "$(ms "$(since "$begin")")" 1000
    [ "$("$b/squeue" -h | wc -l)" -eq $((jobs + 1000)) ] || die "jobs were lost, or are there twice"
    table
    exit 0
fi

if [ "$only" = --import ]; then
    imports
    table
    exit 0
fi

# ---------------------------------------------------------------- container start
note "container start"
image=$work/images/busybox
tests/images.sh busybox "$image" || die "cannot make the image"
rootless=()
[ $am_root = yes ] || rootless=(--rootless)
umoci --log=error unpack "${rootless[@]}" --image "$image:latest" "$work/bundle" || die "umoci cannot unpack the image"
lower=$work/bundle/rootfs
export BERTH_STATE=$work/state
berth run "$image" true || die "berth run fails"

commands=(fork+exec /bin/true smallest "$work/smallest $lower $work/scratch /bin/true" berth "berth run $image true")
# crun refuses hybrid control groups for their second version's tree: all commands run where it is out of sight.
apart() {
    if [ $am_root = no ] || ! mountpoint -q /sys/fs/cgroup/unified; then
        "$@"
    else
        unshare --mount --propagation private sh -c 'mount -t tmpfs none /sys/fs/cgroup/unified && exec "$@"' sh "$@"
    fi
}
spec() { # spec RUNTIME: a bundle that runs /bin/true
    mkdir -p "$work/$1"
    (cd "$work/$1" && rm -f config.json && "$1" spec "${rootless[@]}") || return 1
    jq --arg root "$lower" '.process.args = ["/bin/true"] | .process.terminal = false | .root.readonly = true | .root.path = $root' "$work/$1/config.json" > "$work/$1/new" &&
        mv "$work/$1/new" "$work/$1/config.json"
}
for runtime in crun runc; do
    if has $runtime && spec $runtime; then
        # crun is spared all of them: in its favour.
        [ $runtime = runc ] && flags= || flags=--cgroup-manager=disabled
        line="$runtime --root $work/run-$runtime $flags run --bundle $work/$runtime bench-$runtime"
        # Where a peer cannot run on this machine at all, its row is left out and not guessed.
        if apart $line 2>"$work/$runtime.err"; then commands+=("$runtime" "$line"); else note "$runtime does not run here: $(tail -1 "$work/$runtime.err")"; fi
    fi
done
# The same bundle with both engines of the OCI command line.
engines=no
if berth-oci --engine own features >/dev/null 2>&1; then
    engines=yes
    mkdir -p "$work/engines"
    (cd "$work/engines" && berth-oci spec "${rootless[@]}") || die "berth-oci spec fails"
    jq --arg root "$lower" '.process.args = ["/bin/true"] | .process.terminal = false | .root.readonly = true | .root.path = $root' "$work/engines/config.json" > "$work/engines/new"
    mv "$work/engines/new" "$work/engines/config.json"
    for engine in own libcontainer; do
        line="berth-oci --engine $engine --root $work/run-$engine run --bundle $work/engines bench-$engine"
        if $line 2>"$work/$engine.err"; then commands+=("engine-$engine" "$line"); else note "the engine $engine does not run here: $(tail -1 "$work/$engine.err")"; engines=no; fi
    done
fi
if has bwrap; then
    line="bwrap --unshare-user --unshare-pid --unshare-ipc --ro-bind $lower / --dev /dev --proc /proc /bin/true"
    if $line 2>"$work/bwrap.err"; then commands+=(bubblewrap "$line"); else note "bubblewrap does not run here: $(tail -1 "$work/bwrap.err")"; fi
fi
apart bench-alternate latency $rounds "${commands[@]}" > "$work/start" || die "container start cannot be measured"
ours=$(field berth 2 "$work/start")
against "berth run true, median ms" "$ours" ms "$work/start" smallest:2 bubblewrap:1 crun:0.5 runc:0.5
if [ $engines = yes ]; then
    row "berth oci run true, median ms" "$(ms "$(field engine-own 2 "$work/start")")" "the same with libcontainer" "$(ms "$(field engine-libcontainer 2 "$work/start")")" 1
else
    skip "berth oci run true, median ms" "" "libcontainer"
fi
row "berth run true, p99 ms" "$(ms "$(field berth 4 "$work/start")")" smallest "$(ms "$(field smallest 4 "$work/start")")" 2

together=$(apart bench-alternate rate 200 8 "berth run $image true") || die "eight at a time fail"
if [ -n "$(field crun 2 "$work/start")" ]; then
    printf '#!/bin/sh\nexec crun --root %s --cgroup-manager=disabled run --bundle %s bench-$$\n' "$work/run-crun" "$work/crun" > "$work/crun-once"
    chmod +x "$work/crun-once"
    theirs=$(apart bench-alternate rate 200 8 "$work/crun-once") &&
        faster "200 starts, 8 at a time, per second" "$(per_second 200 "$together")" crun "$(per_second 200 "$theirs")" 2
fi

# ---------------------------------------------------------------- import
imports

# ---------------------------------------------------------------- control plane
note "control plane"
hostname=$(hostname -s)
# On the loopback, with its own key, ports and directories. In Slurm's favour: it believes in 64 CPUs and schedules without a
# delay, because with two CPUs and its defaults it starts one task of an array a second.
start_slurm() {
    local dir=$work/slurm
    has slurmctld && has slurmd && has munged && [ $am_root = yes ] || return 1
    mkdir -p "$dir/state" "$dir/spool" && chmod 755 "$dir"
    head -c 1024 /dev/urandom > "$dir/key" && chmod 400 "$dir/key"
    munged --force --key-file="$dir/key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" \
        --seed-file="$dir/seed" 2>"$dir/munged.err" || return 1
    cat > "$dir/slurm.conf" <<CONF
ClusterName=bench
SlurmctldHost=$hostname(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
SlurmctldPort=$((port + 1))
SlurmdPort=$((port + 2))
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
MaxArraySize=10001
MaxJobCount=20000
MailProg=/bin/true
NodeName=$hostname NodeAddr=127.0.0.1 CPUs=64 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    export SLURM_CONF=$dir/slurm.conf
    slurmctld -c && slurmd -c || return 1
    for _ in $(seq 100); do
        /usr/bin/sinfo -h -o %t 2>/dev/null | grep -q idle && return 0
        sleep 0.2
    done
    return 1
}
slurm=no
if start_slurm; then slurm=yes; else note "Slurm cannot be started here (slurm-wlm, munge and root are needed)"; fi

# The limit per array is a site's matter; this one is measured with room for it.
mkdir -p "$BERTH_STATE"
printf 'max_array_size = 10001\n' > "$BERTH_STATE/berth.toml"
berth up --detach || die "berth up fails"
cd "$work" || exit 1
b=$work/bin
commands=(container "$b/srun --container-image=$image true" bare "$b/srun true")
[ $slurm = no ] || commands+=(slurm "/usr/bin/srun true")
bench-alternate latency $rounds "${commands[@]}" > "$work/srun" || die "srun fails"
ours=$(field container 2 "$work/srun") bare=$(field bare 2 "$work/srun") theirs=$(field slurm 2 "$work/srun")
if [ -n "$theirs" ]; then
    row "srun true in a container, median ms" "$(ms "$ours")" "Slurm without container" "$(ms "$theirs")" 0.4
    row "srun true without container, median ms" "$(ms "$bare")" Slurm "$(ms "$theirs")" 0.4
else
    skip "srun true in a container, median ms" "$(ms "$ours")" Slurm
    skip "srun true without container, median ms" "$(ms "$bare")" Slurm
fi

printf '#!/bin/sh\n:\n' > "$work/true.sh"
chmod +x "$work/true.sh"
for parallel in 1 8; do
    factor=1
    [ $parallel = 1 ] || factor=2
    ours=$(bench-alternate rate $submissions $parallel "$b/sbatch --hold -o /dev/null $work/true.sh") || die "sbatch fails"
    if [ $slurm = yes ] && theirs=$(bench-alternate rate $submissions $parallel "/usr/bin/sbatch --hold -o /dev/null $work/true.sh"); then
        faster "sbatch, $parallel at a time, per second" "$(per_second $submissions "$ours")" Slurm "$(per_second $submissions "$theirs")" $factor
    else
        skip "sbatch, $parallel at a time, per second" "$(per_second $submissions "$ours")" Slurm
    fi
done
"$b/scancel" -u "$(id -un)"
[ $slurm = no ] || /usr/bin/scancel -u "$(id -un)"

# drained SBATCH SQUEUE ARGUMENT...: microseconds from the submission until nothing is left in the queue
drained() {
    local sbatch=$1 squeue=$2 begin=${EPOCHREALTIME/./}
    shift 2
    "$sbatch" "$@" >/dev/null || return 1
    until [ -z "$("$squeue" -h)" ]; do
        sleep 0.1
        [ $((${EPOCHREALTIME/./} - begin)) -lt 600000000 ] || return 1
    done
    printf '%s' $((${EPOCHREALTIME/./} - begin))
}
ours=$(drained "$b/sbatch" "$b/squeue" --array=1-$array -c1 --mem=16M -o /dev/null --container-image="$image" "$work/true.sh") ||
    die "the array fails"
rate=$(per_second "$array" "$ours")
if [ $slurm = yes ] && theirs=$(drained /usr/bin/sbatch /usr/bin/squeue --array=1-$array -o /dev/null "$work/true.sh"); then
    faster "array of $array in containers, tasks per second" "$rate" "Slurm without container" "$(per_second "$array" "$theirs")" 5
else
    skip "array of $array in containers, tasks per second" "$rate" Slurm
fi

controller=$(pid_of) agent=$(berth status --json | jq '.agents[0].pid')
rows+=("| controller resident after all of it, MiB | $(($(resident "$controller") / 1024)) | | | below 50 when idle | $([ "$(resident "$controller")" -lt 51200 ] && echo met || echo NOT met) |")
rows+=("| agent resident, MiB | $(($(resident "$agent") / 1024)) | | | below 30 | $([ "$(resident "$agent")" -lt 30720 ] && echo met || echo NOT met) |")

took=$("$submissions_by_api" "$BERTH_STATE/run/controller.sock" $requests 8 32 8192) || die "submissions fail"
above "submissions through the API, 8 clients with 32 outstanding, 8 KiB each, per second" "$(per_second $requests "$took")" 10000

table
