#!/bin/bash
# What only a GPU can show, on a machine with an NVIDIA GPU and its driver, as root:
#   tests/gpu/run.sh [DIR]       DIR: where berth and berth-step are [target/release]
#   tests/gpu/run.sh --pack FILE makes an archive of programs, image and this script, for a machine that has none of them
#   tests/gpu/run.sh --dry [DIR] says what it would do, and checks what it needs but the GPU
# With PYTORCH_IMAGE (a reference, a layout, a file) it runs PyTorch in that image as well; with nvcc in PATH a program of nvcc's.
# It needs no network, and of the machine the usual programs alone. As an ordinary user, or where root cannot limit devices (said as BAD), it
# tries detection, injection and use, and not what keeps GPUs from others. Nothing about the GPU is changed, MIG included.
# It prints one line for each thing that it tried, and ends with 1 when one failed. Each denial has to be in the words of one, and stands
# beside the same thing allowed. docs/gpu.md keeps its output.
set -u
here=$(cd "$(dirname "$0")" && pwd)
failed=0
dry=
made=
say() { printf '%-4s  %s\n' "$1" "$2"; [ "$1" != BAD ] || failed=1; }
usage() { sed -n '2,5s/^# *//p' "$0" >&2; exit 2; }
line() { tr '\n' ' ' | cut -c1-300; }

programs=$here/bin
[ -x "$programs/berth" ] || programs=$here/../../target/release
image=$here/image

# What uses a GPU by the driver's library itself, without CUDA's tools: counts the devices, allocates 64 MiB, copies there and back, and
# stays for as many seconds as its argument says.
probe() {
  cat <<'C'
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
  void *l = dlopen("libcuda.so.1", RTLD_NOW);
  if (!l) { puts(dlerror()); return 1; }
  int (*init)(unsigned) = dlsym(l, "cuInit"), (*count)(int *) = dlsym(l, "cuDeviceGetCount");
  int (*retain)(void **, int) = dlsym(l, "cuDevicePrimaryCtxRetain"), (*set)(void *) = dlsym(l, "cuCtxSetCurrent");
  int (*alloc)(unsigned long long *, unsigned long) = dlsym(l, "cuMemAlloc_v2");
  int (*to)(unsigned long long, const void *, unsigned long) = dlsym(l, "cuMemcpyHtoD_v2");
  int (*from)(void *, unsigned long long, unsigned long) = dlsym(l, "cuMemcpyDtoH_v2");
  if (!init || !count || !retain || !set || !alloc || !to || !from) { puts("libcuda.so.1 lacks a function"); return 1; }
  int n = 0, r; void *ctx; unsigned long long p; char a[64] = "through the GPU", b[64] = "";
  if ((r = init(0)) || (r = count(&n)) || (r = retain(&ctx, 0)) || (r = set(ctx)) || (r = alloc(&p, 64UL << 20)) || (r = to(p, a, 64)) || (r = from(b, p, 64))) {
    printf("CUDA error %d\n", r); return 1;
  }
  printf("%d device(s), %s\n", n, b);
  fflush(stdout);
  if (argc > 1) sleep((unsigned)atoi(argv[1]));
  return strcmp(a, b) != 0;
}
C
}

# A small image: the node's own shell and what it needs, and the probe, as a directory. It needs no compiler where it is used.
make_image() {
  [ -e "$image" ] && return
  made=1
  root=$(mktemp -d)
  chmod 755 "$root"
  mkdir -p "$root/usr/bin"
  if command -v cc >/dev/null; then
    probe > "$root/probe.c" && cc -o "$root/usr/bin/cuda-probe" "$root/probe.c" -ldl
    rm -f "$root/probe.c"
  fi
  for name in sh ls cat sleep env mknod head grep sort; do
    program=$(PATH=/usr/bin:/bin command -v "$name") || { echo "the image needs $name of this machine" >&2; exit 2; }
    # The shell is looked for where its name says.
    [ "$name" = sh ] && program=/bin/sh
    install -D "$(readlink -f "$program")" "$root$program"
    [ -e "$root/usr/bin/$name" ] || install -D "$(readlink -f "$program")" "$root/usr/bin/$name"
    ldd "$program" 2>/dev/null | grep -o '/[^ ]*' | while read -r lib; do install -D "$lib" "$root$lib"; done
  done
  for lib in libdl.so.2 libpthread.so.0 librt.so.1 libm.so.6; do
    found=$({ /sbin/ldconfig -p || ldconfig -p; } 2>/dev/null | awk -v n="$lib" '$1 == n { print $NF; exit }')
    [ -z "$found" ] || install -D "$found" "$root$found"
  done
  mkdir -p "$root/tmp" "$root/proc" "$root/sys" "$root/dev" "$root/etc"
  rm -rf "$image"
  mv "$root" "$image" || { echo "cannot put the image into $image" >&2; exit 2; }
}

