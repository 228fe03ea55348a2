#!/usr/bin/env bash
# Kills daemons of a busy cluster of five fake machines and cuts their network at random moments, again and again, each time with
# another seed, which is printed: BERTH_SEED=N repeats one. Not part of tests/run.sh: it takes as long as it is asked to. As root,
# after `cargo xtask build --debug`. usage: tests/under-load.sh [TIMES [ROUNDS]]
set -euo pipefail
cd "$(dirname "$0")/.."

times=${1:-10}
rounds=${2:-30}
[[ $times =~ ^[1-9][0-9]*$ && $rounds =~ ^[1-9][0-9]*$ ]] || { echo 'under-load.sh: error: TIMES and ROUNDS are numbers' >&2; exit 1; }
for ((n = 1; n <= times; n++)); do
    seed=${BERTH_SEED:-$((RANDOM * 32768 + RANDOM))}
    echo "under-load.sh: $n of $times, seed $seed"
    BERTH_SEED=$seed BERTH_ROUNDS=$rounds timeout 3600 cargo test -q -p berth-tests --test main -- --exact \
        under_load::daemons_killed_at_any_moment_under_load_lose_no_job_and_run_none_twice_as_root
done
