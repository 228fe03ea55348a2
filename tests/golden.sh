#!/usr/bin/env bash
# Replays recorded commands of Slurm on a cluster of this machine and says how far the answers agree.
# usage: tests/golden.sh DIR [--only FILE]... [--show same|shape|fuller|purpose|replay|later]...
#
# DIR holds transcripts; nothing else needs them. As root, after `cargo xtask build --debug`; about ten minutes. Host name, users,
# homes and memory are those of the recorded cluster's first node, seen by this script and what it starts alone. Commands that
# are not compared (later: this release does not have it; replay: the replay cannot show it), or differ on purpose, are in
# tests/golden/scope.tsv with the reason.
set -euo pipefail

die() { printf 'tests/golden.sh: error: %s\n' "$*" >&2; exit 2; }

if [ -z "${GOLDEN_SCENE-}" ]; then
    [ $# -gt 0 ] || die "name the directory of transcripts"
    [ "$(id -u)" -eq 0 ] || die "only root can make users and a host name of its own; run it as root"
    repository="$(cd "$(dirname "$0")/.." && pwd)"
    (cd "$repository" && cargo build --quiet --package berth-tests --bin golden)
    GOLDEN_SCENE="$(mktemp -d /tmp/bg-XXXX)"
    trap 'rm -rf "$GOLDEN_SCENE"' EXIT
    chmod 755 "$GOLDEN_SCENE"
    export GOLDEN_SCENE
    unshare --mount --uts --propagation private "$repository/tests/golden.sh" "$repository/target/debug/golden" "$@"
    exit
fi

hostname n1
{ grep -vE '^(alice|bob|[^:]*:[^:]*:(1001|1010)):' /etc/passwd; echo 'alice:x:1001:1001::/home/alice:/bin/bash'; echo 'bob:x:1010:1010::/home/bob:/bin/bash'; } > "$GOLDEN_SCENE/passwd"
{ grep -vE '^(alice|bob|[^:]*:[^:]*:(1001|1010)):' /etc/group; echo 'alice:x:1001:'; echo 'bob:x:1010:'; } > "$GOLDEN_SCENE/group"
sed -E 's/^(MemTotal: +)[0-9]+/\14096000/' /proc/meminfo > "$GOLDEN_SCENE/meminfo"
mount --bind "$GOLDEN_SCENE/passwd" /etc/passwd
mount --bind "$GOLDEN_SCENE/group" /etc/group
mount --bind "$GOLDEN_SCENE/meminfo" /proc/meminfo
mount -t tmpfs -o mode=755 home /home
mkdir -p /home/alice/work /home/bob/work
chown -R alice:alice /home/alice
chown -R bob:bob /home/bob
"$@"
