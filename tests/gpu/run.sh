#!/bin/bash
# What only a GPU can show, on a machine with an NVIDIA GPU and its driver, as root:
#   tests/gpu/run.sh [DIR]       DIR: where berth and berth-step are [target/release]
#   tests/gpu/run.sh --pack FILE makes an archive of programs, image and this script, for a machine that has none of them
#   tests/gpu/run.sh --dry       says what it would do, and checks what it needs but the GPU
# It prints one line for each thing that it tried, and ends with 1 when one failed. docs/gpu.md keeps its output.
set -u
here=$(cd "$(dirname "$0")" && pwd)
failed=0
dry=
made=
say() { printf '%-4s  %s\n' "$1" "$2"; [ "$1" != BAD ] || failed=1; }
need() { command -v "$1" >/dev/null || { echo "$1 is needed: $2" >&2; exit 2; }; }

programs=$here/bin
[ -x "$programs/berth" ] || programs=$here/../../target/release
image=$here/image

# A small image: the node's own shell and what it needs, as a directory.
make_image() {
  [ -e "$image" ] && return
  made=1
  root=$(mktemp -d)
  for program in /bin/sh /bin/ls /bin/cat /usr/bin/env /bin/mknod /usr/bin/head /usr/bin/grep; do
    install -D "$program" "$root$program"
    ldd "$program" 2>/dev/null | grep -o '/[^ ]*' | while read -r lib; do install -D "$lib" "$root$lib"; done
  done
  for lib in libdl.so.2 libpthread.so.0 librt.so.1 libm.so.6; do
    found=$(/sbin/ldconfig -p | awk -v n="$lib" '$1 == n { print $NF; exit }')
    [ -z "$found" ] || install -D "$found" "$root$found"
  done
  mkdir -p "$root/tmp" "$root/proc" "$root/sys" "$root/dev" "$root/etc"
  rm -rf "$image"
  mv "$root" "$image"
}

case ${1:-} in
  --pack)
    make_image
    staging=$(mktemp -d)
    mkdir "$staging/gpu" "$staging/gpu/bin"
    cp "$programs/berth" "$programs/berth-step" "$staging/gpu/bin/" || exit 2
    cp -a "$image" "$staging/gpu/image"
    cp "$0" "$staging/gpu/run.sh"
    tar -C "$staging" -czf "$2" gpu
    rm -rf "$staging" "$image"
    echo "$2: unpack it there, and run gpu/run.sh as root"
    exit 0 ;;
  --dry) dry=1 ;;
  ?*) programs=$1 ;;
esac

need tar "install tar"
[ -x "$programs/berth" ] && [ -x "$programs/berth-step" ] || { echo "no programs in $programs: cargo xtask build --release" >&2; exit 2; }
[ "$(id -u)" = 0 ] || { echo "run it as root: enforcement is root's" >&2; exit 2; }
make_image
state=$(mktemp -d /tmp/berth-gpu-XXXXXX)
export BERTH_STATE=$state
mkdir "$state/bin"
PATH=$state/bin:$programs:$PATH
"$programs/berth" install-links "$state/bin" >/dev/null
end() { berth down >/dev/null 2>&1; rm -rf "$state"; [ -z "$made" ] || rm -rf "$image"; }
trap end EXIT

berth doctor | grep -A1 GPUs || say INFO "doctor finds no GPU"
berth up --detach >/dev/null || exit 2
gres=$(sinfo -h -N -o %G)
count=$(printf '%s' "$gres" | grep -o 'gpu:[^,(]*' | awk -F: '{ n += $NF } END { print n + 0 }')
if [ "$count" = 0 ]; then
  [ -n "$dry" ] && {
    out=$(srun --container-image="$image" sh -c 'ls /dev | grep -c nvidia') 
    [ "$out" = 0 ] && say ok "a container without a GPU runs, and sees none" || say BAD "a container without a GPU sees $out"
    say dry "needs a GPU: detection, allocation, nvidia-smi -L in a container, a CUDA program, steps on one GPU, access denied, overhead"
    exit $failed
  }
  echo "no GPU was found: 'berth doctor' and $state/log say why" >&2; exit 1
