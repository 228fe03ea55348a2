# Two emulated machines, head and n1, on a network of their own, whose disks keep what was flushed. Sourced by join.sh, reboot.sh,
# durability.sh and image-durability.sh, which boot one or both and have said where they are ($here); $programs is a directory with
# berth and berth-step, or nothing; $memory is how many MiB a machine has; $reboots is yes where a machine that reboots comes up again,
# and its emulator does not end.
# shellcheck shell=bash disable=SC2154

die() { printf '%s: error: %s\n' "$0" "$*" >&2; exit 1; }
say() { printf '== %s (%s s)\n' "$*" "$SECONDS"; }

[ "$(id -u)" -eq 0 ] || die "it makes a Debian root directory, which needs root: run it as root"
[ "$(uname -m)" = x86_64 ] || die "the emulated machines run programs of x86-64, and this one has others"
lacking=()
while read -r program package; do
    command -v "$program" > /dev/null || lacking+=("$package")
done <<< "debootstrap debootstrap
qemu-system-x86_64 qemu-system-x86
qemu-img qemu-utils
mke2fs e2fsprogs
strip binutils"
[ ${#lacking[@]} -eq 0 ] || die "packages are missing: apt-get install --no-install-recommends ${lacking[*]}"

berth=${programs:-target/debug}/berth step=${programs:-target/debug/static}/berth-step
[ -x "$berth" ] && [ -x "$step" ] || die "there is no $berth or no $step: cargo xtask build --debug, or name --programs"

work=target/vm pair=target/vm/pair
mkdir -p $work
exec 9> $work/lock
flock -n 9 || die "another run has the machines in $work"
# shellcheck source=tests/vm/made.sh
. "$here/made.sh"
made stable

declare -A pid=() into=() out_of=()
# Ends the machines, by the numbers that they were started with.
end_pair() {
    local name
    for name in "${!pid[@]}"; do
        kill_machine "$name"
    done
}
trap end_pair EXIT

# Makes both machines anew: nothing of an earlier run is on their disks.
new_pair() {
    local data=$pair/data name
    rm -rf $pair
    mkdir -p $data/bin
    cp "$berth" "$step" $data/bin
    strip $data/bin/berth $data/bin/berth-step
    cp "$here/shell.sh" $data/guest.sh
    chmod -R a+rX $data
    mke2fs -q -t ext4 -d $data -E root_owner=0:0 $pair/data.img "$(($(du -sm $data | cut -f1) + 40))M"
    for name in head n1; do
        # qcow2 forgets what was not flushed when its qemu is killed: where its new clusters are is in qemu's memory.
        qemu-img create -q -f qcow2 -F raw -b "$(realpath "$root/root.img")" $pair/$name.qcow2
        mkfifo $pair/$name.shell.in $pair/$name.shell.out
        : > $pair/$name.told
    done
}

# Starts machines, one beside the other, and waits for their shells.
boot() { # NAME...
    local name
    for name in "$@"; do
        start_machine "$name"
    done
    for name in "$@"; do
        await_shell "$name"
    done
}

# Waits for the shell of a machine that comes up.
await_shell() { # NAME
    local name=$1 line
    while read -r -t 400 -u "${out_of[$name]}" line; do
        [[ $line != *ready* ]] || return 0
        kill -0 "${pid[$name]}" 2> /dev/null || break
    done
    die "$name does not come up; $pair/$name.console is its console, $pair/$name.qemu has what qemu says"
}

# What it writes to its third serial line is kept behind what it wrote in earlier boots.
start_machine() { # NAME
    local name=$1 peer=n1 address=1 at_reboot=shutdown
    [ "$name" = head ] || peer=head address=2
    [ "${reboots:-no}" = no ] || at_reboot=reset
    exec {into[$name]}<>$pair/$name.shell.in {out_of[$name]}<>$pair/$name.shell.out
    touch $pair/$name.told
    qemu-system-x86_64 \
        -accel tcg,thread=single,tb-size=128 -cpu qemu64,-cx16,-svm -smp 2 -m "${memory:-448}" -nodefaults -action "reboot=$at_reboot" -display none \
        -kernel "$root/vmlinuz" -initrd "$root/initrd" \
        -append "root=/dev/vda rw console=ttyS0 panic=-1 net.ifnames=0 systemd.show_status=0 systemd.hostname=$name systemd.default_timeout_start_sec=300s berth.address=$address" \
        -drive "file=$pair/$name.qcow2,format=qcow2,if=virtio,cache=writeback" \
        -drive "file=$pair/data.img,format=raw,if=virtio,readonly=on" \
        -netdev "dgram,id=net,local.type=unix,local.path=$pair/$name.net,remote.type=unix,remote.path=$pair/$peer.net" \
        -device "virtio-net-pci,netdev=net,mac=52:54:00:00:00:0$address,romfile=" \
        -chardev "file,id=console,path=$pair/$name.console,append=on" -serial chardev:console \
        -chardev "pipe,id=shell,path=$pair/$name.shell" -serial chardev:shell \
        -chardev "file,id=told,path=$pair/$name.told,append=on" -serial chardev:told \
        < /dev/null > $pair/$name.qemu 2>&1 9>&- &
    pid[$name]=$!
}

# The power goes: nobody in the machine hears of it.
kill_machine() { # NAME
    local name=$1
    kill -9 "${pid[$name]}"
    # It ended by the signal.
    wait "${pid[$name]}" 2> /dev/null || true
    unset "pid[$name]"
    exec {into[$name]}>&- {out_of[$name]}>&-
}

# Runs a command in a machine as root, in a login session; its output and its exit status are the function's.
on() { # NAME COMMAND [SECONDS]
    local name=$1 limit=${3:-180} id=$RANDOM$RANDOM line of code text
    printf '%s %s %s\n' $id "$limit" "$(printf %s "$2" | base64 -w0)" >&"${into[$name]}"
    while read -r -t $((limit + 120)) -u "${out_of[$name]}" line; do
        read -r of code text <<< "${line%$'\r'}"
        [ "$of" = $id ] || continue
        printf %s "$text" | base64 -d
        return "$code"
    done
    die "$name does not answer: $2"
}

# The same, which must succeed.
must() { # NAME COMMAND [SECONDS]
    local text
    text=$(on "$@" 2>&1) || die "on $1: $2: $text"
    [ -z "$text" ] || printf '%s\n' "$text"
}

# As a user, in a login session.
as() { printf 'su -l %s -c %q < /dev/null' "$1" "$2"; }

# Until a command succeeds.
until_good() { # SECONDS NAME COMMAND
    local end=$((SECONDS + $1))
    until on "$2" "$3" > $pair/last 2>&1; do
        [ $SECONDS -lt $end ] || die "on $2, not in time: $3: $(cat $pair/last)"
        sleep 1
    done
}

# Writes a program into a machine: nothing of it may lie in the page cache alone when it is used after a boot.
put() { # NAME FILE TEXT
    must "$1" "printf %s $(printf %s "$3" | base64 -w0) | base64 -d > $2 && chmod 755 $2 && sync -f $2"
}

# What nobody flushes, to see that it is lost: tells each line on the third serial line as it writes it.
lines='#!/bin/bash
for ((i = 1; ; i++)); do
    echo $i >> /srv/unflushed
    echo "line $i"
    sleep 0.2
done'
lost_lines=0

# After the boot: counts the cut if it took lines. What was told before it is in NAME.then.
look_for_lines() { # NAME
    local there told
    there=$(must "$1" 'tail -1 /srv/unflushed 2> /dev/null | tr -dc 0-9') # its length can be there without what was in it
    told=$(sed -n 's/^line \([0-9]*\).*/\1/p' $pair/"$1".then | tail -1)
    printf 'of %s lines that nobody flushed, %s are there\n' "$told" "${there:-0}"
    [ "${there:-0}" = "$told" ] || lost_lines=$((lost_lines + 1))
    must "$1" 'rm -f /srv/unflushed'
}
