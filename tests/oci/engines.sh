#!/usr/bin/env bash
# Runs the same cases with both engines of the OCI command line, and holds what differs against engines.tsv.
# usage: tests/oci/engines.sh [FILTER...]
# It is run by hand, as root: the second engine, youki's libcontainer, brings about a hundred packages to compile, and neither the
# default build nor tests/run.sh has it. `cargo xtask build --debug` comes first.
set -euo pipefail

[ "$(id -u)" -eq 0 ] || { echo "engines.sh: error: the cases need root; call it with sudo" >&2; exit 1; }
cd "$(dirname "$0")/../.."
exec cargo nextest run -p berth-oci -p berth-libcontainer --features berth-oci/libcontainer --no-fail-fast "$@"
