#!/usr/bin/env bash
# Makes a Debian image as an OCI layout directory from Debian's own packages; needs no root and no container tool.
# usage: examples/debian-image.sh [--suite NAME] DIRECTORY [PACKAGE...]
#   --suite    another release of Debian than this machine's, like trixie, from the mirror that it has its own from
# apt chooses and fetches the packages, with its signatures checked. They are unpacked and recorded in dpkg's database, so that
# more can be installed in a container (name apt as a package for that); their scripts are not run: enough for programs, not
# for daemons.
set -euo pipefail

die() { printf 'debian-image: error: %s\n' "$*" >&2; exit 1; }

usage="examples/debian-image.sh [--suite NAME] DIRECTORY [PACKAGE...]"
suite=
if [ "${1-}" = --suite ]; then
    suite=${2-}
    [[ "$suite" =~ ^[a-z][a-z-]*$ ]] || die "--suite takes the name of a release, like trixie, not '$suite'"
    shift 2
fi
[ $# -ge 1 ] || die "name the directory to make: $usage"
case "$1" in -*) die "there is no option $1 here: $usage" ;; esac
layout=$1
shift
packages=(base-files base-passwd bash coreutils dash debianutils findutils grep gzip hostname libc-bin mawk sed tar "$@")
[ ! -e "$layout" ] || die "$layout exists; remove it or name another directory"
for tool in apt-get apt-cache dpkg dpkg-deb tar gzip md5sum sha256sum; do
    command -v "$tool" >/dev/null || die "$tool is missing; this script needs a Debian or Ubuntu machine with it"
done
arch=$(dpkg --print-architecture)
case $arch in
    amd64 | arm64) ;; # images call them so too
    *) die "images are made on amd64 and arm64, not on $arch" ;;
esac

work=$(mktemp -d "${TMPDIR:-/tmp}/debian-image.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/debs" "$work/root"

# Without package lists of the system's (a fresh container image has none), fetch our own: apt lets anyone do that.
apt_options=(-o APT::Sandbox::User=root -o Debug::NoLocking=1)
if [ -n "$suite" ]; then
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    [ -r $keys ] || die "$keys is missing: apt-get install debian-archive-keyring"
    mirror=$(apt-get "${apt_options[@]}" indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
        awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $3; exit }')
    printf 'deb [signed-by=%s] %s %s main\n' $keys "${mirror:-http://deb.debian.org/debian}" "$suite" > "$work/sources.list"
    apt_options+=(-o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=/dev/null)
fi
if [ -n "$suite" ] || ! apt-cache show coreutils >/dev/null 2>&1; then
    mkdir -p "$work/apt/lists/partial" "$work/apt/cache/archives/partial"
    apt_options+=(-o "Dir::State::lists=$work/apt/lists" -o "Dir::Cache=$work/apt/cache")
    apt-get "${apt_options[@]}" -qq update || die "apt-get update failed; is a Debian mirror reachable?"
fi

# As on a machine on which nothing is installed yet.
: > "$work/status"
mkdir "$work/debs/partial"
apt-get "${apt_options[@]}" -o "Dir::State::status=$work/status" -o "Dir::Cache::archives=$work/debs" --download-only \
    --no-install-recommends -qq -y install "${packages[@]}" > "$work/apt.log" 2>&1 ||
    die "apt cannot choose or fetch the packages: $(tail -3 "$work/apt.log")"

root=$work/root
# Debian's merged /usr: the packages still carry paths below /bin and /lib.
mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
for name in bin sbin lib lib64; do ln -s "usr/$name" "$root/$name"; done
database=$root/var/lib/dpkg
mkdir -p "$database"/{info,updates,triggers,alternatives}
printf '1\n' > "$database/info/format"
: > "$database/status"

# What dpkg would remember of a package: its fields, the files of its control archive, its configuration files and triggers.
record() { # CONTROL-DIRECTORY FILE-LIST
    local control=$1 name word file
    name=$(sed -n 's/^Package: *//p' "$control/control")
    ! grep -qx 'Multi-Arch: same' "$control/control" || name+=:$arch
    mv "$2" "$database/info/$name.list"
    {
        sed 's/^Package: .*/&\nStatus: install ok installed/' "$control/control"
        if [ -s "$control/conffiles" ]; then
            echo Conffiles:
            grep ^/ "$control/conffiles" | while read -r file; do
                printf ' %s %s\n' "$file" "$(md5sum < "$root$file" | cut -d' ' -f1)"
            done
        fi
        echo
    } >> "$database/status"
    if [ -s "$control/triggers" ]; then
        sed -n -E 's/^interest(-await|(-noawait))? +([^ ]+).*/\3 \2/p' "$control/triggers" | while read -r word file; do
            case $word in
                /*) printf '%s %s%s\n' "$word" "$name" "${file/-//}" >> "$database/triggers/File" ;;
                *) printf '%s%s\n' "$name" "${file/-//}" >> "$database/triggers/$word" ;;
            esac
        done
    fi
    rm "$control/control"
    for file in "$control"/*; do
        [ ! -e "$file" ] || mv "$file" "$database/info/$name.${file##*/}"
    done
}

count=0
for deb in "$work"/debs/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -xv --no-same-owner --keep-directory-symlink -C "$root" |
        sed 's,^\./,/,; s,/$,,; s,^$,/.,' > "$work/list"
    rm -rf "$work/control"
    dpkg-deb --control "$deb" "$work/control"
    record "$work/control" "$work/list"
    count=$((count + 1))
done
# What the packages' own scripts would have done, as far as programs need it.
[ -e "$root/usr/bin/sh" ] || ln -s dash "$root/usr/bin/sh"
[ -e "$root/usr/bin/awk" ] || ln -s mawk "$root/usr/bin/awk"
cp "$root/usr/share/base-passwd/passwd.master" "$root/etc/passwd"
cp "$root/usr/share/base-passwd/group.master" "$root/etc/group"
mkdir -p "$root"/{dev,proc,sys,run,tmp,root,home,mnt,etc}
chmod 1777 "$root/tmp"
# Where apt in a container finds more: where it is found here, as far as the image has the keys.
if [ -d "$root/etc/apt" ]; then
    apt-get "${apt_options[@]}" indextargets --format '$(ORIGIN) deb $(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
        sed -n -E 's/^(Debian|Ubuntu) (deb [^@]+)$/\2/p' | sort -u > "$root/etc/apt/sources.list"
fi
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
printf 'debian-image: %s: %s packages, %s MiB\n' "$layout" "$count" "$(du -sm "$layout" | cut -f1)"
