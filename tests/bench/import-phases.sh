#!/usr/bin/env bash
# Where the processor time of an import goes: `berth image pull` of the benchmark's image by phase, in both forms of layers, from
# samples that perf takes of all its processes with the kernel's stack, and how long it waits for the disk, from strace. Needs root,
# perf, strace, docker-registry and skopeo. usage: tests/bench/import-phases.sh
set -euo pipefail
cd "$(dirname "$0")/../.."
. tests/bench/common.sh
. tests/bench/import.sh

[ "$(id -u)" -eq 0 ] || die "perf samples the kernel for root alone: run this as root"
for tool in perf strace docker-registry skopeo; do has $tool || die "$tool is missing; tests/packages.txt lists the packages"; done
[ -x target/release/berth ] || die "target/release/berth is missing: build it with 'cargo xtask build'"

work=$(mktemp -d /tmp/bt-phases.XXXXXX)
chmod 755 "$work"
pids=()
trap 'for pid in "${pids[@]}"; do kill "$pid"; done; rm -rf "$work"' EXIT
PATH=$PWD/target/release:$PATH
rate=997
offer_large

# fresh FORM: a state directory whose store has that form
fresh() {
    state=$work/$1-$RANDOM
    mkdir -p "$state"
    printf '[images]\nlayer_form = "%s"\n' "$1" > "$state/berth.toml"
    sync
}
pull() { BERTH_STATE=$state "$@" berth image pull --insecure "$where/large:1" > "$work/log" 2>&1 || die "berth image pull fails: $(tail -1 "$work/log")"; }

for form in directory erofs; do
    fresh $form
    pull perf record -q -g -F $rate -e cpu-clock -o "$work/$form.perf"
    # A sample's frames stand on lines of their own, the innermost first; an empty line ends it.
    perf script -i "$work/$form.perf" -F ip,sym 2>/dev/null | awk -v rate=$rate '
        function judge() {
            if (frames == "") return
            if (frames ~ /blake3|store::sum::/) at = "sum up the image that was written"
            else if (frames ~ /sha2|sha256|sha512/) at = "hash: the blob and the archive in it"
            else if (frames ~ /inflate|crc32|zlib|ZSTD_decompress|Huf|HUF_decompress/) at = "inflate"
            else if (frames ~ /fsync|syncfs|sync_inodes|sync_filesystem|do_sync_file_range/) at = "sync"
            else if (frames ~ /tcp_|inet_recvmsg|inet_sendmsg|unix_stream|sock_recvmsg|sock_sendmsg|__sys_recv|__sys_send/) at = "fetch: sockets"
            else if (frames ~ /openat|mkdirat|linkat|symlinkat|unlinkat|utimens|fchmod|fchown|setxattr|do_renameat|mknod/) at = "make files and directories"
            else if (frames ~ /vfs_write|ksys_write|pwrite|writev|fallocate|ftruncate|copy_file_range/) at = "write"
            else if (frames ~ /ZSTD_|FSE_|HIST_/) at = "compress what verifies the layer later"
            else if (frames ~ /page_fault|do_anonymous_page/) at = "memory that is touched first"
            else at = "the rest: reading the archive, moving bytes, scheduling"
            seconds[at] += 1 / rate
            all += 1 / rate
            frames = ""
        }
        NF == 0 { judge(); next }
        { frames = frames " " $2 }
        END {
            judge()
            for (at in seconds) printf "| %s | %.2f | %d%% |\n", at, seconds[at], 100 * seconds[at] / all
            printf "| all | %.2f | |\n", all > "/dev/stderr"
        }' 2> "$work/$form.all" | sort -t'|' -k3,3 -rn > "$work/$form.table"
    fresh $form
    pull strace -f -qq -T -e trace=syncfs,fsync,fdatasync,sync_file_range -o "$work/$form.strace"
    waited=$(awk -F'[<>]' '/sync/ && NF > 2 { sum += $(NF - 1) } END { printf "%.2f", sum }' "$work/$form.strace")
    printf '\nas %s, processor time in s; its threads wait %s s for the disk (some of it at the same time)\n\n| phase | s | |\n|---|---|---|\n' "$form" "$waited"
    cat "$work/$form.table" "$work/$form.all"
done
