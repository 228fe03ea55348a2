#!/usr/bin/env bash
# What the launch of one step over very many nodes takes, simulated: the cores of the controller and of an agent for each node, under a
# virtual clock; each node directly, and by a tree from two nodes on. Writes docs/launch.svg and prints a table. Not part of tests/run.sh: it takes a minute or two.
# usage: tests/bench/launch.sh [--debug] [COUNT...]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/curves.sh

profile=--release
if [ "${1-}" = --debug ]; then
    profile=
    shift
fi
counts=("$@")
[ ${#counts[@]} -gt 0 ] || counts=(10 30 100 300 1000 3000 10000)
for count in "${counts[@]}"; do
    [[ $count =~ ^[1-9][0-9]*$ ]] || { echo "launch.sh: error: '$count' is no number of nodes" >&2; exit 1; }
done
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
# shellcheck disable=SC2086 # no profile is no word
COUNTS="${counts[*]}" cargo test -q $profile -p berth-sim --test wide -- --exact what_a_launch_takes --ignored --nocapture |
    grep '^launch' | cut -f 2- > "$rows"

echo '| nodes | all Starts together (MiB) | last Start sent (ms) | last task runs (ms) | end on record (ms) | by a tree: messages of the controller | by a tree: last task runs (ms) | by a tree: end on record (ms) |'
echo '|---|---|---|---|---|---|---|---|'
awk -F '\t' '{ printf "| %d | %.1f | %s | %s | %s | %d | %s | %s |\n", $1, $2 / 1024, $3, $4, $5, $7, $8, $9 }' "$rows"

cut -f 1,4,5,8 "$rows" |
    curves 'The launch of a step, simulated' nodes 1 10000 \
        'last task runs: ms' 'end on record: ms' 'last task runs, by a tree: ms' > "${LAUNCH_SVG:-docs/launch.svg}"
