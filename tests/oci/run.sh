#!/usr/bin/env bash
# Runs the OCI suites against a runtime, and prints one line for each case: suite, case, result.
# usage: tests/oci/run.sh RUNTIME RUNTIME-TOOLS CONTEST
#   RUNTIME        program with an OCI command line: runc, crun, or a copy of berth called berth-oci (contest follows links)
#   RUNTIME-TOOLS  built tree of github.com/opencontainers/runtime-tools (make runtimetest validation-executables)
#   CONTEST        directory with contest, runtimetest and bundle.tar.gz of github.com/youki-dev/youki
# Compare the output with the column of ledger.tsv.
set -euo pipefail

[ $# -eq 3 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
[ "$(id -u)" -eq 0 ] || { echo "run.sh: error: the suites need root" >&2; exit 1; }
runtime=$(command -v "$1") || { echo "run.sh: error: no runtime $1" >&2; exit 1; }
runtime=$(realpath -s "$runtime")
tools=$(realpath "$2")
contest=$(realpath "$3")
limit=${CASE_LIMIT:-60}
log=${CASE_LOG:-/dev/null}

for file in "$tools/runtimetest" "$contest/contest" "$contest/runtimetest" "$contest/bundle.tar.gz"; do
    [ -e "$file" ] || { echo "run.sh: error: $file is missing; build the suite first" >&2; exit 1; }
done

cd "$tools"
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

# Group by group: one that brings the suite itself down takes no other with it.
cd "$contest"
kind=$(basename "$runtime")
for group in $(./contest list); do
    # Its exit status says less than its lines.
    out=$(RUNTIME_KIND=$kind timeout -k 5 "$limit" ./contest run --runtime "$runtime" --runtimetest "$contest/runtimetest" -t "$group" 2>&1) || true # read below
    printf '=== contest %s\n%s\n' "$group" "$out" >> "$log"
    awk -v group="$group" '
        / : (ok|not ok|skipped)/ {
            split($0, part, " : ")
            result = part[3]
            sub(/^not ok.*/, "fails", result); sub(/^ok.*/, "passes", result); sub(/^skipped.*/, "skips", result)
            printf "contest\t%s/%s\t%s\n", group, part[2], result
            seen = 1
        }
        END { if (!seen) printf "contest\t%s\thangs\n", group }
    ' <<< "$out" | sort
done
