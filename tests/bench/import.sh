# What it costs to bring an image of 1 GB from a registry on the loopback to a root that can be started: ours in both forms of
# layers, beside podman, buildah, skopeo with umoci, enroot, and curl, gzip and tar, which verify and keep nothing. Sourced by run.sh.
#
# Cold means an empty store; the registry's files are in the page cache. Each run has a directory of its own, and nothing is removed
# before the end: ext4 passes over inodes that were freed in the last minute one by one, which would be measured otherwise. What
# earlier runs wrote is on the disk before the clock starts, and no longer in the page cache: after some 20 GB that is full, and
# whoever comes later pays for each page that has to be freed. It takes some 8 GB of /tmp a round.

costs=()
# cost NAME COMMANDS [BEFORE]: commands that leave all they make in $here, an empty directory; BEFORE is not measured
cost() {
    mkdir "$work/$1"
    {
        printf '#!/bin/sh\nset -e\nsync\n[ ! -e %s ] || bench-alternate forget "$(cat %s)" 2> /dev/null || true\n' "$work/here" "$work/here"
        printf 'here=$(mktemp -d %s/XXXXXX)\nchmod 755 "$here"\necho "$here" | tee %s > %s\n%s\nsync\n' "$work/$1" "$work/here" "$work/$1.here" "${3-}"
    } > "$work/$1.before"
    printf '#!/bin/sh\nset -e\nread -r here < %s\n%s\n' "$work/$1.here" "$2" > "$work/$1.cost"
    chmod +x "$work/$1.before" "$work/$1.cost"
    costs+=("$1" "$work/$1.before" "$work/$1.cost")
}

start_registry() {
    has docker-registry && has skopeo || return 1
    cat > "$work/registry.yml" <<YML
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: '127.0.0.1:$port'}
YML
    docker-registry serve "$work/registry.yml" > "$work/registry.log" 2>&1 &
    pids+=($!)
    for _ in $(seq 100); do curl -s -o /dev/null "http://127.0.0.1:$port/v2/" && return 0; sleep 0.1; done
    return 1
}

# Serves what the registry has a second time, with a certificate of an authority in $work/tls/ca.pem; says in `proven` where.
start_proven() {
    local dir=$work/tls new="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
    proven=127.0.0.1:$((port + 1))
    has openssl && mkdir "$dir" || return 1
    printf 'subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n' > "$dir/names"
    {
        openssl req -x509 $new -days 2 -subj /CN=authority -keyout "$dir/ca.key" -out "$dir/ca.pem" &&
            openssl req $new -subj /CN=registry -keyout "$dir/key.pem" -out "$dir/request.pem" &&
            openssl x509 -req -days 2 -CAcreateserial -in "$dir/request.pem" -CA "$dir/ca.pem" -CAkey "$dir/ca.key" \
                -extfile "$dir/names" -out "$dir/cert.pem"
    } 2> "$dir/log" || return 1
    cat > "$dir/registry.yml" <<YML
version: 0.1
log: {level: error}
storage: {filesystem: {rootdirectory: $work/registry}}
http: {addr: '$proven', tls: {certificate: $dir/cert.pem, key: $dir/key.pem}}
YML
    docker-registry serve "$dir/registry.yml" > "$dir/log" 2>&1 &
    pids+=($!)
    for _ in $(seq 100); do curl -s --cacert "$dir/ca.pem" -o /dev/null "https://$proven/v2/" && return 0; sleep 0.1; done
    return 1
}

# tag_ms STATE: what another tag of the same layers and one more takes
tag_ms() {
    local begin=${EPOCHREALTIME/./}
    BERTH_STATE=$1 berth image pull --insecure "$where/large:2" > "$work/second" || return 1
    ms "$(since "$begin")"
}

# Puts the image where it is fetched from; says in `where`, and in `large`.
offer_large() {
    port=$(awk 'BEGIN { srand(); print 20000 + int(rand() * 20000) }')
    where=127.0.0.1:$port
    start_registry || return 1
    # Made once: compressing it takes two minutes.
    large=$PWD/target/test-cache/images/large-202
    [ -e "$large/index.json" ] || tests/bench/large.sh "$large" || die "cannot make the large image"
    skopeo copy --quiet --dest-tls-verify=false "oci:$large:latest" "docker://$where/large:1" || die "cannot push"
    skopeo copy --quiet --dest-tls-verify=false "oci:$large:next" "docker://$where/large:2" || die "cannot push"
}

