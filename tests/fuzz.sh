#!/usr/bin/env bash
# Runs every fuzz target of the project, each for some seconds (60 unless said otherwise), two at a time.
# usage: tests/fuzz.sh [SECONDS [TARGET…]]
# Needs cargo-fuzz (cargo install cargo-fuzz) and a C++ compiler; what reads images begins with real files, where there are tar,
# squashfs-tools, siftool, umoci, skopeo and jq to make them. What a target finds is kept in its artifacts directory; what it learned, in its
# corpus directory.
set -euo pipefail
cd "$(dirname "$0")/.."

die() { printf 'tests/fuzz.sh: error: %s\n' "$*" >&2; exit 1; }

seconds=${1-60}
case "$seconds" in
    "" | *[!0-9]*) die "$seconds is no number of seconds; usage: tests/fuzz.sh [SECONDS [TARGET…]]" ;;
esac
[ $# -eq 0 ] || shift
command -v cargo-fuzz >/dev/null || die "cargo-fuzz is missing: cargo install cargo-fuzz"
# The sanitiser's flags are not in stable releases of the compiler.
export RUSTC_BOOTSTRAP=1

has() { command -v "$1" >/dev/null; }
# seed TARGET NAME: an input to begin with
seed() { mkdir -p "$1" && cat > "$1/$2"; }
# As libfuzzer-sys takes bytes for a Vec<u8>: each byte has one in front that says that it follows.
each() { perl -0777 -pe 's/(.)/\x01$1/gs'; printf '\0'; }
# typed TYPE: bytes for the target of manifests, which are a text and a document; the length of the text comes last.
typed() { printf %s "$1"; cat; printf '%300s\0'"\\x$(printf %02x ${#1})" ''; }

# Makes the inputs that targets of `images` begin with, a directory for each target. The other targets' are no files, or of a form of our
# own.
make_seeds() ( # DIRECTORY
    rm -rf "$1"
    mkdir -p "$1/made/tree/dir"
    cd "$1"
    made=made tree=made/tree
    echo content > $tree/file
    ln $tree/file $tree/dir/hard
    ln -s ../file $tree/dir/link
    mkfifo $tree/pipe
    : > "$tree/$(printf 'n%.0s' {1..150})"
    truncate -s 32K $tree/sparse
    echo end >> $tree/sparse
    ! has setfattr || setfattr -n user.name -v value $tree/file 2>/dev/null || true # not every filesystem has them

    tar -C $tree -b1 --format=ustar -c dir file pipe | seed archive ustar
    for format in oldgnu gnu; do tar -C $tree -b1 --format=$format --sparse -c . | seed archive $format; done
    for version in 0.0 0.1 1.0; do
        tar -C $tree -b1 --format=posix --xattrs --sparse --sparse-version=$version -c . | seed archive posix-$version
    done
    if has mksquashfs; then
        # The first byte tells the target which compressor it is, and how large blocks are: 4 KiB.
        for way in 'gzip \x00' 'lzo \x48' 'xz \x87' 'zstd \xc6'; do
            read -r name byte <<< "$way"
            mksquashfs $tree $made/$name -comp "$name" -b 4096 -nopad -noappend -no-progress -quiet > /dev/null || continue
            { printf '%b' "$byte"; cat $made/"$name"; } | seed squashfs "$name"
        done
    fi
    if has siftool && [ -e $made/gzip ]; then
        siftool new $made/sif > /dev/null
        siftool add $made/sif $made/gzip --datatype 4 --parttype 2 --partfs 1 --partarch 2 --groupid 1 > /dev/null
        # The target has a few descriptors, right behind the head; a real file has room for many, farther on.
        seed sif one < $made/sif
        printf '\x01' | dd of=sif/one bs=1 seek=88 conv=notrunc status=none
        dd if=$made/sif of=sif/one bs=1 skip=4096 seek=128 count=585 conv=notrunc status=none
    fi
    if has umoci && has jq; then
        rootless=()
        [ "$(id -u)" -eq 0 ] || rootless=(--rootless)
        umoci --log=error init --layout $made/layout
        umoci --log=error new --image $made/layout:seed
        umoci --log=error insert "${rootless[@]}" --image $made/layout:seed $tree/dir /dir
        blobs=$made/layout/blobs/sha256
        manifest=$blobs/$(jq -r '.manifests[0].digest' $made/layout/index.json | cut -d: -f2)
        config=$blobs/$(jq -r .config.digest "$manifest" | cut -d: -f2)
        seed config seed < "$config"
        for kind in manifest index; do
            document=$manifest
            [ $kind = manifest ] || document=$made/layout/index.json
            typed "" < "$document" | seed manifest $kind
            typed application/vnd.oci.image.$kind.v1+json < "$document" | seed manifest $kind-typed
        done
        if has skopeo; then
            skopeo copy --quiet oci:$made/layout:seed docker-archive:$made/saved:registry.test/seed:1
            tar -xOf $made/saved manifest.json > $made/manifest.json
            # What the manifest names, the target calls by a letter each.
            {
                printf '\x01'
                jq -c '.[0].Config = "c" | .[0].Layers = ["l"]' $made/manifest.json | each
                printf '\x01'
                tar -xOf $made/saved "$(jq -r '.[0].Config' $made/manifest.json)" | each
                each < archive/ustar
            } | seed docker saved
        fi
    fi
    number=0
    for text in debian debian:12 docker.io/library/debian:12 "localhost:5000/team/app@sha256:$(printf '0%.0s' {1..64})" \
        alice@registry.test#team/app:1 docker://registry.test/a/b:c oci:/srv/layout:tag docker-archive:/srv/saved.tar \
        containers-storage:debian:12 docker-daemon:debian:12 /srv/image.sqsh ./image.sif; do
        number=$((number + 1))
        printf %s "$text" | seed reference $number
    done
    printf %s 'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:library/debian:pull"' |
        seed challenge bearer
    printf %s 'Basic realm="Registry", charset="UTF-8"' | seed challenge basic
    rm -rf $made
)

wanted=" $* "
failed=()
for package in model images rpc agent; do
    (cd $package && cargo fuzz build)
    mapfile -t targets < <(cd $package && cargo fuzz list)
    run=()
    for target in "${targets[@]}"; do
        [ "$wanted" = "  " ] || [[ $wanted == *" $target "* ]] || continue
        run+=("$target")
    done
    [ $package != images ] || [ ${#run[@]} -eq 0 ] || make_seeds images/fuzz/target/seeds
    for ((at = 0; at < ${#run[@]}; at += 2)); do
        pids=()
        for target in "${run[@]:at:2}"; do
            log=$package/fuzz/target/$target.log
            corpora=("fuzz/corpus/$target")
            mkdir -p "$package/${corpora[0]}"
            # What is learned goes to the first.
            [ ! -d "$package/fuzz/target/seeds/$target" ] || corpora+=("fuzz/target/seeds/$target")
            # A thread that is just ending looks like a leak.
            (cd $package && cargo fuzz run "$target" "${corpora[@]}" -- -detect_leaks=0 -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 -print_final_stats=1) > "$log" 2>&1 &
            pids+=("$!:$target:$log")
        done
        for entry in "${pids[@]}"; do
            IFS=: read -r pid target log <<< "$entry"
            if wait "$pid"; then
                printf '%-20s %s runs, no finding\n' "$package/$target" "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")"
            else
                printf '%-20s FOUND SOMETHING; the end of %s:\n' "$package/$target" "$log"
                tail -n 25 "$log"
                failed+=("$package/$target")
            fi
        done
    done
done
[ ${#failed[@]} -eq 0 ] || die "${failed[*]} found something"
