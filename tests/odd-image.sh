#!/usr/bin/env bash
# Makes an image with everything odd that a layer may hold, as an OCI layout: Debian below, then a layer with files of every kind, and
# one that hides, replaces and adds. Needs no root; the same layers whoever makes it.
# usage: tests/odd-image.sh [--whole] DIRECTORY
#   --whole  files with holes stand in the archives with all their zeros. The tree is the same one; podman 4.3 takes a layer that says
#            where its holes are, and fails to save it ("archive/tar: write too long").
set -euo pipefail

holes=--sparse
if [ "${1:-}" = --whole ]; then
    holes=
    shift
fi
layout=${1:?name a directory}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d /tmp/bt-odd.XXXXXX)
trap 'chmod -R u+rwX "$work"; rm -rf "$work"' EXIT
new=$work/layout
# getfattr is what looks at attributes in the container.
"$here/../examples/debian-image.sh" "$new" attr >/dev/null

below() {
    mkdir -p emptied opaque/deep was-directory/inside empty many hard/away sizes times names links
    echo gone > gone
    echo a > emptied/a; echo b > emptied/b
    echo old > opaque/old; echo older > opaque/deep/older
    echo x > was-directory/inside/file
    echo f > was-file
    ln -s gone was-link
    echo kept > kept
    # Hard links within a directory and across, one of them to a symbolic link, one set-id.
    echo one > hard/one; ln hard/one hard/two; ln hard/one hard/away/three
    ln -s one hard/symlink; ln hard/symlink hard/away/symlink
    echo suid > suid; chmod 4755 suid; echo sgid > sgid; chmod 2711 sgid; mkdir sticky setgid; chmod 1777 sticky; chmod 2775 setgid
    echo secret > read-only; chmod 0400 read-only; mkdir closed; echo in > closed/in; chmod 0700 closed
    for size in 0 1 511 512 4031 4032 4095 4096 4097 8192 131071 131072 131073 1048577; do
        head -c "$size" < <(seq "$size" 300000) > "sizes/$size"
    done
    # Data at the start, in the middle and at the end; and nothing but a hole.
    truncate -s 96M sparse; printf start | dd of=sparse conv=notrunc status=none
    printf middle | dd of=sparse bs=1 seek=50000001 conv=notrunc status=none; printf end | dd of=sparse bs=1 seek=100663293 conv=notrunc status=none
    truncate -s 3M hole
    for number in $(seq 2000); do : > "many/$number"; done
    local long; long=$(printf 'n%.0s' $(seq 255))
    mkdir "names/$long"; echo long > "names/$long/$long"
    echo bytes > names/$'not-utf8-\xff\xfe'; echo line > names/$'new\nline'; echo back > 'names/back\slash'; echo sp > 'names/ sp ace '
    echo A > names/A; echo a > names/a; echo ü > names/ü; ln -s $'\xff' names/$'link-\xfe'
    ln -s nowhere links/dangling; ln -s /odd/kept links/absolute; ln -s loop links/loop; ln -s ../../../../odd/kept links/far
    ln -s "$(printf 't/%.0s' $(seq 1500))" links/long
    mkfifo pipe; chmod 0622 pipe
    echo attributes > attributes
    setfattr -n user.text -v value attributes; setfattr -n user.empty attributes
    setfattr -n user.bytes -v 0x00ff000a attributes; setfattr -n user.large -v "$(printf 'v%.0s' $(seq 3000))" attributes
    mkdir attributed; setfattr -n user.directory -v yes attributed
    find . -exec touch -h -d '2020-01-02 03:04:05' {} +
    for at in -5.5 -2000000000 0 1.000000001 1234567890.987654321 2147483648 4102444800.5; do : > "times/$at"; touch -d "@$at" "times/$at"; done
    ln -s x times/link; touch -h -d @1000000000.25 times/link
    mkdir times/directory; touch -d @1500000000.75 times/directory; touch -d @1600000000.125 times
}

above() {
    mkdir -p emptied opaque was-file was-link hard/away
    : > .wh.gone; : > emptied/.wh.a; : > emptied/.wh.b; : > hard/.wh.symlink
    : > opaque/.wh..wh..opq; echo new > opaque/new
    echo "a file now" > was-directory
    echo below > was-file/below; echo below > was-link/below
    echo changed > kept; chmod 0640 kept
    mkdir added; echo added > added/file; ln added/file added/again
    chmod 0750 emptied
    find . -exec touch -h -d '2021-02-03 04:05:06.789' {} +
}

layer() { # layer FUNCTION OWNER: one more layer, made of what the function does in /odd
    rm -rf "$work/root"
    mkdir -p "$work/root/odd"
    (cd "$work/root/odd" && umask 022 && "$1")
    tar -c --format=pax --pax-option=delete=atime,delete=ctime --xattrs $holes --sort=name --owner="$2" --group="$2" --numeric-owner \
        -C "$work/root" odd > "$work/layer.tar"
    chmod -R u+rwX "$work/root"
    umoci --log=error raw add-layer --image "$new:latest" "$work/layer.tar"
}
layer below 0
# Of ids that no store keeps.
layer above 1234
umoci --log=error gc --layout "$new"

mkdir -p "$(dirname "$layout")"
rm -rf "$layout"
mv "$new" "$layout"
chmod -R a+rX "$layout"
