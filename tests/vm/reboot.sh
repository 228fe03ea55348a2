#!/usr/bin/env bash
# scontrol reboot, carried out by systemd: two emulated Debian 12 machines, head with the controller and n1, which joined it and whose agent is
# a service. While a job runs on n1 and another one waits for it, n1 is to reboot ASAP. It takes nothing new, is told when the job
# has ended, is shut down and started by its own systemd, is named while it is overdue, and is back with another boot id; then the
# job that waited runs there. Nobody does anything meanwhile. Not part of tests/run.sh: it takes minutes.
# usage: tests/vm/reboot.sh [--programs DIRECTORY]
#   --programs  berth and berth-step to try [default: those of cargo xtask build --debug]
# Needs what tests/vm/run.sh needs, and qemu-utils. Consoles are in target/vm/pair.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
programs=''
while [ $# -gt 0 ]; do
    case $1 in
        --programs) programs=${2-} && shift ;;
        *) printf 'reboot.sh: error: unknown word %s; the first lines of this script say what there is\n' "$1" >&2 && exit 2 ;;
    esac
    shift
done

# shellcheck disable=SC2034 # pair.sh reads it
reboots=yes
# shellcheck source=tests/vm/pair.sh
. "$here/pair.sh"
new_pair

# Fewer seconds than any machine takes to boot.
patience=5
config='[[node]]
name = "ALL"
memory_reserved = 100

[programs]
reboot_timeout_seconds = '"$patience"
witness='[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
ExecStop=/bin/sh -c "cat /proc/sys/kernel/random/boot_id > /srv/stopped"'
watcher='#!/bin/bash
# Writes down how n1 is shown, once for each change.
last=
while :; do
    now="$(sinfo -h -N -o "%N|%t|%E" | grep "^n1|") $(scontrol show node n1 | grep -o "State=[^ ]*")"
    [ "$now" = "$last" ] || echo "$now" >> /srv/states
    last=$now
    sleep 0.3
done'
boot_id='cat /proc/sys/kernel/random/boot_id'
shown() { printf 'sinfo -h -N -o "%%N|%%t|%%E" | grep -qxF %q' "$1"; }
is_state() { printf 'sacct -nXP -o State -j %s | grep -qx %s' "$1" "$2"; } # JOB STATE
submit() { # FILE SCRIPT OPTION...: prints the job's id
    local file=$1 script=$2
    shift 2
    must head "$(as ann "sbatch --parsable -w n1 -c1 --mem=16M -o $file $* --wrap $(printf %q "$script")")" | grep -xE '[0-9]+'
}

say "booting"
boot head n1
put head /srv/watcher "$watcher"
must head "mkdir -p /var/lib/berth && printf '%s\n' $(printf %q "$config") > /var/lib/berth/berth.toml && berth up --detach" > /dev/null
token=$(must head 'berth token create' | grep -oE 'berth[A-Za-z0-9_.:-]{20,}' | head -1)
must n1 "berth join head $token --detach" > /dev/null
must n1 'systemctl is-enabled -q berth-agent'
# What stops in order says that systemd took the machine down, and that nobody cut it off.
put n1 /etc/systemd/system/witness.service "$witness"
must n1 'systemctl daemon-reload && systemctl start witness'
until_good 120 head "$(shown 'n1|idle|none')"
must head 'systemd-run -q --unit=watcher /srv/watcher'

say "a job runs on n1, and another one waits for it"
before=$(must n1 "$boot_id")
runs=$(submit /home/ann/runs "$boot_id; until [ -e /home/ann/go ]; do sleep 1; done; echo ended" --requeue)
until_good 120 head "$(is_state "$runs" RUNNING)"
must head "scontrol reboot ASAP nextstate=resume 'reason=new kernel' n1"
until_good 60 head "$(shown 'n1|drng@|new kernel')"
waits=$(submit /home/ann/waits "$boot_id" --requeue)
must head "sleep 3; $(is_state "$runs" RUNNING) && $(is_state "$waits" PENDING)"
same_boot=$(must n1 "$boot_id")
[ "$same_boot" = "$before" ] || die "n1 was rebooted under a running job"

say "the job ends, and n1 reboots"
begun=$SECONDS
# The answer is here before the machine goes down.
must n1 'setsid -f sh -c "sleep 3; touch /home/ann/go" < /dev/null > /dev/null 2>&1'
await_shell n1
after=$(must n1 "$boot_id")
say "n1 is back after $((SECONDS - begun)) s"
[ "$after" != "$before" ] || die "n1 has the boot id that it had: $after"
[ "$(must n1 'cat /srv/stopped')" = "$before" ] || die "systemd did not stop what ran on n1 before it went down"
grep -q 'reboot: Restarting system' $pair/n1.console || die "the kernel of n1 did not restart the machine; $pair/n1.console is its console"

until_good 300 head "$(is_state "$waits" COMPLETED)"
until_good 60 head "$(shown 'n1|idle|none')"
must head "$(is_state "$runs" COMPLETED)"
[ "$(must n1 'cat /home/ann/runs')" = "$before"$'\n'ended ] || die "the job before the reboot says: $(must n1 'cat /home/ann/runs')"
[ "$(must n1 'cat /home/ann/waits')" = "$after" ] || die "the job that waited says: $(must n1 'cat /home/ann/waits')"
must head 'berth audit | grep -q "has n1 rebooted"'
must n1 'systemctl is-active -q berth-agent'

until_good 60 head "tail -1 /srv/states | grep -qF 'n1|idle|none '"
must head 'systemctl stop watcher'
states=$(must head 'cat /srv/states')
printf '%s\n' "$states"
for word in REBOOT_REQUESTED REBOOT_ISSUED "n1|boot^|new kernel; reboot: not back within $patience s"; do
    [[ $states == *"$word"* ]] || die "'$word' was not shown"
done
# In this order: what is shown later is looked for behind what was shown before.
left=$states
for word in 'n1|drng@|new kernel ' 'n1|boot^|new kernel' 'n1|idle|none '; do
    [[ $left == *"$word"* ]] || die "'$word' was not shown, or not in its order"
    left=${left#*"$word"}
done
must n1 'berth down'
must head 'berth down'
say "good"