case ${1:-} in
  --pack)
    [ $# = 2 ] || usage
    command -v tar >/dev/null || { echo "tar is needed: install it" >&2; exit 2; }
    make_image
    [ -x "$image/usr/bin/cuda-probe" ] || { echo "a C compiler (cc) is needed: CUDA would not be tried" >&2; exit 2; }
    staging=$(mktemp -d)
    mkdir "$staging/gpu" "$staging/gpu/bin"
    cp "$programs/berth" "$programs/berth-step" "$staging/gpu/bin/" || { echo "cargo xtask build --release" >&2; exit 2; }
    cp -a "$image" "$staging/gpu/image"
    cp "$0" "$staging/gpu/run.sh"
    tar -C "$staging" -czf "$2" gpu || exit 2
    rm -rf "$staging"
    [ -z "$made" ] || rm -rf "$image"
    echo "$2: unpack it there, and run gpu/run.sh as root"
    exit 0 ;;
  --dry) dry=1; [ -z "${2:-}" ] || programs=$2 ;;
  --help | -h) usage ;;
  ?*) programs=$1 ;;
esac

[ -x "$programs/berth" ] && [ -x "$programs/berth-step" ] || { echo "no programs in $programs: cargo xtask build --release" >&2; exit 2; }
make_image
state=$(mktemp -d /tmp/berth-gpu-XXXXXX)
chmod 755 "$state"
export BERTH_STATE=$state/state
mkdir "$state/bin"
PATH=$state/bin:$programs:$PATH
own=/dev/berth-gpu-$$
end() { berth down >/dev/null 2>&1; rm -rf "$state" "$own"; [ -z "$made" ] || rm -rf "$image"; }
trap end EXIT
"$programs/berth" install-links "$state/bin" >/dev/null || exit 2

say INFO "$(uname -sr), $(head -1 /proc/driver/nvidia/version 2>/dev/null || echo 'no /proc/driver/nvidia')"
berth doctor | grep -A1 GPUs || say INFO "doctor finds no GPU"
enforces=
[ "$(id -u)" = 0 ] && enforces=1
if ! berth up --detach >/dev/null 2> "$state/up"; then
  say BAD "no cluster comes up: $(line < "$state/up")"
  berth down >/dev/null 2>&1
  [ -n "$enforces" ] && command -v setpriv >/dev/null || exit 1
  # What needs no rights can be tried all the same.
  user=31234
  mkdir "$state/home" && chown $user:$user "$state/home"
  say INFO "the rest as an ordinary user (uid $user)"
  export BERTH_STATE=$state/home/state HOME=$state/home
  setpriv --reuid=$user --regid=$user --clear-groups env -u XDG_RUNTIME_DIR "$0" ${dry:+--dry} "$programs"
  exit 1
fi
gres=$(sinfo -h -N -o %G)
count=$(printf '%s' "$gres" | grep -o 'gpu:[^,(]*' | awk -F: '{ n += $NF } END { print n + 0 }')
in="srun --container-image=$image"

# works WHAT COMMAND...: it must; its output is in $said
works() {
  local what=$1
  shift
  if said=$("$@" 2>&1); then say ok "$what"; else say BAD "$what: it fails: $(printf '%s' "$said" | line)"; return 1; fi
}
# denied WHAT WORD COMMAND...: it must fail, in that word
denied() {
  local what=$1 word=$2
  shift 2
  if said=$("$@" 2>&1); then
    say BAD "$what: it succeeds: $(printf '%s' "$said" | line)"
  elif printf '%s' "$said" | grep -qiE -- "$word"; then
    say ok "$what: $(printf '%s' "$said" | grep -iE -m1 -- "$word" | line)"
  else
    say BAD "$what: it fails, and not by '$word': $(printf '%s' "$said" | line)"
  fi
}
# In a shell of its own: how the kernel refuses an open is in its words.
opens='for f in "$@"; do exec 3<"$f" || exit 1; done; echo opened'

