#!/usr/bin/env bash
# What one step over many nodes costs: real agents, each with its own name, state, key and control groups, in one network namespace of
# this machine, and `srun -N hostname` over all of them. Every line has to be there, once, and the exit code has to be that of the one task
# that fails. Writes docs/wide.svg and prints the table of docs/wide.md.
# Not part of tests/run.sh: 500 agents take some minutes and 4 GiB. Needs root. usage: tests/bench/wide.sh [--debug] [COUNT...]
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/curves.sh

programs=$PWD/target/release
step=$PWD/target/release/berth-step
if [ "${1-}" = --debug ]; then
    programs=$PWD/target/debug
    step=$PWD/target/debug/static/berth-step
    shift
fi
counts=("$@")
[ ${#counts[@]} -gt 0 ] || counts=(50 100 200 500)
for count in "${counts[@]}"; do
    [[ $count =~ ^[1-9][0-9]*$ ]] || { echo "wide.sh: error: '$count' is no number of nodes" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "wide.sh: error: only root can make a network namespace" >&2; exit 1; }
mapfile -t counts < <(printf '%s\n' "${counts[@]}" | sort -n)
most=${counts[-1]}

place=$(mktemp -d /tmp/berth-wide.XXXXXX)
space=$(basename "$place")
chmod 755 "$place"
mkdir "$place/bin" "$place/links" "$place/run"
install -m 755 "$programs/berth" "$step" "$place/bin"
"$place/bin/berth" install-links "$place/links" > "$place/run/links"
PATH=$place/links:$place/bin:$PATH
ip netns add "$space"
ip -n "$space" link set lo up
# Descriptors for a connection to each node.
ulimit -n "$(ulimit -Hn)"

# host NAME COMMAND...: runs a command as on that host.
host() {
    BERTH_STATE=$place/$1 nsenter --net="/run/netns/$space" unshare --uts sh -c 'hostname "$0" && exec "$@"' "$@"
}

# down NAME: what its last job has there may take a moment to go.
down() {
    for ((turn = 0; turn < 40; turn++)); do
        host "$1" berth down > "$place/run/down.$1" 2>&1 && return
        sleep 0.5
    done
    echo "wide.sh: $1 is not down: $(cat "$place/run/down.$1")" >&2
}
leave() {
    set +e
    for ((n = most; n > 0; n -= 16)); do
        for ((m = n; m > n - 16 && m > 0; m--)); do
            [ ! -e "$place/n$m/run/agent.json" ] || down "n$m" &
        done
        wait
    done
    down head
    ip netns delete "$space"
    rm -rf "$place"
}
trap leave EXIT

mkdir "$place/head"
printf 'cluster = "wide"\nroot_jobs = true\n' > "$place/head/berth.toml"
host head berth up --detach > "$place/run/up"
token=$(host head berth token create --uses "$most" 2> "$place/run/token" | tail -n 1)
pid() { sed 's/.*"pid": *\([0-9]*\).*/\1/' "$place/head/run/$1.json" | head -n 1; }
# Seconds of CPU that a process has used.
cpu() { awk -v hz="$(getconf CLK_TCK)" '{ sub(/.*\) /, ""); print ($12 + $13) / hz }' "/proc/$1/stat"; }
# MiB that are a process's own, with its part of what it shares.
memory() { awk '/^Pss:/ { printf "%.1f", $2 / 1024 }' "/proc/$1/smaps_rollup"; }

joined=0
# join COUNT: that many nodes are there.
join() {
    while [ "$joined" -lt "$1" ]; do
        for ((n = 0; n < 8 && joined < $1; n++)); do
            joined=$((joined + 1))
            mkdir "$place/n$joined"
            host "n$joined" berth join 127.0.0.1 "$token" --detach > "$place/run/join.$joined" 2>&1 &
        done
        wait
    done
    for ((n = 0; n < 600; n++)); do
        [ "$(host head sinfo -h -t idle -o %D | awk '{ n += $1 } END { print n }')" != $(($1 + 1)) ] || return 0
        sleep 0.5
    done
    echo "wide.sh: error: not all of $1 nodes came: $(host head sinfo -h -o '%T %D')" >&2
    exit 1
}

rows=$place/run/rows
: > "$rows"
for count in "${counts[@]}"; do
    join "$count"
    nodes="n[1-$count]"
    [ "$count" -gt 1 ] || nodes=n1
    # Once to warm up: what is written first is made then.
    host head srun -N "$count" -w "$nodes" true
    best=
    for ((turn = 0; turn < 3; turn++)); do
        controller=$(cpu "$(pid controller)") agent=$(cpu "$(pid agent)")
        host head /usr/bin/time -o "$place/run/time" -f '%e %U %S %M' srun -N "$count" -w "$nodes" -l hostname > "$place/run/said"
        controller=$(awk -v a="$controller" -v b="$(cpu "$(pid controller)")" 'BEGIN { print b - a }')
        agent=$(awk -v a="$agent" -v b="$(cpu "$(pid agent)")" 'BEGIN { print b - a }')
        # Each task said its own node's name, and nothing else was said.
        awk -F ': ' '{ print $1 + 0, $2 }' "$place/run/said" | sort -n > "$place/run/sorted"
        # Nodes are in the order of their names.
        for ((n = 1; n <= count; n++)); do echo "$((n - 1)) n$n"; done | diff - "$place/run/sorted" >&2
        read -r wall user system kib < "$place/run/time"
        row="$count $wall $user $system $kib $controller $agent"
        if [ -z "$best" ] || awk -v a="$wall" -v b="$(cut -d ' ' -f 2 <<< "$best")" 'BEGIN { exit !(a < b) }'; then
            best=$row
        fi
    done
    code=0
    host head srun -N "$count" -w "$nodes" sh -c "[ \$SLURM_NODEID != $((count - 1)) ] || exit 3" 2> "$place/run/said" || code=$?
    if [ "$code" != 3 ] || ! grep -q "n$count: task $((count - 1)): Exited with exit code 3" "$place/run/said"; then
        echo "wide.sh: error: exit code $code, and was said: $(cat "$place/run/said")" >&2
        exit 1
    fi
    relayed=$(grep -c 'is not reached for streams' "$place/head/log/agent.log" || true) # none is no failure
    echo "$count nodes: $relayed ways through the controller so far" >&2
    last=$(sed 's/.*"pid": *\([0-9]*\).*/\1/' "$place/n$count/run/agent.json" | head -n 1)
    echo "$best $(memory "$(pid controller)") $(memory "$last")" | tee -a "$rows" >&2
done

echo '| nodes | `srun -N hostname` (s) | its CPU (s) | its memory (MiB) | the controller'"'"'s CPU (s) | its agent'"'"'s CPU (s) | the controller'"'"'s memory (MiB) | memory of a node'"'"'s agent (MiB) |'
echo '|---|---|---|---|---|---|---|---|'
awk '{ printf "| %d | %.2f | %.2f | %.0f | %.2f | %.2f | %s | %s |\n", $1, $2, $3 + $4, $5 / 1024, $6, $7, $8, $9 }' "$rows"

awk -v OFS='\t' '{ print $1, $2, $6, $5 / 1024 }' "$rows" |
    curves 'One step over many nodes' nodes 0.01 100 \
        'srun -N hostname: s' 'the controller: s of CPU' 'srun: MiB' > "${WIDE_SVG:-docs/wide.svg}"
