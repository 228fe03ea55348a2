#!/usr/bin/env bash
# Makes the image whose import is measured, as an OCI layout: 996 MB of this machine's own files, in ten layers, of which the largest is 202 MB
# of gzip. The tag `next` has one small layer more. usage: tests/bench/large.sh DIRECTORY
set -euo pipefail
cd "$(dirname "$0")/../.."

layout=${1:?name a directory}
unpacked=996 largest=202 # MB
work=$(mktemp -d /tmp/bt-large.XXXXXX)
trap 'chmod -R u+rwX "$work"; rm -rf "$work"' EXIT
new=$work/layout
rootless=()
[ "$(id -u)" -eq 0 ] || rootless=(--rootless)

umoci_quiet() { umoci --log=error "$@"; }

# Whole directories, in an order that says nothing of their names and is the same each time, until there is enough.
find /usr/bin /usr/lib /usr/share -xdev -type f -size -32M -readable ! -name '*[[:cntrl:]]*' -printf '%s %h\t%f\n' > "$work/all"
sed 's,^[0-9]* ,,; s,\t.*,,' "$work/all" | LC_ALL=C sort -u | shuf --random-source=<(yes) > "$work/directories"
awk -F'\t' 'NR == FNR { at[$1] = NR; next } { size = $1 + 0; sub(/^[0-9]* /, "", $1); print at[$1] "\t" $1 "/" $2 "\t" size }' \
    "$work/directories" "$work/all" | LC_ALL=C sort -t$'\t' -k1,1n -k2,2 |
    awk -F'\t' -v most=$unpacked '{ sum += $3 } sum <= most * 1000000 { print $2 }' > "$work/chosen"
count=$(wc -l < "$work/chosen")

archive() { # archive LAYER FIRST LAST: these of the files, and the directories that they are in
    sed -n "$2,$3p" "$work/chosen" > "$work/files"
    { sed 's,/[^/]*$,,' "$work/files" | LC_ALL=C sort -u; cat "$work/files"; } > "$work/entries"
    tar -c --no-recursion --owner=0 --group=0 --transform "s,^,big/$1," -P -T "$work/entries"
}

# How well they compress is each machine's own affair. What umoci makes is by a part in 23 larger than gzip's.
first=0 size=0
while [ $size -lt $((largest * 1000000 * 23 / 24)) ] && [ $first -lt $((count * 9 / 10)) ]; do
    size=$((size + $(archive 1 $((first + 1)) $((first + 200)) | gzip | wc -c)))
    first=$((first + 200))
done

tests/images.sh busybox "$new"
for layer in $(seq 9); do
    case $layer in
        1) from=1 to=$first ;;
        *) from=$((first + 1 + (layer - 2) * (count - first) / 8)) to=$((first + (layer - 1) * (count - first) / 8)) ;;
    esac
    archive "$layer" $from $to > "$work/layer.tar"
    umoci_quiet raw add-layer --image "$new:latest" "$work/layer.tar"
done
umoci_quiet tag --image "$new:latest" next
mkdir "$work/little"
echo next > "$work/little/next"
umoci_quiet insert "${rootless[@]}" --image "$new:next" "$work/little" /little

mkdir -p "$(dirname "$layout")"
rm -rf "$layout"
mv "$new" "$layout"
chmod -R a+rX "$layout"
