#!/usr/bin/env bash
# Makes an image with what MPI programs need, as an OCI layout: Debian with MPICH's library, Open MPI's, the mpirun of both, and
# Slurm's library of PMI-2; or of another release of Debian, with its MPICH alone.
# usage: tests/mpi-image.sh [--suite NAME] DIRECTORY
set -euo pipefail

packages=(libmpich12 mpich iproute2)
suite=()
if [ "${1-}" = --suite ]; then
    suite=(--suite "${2:?name a release}")
    shift 2
else
    packages+=(libopenmpi3 libpmi2-0 openmpi-bin)
fi
layout=${1:?name a directory}
exec "$(dirname "$0")/../examples/debian-image.sh" "${suite[@]}" "$layout" "${packages[@]}"
