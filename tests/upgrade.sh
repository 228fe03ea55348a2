#!/usr/bin/env bash
# Upgrades a cluster of four fake machines from the build of an earlier commit to this tree's, the controller first and then each node,
# while steps run. Not part of tests/run.sh: it compiles the earlier commit. As root, after `cargo xtask build --debug`.
# usage: tests/upgrade.sh COMMIT | tests/upgrade.sh --programs DIRECTORY
set -euo pipefail
cd "$(dirname "$0")/.."

if [ "${1-}" = --programs ] && [ $# = 2 ]; then
    old=$(realpath "$2")
elif [ $# = 1 ] && commit=$(git rev-parse --verify --quiet "$1^{commit}"); then
    tree=target/upgrade/$commit
    [ -d "$tree" ] || git worktree add --detach --force "$tree" "$commit"
    trap 'git worktree remove --force "$tree"' EXIT
    # Artefacts of several commits side by side would be built anew each time: the worktree has its own.
    (cd "$tree" && env -u CARGO_TARGET_DIR cargo xtask build --debug)
    old=$PWD/target/upgrade/programs-$commit
    mkdir -p "$old"
    cp "$tree/target/debug/berth" "$tree/target/debug/static/berth-step" "$old"
else
    sed -n '2,4s/^# //p' "$0" >&2
    exit 1
fi
for program in berth berth-step; do
    [ -x "$old/$program" ] || { echo "upgrade.sh: error: $old has no $program" >&2; exit 1; }
done
BERTH_OLD=$old timeout 900 cargo test -q -p berth-tests --test main -- --ignored --exact \
    upgrade::controller_and_nodes_are_upgraded_under_running_steps_as_root
