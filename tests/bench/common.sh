# What the parts of the benchmark share: messages, and rows of the table. Sourced by run.sh.
die() { printf 'bench: error: %s\n' "$*" >&2; exit 1; }
note() { printf '\n# %s\n' "$*" >&2; }
has() { command -v "$1" >/dev/null; }

rows=()
# row WHAT OURS PEER THEIRS FACTOR: our figure must be at most FACTOR times the peer's (in the same unit; smaller is better)
row() {
    local verdict ratio
    ratio=$(awk -v a="$2" -v b="$4" 'BEGIN { printf "%.2f", a / b }')
    verdict=$(awk -v r="$ratio" -v f="$5" 'BEGIN { print (r <= f) ? "met" : "NOT met" }')
    rows+=("| $1 | $2 | $3 $4 | $ratio | at most $5 | $verdict |")
}
# faster WHAT OURS PEER THEIRS FACTOR: our rate must be at least FACTOR times the peer's (greater is better)
faster() {
    local verdict ratio
    ratio=$(awk -v a="$2" -v b="$4" 'BEGIN { printf "%.2f", a / b }')
    verdict=$(awk -v r="$ratio" -v f="$5" 'BEGIN { print (r >= f) ? "met" : "NOT met" }')
    rows+=("| $1 | $2 | $3 $4 | $ratio | at least $5 | $verdict |")
}
skip() { rows+=("| $1 | ${2:-} | $3 | | | peer absent, or does not run here |"); }
# against WHAT OURS FORMAT FILE PEER:FACTOR...: a row for each peer that FILE, as bench-alternate wrote it, has a figure of
against() {
    local what=$1 ours=$2 format=$3 file=$4 peer name theirs
    shift 4
    for peer in "$@"; do
        name=${peer%:*}
        theirs=$(field "$name" 2 "$file")
        if [ -n "$theirs" ]; then
            row "$what" "$($format "$ours")" "$name" "$($format "$theirs")" "${peer#*:}"
        else
            skip "$what" "$($format "$ours")" "$name"
        fi
    done
}
ms() { awk -v us="$1" 'BEGIN { printf "%.2f", us / 1000 }'; }
per_second() { awk -v n="$1" -v us="$2" 'BEGIN { printf "%.0f", n * 1000000 / us }'; }
field() { awk -v name="$1" -v at="$2" '$1 == name { print $at }' "$3"; }

# below WHAT OURS LIMIT, above WHAT OURS LIMIT: rows without a peer
below() { rows+=("| $1 | $2 | | | below $3 | $(awk -v a="$2" -v b="$3" 'BEGIN { print (a < b) ? "met" : "NOT met" }') |"); }
above() { rows+=("| $1 | $2 | | | at least $3 | $(awk -v a="$2" -v b="$3" 'BEGIN { print (a >= b) ? "met" : "NOT met" }') |"); }
table() {
    printf '\n%s, kernel %s, %s CPUs, as %s; fsync median %s ms\n\n' "$(date +%F)" "$(uname -r)" "$(nproc)" "$(id -un)" "$(ms "$fsync")"
    printf '| what | ours | peer | ratio | target | |\n|---|---|---|---|---|---|\n'
    printf '%s\n' "${rows[@]}"
    [ ! -e "$work/cost-table" ] || cat "$work/cost-table"
}
seconds() { awk -v us="$1" 'BEGIN { printf "%.1f", us / 1000000 }'; }
