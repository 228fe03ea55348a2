#!/bin/bash
# What only a GPU can show, on a machine with an NVIDIA GPU and its driver, as root:
#   tests/gpu/run.sh [DIR]       DIR: where berth and berth-step are [target/release]
#   tests/gpu/run.sh --pack FILE [DIR] makes an archive of programs, image and this script, for a machine that has none of them
#   tests/gpu/run.sh --dry [DIR] says what it would do, and checks what it needs but the GPU
# A bare machine: tar -xf FILE && gpu/run.sh. Where nvcc is, here or where the archive was made, a program of its runs; with PYTORCH_IMAGE (a
# reference, a layout, a file) PyTorch runs in that image as well. One of the two has to be there: without, that is BAD. It needs no network, and of the
# machine the usual programs alone. As an ordinary user, or where root cannot limit devices (said as BAD), it tries detection, injection and use, and not
# what keeps GPUs from others. Nothing about the GPU is changed, MIG included.
#   REPORT    file for what it says, as a section of docs/gpu.md with date, driver and GPU; 'none': no file [gpu-report.md where it is run]. It grows line
#             by line, so that it is there whoever ends this.
#   RECORDED  what the machine shows of its GPUs in files, as a tree in a directory that it makes, or in an archive (gpu.tar.gz), to detect them by
#             elsewhere (BERTH_GPU_TREE=DIR/tree); 'none': nothing is [gpu-recorded where it is run]
#   SECONDS_AT_MOST  what was not begun by then is BAD [540]; no command takes more than 90
# It prints one line for each thing that it tried, and ends with 1 when one failed. Each denial has to be in the words of one, and stands
# beside the same thing allowed. docs/gpu.md keeps its output.
set -u
here=$(cd "$(dirname "$0")" && pwd)
failed=0
dry=
lines=
most=${SECONDS_AT_MOST:-540}
report=${REPORT:-$PWD/gpu-report.md}
recorded=${RECORDED:-$PWD/gpu-recorded}
# tell: to who reads now, and to who reads later
tell() { if [ -n "$lines" ]; then tee -a "$lines"; else cat; fi; }
say() { printf '%-4s  %s\n' "$1" "$2" | tell; [ "$1" != BAD ] || failed=1; }
usage() { sed -n '2,5s/^# *//p' "$0" >&2; exit 2; }
line() { tr '\n' ' ' | cut -c1-300; }
# within COMMAND...: no longer than there is time for
within() {
  local left=$((most - SECONDS))
  [ "$left" -le 90 ] || left=90
  [ "$left" -ge 1 ] || { echo "not tried: $most s are over"; return 1; }
  timeout --foreground -k 5 "$left" "$@"
}

# The toolkit need not be in the path.
PATH=$PATH:/usr/local/cuda/bin
programs=$here/bin
[ -x "$programs/berth" ] || programs=$here/../../target/release
image=${GPU_IMAGE:-$here/image}

