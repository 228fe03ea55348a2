#!/usr/bin/env bash
# Runs every fuzz target of the project, each for some seconds (60 unless said otherwise), two at a time.
# usage: tests/fuzz.sh [SECONDS [TARGET…]]
# Needs cargo-fuzz (cargo install cargo-fuzz) and a C++ compiler. What a target finds is kept in its artifacts directory;
# what it learned, in its corpus directory.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'tests/fuzz.sh: error: %s\n' "$*" >&2; exit 1; }

seconds=${1-60}
case "$seconds" in
    "" | *[!0-9]*) die "$seconds is no number of seconds; usage: tests/fuzz.sh [SECONDS [TARGET…]]" ;;
esac
[ $# -eq 0 ] || shift
command -v cargo-fuzz >/dev/null || die "cargo-fuzz is missing: cargo install cargo-fuzz"
# The sanitiser's flags are not in stable releases of the compiler.
export RUSTC_BOOTSTRAP=1

wanted=" $* "
failed=()
for package in model images rpc agent; do
    (cd $package && cargo fuzz build)
    mapfile -t targets < <(cd $package && cargo fuzz list)
    run=()
    for target in "${targets[@]}"; do
        [ "$wanted" = "  " ] || [[ $wanted == *" $target "* ]] || continue
        run+=("$target")
    done
    for ((at = 0; at < ${#run[@]}; at += 2)); do
        pids=()
        for target in "${run[@]:at:2}"; do
            log=$package/fuzz/target/$target.log
            # A thread that is just ending looks like a leak.
            (cd $package && cargo fuzz run "$target" -- -detect_leaks=0 -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1) > "$log" 2>&1 &
            pids+=("$!:$target:$log")
        done
        for entry in "${pids[@]}"; do
            IFS=: read -r pid target log <<< "$entry"
            if wait "$pid"; then
                printf '%-20s %s runs, no finding\n' "$package/$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
            else
                printf '%-20s FOUND SOMETHING; the end of %s:\n' "$package/$target" "$log"
                tail -n 25 "$log"
                failed+=("$package/$target")
            fi
        done
    done
done
[ ${#failed[@]} -eq 0 ] || die "${failed[*]} found something"
