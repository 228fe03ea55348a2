# A network filesystem, really mounted: the kernel's NFS server serves a directory to the machine itself. No image store comes to be there.
# What exportfs and mountd would tell the kernel is written into its caches, so that no package is needed.
served=/srv/served
net=/srv/net
nfs=/proc/fs/nfsd
why="is on nfs4, which machines share"

case_begin_a_network_filesystem_is_mounted() {
    mkdir -p $served/ann $net
    chown ann: $served/ann
    modprobe nfsd
    modprobe nfsv4
    mountpoint -q $nfs || mount -t nfsd nfsd $nfs
    # Older versions than 4 need more daemons. For the grace time no file is opened: 90 seconds, if nobody says otherwise.
    echo -3 > $nfs/versions
    echo 10 > $nfs/nfsv4leasetime
    echo 10 > $nfs/nfsv4gracetime
    echo "tcp 2049" > $nfs/portlist
    # Of whom the directory is the whole tree (fsid=0), from any port, with root as root.
    echo "nfsd 127.0.0.1 2147483647 here" > /proc/net/rpc/auth.unix.ip/channel
    echo "here $served 2147483647 $((0x2000 | 0x400 | 0x2)) 65534 65534 0" > /proc/net/rpc/nfsd.export/channel
    echo "here 1 \\x00000000 2147483647 $served" > /proc/net/rpc/nfsd.fh/channel
    echo 1 > $nfs/threads
    mount -i -t nfs4 -o vers=4.2,addr=127.0.0.1,clientaddr=127.0.0.1 127.0.0.1:/ $net
    grep " $net .* - nfs4 " /proc/self/mountinfo
    echo written > $net/file # waits until the server opens files
    same "what is served" written "$(cat $served/file)"
}

case_an_image_store_that_is_configured_on_a_network_filesystem_is_refused() {
    state=/srv/on-disk
    mkdir -p $state
    printf '[images]\npath = "%s/images"\n' $net > $state/berth.toml
    reason="images.path: $net/images $why: name a directory on a local disk"
    fails berth --state $state config check
    has "$said" "$reason"
    fails berth --state $state doctor
    grep -E "^BAD +image store +$reason" <<< "$said"
    fails berth --state $state up --detach
    has "$said" "$reason"
    # Before anything was started or made.
    [ ! -e $state/run ] || fail "$(ls -R $state)"
    fails berth --state $state image pull /srv/image
    has "$said" "$reason"
    [ ! -e $net/images ] || fail "$(ls -R $net)"
}

case_an_image_store_below_a_state_directory_on_a_network_filesystem_is_refused() {
    fails berth --state $net/state config check
    has "$said" "image store $net/state/images" "$why" "images.path in berth.toml"
    fails berth --state $net/state doctor
    grep -E "^BAD +state directory +$net/state $why" <<< "$said"
    grep -E "^BAD +image store +$net/state/images $why" <<< "$said"
    fails berth --state $net/state image pull /srv/image
    has "$said" "image store $net/state/images" "$why" "images.path in berth.toml"
    fails berth --state $net/state up --detach
    has "$said" "image store $net/state/images" "$why" "images.path in berth.toml"
    berth --state $net/state down
    within 30 none_left
    [ ! -e $net/state/images ] || fail "$(ls -R $net)"
}

case_a_user_whose_home_is_on_a_network_filesystem_keeps_images_elsewhere() {
    fails as ann "BERTH_STATE=$net/ann berth run /srv/image true"
    has "$said" "image store $net/ann/images" "$why" "images.path in berth.toml"
    as ann "echo '[images]
path = \"/home/ann/images\"' > $net/ann/berth.toml"
    as ann "BERTH_STATE=$net/ann berth config check"
    same "what a container says" in "$(as ann "BERTH_STATE=$net/ann berth run --quiet /srv/image echo in")"
    [ ! -e $net/ann/images ] || fail "$(ls -R $net)"
    [ -d /home/ann/images/layers ] || fail "$(ls -R /home/ann)"
}

case_end_the_network_filesystem_goes() {
    umount $net
    echo 0 > $nfs/threads
    umount $nfs
    none grep -E 'nfs[4d]? ' /proc/mounts
}