if [ "$count" = 0 ]; then
  [ -n "$dry" ] && {
    works "a container without a GPU runs" $in sh -c 'ls /dev' &&
      { printf '%s' "$said" | grep -q nvidia && say BAD "a container without a GPU sees $(printf '%s' "$said" | line)" || say ok "it sees no GPU"; }
    [ -x "$image/usr/bin/cuda-probe" ] || say BAD "there is no C compiler (cc): make the archive where there is one (--pack)"
    denied "CUDA without a driver" "cannot open shared object file" $in cuda-probe
    say dry "needs a GPU: detection, allocation, nvidia-smi -L in a container, CUDA programs, tasks and steps on one GPU, access denied, overhead, use"
    exit $failed
  }
  echo "no GPU was found: 'berth doctor' and $BERTH_STATE/log say why" >&2
  tail -5 "$BERTH_STATE/log/agent.log" >&2
  exit 1
fi
say ok "found: $gres"

seen=$($in --gres=gpu:1 nvidia-smi -L 2>&1)
[ "$(printf '%s\n' "$seen" | grep -c '^GPU ')" = 1 ] && say ok "a container with one GPU sees one: $(printf '%s' "$seen" | line)" || say BAD "nvidia-smi -L in a container: $(printf '%s' "$seen" | line)"
whole=$(printf '%s' "$gres" | grep -o 'gpu:[^,(]*' | grep -vE '_[0-9]+g\.' | awk -F: '{ n += $NF } END { print n + 0 }')
if [ "$whole" = "$count" ]; then
  all=$($in --gres=gpu:"$count" nvidia-smi -L 2>&1 | grep -c '^GPU ')
  [ "$all" = "$count" ] && say ok "one with all sees $all" || say BAD "one with all $count sees $all"
fi
wide=$($in --gres=gpu:1 --export=ALL,NVIDIA_VISIBLE_DEVICES=all nvidia-smi -L 2>&1 | grep -c '^GPU ')
[ "$wide" = 1 ] && say ok "NVIDIA_VISIBLE_DEVICES=all shows no more" || say BAD "with NVIDIA_VISIBLE_DEVICES=all a container of one GPU sees $wide"

# Parts of a divided GPU, where somebody has divided it.
part=$(printf '%s' "$gres" | grep -oE '[0-9]+g\.[0-9]+gb' | head -1)
if [ -n "$part" ]; then
  seen=$($in --gres=gpu:"$part":1 nvidia-smi -L 2>&1)
  [ "$(printf '%s\n' "$seen" | grep -c ' MIG ')" = 1 ] && say ok "a container with a part ($part) sees one" || say BAD "a container with a part ($part): $(printf '%s' "$seen" | line)"
else
  say INFO "no GPU is divided (MIG): parts were not tried"
fi

