#!/usr/bin/env bash
# The power goes while images come and go. An emulated machine, whose cluster is root's, fetches, removes, prunes, damages and repairs images
# without an end, by a registry and from layouts, for root and for a user; those who fetch write down what they have. At a random moment
# its emulator is killed, and what was in the page cache is gone with it. After the boot: what was told to be there is listed, `berth
# image verify` finds nothing wrong with what is listed, every image can be fetched, a container of each sees what was put
# into it, and nothing else is in the store. Layers are EROFS images in one round, and directories in the next. Not part of tests/run.sh:
# it takes minutes.
# usage: tests/vm/image-durability.sh [--programs DIRECTORY] [--rounds N]
#   --programs  berth and berth-step to try [default: those of cargo xtask build --debug]
#   --rounds    how often the power goes [default: 5]
# Needs what tests/vm/run.sh needs, and qemu-utils. The console, and what was written down, are in target/vm/pair.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
programs='' rounds=5
while [ $# -gt 0 ]; do
    case $1 in
        --programs) programs=${2-} && shift ;;
        --rounds) rounds=${2-} && shift ;;
        *) printf 'image-durability.sh: error: unknown word %s; the first lines of this script say what there is\n' "$1" >&2 && exit 2 ;;
    esac
    shift
done
[[ $rounds =~ ^[1-9][0-9]*$ ]] || { echo 'image-durability.sh: error: --rounds takes a number' >&2; exit 2; }

memory=640
# shellcheck source=tests/vm/pair.sh
. "$here/pair.sh"
new_pair

store=/var/lib/berth/images
# Whose each image is, what it is called, and how it is built.
images='root /srv/images/one one
root /srv/images/two two
root localhost:5000/three:1 three
ann /srv/images/four four
ann localhost:5000/five:1 five
root /srv/images/six six'
# Told by a container's own programs, of the files that an image brings.
look='cd /data && find . ! -type d | sort | xargs stat -c "%n %f %s" && find . -type f | sort | xargs sha256sum'

make='#!/bin/bash
# Makes the images, and what a container of each has to see. usage: make LOOK IMAGE...
set -euo pipefail
umask 022
look=$1 && shift
mkdir -p /srv/made /srv/images /srv/content
cd /srv/made
few() { for ((n = 0; n < $2; n++)); do echo "$1 $n" > "$1/$n"; done; }
layer() { # NAME: of the directory of that name
    tar -cf "$1.tar" --owner=0 --group=0 -C "$1" .
    gzip -1nk "$1.tar"
    sha256sum < "$1.tar" | cut -d" " -f1 > "$1.id"
}
blob() { # MEDIA-TYPE FILE: a blob of the layout; its descriptor is printed
    local digest
    digest=$(sha256sum < "$2" | cut -d" " -f1)
    cp "$2" "$layout/blobs/sha256/$digest"
    printf "{\"mediaType\":\"%s\",\"digest\":\"sha256:%s\",\"size\":%s}" "$1" "$digest" "$(stat -c %s "$2")"
}
image() { # NAME LAYER...
    local layout=/srv/images/$1 name=$1 layers="" ids="" part
    shift
    mkdir -p "$layout/blobs/sha256" "whole-$name"
    for part in "$@"; do
        layers+="${layers:+,}$(blob application/vnd.oci.image.layer.v1.tar+gzip "$part.tar.gz")"
        ids+="${ids:+,}\"sha256:$(cat "$part.id")\""
        cp -a "$part/." "whole-$name"
    done
    printf "{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{\"Env\":[\"PATH=/bin\"]},\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[%s]}}" "$ids" > config
    printf "{\"schemaVersion\":2,\"config\":%s,\"layers\":[%s]}" "$(blob application/vnd.oci.image.config.v1+json config)" "$layers" > manifest
    printf "{\"schemaVersion\":2,\"manifests\":[%s]}" "$(blob application/vnd.oci.image.manifest.v1+json manifest)" > "$layout/index.json"
    printf "{\"imageLayoutVersion\":\"1.0.0\"}" > "$layout/oci-layout"
    rm "whole-$name"/data/{.wh.gone,gone}
    chroot "whole-$name" /bin/sh -c "$look" > "/srv/content/$name"
}
mkdir -p base/bin base/data/low common/data/common top/data
cp /bin/busybox base/bin
for applet in sh find sort xargs stat sha256sum cat; do ln -s busybox base/bin/$applet; done
few base/data/low 40
echo lower > base/data/replaced
echo gone > base/data/gone
few common/data/common 150
echo upper > top/data/replaced
: > top/data/.wh.gone
for name in base common top; do layer $name; done
for name in "$@"; do
    mkdir -p "own-$name/data/own"
    few "own-$name/data/own" 40
    head -c 1000000 /dev/urandom > "own-$name/data/own/blob"
    ln "own-$name/data/own/1" "own-$name/data/own/again"
    ln -s blob "own-$name/data/own/link"
    chmod 600 "own-$name/data/own/2"
    chmod 4755 "own-$name/data/own/3"
    layer "own-$name"
