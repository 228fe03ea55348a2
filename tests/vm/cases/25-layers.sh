# Layers that are images: mounted from their files, or by loop devices where the kernel takes no files.
state=/var/lib/berth-layers
export BERTH_STATE=$state

# Whether this kernel mounts images from their files.
mounts_files() {
    local major minor
    IFS=. read -r major minor _ < <(uname -r)
    [ "$major" -gt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -ge 12 ]; }
}

forms_of() { berth image inspect "$1" | grep -o '"form": *"[a-z]*"' | sort -u | grep -o '[a-z]*"$' | tr -d '"'; }

no_device_has_a_file() { ! grep -qs "" /sys/block/loop*/loop/backing_file; }

case_layers_are_images() {
    mkdir -p $state
    printf '[images]\nlayer_form = "erofs"\n[[node]]\nname = "ALL"\nmemory_reserved = 100\n' > $state/berth.toml
    as root "BERTH_STATE=$state berth up --detach"
    text=$(as ann "BERTH_STATE=$state srun --container-image=/srv/image sh -c 'id -u; cat /data/replaced; ls /data/gone 2>&1; echo x > /data/new; stat -c %u /data/new /bin/busybox'")
    has "$text" $'1000\nupper\n' "No such file" $'1000\n1000'
    as ann "BERTH_STATE=$state srun --container-image=/srv/image test ! -e /data/new"
    same form erofs "$(forms_of /srv/image)"
    none grep erofs /proc/mounts
    if mounts_files; then way="from its file"; else way="by a read-only loop device"; fi
    has "$(berth doctor)" "layers of images" "kept as EROFS images" "$way"
    same "devices in a container" "" "$(as ann "BERTH_STATE=$state srun --container-image=/srv/image sh -c 'ls /dev | grep loop'" || true)"
    # By root's own start, which mounts the file itself.
    same out upper "$(berth run --quiet /srv/image cat /data/replaced)"
    # An agent that is killed takes no image from those who run.
    as ann "BERTH_STATE=$state srun --container-image=/srv/image sh -c 'sleep 15; cat /data/replaced'" > /run/late &
    within 60 pgrep -x sleep
    kill -9 "$(pid_of $state agent)"
    wait $!
    same "after the agent's end" upper "$(cat /run/late)"
    as root "BERTH_STATE=$state berth up --detach"
    # Nor does a container whose processes are killed leave anything attached.
    as ann "BERTH_STATE=$state srun --container-image=/srv/image sleep 1000" > /run/killed 2>&1 &
    within 60 pgrep -f "^sleep 1000"
    pkill -9 -x berth-step
    pkill -9 -f "^sleep 1000" || true # its init may have ended it
    wait $! || true
    as root "BERTH_STATE=$state berth down"
    none grep erofs /proc/mounts
    within 30 no_device_has_a_file
}

# tower DIRECTORY LAYERS: an OCI layout of so many, each of which changes one file and has one of its own; the highest hides one
# of the lowest's.
tower() (
    blobs=$1/blobs/sha256 work=$(mktemp -d) layers='' ids=''
    mkdir -p "$blobs"
    cd "$work"
    mkdir -p 1/bin 1/t
    cp /bin/busybox 1/bin
    for applet in sh cat ls wc; do ln -s busybox 1/bin/$applet; done
    echo lowest > 1/t/gone
    for ((n = 2; n <= $2; n++)); do
        mkdir -p "$n/t"
        echo "$n" | tee "$n/t/same" > "$n/t/$n"
    done
    : > "$2/t/.wh.gone"
    for ((n = 1; n <= $2; n++)); do tar -cf "$n.tar" --owner=0 --group=0 -C "$n" .; done
    while read -r digest name; do
        layers+="${layers:+,}{\"mediaType\":\"application/vnd.oci.image.layer.v1.tar\",\"digest\":\"sha256:$digest\",\"size\":$(stat -c %s "$name")}"
        ids+="${ids:+,}\"sha256:$digest\""
        mv "$name" "$blobs/$digest"
    done < <(seq -f %g.tar 1 "$2" | xargs sha256sum)
    blob() { # MEDIA-TYPE: what is read becomes a blob, and its descriptor is printed
        local digest
        cat > blob
        digest=$(sha256sum < blob | cut -d' ' -f1)
        printf '{"mediaType":"%s","digest":"sha256:%s","size":%s}' "$1" "$digest" "$(stat -c %s blob)"
        mv blob "$blobs/$digest"
    }
    config=$(printf '{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"]},"rootfs":{"type":"layers","diff_ids":[%s]}}' "$ids" |
        blob application/vnd.oci.image.config.v1+json)
    manifest=$(printf '{"schemaVersion":2,"config":%s,"layers":[%s]}' "$config" "$layers" | blob application/vnd.oci.image.manifest.v1+json)
    printf '{"schemaVersion":2,"manifests":[%s]}' "$manifest" > "$1/index.json"
    printf '{"imageLayoutVersion":"1.0.0"}' > "$1/oci-layout"
    chmod -R a+rX "$1"
    rm -rf "$work"
)

# stands IMAGE LAYERS FORM
stands() {
    mkdir -p $state
    printf '[images]\nlayer_form = "%s"\n[[node]]\nname = "ALL"\nmemory_reserved = 100\n' "$3" > $state/berth.toml
    tower "$1" "$2"
    as root "BERTH_STATE=$state berth up --detach"
    same files "$2 $2"$'\n'"$2" "$(as ann "BERTH_STATE=$state srun --container-image=$1 sh -c 'echo \$(cat /t/same /t/$2); ls /t | wc -l'")"
    same form "$3" "$(forms_of "$1")"
    as root "BERTH_STATE=$state berth down"
    within 30 no_device_has_a_file
}

case_many_layers_are_images() { stands /srv/tower 60 erofs; }

case_more_layers_than_go_into_one_string() { stands /srv/higher 205 directory; }
