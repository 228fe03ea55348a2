# The emulated machine's root, kept in target/vm by what it is made of. Sourced by run.sh and by the scripts of two machines: they have
# said where they are ($here), where to work ($work), and how to complain (die, say).
# No password, nothing of this machine in it.
# shellcheck shell=bash disable=SC2154

# Makes the machine if it is not there; $root is its directory then.
made() { # KERNEL
    local kernel=$1 packages recipe
    packages=systemd,systemd-sysv,dbus,dbus-user-session,libpam-systemd,libnss-systemd,udev,kmod,linux-image-cloud-amd64
    packages+=,initramfs-tools,zstd,strace,procps,apparmor,busybox-static,e2fsprogs,umoci,podman,netavark,uidmap,iproute2
    packages+=,docker-registry
    recipe=$(cat "$here/machine.sh" <(echo "$packages") | sha256sum | cut -c1-16)
    root=$work/$kernel-$recipe
    [ ! -e "$root/done" ] || return 0
    say "making the machine: Debian 12, kernel $kernel"
    rm -rf "$work/$kernel"-*
    mkdir -p "$root"
    "$here/machine.sh" "$root" "$kernel" "$packages" > "$work/machine.log" 2>&1 ||
        die "$work/machine.log says why not; its end: $(tail -3 "$work/machine.log")"
    touch "$root/done"
}
