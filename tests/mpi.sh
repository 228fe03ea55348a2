#!/usr/bin/env bash
# Runs an MPI program many times in each way, where the tests do so twice: on one node and on several, on the nodes' own
# filesystem and in containers, for root and for an ordinary user. The first run that does not end as it should fails.
# usage: tests/mpi.sh [RUNS]
# Needs root and the programs (cargo xtask build --debug).
set -euo pipefail
cd "$(dirname "$0")/.."

runs=${1-50}
case "$runs" in
    "" | *[!0-9]*) printf 'tests/mpi.sh: error: %s is no number of runs\n' "$runs" >&2; exit 1 ;;
esac
BERTH_MPI_RUNS=$runs exec cargo nextest run --workspace --profile long -E 'test(mpi::ranks)'
