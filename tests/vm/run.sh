#!/usr/bin/env bash
# Runs the cases of tests/vm/cases in an emulated Debian 12: control groups v2 alone, systemd, kernel 6.1 (and a newer one).
# usage: tests/vm/run.sh [--kernel stable|backports] [--programs DIRECTORY] [CASE...]
#   --kernel    stable: Debian 12's own, 6.1; backports: the newest that Debian 12 offers [default: stable]
#   --programs  berth and berth-step to try [default: those of cargo xtask build --debug]
#   CASE        names of cases [default: all]
# Needs root and Debian 12's debootstrap, qemu-system-x86, e2fsprogs and binutils. The machine is kept in target/vm, so that only the
# first run fetches anything; logs are there too, one for each case.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
die() { printf 'tests/vm/run.sh: error: %s\n' "$*" >&2; exit 1; }
say() { printf '== %s (%s s)\n' "$*" "$SECONDS"; }

kernel=stable programs='' cases=()
while [ $# -gt 0 ]; do
    case $1 in
        --kernel | --programs)
            [ $# -ge 2 ] || die "$1 takes a value; the first lines of this script say which"
            printf -v "${1#--}" %s "$2"
            shift 2
            ;;
        -*) die "unknown option $1; the first lines of this script say what there is" ;;
        *) cases+=("$1") && shift ;;
    esac
done
[[ $kernel =~ ^(stable|backports)$ ]] || die "--kernel takes stable or backports, not '$kernel'"
known=$(sed -n 's/^case_\([a-z0-9_]*\)().*/\1/p' "$here"/cases/*.sh)
for name in "${cases[@]}"; do
    grep -qx -- "$name" <<< "$known" || die "no case is called $name; tests/vm/cases has them, each a function case_NAME"
done
[ "$(id -u)" -eq 0 ] || die "it makes a Debian root directory, which needs root: run it as root"
[ "$(uname -m)" = x86_64 ] || die "the emulated machine runs programs of x86-64, and this one has others"
lacking=()
while read -r program package; do
    command -v "$program" >/dev/null || lacking+=("$package")
done <<< "debootstrap debootstrap
qemu-system-x86_64 qemu-system-x86
mke2fs e2fsprogs
strip binutils"
[ ${#lacking[@]} -eq 0 ] || die "packages are missing: apt-get install --no-install-recommends ${lacking[*]}"

if [ -z "$programs" ]; then
    step=target/debug/static/berth-step
    [ -x target/debug/berth ] && [ -x $step ] || die "berth is not built: cargo xtask build --debug, or name --programs"
    berth=target/debug/berth
else
    berth=$programs/berth step=$programs/berth-step
    [ -x "$berth" ] && [ -x "$step" ] || die "$programs has no berth and berth-step"
fi

work=target/vm
mkdir -p $work
exec 9> $work/lock
flock -n 9 || die "another run has the machine in $work"

# shellcheck source=tests/vm/made.sh
. "$here/made.sh"
made "$kernel"

say "copying the programs and the cases in"
data=$work/data
rm -rf $data
mkdir -p $data/bin
cp "$berth" "$step" $data/bin
strip $data/bin/berth $data/bin/berth-step
cp -r "$here/guest.sh" "$here/cases" $data
printf '%s\n' "${cases[@]}" > $data/selected
chmod -R a+rX $data
mke2fs -q -t ext4 -d $data -E root_owner=0:0 $work/data.img "$(($(du -sm $data | cut -f1) + 40))M"
rm -f $work/results.img && truncate -s 64M $work/results.img

# One thread of this machine, however many processors the emulated one has. No cmpxchg16b: qemu 7.2 leaves wrong flags
# behind it, and kernel 6.12 stumbles over them. Each processor has half of the memory near it: two NUMA nodes.
say "booting"
rm -rf $work/logs && mkdir $work/logs
timeout --foreground "${BERTH_VM_LIMIT:-1500}" qemu-system-x86_64 \
    -accel tcg,thread=single -cpu qemu64,-cx16 -smp 2,sockets=2,cores=1,threads=1 -m 640 -nodefaults -no-reboot -display none \
    -object memory-backend-ram,id=near0,size=320M -object memory-backend-ram,id=near1,size=320M \
    -numa node,nodeid=0,cpus=0,memdev=near0 -numa node,nodeid=1,cpus=1,memdev=near1 \
    -kernel "$root/vmlinuz" -initrd "$root/initrd" \
    -append "root=/dev/vda rw console=ttyS0 panic=-1 systemd.show_status=0 systemd.default_timeout_start_sec=300s" \
    -drive "file=$root/root.img,format=raw,if=virtio,snapshot=on" \
    -drive "file=$work/data.img,format=raw,if=virtio,readonly=on" \
    -drive "file=$work/results.img,format=raw,if=virtio" \
    -serial "file:$work/logs/console" -serial stdio < /dev/null | tee $work/logs/summary || true # judged by its words

tar -xf $work/results.img -C $work/logs 2>/dev/null || die "the machine did not end by itself; $work/logs/console is its console"
verdict=$(tail -1 $work/logs/summary)
[[ $verdict =~ ^[0-9]+\ passed,\ ([0-9]+)\ failed$ ]] || die "the machine did not come to the end: $verdict"
say "logs: $work/logs"
[ "${BASH_REMATCH[1]}" -eq 0 ]
