#!/usr/bin/env bash
# Makes the emulated machine's disk, kernel and initial ramdisk.
# usage: tests/vm/machine.sh DIRECTORY stable|backports PACKAGES
set -euo pipefail
out=$(realpath "$1") kernel=$2 packages=$3
root=$out/root

debootstrap --variant=minbase --include="$packages" bookworm "$root"
in_root() { DEBIAN_FRONTEND=noninteractive chroot "$root" "$@"; }

# Only what this machine's disk needs: an initial ramdisk of every module takes long to unpack.
printf 'virtio_pci\nvirtio_blk\next4\n' > "$root/etc/initramfs-tools/modules"
sed -i 's/^MODULES=.*/MODULES=list/' "$root/etc/initramfs-tools/initramfs.conf"
if [ "$kernel" = backports ]; then
    sed -E 's/ bookworm / bookworm-backports /' "$root/etc/apt/sources.list" | head -1 > "$root/etc/apt/sources.list.d/backports.list"
    in_root apt-get update
    in_root apt-get purge -y 'linux-image-6*'
    in_root apt-get install -y --no-install-recommends -t bookworm-backports linux-image-cloud-amd64
fi
in_root update-initramfs -u -k all
cp "$root"/boot/vmlinuz-* "$out/vmlinuz"
cp "$root"/boot/initrd.img-* "$out/initrd"

# Nothing waits for a network, a login or a clock.
in_root systemctl mask getty@tty1.service serial-getty@ttyS0.service serial-getty@ttyS1.service systemd-timesyncd.service \
    systemd-networkd.service systemd-resolved.service apt-daily.timer apt-daily-upgrade.timer fstrim.timer e2scrub_all.timer \
    dpkg-db-backup.timer docker-registry.service systemd-update-utmp.service systemd-journal-flush.service systemd-pstore.service
echo berth-vm > "$root/etc/hostname"
printf '127.0.0.1 localhost berth-vm\n' > "$root/etc/hosts"
printf '/dev/vda / ext4 rw,noatime 0 0\n/dev/vdb /data ext4 ro 0 0\n' > "$root/etc/fstab"
mkdir "$root/data"
for user in ann ben; do
    in_root useradd -m -s /bin/bash $user
    mkdir -p "$root/var/lib/systemd/linger"
    touch "$root/var/lib/systemd/linger/$user"
done
# Ben's user manager has all controllers; Ann's has those that Debian gives.
mkdir -p "$root/etc/systemd/system/user@1001.service.d"
printf '[Service]\nDelegate=cpu cpuset io memory pids\n' > "$root/etc/systemd/system/user@1001.service.d/delegate.conf"

cat > "$root/etc/systemd/system/berth-cases.service" <<'UNIT'
[Unit]
Description=The cases
After=multi-user.target dbus.service systemd-logind.service
RequiresMountsFor=/data

[Service]
Type=oneshot
ExecStart=/bin/bash /data/guest.sh
TimeoutStartSec=infinity

[Install]
WantedBy=multi-user.target
UNIT
in_root systemctl set-default multi-user.target
in_root systemctl enable berth-cases.service

# A small image as an OCI layout, of two layers.
layout=/srv/image
in_root bash -euc "
    umoci init --layout $layout
    umoci new --image $layout:latest
    umoci unpack --image $layout:latest /tmp/bundle
    cd /tmp/bundle/rootfs
    mkdir -p bin etc tmp root proc sys dev data
    chmod 1777 tmp
    cp /bin/busybox bin
    for applet in \$(/bin/busybox --list); do [ \$applet = busybox ] || ln -s busybox bin/\$applet; done
    printf 'root:x:0:0:root:/root:/bin/sh\n' > etc/passwd
    printf 'root:x:0:\n' > etc/group
    echo lower > data/replaced
    echo gone > data/gone
    cp bin/busybox data/setuid
    chmod 4755 data/setuid
    umoci repack --refresh-bundle --image $layout:latest /tmp/bundle
    echo upper > data/replaced
    rm data/gone
    umoci repack --refresh-bundle --image $layout:latest /tmp/bundle
    umoci config --image $layout:latest --config.cmd /bin/sh --config.env PATH=/bin
    rm -rf /tmp/bundle
    chmod -R a+rX /srv
"
rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/doc "$root"/usr/share/locale
mke2fs -q -t ext4 -d "$root" "$out/root.img" 3G
rm -rf "$root"
