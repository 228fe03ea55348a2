#!/usr/bin/env bash
# Runs the OCI suites against a runtime, and prints one line for each case: suite, case, result.
# usage: tests/oci/run.sh RUNTIME RUNTIME-TOOLS CONTEST
#   RUNTIME        program with an OCI command line: runc, crun, or a copy of berth called berth-oci (contest follows links)
#   RUNTIME-TOOLS  built tree of github.com/opencontainers/runtime-tools (make runtimetest validation-executables)
#   CONTEST        directory with contest, runtimetest and bundle.tar.gz of github.com/youki-dev/youki
# A - in the place of a suite leaves it out. CASE_LOG=FILE keeps what the cases print.
# Compare the output with the column of ledger.tsv.
set -euo pipefail

[ $# -eq 3 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "run.sh: error: the suites need root" >&2; exit 1; }
runtime=$(command -v "$1") || { echo "run.sh: error: no runtime $1" >&2; exit 1; }
runtime=$(realpath -s "$runtime")
limit=${CASE_LIMIT:-60}
# Some cases look at what is open, and take what this script's caller left open for the runtime's. 255 is the shell's own.
for fd in /proc/$$/fd/*; do
    fd=${fd##*/}
    [ "$fd" -le 2 ] || [ "$fd" -eq 255 ] || eval "exec $fd>&-"
done
ledger=$(realpath "$(dirname "$0")/ledger.tsv")
log=${CASE_LOG:-/dev/null}

need() {
    for file in "$@"; do
        [ -e "$file" ] || { echo "run.sh: error: $file is missing; build the suite first" >&2; exit 1; }
    done
}

runtime_tools() {
    need "$1/runtimetest"
    cd "$1"
    for case in validation/*/*.t; do
        name=$(basename "$case" .t)
        status=0
        out=$(RUNTIME=$runtime timeout -k 5 "$limit" "$case" 2>&1) || status=$?
        printf '=== runtime-tools %s (exit %s)\n%s\n' "$name" "$status" "$out" >> "$log"
        if [ $status -eq 124 ] || [ $status -eq 137 ]; then
            result=hangs
        elif [ $status -ne 0 ] || grep -q '^ *not ok' <<< "$out"; then
            result=fails
        elif grep -q '^ *ok' <<< "$out"; then
            result=passes
        else
            result=skips
        fi
        printf 'runtime-tools\t%s\t%s\n' "$name" "$result"
    done
}

# One group, or one case of it (GROUP::CASE): a line for each that says how it went.
contest_run() {
    local status=0 out
    out=$(RUNTIME_KIND=$(basename "$runtime") timeout -k 5 "$limit" \
        ./contest run --runtime "$runtime" --runtimetest "$PWD/runtimetest" -t "$1" 2>&1) || status=$?
    printf '=== contest %s (exit %s)\n%s\n' "$1" "$status" "$out" >> "$log"
    awk -v group="${1%%::*}" '
        / : (ok|not ok|skipped)/ {
            split($0, part, " : ")
            result = part[3]
            sub(/^not ok.*/, "fails", result); sub(/^ok.*/, "passes", result); sub(/^skipped.*/, "skips", result)
            printf "contest\t%s/%s\t%s\n", group, part[2], result
        }
    ' <<< "$out" | sort
    case $status in 124 | 137) return 1 ;; esac # it hangs; what it found otherwise is in its lines
}

# Group by group; where a case brings its group down, the cases that the ledger names run one by one.
contest_suite() {
    need "$1/contest" "$1/runtimetest" "$1/bundle.tar.gz"
    cd "$1"
    for group in $(./contest list); do
        lines=$(contest_run "$group") || lines=
        if [ -n "$lines" ]; then
            printf '%s\n' "$lines"
            continue
        fi
        mapfile -t cases < <(awk -F'\t' -v group="$group/" '$1 == "contest" && index($2, group) == 1 { print $2 }' "$ledger")
        for case in "${cases[@]}"; do
            end=crashes
            line=$(contest_run "$group::${case#"$group/"}") || end=hangs
            printf '%s\n' "${line:-contest	$case	$end}"
        done
        [ ${#cases[@]} -gt 0 ] || printf 'contest\t%s\tcrashes\n' "$group"
    done
}

if [ "$2" != - ]; then (runtime_tools "$(realpath "$2")"); fi
if [ "$3" != - ]; then (contest_suite "$(realpath "$3")"); fi
