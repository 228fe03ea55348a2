#!/usr/bin/env bash
# Makes a Debian image as an OCI layout directory from Debian's own packages; needs no root and no container tool.
# usage: examples/debian-image.sh DIRECTORY [PACKAGE...]
# Packages are fetched by apt with its signatures checked, unpacked, and not configured: enough for programs, not for daemons.
set -euo pipefail

die() { printf 'debian-image: error: %s\n' "$*" >&2; exit 1; }

[ $# -ge 1 ] || die "name the directory to make: examples/debian-image.sh DIRECTORY [PACKAGE...]"
case "$1" in -*) die "there are no options: examples/debian-image.sh DIRECTORY [PACKAGE...]" ;; esac
layout=$1
shift
packages=(base-files base-passwd bash coreutils dash debianutils findutils grep gzip hostname libc-bin mawk sed tar "$@")
[ ! -e "$layout" ] || die "$layout exists; remove it or name another directory"
for tool in apt-get apt-cache dpkg-deb tar gzip sha256sum; do
    command -v "$tool" >/dev/null || die "$tool is missing; this script needs a Debian or Ubuntu machine with it"
done

work=$(mktemp -d "${TMPDIR:-/tmp}/debian-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/debs" "$work/root"

# Without package lists of the system's (a fresh container image has none), fetch our own: apt lets anyone do that.
apt_options=(-o APT::Sandbox::User=root -o Debug::NoLocking=1)
if ! apt-cache show coreutils >/dev/null 2>&1; then
    mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
    apt_options+=(-o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache")
    apt-get "${apt_options[@]}" -qq update || die "apt-get update failed; is a Debian mirror reachable?"
fi

mapfile -t wanted < <(
    apt-cache "${apt_options[@]}" depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
        --no-replaces --no-enhances "${packages[@]}" | grep -E '^[a-z0-9]' | grep -v -E ':|^(debconf|cdebconf|perl|dpkg|install-info)' | sort -u
)
[ ${#wanted[@]} -gt 0 ] || die "apt knows none of: ${packages[*]}"
# Pure virtual packages have no candidate to download; show leaves them out (and says so on stderr).
mapfile -t real < <(apt-cache "${apt_options[@]}" show --no-all-versions "${wanted[@]}" 2>/dev/null |
    sed -n 's/^Package: //p' | sort -u)
[ ${#real[@]} -gt 0 ] || die "apt has no candidate for any of: ${packages[*]}"
(cd "$work/debs" && apt-get "${apt_options[@]}" -qq download "${real[@]}") ||
    die "apt-get download failed; is a Debian mirror reachable?"

root=$work/root
# Debian's merged /usr: the packages still carry paths below /bin and /lib.
mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
for deb in "$work"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --no-same-owner --keep-directory-symlink -C "$root"
done
# What the packages' own scripts would have done, as far as programs need it.
[ -e "$root/usr/bin/sh" ] || ln -s dash "$root/usr/bin/sh"
[ -e "$root/usr/bin/awk" ] || ln -s mawk "$root/usr/bin/awk"
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
mkdir -p "$root"/{dev,proc,sys,run,tmp,root,home,mnt,etc}
chmod 1777 "$root/tmp"
rm -rf "$root"/usr/share/{doc,man,info,locale,lintian}/*

blobs=$work/layout/blobs/sha256
mkdir -p "$blobs"
put() { # puts a file among the blobs and prints its digest
    local digest
    digest=$(sha256sum "$1" | cut -d' ' -f1)
    mv "$1" "$blobs/$digest"
    printf '%s' "$digest"
}
tar -c --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$root" . > "$work/layer.tar"
diff_id=$(sha256sum "$work/layer.tar" | cut -d' ' -f1)
gzip -n -4 "$work/layer.tar"
layer_size=$(stat -c %s "$work/layer.tar.gz")
layer=$(put "$work/layer.tar.gz")

case $(dpkg --print-architecture) in
    amd64) arch=amd64 ;;
    arm64) arch=arm64 ;;
    *) die "images are made on amd64 and arm64, not on $(dpkg --print-architecture)" ;;
esac
printf '{"architecture":"%s","os":"linux","config":{"Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],"Cmd":["bash"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$arch" "$diff_id" > "$work/config"
config_size=$(stat -c %s "$work/config")
config=$(put "$work/config")
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"sha256:%s","size":%s}]}' \
    "$config" "$config_size" "$layer" "$layer_size" > "$work/manifest"
manifest_size=$(stat -c %s "$work/manifest")
manifest=$(put "$work/manifest")
printf '{"imageLayoutVersion":"1.0.0"}' > "$work/layout/oci-layout"
printf '{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:%s","size":%s,"annotations":{"org.opencontainers.image.ref.name":"latest"}}]}' \
    "$manifest" "$manifest_size" > "$work/layout/index.json"

mkdir -p "$(dirname "$layout")"
mv "$work/layout" "$layout"
printf 'debian-image: %s: %s packages, %s MiB\n' "$layout" "${#real[@]}" "$(du -sm "$layout" | cut -f1)"