done
for name in "$@"; do
    case $name in
        two | four | six) image "$name" base "own-$name" top ;;
        *) image "$name" base common "own-$name" top ;;
    esac
done
mv own-six.id /srv/six.id
cd /
rm -rf /srv/made
chmod -R a+rX /srv/images'

# Both tell what they do on the serial line. Of what is not told whole nothing is expected.
fetcher='#!/bin/bash
# Fetches images and removes them without an end. usage: fetcher own|node IMAGE...
where=$1 said=/dev/shm/fetcher-$$
shift
[ $where = node ] && option=--node || option=""
declare -A has=()
while :; do
    image=$(shuf -n1 -e "$@")
    if [ -n "${has[$image]-}" ] && [ $((RANDOM % 3)) -gt 0 ]; then
        echo "without $image" # before: from now on it may be either way
        has[$image]=""
        # Whoever looks at what is in use holds it for a moment.
        berth image rm $option "$image" > $said 2>&1 || grep -q "is used by" $said || echo "failed rm $image: $(tr "\n" " " < $said)"
    elif digest=$(berth image pull -q $option "$image" 2> $said); then
        echo "have $image $digest"
        has[$image]=yes
    else
        echo "failed pull $image: $(tr "\n" " " < $said)"
    fi
done'
mender='#!/bin/bash
# Prunes; damages a layer of an image, and has it fetched again. usage: mender IMAGE DIFF-ID
said=/dev/shm/mender layer=/var/lib/berth/images/layers/sha256-$2
digest=$(berth image pull -q "$1") && echo "have $1 $digest"
while :; do
    for file in $layer/fs.erofs $layer/fs/data/own/blob; do
        [ ! -f $file ] || printf damaged | dd of=$file bs=1 seek=600000 conv=notrunc status=none
    done
    berth image verify --repair "$1" > $said 2>&1 || echo "failed repair $1: $(tr "\n" " " < $said)"
    berth image prune > $said 2>&1 || echo "failed prune: $(tr "\n" " " < $said)"
done'

