#!/usr/bin/env bash
# Makes an image with what MPI programs need, as an OCI layout: Debian with MPICH's library, Open MPI's, and Slurm's
# library of PMI-2.
# usage: tests/mpi-image.sh DIRECTORY
set -euo pipefail

layout=${1:?name a directory}
exec "$(dirname "$0")/../examples/debian-image.sh" "$layout" libmpich12 libopenmpi3 libpmi2-0 iproute2
