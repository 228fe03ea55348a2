#!/usr/bin/env bash
# What many machines cost a controller: simulated agents in one process, each with a key, a certificate and a TLS connection of its
# own, speak the real protocol to a controller in another. Writes docs/agents.svg and prints the table of docs/agents.md.
# Not part of tests/run.sh: it takes some minutes. usage: tests/bench/agents.sh [--debug] [COUNT...]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/curves.sh

profile=--release
if [ "${1-}" = --debug ]; then
    profile=
    shift
fi
counts=("$@")
[ ${#counts[@]} -gt 0 ] || counts=(10 30 100 300 1000)
for count in "${counts[@]}"; do
    [[ $count =~ ^[1-9][0-9]*$ ]] || { echo "agents.sh: error: '$count' is no number of machines" >&2; exit 1; }
done

# Two descriptors for each machine, and some of the program's own.
ulimit -n "$(ulimit -Hn)"
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
# shellcheck disable=SC2086 # no profile is no word
CROWD="${counts[*]}" cargo test -q $profile -p berth-controller --test crowd -- --exact what_a_crowd_costs --ignored --nocapture |
    grep '^crowd' | cut -f 2- > "$rows"

echo '| machines | all joined (s) | heartbeats (ms of CPU a second) | all back after a restart (s) | its CPU (s) | memory (MiB) |'
echo '|---|---|---|---|---|---|'
awk -F '\t' '{ printf "| %s | %s | %.1f | %s | %s | %s |\n", $1, $2, $3 * 1000, $4, $5, $6 }' "$rows"

awk -F '\t' -v OFS='\t' '{ print $1, $3 * 1000, $5, $6 }' "$rows" |
    curves 'What many machines cost a controller' machines 0.01 1000 \
        'heartbeats: ms of CPU a second' 'storm: s of CPU' 'memory: MiB' > docs/agents.svg
