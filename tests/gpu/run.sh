#!/bin/bash
# What only a GPU can show, on a machine with an NVIDIA GPU and its driver, as root:
#   tests/gpu/run.sh [DIR]       DIR: where berth and berth-step are [target/release]
#   tests/gpu/run.sh --pack FILE makes an archive of programs, image and this script, for a machine that has none of them
#   tests/gpu/run.sh --dry       says what it would do, and checks what it needs but the GPU
# With PYTORCH_IMAGE (a reference, a layout, a file) it runs PyTorch in that image as well; with nvcc in PATH a program of nvcc's.
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

# What uses a GPU by the driver's library itself, without CUDA's tools: counts the devices, allocates, copies there and back.
probe() {
  cat <<'C'
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
}

# A small image: the node's own shell and what it needs, and the probe, as a directory. It needs no compiler where it is used.
make_image() {
  [ -e "$image" ] && return
  made=1
  root=$(mktemp -d)
  mkdir -p "$root/usr/bin"
  if command -v cc >/dev/null; then
    probe > "$root/probe.c" && cc -o "$root/usr/bin/cuda-probe" "$root/probe.c" -ldl
    rm -f "$root/probe.c"
  fi
  for program in /bin/sh /bin/ls /bin/cat /bin/sleep /usr/bin/env /bin/mknod /usr/bin/head /usr/bin/grep /usr/bin/sort; do
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
    say dry "needs a GPU: detection, allocation, nvidia-smi -L in a container, CUDA programs, tasks and steps on one GPU, access denied, overhead, use"
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

# libcuda itself, found by the loader's cache.
if [ -x "$image/usr/bin/cuda-probe" ]; then
  ran=$($in --gres=gpu:1 sh -c 'unset LD_LIBRARY_PATH; cuda-probe')
  case $ran in "1 device(s), through the GPU") say ok "CUDA in a container: $ran" ;; *) say BAD "CUDA in a container: $ran" ;; esac
  denied=$($in cuda-probe)
  case $denied in *device\(s\)*) say BAD "CUDA without an allocation: $denied" ;; *) say ok "without an allocation: $denied" ;; esac
  # On the node itself it runs where the node's C library is no older than that of where it was built.
  bare=$image/usr/bin/cuda-probe
  if "$bare" >/dev/null 2>&1; then
    hosted=$(srun "$bare")
    case $hosted in *device\(s\)*) say BAD "CUDA on the node's filesystem without an allocation: $hosted" ;; *) say ok "on the node's filesystem without an allocation: $hosted" ;; esac
    # The first use woke the driver.
    alone=$( { TIMEFORMAT=%R; time for _ in 1 2 3 4 5; do "$bare" >/dev/null; done; } 2>&1)
    held=$( { TIMEFORMAT=%R; time for _ in 1 2 3 4 5; do $in --gres=gpu:1 cuda-probe >/dev/null; done; } 2>&1)
    say INFO "five runs of it: $alone s bare, $held s by srun in a container"
  else
    say INFO "the probe does not run on the node itself ($("$bare" 2>&1 | head -1)): start-up was not compared"
  fi
else
  say BAD "there was no C compiler (cc) where the image was made, so that CUDA itself was not tried: make the archive where there is one (--pack)"
fi

# What people build and run themselves, where it is there.
if command -v nvcc >/dev/null; then
  printf '%s\n' '#include <cstdio>' '__global__ void twice(int *p) { *p *= 2; }' \
    'int main() { int *p, n = 21; cudaMalloc(&p, 4); cudaMemcpy(p, &n, 4, cudaMemcpyHostToDevice); twice<<<1, 1>>>(p);' \
    'cudaMemcpy(&n, p, 4, cudaMemcpyDeviceToHost); printf("%d\\n", n); return n != 42; }' > "$state/twice.cu"
  nvcc -cudart static -o "$state/twice" "$state/twice.cu" \
    && ran=$($in --container-mounts="$state/twice:/twice" --gres=gpu:1 /twice)
  [ "$ran" = 42 ] && say ok "a program of nvcc's runs in a container" || say BAD "a program of nvcc's in a container: $ran"
else
  say INFO "no nvcc: no program of its was tried"
fi
if [ -n "${PYTORCH_IMAGE:-}" ]; then
  ran=$(srun --container-image="$PYTORCH_IMAGE" --gres=gpu:1 python -c 'import torch; print(torch.ones(2, device="cuda").sum().item(), torch.cuda.device_count())')
  [ "$ran" = "2.0 1" ] && say ok "PyTorch in $PYTORCH_IMAGE uses the GPU" || say BAD "PyTorch in $PYTORCH_IMAGE: $ran"
else
  say INFO "PYTORCH_IMAGE names no image: PyTorch was not tried"
fi

if [ "$count" -gt 1 ]; then
  # Each task sees its own GPU alone, and no two the same.
  own=$(srun --container-image="$image" -n2 --overcommit --gpus-per-task=1 nvidia-smi -L | grep -o 'UUID: [^)]*' | sort -u | grep -c .)
  lines=$(srun --container-image="$image" -n2 --overcommit --gpus-per-task=1 nvidia-smi -L | grep -c '^GPU ')
  [ "$own $lines" = "2 2" ] && say ok "two tasks have one GPU each" || say BAD "two tasks of one GPU each see $lines, of which $own are different"
else
  say INFO "one GPU: that tasks have their own was not tried"
fi

number=$(stat -c '%Hr %Lr' /dev/nvidia0)
$in sh -c "mknod /tmp/n c $number && head -c1 /tmp/n" >/dev/null 2>&1 && say BAD "a device file made by hand opens" || say ok "a device file made by hand does not open"
salloc --gres=gpu:1 sh -c "$in --gres=gpu:1 env sh -c 'sleep 5' & sleep 1; $in --gres=gpu:1 --immediate=1 nvidia-smi -L" >/dev/null 2>&1 \
  && say BAD "two steps had one GPU" || say ok "a second step on one GPU is not started beside the first"

# A batch job that has the GPU for some seconds is on the records with what it used.
printf '#!/bin/sh\n%s\n' "$in --gres=gpu:1 sh -c 'n=0; while [ \$n -lt 30 ]; do cuda-probe >/dev/null || sleep 1; n=\$((n+1)); done; sleep 12'" > "$state/use.sh"
job=$(sbatch --parsable --wait -o /dev/null --gres=gpu:1 "$state/use.sh")
used=$(sacct -n -P -j "$job" -o AllocTRES%80,TRESUsageInMax%200 2>&1)
case $used in
  *gres/gpumem*|*gres/gpuutil*) say ok "what was used is recorded: $(printf '%s' "$used" | grep -o 'gres/gpu[a-z]*=[^,|]*' | sort -u | tr '\n' ' ')" ;;
  *) say BAD "no use of a GPU is recorded: $used" ;;
esac
exit $failed
