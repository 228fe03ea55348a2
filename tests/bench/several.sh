#!/usr/bin/env bash
# One step over eight nodes, ours and Slurm's, in turn in one run: `srun -N8 hostname`, and how long sixteen ranks take to find one
# another by PMI-2: a program of Slurm's own library that puts a key, passes a fence and reads all keys, beside `true`. The nodes of both are daemons of their own on this
# machine: ours in a network namespace, each under its own host name; Slurm's by `slurmd -N`, on the loopback. Trust the ratio.
# Not part of tests/run.sh. Needs root, slurm-wlm, munge and libpmi2-0-dev. usage: tests/bench/several.sh [--debug] [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/common.sh

programs=$PWD/target/release
step=$PWD/target/release/berth-step
if [ "${1-}" = --debug ]; then
    programs=$PWD/target/debug
    step=$PWD/target/debug/static/berth-step
    shift
fi
rounds=${1-20}
[[ $rounds =~ ^[1-9][0-9]*$ ]] || die "'$rounds' is no number of rounds"
[ "$(id -u)" = 0 ] || die "only root can make a network namespace"
[ -e /usr/include/slurm/pmi2.h ] || die "there is no slurm/pmi2.h: apt-get install libpmi2-0-dev"
for program in slurmctld slurmd munged; do has "$program" || die "there is no $program: apt-get install slurm-wlm munge"; done
[ -x target/debug/bench-alternate ] || cargo build --quiet --package berth-tests --bin bench-alternate
alternate=$PWD/target/debug/bench-alternate

place=$(mktemp -d /tmp/berth-several.XXXXXX)
space=$(basename "$place")
chmod 755 "$place"
mkdir "$place/bin" "$place/links" "$place/run" "$place/head"
install -m 755 "$programs/berth" "$step" "$place/bin"
"$place/bin/berth" install-links "$place/links" > "$place/run/links"
ip netns add "$space"
ip -n "$space" link set lo up

host() {
    BERTH_STATE=$place/$1 PATH=$place/links:$place/bin:$PATH \
        nsenter --net="/run/netns/$space" unshare --uts sh -c 'hostname "$0" && exec "$@"' "$@"
}
down() {
    for ((turn = 0; turn < 40; turn++)); do
        host "$1" berth down > "$place/run/down" 2>&1 && return
        sleep 0.5
    done
    cat "$place/run/down" >&2
}
leave() {
    set +e
    for file in "$place"/slurm/*.pid; do [ ! -e "$file" ] || kill "$(cat "$file")" 2> "$place/run/kill"; done
    for ((n = 1; n <= 8; n++)); do [ ! -e "$place/n$n/run/agent.json" ] || down "n$n"; done
    down head
    ip netns delete "$space"
    sleep 1
    rm -rf "$place"
}
trap leave EXIT

note "ours: a controller and eight agents"
printf 'root_jobs = true\n' > "$place/head/berth.toml"
host head berth up --detach > "$place/run/up"
token=$(host head berth token create --uses 8 2> "$place/run/token" | tail -n 1)
for ((n = 1; n <= 8; n++)); do
    mkdir "$place/n$n"
    host "n$n" berth join 127.0.0.1 "$token" --detach > "$place/run/join" 2>&1
done
for ((n = 0; n < 100; n++)); do
    [ "$(host head sinfo -h -t idle -o %D | awk '{ n += $1 } END { print n }')" != 9 ] || break
    sleep 0.2
done

note "Slurm's: slurmctld and eight slurmd"
dir=$place/slurm
mkdir -p "$dir/state" "$dir/spool"
head -c 1024 /dev/urandom > "$dir/key" && chmod 400 "$dir/key"
munged --force --key-file="$dir/key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" --log-file="$dir/munged.log" \
    --seed-file="$dir/seed" 2> "$dir/munged.err" || die "munged does not start: $(cat "$dir/munged.err")"
port=$((20000 + $$ % 20000))
{
    cat << CONF
ClusterName=bench
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool/%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
SlurmctldPort=$port
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0
MailProg=/bin/true
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
    for ((n = 1; n <= 8; n++)); do
        echo "NodeName=s$n NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=$((port + n)) CPUs=8 State=UNKNOWN"
    done
} > "$dir/slurm.conf"
export SLURM_CONF=$dir/slurm.conf
slurmctld -c || die "slurmctld does not start: $(tail -n 3 "$dir/slurmctld.log")"
for ((n = 1; n <= 8; n++)); do slurmd -c -N "s$n" || die "slurmd -N s$n does not start: $(tail -n 3 "$dir/slurmd.s$n.log")"; done
for ((n = 0; n < 150; n++)); do
    [ "$(/usr/bin/sinfo -h -t idle -o %D 2> "$place/run/sinfo" | awk '{ n += $1 } END { print n }')" != 8 ] || break
    sleep 0.2
done
[ "$n" != 150 ] || die "Slurm's nodes do not come: $(/usr/bin/sinfo -h -o '%T %D')"

# Everything is there, on both sides.
[ "$(host head srun -N8 -w 'n[1-8]' -l hostname | sort -u | wc -l)" = 8 ] || die "not all of our nodes answered"
[ "$(/usr/bin/srun -N8 -l hostname | sort -u | wc -l)" = 8 ] || die "not all of Slurm's nodes answered"
cat > "$place/run/ours" << OURS
#!/bin/sh
exec nsenter --net=/run/netns/$space env BERTH_STATE=$place/head $place/links/srun "\$@"
OURS
chmod 755 "$place/run/ours"
cc -O2 -o "$place/links/keys" tests/mpi/keys.c -lpmi2
ranks="-N8 -n16 --ntasks-per-node=2"
for told in "$("$place/run/ours" $ranks -w 'n[1-8]' --mpi=pmi2 "$place/links/keys" plain)" "$(/usr/bin/srun $ranks --mpi=pmi2 "$place/links/keys" plain)"; do
    [[ $told == "16 of "* ]] || die "sixteen ranks do not find one another: $told"
done
"$alternate" latency "$rounds" \
    ours "$place/run/ours -N8 -w n[1-8] hostname" slurm "/usr/bin/srun -N8 hostname" \
    ours1 "$place/run/ours -N1 -w n1 hostname" slurm1 "/usr/bin/srun -N1 hostname" > "$place/run/figures"
"$alternate" latency "$rounds" \
    ours_keys "$place/run/ours $ranks -w n[1-8] --mpi=pmi2 $place/links/keys plain" \
    slurm_keys "/usr/bin/srun $ranks --mpi=pmi2 $place/links/keys plain" \
    ours_true "$place/run/ours $ranks -w n[1-8] --mpi=none true" \
    slurm_true "/usr/bin/srun $ranks --mpi=none true" >> "$place/run/figures"
fsync=$("$alternate" fsync "$place" 20)
row 'srun -N8 hostname (ms)' "$(ms "$(field ours 2 "$place/run/figures")")" slurm "$(ms "$(field slurm 2 "$place/run/figures")")" 1
row 'srun -N1 hostname (ms)' "$(ms "$(field ours1 2 "$place/run/figures")")" slurm "$(ms "$(field slurm1 2 "$place/run/figures")")" 1
of() { field "$1" 2 "$place/run/figures"; }
row 'srun -N8 -n16 keys (ms)' "$(ms "$(of ours_keys)")" slurm "$(ms "$(of slurm_keys)")" 1
row '... more than srun -N8 -n16 true (ms)' "$(ms $(($(of ours_keys) - $(of ours_true))))" slurm "$(ms $(($(of slurm_keys) - $(of slurm_true))))" 1
work=$place/run
table
