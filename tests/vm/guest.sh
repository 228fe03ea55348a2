#!/bin/bash
# Inside the emulated machine: runs the cases, says on the second serial line what became of them, and leaves logs on the third disk.
# A case is a function of cases/*.sh whose name begins with case_; each runs in a shell of its own, in their order.
set -u
exec > /dev/ttyS1 2>&1
trap 'sync; systemctl poweroff -ff > /dev/null 2>&1' EXIT
stty -F /dev/ttyS1 raw -echo 2>/dev/null
logs=/run/cases
mkdir -p $logs /opt/berth
cp /data/bin/* /opt/berth
export PATH=/opt/berth:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
cd /

mapfile -t selected < /data/selected
is_selected() { # case, file: setting up and taking down go with what lies between them
    local one
    [ -n "${selected[0]-}" ] || return 0
    for one in "${selected[@]}"; do
        [[ $1 == "case_$one" ]] && return 0
        [[ $1 =~ ^case_(begin|end)_ ]] && grep -q "^case_$one()" "$2" && return 0
    done
    return 1
}

berth install-links /opt/berth > $logs/links 2>&1
printf 'Linux %s, %s, %s\n' "$(uname -r)" "$(systemctl --version | head -1)" "$(stat -fc %T /sys/fs/cgroup)"
passed=0 failed=0
for file in /data/cases/*.sh; do
    begins=yes
    while read -r name; do
        is_selected "$name" "$file" || continue
        log=$logs/${name#case_}
        begun=$SECONDS
        if [ $begins = no ]; then
            failed=$((failed + 1))
            printf 'FAIL  %s (not run)\n' "${name#case_}"
            continue
        fi
        if timeout -k 5 180 bash -c ". /data/cases/lib; . $file; set -euxo pipefail; $name" < /dev/null > "$log" 2>&1; then
            passed=$((passed + 1)) word=ok
        else
            failed=$((failed + 1)) word=FAIL
            # Without what it sets up the others say nothing.
            [[ $name != case_begin_* ]] || begins=no
        fi
        printf '%-5s %s (%s s)\n' $word "${name#case_}" $((SECONDS - begun))
        [ $word = ok ] || tail -15 "$log" | sed 's/^/      | /'
    done < <(grep -o '^case_[a-z0-9_]*' "$file")
done
journalctl -b --no-pager > $logs/journal 2>&1
dmesg > $logs/dmesg
for state in /var/lib/berth /home/*/.local/state/berth; do
    [ -d $state/log ] && cp -r $state/log "$logs/log$(echo $state | tr / -)"
done
tar -cf /dev/vdc -C $logs .
printf '%s passed, %s failed\n' $passed $failed
