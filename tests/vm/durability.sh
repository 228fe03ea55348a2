#!/usr/bin/env bash
# The power goes while a cluster is busy. Two emulated machines, head with the controller and n1, run jobs of clients that write down each
# id that sbatch printed and each end that sacct showed; then head's emulator is killed, then n1's, then both at once. What
# was in the page cache is gone with it. After the boot: every job whose id was printed is there, every end that was shown is
# as it was shown, nothing ran twice, and numbers go on. Not part of tests/run.sh: it takes minutes.
# usage: tests/vm/durability.sh [--programs DIRECTORY] [--jobs N]
#   --programs  berth and berth-step to try [default: those of cargo xtask build --debug]
#   --jobs      how many jobs are submitted in a round before the power goes [default: 30]
# Needs what tests/vm/run.sh needs, and qemu-utils. Consoles, and what the clients wrote down, are in target/vm/pair.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
programs='' jobs=30
while [ $# -gt 0 ]; do
    case $1 in
        --programs) programs=${2-} && shift ;;
        --jobs) jobs=${2-} && shift ;;
        *) printf 'durability.sh: error: unknown word %s; the first lines of this script say what there is\n' "$1" >&2 && exit 2 ;;
    esac
    shift
done
[[ $jobs =~ ^[1-9][0-9]*$ ]] || { echo 'durability.sh: error: --jobs takes a number' >&2; exit 2; }

# shellcheck source=tests/vm/pair.sh
. "$here/pair.sh"
new_pair

client='#!/bin/bash
# Submits without an end; every other job may not run again when its node fails.
while :; do
    for how in once again; do
        option=--requeue
        [ $how = again ] || option=--no-requeue
        id=$(sbatch --parsable $option -c1 --mem=16M -o /dev/null --wrap "echo \"ran \$SLURM_JOB_ID \${SLURM_RESTART_COUNT:-0}\" > /srv/told; sleep 1") && echo "id $id $how"
    done
done'
watcher='#!/bin/bash
# Tells each end once.
: > /dev/shm/seen
while :; do
    sacct -nXP -o JobID,State | grep -vE "PENDING|RUNNING|COMPLETING|REQUEUE" | sort > /dev/shm/now
    comm -13 /dev/shm/seen /dev/shm/now | tr "|" " " | sed "s/^/end /"
    mv /dev/shm/now /dev/shm/seen
    sleep 1
done'
collect() { # NAME: jobs tell through a pipe that they run, and it is written to the serial line
    must "$1" '[ -p /srv/told ] || { mkfifo -m 666 /srv/told; chmod 666 /srv/told; sync -f /srv/told; }
        stty -F /dev/ttyS2 raw -echo
        systemd-run -q --unit=told bash -c "exec 3<>/srv/told; exec cat <&3 > /dev/ttyS2"'
}
load() {
    local unit
    for unit in client1:1000:client client2:1000:client watcher:1000:watcher lines:0:lines; do
        IFS=: read -r unit user program <<< "$unit"
        must head "systemd-run -q --unit=$unit --uid=$user -p StandardOutput=file:/dev/ttyS2 /srv/$program"
    done
}
told() { tr -d '\r' < $pair/head.told; tr -d '\r' < $pair/n1.told; }
ids() { told | sed -n 's/^id \([0-9]*\) .*/\1/p' | sort -un; }
ends() { told | sed -n 's/^end \([0-9]*\) \(.*\)/\1 \2/p' | sort -u; }

say "booting"
boot head n1
must head 'mkdir -p /var/lib/berth; printf "[[node]]\nname = \"ALL\"\nmemory_reserved = 100\n" > /var/lib/berth/berth.toml; berth up --detach' > /dev/null
token=$(must head 'berth token create' | grep -oE 'berth[A-Za-z0-9_.:-]{20,}' | head -1)
must n1 "berth join head $token --detach" > /dev/null
put head /srv/client "$client"
put head /srv/watcher "$watcher"
put head /srv/lines "$lines"