imports() {
    note "import"
    if ! offer_large; then
        skip "image pull" "" "docker-registry and skopeo"
        return
    fi
    local forms=(directory) form name
    [ $am_root = no ] || forms+=(erofs)

    for form in "${forms[@]}"; do
        cost "berth-$form" "BERTH_STATE=\$here berth image pull --insecure $where/large:1" \
            "printf '[images]\nlayer_form = \"$form\"\n' > \$here/berth.toml"
    done
    ! has podman || cost podman "podman --root \$here/root --runroot \$here/run pull -q --tls-verify=false $where/large:1"
    ! has buildah || cost buildah "buildah --root \$here/root --runroot \$here/run pull -q --tls-verify=false $where/large:1"
    local unprivileged=
    [ $am_root = yes ] || unprivileged=--rootless
    ! has umoci || cost umoci "skopeo copy -q --src-tls-verify=false docker://$where/large:1 oci:\$here/l:1
umoci --log=error unpack $unprivileged --image \$here/l:1 \$here/b"
    if has enroot; then
        # It asks registries for docker's manifests alone.
        skopeo copy --quiet --format v2s2 --dest-tls-verify=false "oci:$large:latest" "docker://$where/large:docker" || die "cannot push"
        cost enroot "cd \$here
mkdir cache data run tmp
export ENROOT_CACHE_PATH=\$here/cache ENROOT_DATA_PATH=\$here/data ENROOT_RUNTIME_PATH=\$here/run ENROOT_TEMP_PATH=\$here/tmp ENROOT_ALLOW_HTTP=y
enroot import -o large.sqsh docker://$where#large:docker
enroot create -n large large.sqsh"
    fi
    # The least that moves these bytes.
    cost curl "cd \$here
curl -sf -H 'Accept: application/vnd.oci.image.manifest.v1+json' http://$where/v2/large/manifests/1 | jq -r '.layers[].digest' |
    xargs -P 8 -I % sh -c 'mkdir \$1 && curl -sf http://$where/v2/large/blobs/\$1 | gzip -dc | tar -x -C \$1' sh %"
    bench-alternate cost "$import_rounds" "${costs[@]}" > "$work/costs" || die "imports cannot be measured"

    local ours theirs peak
    for form in "${forms[@]}"; do
        ours=$(field "berth-$form" 2 "$work/costs")
        [ -n "$ours" ] || die "berth image pull fails"
        peak=$(($(field "berth-$form" 4 "$work/costs") / 1024))
        case $form in directory) set -- podman:0.8 buildah:0.8 umoci:0.5 ;; *) set -- podman:0.35 buildah:0.35 umoci:0.35 enroot:0.1 ;; esac
        against "import as $form, s" "$ours" seconds "$work/costs" "$@"
        below "import as $form, memory of all processes at their peak, MB" "$peak" 150
    done
    warm "${forms[@]}"
    [ $am_root = no ] || another_user "${forms[@]}"
    {
        printf '\n| import of %s MiB (compressed) | wall s | CPU s | peak MB |\n|---|---|---|---|\n' "$(du -sm "$large" | cut -f1)"
        while read -r name ours theirs peak; do
            printf '| %s | %s | %s | %s |\n' "$name" "$(seconds "$ours")" "$(seconds "$theirs")" "$((peak / 1024))"
        done < "$work/costs"
    } > "$work/cost-table"
}