fi
say ok "found: $gres, $(head -1 /proc/driver/nvidia/version)"
in="srun --container-image=$image"

seen=$($in --gres=gpu:1 nvidia-smi -L)
[ "$(printf '%s\n' "$seen" | grep -c '^GPU ')" = 1 ] && say ok "a container with one GPU sees one: $seen" || say BAD "nvidia-smi -L in a container: $seen"
all=$($in --gres=gpu:"$count" nvidia-smi -L | grep -c '^GPU ')
[ "$all" = "$count" ] && say ok "one with all sees $all" || say BAD "one with all $count sees $all"

# libcuda itself, by the loader's cache: count the devices, allocate, copy there and back.
if command -v cc >/dev/null; then
  cat > "$state/probe.c" <<'C'
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
int main(void) {
  void *l = dlopen("libcuda.so.1", RTLD_NOW);
  if (!l) { puts(dlerror()); return 1; }
  int (*init)(unsigned) = dlsym(l, "cuInit"), (*count)(int *) = dlsym(l, "cuDeviceGetCount");
  int (*retain)(void **, int) = dlsym(l, "cuDevicePrimaryCtxRetain"), (*set)(void *) = dlsym(l, "cuCtxSetCurrent");
  int (*alloc)(unsigned long long *, unsigned long) = dlsym(l, "cuMemAlloc_v2");
  int (*to)(unsigned long long, const void *, unsigned long) = dlsym(l, "cuMemcpyHtoD_v2");
  int (*from)(void *, unsigned long long, unsigned long) = dlsym(l, "cuMemcpyDtoH_v2");
  int n = 0, r; void *ctx; unsigned long long p; char a[64] = "through the GPU", b[64] = "";
  if ((r = init(0)) || (r = count(&n)) || (r = retain(&ctx, 0)) || (r = set(ctx)) || (r = alloc(&p, 64)) || (r = to(p, a, 64)) || (r = from(b, p, 64))) {
    printf("CUDA error %d\n", r); return 1;
  }
  printf("%d device(s), %s\n", n, b);
  return strcmp(a, b) != 0;
}
C
  cc -o "$state/probe" "$state/probe.c" -ldl
  ran=$($in --container-mounts="$state/probe:/probe" --gres=gpu:1 sh -c 'unset LD_LIBRARY_PATH; /probe')
  case $ran in "1 device(s), through the GPU") say ok "CUDA in a container: $ran" ;; *) say BAD "CUDA in a container: $ran" ;; esac
  # The first use wakes the driver.
  "$state/probe" >/dev/null
  bare=$( { TIMEFORMAT=%R; time for _ in 1 2 3 4 5; do "$state/probe" >/dev/null; done; } 2>&1)
  held=$( { TIMEFORMAT=%R; time for _ in 1 2 3 4 5; do $in --container-mounts="$state/probe:/probe" --gres=gpu:1 /probe >/dev/null; done; } 2>&1)
  say INFO "five runs of it: $bare s bare, $held s by srun in a container"
  denied=$($in --container-mounts="$state/probe:/probe" /probe)
  case $denied in *device\(s\)*) say BAD "CUDA without an allocation: $denied" ;; *) say ok "without an allocation: $denied" ;; esac
  hosted=$(srun "$state/probe")
  case $hosted in *device\(s\)*) say BAD "CUDA on the node's filesystem without an allocation: $hosted" ;; *) say ok "on the node's filesystem without an allocation: $hosted" ;; esac
else
  say INFO "no cc: CUDA itself was not tried"
fi

number=$(stat -c '%Hr %Lr' /dev/nvidia0)
$in sh -c "mknod /tmp/n c $number && head -c1 /tmp/n" >/dev/null 2>&1 && say BAD "a device file made by hand opens" || say ok "a device file made by hand does not open"
salloc --gres=gpu:1 sh -c "$in --gres=gpu:1 env sh -c 'sleep 5' & sleep 1; $in --gres=gpu:1 --immediate=1 nvidia-smi -L" >/dev/null 2>&1 \
  && say BAD "two steps had one GPU" || say ok "a second step on one GPU is not started beside the first"
exit $failed