# What uses a GPU by the driver's library itself, without CUDA's tools: counts the devices, allocates 64 MiB, copies there and back, and
# stays for as many seconds as its argument says: at rest, or with a second word ('busy') at work on that memory.
probe() {
  cat <<'C'
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
int main(int argc, char **argv) {
  void *l = dlopen("libcuda.so.1", RTLD_NOW);
  if (!l) { puts(dlerror()); return 1; }
  int (*init)(unsigned) = dlsym(l, "cuInit"), (*count)(int *) = dlsym(l, "cuDeviceGetCount");
  int (*retain)(void **, int) = dlsym(l, "cuDevicePrimaryCtxRetain"), (*set)(void *) = dlsym(l, "cuCtxSetCurrent");
  int (*alloc)(unsigned long long *, unsigned long) = dlsym(l, "cuMemAlloc_v2");
  int (*to)(unsigned long long, const void *, unsigned long) = dlsym(l, "cuMemcpyHtoD_v2");
  int (*from)(void *, unsigned long long, unsigned long) = dlsym(l, "cuMemcpyDtoH_v2");
  int (*fill)(unsigned long long, unsigned, unsigned long) = dlsym(l, "cuMemsetD32_v2"), (*wait)(void) = dlsym(l, "cuCtxSynchronize");
  if (!init || !count || !retain || !set || !alloc || !to || !from || !fill || !wait) { puts("libcuda.so.1 lacks a function"); return 1; }
  int n = 0, r; void *ctx; unsigned long long p; char a[64] = "through the GPU", b[64] = "";
  if ((r = init(0)) || (r = count(&n)) || (r = retain(&ctx, 0)) || (r = set(ctx)) || (r = alloc(&p, 64UL << 20)) || (r = to(p, a, 64)) || (r = from(b, p, 64))) {
    printf("CUDA error %d\n", r); return 1;
  }
  printf("%d device(s), %s\n", n, b);
  fflush(stdout);
  if (argc > 2) {
    for (time_t end = time(NULL) + atoi(argv[1]); time(NULL) < end;) {
      for (int i = 0; i < 64; i++) if ((r = fill(p, (unsigned)i, 16UL << 20))) { printf("CUDA error %d at work\n", r); return 1; }
      if ((r = wait())) { printf("CUDA error %d at work\n", r); return 1; }
    }
  } else if (argc > 1) sleep((unsigned)atoi(argv[1]));
  return strcmp(a, b) != 0;
}
C
}

# A program as people build it themselves, with a kernel of its own: nvcc_probe FILE
nvcc_probe() {
  printf '%s\n' '#include <cstdio>' '__global__ void twice(int *p) { *p *= 2; }' \
    'int main() { int *p, n = 21; cudaMalloc(&p, 4); cudaMemcpy(p, &n, 4, cudaMemcpyHostToDevice); twice<<<1, 1>>>(p);' \
    'cudaMemcpy(&n, p, 4, cudaMemcpyDeviceToHost); printf("%d\n", n); return n != 42; }' > "$1.cu"
  # The image has no C++ library.
  nvcc -cudart static -Xcompiler -static-libstdc++ -Xcompiler -static-libgcc -o "$1" "$1.cu"
  local built=$?
  rm -f "$1.cu"
  return $built
}

# A small image: the node's own shell and what it needs, and the probes, as a directory. It needs no compiler where it is used: make_image DIR
make_image() {
  local root name program lib found compiler
  root=$(mktemp -d)
  chmod 755 "$root"
  mkdir -p "$root/usr/bin"
  compiler=$(command -v cc || command -v gcc || command -v clang)
  if [ -n "$compiler" ]; then
    probe > "$root/probe.c" && "$compiler" -o "$root/usr/bin/cuda-probe" "$root/probe.c" -ldl
    rm -f "$root/probe.c"
  fi
  if command -v nvcc >/dev/null; then
    nvcc_probe "$root/usr/bin/nvcc-probe" >&2 || echo "nvcc does not build its program: none of its is in the image" >&2
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
  mv "$root" "$1" || { echo "cannot put the image into $1" >&2; exit 2; }
}

# The archive's image; or one of this machine's, where there is none, or where nvcc is here and was not there: what it builds goes with this
# machine's C library.
choose_image() {
  if [ ! -e "$image" ]; then
    make_image "$state/image"
    image=$state/image
  elif [ ! -x "$image/usr/bin/nvcc-probe" ] && command -v nvcc >/dev/null; then
    (make_image "$state/image")
    if [ -x "$state/image/usr/bin/nvcc-probe" ] && [ -x "$state/image/usr/bin/cuda-probe" ]; then image=$state/image; fi
  fi
}