# libcuda itself, found by the loader's cache.
if [ -x "$image/usr/bin/cuda-probe" ]; then
  works "CUDA in a container" $in --gres=gpu:1 sh -c 'unset LD_LIBRARY_PATH; cuda-probe'
  printf '%s\n' "$said" | grep -qx '1 device(s), through the GPU' || say BAD "CUDA in a container says: $(printf '%s' "$said" | line)"
  [ -z "$part" ] || { works "CUDA on a part" $in --gres=gpu:"$part":1 cuda-probe; }
  denied "CUDA in a container without an allocation" "cannot open shared object file|CUDA error" $in cuda-probe
  # With the library brought along by hand, so that nothing but devices is missing.
  cuda=$({ /sbin/ldconfig -p || ldconfig -p; } 2>/dev/null | awk '$1 == "libcuda.so.1" { print $NF; exit }')
  [ -z "$cuda" ] || denied "CUDA there with the driver's library mounted" "CUDA error" \
    $in --container-mounts="$(readlink -f "$cuda"):/driver/libcuda.so.1:ro" sh -c 'LD_LIBRARY_PATH=/driver cuda-probe'
  # On the node itself it runs where the node's C library is no older than that of where it was built.
  bare=$image/usr/bin/cuda-probe
  if said=$("$bare" 2>&1); then
    works "CUDA on the node's own filesystem with an allocation" srun --gres=gpu:1 "$bare"
    [ -z "$enforces" ] || denied "CUDA on the node's own filesystem without one" "CUDA error" srun "$bare"
    # The first use woke the driver.
    alone=$( { TIMEFORMAT=%R; time for _ in 1 2 3 4 5; do "$bare" >/dev/null 2>&1; done; } 2>&1)
    held=$( { TIMEFORMAT=%R; time for _ in 1 2 3 4 5; do $in --gres=gpu:1 cuda-probe >/dev/null 2>&1; done; } 2>&1)
    say INFO "five runs of it: $alone s bare, $held s by srun in a container ($(awk -v a="$alone" -v h="$held" 'BEGIN { printf "%.0f ms more each", (h - a) * 200 }'))"
  else
    say INFO "the probe does not run on the node itself ($(printf '%s' "$said" | line)): start-up was not compared"
  fi
else
  say BAD "there was no C compiler (cc) where the image was made, so that CUDA itself was not tried: make the archive where there is one (--pack)"
fi

# What people build and run themselves, where it is there.
if command -v nvcc >/dev/null; then
  printf '%s\n' '#include <cstdio>' '__global__ void twice(int *p) { *p *= 2; }' \
    'int main() { int *p, n = 21; cudaMalloc(&p, 4); cudaMemcpy(p, &n, 4, cudaMemcpyHostToDevice); twice<<<1, 1>>>(p);' \
    'cudaMemcpy(&n, p, 4, cudaMemcpyDeviceToHost); printf("%d\n", n); return n != 42; }' > "$state/twice.cu"
  # The image has no C++ library.
  if said=$(nvcc -cudart static -Xcompiler -static-libstdc++ -Xcompiler -static-libgcc -o "$state/twice" "$state/twice.cu" 2>&1); then
    works "a program of nvcc's in a container" $in --container-mounts="$state/twice:/twice" --gres=gpu:1 /twice
    printf '%s\n' "$said" | grep -qx 42 || say BAD "a program of nvcc's in a container says $(printf '%s' "$said" | line), not 42"
  else
    say BAD "nvcc does not build its program: $(printf '%s' "$said" | line)"
  fi
else
  say INFO "no nvcc: no program of its was tried"
fi
if [ -n "${PYTORCH_IMAGE:-}" ]; then
  ran=$(srun --container-image="$PYTORCH_IMAGE" --gres=gpu:1 python -c 'import torch; print(torch.ones(2, device="cuda").sum().item(), torch.cuda.device_count())')
  [ "$ran" = "2.0 1" ] && say ok "PyTorch in $PYTORCH_IMAGE uses the GPU" || say BAD "PyTorch in $PYTORCH_IMAGE: $ran"
else
  say INFO "PYTORCH_IMAGE names no image: PyTorch was not tried"
fi

if [ "$whole" -gt 1 ]; then
  # Each task sees its own GPU alone, and no two the same.
  seen=$(srun --container-image="$image" -n2 --overcommit --gpus-per-task=1 nvidia-smi -L 2>&1)
  different=$(printf '%s\n' "$seen" | grep -o 'UUID: [^)]*' | sort -u | grep -c .)
  lines=$(printf '%s\n' "$seen" | grep -c '^GPU ')
  [ "$different $lines" = "2 2" ] && say ok "two tasks have one GPU each" || say BAD "two tasks of one GPU each see $lines, of which $different are different: $(printf '%s' "$seen" | line)"
else
  say INFO "one GPU: that tasks have their own was not tried"
fi