# What is there is neither fetched nor unpacked again, and a large image starts as fast as a small one.
warm() {
    local form state image=$where/large:1 commands=(bare /bin/true) took
    [ -e "$work/small/index.json" ] || tests/images.sh busybox "$work/small" || die "cannot make the image"
    for form in "$@"; do
        read -r state < "$work/berth-$form.here"
        sync
        took=$(tag_ms "$state") || die "the second tag cannot be pulled: $(cat "$work/second")"
        below "a second tag with one layer more, as $form, ms" "$took" 200
        printf '#!/bin/sh\nexport BERTH_STATE=%s\nexec berth run --insecure "$@"\n' "$state" > "$work/run-$form"
        chmod +x "$work/run-$form"
        "$work/run-$form" "$work/small" true || die "berth run fails"
        commands+=("small-$form" "$work/run-$form $work/small true" "large-$form" "$work/run-$form $image true")
    done
    bench-alternate latency "$((rounds / 2))" "${commands[@]}" > "$work/warm" || die "starts cannot be measured"
    for form in "$@"; do
        below "berth run of 1 GB as $form, ms more than /bin/true" \
            "$(ms $(($(field "large-$form" 2 "$work/warm") - $(field bare 2 "$work/warm"))))" 20
        below "berth run of 1 GB as $form, ms more than of 2 MB" \
            "$(ms $(($(field "large-$form" 2 "$work/warm") - $(field "small-$form" 2 "$work/warm"))))" 20
    done
    has podman || return 0
    local here
    read -r here < "$work/podman.here"
    local podman="podman --root $here/root --runroot $here/run run --rm --network=none --cgroups=disabled --ulimit host $image true"
    if $podman 2>"$work/podman.err"; then
        bench-alternate latency "$((rounds / 2))" podman "$podman" berth "$work/run-directory $image true" > "$work/podman-start" &&
            row "berth run of 1 GB, median ms" "$(ms "$(field berth 2 "$work/podman-start")")" podman "$(ms "$(field podman 2 "$work/podman-start")")" 0.1
    else
        note "podman does not run here: $(tail -1 "$work/podman.err")"
    fi
}

lo_bytes() { awk '$1 == "lo:" { print $2 }' /proc/net/dev; }
as_user() { setpriv --reuid="$1" --regid="$1" --clear-groups env HOME=/ "${@:2}"; }

# On a node of a cluster what one user has is another's as soon as the registry says that they may have it, too: no layer comes again.
# The word of a registry without a certificate is anybody's, who would have to show that they have the bytes.
another_user() {
    local form state user begin took bytes what="an image that another user of the node has"
    # Accounts that every Debian has.
    if ! as_user games test -x "$(command -v berth)" 2>/dev/null || ! start_proven; then
        skip "$what, ms" "" "openssl, or users who can run $(command -v berth)"
        return
    fi
    for form in "$@"; do
        read -r state < "$work/berth-$form.here"
        printf 'certificate_authorities = ["%s"]\n' "$work/tls/ca.pem" >> "$state/berth.toml"
        BERTH_STATE=$state berth up --detach > "$work/another" 2>&1 || die "berth up fails: $(tail -1 "$work/another")"
        for user in daemon games; do
            bytes=$(lo_bytes) begin=${EPOCHREALTIME/./} took=
            BERTH_STATE=$state as_user $user berth image pull --node "$proven/large:1" > "$work/another" 2>&1 || break
            took=$(since "$begin") bytes=$(($(lo_bytes) - bytes))
        done
        printf '#!/bin/sh\nexport BERTH_STATE=%s HOME=/\nexec setpriv --reuid=games --regid=games --clear-groups "$@"\n' "$state" > "$work/games-$form"
        chmod +x "$work/games-$form"
        if [ -n "$took" ]; then
            bench-alternate latency "$((rounds / 2))" bare "$work/games-$form $work/bin/srun true" \
                image "$work/games-$form $work/bin/srun --container-image=$proven/large:1 true" > "$work/games" || took=
        fi
        BERTH_STATE=$state berth down > /dev/null 2>&1
        [ -n "$took" ] || die "$user cannot pull or start it: $(tail -1 "$work/another")"
        [ "$bytes" -lt 1000000 ] || die "$bytes bytes came for a user whose image was there"
        below "$what, as $form, ms" "$(ms "$took")" 200
        below "srun of it by the other user, as $form, ms more than without an image" \
            "$(ms $(($(field image 2 "$work/games") - $(field bare 2 "$work/games"))))" 20
    done
}
