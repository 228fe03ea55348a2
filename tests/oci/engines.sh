#!/usr/bin/env bash
# Runs the same cases with both engines of the OCI command line, and holds what differs against engines.tsv.
# usage: tests/oci/engines.sh [FILTER...]
# As root: libcontainer, youki's library, makes no container without control groups. It brings about a hundred packages to compile,
# which the default build does without. `cargo xtask build --debug` comes first; tests/run.sh does both.
set -euo pipefail

[ "$(id -u)" -eq 0 ] || { echo "engines.sh: error: the cases need root; call it with sudo" >&2; exit 1; }
cd "$(dirname "$0")/../.."
packages=(-p berth-oci -p berth-libcontainer --features berth-oci/libcontainer --no-fail-fast)
if cargo nextest --version >/dev/null 2>&1; then
    exec cargo nextest run "${packages[@]}" "$@"
fi
exec cargo test "${packages[@]}" -- --test-threads=1 "$@"