# Begins the report: what the machine is.
begin_report() {
  local gpus driver
  [ "$report" != none ] || return
  if ! mkdir -p "$(dirname "$report")" || ! : > "$report"; then
    say INFO "no report: $report cannot be written"
    return
  fi
  gpus=$(sed -n 's/^Model:[[:space:]]*//p' /proc/driver/nvidia/gpus/*/information 2>/dev/null)
  driver=$(grep -oE -m1 '[0-9]{3}\.[0-9]+(\.[0-9]+)?' /proc/driver/nvidia/version 2>/dev/null | head -1)
  [ -n "$gpus" ] || gpus=$(within nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null)
  [ -n "$driver" ] || driver=$(within nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -1)
  gpus=$(printf '%s\n' "$gpus" | grep . | sort | uniq -c | sed 's/^ *//' | tr '\n' ',' | sed 's/,$//; s/,/, /g')
  {
    printf '### %s: %s, driver %s\n\n' "$(date -u +%Y-%m-%d)" "${gpus:-no GPU}" "${driver:-none}"
    printf '%s, %s cores, %s%s.\n\n```text\n' "$(uname -sr)" "$(nproc)" "$("$programs/berth" --version)" "${dry:+, a dry run}"
  } >> "$report"
  lines=$report
}

# What the machine shows of its GPUs, as a tree of files below $recorded/tree, and lists of the rest beside it.
record() {
  local tree=$recorded/tree archive='' file dir found
  [ "$recorded" != none ] || return
  case $recorded in
    *.tar | *.tar.* | *.tgz) archive=$recorded recorded=$state/recorded tree=$state/recorded/tree ;;
  esac
  mkdir -p "$tree" 2>/dev/null || { say INFO "nothing is recorded: $recorded cannot be made"; return; }
  # keep FILE: its text, at its place. What does not come to an end in time is left out.
  keep() {
    mkdir -p "$tree$(dirname "$1")"
    timeout 5 head -c 1000000 "$1" > "$tree$1" 2>/dev/null || rm -f "$tree$1"
  }
  keep /proc/devices
  if [ -d /proc/driver/nvidia ]; then
    find /proc/driver/nvidia -type f 2>/dev/null | while read -r file; do keep "$file"; done
  fi
  for dir in /sys/bus/pci/devices/*; do
    case $(cat "$dir/vendor" 2>/dev/null):$(cat "$dir/class" 2>/dev/null) in
      0x10de:0x03* | 0x1002:0x03* | 0x1002:0x12* | 0x8086:0x03*) ;;
      *) continue ;;
    esac
    for file in vendor device class uevent numa_node local_cpulist power/runtime_status; do
      [ ! -f "$dir/$file" ] || keep "$dir/$file"
    done
    # One that sleeps would be woken up.
    [ "$(cat "$dir/power/runtime_status" 2>/dev/null)" = suspended ] || [ ! -f "$dir/config" ] || keep "$dir/config"
    for file in "$dir"/drm/* "$dir"/ras/*_err_count; do
      if [ -d "$file" ]; then mkdir -p "$tree$file"; elif [ -f "$file" ]; then keep "$file"; fi
    done
  done
  # Device files have numbers and owners in a list, and in the tree their names.
  find /dev -maxdepth 2 \( -name 'nvidia*' -o -path '/dev/dri/*' -o -path '/dev/infiniband/*' -o -name kfd \) ! -type d \
    -exec stat -c '%n %F %t:%T %a %u:%g' {} + 2>/dev/null | sort > "$recorded/devices"
  while read -r file _; do mkdir -p "$tree$(dirname "$file")" && : > "$tree$file"; done < "$recorded/devices"
  # So have libraries, with the links to them; what is in them is the driver's.
  found=$({ /sbin/ldconfig -p || ldconfig -p; } 2>/dev/null | awk '/libcuda|libnvidia|libnvcuvid|libGLX_nvidia/ { print $NF }')
  printf '%s\n' "$found" > "$recorded/loader"
  for dir in $({ printf '%s\n' "$found" | sed -n 's|/[^/]*$||p'; ls -d /usr/local/nvidia/lib64 2>/dev/null; } | sort -u); do
    for file in "$dir"/libcuda* "$dir"/libnvidia* "$dir"/libnv[co]* "$dir"/lib*_nvidia*; do
      [ -e "$file" ] || continue
      mkdir -p "$tree$dir"
      if [ -L "$file" ]; then ln -sf "$(readlink "$file")" "$tree$file"; else : > "$tree$file"; fi
      stat -c '%N %s' "$file"
    done
  done > "$recorded/libraries"
  find /lib/firmware/nvidia -mindepth 1 -maxdepth 2 -name 'gsp*' 2>/dev/null | while read -r file; do
    mkdir -p "$tree$(dirname "$file")" && : > "$tree$file"
  done
  if command -v nvidia-smi >/dev/null; then
    timeout 60 nvidia-smi -q -x > "$recorded/smi.xml" 2>&1
    timeout 60 nvidia-smi topo -m > "$recorded/topology" 2>&1
  fi
  if [ -n "$archive" ] && ! tar -C "$recorded" -caf "$archive" .; then
    say INFO "nothing is recorded: $archive cannot be made"
    return
  fi
  say ok "the machine's files are recorded: $(find "$tree" ! -type d | wc -l) in ${archive:-$recorded}, identities of its GPUs among them"
}

case ${1:-} in
  --pack)
    [ $# = 2 ] || [ $# = 3 ] || usage
    [ -z "${3:-}" ] || programs=$3
    command -v tar >/dev/null || { echo "tar is needed: install it" >&2; exit 2; }
    staging=$(mktemp -d)
    trap 'rm -rf "$staging"' EXIT
    mkdir "$staging/gpu" "$staging/gpu/bin"
    cp "$programs/berth" "$programs/berth-step" "$staging/gpu/bin/" || { echo "cargo xtask build --release" >&2; exit 2; }
    # One of its own: with the compilers that are here now.
    image=$staging/gpu/image
    make_image "$image"
    [ -x "$image/usr/bin/cuda-probe" ] || { echo "a C compiler (cc) is needed: CUDA would not be tried" >&2; exit 2; }
    cp "$0" "$staging/gpu/run.sh"
    # Compressed as its name says.
    tar -C "$staging" -caf "$2" gpu || exit 2
    echo "$2: unpack it there, and run gpu/run.sh as root"
    exit 0 ;;
  --dry) dry=1; [ -z "${2:-}" ] || programs=$2 ;;
  --help | -h) usage ;;
  ?*) programs=$1 ;;
esac

[ -x "$programs/berth" ] && [ -x "$programs/berth-step" ] || { echo "no programs in $programs: cargo xtask build --release" >&2; exit 2; }
exec < /dev/null
state=$(mktemp -d /tmp/berth-gpu-XXXXXX)
chmod 755 "$state"
export BERTH_STATE=$state/state
mkdir "$state/bin"
PATH=$state/bin:$programs:$PATH
own=/dev/berth-gpu-$$
end() {
  timeout -k 5 60 berth down >/dev/null 2>&1
  rm -rf "$state" "$own"
  [ -z "$lines" ] || printf '```\n' >> "$lines"
}
trap end EXIT
"$programs/berth" install-links "$state/bin" >/dev/null || exit 2
begin_report
choose_image

say INFO "$(uname -sr), $(head -1 /proc/driver/nvidia/version 2>/dev/null || echo 'no /proc/driver/nvidia')"
record
found=$(within berth doctor 2>/dev/null | grep -A1 GPUs)
if [ -n "$found" ]; then printf '%s\n' "$found" | tell; else say INFO "doctor finds no GPU"; fi
enforces=
[ "$(id -u)" = 0 ] && enforces=1
if ! within berth up --detach >/dev/null 2> "$state/up"; then
  say BAD "no cluster comes up: $(line < "$state/up")"
  timeout -k 5 60 berth down >/dev/null 2>&1
  [ -n "$enforces" ] && command -v setpriv >/dev/null || exit 1
  # What needs no rights can be tried all the same.
  user=nobody
  # An image of its own, in which it may make what comes with a GPU.
  mkdir "$state/home" && cp -R "$image" "$state/home/image" && chown -R $user: "$state/home" || exit 1
  say INFO "the rest as an ordinary user ($user)"
  export BERTH_STATE=$state/home/state HOME=$state/home GPU_IMAGE=$state/home/image
  setpriv --reuid=$user --regid="$(id -g $user)" --clear-groups env -u XDG_RUNTIME_DIR RECORDED=none REPORT=none SECONDS_AT_MOST=$((most - SECONDS)) \
    "$0" ${dry:+--dry} "$programs" | tell
  exit 1
fi
gres=$(sinfo -h -N -o %G)
count=$(printf '%s' "$gres" | grep -o 'gpu:[^,(]*' | awk -F: '{ n += $NF } END { print n + 0 }')
in="timeout --foreground -k 5 90 srun --container-image=$image"

# works WHAT COMMAND...: it must; its output is in $said
works() {
  local what=$1
  shift
  if said=$(within "$@" 2>&1); then say ok "$what"; else say BAD "$what: it fails: $(printf '%s' "$said" | line)"; return 1; fi
}
# denied WHAT WORD COMMAND...: it must fail, in that word
denied() {
  local what=$1 word=$2
  shift 2
  if said=$(within "$@" 2>&1); then
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
    say dry "needs a GPU: detection, allocation, nvidia-smi -L in a container, CUDA programs, tasks and steps on one GPU, access denied, overhead, use by sstat and sacct"
    exit $failed
  }
  say BAD "no GPU was found; the agent's log ends so: $(tail -5 "$BERTH_STATE/log/agent.log" | line)"
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
  cuda=
  for dir in ${LD_LIBRARY_PATH:+${LD_LIBRARY_PATH//:/ }} /usr/local/nvidia/lib64 /usr/lib/x86_64-linux-gnu /usr/lib/aarch64-linux-gnu /usr/lib64; do
    [ -n "$cuda" ] || [ ! -e "$dir/libcuda.so.1" ] || cuda=$dir/libcuda.so.1
  done
  [ -n "$cuda" ] || cuda=$({ /sbin/ldconfig -p || ldconfig -p; } 2>/dev/null | awk '$1 == "libcuda.so.1" { print $NF; exit }')
  [ -z "$cuda" ] || denied "CUDA there with the driver's library mounted" "CUDA error" \
    $in --container-mounts="$(readlink -f "$cuda"):/driver/libcuda.so.1:ro" sh -c 'LD_LIBRARY_PATH=/driver cuda-probe'
  # On the node itself it runs where the node's C library is no older than that of where it was built. The loader need not know of the driver there.
  bare=("$image/usr/bin/cuda-probe")
  [ -z "$cuda" ] || bare=(env "LD_LIBRARY_PATH=$(dirname "$cuda")${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" "${bare[@]}")
  if said=$(within "${bare[@]}" 2>&1); then
    works "CUDA on the node's own filesystem with an allocation" srun --gres=gpu:1 "${bare[@]}"
    [ -z "$enforces" ] || denied "CUDA on the node's own filesystem without one" "CUDA error" srun "${bare[@]}"
    # The first use woke the driver.
    alone=$( { TIMEFORMAT=%R; time for _ in 1 2 3 4 5; do "${bare[@]}" >/dev/null 2>&1; done; } 2>&1)
    held=$( { TIMEFORMAT=%R; time for _ in 1 2 3 4 5; do $in --gres=gpu:1 cuda-probe >/dev/null 2>&1; done; } 2>&1)
    say INFO "five runs of it: $alone s bare, $held s by srun in a container ($(awk -v a="$alone" -v h="$held" 'BEGIN { printf "%.0f ms more each", (h - a) * 200 }'))"
  else
    say INFO "the probe does not run on the node itself ($(printf '%s' "$said" | line)): start-up was not compared"
  fi
else
  say BAD "there was no C compiler (cc) where the image was made, so that CUDA itself was not tried: make the archive where there is one (--pack)"
fi

# What people build and run themselves, where it is there.
tried=
if [ -x "$image/usr/bin/nvcc-probe" ]; then
  tried=1
  works "a program of nvcc's in a container" $in --gres=gpu:1 nvcc-probe
  printf '%s\n' "$said" | grep -qx 42 || say BAD "a program of nvcc's in a container says $(printf '%s' "$said" | line), not 42"
elif command -v nvcc >/dev/null; then
  say BAD "nvcc is there and did not build its program: see what it says above"
else
  say INFO "no nvcc, here or where the image was made: no program of its was tried"
fi
if [ -n "${PYTORCH_IMAGE:-}" ]; then
  tried=1
  ran=$(within srun --container-image="$PYTORCH_IMAGE" --gres=gpu:1 python -c 'import torch; print(torch.ones(2, device="cuda").sum().item(), torch.cuda.device_count())')
  [ "$ran" = "2.0 1" ] && say ok "PyTorch in $PYTORCH_IMAGE uses the GPU" || say BAD "PyTorch in $PYTORCH_IMAGE: $ran"
else
  say INFO "PYTORCH_IMAGE names no image: PyTorch was not tried"
fi
[ -n "$tried" ] || say BAD "neither a program of nvcc's nor PyTorch was tried: make the archive where nvcc is, or name an image with PYTORCH_IMAGE"

if [ "$whole" -gt 1 ]; then
  # Each task sees its own GPU alone, and no two the same.
  seen=$($in -n2 --overcommit --gpus-per-task=1 nvidia-smi -L 2>&1)
  different=$(printf '%s\n' "$seen" | grep -o 'UUID: [^)]*' | sort -u | grep -c .)
  seen_lines=$(printf '%s\n' "$seen" | grep -c '^GPU ')
  [ "$different $seen_lines" = "2 2" ] && say ok "two tasks have one GPU each" || say BAD "two tasks of one GPU each see $seen_lines, of which $different are different: $(printf '%s' "$seen" | line)"
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
threads=$(awk -F'[,-]' '{ print NF; exit }' /sys/devices/system/cpu/cpu0/topology/thread_siblings_list 2>/dev/null)
threads=${threads:-1}
if [ "$(nproc)" -ge $((2 * threads)) ]; then
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
  seen=$(within salloc -n2 -c"$threads" --mem=1G --gres=gpu:"$count" "$state/steps" 2>&1)
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
  say INFO "fewer than two cores: that two steps and two jobs are refused one GPU was not tried"
fi

# A job that is at work on the GPU for some seconds is seen while it is, and on the records with what it used.
job=$(sbatch --parsable -o "$state/use" --gres=gpu:1 --wrap "$in --gres=gpu:1 cuda-probe 30 busy")
seen=
least=50
# How busy a part of a GPU is nobody says.
[ -z "$part" ] || least=0
for _ in $(seq 120); do
  seen=$(sstat -n -P -a -j "$job" -o jobid,maxgpuutil,maxgpumem 2>/dev/null | awk -F'|' -v least="$least" '$2 + 0 >= least && $3 + 0 > 0' | head -1)
  [ -z "$seen" ] && [ "$SECONDS" -lt "$most" ] || break
  sleep 0.5
done
[ -n "$seen" ] && say ok "sstat sees what a step uses while it runs (step, per cent, memory): $seen" ||
  say BAD "sstat sees no step at work: $(sstat -n -P -a -j "$job" -o jobid,maxgpuutil,maxgpumem 2>&1 | line) ($(line < "$state/use"))"
for _ in $(seq 200); do [ -z "$(squeue -h -j "$job" -t PENDING,RUNNING,COMPLETING -o %T 2>/dev/null)" ] && break; sleep 0.5; done
used=$(sacct -n -P -j "$job" -o AllocTRES%80,TRESUsageInMax%200,GPUTime,AveGPUUtil 2>&1)
case $used in
  *gres/gpumem=[1-9]*) say ok "what was used is recorded: $(printf '%s' "$used" | grep -o 'gres/gpu[a-z]*=[^,|]*' | sort -u | tr '\n' ' ')" ;;
  *) say BAD "no memory of a GPU is recorded: $(printf '%s' "$used" | line) ($(line < "$state/use"))" ;;
esac
case ${part:-whole}:$used in
  whole:*gres/gpuutil=[1-9]*) say ok "and how busy it was: $(printf '%s' "$used" | awk -F'|' '$4 + 0 > 0 { print $3, $4; exit }')" ;;
  whole:*) say BAD "that the GPU was busy is not recorded: $(printf '%s' "$used" | line)" ;;
  *) say INFO "how busy parts of a GPU are is not recorded: its time was not tried" ;;
esac
say INFO "it took $SECONDS s"
exit $failed
