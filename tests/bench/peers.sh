#!/usr/bin/env bash
# What it costs a node to have an image of 1 GB from another node: as archives, which it unpacks and writes (forms_agreed = 0), and as the
# read-only images that the other one made of its layers (forms_agreed = 1). The controller and two nodes are daemons of one machine, in a
# network namespace, each under its own host name; the registry is asked by the first node alone. What the node that gives does is in the
# processor time, too. Each round has clusters of its own, in turn; nothing of what is measured is on the disk before.
# Not part of tests/run.sh. Needs root, docker-registry and skopeo, and some 4 GB of /tmp. usage: tests/bench/peers.sh [ROUNDS]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/common.sh
. tests/bench/import.sh

rounds=${1-3}
[[ $rounds =~ ^[1-9][0-9]*$ ]] || die "'$rounds' is no number of rounds"
[ "$(id -u)" = 0 ] || die "only root can make a network namespace"
for tool in docker-registry skopeo; do has "$tool" || die "there is no $tool: tests/packages.txt lists the packages"; done
[ -x target/release/berth ] || die "target/release/berth is missing: build it with 'cargo xtask build'"
[ -n "${BERTH_BENCH_NET-}" ] || exec env BERTH_BENCH_NET=own unshare --net -- bash tests/bench/peers.sh "$rounds"
ip link set lo up

work=$(mktemp -d /tmp/berth-peers.XXXXXX)
chmod 755 "$work"
mkdir "$work/bin" "$work/links"
install -m 755 target/release/berth target/release/berth-step "$work/bin"
"$work/bin/berth" install-links "$work/links" > "$work/log"
PATH=$work/links:$work/bin:$PATH
pids=()
nodes=(n2 n1 head)

# host NAME COMMAND...: on a node of the present cluster
host() { BERTH_STATE=$place/$1 unshare --uts sh -c 'hostname "$0" && exec "$@"' "$@"; }
down() {
    local node
    for node in "${nodes[@]}"; do [ ! -e "$place/$node/run/agent.json" ] || host "$node" berth down > "$work/log" 2>&1 || cat "$work/log" >&2; done
    rm -rf "$place"
}
leave() {
    set +e
    [ -z "${place-}" ] || down
    for pid in "${pids[@]}"; do kill "$pid"; done
    rm -rf "$work"
}
trap leave EXIT
offer_large

# until_seen WHAT COMMAND...: waits for it
until_seen() {
    local what=$1 n
    shift
    for ((n = 0; n < 150; n++)); do
        if "$@"; then return; fi
        sleep 0.2
    done
    die "$what: $(tail -n 3 "$place/head/log/controller.log")"
}
all_idle() { [ "$(host head sinfo -h -t idle -o %D | awk '{ n += $1 } END { print n }')" = 3 ]; }
gives() { grep -q 'images are given to other nodes at' "$place/$1/log/agent.log"; }
# Hundredths of a second for which processors of the machine did something.
busy() { awk '$1 == "cpu" { print $2 + $3 + $4 + $7 + $8 }' /proc/stat; }
pull() { host head berth image pull --cluster -w "$1" "$where/large:1" > "$work/log" 2>&1 || die "$1 does not get the image: $(tail -n 1 "$work/log")"; }

# measure NAME AGREED: what the second node takes for it, into $work/figures
measure() {
    local token node begin before came
    place=$work/$1
    mkdir -p "$place/head" "$place/n1" "$place/n2"
    printf '[images]\nlayer_form = "erofs"\ninsecure_registries = ["%s"]\nforms_agreed = %s\n' "$where" "$2" > "$place/head/berth.toml"
    host head berth up --detach > "$work/log" 2>&1 || die "berth up fails: $(tail -n 1 "$work/log")"
    token=$(host head berth token create --uses 2 2> "$work/log" | tail -n 1)
    for node in n1 n2; do host "$node" berth join 127.0.0.1 "$token" --detach > "$work/log" 2>&1 || die "$node does not join: $(tail -n 1 "$work/log")"; done
    until_seen "not all nodes come" all_idle
    for node in n1 n2; do until_seen "$node gives nothing" gives "$node"; done
    pull n1
    sync
    before=$(busy)
    begin=${EPOCHREALTIME/./}
    pull n2
    printf '%s %s %s\n' "$1" "$((${EPOCHREALTIME/./} - begin))" "$(($(busy) - before))" >> "$work/figures"
    came=$(grep -c 'a layer came as its read-only image' "$place/n2/log/agent.log" || true) # none is what archives have
    [ "$((came > 0))" = "$2" ] || die "$came layers came as images with forms_agreed = $2"
    down
    place=
}

for ((round = 0; round < rounds; round++)); do
    note "round $((round + 1)) of $rounds"
    measure archives 0
    measure images 1
done
printf '\n%s, kernel %s, %s CPUs, %s rounds, means\n\n' "$(date +%F)" "$(uname -r)" "$(nproc)" "$rounds"
printf '| a node has an image of %s MiB (compressed) from another node | wall s | CPU s, of both |\n|---|---|---|\n' "$(du -sm "$large" | cut -f1)"
awk '
    { wall[$1] += $2; cpu[$1] += $3; times[$1]++ }
    END { for (name in times) printf "| as %s | %.2f | %.2f |\n", name, wall[name] / times[name] / 1000000, cpu[name] / times[name] / 100 }' "$work/figures"
