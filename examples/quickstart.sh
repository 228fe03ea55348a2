#!/usr/bin/env bash
# From a fresh checkout to a job in a container: builds Berth, starts a one-machine cluster, runs a step and a batch array
# in a real image, shows what became of them, and leaves the cluster running. Works as root and as an ordinary user.
# BERTH_STATE names the cluster's directory, BERTH_QUICKSTART_IMAGE the image to use, and BERTH_QUICKSTART_BIN a directory
# with programs that are already built.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'quickstart: error: %s\n' "$*" >&2; exit 1; }
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
show() { printf '\033[1m$ %s\033[0m\n' "$*"; "$@"; }

if [ "$(id -u)" -eq 0 ]; then
    state=${BERTH_STATE:-/var/lib/berth-quickstart}
else
    state=${BERTH_STATE:-${XDG_STATE_HOME:-$HOME/.local/state}/berth-quickstart}
fi
# Longest socket below the state directory, and the kernel's limit of 107 bytes for a socket's path.
[ ${#state} -le 70 ] || die "$state is too long a path for the sockets in it; set BERTH_STATE to a shorter one"
export BERTH_STATE=$state

say "1. Build"
if [ -n "${BERTH_QUICKSTART_BIN-}" ]; then
    built=$BERTH_QUICKSTART_BIN
    printf 'using the programs in %s\n' "$built"
else
    built=$PWD/target/release
    command -v cargo >/dev/null || PATH="$HOME/.cargo/bin:$PATH"
    command -v cargo >/dev/null || die "cargo is missing: install Rust 1.88 or newer from https://rustup.rs"
    command -v cc >/dev/null || die "a C compiler is missing; as root: apt-get install build-essential"
    show cargo xtask build
fi

bin=$state/bin
mkdir -p "$bin"
"$built/berth" install-links "$bin" >/dev/null
[ -e "$bin/berth" ] || ln -s "$built/berth" "$bin/berth"
PATH=$bin:$PATH

say "2. Start a cluster of this one machine"
# What runs already stays; what is missing of it is started.
show berth up --detach
show sinfo

say "3. Get an image"
if [ -n "${BERTH_QUICKSTART_IMAGE-}" ]; then
    image=$BERTH_QUICKSTART_IMAGE
elif command -v curl >/dev/null && curl -s -o /dev/null --connect-timeout 3 --max-time 5 https://registry-1.docker.io/v2/ &&
    show berth image pull debian:12; then
    image=debian:12
else
    printf 'no registry answers from here, so the image is made from Debian packages\n'
    image=$state/quickstart-image
    [ -e "$image/index.json" ] || show examples/debian-image.sh "$image"
fi
printf 'image: %s\n' "$image"

say "4. A step in a container"
show srun --container-image="$image" cat /etc/os-release

say "5. A batch array in the same container"
work=$state/quickstart-output
mkdir -p "$work"
show sbatch --parsable --wait --array=1-3 --chdir="$work" --output="$work/%A_%a.out" --container-image="$image" \
    examples/array.sh | tee "$work/last-job"
job=$(cut -d';' -f1 "$work/last-job" | grep -E '^[0-9]+$' | tail -1)
[ -n "$job" ] || die "sbatch printed no job id"
sbatch --quiet --job-name=waiting --chdir="$work" --wrap 'sleep 20'

say "6. What became of it"
show squeue
show sacct -j "$job"
for file in "$work/${job}"_*.out; do
    printf '%s:\n' "$file"
    sed 's/^/    /' "$file"
done

say "It runs"
cat <<END
The cluster stays up. To use it from this shell:
    export BERTH_STATE=$state PATH=$bin:\$PATH
Outputs are in $work.
Stop it with:
    $bin/berth down --state $state
END
