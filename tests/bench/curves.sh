# Draws curves over a number of machines as a picture. Read by scripts beside it: `. tests/bench/curves.sh`.
# shellcheck shell=bash

# usage: curves TITLE UNDER LOW HIGH NAME NAME NAME < rows > picture
# Rows are a number and a value for each name, separated by tabs. Both axes are logarithmic, from LOW to HIGH: a straight line that rises
# by a decade in each decade is linear.
curves() {
    awk -F '\t' -v title="$1" -v under="$2" -v low="$3" -v high="$4" -v names="$5|$6|$7" '
    function x(n) { return 70 + 560 * (log(n) - log(left)) / (log(right) - log(left)) }
    function y(v) { if (v < low) v = low; return 340 - 300 * (log(v) - log(low)) / (log(high) - log(low)) }
    { n[NR] = $1; for (c = 1; c <= 3; c++) v[c, NR] = $(c + 1) }
    END {
        left = n[1]; right = NR > 1 ? n[NR] : n[1] * 10
        split(names, name, "|"); split("#0b6e99 #b5472b #4a7a2c", colour, " ")
        print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 860 390\" font-family=\"sans-serif\" font-size=\"13\">"
        print "<title>" title "</title>"
        print "<rect width=\"860\" height=\"390\" fill=\"#ffffff\"/>"
        for (d = low; d <= high * 1.01; d *= 10) {
            printf "<path d=\"M70 %.1fH630\" stroke=\"#dddddd\"/>\n", y(d)
            printf "<text x=\"62\" y=\"%.1f\" text-anchor=\"end\">%g</text>\n", y(d) + 4, d
        }
        for (i = 1; i <= NR; i++)
            printf "<text x=\"%.1f\" y=\"362\" text-anchor=\"middle\">%d</text>\n", x(n[i]), n[i]
        print "<text x=\"350\" y=\"382\" text-anchor=\"middle\">" under "</text>"
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
    }'
}