# Device files: with an allocation they open, without one they do not, whoever made them.
if [ -n "$enforces" ]; then
  first=$(ls /dev/nvidia[0-9]* 2>/dev/null | head -1)
  files="$(ls /dev/nvidia[0-9]* /dev/nvidiactl /dev/nvidia-uvm 2>/dev/null | sort -u | tr '\n' ' ')"
  mknod -m 666 "$own" c "0x$(stat -c %t "$first")" "0x$(stat -c %T "$first")"
  works "outside of jobs a device file made by hand opens" sh -c "$opens" sh "$own"
  works "with an allocation of all GPUs all device files open on the node" srun --gres=gpu:"$count" sh -c "$opens" sh $files "$own"
  for file in $files "$own"; do
    denied "without an allocation on the node: $file" "not permitted" srun sh -c "$opens" sh "$file"
  done
  works "with an allocation the device file is in the container and opens" $in --gres=gpu:"$count" sh -c "$opens" sh "$first"
  denied "without one it is not there" "no such file|not found|nonexistent" $in sh -c "$opens" sh "$first"
  denied "without one a device file made by hand cannot be had" "not permitted" $in sh -c "mknod /tmp/n c 0x$(stat -c %t "$first") 0x$(stat -c %T "$first")"
else
  say INFO "an ordinary user's cluster limits no devices: what keeps them from others was not tried"
fi

# Two steps of one job, and two jobs: who is second is told that all are busy, and nothing else is in the way. Cores are named, as a GPU
# brings its share of them.
if [ "$(nproc)" -ge 4 ]; then
  cat > "$state/steps" <<END
#!/bin/sh
srun --exact -n1 --gres=gpu:$count sh -c 'echo has; sleep 60' > "$state/held" 2>&1 &
while ! grep -q has "$state/held" 2>/dev/null; do sleep 0.2; done
srun --exact -n1 --gres=none true && echo beside-without
srun --exact -n1 --gres=gpu:1 --immediate=2 nvidia-smi -L 2>&1 && echo two-had-it
srun --overlap -n1 --gres=gpu:1 nvidia-smi -L > /dev/null 2>&1 && echo overlap-had-it
kill \$!
wait
srun --exact -n1 --gres=gpu:1 nvidia-smi -L > /dev/null 2>&1 && echo after-had-it
END
  chmod +x "$state/steps"
  seen=$(salloc -n2 -c2 --mem=1G --gres=gpu:"$count" "$state/steps" 2>&1)
  for word in beside-without overlap-had-it after-had-it busy; do
    printf '%s' "$seen" | grep -qi -- "$word" || say BAD "two steps on one GPU: '$word' is not in: $(printf '%s' "$seen" | line)"
  done
  printf '%s' "$seen" | grep -q two-had-it && say BAD "two steps had one GPU" || say ok "a second step on one GPU is not started beside the first: $(printf '%s\n' "$seen" | grep -im1 busy | line)"
  job=$(sbatch --parsable -n1 -c1 --mem=100M -o /dev/null --gres=gpu:"$count" --wrap 'sleep 60')
  for _ in $(seq 100); do [ "$(squeue -h -j "$job" -o %T)" = RUNNING ] && break; sleep 0.2; done
  works "beside a job that has all GPUs one without any runs" srun -n1 -c1 --mem=100M --immediate=5 true
  denied "and none with one" busy srun -n1 -c1 --mem=100M --gres=gpu:1 --immediate=2 nvidia-smi -L
  scancel "$job"
  for _ in $(seq 100); do [ -z "$(squeue -h -j "$job" -t RUNNING,COMPLETING -o %T)" ] && break; sleep 0.2; done
  works "when it is over, one with one" srun -n1 -c1 --mem=500M --gres=gpu:1 nvidia-smi -L
else
  say INFO "fewer than four cores: that two steps and two jobs are refused one GPU was not tried"
fi

# A job that holds memory of the GPU for some seconds is on the records with what it used.
job=$(sbatch --parsable --wait -o "$state/use" --gres=gpu:1 --wrap "$in --gres=gpu:1 cuda-probe 30")
used=$(sacct -n -P -j "$job" -o AllocTRES%80,TRESUsageInMax%200 2>&1)
case $used in
  *gres/gpumem=[1-9]*) say ok "what was used is recorded: $(printf '%s' "$used" | grep -o 'gres/gpu[a-z]*=[^,|]*' | sort -u | tr '\n' ' ')" ;;
  *) say BAD "no memory of a GPU is recorded: $(printf '%s' "$used" | line) ($(line < "$state/use"))" ;;
esac
exit $failed