met='#!/bin/bash
# What the power cut met: images that were being fetched, work of processes, layers that it may have torn; and whether the layer with this
# DIFF-ID is one of them.
cd /var/lib/berth/images
torn=0 its=whole
for layer in layers/*/; do
    [ ! -e "$layer" ] || [ -e "$layer/synced" ] || torn=$((torn + 1))
done
[ ! -e "layers/sha256-$1" ] || [ -e "layers/sha256-$1/synced" ] || its=torn
echo "$(ls images | grep -c "\.pending$") $(ls tmp | grep -vc "\.lock$") $torn $its"'
sees='#!/bin/bash
# Whether a container of an image sees what was put into it. usage: sees IMAGE NAME LOOK
su -l ann -c "srun --container-image=$1 sh -c $(printf %q "$3")" < /dev/null > /run/seen || exit 1
diff "/srv/content/$2" /run/seen | head -20
cmp -s "/srv/content/$2" /run/seen'
beyond='#!/bin/bash
# What is in the store and belongs to nothing that is listed, or is missing: a line each.
cd /var/lib/berth/images || exit 1
of() { grep -ho "\"$1\": *\"[^\"]*\"" images/*.json | grep -o "sha256:[0-9a-f]*" | sort -u; }
layers=$(ls layers | sed "s/-/:/" | sort)
find tmp -mindepth 1
find images -mindepth 1 ! -name "sha256-*.json" ! -name "sha256-*.grant-*" ! -name "sha256-*.signatures" ! -name "sha256-*.evidence"
find locks -name "fetch-*" -o -name "layer-*"
find layers -mindepth 1 -maxdepth 1 ! -exec test -e {}/synced ";" -print
comm -3 <(echo "$layers") <(of diff_id) | sed "s/^/layer /"
comm -3 <(ls blobs | sed "s/-/:/" | sort) <({ ls images | sed -n "s/^sha256-\(.*\)\.json$/sha256:\1/p"; of config_digest; } | sort -u) | sed "s/^/blob /"
# As much as they take, and a mebibyte for what is written down about them.
all=$(du -sk . | cut -f1) listed=$(cd layers && du -ck $(echo "$layers" | tr : -) | tail -1 | cut -f1)
[ $((all - listed)) -lt 1024 ] || echo "$all KiB are in the store, and $listed in the layers that are listed"'

# Before anything of Berth runs.
begin() {
    must head 'stty -F /dev/ttyS2 raw -echo; systemd-run -q --unit=registry docker-registry serve /etc/registry.yml'
    until_good 120 head 'busybox wget -qO- http://localhost:5000/v2/'
}
form_of_round() { [ $(($1 % 2)) = 1 ] && echo erofs || echo directory; }
up() { # ROUND
    must head "mkdir -p /var/lib/berth
        printf '[images]\nlayer_form = \"%s\"\ninsecure_registries = [\"localhost:5000\"]\n[[node]]\nname = \"ALL\"\nmemory_reserved = 100\n' \
            $(form_of_round "$1") > /var/lib/berth/berth.toml; sync -f /var/lib/berth/berth.toml; berth up --detach" 300 > /dev/null
}
load() { # UNIT USER PROGRAM...
    must head "systemd-run -q --unit=$1 --uid=$2 -p StandardOutput=file:/dev/ttyS2 ${*:3}"
}
of() { # USER: their images, with their names
    sed -n "s/^$1 //p" <<< "$images"
}
# What was told in this round before the power went.
told() { tail -n "+$((begun + 1))" $pair/head.then | tr -d '\r'; }

say "booting"
boot head
put head /srv/make "$make"
for name in fetcher mender met sees beyond lines; do
    put head /srv/$name "${!name}"
done
say "making the images"
must head "/srv/make '$look' $(cut -d' ' -f3 <<< "$images" | tr '\n' ' ')" 600
must head 'printf "version: 0.1\nstorage: {filesystem: {rootdirectory: /srv/registry}}\nhttp: {addr: \"127.0.0.1:5000\"}\n" > /etc/registry.yml'
begin
for name in three five; do
    must head "berth image pull -q --state /srv/state /srv/images/$name && berth image push -q --state /srv/state --insecure /srv/images/$name localhost:5000/$name:1" 300 > /dev/null
done
six=$(must head 'rm -rf /srv/state; sync; cat /srv/six.id')

round=0 mets=0
while [ $round -lt "$rounds" ]; do
    round=$((round + 1))
    up $round
    # All of them are made in this round's form.
    must head 'berth image prune --all --force' 300 > /dev/null
    begun=$(wc -l < $pair/head.told)
    say "round $round of $rounds: layers in form $(form_of_round $round), busy"
    load lines root /srv/lines
    load fetcher1 root "/srv/fetcher own /srv/images/one /srv/images/two localhost:5000/three:1"
    load fetcher2 ann "/srv/fetcher node /srv/images/four localhost:5000/five:1"
    load mender root "/srv/mender /srv/images/six $six"
    end=$((SECONDS + 900))
    until [ "$(tail -n "+$((begun + 1))" $pair/head.told | grep -c '^have ')" -ge 5 ]; do
        [ $SECONDS -lt $end ] || die "nothing is fetched: $(tail -3 $pair/head.told)"
        sleep 0.5
    done
    sleep $((RANDOM % 20)).$((RANDOM % 10))
    kill_machine head
    cp $pair/head.told $pair/head.then
    # Whole lines alone count.
    told | sed -n 's/^\(have [^ ]* sha256:[0-9a-f]\{64\}\)$/\1/p; s/^\(without [^ ]*\)$/\1 -/p' |
        awk '{ last[$2] = $1 == "have" ? $3 : "" } END { for (image in last) if (last[image]) print image, last[image] }' > $pair/had
    say "the power went: $(told | grep -c '^have ') fetched, $(wc -l < $pair/had) of them are there; booting"
    if told | grep '^failed '; then die "that failed before the power went"; fi
    boot head
    look_for_lines head
    found=$(must head "/srv/met $six")
    read -r pending work torn its <<< "$found"
    printf 'it met %s images on their way, %s directories of work and %s layers that were not on the disk\n' "$pending" "$work" "$torn"
    [ $((pending + work + torn)) = 0 ] || mets=$((mets + 1))
    begin
    up $round
    # What was told to be there is listed.
    for user in root ann; do
        [ $user = root ] && where='' || where=--node
        listed=$(must head "$(as $user "berth image ls $where --json")")
        while read -r image _; do
            digest=$(sed -n "s|^$image ||p" $pair/had)
            [ -z "$digest" ] || [[ $listed == *"$digest"* ]] || die "$user had $image, and it is gone"
        done <<< "$(of $user)"
    done
    # A layer that was being made anew is not taken for whole.
    say "what was there is there; looking at it, and fetching all"
    [ $its = whole ] || must head "/srv/sees /srv/images/six six '$look'" 300
    # Nothing is wrong with what is listed but what the mender did.
    if ! on head 'berth image verify' 600 > $pair/verified; then
        if grep -E '^(record|blob|layer) ' $pair/verified | grep -v "^layer sha256:$six "; then die "that is damaged: $(cat $pair/verified)"; fi
        printf 'the mender had not repaired what it damaged\n'
        must head 'berth image verify --repair' 600 > /dev/null
    fi
    while read -r user image name; do
        [ "$user" = root ] && where='' || where=--node
        must head "$(as "$user" "berth image pull -q $where $image")" 300 > /dev/null
        must head "/srv/sees $image $name '$look'" 300
    done <<< "$images"
    must head 'berth image verify' 600 | tail -1
    # As if it was not just now: what a process was writing is swept after ten minutes.
    must head "find $store -maxdepth 2 -name '.?*' -exec touch -d '1 hour ago' {} +; berth image prune; /srv/beyond" 300 > $pair/beyond
    sed -i '/ freed$/d' $pair/beyond
    [ ! -s $pair/beyond ] || die "that is in the store beside what is listed: $(cat $pair/beyond)"
    must head 'berth down' 300 > /dev/null
    until_good 60 head '! grep -s . /sys/block/loop*/loop/backing_file'
done
[ $lost_lines -gt 0 ] || die "all that nobody flushed is there: the power did not go"
[ $mets -gt 0 ] || die "no cut met an image on its way: run it with more --rounds"
say "good: $mets of $rounds cuts met images on their way"
