#!/usr/bin/env bash
# What many machines cost a controller: simulated agents in one process, each with a key, a certificate and a TLS connection of its
# own, speak the real protocol to a controller in another. Writes docs/agents.svg and prints the table of docs/agents.md.
# Not part of tests/run.sh: it takes some minutes. usage: tests/bench/agents.sh [--debug] [COUNT...]
set -euo pipefail
cd "$(dirname "$0")/../.."

profile=--release
if [ "${1-}" = --debug ]; then
    profile=
    shift
fi
counts=("$@")
[ ${#counts[@]} -gt 0 ] || counts=(10 30 100 300 1000)
for count in "${counts[@]}"; do
    [[ $count =~ ^[1-9][0-9]*$ ]] || { echo "agents.sh: error: '$count' is no number of machines" >&2; exit 1; }
done

# Two descriptors for each machine, and some of the program's own.
ulimit -n "$(ulimit -Hn)"
rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
# shellcheck disable=SC2086 # no profile is no word
CROWD="${counts[*]}" cargo test -q $profile -p berth-controller --test crowd -- --exact what_a_crowd_costs --ignored --nocapture |
    grep '^crowd' | cut -f 2- > "$rows"

echo '| machines | all joined (s) | heartbeats (ms of CPU a second) | all back after a restart (s) | its CPU (s) | memory (MiB) |'
echo '|---|---|---|---|---|---|'
awk -F '\t' '{ printf "| %s | %s | %.1f | %s | %s | %s |\n", $1, $2, $3 * 1000, $4, $5, $6 }' "$rows"

# Three curves over the number of machines, both axes logarithmic: a straight line that rises by a decade in each decade is linear.
awk -F '\t' '
    function x(n) { return 70 + 560 * (log(n) - log(left)) / (log(right) - log(left)) }
    function y(v) { if (v < low) v = low; return 340 - 300 * (log(v) - log(low)) / (log(high) - log(low)) }
    { n[NR] = $1; v[1, NR] = $3 * 1000; v[2, NR] = $5; v[3, NR] = $6 }
    END {
        left = n[1]; right = NR > 1 ? n[NR] : n[1] * 10; low = 0.01; high = 1000
        name[1] = "heartbeats: ms of CPU a second"; name[2] = "storm: s of CPU"; name[3] = "memory: MiB"
        colour[1] = "#0b6e99"; colour[2] = "#b5472b"; colour[3] = "#4a7a2c"
        print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 390\" font-family=\"sans-serif\" font-size=\"13\">"
        print "<title>What many machines cost a controller</title>"
        print "<rect width=\"860\" height=\"390\" fill=\"#ffffff\"/>"
        for (d = low; d <= high * 1.01; d *= 10) {
            printf "<path d=\"M70 %.1fH630\" stroke=\"#dddddd\"/>\n", y(d)
            printf "<text x=\"62\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", y(d) + 4, d
        }
        for (i = 1; i <= NR; i++)
            printf "<text x=\"%.1f\" y=\"362\" text-anchor=\"middle\">%d</text>\n", x(n[i]), n[i]
        print "<text x=\"350\" y=\"382\" text-anchor=\"middle\">machines</text>"
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
    }' "$rows" > docs/agents.svg