# A round: load, the power goes on the machines named, they boot, everything ends, and all is compared.
round() { # NAME...
    local before ends_before now end id how state
    collect head
    collect n1
    before=$(ids | wc -l) ends_before=$(ends | wc -l)
    say "busy"
    load
    end=$((SECONDS + 900))
    while now=$(ids | wc -l); [ "$now" -lt $((before + jobs)) ] || [ "$(ends | wc -l)" -lt $((ends_before + jobs / 4)) ]; do
        [ $SECONDS -lt $end ] || die "only $((now - before)) jobs and $(($(ends | wc -l) - ends_before)) ends: $(told | tail -3)"
        sleep 0.5
    done
    for name in "$@"; do
        kill_machine "$name"
    done
    cp $pair/head.told $pair/head.then
    cp $pair/n1.told $pair/n1.then
    ids > $pair/ids.then
    ends > $pair/ends.then
    say "the power went on $*: $(wc -l < $pair/ids.then) ids and $(wc -l < $pair/ends.then) ends are known; booting"
    boot "$@"
    for name in "$@"; do
        [ "$name" != head ] || look_for_lines head
        must "$name" 'berth up --detach' > /dev/null
    done
    # Those that were not killed still have their collector and their clients.
    must head 'systemctl stop client1 client2 watcher lines told 2> /dev/null || true' # those that are gone are not there to be stopped
    must n1 'systemctl stop told 2> /dev/null || true'                                 # the same
    collect head
    collect n1
    say "waiting for the end of all"
    until_good 900 head '[ -z "$(squeue -h)" ]'
    sleep 2 # what was told last is on its way through a serial line
    must head 'sacct -nXP -o JobID,State' | sort > $pair/records
    judge
    must head 'systemctl stop told'
    must n1 'systemctl stop told'
}

judge() {
    local id state known last missing
    # Every id that was printed is on record, and has ended.
    missing=$(comm -23 <(sort $pair/ids.then) <(cut -d'|' -f1 $pair/records | sort))
    [ -z "$missing" ] || die "jobs that were acknowledged are gone: $missing"
    if grep -E 'PENDING|RUNNING|COMPLETING' $pair/records; then die "jobs have not ended"; fi
    # Every end that was shown is as it was shown.
    while read -r id state; do
        known=$(sed -n "s/^$id|//p" $pair/records)
        [ "$known" = "$state" ] || die "job $id was shown as $state, and is $known"
    done < $pair/ends.then
    # No run ran twice; what may not run again did not; what had ended did not.
    missing=$(told | grep '^ran ' | sort | uniq -d)
    [ -z "$missing" ] || die "these ran twice: $missing"
    missing=$(comm -12 <(told | sed -n 's/^id \([0-9]*\) once/\1/p' | sort -u) <(told | sed -n 's/^ran \([0-9]*\) [1-9].*/\1/p' | sort -u))
    [ -z "$missing" ] || die "these may not run again, and did: $missing"
    missing=$(comm -12 <(cut -d' ' -f1 $pair/ends.then | sort -u) <(comm -13 <(cat $pair/*.then | tr -d '\r' | sort) <(told | sort) | sed -n 's/^ran \([0-9]*\) .*/\1/p' | sort -u))
    [ -z "$missing" ] || die "these ran after they had ended: $missing"
    # Numbers go on, and new work runs.
    last=$(sort -n $pair/ids.then | tail -1)
    id=$(must head "$(as ann "sbatch --parsable -c1 --mem=16M -o /dev/null --wrap 'echo ran \$SLURM_JOB_ID 0 > /srv/told'")")
    [ "$id" -gt "$last" ] || die "the number $id was given again: $last was the last"
    until_good 120 head "sacct -nXP -o State -j $id | grep -x COMPLETED"
    printf '%s jobs: %s; %s runs, of which %s began again\n' "$(wc -l < $pair/records)" \
        "$(cut -d'|' -f2 $pair/records | cut -d' ' -f1 | sort | uniq -c | tr -s ' \n' ' ')" \
        "$(told | grep -c '^ran ')" "$(told | grep -c '^ran [0-9]* [1-9]' || true)" # none began again
}

round head
round n1
round head n1
[ $lost_lines -gt 0 ] || die "all that nobody flushed is there: the power did not go"
say "good"
