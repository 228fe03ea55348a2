#!/usr/bin/env bash
# Makes one of the tests' images as an OCI layout, with umoci and, for Debian as root, debootstrap.
# usage: tests/images.sh busybox|layers|configured|debian DIRECTORY
set -euo pipefail

name=${1:?name an image}
layout=${2:?name a directory}
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d /tmp/bt-image.XXXXXX)
trap 'chmod -R u+rwX "$work"; rm -rf "$work"' EXIT
new=$work/layout
rootless=()
[ "$(id -u)" -eq 0 ] || rootless=(--rootless)

umoci_quiet() { umoci --log=error "$@"; }

layer() { # layer FUNCTION: one more layer with what the function does to the root directory
    local bundle=$work/bundle
    rm -rf "$bundle"
    umoci_quiet unpack "${rootless[@]}" --image "$new:latest" "$bundle"
    (cd "$bundle/rootfs" && "$1")
    umoci_quiet repack --refresh-bundle --image "$new:latest" "$bundle"
}

busybox_root() {
    mkdir -p bin etc tmp root proc sys dev usr/bin
    chmod 1777 tmp
    cp /bin/busybox bin/busybox
    for applet in $(/bin/busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "bin/$applet"
    done
    printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n' > etc/passwd
    printf 'root:x:0:\nnogroup:x:65534:\n' > etc/group
}

lower() {
    mkdir -p data/emptied data/opaque data/replaced
    echo kept > data/kept
    echo gone > data/gone
    echo a > data/emptied/a
    echo b > data/emptied/b
    echo old > data/opaque/old
    echo inside > data/replaced/inside
    echo one > data/hard1
    ln data/hard1 data/hard2
    chmod 4755 data/kept
}

middle() {
    rm data/gone data/emptied/a data/emptied/b
    rm -r data/replaced
    echo "a file now" > data/replaced
}

upper() {
    echo changed > data/emptied/c
    ln -s kept data/link
    echo "$(printf 'x%.0s' $(seq 200))" > "data/$(printf 'n%.0s' $(seq 200))"
}

start_layout() {
    umoci_quiet init --layout "$new"
    umoci_quiet new --image "$new:latest"
    layer busybox_root
    umoci_quiet config --image "$new:latest" --config.cmd /bin/sh --config.env PATH=/bin:/usr/bin
}

case $name in
    busybox) start_layout ;;
    layers)
        start_layout
        layer lower
        layer middle
        mkdir "$work/opaque"
        echo new > "$work/opaque/new"
        umoci_quiet insert "${rootless[@]}" --opaque --image "$new:latest" "$work/opaque" /data/opaque
        layer upper
        ;;
    configured)
        start_layout
        entry() {
            mkdir -p srv/here
            printf '#!/bin/sh\necho "entrypoint: $*"\nexec "$@"\n' > bin/entry
            chmod 755 bin/entry
        }
        layer entry
        umoci_quiet config --image "$new:latest" --config.env FROM_IMAGE=yes --config.env LANG=xx_XX \
            --config.workingdir /srv/here --config.entrypoint /bin/entry --config.cmd echo --config.cmd default-command \
            --config.user nobody
        ;;
    debian)
        if [ "$(id -u)" -eq 0 ]; then
            umoci_quiet init --layout "$new"
            umoci_quiet new --image "$new:latest"
            debian_root() {
                debootstrap --variant=minbase --include=procps bookworm "$work/debian" >"$work/log" 2>&1 || { tail -20 "$work/log" >&2; return 1; }
                rm -rf "$work"/debian/var/cache/apt/archives/*.deb "$work"/debian/var/lib/apt/lists/* "$work"/debian/dev/*
                cp -a "$work/debian/." .
            }
            layer debian_root
            umoci_quiet config --image "$new:latest" --config.cmd bash \
                --config.env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
        else
            # What debootstrap's minimal variant has of what the tests use.
            "$here/../examples/debian-image.sh" "$new" apt diffutils dpkg mount passwd procps util-linux
        fi
        ;;
    *)
        echo "images.sh: error: no image is called $name" >&2
        exit 1
        ;;
esac
mkdir -p "$(dirname "$layout")"
rm -rf "$layout"
mv "$new" "$layout"
chmod -R a+rX "$layout"
