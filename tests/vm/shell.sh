#!/bin/bash
# Inside one of two emulated machines: what a machine has before anything of Berth runs (a name, a network, the programs), and
# a shell on its second serial line. A line is a number, seconds, and a command in base64; the answer the number, the
# exit status, and the output in base64.
set -u
exec < /dev/ttyS1 > /dev/ttyS1 2> /run/shell.errors
stty raw -echo
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root

read -r name < /proc/sys/kernel/hostname
address=$(sed -n 's/.*berth\.address=\([0-9]*\).*/\1/p' /proc/cmdline)
printf '127.0.0.1 localhost\n10.77.0.1 head\n10.77.0.2 n1\n' > /etc/hosts
echo "$name" > /etc/hostname
modprobe virtio_net
ip link set lo up
ip link set eth0 up
ip address replace "10.77.0.$address/24" dev eth0
if [ ! -x /usr/local/bin/berth ]; then
    cp /data/bin/berth /data/bin/berth-step /usr/local/bin
    berth install-links /usr/local/bin
    sync
fi
echo ready
while read -r id limit command; do
    output=$(timeout -k 5 "$limit" su -l root -c "$(printf %s "$command" | base64 -d)" 2>&1 < /dev/null | base64 -w0; exit "${PIPESTATUS[0]}")
    printf '%s %s %s\n' "$id" $? "$output"
done
