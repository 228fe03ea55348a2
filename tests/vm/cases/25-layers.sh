# Layers of images in both forms: what is chosen by itself, and what happens when images are asked for.
state=/var/lib/berth-layers
export BERTH_STATE=$state

# Whether this kernel mounts images from their files.
mounts_files() {
    local major minor
    IFS=. read -r major minor _ < <(uname -r)
    [ "$major" -gt 6 ] || { [ "$major" -eq 6 ] && [ "$minor" -ge 12 ]; }
}

forms_of() { berth image inspect "$1" | grep -o '"form": *"[a-z]*"' | sort -u | grep -o '[a-z]*"$' | tr -d '"'; }

case_layers_as_images_where_the_kernel_mounts_them() {
    mkdir -p $state
    printf '[images]\nlayer_form = "erofs"\n[[node]]\nname = "ALL"\nmemory_reserved = 100\n' > $state/berth.toml
    if ! mounts_files; then
        fails as root "BERTH_STATE=$state berth up --detach"
        has "$said" "EROFS" 'layer_form = "auto"'
        # Whether a refused start has left anything to take down is not what is looked at here.
        as root "BERTH_STATE=$state berth down" || true
        sed -i s/erofs/auto/ $state/berth.toml
        as root "BERTH_STATE=$state berth up --detach"
        as ann "BERTH_STATE=$state srun --container-image=/srv/image true"
        same form directory "$(forms_of /srv/image)"
        has "$(berth doctor)" "layers of images" "directory"
        as root "BERTH_STATE=$state berth down"
        return
    fi
    as root "BERTH_STATE=$state berth up --detach"
    text=$(as ann "BERTH_STATE=$state srun --container-image=/srv/image sh -c 'id -u; cat /data/replaced; ls /data/gone 2>&1; echo x > /data/new; stat -c %u /data/new /bin/busybox'")
    has "$text" $'1000\nupper\n' "No such file" $'1000\n1000'
    as ann "BERTH_STATE=$state srun --container-image=/srv/image test ! -e /data/new"
    same form erofs "$(forms_of /srv/image)"
    none grep erofs /proc/mounts
    # By root's own start, which mounts the file itself.
    same out upper "$(berth run --quiet /srv/image cat /data/replaced)"
    # An agent that is killed takes no image from those who run.
    as ann "BERTH_STATE=$state srun --container-image=/srv/image sh -c 'sleep 15; cat /data/replaced'" > /run/late &
    within 60 pgrep -x sleep
    kill -9 "$(pid_of $state agent)"
    wait $!
    same "after the agent's end" upper "$(cat /run/late)"
    as root "BERTH_STATE=$state berth down"
    none grep erofs /proc/mounts
}
