#!/usr/bin/env bash
# From two empty machines to a container on both: two emulated Debian 12 machines with systemd and control groups v2 run the commands
# that docs/admin.md has under "Several machines", exactly as they stand there. Not part of tests/run.sh: it takes minutes.
# usage: tests/vm/join.sh [--programs DIRECTORY] [--busy] [--check]
#   --programs  berth and berth-step to try [default: those of cargo xtask build --debug]
#   --busy      this machine does much else: more than two minutes are told, and are no failure
#   --check     shows the commands of the page and ends
# Needs what tests/vm/run.sh needs, and qemu-utils. Consoles are in target/vm/pair.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cd "$here/../.."
programs='' check=no busy=no
while [ $# -gt 0 ]; do
    case $1 in
        --programs) programs=${2-} && shift ;;
        --busy) busy=yes ;;
        --check) check=yes ;;
        *) printf 'join.sh: error: unknown word %s; the first lines of this script say what there is\n' "$1" >&2 && exit 2 ;;
    esac
    shift
done

# HOST, # of root or $ of a user, and the command: five of them, in the first block of the section.
mapfile -t commands < <(sed -n '/^## Several machines/,/^## [^S]/s/^    \(head\|n1\)\([#$]\) *\(.*\)/\1 \2 \3/p' docs/admin.md)
printf '%s\n' "${commands[@]}"
[ ${#commands[@]} -eq 5 ] || { printf 'join.sh: error: docs/admin.md has %s commands and not five\n' ${#commands[@]} >&2; exit 1; }
[ $check = no ] || exit 0

# shellcheck source=tests/vm/pair.sh
. "$here/pair.sh"
new_pair
say "booting"
boot head n1
say "both are up: $(must head 'systemctl --version | head -1'), $(must n1 'stat -fc %T /sys/fs/cgroup')"

# What is there of a site before: Docker Hub cannot be reached, and a mirror of it has an image under that name.
must head 'printf "version: 0.1\nstorage: {filesystem: {rootdirectory: /srv/registry}}\nhttp: {addr: \"0.0.0.0:5000\"}\n" > /etc/registry.yml'
must head 'systemd-run -q --unit=registry docker-registry serve /etc/registry.yml'
until_good 60 n1 'busybox wget -qO- http://head:5000/v2/'
must head 'berth image pull -q --state /srv/made /srv/image && berth image push -q --state /srv/made --insecure /srv/image head:5000/library/debian:12 && rm -rf /srv/made'
must head 'mkdir -p /var/lib/berth && printf "[[images.mirror]]\nregistry = \"docker.io\"\nurls = [\"http://head:5000\"]\ngrants = true\n" > /var/lib/berth/berth.toml'

say "the commands of the page"
begun=$SECONDS token=''
for line in "${commands[@]}"; do
    read -r host who command <<< "$line"
    command=${command/TOKEN/$token}
    one=$SECONDS
    if [ "$who" = '#' ]; then
        told=$(must "$host" "$command")
    else
        told=$(must "$host" "$(as ann "$command")")
    fi
    printf '%s%s %s    (%s s)\n%s\n' "$host" "$who" "$command" $((SECONDS - one)) "$(sed 's/^/      | /' <<< "$told")"
    case $command in
        *'token create'*)
            token=$(grep -oE 'berth[A-Za-z0-9_.:-]{20,}' <<< "$told" | head -1)
            [ -n "$token" ] || die "no token in: $told"
            ;;
        srun*)
            node=$(sed 's/.*-w \([a-z0-9]*\) .*/\1/' <<< "$command")
            [ "$(tail -1 <<< "$told")" = "$node" ] || die "it did not run on $node: $told"
            ;;
    esac
done
took=$((SECONDS - begun))
say "a container ran on both after $took s"

# It is what it should be: as the user, under systemd's groups, with a container's root, on each.
for node in head n1; do
    told=$(must head "$(as ann "srun -w $node --container-image=debian:12 sh -c 'id -un 2>/dev/null; id -u; cat /data/replaced; grep -c overlay /proc/mounts'")")
    [[ $told == *$'1000\nupper\n1'* ]] || die "on $node: $told"
    # Where systemd has the agent: head was brought up by hand, and joining makes a service.
    told=$(must $node 'cat /proc/$(sed -n "s/.*\"pid\": *\([0-9]*\).*/\1/p" /var/lib/berth/run/agent.json)/cgroup')
    [[ $told =~ ^0::/system.slice/berth-(agent.service|.*\.scope/berth-agent)$ ]] || die "the agent of $node is in $told"
done
# One step on both.
told=$(must head "$(as ann "srun -N2 --container-image=debian:12 hostname")" | sort | tr '\n' ' ')
[ "$told" = "head n1 " ] || die "one step on both says: $told"
told=$(must head "$(as ann "echo through | srun -w n1 --mem=64M --container-image=debian:12 sh -c 'cat; cat /proc/self/cgroup'")")
[[ $told == through* ]] || die "streams: $told"
must head 'berth node ls; sinfo -N'
must n1 'berth down'
must head 'berth down'
for node in head n1; do
    # Neither finds anything.
    told=$(on $node '! pgrep -a berth && ! grep berth /proc/mounts') || die "left on $node: $told"
done
# The page promises two minutes, and an emulator on a machine with nothing else to do needs half of that.
if [ $took -gt 120 ]; then
    [ $busy = yes ] || die "$took s are more than two minutes; on a machine that does much else say --busy"
    say "$took s are more than two minutes, on a machine that is busy"
fi
say "good"
