#!/usr/bin/env bash
# How much of the free GPUs lies about in pieces over a mixed workload, placed as Berth does and as textbooks do. Writes
# docs/fragments.svg and prints a table. usage: tests/bench/fragments.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

rows=$(mktemp)
trap 'rm -f "$rows"' EXIT
cargo test -q -p berth-sched-core --lib -- --exact place::fragments::what_is_free_lies_in_no_more_pieces_than_with_best_fit --nocapture |
    grep -E '^(score|fragments)' > "$rows"

echo '| placed by | free GPUs in pieces | wait for a whole node (ticks) |'
echo '|---|---|---|'
awk -F '\t' '$1 == "score" { printf "| %s | %.1f %% | %s |\n", $2, $3 / 10, $4 }' "$rows"

awk -F '\t' '
    $1 == "fragments" {
        if (!($2 in seen)) { seen[$2] = ++ways; name[ways] = $2 }
        path[seen[$2]] = path[seen[$2]] sprintf("%s%.1f %.1f", path[seen[$2]] == "" ? "M" : "L", 60 + $3 * 0.14, 320 - $4 * 5)
    }
    END {
        split("#0b6e99 #b5472b #4a7a2c #8a5a9e", colour, " ")
        print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 800 370\" font-family=\"sans-serif\" font-size=\"13\">"
        print "<title>Free GPUs on nodes that are partly in use, by the way of placing jobs</title>"
        print "<rect width=\"800\" height=\"370\" fill=\"#ffffff\"/>"
        for (v = 0; v <= 60; v += 10) {
            printf "<path d=\"M60 %dH620\" stroke=\"#dddddd\"/>\n", 320 - v * 5
            printf "<text x=\"52\" y=\"%d\" text-anchor=\"end\">%d</text>\n", 324 - v * 5, v
        }
        print "<text x=\"340\" y=\"345\" text-anchor=\"middle\">time (ticks)</text>"
        print "<text x=\"340\" y=\"363\" text-anchor=\"middle\">free GPUs, of 128, on nodes that are partly in use: fewer is better</text>"
        for (w = ways; w >= 1; w--) {
            printf "<path d=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"%s\"/>\n", path[w], colour[w], w == 1 ? 2 : 1.2
            printf "<text x=\"640\" y=\"%d\" fill=\"%s\">%s</text>\n", 60 + 22 * w, colour[w], name[w]
        }
        print "</svg>"
    }' "$rows" > docs/fragments.svg
