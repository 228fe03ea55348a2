#!/usr/bin/env bash
# Where the time of a container's start goes: `berth run IMAGE true` by phase, medians over some runs, from the times of a few
# system calls that perf writes down. The other calls are not traced, so that tracing costs little. Needs root and perf.
# usage: tests/bench/phases.sh [RUNS]
set -euo pipefail
cd "$(dirname "$0")/../.."
runs=${1:-40}

die() { printf 'phases: error: %s\n' "$*" >&2; exit 1; }
[ "$(id -u)" -eq 0 ] || die "perf traces system calls for root alone: run this as root"
command -v perf >/dev/null || die "perf is missing: install linux-perf"
[ -x target/release/berth ] || die "target/release/berth is missing: build it with 'cargo xtask build'"

work=$(mktemp -d /tmp/bt-phases.XXXXXX)
chmod 755 "$work"
trap 'rm -rf "$work"' EXIT
export BERTH_STATE=$work/state
PATH=$PWD/target/release:$PATH
tests/images.sh busybox "$work/image" >/dev/null || die "cannot make the image"
berth run "$work/image" true || die "berth run fails"

for _ in $(seq "$runs"); do
    perf trace -e execve,poll,clone3,mount,pivot_root,seccomp,exit_group -o "$work/trace" berth run "$work/image" true || die "perf trace fails"
    # Time since the first line, and process; calls that another process interrupted stand on two lines.
    awk '
        { at = $1 + 0; split($0, parts, /: */); who = parts[2]; sub(/ .*/, "", who); sub(/.*\//, "", who) }
        NR == 1 { self = who; next }
        !poll && who == self && / poll\(/ { poll = at }
        !born && who == self && / clone3\(/ { born = at }
        !slave && who != self && / mount\(/ { slave = at }
        !pivot && / pivot_root\(/ { pivot = at }
        / seccomp\(/ { filter = at }
        !program && who != self && / execve\(/ { program = at; task = who }
        program && who == task && / exit_group\(/ { ended = at }
        who == self && / exit_group\(/ { done = at }
        END {
            if (poll && born && slave && pivot && filter && program && ended && done)
                print poll, born - poll, slave - born, pivot - slave, filter - pivot, program - filter, ended - program, done - ended, done
        }' "$work/trace" >> "$work/times"
done
[ -s "$work/times" ] || die "perf trace wrote nothing that can be read: $(head -3 "$work/trace")"

median() { sort -n | awk '{ v[NR] = $1 } END { printf "%.2f", v[int((NR + 1) / 2)] }'; }
printf '%s, kernel %s, %s CPUs, %s runs\n\n| phase | ms |\n|---|---|\n' "$(date +%F)" "$(uname -r)" "$(nproc)" "$(wc -l < "$work/times")"
at=0
for phase in "the program is loaded" "options, image, user, plan and the user namespaces" "the container's first process is cloned" \
    "root, /proc, /sys, /dev and mounts" "the node's root goes, identity, locked mounts" "filter, first word to the program" \
    "the program itself (busybox true)" "the end is noticed, the container is gone" "all"; do
    at=$((at + 1))
    printf '| %s | %s |\n' "$phase" "$(awk -v at=$at '{ print $at }' "$work/times" | median)"
done
