//! A `/dev` of a node's own, for tests of devices that this machine does not have.

/// Shell for a mount namespace of its own: `own_dev` makes the directory `$dev` with what every program needs, for device files to be
/// added, and `use_dev` puts it in the place of `/dev`, and an empty directory in that of `/sys/class`.
pub const OWN_DEV: &str = r#"
set -e
umask 022
mount --make-rprivate /
own_dev() {
    dev=$(mktemp -d /tmp/bt-dev-XXXXXX)
    mount -t tmpfs -o mode=755 bt "$dev"
    for name in null zero full random urandom tty; do
        touch "$dev/$name"; mount --bind "/dev/$name" "$dev/$name"
    done
    for name in pts shm mqueue; do
        [ -d "/dev/$name" ] || continue
        mkdir "$dev/$name"; mount --rbind "/dev/$name" "$dev/$name"
    done
    ln -s pts/ptmx "$dev/ptmx"; ln -s /proc/self/fd "$dev/fd"
}
use_dev() {
    mount --rbind "$dev" /dev
    umount -l "$dev"; rmdir "$dev"
    mount -t tmpfs -o mode=755 bt /sys/class
}
"#;
