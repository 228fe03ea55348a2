#!/usr/bin/env bash
# What the launch of one step over very many nodes takes, simulated: the cores of the controller and of an agent for each node, under a
# virtual clock. Writes docs/launch.svg and prints a table. Not part of tests/run.sh: it takes a minute or two.
# usage: tests/bench/launch.sh [--debug] [COUNT...]
set -euo pipefail
cd "$(dirname "$0")/../.."

profile=--release
if [ "${1-}" = --debug ]; then
    profile=
    shift
fi
counts=("$@")
[ ${#counts[@]} -gt 0 ] || counts=(10 30 100 300 1000 3000 10000)
for count in "${counts[@]}"; do
    [[ $count =~ ^[1-9][0-9]*$ ]] || { echo "launch.sh: error: '$count' is no number of nodes" >&2; exit 1; }
done
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
# shellcheck disable=SC2086 # no profile is no word
COUNTS="${counts[*]}" cargo test -q $profile -p berth-sim --test wide -- --exact what_a_launch_takes --ignored --nocapture |
    grep '^launch' | cut -f 2- > "$rows"

echo '| nodes | all Starts together (MiB) | last Start sent (ms) | last task runs (ms) | end on record (ms) | the core took of this machine (s) |'
echo '|---|---|---|---|---|---|'
awk -F '\t' '{ printf "| %d | %.1f | %s | %s | %s | %.2f |\n", $1, $2 / 1024, $3, $4, $5, $6 }' "$rows"

awk -F '\t' '
    function x(n) { return 70 + 560 * (log(n) - log(left)) / (log(right) - log(left)) }
    function y(v) { if (v < low) v = low; return 340 - 300 * (log(v) - log(low)) / (log(high) - log(low)) }
    { n[NR] = $1; v[1, NR] = $3; v[2, NR] = $4; v[3, NR] = $5 }
    END {
        left = n[1]; right = NR > 1 ? n[NR] : n[1] * 10; low = 1; high = 10000
        name[1] = "last Start sent: ms"; name[2] = "last task runs: ms"; name[3] = "end on record: ms"
        colour[1] = "#0b6e99"; colour[2] = "#b5472b"; colour[3] = "#4a7a2c"
        print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 390\" font-family=\"sans-serif\" font-size=\"13\">"
        print "<title>The launch of a step, simulated</title>"
        print "<rect width=\"860\" height=\"390\" fill=\"#ffffff\"/>"
        for (d = low; d <= high * 1.01; d *= 10) {
            printf "<path d=\"M70 %.1fH630\" stroke=\"#dddddd\"/>\n", y(d)
            printf "<text x=\"62\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", y(d) + 4, d
        }
        for (i = 1; i <= NR; i++)
            printf "<text x=\"%.1f\" y=\"362\" text-anchor=\"middle\">%d</text>\n", x(n[i]), n[i]
        print "<text x=\"350\" y=\"382\" text-anchor=\"middle\">nodes</text>"
        for (c = 1; c <= 3; c++) {
            path = ""
            for (i = 1; i <= NR; i++) {
                path = path sprintf("%s%.1f %.1f", i > 1 ? "L" : "M", x(n[i]), y(v[c, i]))
                printf "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"3.5\" fill=\"%s\"/>\n", x(n[i]), y(v[c, i]), colour[c]
            }
            printf "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>\n", path, colour[c]
            printf "<text x=\"640\" y=\"%d\" fill=\"%s\">%s</text>\n", 60 + 22 * c, colour[c], name[c]
        }
        print "</svg>"
    }' "$rows" > "${LAUNCH_SVG:-docs/launch.svg}"
